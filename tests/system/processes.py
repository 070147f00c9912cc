"""Starts and waits for real processes on small data, with a controlled environment."""

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
    """Returns the environment of this process without variables that configure the program under test."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FORECASTER_", "MLFLOW_", "BENTOML_")) and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**inherited, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **extra}


@contextmanager
def start_process(
    command: Sequence[str], folder: Path, *, log: Path | None = None, **extra: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a process in its own session; kills it and its children at the end of the block."""
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
        remaining = process_tree(process.pid)
        for child in remaining:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(remaining, timeout=20)
        process.wait(20)


def process_tree(pid: int) -> list[psutil.Process]:
    """Returns a process and its descendants; empty if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def run_forecaster(*arguments: object, folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs one command of the command line to its end."""
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
        assert time.monotonic() < deadline, "timed out"
        time.sleep(pause)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(path: Path, spec: Spec) -> Path:
    path.write_text(yaml.safe_dump(spec.model_dump()))
    return path


def file_sizes(folder: Path) -> dict[str, int]:
    """Returns the size of every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
