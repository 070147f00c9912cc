"""Networks that are trained on many short sequences of symbols."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forecaster.data.symbols import (
    build_symbol_panel,
    decode_symbols,
    learn_vocabulary,
    recode_panel,
)
from forecaster.errors import BadSpec, NoData
from forecaster.prediction.symbol_sequences import continue_sequence, predict_next_symbols, score_sequences
from forecaster.spec import NetworkSpec, TrainingSpec
from forecaster.training.fit import FitResult, fit
from forecaster.training.sequences import build_sequence_spec, fit_sequences
from forecaster.training.vocabulary import settle_vocabulary
from tests.factories import make_panel, make_spec, make_wave

pytestmark = pytest.mark.integration

LONGEST = 6


def make_word(count: int) -> str:
    """A word of the language that counts: as many b as a, and an end."""
    return "a" * count + "X" + "b" * count + "T"


WORDS = [make_word(count) for count in range(1, LONGEST + 1)]


@pytest.fixture(scope="module")
def fitted() -> FitResult:
    training = TrainingSpec(steps=700, epoch_steps=100, batch=24, learning_rate=0.02, patience=5)
    spec = build_sequence_spec(WORDS, network=NetworkSpec(cell="lstm", hidden=12), training=training)
    return fit_sequences(WORDS, spec, validation=WORDS[1::2])


def test_a_network_learns_to_count(fitted: FitResult) -> None:
    scores = score_sequences(fitted.model, WORDS)
    symbols = sum(map(len, WORDS))
    assert scores.symbols == symbols
    # All that cannot be known is how many a a word has: one of six equally probable words.
    optimum = LONGEST * math.log(LONGEST) / symbols
    assert optimum <= scores.cross_entropy < 1.2 * optimum
    assert "".join(map(str, continue_sequence(fitted.model, "aaaaX", steps=5))) == "bbbbT"
    drawn = continue_sequence(fitted.model, steps=2 * LONGEST + 2, temperature=1.0, seed=4)
    assert "".join(map(str, drawn)).startswith(tuple(WORDS))


def test_validation_sequences_choose_the_epoch_and_give_the_scores(fitted: FitResult) -> None:
    scores = score_sequences(fitted.model, WORDS[1::2])
    assert fitted.scores["valid/cross_entropy"] == pytest.approx(scores.cross_entropy, rel=1e-4)
    assert fitted.scores["valid/perplexity"] == pytest.approx(scores.perplexity, rel=1e-4)
    assert fitted.scores["valid/accuracy"] == pytest.approx(scores.accuracy)
    assert fitted.best_steps > 100


def test_the_first_symbol_is_predicted_from_nothing(fitted: FitResult) -> None:
    [rows] = predict_next_symbols(fitted.model, ["aX"])
    assert rows.shape == (3, 4)
    assert fitted.model.spec.head.vocabulary[int(rows[0].argmax())] == "a"
    assert rows[0].max() > 0.95


def test_the_vocabulary_is_that_of_the_training_steps() -> None:
    panel = build_symbol_panel(["xyxyxyz", "xxyyxy?"])
    spec = make_spec(scaling="none", head={"kind": "symbols"}, horizon=1, training={"valid_windows": 1})
    settled, settled_spec = settle_vocabulary(panel, spec.model_copy(update={"min_history": 1}))
    assert settled_spec.head.vocabulary == ("x", "y")
    assert [decode_symbols(series.y, settled.vocabulary)[-1] for series in settled.series] == ["<unk>", "<unk>"]
    wider = recode_panel(settled, ("w", "y", "x"))
    np.testing.assert_array_equal(wider.series[0].y, [3, 2, 3, 2, 3, 2, 0])


def test_numbers_and_symbols_are_not_mixed_up() -> None:
    with pytest.raises(BadSpec, match="Expected symbols for a symbols head; series 'series_0' has numbers"):
        fit(make_panel(make_wave(40)), make_spec(scaling="none", head={"kind": "symbols"}))
    with pytest.raises(BadSpec, match="Expected numbers for a point head; series 'sequence_0' has symbols"):
        fit(build_symbol_panel(["abababab" * 5]), make_spec(horizon=1))


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ([f"s{number}" for number in range(4097)], "at most 4096 different symbols in the training data; found 4097"),
        (["a" * 201], "symbols of at most 200 characters; found one of 201"),
    ],
)
def test_a_vocabulary_has_limits(symbols: list[str], message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        learn_vocabulary(build_symbol_panel([symbols]))


def test_a_validation_without_a_known_symbol_is_refused() -> None:
    spec = make_spec(scaling="none", head={"kind": "symbols"}, horizon=1, min_history=1)
    with pytest.raises(NoData, match="none of them occurs in the training data"):
        fit(build_symbol_panel(["abababT", "bbababT"]), spec)
