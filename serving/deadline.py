"""When an answer is no longer waited for. Work looks at it between its parts, so that late work gives its thread back."""

from __future__ import annotations

import time
from threading import Event
from typing import NamedTuple

from serving.errors import CLIENT_CLOSED_REQUEST, ApiError


class Deadline(NamedTuple):
    """A moment of the monotonic clock, and the patience that led to it.

    Attributes:
        began: When it began.
        seconds: The patience.
        left_alone: Set when whoever waited has left: then it has passed, too.
    """

    started_at: float
    timeout_s: float
    client_disconnected: Event

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        return cls(time.monotonic(), seconds, Event())

    @property
    def remaining_s(self) -> float:
        """Seconds that are left; 0 when it has passed."""
        return max(0.0, self.started_at + self.timeout_s - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether it has passed, or whoever waited has left."""
        return self.client_disconnected.is_set() or not self.remaining_s

    def capped(self, limit_ms: int | None) -> Deadline:
        """The sooner of this and so many milliseconds from the same beginning."""
        return self if limit_ms is None else self._replace(timeout_s=min(self.timeout_s, limit_ms / 1000))

    def check(self) -> None:
        """Raises Problem (504) once it has passed."""
        if self.client_disconnected.is_set():
            raise self.client_disconnected_error()
        if time.monotonic() - self.started_at >= self.timeout_s:
            raise self.timeout_error()

    def timeout_error(self) -> ApiError:
        """What is told to who waited."""
        return ApiError(
            "deadline_passed",
            f"The forecast was not done after {self.timeout_s:g} s. Send fewer series, or try again later.",
        )

    @staticmethod
    def client_disconnected_error() -> ApiError:
        """Where nobody waits any more; it is only logged."""
        return ApiError("deadline_passed", "The client left before the answer.", status=CLIENT_CLOSED_REQUEST)
