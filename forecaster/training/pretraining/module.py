"""The Lightning module and the data of a pretraining, both determined by the seed and the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from forecaster.bundle.pretrained.specification import BASE_BLOCK, LONG_SEASONS, segment_of
from forecaster.shapes import Float
from forecaster.spec import NetworkSpec
from forecaster.synthetic.training_batches import draw_batch, draw_shape
from forecaster.training.lightning import pl
from forecaster.training.loss import TrainingBatch, compute_loss
from forecaster.training.pretraining.networks import (
    BaseNetworks,
    SyntheticSeries,
    choose_origins,
    prepare_pretraining_batch,
)

# Series of one shape are drawn at once, and batches of several shapes are mixed.
_SHAPES_PER_GROUP, _BATCHES_PER_SHAPE = 6, 3
_WARM_UP_STEPS = 100
_MIN_LEARNING_RATE = 0.02  # at the end, relative to the peak
_MAX_AVERAGE_DECAY = 0.999


class PretrainingOptions(BaseModel):
    """Everything that determines the weights of a pretraining."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=10_000, ge=1, description="optimizer steps")
    epoch_steps: int = Field(default=250, ge=1, description="steps between two checkpoints")
    segments: int = Field(default=4000, ge=64, description="steps of the recurrence in a batch, over all its series")
    origins: int = Field(default=10, ge=1, description="segments of each series after which a block is predicted")
    learning_rate: float = Field(default=2e-3, gt=0.0, description="peak of the learning rate")
    weight_decay: float = Field(
        default=1e-3, ge=0.0, description="decay of the weights per step, times the learning rate"
    )
    gradient_clip: float = Field(default=1.0, gt=0.0, description="maximum global norm of the gradient")
    network: NetworkSpec = NetworkSpec(cell="lstm", layers=2, hidden=96, residual=True, embed=True)
    seed: int = Field(default=0, ge=0, lt=2**31)


class SyntheticBatches:
    """The series of each optimiser step from a first step on; they depend on the seed and the number of the step only."""

    def __init__(self, options: PretrainingOptions, *, first_step: int, steps: int) -> None:
        self.options, self.first_step, self.steps = options, first_step, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[int, SyntheticSeries]]:
        size, last = _SHAPES_PER_GROUP * _BATCHES_PER_SHAPE, self.first_step + self.steps
        for group in range(self.first_step // size, -(-last // size)):
            for index, batch in enumerate(draw_group(self.options, group), start=group * size):
                if self.first_step <= index < last:
                    yield batch


def draw_group(options: PretrainingOptions, group: int) -> list[tuple[int, SyntheticSeries]]:
    """Draws the batches of several steps in a row: the season and the series of each."""
    rng = np.random.default_rng([options.seed, group])
    batches = []
    for _ in range(_SHAPES_PER_GROUP):
        season, length = draw_shape(rng)
        segment = segment_of(season)
        segments = max(4, length // segment)
        rows = min(1024, max(32, options.segments // segments))
        values = draw_batch(
            rng,
            season=season,
            second_season=LONG_SEASONS.get(season, 2 * season),
            length=segments * segment + BASE_BLOCK,
            count=_BATCHES_PER_SHAPE * rows,
        )
        first = max(2 if season > 1 else 3, math.ceil((season + 1) / segment))
        for part in np.split(values, _BATCHES_PER_SHAPE):
            origins = choose_origins(rng, segments=segments, first=first, count=options.origins)
            batches.append((season, SyntheticSeries(part, origins)))
    return [batches[index] for index in rng.permutation(len(batches))]


class PretrainingModule(pl.LightningModule):
    """Trains the shared weights with AdamW (Loshchilov and Hutter 2019), and averages them over the steps.

    The learning rate rises linearly and then falls as a cosine. The average forgets at a rate that grows with the steps, so that
    it is never dominated by the first weights.
    """

    def __init__(self, options: PretrainingOptions) -> None:
        super().__init__()
        self.options = options
        self.networks = BaseNetworks(seed=options.seed, fields={"network": options.network.model_dump()})
        self.averages = [parameter.detach().clone() for parameter in self.networks.shared.parameters()]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, _dataloader_idx: int) -> Any:
        """Prepares the batch on the CPU, and moves the result."""
        season, series = batch
        prepared = prepare_pretraining_batch(self.networks.for_season(season), series)
        parts = (None if part is None else part.to(device) for part in prepared[:-1])
        return season, TrainingBatch(*parts)  # type: ignore[arg-type]

    def training_step(self, batch: tuple[int, TrainingBatch], _batch_idx: int) -> Float[Tensor, ""]:
        """Returns the loss of a batch."""
        season, prepared = batch
        loss = compute_loss(self.networks.for_season(season).train(), prepared)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, logger=False)
        return loss

    def configure_optimizers(self) -> Any:
        """Returns AdamW with the schedule of the learning rate."""
        optimizer = torch.optim.AdamW(
            self.networks.shared.parameters(),
            lr=self.options.learning_rate,
            weight_decay=self.options.weight_decay,
            betas=(0.9, 0.98),
        )
        # A function and no method: the schedule would store the attributes of a method in checkpoints.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._relative_learning_rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def on_train_batch_end(self, _outputs: Any, _batch: Any, _batch_idx: int) -> None:
        """Updates the averages."""
        parameters: list[Tensor] = list(self.networks.shared.parameters())
        self.averages = [average.to(parameters[0].device) for average in self.averages]
        step = self.trainer.global_step
        decay = min(_MAX_AVERAGE_DECAY, step / (step + 20))
        torch._foreach_lerp_(self.averages, parameters, 1 - decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the averages."""
        checkpoint["averages"] = [average.cpu() for average in self.averages]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the averages."""
        self.averages = list(checkpoint["averages"])

    @torch.no_grad()
    def load_averages(self) -> None:
        """Replaces the weights by their averages, at the end."""
        torch._foreach_copy_(list(self.networks.shared.parameters()), self.averages)

    def _relative_learning_rate(self, step: int) -> float:
        fraction = min(1.0, step / self.options.steps)
        decayed = (1 + math.cos(math.pi * fraction)) / 2 * (1 - _MIN_LEARNING_RATE) + _MIN_LEARNING_RATE
        return min(1.0, (step + 1) / _WARM_UP_STEPS) * decayed
