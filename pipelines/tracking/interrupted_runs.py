"""Ends the runs that a kill or a full disk left open: a run names its process, and the next training looks whether it exists."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROCESS_TAG = "process"  # the process that records a run
INTERRUPTED_TAG = "interrupted"  # why a run was ended by another process

_MAX_EXPERIMENTS = 1000


class ProcessIdentity(NamedTuple):
    """A process, distinct from later ones with the same number.

    Attributes:
        machine: The host name, and the namespace of process numbers (each container has its own).
        pid: The number of the process.
        start: The boot of the machine, and the start of the process in clock ticks since then.
    """

    machine: str
    pid: int
    start: str

    def __str__(self) -> str:
        return f"{self.machine} {self.pid} {self.start}"


def identify_process(pid: int) -> ProcessIdentity | None:
    """Identifies a running process of this machine; returns None if there is none, or if the system has no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name of the program, in parentheses, may contain blanks; the start is the 20th field after it.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        machine = f"{socket.gethostname()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None
    return None if state in ("Z", "X") else ProcessIdentity(machine, pid, f"{boot}/{fields[18]}")


def make_process_tags() -> dict[str, str]:
    """Returns the tag with this process; empty where processes cannot be identified."""
    identity = identify_process(os.getpid())
    return {} if identity is None else {PROCESS_TAG: str(identity)}


def end_interrupted_runs(client: MlflowClient) -> list[str]:
    """Marks the RUNNING runs of this machine whose process has ended as KILLED; returns their ids.

    Runs of other machines and of other programs, which have no such tag, are left as they are.
    """
    this_process = identify_process(os.getpid())
    experiments = [experiment.experiment_id for experiment in client.search_experiments(max_results=_MAX_EXPERIMENTS)]
    if this_process is None or not experiments:
        return []
    ended = []
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'"):
        machine, pid, start = (*run.data.tags.get(PROCESS_TAG, "").split(), "", "", "")[:3]
        if machine != this_process.machine or not pid.isdecimal():
            continue
        running = identify_process(int(pid))
        if running is None or running.start != start:
            reason = f"process {pid} ended without ending this run, which a later training marked as KILLED"
            client.set_tag(run.info.run_id, INTERRUPTED_TAG, reason)
            client.set_terminated(run.info.run_id, "KILLED")
            ended.append(run.info.run_id)
    return ended
