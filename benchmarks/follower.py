"""Memory of the follower, and processor time of a poll, with MLflow servers: an open one, and one that checks passwords.

    .venv/bin/python benchmarks/follower.py                    # a minute and a half
    .venv/bin/python benchmarks/follower.py --checkout PATH    # the follower of another checkout

The follower runs as its own process, deploys a version and then polls every second. The server has one worker. Prints a table.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil

sys.path[0] = str(Path(__file__).resolve().parents[1])  # replaces the script's folder

from benchmarks.service import servers  # noqa: E402
from forecaster.registry.registry import Registry, create_client  # noqa: E402
from serving.deployment import releases, status  # noqa: E402
from serving.settings import Settings  # noqa: E402
from tests.system.processes import process_tree, start_process, wait_until  # noqa: E402
from tests.system.tracking_servers import running_tracking_server  # noqa: E402

NAME = "demand"
POLL_S = 1.0


def main() -> None:
    """Measures both servers and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkout", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--polls", type=int, default=20)
    options = parser.parse_args()
    print("| server | memory | peak of follower and its children | requests | server | follower |")
    print("|---|---|---|---|---|---|")
    for is_open in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            print(measure(Path(folder), is_open=is_open, checkout=options.checkout, polls=options.polls), flush=True)


def measure(folder: Path, *, is_open: bool, checkout: Path, polls: int) -> str:
    """Returns one row: memory in MB; requests, and processor time in ms of the server and of the follower, for one poll."""
    database = None if is_open else f"sqlite:///{folder}/server.db"
    with running_tracking_server(folder, database, auth_cache_s=0) as server:
        os.environ |= server.environment
        registry, client = Registry(server.uri), create_client(server.uri)
        run_id = client.create_run(client.create_experiment("benchmark")).info.run_id
        digest, example = servers.write_bundle(folder / "bundle"), pd.DataFrame({"y": [1.0]})
        version = registry.register(
            folder / "bundle", name=NAME, digest=digest, run_id=run_id, input_example=example, output_example=example
        )
        registry.promote(version, expected_champion=None)
        settings = Settings(slot=folder / "slot", registry=server.uri, model=NAME, poll_s=POLL_S)
        environment = {**server.environment, **settings.to_environment(), "PYTHONPATH": str(checkout)}
        with start_process(["-m", "serving.deployment.follower"], folder, **environment) as process:
            follower = psutil.Process(process.pid)
            peak = PeakMemory.start(process.pid)
            wait_until(lambda: releases.current_release(settings.slot) is not None)
            wait_for_polls(settings.slot, 3)
            peak.stop.set()
            server_process = next(each for each in psutil.process_iter() if runs_server(each, server.uri))
            before = cpu_seconds(server_process.pid), cpu_seconds(process.pid), count_requests(server.log)
            wait_for_polls(settings.slot, polls)
            after = cpu_seconds(server_process.pid), cpu_seconds(process.pid), count_requests(server.log)
            memory = follower.memory_info().rss / 1e6
        server_ms, follower_ms, requests = ((new - old) / polls for old, new in zip(before, after, strict=True))
        name = "open" if is_open else "with passwords"
        return (
            f"| {name} | {memory:.0f} MB | {peak.megabytes[0]:.0f} MB | {requests:.1f} | {server_ms * 1000:.0f} ms | "
            f"{follower_ms * 1000:.1f} ms |"
        )


class PeakMemory(NamedTuple):
    """Samples the memory of a process and its descendants, in a thread."""

    megabytes: list[float]
    stop: threading.Event

    @classmethod
    def start(cls, pid: int) -> PeakMemory:
        """Starts to sample."""
        peak = cls([0.0], threading.Event())
        threading.Thread(target=peak._sample, args=(pid,), daemon=True).start()
        return peak

    def _sample(self, pid: int) -> None:
        while not self.stop.wait(0.02):
            with suppress(psutil.Error):
                total = sum(process.memory_info().rss for process in process_tree(pid)) / 1e6
                self.megabytes[0] = max(self.megabytes[0], total)


def cpu_seconds(pid: int) -> float:
    """Returns the processor time of a process and its descendants."""
    times = [process.cpu_times() for process in process_tree(pid)]
    return sum(each.user + each.system for each in times)


def wait_for_polls(slot: Path, count: int) -> None:
    """Waits until the follower has polled so many times."""
    seen = status.read_follower_state(slot).looked_at
    for _ in range(count):
        wait_until(lambda last=seen: status.read_follower_state(slot).looked_at != last)
        seen = status.read_follower_state(slot).looked_at


def runs_server(process: psutil.Process, uri: str) -> bool:
    """Returns whether a process is the tracking server of an address."""
    with process.oneshot():
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            return False
    return "mlflow server" in command and f"--port={uri.rpartition(':')[2]}" in command


def count_requests(log: Path) -> int:
    """Returns the requests to the registry that a server has logged."""
    return len(re.findall(r'"GET /api/2.0/mlflow/(?:registered-models|model-versions)', log.read_text()))


if __name__ == "__main__":
    main()
