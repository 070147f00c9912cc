"""Secrets: read from the environment only, typed as secrets, and redacted from the messages of other libraries."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import SecretStr

from forecaster.storage.addresses import redact_addresses

SQL_URL_VARIABLE = "FORECASTER_SQL_URL"
# Variables that hold a URL whose user and password are secret.
_URL_VARIABLES = (SQL_URL_VARIABLE, "MLFLOW_TRACKING_URI", "FORECASTER_SERVING_LEDGER")
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
    "PREFECT_API_KEY",
)
_SECRET_PARAMETERS = {"password", "passwd", "pwd", "sslpassword"}  # in the query of a database's URL
_MIN_SECRET_LENGTH = 4  # characters; redacting a shorter secret would also redact parts of words
_MASK = "***"


def read_secret(name: str, environ: Mapping[str, str] | None = None) -> SecretStr | None:
    """Reads a secret from the environment; returns None if it is not set or empty."""
    value = (os.environ if environ is None else environ).get(name)
    return SecretStr(value) if value else None


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Returns a text without the secrets of the environment, and its addresses without user info and query."""
    for value in sorted(_iter_secret_values(os.environ if environ is None else environ), key=len, reverse=True):
        if len(value) >= _MIN_SECRET_LENGTH:
            text = text.replace(value, _MASK)
    return redact_addresses(text)


def has_password(url: str) -> bool:
    """Whether a URL, or one of a chain (`simplecache::s3://...`), has a password in its user info or its query."""
    for part in url.split("::"):
        try:
            parts = urlsplit(part)
            names = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
            if parts.password or names & _SECRET_PARAMETERS:
                return True
        except ValueError:  # such as an invalid port
            continue
    return False


def _iter_secret_values(environ: Mapping[str, str]) -> Iterator[str]:
    yield from (environ[name] for name in _SECRET_VARIABLES if environ.get(name))
    for name in _URL_VARIABLES:
        if not has_password(environ.get(name, "")):
            continue
        password = urlsplit(environ[name]).password or ""
        yield from {environ[name], password, unquote(password)}
