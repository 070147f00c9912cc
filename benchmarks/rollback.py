"""How long until every worker of a running service answers with the former model: with a registry, and without one.

    .venv/bin/python benchmarks/rollback.py        # a minute

`forecaster serve` with two workers and its usual settings follows a SQLite registry; rollbacks are processes of their own, as
people type them, and their start counts. A worker has answered when a new connection to it got a forecast that names the digest.
It prints what it finds and writes it to results/rollback.md.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

sys.path[0] = str(Path(__file__).resolve().parents[1])  # or this file would be found as the package of its name

from benchmarks.service import servers  # noqa: E402
from benchmarks.service.servers import JSON, Server  # noqa: E402
from forecaster.registry.registry import CHAMPION, Registry, Version, connect  # noqa: E402
from pipelines.promotion.promote import audited, promote, register  # noqa: E402
from pipelines.settings import Root  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "rollback.md"
NAME = "demand"
AIM_S = 10.0
WORKERS = 2
POLL_S = 5.0  # of the follower, as it is by default
_PATIENCE_S = 120.0
_WRITES = 18  # the byte of a SQLite file that says which format of writing it has; of a later one it is only read


class Drill(NamedTuple):
    """A service under way, and the two versions that take turns."""

    root: Root
    server: Server
    old: Version
    new: Version

    def run(self, *words: str) -> tuple[int, str]:
        """A command of the command line; its exit code and what it said against it."""
        command = [sys.executable, "-m", "pipelines.cli", *words, "--root", str(self.root.path)]
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    def promoted(self, version: Version) -> tuple[float, float]:
        """From a promotion until every worker answers with the version; and until it was done."""
        began = time.perf_counter()
        promote(NAME, self.root, number=version.number, force=True)
        return self._waited(version, began)

    def seconds(self, version: Version, *words: str) -> tuple[float, float]:
        """From a command's start until every worker answers with a version; and until the command ended."""
        began = time.perf_counter()
        code, said = self.run(*words)
        assert code == 0, said
        return self._waited(version, began)

    def _waited(self, version: Version, began: float) -> tuple[float, float]:
        ended = time.perf_counter() - began
        while not self.answers(version):
            assert time.perf_counter() - began < _PATIENCE_S, f"not every worker answers with {version}"
            time.sleep(0.05)
        return time.perf_counter() - began, ended

    def answers(self, version: Version) -> bool:
        """Whether each worker got one of some new connections, and all named this version."""
        workers, body = self.server.workers, json.dumps(servers.request(1, servers.CONTEXT))
        made = [http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10) for _ in range(8)]
        try:
            for one in made:
                one.request("POST", "/v1/forecast", body, JSON)
            models = [json.loads(one.getresponse().read()).get("model") for one in made]
            ours = {one.sock.getsockname()[1] for one in made if one.sock is not None}
            theirs = [{at.raddr.port for at in one.net_connections("tcp") if at.raddr} for one in workers]
        except (OSError, psutil.Error):
            return False
        finally:
            for one in made:
                one.close()
        named = {"name": version.name, "version": version.number, "digest": version.digest}
        return len(workers) == WORKERS and all(ports & ours for ports in theirs) and all(one == named for one in models)

    def stays(self, version: Version) -> bool:
        """Whether it is still so after the follower has looked twice more."""
        until = time.perf_counter() + 2 * POLL_S + 1
        while time.perf_counter() < until:
            time.sleep(0.5)
        return self.answers(version)


def main() -> None:
    """Rolls back in every way."""
    parser = argparse.ArgumentParser(description="How long a rollback takes.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forecaster-rollback-") as folder, _served(Path(folder)) as drill:
        found = [*_head(), *_drilled(drill)]
    print("\n".join(found))
    asked.out.write_text("\n".join(found) + "\n", encoding="utf-8")


def _drilled(drill: Drill) -> Iterator[str]:
    old, new, database, back = drill.old, drill.new, drill.root.path / "mlflow.db", ("rollback", NAME)
    yield _row("a promotion: every worker answers with the new version", drill.promoted(new))
    yield _row("`rollback`: every worker answers with the old one", drill.seconds(old, *back), aim=AIM_S)
    drill.promoted(new)
    with _frozen(database):
        yield _fact("database read-only, `rollback`: exit code", drill.run(*back)[0], "1")
        taken = drill.seconds(old, *back, "--local")
        yield _row("database read-only, `rollback --local`: every worker answers with the old one", taken, aim=AIM_S)
        yield _fact("the same after two more looks of the follower", _told(drill.stays(old)), "yes")
    drill.run(*back)
    agreed = Registry(drill.root.store).resolve(NAME, CHAMPION) == old and drill.answers(old)
    yield _fact("database writable again, `rollback`: registry and workers agree", _told(agreed), "yes")
    time.sleep(POLL_S + 1)  # the follower sees it
    yield _row("a promotion, followed again: every worker answers with the new version", drill.promoted(new))
    with _unreadable(database):
        yield _fact("database unreadable, `rollback`: exit code", drill.run(*back)[0], "1")
        taken = drill.seconds(old, *back, "--local")
        yield _row("database unreadable, `rollback --local`: every worker answers with the old one", taken, aim=AIM_S)
    undone = drill.seconds(new, *back, "--local", "--undo")
    yield _row("`rollback --local --undo`: every worker answers with the new one", undone)
    log = audited(drill.root, NAME)
    yield _fact(f"faults in the {len(log.lines)} lines of the audit log", len(log.faults), "0")


def _row(what: str, taken: tuple[float, float], *, aim: float | None = None) -> str:
    return f"| {what} | {taken[0]:.1f} s ({taken[1]:.1f} s) | {'' if aim is None else f'{aim:g} s'} |"


def _fact(what: str, found: object, aim: str) -> str:
    return f"| {what} | {found} | {aim} |"


def _told(yes: bool) -> str:
    return "yes" if yes else "no"


def _head() -> list[str]:
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return [
        "# Rolling back",
        "",
        f"`python benchmarks/rollback.py`, {datetime.datetime.now(datetime.UTC).date()}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load {load}. `forecaster serve` with {WORKERS} workers and its usual settings (a look "
        f"every {POLL_S:g} s); from the start of a command, its interpreter included, until every worker has answered with the "
        "digest; in brackets, until the command had ended.",
        "",
        "| | found | aim |",
        "|---|---|---|",
    ]


@contextmanager
def _served(work: Path) -> Iterator[Drill]:
    """Two untrained versions in a registry, the first of them served."""
    root, made = Root(work / "root"), []
    client = connect(root.store)
    for seed in (1, 2):
        bundle = root.bundles / str(seed)
        servers.write_bundle(bundle, seed=seed)
        made.append(register(bundle, root, run_id=client.create_run("0").info.run_id))
    promote(NAME, root, number=made[0].number, force=True)
    port = servers.free_port()
    command = [sys.executable, "-m", "pipelines.cli", "serve", NAME, "--port", str(port), "--root", str(root.path)]
    environment = {"FORECASTER_SERVING_WORKERS": str(WORKERS)}
    with servers.started(command, port, environment, work / "serve.log") as server:
        drill = Drill(root, server, *made)
        began = time.perf_counter()
        while not drill.answers(drill.old):
            assert server.process.poll() is None, (work / "serve.log").read_text()[-3000:]
            assert time.perf_counter() - began < _PATIENCE_S, (work / "serve.log").read_text()[-3000:]
            time.sleep(0.2)
        yield drill


@contextmanager
def _frozen(database: Path) -> Iterator[None]:
    """A database that can be read and not written, for root too."""
    with database.open("r+b") as file:
        file.seek(_WRITES)
        before = file.read(1)
        file.seek(_WRITES)
        file.write(b"\x03")
        file.flush()
        try:
            yield
        finally:
            file.seek(_WRITES)
            file.write(before)


@contextmanager
def _unreadable(database: Path) -> Iterator[None]:
    """A database that is none."""
    aside = database.with_suffix(".aside")
    database.rename(aside)
    database.write_bytes(b"no database" * 1000)
    try:
        yield
    finally:
        aside.replace(database)


def _environment() -> dict[str, str]:
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith(("BENTOML", "FORECASTER", "MLFLOW"))
    }
    return ours | {"PYTHONPATH": str(servers.ROOT)}


if __name__ == "__main__":
    main()
