"""Progress of long work: named phases, their completed steps, and their results.

Functions that take long accept a `Progress` and report to it; the caller decides what is shown (`progress_display.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_log = logging.getLogger(__name__)


class Progress:
    """Receives the progress of long work, and shows nothing; subclasses show it.

    The methods are called by the thread that does the work, at least once per epoch or series batch, so they must be fast. Phases
    follow each other and are not nested.
    """

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Progress]:
        """Opens a phase, such as `"variant 2 of 3"`, and closes it when the block ends.

        Args:
            name: What is done.
            total: The number of steps of the phase, if it is known.
        """
        self.begin(name, total)
        try:
            yield self
        except BaseException:
            self.end(failed=True)
            raise
        self.end()

    def begin(self, name: str, total: int | None = None) -> None:
        """A phase begins."""

    def update(self, completed: int, detail: str = "") -> None:
        """Sets the number of completed steps of the phase, and a short text beside it, such as the validation error."""

    def report(self, result: str) -> None:
        """States a result in one sentence that stays visible, such as the selected variant."""

    def end(self, *, failed: bool = False) -> None:
        """The phase ends."""


NO_PROGRESS = Progress()


class ShieldedProgress(Progress):
    """Passes everything on to a display until that fails once; the work goes on without it.

    Attributes:
        display: The display; None after it failed, for example because standard error was closed.
    """

    def __init__(self, display: Progress) -> None:
        self.display: Progress | None = display

    def begin(self, name: str, total: int | None = None) -> None:
        """A phase begins."""
        self._pass_on(lambda display: display.begin(name, total))

    def update(self, completed: int, detail: str = "") -> None:
        """Sets the number of completed steps and the text beside it."""
        self._pass_on(lambda display: display.update(completed, detail))

    def report(self, result: str) -> None:
        """States a result."""
        self._pass_on(lambda display: display.report(result))

    def end(self, *, failed: bool = False) -> None:
        """The phase ends."""
        self._pass_on(lambda display: display.end(failed=failed))

    def _pass_on(self, call: Callable[[Progress], None]) -> None:
        if self.display is None:
            return
        try:
            call(self.display)
        except Exception as error:  # of any kind: a display must not end a training
            display, self.display = self.display, None
            with suppress(Exception):
                display.end(failed=True)  # a terminal gets its cursor back
            _log.warning("The progress is no longer shown: %r.", error)
