"""Starts MLflow's server on PostgreSQL with users and passwords; the entry point of the image `registry`.

Every secret is in a file that a variable names, and none is on the command line, where other users of a machine see it:

    REGISTRY_DATABASE_FILE         address of the database of runs and models, postgresql+psycopg://USER:PASSWORD@HOST/NAME
    REGISTRY_USERS_DATABASE_FILE   address of the database of users and permissions
    REGISTRY_ADMIN_PASSWORD_FILE   password of the user `admin`; it is set when the database of users is created
    REGISTRY_SESSION_KEY_FILE      the key that signs the forms of the web page

    REGISTRY_ALLOWED_HOSTS         names in the Host header that are served, with ports, separated by commas
    REGISTRY_ARTIFACTS             folder, or address of an object store, with the files of runs and models
    REGISTRY_HOST, REGISTRY_PORT   address to listen on: 0.0.0.0 and 5000
    REGISTRY_WORKERS               processes of the server: 1

The script uses the standard library only, and ends as MLflow's server ends, because that replaces it.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ADMIN_USER = "admin"
_USER_CACHE_S = 60  # without it every poll of every follower costs the hash of a password, a third of a second
_PLACEHOLDER = re.compile(r"(?:change|replace)[-_ ]?me", re.IGNORECASE)
_AUTHENTICATION = "mlflow.server.auth:authenticate_request_basic_auth"


def read_secret(name: str, environ: Mapping[str, str]) -> str:
    """Returns the secret in the file that a variable names; exits with 2 if there is none."""
    path = environ.get(name)
    try:
        value = Path(path).read_text(encoding="utf-8").strip() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(_fail(f"{name} to name a file with a secret; {path} cannot be read ({type(error).__name__})"))
    if not value or _PLACEHOLDER.search(value):
        sys.exit(
            _fail(f"{name} to name a file with a secret of your own; found {'a placeholder' if value else 'nothing'}")
        )
    return value


def build_environment(environ: Mapping[str, str], *, configuration: Path) -> dict[str, str]:
    """Returns the environment of MLflow's server, which reads its users' database from a file that this function writes."""
    users = read_secret("REGISTRY_USERS_DATABASE_FILE", environ).replace(
        "%", "%%"
    )  # the file is read with interpolation
    configuration.touch(mode=0o600)
    configuration.write_text(
        f"[mlflow]\ndefault_permission = READ\nauthorization_function = {_AUTHENTICATION}\ndatabase_uri = {users}\n"
        f"admin_username = {ADMIN_USER}\n"
        f"auth_cache_ttl_seconds = {_USER_CACHE_S}\n",
        encoding="utf-8",
    )
    return {
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes for the evaluation of language models
        **environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
        "MLFLOW_AUTH_ADMIN_PASSWORD": read_secret("REGISTRY_ADMIN_PASSWORD_FILE", environ),
        "MLFLOW_BACKEND_STORE_URI": read_secret("REGISTRY_DATABASE_FILE", environ),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": read_secret("REGISTRY_SESSION_KEY_FILE", environ),
    }


def build_command(environ: Mapping[str, str]) -> list[str]:
    """Returns the command line of MLflow's server, which contains no secret."""
    port = environ.get("REGISTRY_PORT", "5000")
    return [
        *(sys.executable, "-m", "mlflow", "server", "--app-name=basic-auth"),
        f"--host={environ.get('REGISTRY_HOST', '0.0.0.0')}",  # noqa: S104  # a container is reached from outside
        f"--port={port}",
        f"--workers={environ.get('REGISTRY_WORKERS', '1')}",
        f"--artifacts-destination={environ.get('REGISTRY_ARTIFACTS', '/var/lib/forecaster/artifacts')}",
        # Other Host headers are rejected, so that a web page in a browser cannot reach the registry (DNS rebinding).
        f"--allowed-hosts={environ.get('REGISTRY_ALLOWED_HOSTS', f'localhost:{port},127.0.0.1:{port}')}",
    ]


def _fail(expected: str) -> int:
    print(f"registry: Expected {expected}. Write it with docker/create_secrets.py.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(prefix="registry-"))
    os.execve(
        sys.executable, build_command(os.environ), build_environment(os.environ, configuration=folder / "auth.ini")
    )
