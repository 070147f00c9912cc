"""What was learned: as networks in memory, or as a bundle holds it. Neither needs torch before a network is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_weights

from forecaster.data.encoding import Encoding
from forecaster.errors import BundleDamaged
from forecaster.frequency import Timestamp
from forecaster.intervals.conformal import Calibration
from forecaster.spec import Layout, Spec

if TYPE_CHECKING:
    from forecaster.model.regressor import Regressor
else:
    Regressor = Any  # the annotation is all that is needed here, and torch takes a second and 200 MB

WeightArrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class BaseFittedModel:
    """A fitted forecaster, less its weights.

    Attributes:
        spec: What it is.
        freq: The frequency it learned.
        season: Steps of a season, for the seasonal naive it is compared with.
        cutoff: The last stamp of the data it was fitted to.
        encoding: How covariates and categories become numbers.
    """

    spec: Spec
    freq: str
    season: int
    cutoff: Timestamp
    encoding: Encoding

    @property
    def layout(self) -> Layout:
        """How its networks read and tell."""
        return Layout.from_spec(self.spec, season=self.season)

    @property
    def num_features(self) -> int:
        """Covariates and categories that its networks read."""
        return self.encoding.num_covariates + len(self.encoding.static)


@dataclass(frozen=True, eq=False)
class FittedModel(BaseFittedModel):
    """A fitted forecaster.

    Attributes:
        network: The weights; of several members, the first's.
        calibration: How far from its point forecasts the truth has been; None if that was not measured.
        facts: What is known of its making, for the manifest and the card: data digest, versions, scores.
        graphs: The rollout of each member as an ONNX file; none where they were not written.
        others: The other members; the forecast is the median of all.
        blend: By name, the weights of the network and of statistical models in the forecast; empty if it is the network's alone.
    """

    network: Regressor
    calibration: Calibration | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    onnx_models: tuple[bytes, ...] = ()
    other_networks: tuple[Regressor, ...] = ()
    blend_weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def networks(self) -> tuple[Regressor, ...]:
        """All members."""
        return (self.network, *self.other_networks)

    @property
    def layout(self) -> Layout:
        """That of its network."""
        return self.network.layout

    @property
    def weights(self) -> tuple[WeightArrays, ...]:
        """Of each member, by their names."""
        each = (network.state_dict() for network in self.networks)
        return tuple({name: tensor.detach().cpu().numpy() for name, tensor in one.items()} for one in each)


@dataclass(frozen=True, eq=False)
class StoredModel(BaseFittedModel):
    """A fitted forecaster as its bundle holds it: what a server needs, and its networks only where they are asked for.

    Attributes:
        content: The file of the weights.
        calibration: As of a Forecaster; so all that follow.
        facts: Of its making.
        graphs: The rollout of each member.
        blend: Weights of the parts of a blend.
    """

    weights_bytes: bytes
    calibration: Calibration | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    onnx_models: tuple[bytes, ...] = ()
    blend_weights: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def networks(self) -> tuple[Regressor, ...]:
        """All members. Brings torch; raises BundleDamaged if the weights do not fit."""
        from forecaster.model.weights import load_networks

        encoding = self.encoding
        return load_networks(
            self.spec,
            self.weights_bytes,
            season=self.season,
            num_covariates=encoding.num_covariates,
            static_cardinalities=encoding.static_cardinalities,
        )

    @property
    def weights(self) -> tuple[WeightArrays, ...]:
        """Of each member, by their names. Raises BundleDamaged if the file cannot be read, or holds what is not finite."""
        try:
            whole = load_weights(self.weights_bytes)
        except (SafetensorError, TypeError, KeyError) as error:  # the last two: numbers that numpy does not have
            raise BundleDamaged(
                f"weights.safetensors cannot be read: {error}. Fetch the bundle again.", where="weights.safetensors"
            ) from error
        for name, array in whole.items():
            if not np.isfinite(array).all():
                raise BundleDamaged(
                    f"Expected finite weights; {name!r} holds NaN or infinity. Train again.",
                    where="weights.safetensors",
                )
        if self.spec.members == 1:
            return (whole,)
        return tuple(
            {name.removeprefix(f"{number}."): array for name, array in whole.items() if name.startswith(f"{number}.")}
            for number in range(self.spec.members)
        )

    def to_fitted_model(self) -> FittedModel:
        """The same with its networks."""
        network, *others = self.networks
        return FittedModel(
            self.spec,
            self.freq,
            self.season,
            self.cutoff,
            self.encoding,
            network,
            self.calibration,
            self.facts,
            self.onnx_models,
            tuple(others),
            self.blend_weights,
        )
