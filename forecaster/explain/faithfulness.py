"""Measures how faithful attributions are: replaces the values they rank highest, and forecasts again with the serving engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from forecaster.engines.engine import Engine, RolloutInput
from forecaster.explain.explained_input import ExplainedInput
from forecaster.shapes import Bool, Float64, Int

SHARES = tuple(np.arange(1, 11) / 20)  # of the features that are replaced: 5 %, 10 %, ... 50 %
OURS = "integrated_gradients"
METHOD_LABELS = {
    OURS: "integrated gradients",
    "input_x_gradient": "input x gradient",
    "occlusion": "occlusion",
    "random": "random orders",
}
"""The compared rankings, and their names for readers."""
MAX_FEATURES = 512  # beyond it, consecutive steps of a column form one feature
RANDOM_ORDERS = 8
_MAX_VALUES_AT_ONCE = 1 << 21

MeanForecast = Callable[[Float64[np.ndarray, "row entry"]], Float64[np.ndarray, "row"]]
"""The mean forecast over the horizon, of each row of entries."""


class Features(NamedTuple):
    """What is replaced at once: by default the value of one column at one step.

    Attributes:
        of_entry: Feature of each entry; -1 for an entry that equals its replacement or is missing.
        num_features: Number of features.
        block: Number of consecutive steps of a feature.
    """

    of_entry: Int[np.ndarray, "entry"]
    num_features: int
    block: int

    @classmethod
    def from_input(cls, explained: ExplainedInput) -> Features:
        """Returns the features of an input, at most MAX_FEATURES."""
        differs = np.nan_to_num(explained.entries - explained.reference) != 0
        last_step = explained.steps + explained.horizon - 1
        block = 1
        while True:
            keys = np.full(len(explained.entries), -1)
            for index, column in enumerate(explained.columns):
                from_end = (column.steps.max() - column.steps) // block
                keys[column.entries] = (index + 1) * (last_step + 1) - 1 - from_end
            keys[~differs] = -1
            unique = np.unique(keys[differs])
            if len(unique) <= MAX_FEATURES or block > last_step:
                return cls(np.where(differs, np.searchsorted(unique, keys), -1), len(unique), block)
            block += 1

    def sum_entries(self, contributions: Float64[np.ndarray, "entry"]) -> Float64[np.ndarray, "feature"]:
        """Returns the sum of the contributions of each feature's entries."""
        used = self.of_entry >= 0
        return np.bincount(self.of_entry[used], weights=contributions[used], minlength=self.num_features)


class Faithfulness(NamedTuple):
    """The area over the perturbation curve of four rankings of the same features; the larger, the more faithful.

    Attributes:
        aopcr: By method, in units of the data: `integrated_gradients`, `input_x_gradient`, `occlusion`, `random`.
        shares: Shares of the features that are replaced.
        drops: By method, the fall of the mean forecast when the features that raise it most are replaced, for each share.
        rises: The same for its rise when the features that lower it most are replaced.
        num_features: Number of features.
        block: Number of consecutive steps that are one feature.
    """

    aopcr: Mapping[str, float]
    shares: Float64[np.ndarray, "share"]
    drops: Mapping[str, Float64[np.ndarray, "share"]]
    rises: Mapping[str, Float64[np.ndarray, "share"]]
    num_features: int
    block: int

    def describe(self) -> list[str]:
        """Returns one line for each ranking: its area, and its share of the largest one."""
        largest = max(self.aopcr.values())
        lines = []
        for name, label in METHOD_LABELS.items():
            share = f" ({self.aopcr[name] / largest:.0%} of the largest)" if largest > 0 else ""
            lines.append(f"AOPCR {self.aopcr[name]:.4g} of {label}{share}")
        return lines


def measure_faithfulness(
    explained: ExplainedInput,
    predict_mean: MeanForecast,
    *,
    contributions: Float64[np.ndarray, "entry"],
    final_gradient: Float64[np.ndarray, "entry"],
    seed: int = 0,
) -> Faithfulness | None:
    """Measures the area over the perturbation curve for regression (AOPCR) of a ranking; None if no feature can be replaced.

    AOPCR (Ozyegen, Ilic and Cevik 2022, after AOPC of Samek et al. 2017) is the mean over k = 1 ... K of F(x) - F(x without k),
    where `x without k` has the k features with the largest contributions replaced. F is the mean forecast over the horizon here,
    so that this is the mean of their AOPCR over the steps ahead. Contributions have signs, so the same is done from the other
    end: the k features with the smallest contributions, and F(x without k) - F(x). AOPCR is the mean of both. k runs over the
    shares of SHARES, rounded up. Of a forecast that is a sum of one term per feature, no order has a larger AOPCR than that of
    the terms, and the expectation over random orders is 0.

    A value is replaced by its reference (`ExplainedInput.from_input`). The compared rankings are the gradient at x times
    (x - reference); the occlusion of single features, F(x) - F(x without i); and RANDOM_ORDERS random orders, of which the mean
    is reported.

    Args:
        explained: The input.
        predict_mean: The forecast.
        contributions: Integrated gradients of the entries.
        final_gradient: Gradient at the input.
        seed: Of the random orders.
    """
    features = Features.from_input(explained)
    if features.num_features == 0:
        return None
    difference = np.nan_to_num(explained.entries - explained.reference)
    single = np.eye(features.num_features, dtype=bool)
    original, *alone = _predict_replaced(
        explained, features, predict_mean, np.concatenate([np.zeros((1, features.num_features), dtype=bool), single])
    )
    rng = np.random.default_rng(seed)
    scores = {
        OURS: features.sum_entries(contributions)[None],
        "input_x_gradient": features.sum_entries(final_gradient * difference)[None],
        "occlusion": (original - np.array(alone))[None],
        "random": rng.permuted(np.tile(np.arange(float(features.num_features)), (RANDOM_ORDERS, 1)), axis=1),
    }
    rows = np.concatenate(list(scores.values()))
    order = np.argsort(-rows, axis=1, kind="stable")
    masks = np.stack([_first_features(order), _first_features(order[:, ::-1])])
    flat = _predict_replaced(explained, features, predict_mean, masks.reshape(-1, features.num_features))
    lowered, raised = flat.reshape(masks.shape[:-1])
    methods = np.repeat(list(scores), [len(part) for part in scores.values()])
    drops = {name: (original - lowered[methods == name]).mean(axis=0) for name in scores}
    rises = {name: (raised[methods == name] - original).mean(axis=0) for name in scores}
    aopcr = {name: float(np.nanmean(np.concatenate([drops[name], rises[name]]))) for name in scores}
    return Faithfulness(aopcr, np.array(SHARES), drops, rises, features.num_features, features.block)


def predict_with_engine(engine: Engine, explained: ExplainedInput) -> MeanForecast:
    """Returns the forecast of entries on an engine."""

    def predict(entries: Float64[np.ndarray, "row entry"]) -> Float64[np.ndarray, "row"]:
        rows_at_once = max(1, _MAX_VALUES_AT_ONCE // explained.inputs.values.shape[1])
        means = []
        for first in range(0, len(entries), rows_at_once):
            window, future = explained.fill(torch.from_numpy(entries[first : first + rows_at_once]))
            arrays = (None if tensor is None else tensor.contiguous().numpy() for tensor in (*window, future))
            means.append(engine.roll_out(RolloutInput(*arrays), horizon=explained.horizon).mean(axis=1))  # type: ignore[arg-type]
        return np.concatenate(means)

    return predict


def _first_features(order: Int[np.ndarray, "ranking feature"]) -> Bool[np.ndarray, "ranking share feature"]:
    """Returns which features are the first ones of each order, for each share."""
    rank = np.argsort(order, axis=1)
    counts = np.ceil(np.array(SHARES) * order.shape[1])
    return np.asarray(rank[:, None] < counts[:, None])


def _predict_replaced(
    explained: ExplainedInput,
    features: Features,
    predict_mean: MeanForecast,
    masks: Bool[np.ndarray, "row feature"],
) -> Float64[np.ndarray, "row"]:
    """Forecasts the input with the masked features replaced, one row per mask."""
    by_entry = np.concatenate([masks, np.zeros((len(masks), 1), dtype=bool)], axis=1)[:, features.of_entry]
    return predict_mean(np.where(by_entry, explained.reference, explained.entries))
