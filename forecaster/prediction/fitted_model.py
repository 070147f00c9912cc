"""Fitted models: with networks in memory (FittedModel), or as a bundle stores them (StoredModel).

Neither imports torch before a network is needed.
"""

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
from forecaster.frequency.timestamps import Timestamp
from forecaster.installation import require_package
from forecaster.intervals.calibration import Calibration
from forecaster.spec import Layout, Spec

if TYPE_CHECKING:
    from forecaster.model.regressor import Regressor
else:
    Regressor = Any  # needed only for annotations, and importing torch takes a second and 200 MB

WeightArrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class BaseFittedModel:
    """A fitted model without its weights.

    Attributes:
        spec: The specification.
        freq: The frequency of the training data.
        season: Steps of a season; also that of the seasonal naive baseline.
        cutoff: The last timestamp of the training data.
        encoding: The encoding of covariates and categories.
    """

    spec: Spec
    freq: str
    season: int
    cutoff: Timestamp
    encoding: Encoding

    @property
    def layout(self) -> Layout:
        """The layout of the networks."""
        return Layout.from_spec(self.spec, season=self.season)

    @property
    def num_features(self) -> int:
        """The number of covariates and static features that the networks read."""
        return self.encoding.num_covariates + len(self.encoding.static)


@dataclass(frozen=True, eq=False)
class FittedModel(BaseFittedModel):
    """A fitted model with its networks in memory.

    Attributes:
        network: The network; of an ensemble, the first member.
        calibration: The offsets from point forecasts to quantiles; None if the model was not calibrated.
        facts: Facts about the training for the manifest and the model card: data digest, versions, scores.
        onnx_models: The rollout of each member as an ONNX model; empty if they were not exported.
        other_networks: The other members of an ensemble; the forecast is the median of all.
        blend_weights: The weights of the network and of statistical models by name; empty if the model is not a blend.
    """

    network: Regressor
    calibration: Calibration | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    onnx_models: tuple[bytes, ...] = ()
    other_networks: tuple[Regressor, ...] = ()
    blend_weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def networks(self) -> tuple[Regressor, ...]:
        """The networks of all members."""
        return (self.network, *self.other_networks)

    @property
    def layout(self) -> Layout:
        """The layout of the networks."""
        return self.network.layout

    @property
    def weights(self) -> tuple[WeightArrays, ...]:
        """The weights of each member by name."""
        state_dicts = (network.state_dict() for network in self.networks)
        return tuple(
            {name: tensor.detach().cpu().numpy() for name, tensor in state_dict.items()} for state_dict in state_dicts
        )


@dataclass(frozen=True, eq=False)
class StoredModel(BaseFittedModel):
    """A fitted model as its bundle stores it. Networks are built on first use, so that the service can run without torch.

    Attributes:
        weights_bytes: The content of the weights file.
        calibration, facts, onnx_models, blend_weights: As in FittedModel.
    """

    weights_bytes: bytes
    calibration: Calibration | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    onnx_models: tuple[bytes, ...] = ()
    blend_weights: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def networks(self) -> tuple[Regressor, ...]:
        """The networks of all members.

        Raises MissingPackage if torch is not installed, BundleDamaged if the weights do not fit the specification.
        """
        require_package("torch", purpose=f"the network of {self.spec.name!r}")
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
        """The weights of each member by name. Raises BundleDamaged if the file is invalid or has non-finite values."""
        try:
            arrays = load_weights(self.weights_bytes)
        except (SafetensorError, TypeError, KeyError) as error:  # the last two: a dtype that numpy does not support
            raise BundleDamaged(
                f"weights.safetensors cannot be read: {error}. Fetch the bundle again.", where="weights.safetensors"
            ) from error
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise BundleDamaged(
                    f"Expected finite weights; {name!r} holds NaN or infinity. Train the model again.",
                    where="weights.safetensors",
                )
        if self.spec.members == 1:
            return (arrays,)
        prefixes = [f"{member}." for member in range(self.spec.members)]
        return tuple(
            {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            for prefix in prefixes
        )

    def to_fitted_model(self) -> FittedModel:
        """Returns the model with its networks in memory."""
        network, *other_networks = self.networks
        return FittedModel(
            spec=self.spec,
            freq=self.freq,
            season=self.season,
            cutoff=self.cutoff,
            encoding=self.encoding,
            network=network,
            calibration=self.calibration,
            facts=self.facts,
            onnx_models=self.onnx_models,
            other_networks=tuple(other_networks),
            blend_weights=self.blend_weights,
        )


def as_fitted_model(model: FittedModel | StoredModel) -> FittedModel:
    """Returns a model with its networks in memory."""
    return model if isinstance(model, FittedModel) else model.to_fitted_model()
