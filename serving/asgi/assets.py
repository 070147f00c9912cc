"""The page at `/`: a fixed list of files, read once; nothing of a request's path ever reaches the disk."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from serving.asgi.compression import takes_gzip

FOLDER = Path(__file__).parents[1] / "page"
HOME, FILES = "/", "/page/"
LABEL = "/page"  # of all these paths in the metrics
TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Its own files and its own server, and nothing that is written into the page itself: neither script nor style.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Asked for again each time, and answered with 304: files of two versions never meet in one page.
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


class Asset(NamedTuple):
    """A file of the page, as it is sent."""

    path: str  # of the address
    media_type: str
    body: bytes
    packed: bytes  # the same in gzip
    tag: str  # changes with the content

    async def answer(self, request: Request) -> Response:
        """The file, or 304 to who has it already."""
        headers = {**_HEADERS, "etag": self.tag}
        if self.tag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        if takes_gzip(request.headers.get("accept-encoding", "")):
            packed = {**headers, "content-encoding": "gzip"}
            return Response(self.packed, media_type=self.media_type, headers=packed)
        return Response(self.body, media_type=self.media_type, headers=headers)


def read(folder: Path = FOLDER) -> Sequence[Asset]:
    """The files of the page, the page itself at HOME."""
    return [_asset(file) for file in sorted(folder.iterdir()) if file.suffix in TYPES]


def label(path: str) -> str:
    """The path as the metrics know it: one for all files of the page."""
    return LABEL if path == HOME or path.startswith(FILES) else path


def _asset(file: Path) -> Asset:
    body = file.read_bytes()
    path = HOME if file.name == "index.html" else FILES + file.name
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'  # weak: one for both packings
    return Asset(path, TYPES[file.suffix], body, gzip.compress(body, mtime=0), tag)
