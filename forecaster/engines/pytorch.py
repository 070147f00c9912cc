"""The engine that runs a network in PyTorch: the reference for all other engines."""

from __future__ import annotations

import numpy as np
import torch

from forecaster.data.windows import Window
from forecaster.engines.engine import RolloutInput
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, repeat_state, roll_out, warm_up
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

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "path_target ahead noise"] | None = None
    ) -> Float64[np.ndarray, "path horizon"]:
        """See `Engine.roll_out`."""
        window = Window(*(None if part is None else torch.from_numpy(part) for part in inputs[:4]))  # type: ignore[arg-type]
        future_covariates = (
            None if inputs.future_covariates is None else torch.from_numpy(inputs.future_covariates).to(self._device)
        )
        uniforms = None if noise is None else torch.from_numpy(noise).to(self._device)
        num_samples = 1 if uniforms is None else len(uniforms) // self.network.num_targets
        num_paths = max(num_samples, 1 if future_covariates is None else len(future_covariates))
        with torch.inference_mode():
            state = warm_up(self.network, window.to(self._device), self._initial_state)
            if len(inputs.values) == 1 < num_paths:  # all paths fork from one warmed-up state
                state = repeat_state(state, copies=num_paths)
                future_covariates = None if future_covariates is None else future_covariates.expand(num_paths, -1, -1)
            forecasts, _ = roll_out(
                self.network, state, horizon=horizon, future_covariates=future_covariates, noise=uniforms
            )
        return np.asarray(forecasts.cpu().numpy())
