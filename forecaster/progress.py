"""Progress of long work: named phases, their completed steps, and their results.

Functions that take long accept a `Progress` and report to it; the caller decides what is shown. This class shows nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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
