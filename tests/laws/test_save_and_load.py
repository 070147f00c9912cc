"""A forecaster that was saved and loaded is the same forecaster."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from forecaster.bundle import artifact
from forecaster.prediction.predictor import FittedModel, Predictor
from tests.factories import make_series, make_wave


def test_a_loaded_model_gives_bitwise_equal_forecasts(forecaster: FittedModel, tmp_path: Path) -> None:
    digest = artifact.save_bundle(forecaster, tmp_path / "bundle", card="# small\n")
    loaded = artifact.load_bundle(tmp_path / "bundle")
    assert artifact.compute_bundle_digest(tmp_path / "bundle") == digest
    assert (loaded.spec, loaded.freq, loaded.season) == (forecaster.spec, forecaster.freq, forecaster.season)
    assert (loaded.cutoff, loaded.facts) == (forecaster.cutoff, forecaster.facts)
    for steps in (5, 16, 40):
        history = make_series(make_wave(steps))
        one, other = (Predictor(each).forecast(history, 20).mean for each in (forecaster, loaded))
        assert np.array_equal(one, other)
