"""The variants of the pretrained network follow the amount of data: none trained, fine-tuned, fine-tuned for longer."""

from __future__ import annotations

import numpy as np
import pytest

from forecaster.series import Panel
from forecaster.training.base_variants import build_base_variants
from forecaster.training.presets import build_candidate_specs
from tests.factories import make_panel


def make_noise(series: int, steps: int) -> Panel:
    rng = np.random.default_rng(0)
    return make_panel(*(rng.standard_normal(steps) for _ in range(series)), freq="h")


@pytest.mark.parametrize(
    ("series", "steps", "expected"),
    [(10, 100, [0]), (60, 100, [0, 100]), (600, 100, [0, 100]), (20, 600, [0, 100]), (100, 600, [0, 100, 500])],
)
def test_more_data_have_more_variants_in_the_order_of_their_training(
    series: int, steps: int, expected: list[int]
) -> None:
    panel = make_noise(series, steps)
    preset = build_candidate_specs(panel, horizon=24, name="noise")[0]
    variants = build_base_variants(panel, preset)
    assert [variant.training.steps for variant in variants] == expected
    for variant in variants:
        assert variant.training.initial == "base"
        assert variant.training.valid_windows == preset.training.valid_windows
        assert variant.horizon == 24
