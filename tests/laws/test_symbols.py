"""Laws of networks of symbols, on random weights: prefix, company, padding, missing and unknown symbols, draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from forecaster.data.symbols import build_symbol_panel, encode_symbols
from forecaster.errors import BadSpec
from forecaster.model.heads import Symbols
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from forecaster.prediction.symbol_sequences import predict_next_symbols, score_sequences
from forecaster.series import Series
from tests.factories import make_fitted_model, make_spec

pytestmark = pytest.mark.unit

VOCABULARY = ("a", "b", "c", "d")
SEQUENCES = ["abcdabca", "dd", "cab?ba", "abcda"]


@pytest.fixture(scope="module", params=[{}, {"lags": (3,), "reads": "history"}, {"cell": "lstm", "layers": 2}])
def model(request: pytest.FixtureRequest) -> FittedModel:
    fields = {"scaling": "none", "head": {"kind": "symbols", "vocabulary": VOCABULARY}, "min_history": 1}
    return replace(make_fitted_model(make_spec(**fields, **request.param)), freq="1")


def make_history(symbols: list[str | None] | str, *, name: str = "s") -> Series:
    return Series(name, 0, "1", encode_symbols(symbols, VOCABULARY))


def test_each_row_of_a_sequence_is_the_prediction_from_its_prefix(model: FittedModel) -> None:
    predictor, rows = Predictor(model), predict_next_symbols(model, SEQUENCES)
    for sequence, probabilities in zip(SEQUENCES, rows, strict=True):
        assert np.isnan(probabilities[0]).all()  # this model was not trained to start from nothing
        for length in range(1, len(sequence) + 1):
            [expected] = predictor.predict_probabilities([make_history(sequence[:length])])
            np.testing.assert_allclose(probabilities[length], expected[0], atol=1e-6)


def test_a_sequence_is_predicted_alike_alone_and_in_a_batch(model: FittedModel) -> None:
    for sequence, batched in zip(SEQUENCES, predict_next_symbols(model, SEQUENCES), strict=True):
        np.testing.assert_allclose(predict_next_symbols(model, [sequence])[0], batched, atol=1e-6)


def test_scores_are_those_of_the_rows(model: FittedModel) -> None:
    scores = score_sequences(model, SEQUENCES)
    losses, hits = [], []
    for sequence, rows in zip(SEQUENCES, predict_next_symbols(model, SEQUENCES), strict=True):
        for symbol, row in list(zip(sequence, rows, strict=False))[1:]:
            hits.append(VOCABULARY[int(row.argmax())] == symbol)
            losses += [-np.log(row[VOCABULARY.index(symbol)])] if symbol in VOCABULARY else []
    assert scores.cross_entropy == pytest.approx(np.mean(losses))
    assert scores.perplexity == pytest.approx(np.exp(np.mean(losses)))
    assert scores.accuracy == pytest.approx(np.mean(hits))
    assert (scores.symbols, scores.unknown) == (len(hits), 1)


def test_a_missing_symbol_differs_from_an_unknown_one_and_neither_is_predicted(model: FittedModel) -> None:
    predictor = Predictor(model)
    missing, unknown = (make_history([*"abca", symbol, "b"]) for symbol in (None, "?"))
    probabilities = predictor.predict_probabilities([missing, unknown], 3)
    assert not np.allclose(*probabilities)
    np.testing.assert_allclose([rows.sum(axis=1) for rows in probabilities], 1.0)
    forecasts = predictor.forecast_batch([missing, unknown], 3)
    assert forecasts[0].warnings == ()
    assert "1 of 6 symbols of the history are not in the vocabulary" in forecasts[1].warnings[0]
    for forecast, rows in zip(forecasts, probabilities, strict=True):
        np.testing.assert_array_equal(forecast.mean, 1 + rows.argmax(axis=1))


def test_a_history_of_one_symbol_is_left_to_the_network(model: FittedModel) -> None:
    history, predictor = make_history("aaaaaaa"), Predictor(model)
    [probabilities] = predictor.predict_probabilities([history], 4)
    np.testing.assert_array_equal(predictor.forecast(history, 4).mean, 1 + probabilities.argmax(axis=1))


def test_draws_follow_the_probabilities_and_the_temperature(model: FittedModel) -> None:
    predictor, history = Predictor(model), make_history("abcd")
    [probabilities] = predictor.predict_probabilities([history])
    for temperature in (1.0, 0.4):
        [paths] = predictor.sample_batch([history], 1, paths=4000, seed=1, temperature=temperature)
        weights = probabilities[0] ** (1 / temperature)
        shares = np.bincount(paths[:, 0].astype(int), minlength=5) / 4000
        np.testing.assert_allclose(shares, [0.0, *(weights / weights.sum())], atol=0.03)
    [cold] = predictor.sample_batch([history], 6, paths=3, seed=2, temperature=1e-6)
    np.testing.assert_array_equal(cold, np.tile(predictor.forecast(history, 6).mean, (3, 1)))
    [alone], [_, in_company] = (
        predictor.sample_batch(series, 5, paths=2, seed=3)
        for series in ([history], [make_history("bb", name="t"), history])
    )
    np.testing.assert_array_equal(alone, in_company)


def test_a_number_that_is_no_code_is_refused(model: FittedModel) -> None:
    for value in (1.5, 5.0, -1.0):
        error = Predictor(model).find_error(Series("s", 0, "1", np.array([1.0, value])), 1)
        assert error is not None
        assert "Expected symbols, as codes from 0 to 4" in error.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"scaling": "standard"},
            "scaling: a symbols head takes none only, because codes have no scale; found standard",
        ),
        ({"base": "last"}, "a symbols head takes base zero only"),
        ({"transform": "log"}, "transform"),
        ({"channels": ("load",)}, "channels: a symbols head takes none only"),
        ({"members": 3}, "members: a symbols head takes 1 only, because symbols have no median"),
        ({"blend": ("auto_ets",)}, "blend"),
        ({"lower": 0.0}, "lower: a symbols head takes none only"),
        ({"training": {"unroll": 2}}, "training.unroll: a symbols head takes 0 only"),
        ({"training": {"weighting": "seasonal_error"}}, "training.weighting"),
        ({"head": {"kind": "symbols", "vocabulary": ("a", "b", "a")}}, "every symbol once, found 'a' twice"),
        ({"head": {"kind": "symbols", "vocabulary": ("<unk>",)}}, "expected symbols other than '<unk>'"),
        ({"head": {"kind": "gaussian", "vocabulary": ("a",)}}, "vocabulary belongs to a symbols head"),
    ],
)
def test_a_specification_of_symbols_refuses_what_needs_numbers(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        make_spec(**{"scaling": "none", "head": {"kind": "symbols"}, **fields})  # type: ignore[arg-type]


def test_an_unknown_symbol_has_no_input_of_its_own() -> None:
    [series] = build_symbol_panel(["ab?"], vocabulary="ab", start_marker=True).series
    np.testing.assert_array_equal(series.y, [0, 1, 2, 0])
    head = Symbols(2)
    expanded = head.expand(torch.from_numpy(series.y).float())
    np.testing.assert_array_equal(expanded, [[0, 0], [1, 0], [0, 1], [0, 0]])
