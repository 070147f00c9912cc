"""Faithfulness: exact areas of a linear forecast, whose best order is known, and of a model."""

from __future__ import annotations

import numpy as np
import pytest

from forecaster.engines.engine import RolloutInput
from forecaster.explain import faithfulness as faithfulness_module
from forecaster.explain.attribution import explain
from forecaster.explain.explained_input import ExplainedInput
from forecaster.explain.faithfulness import Faithfulness, Features, measure_faithfulness
from forecaster.prediction.predictor import Predictor
from tests.factories import make_fitted_model, make_series, make_spec, make_wave

WEIGHTS = np.random.default_rng(0).normal(size=40)


def explain_values(values: np.ndarray) -> ExplainedInput:
    return ExplainedInput.from_input(RolloutInput(values[None]), steps=len(values), horizon=3)


def measure_linear(explained: ExplainedInput, contributions: np.ndarray) -> Faithfulness:
    result = measure_faithfulness(
        explained, lambda entries: entries @ WEIGHTS, contributions=contributions, final_gradient=WEIGHTS
    )
    assert result is not None
    return result


def test_of_a_linear_forecast_its_terms_have_the_largest_area_and_a_random_order_none() -> None:
    explained = explain_values(make_wave(40))
    terms = WEIGHTS * (explained.entries - explained.reference)
    result = measure_linear(explained, terms)
    counts = np.arange(2, 21, 2)  # 5 % to 50 % of 40 values
    drops, rises = np.sort(terms)[::-1].cumsum()[counts - 1], -np.sort(terms).cumsum()[counts - 1]
    np.testing.assert_allclose(result.drops["integrated_gradients"], drops)
    np.testing.assert_allclose(result.rises["integrated_gradients"], rises)
    best = np.mean([drops, rises])
    assert [result.aopcr[name] for name in ("integrated_gradients", "input_x_gradient", "occlusion")] == (
        pytest.approx([best] * 3)
    )
    assert abs(result.aopcr["random"]) < 0.3 * best, "eight random orders; the expectation is 0"
    for seed in range(5):
        order = np.random.default_rng(seed).normal(size=40)
        assert measure_linear(explained, order).aopcr["integrated_gradients"] < best
    worst = measure_linear(explained, -terms).aopcr["integrated_gradients"]
    assert worst < -0.5 * best


def test_missing_values_and_values_equal_to_the_reference_are_no_features() -> None:
    values = np.array([1.0, 3.0, np.nan, 2.0])  # the mean is 2
    features = Features.from_input(explain_values(values))
    assert (features.of_entry.tolist(), features.num_features, features.block) == ([0, 1, -1, -1], 2, 1)
    assert features.sum_entries(np.arange(4.0)).tolist() == [0.0, 1.0]


def test_many_values_are_replaced_in_blocks_that_end_with_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faithfulness_module, "MAX_FEATURES", 4)
    features = Features.from_input(explain_values(make_wave(10)))
    assert features.of_entry.tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert (features.num_features, features.block) == (4, 3)


def test_a_constant_history_has_no_faithfulness() -> None:
    explanation = explain(make_fitted_model(make_spec()), make_series(np.full(20, 3.0)), faithfulness=True)
    assert explanation.faithfulness is None
    assert (explanation.attribution == 0).all()


def test_faithfulness_is_measured_on_the_served_forecast() -> None:
    model, series = make_fitted_model(make_spec()), make_series(make_wave(16))
    result = explain(model, series, faithfulness=True).faithfulness
    assert result is not None
    assert result.num_features == 16
    assert result.aopcr["integrated_gradients"] > 2 * abs(result.aopcr["random"])
    assert explain(model, series).faithfulness is None
    # The first share replaces one value: the one whose contribution is largest.
    attribution = explain(model, series).attribution
    y = series.y.copy()
    y[attribution.argmax()] = y.mean()
    change = Predictor(model).forecast(series, 5).mean.mean() - Predictor(model).forecast(make_series(y), 5).mean.mean()
    assert result.drops["integrated_gradients"][0] == pytest.approx(change, rel=1e-3)


def test_a_state_before_the_explained_steps_changes_no_area() -> None:
    series = make_series(make_wave(60))
    from_state = explain(make_fitted_model(make_spec(reads="history")), series, steps=20, faithfulness=True)
    assert from_state.faithfulness is not None
    whole = explain(make_fitted_model(make_spec(reads="history")), series, steps=60, faithfulness=True)
    assert whole.forecast == pytest.approx(from_state.forecast, rel=1e-5)
    assert from_state.faithfulness.aopcr["integrated_gradients"] > 0
