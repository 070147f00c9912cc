"""A Python process with all imports done that starts commands by forking, so that each is a real process without import time.

The tests start many trainings that are killed; the killed processes are real, and so are the files they leave.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.system.processes import CHECKOUT, make_environment


class ForkedProcess:
    """A command running in a forked process."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._code: int | None = None

    def poll(self) -> int | None:
        """Returns the exit code (minus the signal's number if a signal ended the process), or None."""
        return self._exit_code(wait=False)

    def wait(self) -> int:
        """Waits for the end of the process and returns its exit code."""
        code = self._exit_code(wait=True)
        assert code is not None
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process was waited for: its id may be reused after that."""
        if self._code is None:
            os.kill(self.pid, number)

    def _exit_code(self, *, wait: bool) -> int | None:
        if self._code is None:
            self._code = self._server.request(wait=wait, pid=self.pid)
        return self._code


class ForkServer:
    """Starts child processes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def request(self, **message: Any) -> Any:
        """Sends one line and returns the reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(message), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    @contextmanager
    def start(
        self, arguments: Sequence[str], folder: Path, *, syncs: int | None = None, failpoints: str | None = None
    ) -> Iterator[ForkedProcess]:
        """Starts a command in a folder, with its output in `process.log`; kills it at the end of the block.

        Args:
            arguments: Arguments of `forecaster`.
            folder: Working directory.
            syncs: Number of file syncs after which the process kills itself.
            failpoints: Fail points that are set in the process.
        """
        request = {"arguments": list(arguments), "folder": str(folder), "syncs": syncs, "failpoints": failpoints}
        child = ForkedProcess(self, self.request(**request))
        try:
            yield child
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()

    def capture(self, arguments: Sequence[object], folder: Path) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end and returns its exit code and its output, which it writes outside the folder."""
        words = [str(argument) for argument in arguments]
        with tempfile.TemporaryDirectory() as output:
            request = {"arguments": words, "folder": str(folder), "output": output}
            code = ForkedProcess(self, self.request(**request)).wait()
            stdout, stderr = ((Path(output) / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(words, code, stdout, stderr)

    def run(self, arguments: Sequence[str], folder: Path, *, failpoints: str | None = None) -> int:
        """Runs a command to its end and returns its exit code."""
        with self.start(arguments, folder, failpoints=failpoints) as child:
            return child.wait()


@contextmanager
def running_fork_server() -> Iterator[ForkServer]:
    """Runs a fork server until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=CHECKOUT,
        env=make_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield ForkServer(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0


# What the commands import only when they need it; importing all of it takes a command several times as long as its work.
_LAZY_MODULES = (
    "alembic.config",
    "forecaster.bundle.artifact",
    "forecaster.engines.onnx.export",
    "forecaster.model.weights",
    "matplotlib.backends.backend_agg",
    "mlflow.models",
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "onnxruntime",
    "pipelines.monitoring.shadow",
    "pipelines.promotion.rollback",
    "pipelines.retraining.retrain",
    "pyarrow.parquet",
    "scipy.stats",
    "sqlalchemy.dialects.sqlite",
    "torch.utils.serialization",
)


def _serve_requests() -> None:
    for module in _LAZY_MODULES:
        importlib.import_module(module)  # nothing is used before a fork
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["pid"], 0 if request["wait"] else os.WNOHANG)
            _send_reply(os.waitstatus_to_exitcode(status) if pid else None)
        elif pid := os.fork():
            _send_reply(pid)
        else:
            _run_command(**request)


def _send_reply(value: int | None) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


def _run_command(
    arguments: Sequence[str],
    folder: str,
    syncs: int | None = None,
    failpoints: str | None = None,
    output: str | None = None,
) -> None:
    """Runs the command; never returns."""
    # Background test runs ignore interrupts, and child processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from pipelines.cli import main

    os.setsid()
    os.chdir(folder)
    names = ("process.log", "process.log") if output is None else (f"{output}/stdout", f"{output}/stderr")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for target, name in enumerate(names, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), target)
    if syncs is not None:
        _kill_after_syncs(syncs)
    if failpoints is not None:
        os.environ |= {"FORECASTER_TEST": "1", "FORECASTER_FAILPOINTS": failpoints}
    code = 1
    try:
        main(arguments)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _kill_after_syncs(syncs: int) -> None:
    original_fsync, remaining = os.fsync, syncs

    def fsync(handle: int) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        original_fsync(handle)

    os.fsync = fsync  # type: ignore[assignment]


if __name__ == "__main__":
    _serve_requests()
