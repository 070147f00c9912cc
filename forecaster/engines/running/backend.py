"""What computes the parts of a network with a running scale: numpy, or the compiled kernel."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from forecaster.engines.kernel import WeightArrays
from forecaster.engines.running.layers import DenseLayer, NumpyDense, NumpyStack, Stack, StackSizes
from forecaster.engines.running.past import Past, PastSizes, read_past
from forecaster.shapes import Bool, Float, Float64


@runtime_checkable
class NetworkBackend(Protocol):
    """Creates layers from their weights, and views the past."""

    def create_dense(
        self, weight: Float[np.ndarray, "unit feature"], bias: Float[np.ndarray, "unit"], *, silu: bool
    ) -> DenseLayer:
        """Creates a dense layer, with SiLU after it or without."""

    def create_stack(self, sizes: StackSizes, weights: WeightArrays) -> Stack:
        """Creates the recurrent layers, given all weights by their names in the bundle."""

    def read_past(
        self,
        filled_values: Float[np.ndarray, "row back_and_step"],
        started: Bool[np.ndarray, "row step"],
        missing: Bool[np.ndarray, "row step"],
        statistics: Float64[np.ndarray, "row statistic"],
        sizes: PastSizes,
    ) -> Past:
        """See `forecaster.engines.running.past.read_past`."""


class NumpyBackend:
    """`NetworkBackend` in numpy, for machines without the kernel."""

    def create_dense(
        self, weight: Float[np.ndarray, "unit feature"], bias: Float[np.ndarray, "unit"], *, silu: bool
    ) -> DenseLayer:
        """See `NetworkBackend`."""
        return NumpyDense(weight, bias, silu=silu)

    def create_stack(self, sizes: StackSizes, weights: WeightArrays) -> Stack:
        """See `NetworkBackend`."""
        return NumpyStack(sizes, weights)

    def read_past(
        self,
        filled_values: Float[np.ndarray, "row back_and_step"],
        started: Bool[np.ndarray, "row step"],
        missing: Bool[np.ndarray, "row step"],
        statistics: Float64[np.ndarray, "row statistic"],
        sizes: PastSizes,
    ) -> Past:
        """See `NetworkBackend`."""
        return read_past(filled_values, started, missing, statistics, sizes)
