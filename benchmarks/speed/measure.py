"""One case: every entrant made ready, then a repetition of each in turn, as often as asked and as time allows."""

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

TIMEOUT_S = 300.0  # seconds that anything may take before it is given up
Repetition = Callable[[], dict[str, Any]]


class RunnerPool:
    """The runners, started once; they stay until all is done."""

    def __init__(self, cases: Sequence[SpeedCase], *, peers: Path, threads: int, folder: Path) -> None:
        self.peers, self.threads, self.folder = peers, threads, folder
        self._started: dict[str, RunnerProcess] = {}
        asked = [entrant.split("/")[0] for case in cases if case.group != "process" for entrant in ENTRANTS[case.group]]
        for name in dict.fromkeys(asked):
            log_progress(f"Starting {name}.")
            log = folder / f"{name}.log"
            self._started[name] = RunnerProcess(name, runner_python(name, peers), threads=threads, log=log)

    def prepare_entrant(self, entrant: str, case: SpeedCase) -> tuple[Repetition, dict[str, Any]]:
        """What gives one repetition of an entrant in a case, and what is known of the entrant so far."""
        if case.group == "process":
            return prepare_process(entrant, case, peers=self.peers, threads=self.threads, folder=self.folder), {}
        runner, name = entrant.split("/", 1)
        one = self._started[runner]
        record = one.prepare(case, name, timeout=TIMEOUT_S)
        return lambda: one.request({"do": "run", "entrant": name}, timeout=TIMEOUT_S), record

    def release_prepared(self) -> None:
        """Lets the runners drop what they prepared."""
        for one in self._started.values():
            one.request({"do": "forget"}, timeout=TIMEOUT_S)

    def versions(self) -> dict[str, dict[str, str]]:
        """Of all that were started."""
        return {name: one.versions for name, one in self._started.items()}

    def read_logs(self) -> str:
        """What the runners wrote, the last of it."""
        texts = [f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(texts)

    def close(self) -> None:
        """Ends them."""
        for one in self._started.values():
            one.close()


def measure_case(case: SpeedCase, runners: RunnerPool, *, repeats: int, seconds: float) -> dict[str, Any]:
    """The record of a case: seconds of every repetition of every entrant, on which machine, with what.

    After `seconds` no turn is begun, but the first; turns begin with another entrant each, so that none is always the one
    who comes after the slowest.
    """
    began = time.monotonic()
    log_progress(f"{case.name}: {case.network_name}, context {case.context}")
    records: dict[str, dict[str, Any]] = {}
    repeat: dict[str, Repetition] = {}
    for entrant in ENTRANTS[case.group]:
        act, record = runners.prepare_entrant(entrant, case)
        records[entrant] = {**record, "seconds": [], "cpu": []}
        if "failed" in record or "not_available" in record:
            log_progress(f"  {entrant}: {record.get('failed') or record['not_available']}")
        else:
            repeat[entrant] = act
    for turn in range(repeats):
        taken = time.monotonic() - began
        if turn and taken > seconds:
            log_progress(
                f"  stopped after {turn} of {repeats} repetitions: {taken:.0f} s are gone, {max(0.0, seconds):.0f} were there"
            )
            break
        names = list(repeat)
        first = turn % max(1, len(names))
        for entrant in names[first:] + names[:first]:
            answer = repeat[entrant]()
            if "failed" in answer:
                records[entrant]["failed"] = answer["failed"]
                del repeat[entrant]
                continue
            records[entrant]["seconds"].append(answer["seconds"])
            records[entrant]["cpu"].append(answer["cpu"])
        told = ", ".join(f"{name.split('/')[1]} {records[name]['seconds'][-1]:.4g}" for name in repeat)
        log_progress(f"  {turn + 1} of {repeats}: {told}")
    runners.release_prepared()
    return {
        "case": asdict(case),
        "machine": describe_machine(threads=runners.threads),
        "versions": runners.versions(),
        "entrants": records,
    }


def describe_machine(*, threads: int) -> Mapping[str, Any]:
    """Where it ran."""
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
    """A line of progress."""
    print(message, file=sys.stderr, flush=True)
