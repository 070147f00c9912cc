"""The engine that runs a network in PyTorch: what all others are held to."""

from __future__ import annotations

import numpy as np
import torch

from forecaster.data.windows import Window
from forecaster.engines.engine import RolloutInput
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import RolloutState, repeat_state, roll_out, warm_up
from forecaster.shapes import Float, Float64


class PyTorchEngine:
    """A network on a device."""

    def __init__(self, network: Regressor, *, device: str = "cpu", initial_state: RolloutState | None = None) -> None:
        """With a memory, what is known are further whole segments after it."""
        self.network = network.to(device).eval()
        self._device = device
        self._initial_state = initial_state

    @property
    def can_sample(self) -> bool:
        """Whether its head has a distribution."""
        return self.network.head.uniforms_per_draw > 0

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "track ahead noise"] | None = None
    ) -> Float64[np.ndarray, "way horizon"]:
        """As `Backend.roll_out`."""
        window = Window(*(None if part is None else torch.from_numpy(part) for part in inputs[:4]))  # type: ignore[arg-type]
        ahead = (
            None if inputs.future_covariates is None else torch.from_numpy(inputs.future_covariates).to(self._device)
        )
        uniforms = None if noise is None else torch.from_numpy(noise).to(self._device)
        paths = 1 if uniforms is None else len(uniforms) // self.network.num_targets
        ways = max(paths, 1 if ahead is None else len(ahead))
        with torch.inference_mode():
            memory = warm_up(self.network, window.to(self._device), self._initial_state)
            if len(inputs.values) == 1 < ways:  # they fork from one warmed-up memory
                memory = repeat_state(memory, copies=ways)
                ahead = None if ahead is None else ahead.expand(ways, -1, -1)
            told, _ = roll_out(self.network, memory, horizon=horizon, future_covariates=ahead, noise=uniforms)
        return np.asarray(told.cpu().numpy())
