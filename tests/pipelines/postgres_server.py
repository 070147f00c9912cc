"""A PostgreSQL server of a test's own, where the machine has one: on 127.0.0.1, with a password, gone after the tests."""

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

USER, PASSWORD = "reader", "p@ss/w0rd:planted"  # odd characters are quoted in an address
QUOTED = "p%40ss%2Fw0rd%3Aplanted"


def find_programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


def _server_user() -> str | None:
    """Who runs the server: it refuses to be run by root."""
    if os.geteuid():
        return None
    names = {one.pw_name for one in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextmanager
def running_postgres() -> Iterator[str]:
    """The address of an empty database, its password in it."""
    folder = find_programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (no initdb)")
    somebody, place, port = _server_user(), Path(tempfile.mkdtemp(prefix="forecaster-pg-")), free_port()
    secret = place / "password"
    secret.write_text(PASSWORD)
    if somebody is not None:
        for one in (place, secret):
            shutil.chown(one, somebody)

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [folder / program, *arguments], user=somebody, cwd=place, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        data = str(place / "data")
        run("initdb", "-D", data, "-U", USER, "--pwfile", str(secret), "-A", "scram-sha-256", "--no-sync")
        options = f"-h 127.0.0.1 -p {port} -k '' -F"
        with_log = ("-D", data, "-l", str(place / "log"), "-w", "-t", "60")
        run("pg_ctl", *with_log, "-o", options, "start")
        try:
            yield f"postgresql://{USER}:{QUOTED}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)
