"""A retraining as a Prefect flow: a thin wrapper around the command line, for users of Prefect (extra `prefect`).

The command runs in a process of its own, like a run of the scheduler. Secrets are passed in the worker's environment, because
Prefect stores and displays the parameters of a flow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

# Must be set before the import of Prefect, which reads its settings then and sends telemetry by default.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow, get_run_logger, task

from pipelines.redaction import has_password, redact

CLI_COMMAND = (sys.executable, "-m", "pipelines.cli")
OUTCOMES_BY_EXIT_CODE = {0: "done", 3: "refused by the gate"}  # exit codes that are results, not failures
_EXIT_WRONG_INPUT = 2
_MAX_LINES = 20


class CommandFailed(RuntimeError):
    """The command ended with an exit code that means a failure."""

    def __init__(self, code: int, last_line: str) -> None:
        super().__init__(f"The command ended with exit code {code}: {last_line}")
        self.code = code


def should_retry(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a failed command is retried; invalid input is not, because it would fail again."""
    error = state.result(raise_on_failure=False)
    return not (isinstance(error, CommandFailed) and error.code == _EXIT_WRONG_INPUT)


@task(
    name="forecaster",
    retries=3,
    retry_delay_seconds=[60, 120, 240],
    retry_condition_fn=should_retry,
    persist_result=False,
    result_serializer="json",
)
def run_command(words: Sequence[str]) -> dict[str, Any]:
    """Runs one command to its end; returns its exit code, the meaning of the code and the last line of its output."""
    if any(has_password(argument) or has_password(argument.partition("=")[2]) for argument in words):
        raise CommandFailed(
            _EXIT_WRONG_INPUT, "expected an address without a password; put the password into the worker's environment"
        )
    logger, lines = get_run_logger(), deque[str](maxlen=_MAX_LINES)
    with subprocess.Popen(  # noqa: S603  # our own command
        [*CLI_COMMAND, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(redact(line.rstrip()))
            logger.info(lines[-1])
    last_line = next((line for line in reversed(lines) if line), "")
    if process.returncode not in OUTCOMES_BY_EXIT_CODE:
        raise CommandFailed(process.returncode, last_line)
    return {"code": process.returncode, "outcome": OUTCOMES_BY_EXIT_CODE[process.returncode], "said": last_line}


@flow(name="forecaster-retrain", log_prints=False, persist_result=False, result_serializer="json")
def retrain_flow(words: list[str]) -> dict[str, Any]:
    """Runs `forecaster retrain` with these arguments. The command is idempotent, so a retry does not repeat finished work."""
    result: dict[str, Any] = run_command(["retrain", *words])
    return result
