"""The model card describes the network and the decoder that the model has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from forecaster.prediction.bounds import NON_NEGATIVE_FACT
from forecaster.spec import NetworkSpec, TrainingSpec
from forecaster.training.model_card import render_model_card
from tests.factories import make_fitted_model, make_spec

FACTS: dict[str, Any] = {
    "data": "sales",
    "data_digest": "0" * 64,
    "series": 3,
    "left_out": 0,
    "steps": 10,
    "backtest": {},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"network": NetworkSpec(cell="gru", layers=1, hidden=4)},
            "A GRU network (1 layer of 4 units) that predicts 1 step at a time and reads its own predictions for the next (roll",
        ),
        (
            {"decoder": "direct", "horizon": 7, "network": NetworkSpec(cell="lstm", layers=2, hidden=4)},
            "An LSTM network (2 layers of 4 units) that predicts 7 steps at once (direct decoder) and repeats this for a longer",
        ),
        ({"training": TrainingSpec(unroll=5)}, "(rollout), in training too for up to 5 steps."),
        ({"members": 3}, "The forecast is the median of 3 such networks"),
    ],
)
def test_the_card_describes_the_decoder(changes: dict[str, Any], expected: str) -> None:
    model = replace(make_fitted_model(make_spec().model_copy(update=changes)), facts=FACTS)
    card = render_model_card(model)
    assert expected in card
    assert ("own predictions" in card) == (model.spec.decoder == "rollout")


@pytest.mark.parametrize(
    ("is_non_negative", "expected"),
    [(True, "Forecasts are not below zero, because no value of the training data is."), (False, "are not bounded.")],
)
def test_the_card_describes_the_bounds(is_non_negative: bool, expected: str) -> None:
    model = replace(make_fitted_model(make_spec()), facts={**FACTS, NON_NEGATIVE_FACT: is_non_negative})
    assert expected in render_model_card(model)
