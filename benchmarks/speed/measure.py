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

from cases import ENTRANTS, Case
from process_timing import whole
from runner_process import Runner, python_of

LONGEST = 300.0  # seconds that anything may take before it is given up
Repeat = Callable[[], dict[str, Any]]


class Runners:
    """The runners, started once; they stay until all is done."""

    def __init__(self, cases: Sequence[Case], *, peers: Path, threads: int, folder: Path) -> None:
        self.peers, self.threads, self.folder = peers, threads, folder
        self._started: dict[str, Runner] = {}
        asked = [entrant.split("/")[0] for case in cases if case.group != "process" for entrant in ENTRANTS[case.group]]
        for name in dict.fromkeys(asked):
            tell(f"Starting {name}.")
            log = folder / f"{name}.log"
            self._started[name] = Runner(name, python_of(name, peers), threads=threads, log=log)

    def ready(self, entrant: str, case: Case) -> tuple[Repeat, dict[str, Any]]:
        """What gives one repetition of an entrant in a case, and what is known of the entrant so far."""
        if case.group == "process":
            return whole(entrant, case, peers=self.peers, threads=self.threads, folder=self.folder), {}
        runner, name = entrant.split("/", 1)
        one = self._started[runner]
        record = one.prepare(case, name, timeout=LONGEST)
        return lambda: one.ask({"do": "run", "entrant": name}, timeout=LONGEST), record

    def forget(self) -> None:
        """Lets the runners drop what they prepared."""
        for one in self._started.values():
            one.ask({"do": "forget"}, timeout=LONGEST)

    def versions(self) -> dict[str, dict[str, str]]:
        """Of all that were started."""
        return {name: one.versions for name, one in self._started.items()}

    def log(self) -> str:
        """What the runners wrote, the last of it."""
        texts = [f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(texts)

    def leave(self) -> None:
        """Ends them."""
        for one in self._started.values():
            one.leave()


def measure(case: Case, runners: Runners, *, repeats: int, seconds: float) -> dict[str, Any]:
    """The record of a case: seconds of every repetition of every entrant, on which machine, with what.

    After `seconds` no turn is begun, but the first; turns begin with another entrant each, so that none is always the one
    who comes after the slowest.
    """
    began = time.monotonic()
    tell(f"{case.name}: {case.network}, context {case.context}")
    records: dict[str, dict[str, Any]] = {}
    repeat: dict[str, Repeat] = {}
    for entrant in ENTRANTS[case.group]:
        act, record = runners.ready(entrant, case)
        records[entrant] = {**record, "seconds": [], "cpu": []}
        if "failed" in record or "not_available" in record:
            tell(f"  {entrant}: {record.get('failed') or record['not_available']}")
        else:
            repeat[entrant] = act
    for turn in range(repeats):
        taken = time.monotonic() - began
        if turn and taken > seconds:
            tell(
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
        tell(f"  {turn + 1} of {repeats}: {told}")
    runners.forget()
    return {
        "case": asdict(case),
        "machine": machine(threads=runners.threads),
        "versions": runners.versions(),
        "entrants": records,
    }


def machine(*, threads: int) -> Mapping[str, Any]:
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


def tell(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)
