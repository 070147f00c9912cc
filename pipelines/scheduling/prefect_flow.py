"""A retraining as a Prefect flow: a thin coat around the command line, for who has Prefect anyway (extra `prefect`).

The command runs in a process of its own, as the other schedules run it. Secrets reach it by the worker's environment; parameters
of a flow are stored and shown, so none belongs there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

# Prefect reads its settings when it is imported, and would tell its makers of it.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow, get_run_logger, task

from pipelines.redaction import has_password, redact

CLI_COMMAND = (sys.executable, "-m", "pipelines.cli")
OUTCOMES_BY_EXIT_CODE = {0: "done", 3: "refused by the gate"}  # both are results; the second is told by its code
_EXIT_WRONG_INPUT = 2
_MAX_LINES = 20


class CommandFailed(RuntimeError):
    """The command ended with a code that is no result."""

    def __init__(self, code: int, last_line: str) -> None:
        super().__init__(f"The command ended with {code}: {last_line}")
        self.code = code


def should_retry(_task: Any, _run: Any, state: Any) -> bool:
    """Whether another attempt may: input that is wrong is wrong again."""
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
    """One command to its end; answers its exit code, what that means, and what it said last."""
    if any(has_password(word) or has_password(word.partition("=")[2]) for word in words):
        raise CommandFailed(
            _EXIT_WRONG_INPUT, "an address with a password was given; put it into the worker's environment"
        )
    logger, lines = get_run_logger(), deque[str](maxlen=_MAX_LINES)
    with subprocess.Popen(  # noqa: S603  # our own command
        [*CLI_COMMAND, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(redact(line.rstrip()))
            logger.info(lines[-1])
    said = next((line for line in reversed(lines) if line), "")
    if process.returncode not in OUTCOMES_BY_EXIT_CODE:
        raise CommandFailed(process.returncode, said)
    return {"code": process.returncode, "outcome": OUTCOMES_BY_EXIT_CODE[process.returncode], "said": said}


@flow(name="forecaster-retrain", log_prints=False, persist_result=False, result_serializer="json")
def retrain_flow(words: list[str]) -> dict[str, Any]:
    """`forecaster retrain` with these arguments; asked twice it is done once, so that a retry costs nothing that was done."""
    answer: dict[str, Any] = run_command(["retrain", *words])
    return answer
