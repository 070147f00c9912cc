"""The driver's side of the conversation with runners: processes that are started once and asked for one repetition at a time."""

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
TELEMETRY_OFF = {  # what libraries would tell their makers
    "BENTOML_DO_NOT_TRACK": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class RunnerProcess:
    """A runner, started and ready to be asked.

    Attributes:
        versions: Of the packages it measures.
        start_seconds: From its start until all was imported.
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
        """One answer; a runner that died or took too long is told as `failed`."""
        if self._process.poll() is not None:
            return {"failed": f"the runner {self.name} has ended"}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return self._read_reply(timeout)

    def prepare(self, case: SpeedCase, entrant: str, *, timeout: float) -> dict[str, Any]:
        """Makes an entrant ready for a case."""
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
            found = "it ended" if ready else f"it took more than {timeout:.0f} s"
            return {"failed": f"{found}; its log says more", "versions": {}}
        answer: dict[str, Any] = json.loads(line)
        return answer


def runner_command(name: str, python: Path) -> list[str]:
    """How a runner is started."""
    return [str(python), str(HERE / f"runner_{name}.py")]


def runner_environment(threads: int) -> dict[str, str]:
    """What a runner is told: the number of threads, the same for all; and that nothing is to be reported to anyone."""
    count = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    return {**os.environ, **TELEMETRY_OFF, **count, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def runner_python(name: str, peers: Path) -> Path:
    """The interpreter of a runner: this one for ours, that of the peers' environment for the others."""
    return Path(sys.executable) if name == "ours" else peers / "bin" / "python"
