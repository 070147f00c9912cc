"""Real processes on small data: what they are given, how they are started, and how they are waited for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import yaml

from forecaster.spec import Spec

CHECKOUT = Path(__file__).parents[2]


def make_environment(**extra: str) -> dict[str, str]:
    """Ours, without what a developer may have set for the program under test."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FORECASTER_", "MLFLOW_", "BENTOML_")) and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**kept, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **extra}


@contextmanager
def start_process(
    command: Sequence[str], folder: Path, *, log: Path | None = None, **extra: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own; neither it nor what it started outlives the block."""
    output = (log or folder / "process.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=make_environment(**extra),
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        output.close()
        left = process_tree(process.pid)
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(left, timeout=20)
        process.wait(20)


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and all that it started; empty when it has ended."""
    try:
        one = psutil.Process(pid)
        return [one, *one.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def run_forecaster(*arguments: object, folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """One command of the command line, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *map(str, arguments)],
        cwd=folder,
        env=make_environment(**extra),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def wait_until(ready: Callable[[], object], *, seconds: float = 180.0, pause: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(pause)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(path: Path, spec: Spec) -> Path:
    path.write_text(yaml.safe_dump(spec.model_dump()))
    return path


def file_sizes(folder: Path) -> dict[str, int]:
    """Every file below a folder, and its size."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
