"""Named fail points at which a test kills the program or raises an exception; the state left behind must be old or new.

`FORECASTER_FAILPOINTS="promote.after_former=kill;register.stored=raise"`; ignored unless FORECASTER_TEST=1.
"""

from __future__ import annotations

import os
import signal

ENABLED_VARIABLE, POINTS_VARIABLE = "FORECASTER_TEST", "FORECASTER_FAILPOINTS"

FAIL_POINTS = (
    "checkpoint.before_write",
    "checkpoint.written",
    "export.filled",  # all files are in a draft next to the bundle's folder
    "export.written",
    "pretrain.recorded",  # a pretraining has its bundle and its run, and still its checkpoint
    "register.leased",
    "register.stored",  # the files are in the store, no version refers to them
    "register.versioned",
    "judge.before",
    "judge.decided",
    "judge.recorded",
    "retrain.trained",  # the training has ended, no version is registered
    "retrain.promoted",  # everything is done, but not yet recorded with the version
    "promote.leased",
    "promote.verified",
    "promote.tagged",
    "promote.after_former",
    "promote.after_champion",  # after the commit point
    "promote.logged",  # the audit log has its line, the registry not yet its seal
    "promote.audited",
    "rollback.leased",
    "rollback.marked",
    "rollback.verified",
    "rollback.tagged",
    "rollback.after_former",
    "rollback.after_champion",
    "rollback.logged",
    "rollback.audited",
    "reload.fetched",
    "reload.verified",
    "reload.staged",  # the release is in the slot, the link is still the old one
    "reload.linked",
    "reload.before_swap",  # in a worker: loaded and warmed up, not yet in use
    "local.pinned",  # a rollback of one server: the follower is notified, the slot is unchanged
    "local.linked",
    "local.audited",
    "local.restored",  # its undoing: the slot is restored, the pin still exists
    "batch.planned",  # the manifest is fixed, nothing is computed
    "batch.shuffled",  # one step of a shuffle has its file
    "batch.rejected",  # a shard has its rejects, and neither forecasts nor a record
    "batch.written",  # a shard has its forecasts and no record
    "batch.recorded",
    "batch.listed",  # the catalogue has the finished batch, the temporary files still exist
    "schedule.noted",  # a call is recorded
    "schedule.taken",  # it is chosen and not yet started
    "schedule.ran",  # its command has ended, but not yet recorded
)


class FailPointError(RuntimeError):
    """Raised at a fail point; not a ForecasterError, so that no code handles it."""


def fail_point(name: str) -> None:
    """Does nothing, unless a test has activated this fail point."""
    assert name in FAIL_POINTS, f"unknown fail point {name}"
    if os.environ.get(ENABLED_VARIABLE) != "1":
        return
    for setting in os.environ.get(POINTS_VARIABLE, "").split(";"):
        point, _, action = setting.partition("=")
        if point.strip() == name:
            _fail(name, action.strip())


def _fail(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action != "raise":
        raise ValueError(
            f"Expected kill or raise for the fail point {name}; found {action!r}. Correct {POINTS_VARIABLE}."
        )
    raise FailPointError(name)
