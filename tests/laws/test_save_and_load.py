"""A forecaster that was saved and loaded is the same forecaster."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from forecaster.bundle import artifact
from forecaster.prediction.predictor import Forecaster, Predictor
from tests.factories import one_series, wave


def test_a_loaded_forecaster_gives_bitwise_the_forecasts_of_the_saved_one(
    forecaster: Forecaster, tmp_path: Path
) -> None:
    digest = artifact.save(forecaster, tmp_path / "bundle", card="# small\n")
    loaded = artifact.load(tmp_path / "bundle")
    assert artifact.digest(tmp_path / "bundle") == digest
    assert (loaded.spec, loaded.freq, loaded.season) == (forecaster.spec, forecaster.freq, forecaster.season)
    assert (loaded.cutoff, loaded.facts) == (forecaster.cutoff, forecaster.facts)
    for steps in (5, 16, 40):
        history = one_series(wave(steps))
        one, other = (Predictor(each).forecast(history, 20).mean for each in (forecaster, loaded))
        assert np.array_equal(one, other)
