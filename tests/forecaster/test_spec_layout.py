"""What follows from a specification alone is what the network that was built has."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from forecaster.model.heads import head
from forecaster.spec import HeadKind, HeadSpec, Outline
from tests.factories import make_network, make_spec


@pytest.mark.parametrize("kind", get_args(HeadKind))
def test_a_head_takes_the_noise_that_its_specification_says(kind: HeadKind) -> None:
    assert HeadSpec(kind=kind).noise == head(HeadSpec(kind=kind)).noise


@pytest.mark.parametrize(
    ("fields", "lead", "block", "shown"),
    [
        ({}, 0, 1, 16),
        ({"base": "last"}, 0, 1, 16),
        ({"base": "seasonal_naive"}, 4, 1, 20),
        ({"base": "linear", "segment": 2}, 5, 2, 21),
        ({"lags": (7,), "decoder": "direct", "segment": 4}, 7, 8, 23),
        ({"reads": "history", "segment": 4}, 0, 4, 32),
    ],
)
def test_lead_block_and_what_is_shown_follow_from_base_lags_and_segment(
    fields: dict[str, Any], lead: int, block: int, shown: int
) -> None:
    found = Outline.of(make_spec(**fields), season=4)
    assert (found.lead, found.block, found.shown(30)) == (lead, block, shown)
    assert make_network(make_spec(**fields)).outline == found
