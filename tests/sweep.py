"""Which fail points a sweep fires: whole steps, so that a point that is added to one is fired by the sweep that has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from forecaster.failpoints import POINTS


def points_of(*steps: str) -> list[str]:
    """The points of these steps; a step that has none is a slip."""
    known = {name.partition(".")[0] for name in POINTS}
    assert set(steps) <= known, f"no such step: {set(steps) - known}"
    return [name for name in POINTS if name.partition(".")[0] in steps]


def some(cases: Sequence[str], *, every: int = 3) -> list[Any]:
    """All cases, of which `make test` runs the first of every few, and `make sweep` the others."""
    marks = [[] if place % every == 0 else [pytest.mark.sweep] for place in range(len(cases))]
    return [pytest.param(case, marks=own) for case, own in zip(cases, marks, strict=True)]
