"""The engine that runs a network in PyTorch: the reference for all other engines."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from forecaster.data.windows import Window
from forecaster.engines.engine import RolloutInput
from forecaster.engines.spread import widen_block
from forecaster.model.heads import Quantile, Symbols
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, blocks, repeat_state, roll_out, target_scale, warm_up
from forecaster.shapes import Float, Float64


class PyTorchEngine:
    """Rolls out a network on a device."""

    def __init__(self, network: Regressor, *, device: str = "cpu", initial_state: RolloutState | None = None) -> None:
        """Sets the network up. With an initial state, inputs are further whole segments after it."""
        self.network = network.to(device).eval()
        self._device = device
        self._initial_state = initial_state

    @property
    def can_sample(self) -> bool:
        """Whether the head has a distribution."""
        return self.network.head.uniforms_per_draw > 0

    @property
    def has_quantiles(self) -> bool:
        """Whether the head is a quantile head."""
        return isinstance(self.network.head, Quantile)

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "path_target ahead noise"] | None = None
    ) -> Float64[np.ndarray, "path horizon"]:
        """See `Engine.roll_out`."""
        uniforms = None if noise is None else torch.from_numpy(noise).to(self._device)
        num_samples = 1 if uniforms is None else len(uniforms) // self.network.num_targets
        with torch.inference_mode():
            state, future_covariates = self._warm_up(inputs, num_samples)
            forecasts, _ = roll_out(
                self.network, state, horizon=horizon, future_covariates=future_covariates, noise=uniforms
            )
        return np.asarray(forecasts.cpu().numpy())

    def roll_out_quantiles(
        self, inputs: RolloutInput, *, horizon: int, levels: Sequence[float]
    ) -> Float64[np.ndarray, "path horizon level"]:
        """See `QuantileEngine.roll_out_quantiles`."""
        network, results, before = self.network, [], None
        with torch.inference_mode():
            state, future_covariates = self._warm_up(inputs, 1)
            start, scale = state.time, target_scale(network, state.scale)
            for block in blocks(
                network, state, count=-(-horizon // network.block), future_covariates=future_covariates
            ):
                _, unit = network.measure_units(state.recent, state.statistics)
                quantiles = network.head.quantiles(block.params, levels) - network.head.mean(block.params)[..., None]
                offsets = (unit[:, None, None] * quantiles)[:: network.num_targets].double().cpu().numpy()
                offsets = widen_block(offsets, before)
                before = offsets[:, -1]
                values = block.values[:, 0].masked_fill(~block.valid, torch.nan)
                results.append(values.double()[..., None] + torch.from_numpy(offsets).to(self._device))
                state = block.state
            scaled = torch.cat(results, dim=1)[:, :horizon]
            undone = [scale.undo(scaled[..., column], time=start) for column in range(len(levels))]
        return np.asarray(torch.stack(undone, dim=-1).cpu().numpy())

    def roll_out_probabilities(
        self, inputs: RolloutInput, *, horizon: int
    ) -> Float64[np.ndarray, "row horizon symbol"]:
        """Predicts the probabilities of the next symbols, those of each step given the most probable symbols before it."""
        network = self.network
        assert isinstance(network.head, Symbols), "the network predicts symbols"
        with torch.inference_mode():
            state, future_covariates = self._warm_up(inputs, 1)
            count = -(-horizon // network.block)
            params = [
                block.params for block in blocks(network, state, count=count, future_covariates=future_covariates)
            ]
            probabilities = network.head.probabilities(torch.cat(params, dim=1)[:, :horizon].double())
        return np.asarray(probabilities.cpu().numpy())

    def at_temperature(self, temperature: float) -> PyTorchEngine:
        """Returns an engine with the same weights that draws symbols at a temperature."""
        assert isinstance(self.network.head, Symbols), "only symbols are drawn at a temperature"
        network = copy(self.network)
        network.head = self.network.head.at_temperature(temperature)
        return PyTorchEngine(network, device=self._device, initial_state=self._initial_state)

    def _warm_up(self, inputs: RolloutInput, num_samples: int) -> tuple[RolloutState, Tensor | None]:
        """Returns the state after the histories, and the future covariates: one for each path."""
        window = Window(*(None if part is None else torch.from_numpy(part) for part in inputs[:4]))  # type: ignore[arg-type]
        future_covariates = (
            None if inputs.future_covariates is None else torch.from_numpy(inputs.future_covariates).to(self._device)
        )
        num_paths = max(num_samples, 1 if future_covariates is None else len(future_covariates))
        state = warm_up(self.network, window.to(self._device), self._initial_state)
        if len(inputs.values) == 1 < num_paths:  # all paths fork from one warmed-up state
            state = repeat_state(state, copies=num_paths)
            future_covariates = None if future_covariates is None else future_covariates.expand(num_paths, -1, -1)
        return state, future_covariates
