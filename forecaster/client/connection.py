"""What both clients need of httpx: addresses, headers, and its responses and errors as exchanges read them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from forecaster.client.transport import HttpRequest, HttpResponse, NoResponse
from forecaster.errors import InputError, MissingPackage

if TYPE_CHECKING:
    import httpx

KEY_ENV_VARIABLE = "FORECASTER_KEY"


def import_httpx() -> Any:
    """Imports httpx; raises MissingPackage if it is not installed."""
    try:
        import httpx
    except ImportError as error:
        raise MissingPackage(
            "The client needs the package 'httpx', which is not installed. Install it with: "
            "pip install 'recurrent-forecaster[client]'."
        ) from error
    return httpx


def validate_url(url: str) -> str:
    """Returns the address of a service without a slash at its end; raises InputError for anything else."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https") or not rest.strip("/") or "@" in rest.partition("/")[0]:
        raise InputError(
            "Expected the address of a service, http://HOST:PORT or https://..., without a user name and a password; found "
            f"{'one with credentials' if '@' in url else repr(url)}. Correct it; pass a key by the argument `key`.",
            where="url",
        )
    return url.rstrip("/")


def build_headers(key: str | None) -> dict[str, str]:
    """Returns the headers of every request: the key, by default that of the environment; raises InputError for an invalid one."""
    key = os.environ.get(KEY_ENV_VARIABLE) if key is None else key
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            "Expected a key of printable characters without spaces; found others. Copy the key again.", where="key"
        )
    return {"authorization": f"Bearer {key}"}


def build_content_type(request: HttpRequest) -> dict[str, str]:
    """Returns the headers of the body of a request."""
    return {} if request.body is None else {"content-type": "application/json"}


def to_response(response: httpx.Response) -> HttpResponse:
    """Returns a response as exchanges read it, with the names of its headers in lower case."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return HttpResponse(response.status_code, headers, response.content)


def describe_lost_request(error: httpx.TransportError) -> NoResponse:
    """Translates a lost request; a timeout that is due to a slow service is not retried."""
    timed_out = isinstance(error, (import_httpx().ReadTimeout, import_httpx().WriteTimeout))
    return NoResponse(str(error) or type(error).__name__, timed_out)
