"""PostgreSQL and MLflow's tracking server, on 127.0.0.1 and in a folder that goes away with them."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.system.processes import CHECKOUT, free_port, start_process

ADMIN_USER = "someone"
_POSTGRES_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


class TrackingServer(NamedTuple):
    """A tracking server: its address, and what opens it (nothing, where it asks for nothing)."""

    uri: str
    credentials: dict[str, str]
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """What clients are told by their environment; a busy test machine may answer slowly."""
        return {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60", **self.credentials}


def find_postgres_bin() -> Path | None:
    """Where PostgreSQL's programs are."""
    found = shutil.which("initdb")
    return (
        Path(found).parent
        if found
        else next((place for place in _POSTGRES_FOLDERS if (place / "initdb").exists()), None)
    )


def postgres_skip_reason() -> str | None:
    """Why a server on PostgreSQL with names and passwords cannot be started here."""
    if find_postgres_bin() is None:
        return "PostgreSQL is not installed"
    missing = [name for name in ("psycopg", "flask_wtf") if find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@contextmanager
def running_postgres() -> Iterator[str]:
    """The address of a database of its own; PostgreSQL never runs as root."""
    place = find_postgres_bin()
    assert place is not None
    user = next((one for one in ("postgres", "nobody") if _user_exists(one)), None) if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="forecaster-postgres-"))
    try:
        port, password = free_port(), secrets.token_hex(8)
        (folder / "password").write_text(password)
        if user is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        told = ["-D", "data", "-U", "test", "-A", "scram-sha-256", "--pwfile=password", "-E", "UTF8", "--no-sync"]
        _run_checked([str(place / "initdb"), *told], folder, user)
        options = f"-h 127.0.0.1 -p {port} -k {folder} -F"
        _run_checked([str(place / "pg_ctl"), "-D", "data", "-w", "-l", "log", "-o", options, "start"], folder, user)
        try:
            yield f"postgresql+psycopg://test:{password}@127.0.0.1:{port}/postgres"
        finally:
            _run_checked([str(place / "pg_ctl"), "-D", "data", "-w", "-m", "immediate", "stop"], folder, user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_tracking_server(folder: Path, database: str | None = None) -> Iterator[TrackingServer]:
    """MLflow's server: on SQLite and open to all, or on a database and for those alone who have a password."""
    port, password = free_port(), secrets.token_hex(12)
    command = ["-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri={database or f'sqlite:///{folder}/server.db'}"]
    command += [f"--artifacts-destination={folder / 'artifacts'}", f"--allowed-hosts=127.0.0.1:{port}"]
    extra = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    extra["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    credentials: dict[str, str] = {}
    if database is not None:
        command.append("--app-name=basic-auth")
        config = folder / "auth.ini"
        config.write_text(
            "[mlflow]\ndefault_permission = READ\nauthorization_function = "
            "mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 60\n"
            f"database_uri = {database}\nadmin_username = {ADMIN_USER}\n"
        )
        extra |= {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_AUTH_ADMIN_PASSWORD": password}
        extra |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16)}
        credentials = {"MLFLOW_TRACKING_USERNAME": ADMIN_USER, "MLFLOW_TRACKING_PASSWORD": password}
    log = folder / "server.log"
    with start_process(command, folder, log=log, **extra) as process:
        uri, patience = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while not _responds(f"{uri}/health"):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < patience, log.read_text()[-3000:]
            time.sleep(0.5)
        yield TrackingServer(uri, credentials, log)


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _user_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _run_checked(command: Sequence[str], folder: Path, user: str | None) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        user=user,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
