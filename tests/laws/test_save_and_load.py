"""A model that was saved and loaded is the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from forecaster.bundle import artifact
from forecaster.prediction.predictor import FittedModel, Predictor
from tests.factories import make_series, make_wave


def test_a_loaded_model_gives_bitwise_equal_forecasts(model: FittedModel, tmp_path: Path) -> None:
    digest = artifact.save_bundle(model, tmp_path / "bundle", card="# small\n")
    loaded = artifact.load_bundle(tmp_path / "bundle")
    assert artifact.compute_bundle_digest(tmp_path / "bundle") == digest
    assert (loaded.spec, loaded.freq, loaded.season) == (model.spec, model.freq, model.season)
    assert (loaded.cutoff, loaded.facts) == (model.cutoff, model.facts)
    for steps in (5, 16, 40):
        history = make_series(make_wave(steps))
        expected, actual = (Predictor(fitted_model).forecast(history, 20).mean for fitted_model in (model, loaded))
        assert np.array_equal(actual, expected)
