"""How long things take: once, by the step, by the call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

LEAST_SECONDS, FEWEST, MOST = 0.5, 3, 200  # so many short calls are made


class Taken(NamedTuple):
    """What something took: by the clock on the wall, and of all cores together."""

    seconds: float
    cpu: float


def taken(act: Callable[[], object]) -> Taken:
    """Of doing it once."""
    started, cpu = time.perf_counter(), time.process_time()
    act()
    return Taken(time.perf_counter() - started, time.process_time() - cpu)


def per_step(act: Callable[[int], object], *, few: int, many: int) -> Taken:
    """Of one step more: what is done once, before the first step and after the last, is in both trainings and goes."""
    short, long = taken(lambda: act(few)), taken(lambda: act(many))
    steps = many - few
    return Taken((long.seconds - short.seconds) / steps, (long.cpu - short.cpu) / steps)


def per_call(act: Callable[[], object]) -> Taken:
    """The median call: of so many as fill half a second."""
    calls: list[Taken] = []
    while len(calls) < FEWEST or (sum(call.seconds for call in calls) < LEAST_SECONDS and len(calls) < MOST):
        calls.append(taken(act))
    return Taken(*(statistics.median(part) for part in zip(*calls, strict=True)))
