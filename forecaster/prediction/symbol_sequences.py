"""What a network of symbols says of whole sequences: the probabilities of every next symbol, scores, and continuations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from forecaster.data.symbols import START_MARKER_FACT, build_symbol_panel, decode_symbols
from forecaster.data.windows import Window
from forecaster.errors import BadSpec, ForecasterError
from forecaster.metrics import accuracy, cross_entropy, nanmean, perplexity
from forecaster.model.heads import Symbols
from forecaster.model.rollout import run_over_window, start_rollout
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from forecaster.prediction.rollout_input import RolloutInputBuilder
from forecaster.series import Panel, Series
from forecaster.shapes import Float64

_MAX_BATCH_VALUES = 1 << 22  # steps of all padded sequences times symbols, in one pass


class SymbolScores(NamedTuple):
    """How well the symbols of sequences are predicted, each from those before it.

    Attributes:
        cross_entropy: Mean over the known symbols, in nats.
        perplexity: Its exponential.
        accuracy: Share of the symbols that were the most probable ones.
        symbols: The number of symbols that were predicted.
        unknown: Those of them that are not in the vocabulary; they count as wrong, and not in the cross-entropy.
    """

    cross_entropy: float
    perplexity: float
    accuracy: float
    symbols: int
    unknown: int


def predict_next_symbols(
    model: FittedModel, sequences: Sequence[Sequence[str | None]]
) -> list[Float64[np.ndarray, "step symbol"]]:
    """Returns the probabilities of the symbol after every step of each sequence, in the order of the vocabulary.

    Row `t` is the prediction given the first `t` symbols, also those beyond the context of the network. Of a model of
    `fit_sequences` row 0 is the prediction from nothing and there is one row more than symbols; of other models row 0 is NaN.
    Raises BadSpec for a model of numbers, and for one that reads or predicts several symbols at once.
    """
    panel = _read_sequences(model, sequences)
    offset = 1 - _has_start_marker(model)
    results = []
    for item, probabilities in zip(panel.series, _predict_each_step(model, panel.series), strict=True):
        padding = np.full((offset, probabilities.shape[1]), np.nan)
        results.append(np.concatenate([padding, probabilities[: len(item)]]))
    return results


def score_sequences(model: FittedModel, sequences: Sequence[Sequence[str | None]]) -> SymbolScores:
    """Scores the predictions of every symbol of some sequences from those before it; raises as `predict_next_symbols`."""
    panel, offset = _read_sequences(model, sequences), 1 - _has_start_marker(model)
    actuals = [series.y[1 - offset :] for series in panel.series]
    predicted = [rows[: len(y)] for rows, y in zip(predict_next_symbols(model, sequences), actuals, strict=True)]
    actual, probabilities = np.concatenate(actuals), np.concatenate(predicted)
    is_scored = ~np.isnan(actual) & ~np.isnan(probabilities).any(axis=1)
    actual, probabilities = actual[is_scored], probabilities[is_scored]
    mean = float(nanmean(cross_entropy(actual, probabilities)))
    best = 1.0 + probabilities.argmax(axis=1)
    return SymbolScores(
        mean, float(perplexity(mean)), float(accuracy(actual, best)), len(actual), int((actual == 0).sum())
    )


def continue_sequence(
    model: FittedModel,
    sequence: Sequence[str | None] = (),
    *,
    steps: int,
    temperature: float | None = None,
    seed: int = 0,
) -> list[str | None]:
    """Returns the next symbols of a sequence, also of an empty one where the model was trained by `fit_sequences`.

    Args:
        model: A model of symbols.
        sequence: The symbols so far.
        steps: The number of symbols to predict.
        temperature: Without one, the most probable symbol of each step; with one, a draw.
        seed: Seed of the draws.
    Raises:
        InputError: A subclass of it, for a sequence that is too short.
    """
    [series] = _read_sequences(model, [sequence]).series
    predictor = Predictor(model)
    if temperature is None:
        codes = predictor.forecast(series, steps).mean
    else:
        [outcome] = predictor.sample_batch([series], steps, paths=1, seed=seed, temperature=temperature)
        if isinstance(outcome, ForecasterError):
            raise outcome
        codes = outcome[0]
    return decode_symbols(codes, model.spec.head.vocabulary)


def _has_start_marker(model: FittedModel) -> bool:
    return bool(model.facts.get(START_MARKER_FACT))


def _read_sequences(model: FittedModel, sequences: Sequence[Sequence[str | None]]) -> Panel:
    spec = model.spec
    if not spec.head.is_symbolic:
        raise BadSpec(
            f"Expected a model of symbols; {spec.name!r} has a {spec.head.kind} head. Fit one with `head: {{kind: symbols}}`.",
            where="head.kind",
        )
    panel = build_symbol_panel(sequences, vocabulary=spec.head.vocabulary, start_marker=_has_start_marker(model))
    return replace(panel, series=[replace(series, freq=model.freq) for series in panel.series], freq=model.freq)


def _predict_each_step(model: FittedModel, series: Sequence[Series]) -> Iterator[Float64[np.ndarray, "step symbol"]]:
    """Yields the probabilities of the symbol after each step, by one pass over batches of sequences."""
    network, spec = model.network, model.spec
    if network.block != 1 or not isinstance(network.head, Symbols):
        raise BadSpec(
            f"Expected a model that predicts one symbol at a time; {spec.name!r} has segment {spec.segment} and decoder "
            f"{spec.decoder}. Fit one with segment 1 and decoder rollout.",
            where="segment",
        )
    builder = RolloutInputBuilder(model)
    longest = max(map(len, series), default=1)
    rows_at_once = max(1, _MAX_BATCH_VALUES // (longest * network.head.size))
    for first in range(0, len(series), rows_at_once):
        batch = series[first : first + rows_at_once]
        # Padded on the left, so that the first step of each sequence is the first that the network reads.
        inputs = builder.build(batch, 1, context=network.pre_context + longest)
        window = Window(
            torch.from_numpy(inputs.values),
            None if inputs.covariates is None else torch.from_numpy(inputs.covariates),
            None if inputs.static is None else torch.from_numpy(inputs.static),
        )
        with torch.inference_mode():
            state, remaining = start_rollout(network, window)
            outputs, filled_values, _, _ = run_over_window(network, remaining, state)
            recent = filled_values.unfold(1, network.lookback, 1)[:, 1:]
            covariates = None
            if remaining.covariates is not None:
                future = torch.from_numpy(inputs.future_covariates)
                covariates = torch.cat([remaining.covariates[:, 1:], future[:, :1]], dim=1)[:, :, None]
            params = network.decode(outputs, recent, covariates)
            probabilities = network.head.probabilities(params[:, :, 0].double()).numpy()
        for item, rows in zip(batch, probabilities, strict=True):
            yield rows[len(rows) - len(item) :]
