"""When an answer is no longer waited for. Work looks at it between its parts, so that late work gives its thread back."""

from __future__ import annotations

import time
from typing import NamedTuple

from serving.problem import Problem


class Deadline(NamedTuple):
    """A moment of the monotonic clock, and the patience that led to it."""

    began: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        return cls(time.monotonic(), seconds)

    @property
    def left(self) -> float:
        """Seconds that are left; 0 when it has passed."""
        return max(0.0, self.began + self.seconds - time.monotonic())

    def within(self, milliseconds: int | None) -> Deadline:
        """The sooner of this and so many milliseconds from the same beginning."""
        return self if milliseconds is None else self._replace(seconds=min(self.seconds, milliseconds / 1000))

    def check(self) -> None:
        """Raises Problem (504) once it has passed."""
        if time.monotonic() - self.began >= self.seconds:
            raise self.problem()

    def problem(self) -> Problem:
        """What is told to who waited."""
        return Problem(
            "deadline_passed",
            f"The forecast was not done after {self.seconds:g} s. Send fewer series, or try again later.",
        )
