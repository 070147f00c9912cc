"""Secrets: they come from the environment alone, are typed as secrets, and are struck out of whatever others say of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

SQL_URL = "FORECASTER_SQL_URL"
_ADDRESSES = (SQL_URL, "MLFLOW_TRACKING_URI", "FORECASTER_SERVING_LEDGER")  # of which user and password are secret
_WHOLE = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
    "PREFECT_API_KEY",
)
_SHORTEST = 4  # characters of what is struck out: a shorter one would strike out parts of words
_STRUCK = "***"


def secret(name: str, environ: Mapping[str, str] | None = None) -> SecretStr | None:
    """A secret of the environment; None where it is not set, or empty."""
    value = (os.environ if environ is None else environ).get(name)
    return SecretStr(value) if value else None


def redacted(text: str, environ: Mapping[str, str] | None = None) -> str:
    """A text without any secret of the environment, and without the password of any address in it."""
    for value in sorted(_values(os.environ if environ is None else environ), key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, _STRUCK)
    return " ".join(without_password(word) if "://" in word else word for word in text.split(" "))


def without_password(address: str) -> str:
    """An address, or a chain of them (`simplecache::s3://...`), without passwords."""
    for part in address.split("::"):
        try:
            password = urlsplit(part).password
        except ValueError:  # a port that is none, say
            continue
        address = address.replace(f":{password}@", f":{_STRUCK}@") if password else address
    return address


def has_password(address: str) -> bool:
    """Whether an address, or one of a chain, carries a password."""
    return without_password(address) != address


def _values(environ: Mapping[str, str]) -> Iterator[str]:
    yield from (environ[name] for name in _WHOLE if environ.get(name))
    for name in _ADDRESSES:
        if not has_password(environ.get(name, "")):
            continue
        password = urlsplit(environ[name]).password or ""
        yield from {environ[name], password, unquote(password)}
