"""MLflow's own pages for one store: `python -m rapidfireai.server.mlflow_process <URI> <socket>`.

It listens on a socket in a folder that only this user may enter, so that nobody gets past the gate,
and ends when its standard input does, which is when the server that started it is gone.
"""

import os
import sys
import threading
from pathlib import Path


def main() -> None:
    """Serve until standard input ends."""
    uri, address = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from mlflow import server  # noqa: PLC0415 - takes seconds, in which the parent may end
    from werkzeug.serving import WSGIRequestHandler, run_simple  # noqa: PLC0415 - of MLflow

    os.environ[server.BACKEND_STORE_URI_ENV_VAR] = uri
    # Of experiments that name no other; one that we made does.
    os.environ[server.ARTIFACT_ROOT_ENV_VAR] = str(Path(address).parent)
    os.environ[server.SERVE_ARTIFACTS_ENV_VAR] = "false"

    class Quiet(WSGIRequestHandler):
        def log_request(self, *args: object) -> None:
            """Not each of them."""

    run_simple(f"unix://{address}", 0, server.app, threaded=True, request_handler=Quiet)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
