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
from forecaster.frequency import Stamp
from forecaster.intervals.conformal import Calibration
from forecaster.spec import Outline, Spec

if TYPE_CHECKING:
    from forecaster.model.regressor import Regressor
else:
    Regressor = Any  # the annotation is all that is needed here, and torch takes a second and 200 MB

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Learned:
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
    cutoff: Stamp
    encoding: Encoding

    @property
    def outline(self) -> Outline:
        """How its networks read and tell."""
        return Outline.of(self.spec, season=self.season)

    @property
    def features(self) -> int:
        """Covariates and categories that its networks read."""
        return self.encoding.width + len(self.encoding.static)


@dataclass(frozen=True, eq=False)
class Forecaster(Learned):
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
    graphs: tuple[bytes, ...] = ()
    others: tuple[Regressor, ...] = ()
    blend: Mapping[str, float] = field(default_factory=dict)

    @property
    def networks(self) -> tuple[Regressor, ...]:
        """All members."""
        return (self.network, *self.others)

    @property
    def outline(self) -> Outline:
        """That of its network."""
        return self.network.outline

    @property
    def weights(self) -> tuple[Weights, ...]:
        """Of each member, by their names."""
        each = (network.state_dict() for network in self.networks)
        return tuple({name: tensor.detach().cpu().numpy() for name, tensor in one.items()} for one in each)


@dataclass(frozen=True, eq=False)
class Stored(Learned):
    """A fitted forecaster as its bundle holds it: what a server needs, and its networks only where they are asked for.

    Attributes:
        content: The file of the weights.
        calibration: As of a Forecaster; so all that follow.
        facts: Of its making.
        graphs: The rollout of each member.
        blend: Weights of the parts of a blend.
    """

    content: bytes
    calibration: Calibration | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    graphs: tuple[bytes, ...] = ()
    blend: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def networks(self) -> tuple[Regressor, ...]:
        """All members. Brings torch; raises BundleDamaged if the weights do not fit."""
        from forecaster.model.weights import networks_of

        encoding = self.encoding
        return networks_of(
            self.spec, self.content, season=self.season, covariates=encoding.width, groups=encoding.sizes
        )

    @property
    def weights(self) -> tuple[Weights, ...]:
        """Of each member, by their names. Raises BundleDamaged if the file cannot be read, or holds what is not finite."""
        try:
            whole = load_weights(self.content)
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

    def forecaster(self) -> Forecaster:
        """The same with its networks."""
        network, *others = self.networks
        return Forecaster(
            self.spec,
            self.freq,
            self.season,
            self.cutoff,
            self.encoding,
            network,
            self.calibration,
            self.facts,
            self.graphs,
            tuple(others),
            self.blend,
        )
