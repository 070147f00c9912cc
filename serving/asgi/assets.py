"""The page at `/`: a fixed list of files, read once; nothing of a request's path ever reaches the disk."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from serving.asgi.compression import accepts_gzip

PAGE_FOLDER = Path(__file__).parents[1] / "page"
HOME_PATH, FILES_PREFIX = "/", "/page/"
METRICS_LABEL = "/page"  # of all these paths in the metrics
MEDIA_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Its own files and its own server, and nothing that is written into the page itself: neither script nor style.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
_RESPONSE_HEADERS = {
    "content-security-policy": _CONTENT_SECURITY_POLICY,
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
    gzip_body: bytes  # the same in gzip
    etag: str  # changes with the content

    async def serve(self, request: Request) -> Response:
        """The file, or 304 to who has it already."""
        headers = {**_RESPONSE_HEADERS, "etag": self.etag}
        if self.etag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        if accepts_gzip(request.headers.get("accept-encoding", "")):
            packed = {**headers, "content-encoding": "gzip"}
            return Response(self.gzip_body, media_type=self.media_type, headers=packed)
        return Response(self.body, media_type=self.media_type, headers=headers)


def load_assets(folder: Path = PAGE_FOLDER) -> Sequence[Asset]:
    """The files of the page, the page itself at HOME."""
    return [_load_asset(file) for file in sorted(folder.iterdir()) if file.suffix in MEDIA_TYPES]


def metrics_label(path: str) -> str:
    """The path as the metrics know it: one for all files of the page."""
    return METRICS_LABEL if path == HOME_PATH or path.startswith(FILES_PREFIX) else path


def _load_asset(file: Path) -> Asset:
    body = file.read_bytes()
    path = HOME_PATH if file.name == "index.html" else FILES_PREFIX + file.name
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'  # weak: one for both packings
    return Asset(path, MEDIA_TYPES[file.suffix], body, gzip.compress(body, mtime=0), tag)
