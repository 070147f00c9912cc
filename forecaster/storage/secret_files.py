"""Secrets in files: NAME_FILE names a file with the value of the environment variable NAME, as containers mount secrets.

The programs of the project load them once, when they start; the processes that they start inherit the values.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from pathlib import Path

SECRET_VARIABLES = (
    "FORECASTER_KEY",
    "FORECASTER_SERVING_LEDGER",
    "FORECASTER_SERVING_STATE_KEYS",
    "FORECASTER_SQL_URL",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
)
"""The variables whose value may be in a file."""
FILE_SUFFIX = "_FILE"
_MAX_BYTES = 1 << 16
_PLACEHOLDER = re.compile(r"(?:change|replace)[-_ ]?me", re.IGNORECASE)


class InvalidSecret(Exception):
    """A secret cannot be used; the message names its variable and its file, and never its value."""


def load_secret_files(environ: MutableMapping[str, str]) -> None:
    """Sets every variable of SECRET_VARIABLES whose NAME_FILE is set, and removes NAME_FILE.

    White space around the value does not count. Raises InvalidSecret if both variables are set, or if
    the file cannot be read, is empty, or contains the placeholder of an example.
    """
    for name in SECRET_VARIABLES:
        path = environ.get(f"{name}{FILE_SUFFIX}")
        if not path:
            continue
        if environ.get(name):
            raise InvalidSecret(f"Expected either {name} or {name}{FILE_SUFFIX}; found both. Remove one of them.")
        environ[name] = read_secret_file(Path(path), variable=f"{name}{FILE_SUFFIX}")
        del environ[f"{name}{FILE_SUFFIX}"]


def read_secret_file(path: Path, *, variable: str) -> str:
    """Returns the secret in a file; raises InvalidSecret as `load_secret_files` does. `variable` is named in the message."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        value = content.decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InvalidSecret(
            f"Expected a secret in the file {path} of {variable}; it cannot be read ({reason}). Correct the path or the "
            "permissions of the file."
        ) from None
    if not value or len(content) > _MAX_BYTES:
        found = f"more than {_MAX_BYTES} bytes" if value else "nothing"
        raise InvalidSecret(
            f"Expected a secret in the file {path} of {variable}; found {found}. Write the secret alone into the file."
        )
    if _PLACEHOLDER.search(value):
        raise InvalidSecret(
            f"Expected a secret in the file {path} of {variable}; found the placeholder of an example. Write a secret of your "
            "own into the file."
        )
    return value
