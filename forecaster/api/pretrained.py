"""What `Forecaster.pretrained` does with the network that ships with the package: it is specialised for the data of each call."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from forecaster.bundle.pretrained.base import (
    BASE_NAME,
    load_base,
    specialize_base,
    specialize_to_panel,
    validate_season,
)
from forecaster.bundle.pretrained.specification import base_spec
from forecaster.data.calendar import default_horizon, default_season
from forecaster.errors import InputError
from forecaster.frequency.timestamps import normalize_frequency
from forecaster.prediction.fitted_model import StoredModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel
from forecaster.spec import Spec

MAX_WINDOWS = 4  # windows that `evaluate` scores by default; the network has learned from none of the data


class PretrainedOptions(NamedTuple):
    """The arguments of `Forecaster.pretrained` that say what the network is specialised for; None is inferred from the data.

    Attributes:
        freq: The name of the frequency.
        season: Steps of a season.
        horizon: Steps ahead of forecasts, windows and scores where a call names none.
    """

    freq: str | None
    season: int | None
    horizon: int | None

    @classmethod
    def parse(cls, freq: Any, season: int | None, horizon: int | None) -> PretrainedOptions:
        """Returns validated options; raises FrequencyUnknown or BadSpec."""
        options = cls(None if freq is None else normalize_frequency(freq, where="freq"), season, horizon)
        options.build_spec()
        return options

    def build_spec(self) -> Spec:
        """Returns the specification as far as the arguments say; raises BadSpec."""
        freq, stored = self.freq, load_base()
        season = self.season or (stored.season if freq is None else default_season(freq))
        validate_season(season)
        horizon = self.horizon or (stored.spec.horizon if freq is None else default_horizon(freq))
        return base_spec(season, horizon=horizon, network=stored.spec.network.model_dump())

    def build_model(self) -> StoredModel:
        """Returns the model without data: for the given frequency, otherwise as the package ships it."""
        if self.freq is None:
            return load_base()
        horizon = self.horizon or default_horizon(self.freq)
        return specialize_base(self.freq, horizon=horizon, season=self.season)

    def build_storable_model(self) -> StoredModel:
        """Returns the model that a bundle can hold; raises InputError without a frequency."""
        if self.freq is None:
            raise InputError(
                "Expected a frequency, because a bundle is for data of one frequency, and this network is for all. Declare "
                "it: Forecaster.pretrained(freq='MS').save(path).",
                where="freq",
            )
        return self.build_model()

    def build_predictor(self, panel: Panel, *, clock: Callable[[], datetime]) -> Predictor:
        """Returns a predictor for the data of a panel."""
        return Predictor(specialize_to_panel(panel, horizon=self.horizon, season=self.season), clock=clock)

    def count_windows(self, panel: Panel, *, stride: int, horizon: int, min_steps: int) -> int:
        """Returns the windows that `evaluate` scores by default: at most four, and as many as the longest series has."""
        longest = max(len(series) for series in panel.series)
        return max(1, min(MAX_WINDOWS, (longest - min_steps - horizon) // stride + 1))

    def describe(self) -> str:
        """Formats the arguments that were given, and the network."""
        given = [f"{name}={value!r}" for name, value in self._asdict().items() if value is not None]
        network = load_base().spec.network
        shape = f"{network.cell.upper()} {network.layers} x {network.hidden}"
        return (
            f"Forecaster.pretrained({', '.join(given)}), the network {BASE_NAME!r} ({shape}), not trained on these data"
        )
