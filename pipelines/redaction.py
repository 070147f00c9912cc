"""Secrets: read from the environment only, typed as secrets, and redacted from the messages of other libraries."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

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
_MIN_SECRET_LENGTH = 4  # characters; redacting a shorter secret would also redact parts of words
_MASK = "***"


def read_secret(name: str, environ: Mapping[str, str] | None = None) -> SecretStr | None:
    """Reads a secret from the environment; returns None if it is not set or empty."""
    value = (os.environ if environ is None else environ).get(name)
    return SecretStr(value) if value else None


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Returns a text without the secrets of the environment and without the passwords of URLs in it."""
    for value in sorted(_iter_secret_values(os.environ if environ is None else environ), key=len, reverse=True):
        if len(value) >= _MIN_SECRET_LENGTH:
            text = text.replace(value, _MASK)
    return " ".join(mask_passwords(word) if "://" in word else word for word in text.split(" "))


def mask_passwords(url: str) -> str:
    """Returns a URL, or a chain of them (`simplecache::s3://...`), without passwords."""
    for part in url.split("::"):
        try:
            password = urlsplit(part).password
        except ValueError:  # such as an invalid port
            continue
        url = url.replace(f":{password}@", f":{_MASK}@") if password else url
    return url


def has_password(url: str) -> bool:
    """Whether a URL, or one of a chain, contains a password."""
    return mask_passwords(url) != url


def _iter_secret_values(environ: Mapping[str, str]) -> Iterator[str]:
    yield from (environ[name] for name in _SECRET_VARIABLES if environ.get(name))
    for name in _URL_VARIABLES:
        if not has_password(environ.get(name, "")):
            continue
        password = urlsplit(environ[name]).password or ""
        yield from {environ[name], password, unquote(password)}
