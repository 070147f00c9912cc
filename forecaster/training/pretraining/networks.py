"""Pretraining on synthetic series: one set of weights, trained on series of many seasons and lengths in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from forecaster.bundle.pretrained.specification import BASE_BLOCK, base_spec
from forecaster.data.windows import Example, Window
from forecaster.model.regressor import Regressor, build_network
from forecaster.shapes import Float, Int
from forecaster.training.loss import TrainingBatch, prepare_batches

FULL_STEPS: Mapping[int, int] = {1: 8, 4: 12, 5: 30, 7: 35}
"""By season: steps ahead that count fully in the loss; by default two seasons."""
FAR_WEIGHT = 0.2  # of the steps beyond, which few forecasts of such data need
MAX_TARGET_UNITS = 200.0  # targets that lie further off are left out


class BaseNetworks(nn.Module):
    """The networks of all seasons: they share every weight of the first."""

    def __init__(self, *, seed: int, fields: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._fields = dict(fields or {})
        self.shared = build_network(base_spec(12, horizon=BASE_BLOCK, **self._fields), seed=seed, season=12)
        self._by_season: dict[int, Regressor] = {12: self.shared}

    def for_season(self, season: int) -> Regressor:
        """Returns the network for a season."""
        if season not in self._by_season:
            network = build_network(base_spec(season, horizon=BASE_BLOCK, **self._fields), seed=0, season=season)
            for name, module in self.shared.named_children():
                setattr(network, name, module)
            network.places = self.shared.places
            self._by_season[season] = network
        return self._by_season[season]


class SyntheticSeries(NamedTuple):
    """Series of one season, and the segments after which the network predicts.

    Attributes:
        values: The series; their last steps, as many as the network predicts at once, are targets only.
        origins: Indices of segments.
    """

    values: Float[np.ndarray, "series step"]
    origins: Int[np.ndarray, "origin"]


def choose_origins(rng: np.random.Generator, *, segments: int, first: int, count: int) -> Int[np.ndarray, "origin"]:
    """Draws `count` segments from the `first` on, and adds the last one."""
    candidates = np.arange(min(first, segments - 1), segments)
    drawn = rng.choice(candidates, min(count, len(candidates)), replace=False)
    return np.unique(np.append(drawn, segments - 1))


@torch.no_grad()
def prepare_pretraining_batch(network: Regressor, series: SyntheticSeries) -> TrainingBatch:
    """Prepares one batch of synthetic series for `compute_loss`."""
    values = torch.from_numpy(series.values.astype(np.float64))
    history, future = values[:, : -network.block], values[:, -network.block :]
    network.origins = history.shape[1] // network.segment
    [batch] = prepare_batches(network, Example(Window(history), future, None), batch_size=len(values))
    origins = torch.from_numpy(series.origins)

    def select(part: Tensor) -> Tensor:
        return part.reshape(len(part), -1, network.block)[:, origins]

    target = select(batch.target)
    weight = (select(batch.weight) > 0) & (target.abs() <= MAX_TARGET_UNITS)
    ahead = torch.arange(network.block)
    counts = torch.where(ahead < FULL_STEPS.get(network.season, max(8, 2 * network.season)), 1.0, FAR_WEIGHT)
    weight = weight * counts
    return batch._replace(
        target=target.flatten(1), weight=(weight / weight.sum().clamp(min=1)).flatten(1), origins=origins
    )
