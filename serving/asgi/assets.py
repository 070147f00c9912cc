"""The web pages at `/` and `/docs`: fixed lists of files; no part of a request's path ever reaches the disk.

Our own files are read once at start. Those of Swagger UI come with BentoML, which is installed with every server; they are large
and rarely used, so each worker reads them at the first request.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from serving.asgi.compression import accepts_gzip
from serving.errors import ApiError

PAGE_FOLDER = Path(__file__).parents[1] / "page"
DOCS_FOLDER = PAGE_FOLDER / "docs"
HOME_PATH, FILES_PREFIX = "/", "/page/"
DOCS_PATH, DOCS_PREFIX = "/docs", "/docs/"
METRICS_LABEL, DOCS_METRICS_LABEL = "/page", "/docs"  # the routes of all these paths in the metrics
SWAGGER_FILES = ("swagger-ui-bundle.js", "swagger-ui.css")
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
_OWN_URL_PATTERN = re.compile(rb'\b(href|src)="(?=page/|docs[/."])')
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
    return _load_folder(folder, home_path=HOME_PATH, prefix=FILES_PREFIX, root_path=root_path)


def load_docs_assets(*, root_path: str = "") -> Sequence[Asset]:
    """Reads our own files of the interactive documentation; index.html gets the path DOCS_PATH."""
    return _load_folder(DOCS_FOLDER, home_path=DOCS_PATH, prefix=DOCS_PREFIX, root_path=root_path)


def swagger_routes() -> Mapping[str, Callable[[Request], Awaitable[Response]]]:
    """Returns the handlers of the files of Swagger UI, by path."""
    return {DOCS_PREFIX + name: partial(_serve_swagger_file, name) for name in SWAGGER_FILES}


def metrics_label(path: str) -> str:
    """Returns the route of a path in the metrics: one for all files of a page."""
    if path == HOME_PATH or path.startswith(FILES_PREFIX):
        return METRICS_LABEL
    return DOCS_METRICS_LABEL if path.startswith(DOCS_PREFIX) else path


async def _serve_swagger_file(name: str, request: Request) -> Response:
    try:
        asset = await asyncio.to_thread(_load_swagger_file, name)
    except (OSError, LookupError) as error:
        raise ApiError(
            "not_found",
            f"Expected {name} of Swagger UI in the installed BentoML; found none. Read /docs.json, which has the same content.",
        ) from error
    return await asset.serve(request)


@cache
def _load_swagger_file(name: str) -> Asset:
    """Reads a file of Swagger UI from the installed BentoML, without importing it; raises OSError or LookupError."""
    package = find_spec("bentoml")
    if package is None or not package.submodule_search_locations:
        raise LookupError("bentoml")
    folder = Path(package.submodule_search_locations[0]) / "_internal" / "server" / "static_content"
    return _create_asset(DOCS_PREFIX + name, (folder / name).read_bytes())


def _load_folder(folder: Path, *, home_path: str, prefix: str, root_path: str) -> Sequence[Asset]:
    assets = []
    for file in sorted(folder.iterdir()):
        if file.suffix in MEDIA_TYPES:
            body = file.read_bytes()
            if root_path and file.name == "index.html":  # so that the page also works without the last slash
                body = _OWN_URL_PATTERN.sub(rb'\1="' + root_path.encode() + b"/", body)
            is_home = file.name == "index.html"
            assets.append(_create_asset(home_path if is_home else prefix + file.name, body))
    return assets


def _create_asset(path: str, body: bytes) -> Asset:
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'  # weak, because both encodings share it
    media_type = MEDIA_TYPES[Path(path).suffix or ".html"]
    return Asset(path, media_type, body, gzip.compress(body, mtime=0), etag)
