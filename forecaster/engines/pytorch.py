"""The engine that runs a network in PyTorch: what all others are held to."""

from __future__ import annotations

import numpy as np
import torch

from forecaster.data.windows import Window
from forecaster.engines.engine import Known
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import Memory, fork, roll, warm_up
from forecaster.shapes import Float, Float64


class Reference:
    """A network on a device."""

    def __init__(self, network: Regressor, *, device: str = "cpu", before: Memory | None = None) -> None:
        """With a memory, what is known are further whole segments after it."""
        self.network = network.to(device).eval()
        self._device = device
        self._before = before

    @property
    def draws(self) -> bool:
        """Whether its head has a distribution."""
        return self.network.head.noise > 0

    def roll(
        self, known: Known, *, horizon: int, noise: Float[np.ndarray, "track ahead noise"] | None = None
    ) -> Float64[np.ndarray, "way horizon"]:
        """As `Engine.roll`."""
        window = Window(*(None if part is None else torch.from_numpy(part) for part in known[:4]))  # type: ignore[arg-type]
        ahead = None if known.ahead is None else torch.from_numpy(known.ahead).to(self._device)
        uniforms = None if noise is None else torch.from_numpy(noise).to(self._device)
        paths = 1 if uniforms is None else len(uniforms) // self.network.targets
        ways = max(paths, 1 if ahead is None else len(ahead))
        with torch.inference_mode():
            memory = warm_up(self.network, window.to(self._device), self._before)
            if len(known.values) == 1 < ways:  # they fork from one warmed-up memory
                memory = fork(memory, paths=ways)
                ahead = None if ahead is None else ahead.expand(ways, -1, -1)
            told, _ = roll(self.network, memory, horizon=horizon, ahead=ahead, noise=uniforms)
        return np.asarray(told.cpu().numpy())
