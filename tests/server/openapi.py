"""Renew the snapshot of the API's description: `python -m tests.server.openapi`.

Whoever changes the API sees in the snapshot's difference what its clients will.
"""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.server.laboratory import application, client

SNAPSHOT = Path(__file__).with_name("openapi.json")


def described() -> dict[str, Any]:
    """The API as it describes itself."""

    async def ask() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as root:
            async with client(application(Path(root))) as http:
                answer: dict[str, Any] = (await http.get("/api/v1/openapi.json")).json()
                return answer

    description = asyncio.run(ask())
    description["info"]["version"] = "any"
    return description


def as_text(description: dict[str, Any]) -> str:
    return json.dumps(description, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(as_text(described()), encoding="utf-8")
