"""The web page at `/`: a fixed list of files, read once at start; no part of a request's path ever reaches the disk."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from serving.asgi.compression import accepts_gzip

PAGE_FOLDER = Path(__file__).parents[1] / "page"
HOME_PATH, FILES_PREFIX = "/", "/page/"
METRICS_LABEL = "/page"  # the route of all these paths in the metrics
MEDIA_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The page may load its own files and query its own server; inline scripts and styles are forbidden.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
_OWN_URL_PATTERN = re.compile(rb'\b(href|src)="(?=page/|docs\.json")')
_RESPONSE_HEADERS = {
    "content-security-policy": _CONTENT_SECURITY_POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # The browser revalidates every file and receives 304, so files of two versions never mix in one page.
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


class Asset(NamedTuple):
    """A file of the page, with its URL path and both encodings of its body."""

    path: str
    media_type: str
    body: bytes
    gzip_body: bytes
    etag: str  # changes with the content

    async def serve(self, request: Request) -> Response:
        """Returns the file, or 304 if the client has this version."""
        headers = {**_RESPONSE_HEADERS, "etag": self.etag}
        if self.etag in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        if accepts_gzip(request.headers.get("accept-encoding", "")):
            gzip_headers = {**headers, "content-encoding": "gzip"}
            return Response(self.gzip_body, media_type=self.media_type, headers=gzip_headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def load_assets(folder: Path = PAGE_FOLDER, *, root_path: str = "") -> Sequence[Asset]:
    """Reads the files of the page; index.html gets the path HOME_PATH, and below a root path absolute URLs."""
    return [_load_asset(file, root_path) for file in sorted(folder.iterdir()) if file.suffix in MEDIA_TYPES]


def metrics_label(path: str) -> str:
    """Returns the route of a path in the metrics: one for all files of the page."""
    return METRICS_LABEL if path == HOME_PATH or path.startswith(FILES_PREFIX) else path


def _load_asset(file: Path, root_path: str) -> Asset:
    body = file.read_bytes()
    if root_path and file.name == "index.html":  # so that the page also works under an address without the last slash
        body = _OWN_URL_PATTERN.sub(rb'\1="' + root_path.encode() + b"/", body)
    path = HOME_PATH if file.name == "index.html" else FILES_PREFIX + file.name
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'  # weak, because both encodings share it
    return Asset(path, MEDIA_TYPES[file.suffix], body, gzip.compress(body, mtime=0), etag)
