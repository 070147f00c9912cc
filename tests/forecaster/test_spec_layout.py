"""Tests that the layout derived from a specification equals that of the network built from it."""

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
    ("fields", "pre_context", "block", "window_length"),
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
    fields: dict[str, Any], pre_context: int, block: int, window_length: int
) -> None:
    layout = Layout.from_spec(make_spec(**fields), season=4)
    assert (layout.pre_context, layout.block, layout.window_length(30)) == (pre_context, block, window_length)
    assert make_network(make_spec(**fields)).layout == layout
