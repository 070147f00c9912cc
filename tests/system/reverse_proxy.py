"""A small reverse proxy for machines without nginx: `python -m tests.system.reverse_proxy PORT URL...`.

It does of docker/stack/nginx/nginx.conf what the tests of the stack need: it tries the next replica where one does not respond,
or responds with 503, passes the id of a request on, and does not serve /metrics.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_OWN_HEADERS = {"connection", "content-length", "transfer-encoding"}


def build_proxy(urls: Sequence[str]) -> Starlette:
    """Returns the application that passes requests on to the replicas in turn."""
    client, turns = httpx.AsyncClient(timeout=40), itertools.count()

    async def forward(request: Request) -> Response:
        if request.url.path == "/metrics":
            return Response(status_code=404)
        body, first = await request.body(), next(turns)
        headers = {name: value for name, value in request.headers.items() if name not in _OWN_HEADERS}
        response = Response(status_code=502)
        for offset in range(len(urls)):
            url = urls[(first + offset) % len(urls)] + request.url.path
            try:
                received = await client.request(
                    request.method, url, headers=headers, content=body, params=request.query_params
                )
            except httpx.TransportError:
                continue
            kept = {
                name: value
                for name, value in received.headers.items()
                if name not in {*_OWN_HEADERS, "content-encoding"}
            }
            response = Response(received.content, status_code=received.status_code, headers=kept)
            if received.status_code != 503:
                break
        return response

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])])


if __name__ == "__main__":
    uvicorn.run(build_proxy(sys.argv[2:]), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
