"""Timing of an action: once, per step, per call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

MIN_SECONDS, MIN_CALLS, MAX_CALLS = 0.5, 3, 200  # limits of the number of timed calls


class Timing(NamedTuple):
    """Duration of an action: wall time, and CPU time of all cores together."""

    seconds: float
    cpu: float


def time_once(action: Callable[[], object]) -> Timing:
    """Times one call."""
    started, cpu = time.perf_counter(), time.process_time()
    action()
    return Timing(time.perf_counter() - started, time.process_time() - cpu)


def time_per_step(action: Callable[[int], object], *, few: int, many: int) -> Timing:
    """Times one further step; fixed costs before the first step and after the last are in both trainings and cancel out."""
    short, long = time_once(lambda: action(few)), time_once(lambda: action(many))
    steps = many - few
    return Timing((long.seconds - short.seconds) / steps, (long.cpu - short.cpu) / steps)


def time_per_call(action: Callable[[], object]) -> Timing:
    """Returns the median over as many calls as fill half a second."""
    calls: list[Timing] = []
    while len(calls) < MIN_CALLS or (sum(call.seconds for call in calls) < MIN_SECONDS and len(calls) < MAX_CALLS):
        calls.append(time_once(action))
    return Timing(*(statistics.median(part) for part in zip(*calls, strict=True)))
