"""Measures one case: prepares every entrant, then repeats each in turn, limited by the number of repetitions and by time."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cases import ENTRANTS, SpeedCase
from process_timing import prepare_process
from runner_process import RunnerProcess, runner_python

TIMEOUT_S = 300.0  # seconds after which a request fails
Repetition = Callable[[], dict[str, Any]]


class RunnerPool:
    """The runner processes; they are started once and run until the end."""

    def __init__(self, cases: Sequence[SpeedCase], *, peers: Path, threads: int, folder: Path) -> None:
        self.peers, self.threads, self.folder = peers, threads, folder
        self._started: dict[str, RunnerProcess] = {}
        names = [entrant.split("/")[0] for case in cases if case.group != "process" for entrant in ENTRANTS[case.group]]
        for name in dict.fromkeys(names):
            log_progress(f"Starting {name}.")
            log = folder / f"{name}.log"
            self._started[name] = RunnerProcess(name, runner_python(name, peers), threads=threads, log=log)

    def prepare_entrant(self, entrant: str, case: SpeedCase) -> tuple[Repetition, dict[str, Any]]:
        """Returns a function that runs one repetition of an entrant, and the record of the entrant so far."""
        if case.group == "process":
            return prepare_process(entrant, case, peers=self.peers, threads=self.threads, folder=self.folder), {}
        runner_name, name = entrant.split("/", 1)
        runner = self._started[runner_name]
        record = runner.prepare(case, name, timeout=TIMEOUT_S)
        return lambda: runner.request({"do": "run", "entrant": name}, timeout=TIMEOUT_S), record

    def release_prepared(self) -> None:
        """Lets the runners drop the prepared entrants."""
        for runner in self._started.values():
            runner.request({"do": "forget"}, timeout=TIMEOUT_S)

    def versions(self) -> dict[str, dict[str, str]]:
        """Returns the versions of the packages of all runners."""
        return {name: runner.versions for name, runner in self._started.items()}

    def read_logs(self) -> str:
        """Returns the last part of each runner's log."""
        texts = [f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(texts)

    def close(self) -> None:
        """Ends the runners."""
        for runner in self._started.values():
            runner.close()


def measure_case(case: SpeedCase, runners: RunnerPool, *, repeats: int, seconds: float) -> dict[str, Any]:
    """Returns the record of a case: seconds of every repetition of every entrant, the machine and the versions.

    No round starts after `seconds`, except the first. Each round starts with another entrant, so that none always follows the
    slowest.
    """
    started = time.monotonic()
    log_progress(f"{case.name}: {case.network_name}, context {case.context}")
    records: dict[str, dict[str, Any]] = {}
    repetitions: dict[str, Repetition] = {}
    for entrant in ENTRANTS[case.group]:
        repetition, record = runners.prepare_entrant(entrant, case)
        records[entrant] = {**record, "seconds": [], "cpu": []}
        if "failed" in record or "not_available" in record:
            log_progress(f"  {entrant}: {record.get('failed') or record['not_available']}")
        else:
            repetitions[entrant] = repetition
    for round_number in range(repeats):
        elapsed = time.monotonic() - started
        if round_number and elapsed > seconds:
            log_progress(
                f"  stopped after {round_number} of {repeats} repetitions: {elapsed:.0f} s used of {max(0.0, seconds):.0f} s"
            )
            break
        names = list(repetitions)
        first = round_number % max(1, len(names))
        for entrant in names[first:] + names[:first]:
            reply = repetitions[entrant]()
            if "failed" in reply:
                records[entrant]["failed"] = reply["failed"]
                del repetitions[entrant]
                continue
            records[entrant]["seconds"].append(reply["seconds"])
            records[entrant]["cpu"].append(reply["cpu"])
        summary = ", ".join(f"{name.split('/')[1]} {records[name]['seconds'][-1]:.4g}" for name in repetitions)
        log_progress(f"  {round_number + 1} of {repeats}: {summary}")
    runners.release_prepared()
    return {
        "case": asdict(case),
        "machine": describe_machine(threads=runners.threads),
        "versions": runners.versions(),
        "entrants": records,
    }


def describe_machine(*, threads: int) -> Mapping[str, Any]:
    """Describes the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def log_progress(message: str) -> None:
    """Prints a line of progress."""
    print(message, file=sys.stderr, flush=True)
