"""The server in the background: `python -m rapidfireai.server <place as JSON>`.

It prints no link: what it prints goes into its log, and the token is in the link.
"""

import json
import logging
import sys
from pathlib import Path

from rapidfireai.errors import RapidFireError
from rapidfireai.server.process import Place, serve


def main() -> int:
    """Serve; returns the exit status."""
    given = json.loads(sys.argv[1])
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logger = logging.getLogger("rapidfireai.server")
    place = Place(
        home=Path(given["home"]),
        experiments=Path(given["experiments"]),
        host=given["host"],
        port=int(given["port"]),
    )
    try:
        serve(place, lambda record, token: logger.info("listening at %s", record.url))
    except (RapidFireError, OSError) as error:
        sys.stderr.write(f"rapidfireai: error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
