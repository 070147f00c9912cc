"""A Python that has imported everything, and starts commands by forking: a process of its own without the seconds of imports.

The tests start many trainings that are killed; what is killed is a real process, and what it leaves is on a real disk.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.system.processes import CHECKOUT, make_environment


class ForkedProcess:
    """A command under way."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._nursery = server
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code (minus the signal's number, if one ended it), or None."""
        return self._exit_code(wait=False)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        code = self._exit_code(wait=True)
        assert code is not None
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """As long as it has not been waited for, the number is its own."""
        if self._code is None:
            os.kill(self.pid, number)

    def _exit_code(self, *, wait: bool) -> int | None:
        if self._code is None:
            self._code = self._nursery.request(wait=wait, pid=self.pid)
        return self._code


class ForkServer:
    """Where children are started."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def request(self, **message: Any) -> Any:
        """One line there, one line back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(message), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    @contextmanager
    def start(
        self, arguments: Sequence[str], folder: Path, *, syncs: int | None = None, failpoints: str | None = None
    ) -> Iterator[ForkedProcess]:
        """A command in a folder, its output in `process.log`; it does not outlive the block.

        Args:
            arguments: As after `forecaster` in a shell.
            folder: Where it runs.
            syncs: After so many files are synced to disk, it kills itself.
            failpoints: Where it is killed or broken besides.
        """
        question = {"arguments": list(arguments), "folder": str(folder), "syncs": syncs, "failpoints": failpoints}
        child = ForkedProcess(self, self.request(**question))
        try:
            yield child
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()

    def run(self, arguments: Sequence[str], folder: Path, *, failpoints: str | None = None) -> int:
        """A command to its end; answers its exit code."""
        with self.start(arguments, folder, failpoints=failpoints) as child:
            return child.wait()


@contextmanager
def running_fork_server() -> Iterator[ForkServer]:
    """A nursery for as long as the block lasts."""
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


def _serve_requests() -> None:

    import pipelines.retraining.retrain  # noqa: F401  # all of it, and nothing of it used before a fork

    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            pid, status = os.waitpid(question["pid"], 0 if question["wait"] else os.WNOHANG)
            _send_reply(os.waitstatus_to_exitcode(status) if pid else None)
        elif pid := os.fork():
            _send_reply(pid)
        else:
            _run_command(**question)


def _send_reply(value: int | None) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


def _run_command(arguments: Sequence[str], folder: str, syncs: int | None, failpoints: str | None) -> None:
    """The command; never comes back."""
    # Whoever runs the tests in the background ignores interrupts, and a child inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from pipelines.cli import main

    os.setsid()
    os.chdir(folder)
    log = os.open("process.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for handle, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(handle, target)
    if syncs is not None:
        _kill_after_syncs(syncs)
    if failpoints is not None:
        os.environ |= {"FORECASTER_TEST": "1", "FORECASTER_FAILPOINTS": failpoints}
    code = 1
    try:
        main(arguments)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _kill_after_syncs(syncs: int) -> None:
    sync, left = os.fsync, syncs

    def fsync(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    os.fsync = fsync  # type: ignore[assignment]


if __name__ == "__main__":
    _serve_requests()
