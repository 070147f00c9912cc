"""Backtests of symbols at rolling origins: the next symbol given all before it, and the rollout of the most probable symbols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.lib.stride_tricks import sliding_window_view

from forecaster.data.split import hold_out, rolling_origins
from forecaster.data.symbols import FREQUENCIES, MARKOV, decode_symbols
from forecaster.evaluation.validation import build_validation_batches, predict_both_ways
from forecaster.frequency.timestamps import Timestamp, next_timestamps, timestamp_at
from forecaster.metrics import accuracy, nanmean, perplexity
from forecaster.model.heads import Symbols
from forecaster.prediction.fitted_model import FittedModel
from forecaster.series import Panel, Series
from forecaster.shapes import Float64, Int

SymbolArray = Float64[np.ndarray, "series window horizon"]


class SymbolPredictions(NamedTuple):
    """What a forecaster predicts at all origins, as codes; NaN where nothing was observed.

    Attributes:
        rollout: The most probable symbols, each given those predicted before it.
        next_symbol: The most probable symbol given all actuals before it.
        probability: The probability of the actual symbol, given all actuals before it; NaN for an unknown one.
    """

    rollout: SymbolArray
    next_symbol: SymbolArray
    probability: SymbolArray


@dataclass(frozen=True, eq=False)
class SymbolBacktest:
    """Predictions and actuals of all origins.

    Attributes:
        series: The whole series that were cut.
        cutoffs: Timestamp of the last step before each window; a list of windows for each series.
        actual: The codes of the actual symbols; NaN where nothing was observed, 0 where the symbol is unknown.
        predictions: By forecaster name.
        vocabulary: The symbols of the codes.
        excluded_ids: Ids of the series that were too short.
    """

    series: Sequence[Series]
    cutoffs: Sequence[Sequence[Timestamp]]
    actual: SymbolArray
    predictions: Mapping[str, SymbolPredictions]
    vocabulary: tuple[str, ...]
    excluded_ids: Sequence[str] = ()

    def scores(self, name: str, *, windows: np.ndarray | None = None) -> dict[str, float]:
        """Returns accuracy, cross-entropy (nats) and perplexity of the next symbol, and the accuracy of the rollout.

        An unknown actual counts as wrong, and not in the cross-entropy. `windows` selects some (series by window).
        """
        predicted = self.predictions[name]
        actual = self.actual if windows is None else np.where(windows[..., None], self.actual, np.nan)
        flat = actual.reshape(-1)
        with np.errstate(divide="ignore"):
            losses = -np.log(np.where(np.isnan(actual), np.nan, predicted.probability))
        mean = float(nanmean(losses))
        return {
            "accuracy": float(accuracy(flat, predicted.next_symbol.reshape(-1))),
            "cross_entropy": mean,
            "perplexity": float(perplexity(mean)),
            "rollout_accuracy": float(accuracy(flat, predicted.rollout.reshape(-1))),
        }

    def to_frame(self, name: str) -> pd.DataFrame:
        """Returns one row per series, cutoff and step: `unique_id, ds, cutoff, y`, the forecast symbol, and `name-p`.

        The last one is the probability of the actual symbol, given all before it.
        """
        _, windows, horizon = self.actual.shape
        timestamps = [
            next_timestamps(cutoff, freq=item.freq, steps=horizon)
            for item, cutoffs in zip(self.series, self.cutoffs, strict=True)
            for cutoff in cutoffs
        ]
        predicted = self.predictions[name]
        return pd.DataFrame(
            {
                "unique_id": np.repeat([item.id for item in self.series], windows * horizon),
                "ds": timestamps[0].append(timestamps[1:]),
                "cutoff": np.repeat([cutoff for cutoffs in self.cutoffs for cutoff in cutoffs], horizon),
                "y": pd.Series(decode_symbols(self.actual.ravel(), self.vocabulary), dtype=object),
                name: pd.Series(decode_symbols(predicted.rollout.ravel(), self.vocabulary), dtype=object),
                f"{name}-p": predicted.probability.ravel(),
            }
        )


def backtest_symbols(
    panel: Panel,
    model: FittedModel,
    *,
    name: str,
    horizon: int,
    windows: int,
    min_history: int = 1,
    stride: int | None = None,
) -> SymbolBacktest:
    """Backtests a model of symbols beside frequencies and a Markov chain, which are counted before the first origins.

    Args:
        panel: Whole series in the codes of the model; no forecaster sees what lies after the step that it predicts.
        model: The model.
        name: Its name in the result.
        horizon: Steps of a window.
        windows: Origins of each series.
        min_history: Steps a series must have before its first origin; shorter series are excluded.
        stride: Steps between origins; by default the horizon.
    Raises:
        HistoryTooShort: No series is long enough.
    """
    offsets = rolling_origins(windows=windows, horizon=horizon, stride=stride)
    split = hold_out(panel, max(offsets), min_history=min_history)
    series, num_symbols = split.full.series, len(panel.vocabulary)
    actual = np.stack(
        [sliding_window_view(item.y[len(item) - max(offsets) :], horizon)[:: stride or horizon] for item in series]
    )
    previous = np.array([[_codes_before(item.y, len(item) - offset, horizon) for offset in offsets] for item in series])
    transitions = count_transitions([item.y for item in split.history.series], num_symbols=num_symbols)
    tables = {FREQUENCIES: np.tile(transitions[:1], (num_symbols + 1, 1)), MARKOV: transitions}
    predictions = {name: _predict_by_network(model, series, actual, windows=windows, stride=stride)}
    predictions |= {baseline: _predict_by_table(table, previous, actual) for baseline, table in tables.items()}
    return SymbolBacktest(
        series,
        [[timestamp_at(item.timestamps, len(item) - offset - 1) for offset in offsets] for item in series],
        actual,
        predictions,
        panel.vocabulary,
        split.excluded_ids,
    )


def count_transitions(
    histories: Sequence[Float64[np.ndarray, "_"]], *, num_symbols: int
) -> Float64[np.ndarray, "previous symbol"]:
    """Returns the probabilities of each symbol after each code; row 0, after an unknown symbol, has those of all steps.

    Missing steps are passed over. One is added to every count (Laplace's rule of succession).
    """
    counts = np.ones((num_symbols + 1, num_symbols))
    for y in histories:
        codes = y[~np.isnan(y)].astype(np.int64)
        before, after = codes[:-1], codes[1:]
        is_pair = (before > 0) & (after > 0)
        np.add.at(counts, (before[is_pair], after[is_pair] - 1), 1.0)
        np.add.at(counts[0], codes[codes > 0] - 1, 1.0)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def _codes_before(y: Float64[np.ndarray, "_"], cutoff: int, horizon: int) -> Int[np.ndarray, "horizon"]:
    """Returns the latest observed code before each step of a window; 0 if there is none."""
    observed = ~np.isnan(y)
    latest = np.maximum.accumulate(np.where(observed, np.arange(len(y)), -1))[cutoff - 1 : cutoff + horizon - 1]
    return np.where(latest < 0, 0, np.nan_to_num(y)[latest]).astype(np.int64)


def _predict_by_table(
    table: Float64[np.ndarray, "previous symbol"],
    previous: Int[np.ndarray, "series window horizon"],
    actual: SymbolArray,
) -> SymbolPredictions:
    best = 1 + table.argmax(axis=1)
    rollout, code = np.empty(actual.shape), previous[..., 0]
    for step in range(actual.shape[2]):
        code = best[code]
        rollout[..., step] = code
    is_known = actual > 0
    index = np.where(is_known, actual, 1).astype(np.int64) - 1
    return SymbolPredictions(
        rollout, best[previous].astype(np.float64), np.where(is_known, table[previous, index], np.nan)
    )


def _predict_by_network(
    model: FittedModel, series: Sequence[Series], actual: SymbolArray, *, windows: int, stride: int | None
) -> SymbolPredictions:
    network, horizon = model.network, actual.shape[2]
    assert isinstance(network.head, Symbols), "the network predicts symbols"
    batches = build_validation_batches(
        series,
        context=network.window_length(max(map(len, series))),
        horizon=horizon,
        windows=windows,
        stride=stride,
        season=model.season,
        encoding=model.encoding,
        num_symbols=network.num_symbols,
    )
    parts: list[list[np.ndarray]] = [[], [], []]
    with torch.inference_mode():
        for batch in batches:
            rolled, params, _, _ = predict_both_ways(network, batch.example)
            future = batch.example.future
            loss = network.head.loss(params.double(), future.nan_to_num(0.0))
            probability = (-loss).exp().masked_fill(~network.is_scored(future), torch.nan)
            for part, tensor in zip(parts, (rolled, network.head.mean(params).double(), probability), strict=True):
                part.append(tensor.numpy())
    is_observed = ~np.isnan(actual).all(axis=2)  # of other windows there is no batch
    results = []
    for part in parts:
        values = np.full(actual.shape, np.nan)
        if part:
            values[is_observed] = np.concatenate(part)
        results.append(values)
    return SymbolPredictions(*results)
