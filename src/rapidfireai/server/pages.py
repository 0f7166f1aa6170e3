"""The dashboard's files, as they were built into the package.

Files are found in a list made when the server starts: no path from a request reaches the file
system.
"""

import mimetypes
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.responses import Response

BUILT: Final = Path(__file__).parent / "static"
"""Where the dashboard's build goes; its entry is index.html."""

_OWN: Final = Path(__file__).parent / "html"

_FOREVER: Final = "public, max-age=31536000, immutable"
"""For files whose names change with their content."""

_TYPES: Final = {".js": "text/javascript", ".mjs": "text/javascript", ".woff2": "font/woff2"}
"""Which do not depend on the machine's own tables."""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    media_type: str
    is_immutable: bool


class Pages:
    """Serves the dashboard.

    Args:
        built: Folder of its files; it need not be there.
    """

    def __init__(self, built: Path = BUILT) -> None:
        self._files = {
            f"/{path.relative_to(built).as_posix()}": _File(
                path, _media_type(path), "assets" in path.relative_to(built).parts[:-1]
            )
            for path in sorted(built.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }

    def get(self, url_path: str) -> Response:
        """The file of that name, or the dashboard's entry: it knows its own pages."""
        file = self._files.get(url_path)
        # Pages are named after experiments, whose names may have dots further back.
        top = url_path.split("/")[1]
        if file is None and (top == "assets" or "." in top):
            return Response("there is no such file\n", 404, media_type="text/plain")
        file = file or self._files.get("/index.html")
        if file is None:
            return Response(page("unbuilt.html"), media_type="text/html")
        return Response(
            file.path.read_bytes(),
            media_type=file.media_type,
            headers={"Cache-Control": _FOREVER if file.is_immutable else "no-cache"},
        )


def page(name: str) -> str:
    """One of the few pages that are there without the dashboard."""
    return (_OWN / name).read_text(encoding="utf-8")


def _media_type(path: Path) -> str:
    known = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    return known or "application/octet-stream"
