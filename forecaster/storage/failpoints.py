"""Named places where a test has the program killed, or broken by an exception: what is left behind must be old or new.

`FORECASTER_FAILPOINTS="promote.after_former=kill;register.stored=raise"`; ignored unless FORECASTER_TEST=1.
"""

from __future__ import annotations

import os
import signal

ENABLED_VARIABLE, POINTS_VARIABLE = "FORECASTER_TEST", "FORECASTER_FAILPOINTS"

FAIL_POINTS = (
    "checkpoint.before_write",
    "checkpoint.written",
    "export.filled",  # all files are in a draft beside the bundle's folder
    "export.written",
    "register.leased",
    "register.stored",  # the files are in the store, no version knows of them
    "register.versioned",
    "judge.before",
    "judge.decided",
    "judge.recorded",
    "retrain.trained",  # the training has ended, no version knows of it
    "retrain.promoted",  # all is done, and the version does not say so yet
    "promote.leased",
    "promote.verified",
    "promote.tagged",
    "promote.after_former",
    "promote.after_champion",  # the commit point is behind
    "promote.audited",
    "rollback.leased",
    "rollback.marked",
    "rollback.verified",
    "rollback.tagged",
    "rollback.after_former",
    "rollback.after_champion",
    "rollback.audited",
    "reload.fetched",
    "reload.verified",
    "reload.staged",  # the release is in the slot, the link is the old one
    "reload.linked",
    "reload.before_swap",  # in a worker: loaded and warmed up, not yet in use
    "local.pinned",  # a rollback of one server: the follower is told, the slot is as it was
    "local.linked",
    "local.audited",
    "local.restored",  # its undoing: the slot is as before, the pin is still there
    "lease.choosing",  # in the queue of a registry that several machines share
    "lease.numbered",
    "lease.held",
    "schedule.noted",  # a call is written down and not yet queued
    "schedule.queued",
    "schedule.taken",  # it is out of the queue and not yet begun
    "schedule.ran",  # its command has ended, and nobody knows
)


class FailPointError(RuntimeError):
    """Raised at a fail point; no error of ours, so nobody handles it."""


def fail_point(name: str) -> None:
    """Does nothing, unless a test has chosen this place."""
    assert name in FAIL_POINTS, f"unknown fail point {name}"
    if os.environ.get(ENABLED_VARIABLE) != "1":
        return
    for chosen in os.environ.get(POINTS_VARIABLE, "").split(";"):
        place, _, what = chosen.partition("=")
        if place.strip() == name:
            _fail(name, what.strip())


def _fail(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action != "raise":
        raise ValueError(
            f"Expected kill or raise for the fail point {name}; found {action!r}. Correct {POINTS_VARIABLE}."
        )
    raise FailPointError(name)
