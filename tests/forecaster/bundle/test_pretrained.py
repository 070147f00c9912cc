"""The pretrained network of the package: its files, and its specialisation for data of any frequency."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.bundle.pretrained.base import BASE_FOLDER, BASE_NAME, load_base, specialize_base, specialize_to_panel
from forecaster.data.calendar import default_horizon, default_season
from forecaster.errors import ForecasterError, FrequencyUnknown
from forecaster.frequency.timestamps import is_earlier, synthetic_start
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Panel, Series

MAX_BYTES = 5_000_000
FREQUENCIES = [
    "MS",
    "ME",
    "D",
    "h",
    "15min",
    "5min",
    "30s",
    "W-SUN",
    "W-WED",
    "B",
    "QS",
    "QS-FEB",
    "YS",
    "2h",
    "C-1111110",
]
FREQUENCIES += ["1", "10", "BME", "7D"]


def make_panel(freq: str, values: list[float], *, zone: str | None = None) -> Panel:
    start = synthetic_start(freq)
    if isinstance(start, pd.Timestamp):
        start = pd.date_range(start, periods=1, freq=freq, tz=zone)[0] if not freq.startswith("C-") else start
    return Panel([Series("a", start, freq, np.array(values))], freq)


def test_the_files_are_a_valid_bundle_of_a_few_megabytes() -> None:
    model = artifact.verify_bundle(BASE_FOLDER)
    assert model.spec.name == BASE_NAME
    assert sum(path.stat().st_size for path in BASE_FOLDER.iterdir()) <= MAX_BYTES


@pytest.mark.parametrize("freq", FREQUENCIES)
def test_every_frequency_is_forecast_with_its_season(freq: str) -> None:
    panel = make_panel(freq, list(20 + np.arange(40.0) % 7))
    model = specialize_to_panel(panel)
    assert (model.freq, model.season, model.spec.horizon) == (freq, default_season(freq), default_horizon(freq))
    [outcome] = Predictor(model).forecast_batch(panel.series, 5)
    assert isinstance(outcome, Forecast), outcome
    assert np.isfinite(outcome.mean).all()
    assert len(outcome.ds) == 5


@pytest.mark.parametrize(
    ("freq", "zone"), [("MS", None), ("h", None), ("h", "Asia/Tokyo"), ("D", "America/New_York"), ("1", None)]
)
def test_the_training_cutoff_lies_before_all_data(freq: str, zone: str | None) -> None:
    panel = make_panel(freq, [1.0, 2.0], zone=zone)
    assert is_earlier(specialize_to_panel(panel).cutoff, panel.series[0].start)


HISTORIES = {
    "two values": [3.0, 4.0],
    "constant": [5.0] * 30,
    "zeros": [0.0] * 30,
    "gaps": [np.nan if step % 3 else float(step) for step in range(40)],
    "a gap at the end": [*np.arange(30.0), *[np.nan] * 10],
    "one observed value": [*[np.nan] * 10, 2.0, *[np.nan] * 10],
    "negative": list(-100 - np.arange(40.0)),
    "huge": list(1e90 * (1 + np.arange(40.0))),
    "tiny": list(1e-90 * (1 + np.arange(40) % 5)),
    "an outlier": [1.0] * 20 + [1e12] + [1.5] * 20,
    "a long season": list(np.sin(np.arange(3000) / 20)),
}


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("freq", ["MS", "h", "YS"])
def test_any_history_is_forecast_or_refused_in_words(freq: str, name: str) -> None:
    panel = make_panel(freq, HISTORIES[name])
    for horizon in (1, 7, 300):
        [outcome] = Predictor(specialize_to_panel(panel)).forecast_batch(panel.series, horizon)
        if isinstance(outcome, ForecasterError):
            assert "Send" in outcome.message
        else:
            assert np.isfinite(outcome.mean).all()
            assert len(outcome.mean) == horizon


def test_an_unknown_frequency_is_named() -> None:
    with pytest.raises(FrequencyUnknown, match="'fortnight' is not known"):
        specialize_base("fortnight", horizon=3)


def test_the_weights_are_those_of_the_files_for_every_frequency() -> None:
    assert specialize_base("h", horizon=3).weights_bytes == load_base().weights_bytes
