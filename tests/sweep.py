"""Which cases `make test` runs and which it leaves to `make sweep`; and which fail points a sweep fires: whole steps, so that a
point that is added to one is fired by the sweep that has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pytest

from forecaster.storage.failpoints import FAIL_POINTS


def fail_points_of(*groups: str) -> list[str]:
    """The points of these steps; a step that has none is a slip."""
    known = {name.partition(".")[0] for name in FAIL_POINTS}
    assert set(groups) <= known, f"no such step: {set(groups) - known}"
    return [name for name in FAIL_POINTS if name.partition(".")[0] in groups]


def sample_cases(cases: Sequence[str], *, stride: int = 3) -> list[Any]:
    """All cases, of which `make test` runs the first of every few, and `make sweep` the others."""
    marks = [[] if place % stride == 0 else [pytest.mark.sweep] for place in range(len(cases))]
    return [pytest.param(case, marks=own) for case, own in zip(cases, marks, strict=True)]


def checkerboard_product(*choices: Iterable[Any]) -> list[Any]:
    """Every combination, of which `make test` runs every second, as on a chessboard, and `make sweep` the others.

    Where each choice is among two or more, any two of three choices meet in both colours: no pair waits for the sweep.
    """
    numbered = product(*(list(enumerate(each)) for each in choices))
    return [
        pytest.param(
            *(value for _, value in case), marks=[pytest.mark.sweep] if sum(place for place, _ in case) % 2 else []
        )
        for case in numbered
    ]
