"""Which cases `make test` runs and which it leaves to `make nightly`, and which fail points a test fires.

A test names whole groups of fail points, so that a point that is added to a group is fired without a change of the test.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pytest

from forecaster.storage.failpoints import FAIL_POINTS


def fail_points_of(*groups: str) -> list[str]:
    """The fail points of these groups; a group without any is a mistake."""
    existing = {name.partition(".")[0] for name in FAIL_POINTS}
    assert set(groups) <= existing, f"no such group: {set(groups) - existing}"
    return [name for name in FAIL_POINTS if name.partition(".")[0] in groups]


def sample_cases(cases: Sequence[Any], *, stride: int = 3) -> list[Any]:
    """All cases; `make test` runs the first of every `stride`, and `make nightly` the others."""
    return [pytest.param(case, marks=_nightly_unless(index % stride == 0)) for index, case in enumerate(cases)]


def checkerboard_product(*choices: Iterable[Any]) -> list[Any]:
    """Every combination; `make test` runs every second, as on a chessboard, and `make nightly` the others.

    Where each choice has two or more values, every pair of values of two choices occurs on both colours, so that no pair
    waits for the night.
    """
    return _product(choices, lambda indices: sum(indices) % 2 == 0)


def sparse_product(*choices: Iterable[Any]) -> list[Any]:
    """Every combination; `make test` runs a sixth, in which every value of every choice occurs, and `make nightly` the others.

    For laws that take seconds per case and whose pairs of values are covered elsewhere.
    """
    return _product(choices, lambda indices: sum(indices) % 2 == 0 and sum(indices[:2]) % 3 == 0)


def _product(choices: Sequence[Iterable[Any]], selects: Any) -> list[Any]:
    indexed = product(*(list(enumerate(choice)) for choice in choices))
    return [
        pytest.param(*(value for _, value in case), marks=_nightly_unless(selects([index for index, _ in case])))
        for case in indexed
    ]


def _nightly_unless(selected: bool) -> list[pytest.MarkDecorator]:
    return [] if selected else [pytest.mark.nightly]
