"""The status of a server relative to the registry it follows, which the follower writes to the slot and workers report.

Workers never query the registry. The follower writes `follower.json` after every poll; the file contains its own timestamps.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forecaster.errors import ForecasterError, RegistryError
from forecaster.storage.regular_files import read_regular_file

_FILE_NAME = "follower.json"
_MAX_STATE_BYTES = 1 << 20
_STALE_AFTER_S = 60.0  # in addition to the poll interval, because a registry may take long to time out


class FollowerState(BaseModel):
    """The state of the follower. Times are seconds since 1970, because another process reads them.

    Attributes:
        looked_at: When the last poll ended; None before the first.
        reached_at: When the registry last responded; None if never.
        trouble: Why the slot differs from the registry; None if it does not.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    looked_at: float | None = None
    reached_at: float | None = None
    trouble: str | None = None


class FollowerStatus(BaseModel):
    """The status of the process that follows the registry."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    looked_s: float | None = Field(description="seconds since its last poll of the registry; null: none yet")
    reached_s: float | None = Field(description="seconds since the registry last responded; null: never")
    behind: str | None = Field(
        description="why the model in use may differ from the registry's; null: they were equal at the last poll"
    )


class BundleRejectionStatus(BaseModel):
    """A bundle that this worker rejected; the previous model stays in use."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    reason: str = Field(description="why the bundle was rejected")
    age_s: float = Field(description="seconds since then")


class SlotCheckStatus(BaseModel):
    """The last check of the slot by this worker, which checks it every `reload_s` seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    checked_s: float | None = Field(description="seconds since the last completed check; null: none yet")
    error: str | None = Field(description="why that check failed; null: it did not fail")


class SlotCheck(NamedTuple):
    """The last completed check of the slot: its time in seconds of the monotonic clock, and its error if it failed."""

    checked_at: float | None = None
    error: str | None = None

    def to_status(self) -> SlotCheckStatus:
        """Returns the check as the service reports it."""
        age_s = None if self.checked_at is None else round(time.monotonic() - self.checked_at, 3)
        return SlotCheckStatus(checked_s=age_s, error=self.error)


class BundleRejection(NamedTuple):
    """The reason of the last rejected bundle, and its time in seconds of the monotonic clock."""

    reason: str
    rejected_at: float

    def to_status(self) -> BundleRejectionStatus:
        """Returns the rejection as the service reports it."""
        return BundleRejectionStatus(reason=self.reason, age_s=round(time.monotonic() - self.rejected_at, 3))


def write_follower_state(slot: Path, state: FollowerState) -> None:
    """Writes the state to the slot, atomically but without fsync, because it is written every few seconds."""
    slot.mkdir(parents=True, exist_ok=True)
    draft = slot / f".{_FILE_NAME}.{os.getpid()}"
    draft.write_text(state.model_dump_json(), encoding="utf-8")
    draft.replace(slot / _FILE_NAME)


def read_follower_state(slot: Path) -> FollowerState:
    """Reads the follower's state; an empty state if it cannot be read."""
    try:
        return FollowerState.model_validate_json(read_regular_file(slot, _FILE_NAME, max_bytes=_MAX_STATE_BYTES))
    except (OSError, ValidationError):
        return FollowerState()


def compute_follower_status(slot: Path, *, poll_s: float) -> FollowerStatus:
    """Returns the follower's status; one small read from disk."""
    state, now = read_follower_state(slot), time.time()
    looked_s, reached_s = (
        None if time_s is None else round(max(0.0, now - time_s), 3) for time_s in (state.looked_at, state.reached_at)
    )
    behind = state.trouble
    if looked_s is None:
        behind = "the follower has not polled the registry yet"
    elif looked_s > poll_s + _STALE_AFTER_S:
        behind = f"the follower has not polled the registry for {looked_s:.0f} s"
    return FollowerStatus(looked_s=looked_s, reached_s=reached_s, behind=behind)


def describe_error(error: BaseException, slot: Path) -> str:
    """Describes an error to clients without the slot's path, addresses and tracebacks, which are only logged."""
    if isinstance(error, RegistryError):  # its message may contain the registry's address, and that a password
        return error.code
    if isinstance(error, ForecasterError):
        return f"{error.code}: {error.message.replace(str(slot), 'slot')}"
    return type(error).__name__


def describe_check_error(error: BaseException, slot: Path) -> str:
    """Describes the error of a check of the slot as `describe_error` does, and what the operating system reports."""
    if isinstance(error, OSError) and error.strerror:  # which does not contain the path
        return f"{type(error).__name__}: {error.strerror}"
    return describe_error(error, slot)
