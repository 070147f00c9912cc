"""PostgreSQL and MLflow's tracking server on 127.0.0.1, in temporary folders."""

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
    """A tracking server: its address, and its credentials (empty if it requires none)."""

    uri: str
    credentials: dict[str, str]
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of clients; the timeout allows for a busy test machine."""
        return {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60", **self.credentials}


def find_postgres_bin() -> Path | None:
    """Returns the folder of PostgreSQL's programs."""
    initdb = shutil.which("initdb")
    return (
        Path(initdb).parent
        if initdb
        else next((folder for folder in _POSTGRES_FOLDERS if (folder / "initdb").exists()), None)
    )


def postgres_skip_reason() -> str | None:
    """Returns why a PostgreSQL server with users and passwords cannot be started here, or None."""
    if find_postgres_bin() is None:
        return "PostgreSQL is not installed"
    missing = [name for name in ("psycopg", "flask_wtf") if find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@contextmanager
def running_postgres() -> Iterator[str]:
    """Runs a PostgreSQL server and yields the address of a new database; never runs as root."""
    bin_folder = find_postgres_bin()
    assert bin_folder is not None
    user = next((name for name in ("postgres", "nobody") if _user_exists(name)), None) if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="forecaster-postgres-"))
    try:
        port, password = free_port(), secrets.token_hex(8)
        (folder / "password").write_text(password)
        if user is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        initdb_options = [
            "-D",
            "data",
            "-U",
            "test",
            "-A",
            "scram-sha-256",
            "--pwfile=password",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        _run_checked([str(bin_folder / "initdb"), *initdb_options], folder, user)
        options = f"-h 127.0.0.1 -p {port} -k {folder} -F"
        _run_checked(
            [str(bin_folder / "pg_ctl"), "-D", "data", "-w", "-l", "log", "-o", options, "start"], folder, user
        )
        try:
            yield f"postgresql+psycopg://test:{password}@127.0.0.1:{port}/postgres"
        finally:
            _run_checked([str(bin_folder / "pg_ctl"), "-D", "data", "-w", "-m", "immediate", "stop"], folder, user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_tracking_server(
    folder: Path, database: str | None = None, *, auth_cache_s: int = 60
) -> Iterator[TrackingServer]:
    """Runs MLflow's server: an open one on SQLite, or one with a password on a database."""
    port, password = free_port(), secrets.token_hex(12)
    command = ["-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri={database or f'sqlite:///{folder}/server.db'}"]
    command += [f"--artifacts-destination={folder / 'artifacts'}", f"--allowed-hosts=127.0.0.1:{port}"]
    extra = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    extra["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    credentials: dict[str, str] = {}
    if database is not None:
        command.append("--app-name=basic-auth")
        config = folder / "auth.ini"
        config.write_text(
            "[mlflow]\ndefault_permission = READ\nauthorization_function = "
            f"mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = {auth_cache_s}\n"
            f"database_uri = {database}\nadmin_username = {ADMIN_USER}\n"
        )
        extra |= {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_AUTH_ADMIN_PASSWORD": password}
        extra |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16)}
        credentials = {"MLFLOW_TRACKING_USERNAME": ADMIN_USER, "MLFLOW_TRACKING_PASSWORD": password}
    log = folder / "server.log"
    with start_process(command, folder, log=log, **extra) as process:
        uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while not _responds(f"{uri}/health"):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        yield TrackingServer(uri, credentials, log)


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _user_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _run_checked(command: Sequence[str], folder: Path, user: str | None) -> None:
    completed = subprocess.run(
        command,
        cwd=folder,
        user=user,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert completed.returncode == 0, f"{command}: {completed.stdout[-2000:]} {completed.stderr[-2000:]}"
