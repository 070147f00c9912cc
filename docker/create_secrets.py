"""Creates the secrets of the stack, one file each: `python docker/create_secrets.py [docker/secrets] [--database postgres]`.

Existing files are kept, so that it can be run again after one was deleted. The folder is readable by its owner alone, and the
files in it by all, because the users of the containers that mount them are not those of this machine. The script uses the
standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
from pathlib import Path

_KEY_PREFIX = "fck_"  # of API keys, as `forecaster key new` writes them
_BYTES = 32
CLIENTS = {"prometheus": "observe", "client": "read,actuals"}
"""The API keys and their scopes."""


def create_secrets(folder: Path, *, database: str) -> list[str]:
    """Writes the secrets that a folder lacks; returns their names.

    Args:
        folder: Created if it does not exist.
        database: Host, and port if it is not 5432, of PostgreSQL.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    created: list[str] = []

    def write(name: str, value: str) -> str:
        path = folder / name
        if path.exists():
            return path.read_text(encoding="utf-8").strip()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o444)  # whatever the umask is
            file.write(f"{value}\n")
        created.append(name)
        return value

    def create(name: str) -> str:
        return write(name, secrets.token_urlsafe(_BYTES))

    create("postgres_password")
    registry, ledger = create("registry_database_password"), create("ledger_database_password")
    write("registry_database", f"postgresql+psycopg://registry:{registry}@{database}/registry")
    write("registry_users_database", f"postgresql+psycopg://registry:{registry}@{database}/registry_users")
    write("ledger", f"postgresql+psycopg://ledger:{ledger}@{database}/ledger")
    for name in ("registry_admin_password", "registry_session_key", "state_keys", "grafana_password"):
        create(name)
    keys = {client: write(f"{client}_key", _KEY_PREFIX + secrets.token_urlsafe(_BYTES)) for client in CLIENTS}
    hashes = [f"{name} {CLIENTS[name]} sha256:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in keys.items()]
    write("api_keys", "\n".join(hashes))
    return created


def main() -> None:
    """Reads the command line, writes the secrets and prints the names of the new ones."""
    parser = argparse.ArgumentParser(description="Creates the secrets of the stack that do not exist yet.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "secrets")
    parser.add_argument("--database", default="postgres", help="host of PostgreSQL, and port if it is not 5432")
    options = parser.parse_args()
    created = create_secrets(options.folder, database=options.database)
    print(f"{options.folder}: {', '.join(created) or 'nothing was missing'}")


if __name__ == "__main__":
    main()
