"""Displays of progress, with a clock that the tests set."""

from __future__ import annotations

import io
import logging
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest
from rich.console import Console

from forecaster.progress import Progress, ShieldedProgress
from forecaster.progress.display import (
    LogProgress,
    NotebookProgress,
    TerminalProgress,
    create_display,
    format_duration,
)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def report_three_phases(progress: Progress, clock: Clock) -> None:
    with progress.phase("reading"):
        clock.now += 0.25
        progress.update(0, "40 series")
    with progress.phase("fit", 100):
        for steps in (10, 20, 30):
            clock.now += 4
            progress.update(steps, f"epoch {steps // 10} of 10")
        progress.update(30, "MASE 0.5")
    progress.report("Variant 1 is used.")
    with pytest.raises(ValueError, match="no data"):
        fail_in_phase(progress, clock)


def fail_in_phase(progress: Progress, clock: Clock) -> None:
    with progress.phase("test"):
        clock.now += 200
        raise ValueError("no data")


def test_a_log_has_a_line_every_few_seconds_and_one_per_finished_phase(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="forecaster.progress.display")
    clock = Clock()
    report_three_phases(LogProgress(interval_s=5.0, clock=clock), clock)
    assert caplog.messages == [
        "reading: 40 series (0.2 s)",
        "fit: 32 s left, epoch 2 of 10, 20 of 100",
        "fit: MASE 0.5 (12 s)",
        "Variant 1 is used.",
        "test: stopped (3:20 min)",
    ]


def test_the_log_of_a_short_command_has_no_line_per_phase(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="forecaster.progress.display")
    clock = Clock()
    report_three_phases(LogProgress(interval_s=60.0, min_phase_s=30.0, clock=clock), clock)
    assert caplog.messages == ["Variant 1 is used.", "test: stopped (3:20 min)"]


def test_a_long_phase_has_fewer_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="forecaster.progress.display")
    clock = Clock()
    progress = LogProgress(clock=clock)
    with progress.phase("fit", 3600):
        for second in range(3600):
            progress.update(second)
            clock.now += 1
    assert 60 <= len(caplog.messages) <= 120


def test_a_resumed_phase_is_not_estimated_by_the_steps_before_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="forecaster.progress.display")
    clock = Clock()
    progress = LogProgress(interval_s=1.0, clock=clock)
    progress.begin("fit", 1000)
    progress.update(900)
    clock.now += 10
    progress.update(950)
    assert caplog.messages == ["fit: 10 s left, 950 of 1000"]


def render(progress: TerminalProgress, width: int = 110) -> str:
    """Returns what the terminal shows of the current phase."""
    console = Console(file=io.StringIO(), width=width)
    console.print(progress._render())
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def make_terminal(clock: Clock) -> tuple[TerminalProgress, io.StringIO]:
    output = io.StringIO()
    return TerminalProgress(Console(file=output, force_terminal=True, width=110), clock=clock), output


def test_a_terminal_keeps_one_line_per_finished_phase() -> None:
    clock = Clock()
    progress, output = make_terminal(clock)
    report_three_phases(progress, clock)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue()).replace("\r", "\n")
    lines = [line.rstrip() for line in shown.splitlines() if not re.search(r"[━⠀-⣿]", line)]
    finished = [line for line in lines if line.endswith((" s", " min", "."))]
    assert [re.sub(r" {2,}", "  ", line) for line in finished] == [
        "reading  40 series  0.2 s",
        "fit  MASE 0.5  12 s",
        "Variant 1 is used.",
        "test  stopped  3:20 min",
    ]
    assert {len(line) for line in finished if line != "Variant 1 is used."} == {107}, "times are at the right edge"


def test_a_terminal_shows_bar_remaining_time_and_detail_of_the_current_phase() -> None:
    clock = Clock()
    progress, _ = make_terminal(clock)
    assert render(progress).strip() == "", "nothing is live between phases"
    with progress.phase("variant 2 of 3", 1000):
        progress.update(0)
        clock.now += 5
        progress.update(250, "last of log, base last, epoch 3 of 10, MASE 0.43")
        shown = render(progress)
    assert shown.startswith("variant 2 of 3")
    assert "15 s left, last of log, base last, epoch 3 of 10, MASE 0.43" in shown
    assert shown.rstrip().endswith("5.0 s")
    assert len(shown.splitlines()) == 1


def test_long_details_do_not_wrap_and_markup_is_text() -> None:
    progress, output = make_terminal(Clock())
    with progress.phase("reading"):
        progress.update(0, "[bold]" + "x" * 200)
        assert len(render(progress, width=60).splitlines()) == 1
    progress.report("[red]series 'a'[/red]")
    assert "[red]series 'a'[/red]" in output.getvalue()
    assert "[bold]xxx" in output.getvalue()


def test_a_notebook_replaces_one_output() -> None:
    clock, texts = Clock(), []

    def show(text: str) -> Any:
        texts.append(text)
        return texts.append

    report_three_phases(NotebookProgress(show, clock=clock), clock)
    assert texts[0] == ""
    assert texts[-1] == "reading: 40 series (0.2 s)\nfit: MASE 0.5 (12 s)\nVariant 1 is used.\ntest: stopped (3:20 min)"
    assert "reading: 40 series (0.2 s)\nfit: epoch 1 of 10, 10 of 100" in texts


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (99.4, "99 s"), (99.6, "1:40 min"), (3569.0, "59:29 min")],
)
def test_durations_up_to_an_hour(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_longer_durations_are_in_hours() -> None:
    assert [format_duration(seconds) for seconds in (3600.0, 3661.0, 86_400.0)] == ["1:00 h", "1:01 h", "24:00 h"]


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes standard error a terminal; in the test itself, as pytest replaces the stream after the fixtures."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def choose_display() -> Progress | None:
    shielded = create_display()
    assert isinstance(shielded, ShieldedProgress)
    return shielded.display


@pytest.mark.parametrize("kind", ["terminal", "notebook"])
def test_a_display_that_fails_does_not_end_the_work(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> NoReturn:
        raise BrokenPipeError(32, "Broken pipe")

    if kind == "terminal":
        use_terminal(monkeypatch)
        progress = create_display()
        monkeypatch.setattr(sys.stderr, "write", fail)
    else:
        progress = ShieldedProgress(NotebookProgress(lambda _: fail))
    with progress.phase("fit", 2):
        progress.update(1)
    progress.report("done")
    with progress.phase("test"):
        progress.update(1, "MASE 0.9")
    assert [record.getMessage() for record in caplog.records] == [
        "The progress is no longer shown: BrokenPipeError(32, 'Broken pipe')."
    ]
    with pytest.raises(ValueError, match="of the work"), progress.phase("fit"):
        raise ValueError("of the work")


def test_the_display_is_live_if_standard_error_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    assert isinstance(choose_display(), TerminalProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_display(), LogProgress)


def test_without_rich_lines_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert isinstance(choose_display(), LogProgress)


def test_without_a_terminal_lines_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(choose_display(), LogProgress)


def test_a_notebook_is_recognized_by_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    ipython, module = ModuleType("IPython"), ModuleType("IPython.display")
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> SimpleNamespace:
        shown.append(data["text/plain"])
        return handle

    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    create_display().report("done")
    assert shown == ["", "done"]


def test_lines_go_to_standard_error_where_logging_is_not_configured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.Logger, "hasHandlers", lambda _: False)
    with LogProgress().phase("fit"):
        pass
    assert capsys.readouterr().err == "fit (0.0 s)\n"
