"""What follows from a specification alone is what the network that was built has."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from forecaster.model.heads import create_head
from forecaster.spec import HeadKind, HeadSpec, Layout
from tests.factories import make_network, make_spec


@pytest.mark.parametrize("kind", get_args(HeadKind))
def test_a_head_uses_the_noise_declared_by_its_spec(kind: HeadKind) -> None:
    assert HeadSpec(kind=kind).uniforms_per_draw == create_head(HeadSpec(kind=kind)).uniforms_per_draw


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
def test_the_layout_follows_from_base_lags_and_segment(
    fields: dict[str, Any], lead: int, block: int, shown: int
) -> None:
    found = Layout.from_spec(make_spec(**fields), season=4)
    assert (found.pre_context, found.block, found.window_length(30)) == (lead, block, shown)
    assert make_network(make_spec(**fields)).layout == found
