"""Time until every worker of a running service serves the previous model, with a working registry and without.

    .venv/bin/python benchmarks/rollback.py        # a minute

`forecaster serve` with two workers and its default settings follows a SQLite registry. Rollbacks run as separate processes, as a
user starts them, and the start of the process is included in the time. A worker serves a version once a new connection to it
received a forecast with the digest of the version. Prints the results and writes them to results/rollback.md.
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

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # replaces the script's folder, which would shadow packages of the same name

from benchmarks.service import servers  # noqa: E402
from benchmarks.service.servers import JSON_HEADERS, ServerProcess  # noqa: E402
from forecaster.registry.registry import CHAMPION, BundleVersion, Registry, create_client  # noqa: E402
from pipelines.promotion.promote import promote_version, register_bundle, verify_audit_log  # noqa: E402
from pipelines.settings import Root  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "rollback.md"
NAME = "demand"
TARGET_S = 10.0
WORKER_COUNT = 2
POLL_S = 5.0  # default polling interval of the follower
_TIMEOUT_S = 120.0
# Byte of the SQLite file header with the version of the write format; SQLite only reads files of a later version.
_SQLITE_WRITE_VERSION_OFFSET = 18


class RollbackDrill(NamedTuple):
    """A running service and the two versions that it alternates between."""

    root: Root
    server: ServerProcess
    old_version: BundleVersion
    new_version: BundleVersion

    def run_command(self, *arguments: str) -> tuple[int, str]:
        """Runs a command of the command line; returns its exit code and its stderr."""
        command = [sys.executable, "-m", "pipelines.cli", *arguments, "--root", str(self.root.path)]
        completed = subprocess.run(command, env=_make_environment(), capture_output=True, text=True, check=False)
        return completed.returncode, completed.stderr

    def time_promotion(self, version: BundleVersion) -> tuple[float, float]:
        """Returns the seconds from a promotion until every worker serves the version, and until the promotion was done."""
        start = time.perf_counter()
        promote_version(NAME, self.root, version_number=version.number, force=True)
        return self._wait_for_workers(version, start)

    def time_command(self, version: BundleVersion, *arguments: str) -> tuple[float, float]:
        """Returns the seconds from the start of a command until every worker serves a version, and until the command ended."""
        start = time.perf_counter()
        code, stderr = self.run_command(*arguments)
        assert code == 0, stderr
        return self._wait_for_workers(version, start)

    def _wait_for_workers(self, version: BundleVersion, start: float) -> tuple[float, float]:
        ended = time.perf_counter() - start
        while not self.all_workers_serve(version):
            assert time.perf_counter() - start < _TIMEOUT_S, f"not every worker serves {version}"
            time.sleep(0.05)
        return time.perf_counter() - start, ended

    def all_workers_serve(self, version: BundleVersion) -> bool:
        """Returns whether each worker received one of several new connections, and all responses name this version."""
        workers, body = self.server.workers, json.dumps(servers.make_request(1, servers.CONTEXT))
        connections = [http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10) for _ in range(8)]
        try:
            for connection in connections:
                connection.request("POST", "/v1/forecast", body, JSON_HEADERS)
            models = [json.loads(connection.getresponse().read()).get("model") for connection in connections]
            client_ports = {
                connection.sock.getsockname()[1] for connection in connections if connection.sock is not None
            }
            peer_ports = [
                {peer.raddr.port for peer in worker.net_connections("tcp") if peer.raddr} for worker in workers
            ]
        except (OSError, psutil.Error):
            return False
        finally:
            for connection in connections:
                connection.close()
        identity = {"name": version.name, "version": version.number, "digest": version.digest}
        return (
            len(workers) == WORKER_COUNT
            and all(ports & client_ports for ports in peer_ports)
            and all(model == identity for model in models)
        )

    def keeps_serving(self, version: BundleVersion) -> bool:
        """Returns whether the version is still served after two more polls of the follower."""
        until = time.perf_counter() + 2 * POLL_S + 1
        while time.perf_counter() < until:
            time.sleep(0.5)
        return self.all_workers_serve(version)


def main() -> None:
    """Runs all kinds of rollback."""
    parser = argparse.ArgumentParser(description="Measures the duration of rollbacks.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="forecaster-rollback-") as folder,
        _serve_two_versions(Path(folder)) as drill,
    ):
        lines = [*_report_header(), *_run_drill(drill)]
    print("\n".join(lines))
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _run_drill(drill: RollbackDrill) -> Iterator[str]:
    old, new = drill.old_version, drill.new_version
    database, rollback = drill.root.path / "mlflow.db", ("rollback", NAME)
    yield _timing_row("promotion: every worker serves the new version", drill.time_promotion(new))
    yield _timing_row(
        "`rollback`: every worker serves the old version", drill.time_command(old, *rollback), target=TARGET_S
    )
    drill.time_promotion(new)
    with _read_only(database):
        yield _fact_row("database read-only, `rollback`: exit code", drill.run_command(*rollback)[0], "1")
        seconds = drill.time_command(old, *rollback, "--local")
        yield _timing_row(
            "database read-only, `rollback --local`: every worker serves the old version", seconds, target=TARGET_S
        )
        yield _fact_row("the same after two more polls of the follower", _yes_or_no(drill.keeps_serving(old)), "yes")
    drill.run_command(*rollback)
    agrees = Registry(drill.root.store_uri).resolve(NAME, CHAMPION) == old and drill.all_workers_serve(old)
    yield _fact_row("database writable again, `rollback`: registry and workers agree", _yes_or_no(agrees), "yes")
    time.sleep(POLL_S + 1)  # until the follower has polled
    yield _timing_row("promotion, followed again: every worker serves the new version", drill.time_promotion(new))
    with _made_unreadable(database):
        yield _fact_row("database unreadable, `rollback`: exit code", drill.run_command(*rollback)[0], "1")
        seconds = drill.time_command(old, *rollback, "--local")
        yield _timing_row(
            "database unreadable, `rollback --local`: every worker serves the old version", seconds, target=TARGET_S
        )
    undo_seconds = drill.time_command(new, *rollback, "--local", "--undo")
    yield _timing_row("`rollback --local --undo`: every worker serves the new version", undo_seconds)
    log = verify_audit_log(drill.root, NAME)
    yield _fact_row(f"faults in the {len(log.entries)} lines of the audit log", len(log.faults), "0")


def _timing_row(label: str, seconds: tuple[float, float], *, target: float | None = None) -> str:
    return f"| {label} | {seconds[0]:.1f} s ({seconds[1]:.1f} s) | {'' if target is None else f'{target:g} s'} |"


def _fact_row(label: str, value: object, target: str) -> str:
    return f"| {label} | {value} | {target} |"


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def _report_header() -> list[str]:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        "# Rolling back",
        "",
        f"`python benchmarks/rollback.py`, {datetime.datetime.now(datetime.UTC).date()}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load {load}. `forecaster serve` with {WORKER_COUNT} workers and its default settings (polling "
        f"every {POLL_S:g} s); seconds from the start of a command, including the interpreter, until every worker serves the "
        "digest; in brackets, until the command ended.",
        "",
        "| | measured | target |",
        "|---|---|---|",
    ]


@contextmanager
def _serve_two_versions(folder: Path) -> Iterator[RollbackDrill]:
    """Registers two untrained versions and serves the first of them."""
    root, versions = Root(folder / "root"), []
    client = create_client(root.store_uri)
    for seed in (1, 2):
        bundle = root.bundles / str(seed)
        servers.write_bundle(bundle, seed=seed)
        versions.append(register_bundle(bundle, root, run_id=client.create_run("0").info.run_id))
    promote_version(NAME, root, version_number=versions[0].number, force=True)
    port = servers.free_port()
    command = [sys.executable, "-m", "pipelines.cli", "serve", NAME, "--port", str(port), "--root", str(root.path)]
    environment = {"FORECASTER_SERVING_WORKERS": str(WORKER_COUNT)}
    with servers.start_server(command, port, environment, folder / "serve.log") as server:
        drill = RollbackDrill(root, server, *versions)
        start = time.perf_counter()
        while not drill.all_workers_serve(drill.old_version):
            assert server.process.poll() is None, (folder / "serve.log").read_text()[-3000:]
            assert time.perf_counter() - start < _TIMEOUT_S, (folder / "serve.log").read_text()[-3000:]
            time.sleep(0.2)
        yield drill


@contextmanager
def _read_only(database: Path) -> Iterator[None]:
    """Makes the database readable but not writable, for root too."""
    with database.open("r+b") as file:
        file.seek(_SQLITE_WRITE_VERSION_OFFSET)
        original = file.read(1)
        file.seek(_SQLITE_WRITE_VERSION_OFFSET)
        file.write(b"\x03")
        file.flush()
        try:
            yield
        finally:
            file.seek(_SQLITE_WRITE_VERSION_OFFSET)
            file.write(original)


@contextmanager
def _made_unreadable(database: Path) -> Iterator[None]:
    """Replaces the database by a file that is not a database."""
    aside = database.with_suffix(".aside")
    database.rename(aside)
    database.write_bytes(b"no database" * 1000)
    try:
        yield
    finally:
        aside.replace(database)


def _make_environment() -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("BENTOML", "FORECASTER", "MLFLOW"))
    }
    return inherited | {"PYTHONPATH": str(servers.ROOT)}


if __name__ == "__main__":
    main()
