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
from benchmarks.service.servers import JSON_HEADERS, ServerProcess  # noqa: E402
from forecaster.registry.registry import CHAMPION, BundleVersion, Registry, create_client  # noqa: E402
from pipelines.promotion.promote import promote_version, register_bundle, verify_audit_log  # noqa: E402
from pipelines.settings import Root  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "rollback.md"
NAME = "demand"
TARGET_S = 10.0
WORKER_COUNT = 2
POLL_S = 5.0  # of the follower, as it is by default
_TIMEOUT_S = 120.0
_SQLITE_WRITE_VERSION_OFFSET = (
    18  # the byte of a SQLite file that says which format of writing it has; of a later one it is only read
)


class RollbackDrill(NamedTuple):
    """A service under way, and the two versions that take turns."""

    root: Root
    server: ServerProcess
    old_version: BundleVersion
    new_version: BundleVersion

    def run_command(self, *arguments: str) -> tuple[int, str]:
        """A command of the command line; its exit code and what it said against it."""
        command = [sys.executable, "-m", "pipelines.cli", *arguments, "--root", str(self.root.path)]
        done = subprocess.run(command, env=_make_environment(), capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    def time_promotion(self, version: BundleVersion) -> tuple[float, float]:
        """From a promotion until every worker answers with the version; and until it was done."""
        began = time.perf_counter()
        promote_version(NAME, self.root, version_number=version.number, force=True)
        return self._wait_for_workers(version, began)

    def time_command(self, version: BundleVersion, *arguments: str) -> tuple[float, float]:
        """From a command's start until every worker answers with a version; and until the command ended."""
        began = time.perf_counter()
        code, said = self.run_command(*arguments)
        assert code == 0, said
        return self._wait_for_workers(version, began)

    def _wait_for_workers(self, version: BundleVersion, start: float) -> tuple[float, float]:
        ended = time.perf_counter() - start
        while not self.all_workers_serve(version):
            assert time.perf_counter() - start < _TIMEOUT_S, f"not every worker answers with {version}"
            time.sleep(0.05)
        return time.perf_counter() - start, ended

    def all_workers_serve(self, version: BundleVersion) -> bool:
        """Whether each worker got one of some new connections, and all named this version."""
        workers, body = self.server.workers, json.dumps(servers.make_request(1, servers.CONTEXT))
        made = [http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10) for _ in range(8)]
        try:
            for one in made:
                one.request("POST", "/v1/forecast", body, JSON_HEADERS)
            models = [json.loads(one.getresponse().read()).get("model") for one in made]
            ours = {one.sock.getsockname()[1] for one in made if one.sock is not None}
            theirs = [{at.raddr.port for at in one.net_connections("tcp") if at.raddr} for one in workers]
        except (OSError, psutil.Error):
            return False
        finally:
            for one in made:
                one.close()
        named = {"name": version.name, "version": version.number, "digest": version.digest}
        return (
            len(workers) == WORKER_COUNT
            and all(ports & ours for ports in theirs)
            and all(one == named for one in models)
        )

    def keeps_serving(self, version: BundleVersion) -> bool:
        """Whether it is still so after the follower has looked twice more."""
        until = time.perf_counter() + 2 * POLL_S + 1
        while time.perf_counter() < until:
            time.sleep(0.5)
        return self.all_workers_serve(version)


def main() -> None:
    """Rolls back in every way."""
    parser = argparse.ArgumentParser(description="How long a rollback takes.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="forecaster-rollback-") as folder,
        _serve_two_versions(Path(folder)) as drill,
    ):
        found = [*_report_header(), *_run_drill(drill)]
    print("\n".join(found))
    asked.out.write_text("\n".join(found) + "\n", encoding="utf-8")


def _run_drill(drill: RollbackDrill) -> Iterator[str]:
    old, new, database, back = drill.old_version, drill.new_version, drill.root.path / "mlflow.db", ("rollback", NAME)
    yield _timing_row("a promotion: every worker answers with the new version", drill.time_promotion(new))
    yield _timing_row(
        "`rollback`: every worker answers with the old one", drill.time_command(old, *back), target=TARGET_S
    )
    drill.time_promotion(new)
    with _read_only(database):
        yield _fact_row("database read-only, `rollback`: exit code", drill.run_command(*back)[0], "1")
        taken = drill.time_command(old, *back, "--local")
        yield _timing_row(
            "database read-only, `rollback --local`: every worker answers with the old one", taken, target=TARGET_S
        )
        yield _fact_row("the same after two more looks of the follower", _yes_or_no(drill.keeps_serving(old)), "yes")
    drill.run_command(*back)
    agreed = Registry(drill.root.store_uri).resolve(NAME, CHAMPION) == old and drill.all_workers_serve(old)
    yield _fact_row("database writable again, `rollback`: registry and workers agree", _yes_or_no(agreed), "yes")
    time.sleep(POLL_S + 1)  # the follower sees it
    yield _timing_row(
        "a promotion, followed again: every worker answers with the new version", drill.time_promotion(new)
    )
    with _made_unreadable(database):
        yield _fact_row("database unreadable, `rollback`: exit code", drill.run_command(*back)[0], "1")
        taken = drill.time_command(old, *back, "--local")
        yield _timing_row(
            "database unreadable, `rollback --local`: every worker answers with the old one", taken, target=TARGET_S
        )
    undone = drill.time_command(new, *back, "--local", "--undo")
    yield _timing_row("`rollback --local --undo`: every worker answers with the new one", undone)
    log = verify_audit_log(drill.root, NAME)
    yield _fact_row(f"faults in the {len(log.entries)} lines of the audit log", len(log.faults), "0")


def _timing_row(label: str, seconds: tuple[float, float], *, target: float | None = None) -> str:
    return f"| {label} | {seconds[0]:.1f} s ({seconds[1]:.1f} s) | {'' if target is None else f'{target:g} s'} |"


def _fact_row(label: str, value: object, target: str) -> str:
    return f"| {label} | {value} | {target} |"


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def _report_header() -> list[str]:
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return [
        "# Rolling back",
        "",
        f"`python benchmarks/rollback.py`, {datetime.datetime.now(datetime.UTC).date()}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load {load}. `forecaster serve` with {WORKER_COUNT} workers and its usual settings (a look "
        f"every {POLL_S:g} s); from the start of a command, its interpreter included, until every worker has answered with the "
        "digest; in brackets, until the command had ended.",
        "",
        "| | found | aim |",
        "|---|---|---|",
    ]


@contextmanager
def _serve_two_versions(folder: Path) -> Iterator[RollbackDrill]:
    """Two untrained versions in a registry, the first of them served."""
    root, made = Root(folder / "root"), []
    client = create_client(root.store_uri)
    for seed in (1, 2):
        bundle = root.bundles / str(seed)
        servers.write_bundle(bundle, seed=seed)
        made.append(register_bundle(bundle, root, run_id=client.create_run("0").info.run_id))
    promote_version(NAME, root, version_number=made[0].number, force=True)
    port = servers.free_port()
    command = [sys.executable, "-m", "pipelines.cli", "serve", NAME, "--port", str(port), "--root", str(root.path)]
    environment = {"FORECASTER_SERVING_WORKERS": str(WORKER_COUNT)}
    with servers.start_server(command, port, environment, folder / "serve.log") as server:
        drill = RollbackDrill(root, server, *made)
        began = time.perf_counter()
        while not drill.all_workers_serve(drill.old_version):
            assert server.process.poll() is None, (folder / "serve.log").read_text()[-3000:]
            assert time.perf_counter() - began < _TIMEOUT_S, (folder / "serve.log").read_text()[-3000:]
            time.sleep(0.2)
        yield drill


@contextmanager
def _read_only(database: Path) -> Iterator[None]:
    """A database that can be read and not written, for root too."""
    with database.open("r+b") as file:
        file.seek(_SQLITE_WRITE_VERSION_OFFSET)
        before = file.read(1)
        file.seek(_SQLITE_WRITE_VERSION_OFFSET)
        file.write(b"\x03")
        file.flush()
        try:
            yield
        finally:
            file.seek(_SQLITE_WRITE_VERSION_OFFSET)
            file.write(before)


@contextmanager
def _made_unreadable(database: Path) -> Iterator[None]:
    """A database that is none."""
    aside = database.with_suffix(".aside")
    database.rename(aside)
    database.write_bytes(b"no database" * 1000)
    try:
        yield
    finally:
        aside.replace(database)


def _make_environment() -> dict[str, str]:
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith(("BENTOML", "FORECASTER", "MLFLOW"))
    }
    return ours | {"PYTHONPATH": str(servers.ROOT)}


if __name__ == "__main__":
    main()
