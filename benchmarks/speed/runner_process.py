"""Client of the runners: starts their processes and requests one repetition at a time."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cases import SpeedCase

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TELEMETRY_OFF = {  # disables the telemetry of libraries
    "BENTOML_DO_NOT_TRACK": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class RunnerProcess:
    """A started runner process.

    Attributes:
        versions: Versions of the packages it measures.
        start_seconds: Seconds from its start until everything was imported.
    """

    def __init__(self, name: str, python: Path, *, threads: int, log: Path) -> None:
        started = time.perf_counter()
        self.name = name
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                runner_command(name, python),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=runner_environment(threads),
            )
        self.versions: dict[str, str] = self._read_reply(300.0)["versions"]
        self.start_seconds = time.perf_counter() - started

    def request(self, message: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        """Sends a request and returns the reply; reports a runner that ended or timed out as `failed`."""
        if self._process.poll() is not None:
            return {"failed": f"the runner {self.name} has ended"}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return self._read_reply(timeout)

    def prepare(self, case: SpeedCase, entrant: str, *, timeout: float) -> dict[str, Any]:
        """Prepares an entrant for a case."""
        return self.request({"do": "prepare", "case": asdict(case), "entrant": entrant}, timeout=timeout)

    def close(self) -> None:
        """Ends the process."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()

    def _read_reply(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self._process.kill()
            reason = "it ended" if ready else f"it took more than {timeout:.0f} s"
            return {"failed": f"{reason}; see its log", "versions": {}}
        reply: dict[str, Any] = json.loads(line)
        return reply


def runner_command(name: str, python: Path) -> list[str]:
    """Returns the command that starts a runner."""
    return [str(python), str(HERE / f"runner_{name}.py")]


def runner_environment(threads: int) -> dict[str, str]:
    """Returns the environment of a runner: the same number of threads for all, and no telemetry."""
    thread_settings = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    return {**os.environ, **TELEMETRY_OFF, **thread_settings, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def runner_python(name: str, peers: Path) -> Path:
    """Returns the interpreter of a runner: this one for ours, that of the peers' environment for the others."""
    return Path(sys.executable) if name == "ours" else peers / "bin" / "python"
