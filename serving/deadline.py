"""When an answer is no longer waited for. Work looks at it between its parts, so that late work gives its thread back."""

from __future__ import annotations

import time
from threading import Event
from typing import NamedTuple

from serving.errors import CLIENT_LEFT, Problem


class Deadline(NamedTuple):
    """A moment of the monotonic clock, and the patience that led to it.

    Attributes:
        began: When it began.
        seconds: The patience.
        left_alone: Set when whoever waited has left: then it has passed, too.
    """

    began: float
    seconds: float
    left_alone: Event

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        return cls(time.monotonic(), seconds, Event())

    @property
    def left(self) -> float:
        """Seconds that are left; 0 when it has passed."""
        return max(0.0, self.began + self.seconds - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether it has passed, or whoever waited has left."""
        return self.left_alone.is_set() or not self.left

    def within(self, milliseconds: int | None) -> Deadline:
        """The sooner of this and so many milliseconds from the same beginning."""
        return self if milliseconds is None else self._replace(seconds=min(self.seconds, milliseconds / 1000))

    def check(self) -> None:
        """Raises Problem (504) once it has passed."""
        if self.left_alone.is_set():
            raise self.nobody()
        if time.monotonic() - self.began >= self.seconds:
            raise self.problem()

    def problem(self) -> Problem:
        """What is told to who waited."""
        return Problem(
            "deadline_passed",
            f"The forecast was not done after {self.seconds:g} s. Send fewer series, or try again later.",
        )

    @staticmethod
    def nobody() -> Problem:
        """Where nobody waits any more; it is only logged."""
        return Problem("deadline_passed", "The client left before the answer.", status=CLIENT_LEFT)
