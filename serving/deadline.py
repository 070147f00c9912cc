"""The deadline of a request. Work checks it between its parts, so that late work frees its thread."""

from __future__ import annotations

import time
from threading import Event
from typing import NamedTuple

from serving.errors import CLIENT_CLOSED_REQUEST, ApiError


class Deadline(NamedTuple):
    """A start on the monotonic clock and a timeout.

    Attributes:
        started_at: Start of the request, in seconds of the monotonic clock.
        timeout_s: Seconds from the start to the deadline.
        client_disconnected: Set when the client has disconnected; the deadline then counts as passed.
    """

    started_at: float
    timeout_s: float
    client_disconnected: Event

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Returns the deadline that many seconds from now."""
        return cls(time.monotonic(), seconds, Event())

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; 0 once it has passed."""
        return max(0.0, self.started_at + self.timeout_s - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed or the client has disconnected."""
        return self.client_disconnected.is_set() or not self.remaining_s

    def capped(self, limit_ms: int | None) -> Deadline:
        """Returns the earlier of this deadline and `limit_ms` milliseconds after the same start."""
        return self if limit_ms is None else self._replace(timeout_s=min(self.timeout_s, limit_ms / 1000))

    def check(self) -> None:
        """Raises ApiError: 504 once the deadline has passed, 499 once the client has disconnected."""
        if self.client_disconnected.is_set():
            raise self.client_disconnected_error()
        if time.monotonic() - self.started_at >= self.timeout_s:
            raise self.timeout_error()

    def timeout_error(self) -> ApiError:
        """The error for a client whose request took too long."""
        return ApiError(
            "deadline_passed",
            f"The forecast did not finish within {self.timeout_s:g} s. Send fewer series, or try again later.",
        )

    @staticmethod
    def client_disconnected_error() -> ApiError:
        """The client disconnected (logged only)."""
        return ApiError("deadline_passed", "The client disconnected before the response.", status=CLIENT_CLOSED_REQUEST)
