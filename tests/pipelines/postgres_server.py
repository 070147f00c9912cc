"""A temporary PostgreSQL server for tests on 127.0.0.1, with a password; tests are skipped if PostgreSQL is not installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.processes import free_port

USER, PASSWORD = "reader", "p@ss/w0rd:planted"  # its special characters are percent-encoded in a URL
QUOTED = "p%40ss%2Fw0rd%3Aplanted"


def find_programs() -> Path | None:
    """Returns the folder of `initdb` and `pg_ctl`."""
    executable = shutil.which("initdb")
    if executable:
        return Path(executable).parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


def _server_user() -> str | None:
    """Returns the user that runs the server, which refuses to run as root."""
    if os.geteuid():
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextmanager
def running_postgres() -> Iterator[str]:
    """Runs a server; yields the URL of an empty database, including the password."""
    folder = find_programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (no initdb)")
    user, home, port = _server_user(), Path(tempfile.mkdtemp(prefix="forecaster-pg-")), free_port()
    password_file = home / "password"
    password_file.write_text(PASSWORD)
    if user is not None:
        for path in (home, password_file):
            shutil.chown(path, user)

    def run(program: str, *arguments: str) -> None:
        completed = subprocess.run(
            [folder / program, *arguments], user=user, cwd=home, capture_output=True, text=True, check=False
        )
        assert completed.returncode == 0, completed.stdout + completed.stderr

    try:
        data = str(home / "data")
        run("initdb", "-D", data, "-U", USER, "--pwfile", str(password_file), "-A", "scram-sha-256", "--no-sync")
        options = f"-h 127.0.0.1 -p {port} -k '' -F"
        start_options = ("-D", data, "-l", str(home / "log"), "-w", "-t", "60")
        run("pg_ctl", *start_options, "-o", options, "start")
        try:
            yield f"postgresql://{USER}:{QUOTED}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)
