"""Displays of progress: live in a terminal or a notebook, otherwise a log line every few seconds.

Each finished phase stays as one line with its result and its duration; the current phase moves below these lines.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forecaster.progress import Progress, ShieldedProgress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

_log = logging.getLogger(__name__)

LOG_INTERVAL_S = 5.0
_MAX_LOG_INTERVAL_S = 60.0
_LINES_PER_DURATION = 10  # of a long phase: after an hour there is a line per minute
_NOTEBOOK_INTERVAL_S = 0.5
_REFRESHES_PER_SECOND = 5  # of the terminal; each costs the training about a millisecond
_NAME_WIDTH, _BAR_WIDTH = 16, 16
_SPARE_COLUMNS = 3  # for the `^C` that the terminal shows; a wrapped line could not be replaced


@dataclass
class Phase:
    """The phase that is shown.

    Attributes:
        name: What is done.
        total: The number of its steps, if it is known.
        started: When it began, in seconds of the display's clock.
        completed: The number of completed steps.
        detail: The text beside it, which is its result at the end.
        first_update: The time and the completed steps of the first update; a resumed phase does not begin at 0.
    """

    name: str
    total: int | None
    started: float
    completed: int = 0
    detail: str = ""
    first_update: tuple[float, int] | None = field(default=None)

    def update(self, completed: int, detail: str, now: float) -> None:
        """Sets the completed steps; an empty text leaves the previous one."""
        self.completed, self.detail = completed, detail or self.detail
        if self.first_update is None:
            self.first_update = (now, completed)

    def estimate_remaining_s(self, now: float) -> float | None:
        """Returns the seconds to the end at the pace so far, or None if the total or the pace is unknown."""
        if self.total is None or self.first_update is None:
            return None
        first_time, first_completed = self.first_update
        steps, remaining = self.completed - first_completed, self.total - self.completed
        return (now - first_time) / steps * max(0, remaining) if steps > 0 else None

    def describe_state(self, now: float, *, with_steps: bool = True) -> str:
        """Returns the remaining time, the text beside the steps, and the steps, without the name."""
        remaining = self.estimate_remaining_s(now)
        left = "" if remaining is None else f"{format_duration(remaining)} left"
        steps = f"{self.completed} of {self.total}" if with_steps and self.total is not None else ""
        return ", ".join(text for text in (left, self.detail, steps) if text)


class DisplayedProgress(Progress):
    """Keeps the current phase; subclasses show it.

    Args:
        clock: Returns the present in seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.current: Phase | None = None

    def begin(self, name: str, total: int | None = None) -> None:
        """A phase begins."""
        self.current = Phase(name, total, self._clock())
        self._show_current(self.current)

    def update(self, completed: int, detail: str = "") -> None:
        """Sets the number of completed steps and the text beside it; without a phase nothing is shown."""
        if self.current is not None:
            self.current.update(completed, detail, self._clock())
            self._show_current(self.current)

    def end(self, *, failed: bool = False) -> None:
        """The phase ends, and stays as one line."""
        phase, self.current = self.current, None
        if phase is not None:
            self._show_finished(phase, self._clock() - phase.started, failed=failed)

    def _show_current(self, phase: Phase) -> None:
        raise NotImplementedError

    def _show_finished(self, phase: Phase, seconds: float, *, failed: bool) -> None:
        raise NotImplementedError


class LogProgress(DisplayedProgress):
    """Logs a line at the end of each phase, and within it every few seconds, later every minute.

    Args:
        interval_s: The seconds between two lines of a phase, at first.
        min_phase_s: A phase that was shorter has no line at its end.
    """

    def __init__(
        self,
        *,
        interval_s: float = LOG_INTERVAL_S,
        min_phase_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(clock=clock)
        self._interval_s, self._min_phase_s, self._last_line = interval_s, min_phase_s, clock()

    def report(self, result: str) -> None:
        """Logs a result."""
        self._log(result)

    def _show_current(self, phase: Phase) -> None:
        now = self._clock()
        interval_s = max(self._interval_s, min(_MAX_LOG_INTERVAL_S, (now - phase.started) / _LINES_PER_DURATION))
        if now - max(phase.started, self._last_line) >= interval_s:
            self._log(f"{phase.name}: {phase.describe_state(now)}")

    def _show_finished(self, phase: Phase, seconds: float, *, failed: bool) -> None:
        if seconds >= self._min_phase_s:
            self._log(format_finished(phase, seconds, failed=failed))

    def _log(self, line: str) -> None:
        """Logs a line; where logging is not configured, as in a short script, it goes to standard error."""
        self._last_line = self._clock()
        if _log.hasHandlers():
            _log.info("%s", line)
        else:
            sys.stderr.write(f"{line}\n")


class TerminalProgress(DisplayedProgress):
    """One live display for all phases, by rich; other output to the same terminal appears above it."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.spinner import Spinner

        super().__init__(clock=clock)
        self._console = console
        self._spinner = Spinner("line" if console.options.ascii_only else "dots")
        self._live: Live | None = None

    def begin(self, name: str, total: int | None = None) -> None:
        """A phase begins, and its line is live until it ends."""
        from rich.live import Live

        super().begin(name, total)
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
        )
        self._live.start(refresh=True)

    def end(self, *, failed: bool = False) -> None:
        """The phase ends, and stays as one line."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        super().end(failed=failed)

    def report(self, result: str) -> None:
        """Shows a result above the current phase."""
        self._console.print(result, markup=False, highlight=False)

    def _show_current(self, phase: Phase) -> None:
        """Does nothing: the display reads the phase when it is refreshed."""

    def _show_finished(self, phase: Phase, seconds: float, *, failed: bool) -> None:
        from rich.text import Text

        row = _make_row(self._console)
        row.add_row(
            Text(phase.name),
            Text(phase.detail if not failed else f"stopped; {phase.detail}" if phase.detail else "stopped"),
            Text(format_duration(seconds)),
        )
        self._console.print(row)

    def _render(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        phase, now = self.current, self._clock()
        if phase is None:
            return Text("")
        cells: list[RenderableType] = [self._spinner]
        if phase.total is not None:
            cells += [ProgressBar(total=phase.total, completed=phase.completed, width=_BAR_WIDTH)]
        cells.append(Text(phase.describe_state(now, with_steps=False), no_wrap=True, overflow="ellipsis"))
        state = Table.grid(padding=(0, 1))
        state.add_row(*cells)
        row = _make_row(self._console)
        row.add_row(Text(phase.name, style="bold"), state, Text(format_duration(now - phase.started)))
        return row


class NotebookProgress(DisplayedProgress):
    """Shows all lines in one output of a notebook's cell, which is replaced as the work proceeds.

    Args:
        show: Shows the text for the first time, and returns a function that replaces it.
    """

    def __init__(
        self, show: Callable[[str], Callable[[str], None]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(clock=clock)
        self._lines: list[str] = []
        self._replace = show("")
        self._last_refresh = clock()

    def report(self, result: str) -> None:
        """Adds a result as a line."""
        self._lines.append(result)
        self._refresh()

    def _show_current(self, phase: Phase) -> None:
        if self._clock() - self._last_refresh >= _NOTEBOOK_INTERVAL_S:
            self._refresh()

    def _show_finished(self, phase: Phase, seconds: float, *, failed: bool) -> None:
        self._lines.append(format_finished(phase, seconds, failed=failed))
        self._refresh()

    def _refresh(self) -> None:
        now, phase = self._clock(), self.current
        current = [] if phase is None else [f"{phase.name}: {phase.describe_state(now)}"]
        self._last_refresh = now
        self._replace("\n".join(self._lines + current))


def create_display(*, min_phase_s: float = 0.0) -> Progress:
    """Creates the display that suits where the output goes; if it fails, the work goes on without it.

    In a notebook it is an output of the cell; if standard error is a terminal, a live display there (standard output may be
    redirected); otherwise it is a line of the log every few seconds.

    Args:
        min_phase_s: In a log, a phase that was shorter has no line at its end.
    """
    return ShieldedProgress(_choose_display(min_phase_s))


def _choose_display(min_phase_s: float) -> Progress:
    if _is_notebook():
        return NotebookProgress(_show_in_notebook)
    if sys.stderr is not None and sys.stderr.isatty():
        try:
            from rich.console import Console
        except ImportError:
            return LogProgress(min_phase_s=min_phase_s)
        console = Console(stderr=True)
        console.on_broken_pipe = _raise_broken_pipe  # type: ignore[method-assign]  # rich would end the process
        if console.is_terminal and not console.is_dumb_terminal:
            return TerminalProgress(console)
    return LogProgress(min_phase_s=min_phase_s)


def format_finished(phase: Phase, seconds: float, *, failed: bool) -> str:
    """Returns the line that remains of a phase."""
    result = ", ".join(text for text in ("stopped" if failed else "", phase.detail) if text)
    return (
        f"{phase.name}: {result} ({format_duration(seconds)})"
        if result
        else f"{phase.name} ({format_duration(seconds)})"
    )


def format_duration(seconds: float) -> str:
    """Formats seconds for people: 0.4 s, 12 s, 3:20 min, 1:05 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    whole, unit = (round(seconds), "min") if seconds < 3570 else (round(seconds / 60), "h")
    return f"{whole // 60}:{whole % 60:02d} {unit}"


def _make_row(console: Console) -> Table:
    """Returns a table for one line: name, result, time at the right edge."""
    from rich.table import Table

    row = Table.grid(padding=(0, 1), expand=True)
    row.width = min(console.width - _SPARE_COLUMNS, 110)
    row.add_column(width=_NAME_WIDTH, no_wrap=True)
    row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    row.add_column(justify="right", no_wrap=True, min_width=8)
    return row


def _raise_broken_pipe() -> None:
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _is_notebook() -> bool:
    """Whether this is a kernel of Jupyter, which shows outputs that can be replaced."""
    ipython = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


def _show_in_notebook(text: str) -> Callable[[str], None]:
    """Shows a text as an output of the current cell; returns a function that replaces it."""
    from IPython.display import display

    handle = display({"text/plain": text}, raw=True, display_id=True)
    return lambda new_text: handle.update({"text/plain": new_text}, raw=True)
