"""A `Forecaster` of symbols: from a column of text to forecasts, probabilities, scores and a bundle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml

from forecaster import Forecaster
from forecaster.bundle.artifact import load_bundle
from forecaster.bundle.files import CARD_FILE
from forecaster.bundle.golden import GoldenFile, replay_golden_file
from forecaster.data.frames.panel import to_frame, to_panel
from forecaster.errors import BadSpec, GoldenMismatch, InputError, LevelOutOfRange, NotANumber
from forecaster.metrics import cross_entropy, perplexity
from forecaster.spec import Spec

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::forecaster.api.messages.ForecastWarning")]

CYCLE = ["start", "load", "run", "run", "stop"]
SPEC = {
    "name": "machine",
    "context": 10,
    "horizon": 5,
    "min_history": 1,
    "scaling": "none",
    "head": {"kind": "symbols"},
    "network": {"hidden": 16},
    "training": {"steps": 90, "epoch_steps": 45, "batch": 32, "learning_rate": 0.02, "valid_windows": 2},
}


def make_log(*, steps: int = 83, series: int = 3) -> pd.DataFrame:
    """The log of machines that repeat one cycle, each from another step of it; one cell is missing, and a late one is unknown."""
    parts = [
        pd.DataFrame(
            {
                "unique_id": f"m{number}",
                "ds": pd.date_range("2026-03-02", periods=steps, freq="min"),
                "y": [CYCLE[(step + number) % len(CYCLE)] for step in range(steps)],
            }
        )
        for number in range(series)
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame.loc[7, "y"] = None
    frame.loc[steps - 3, "y"] = "alarm"
    return frame


@pytest.fixture(scope="module")
def fitted() -> Forecaster:
    return Forecaster(spec=SPEC).fit(make_log(), progress=False)


def test_forecasts_are_symbols_and_probabilities_have_a_column_each(fitted: Forecaster) -> None:
    assert fitted.spec.head.vocabulary == ("load", "run", "start", "stop")  # "alarm" occurs in the test only
    forecast, probabilities = fitted.predict(), fitted.predict_proba()
    assert list(forecast.columns) == ["unique_id", "ds", "forecaster"]
    expected = [CYCLE[(83 + number + step) % len(CYCLE)] for number in range(3) for step in range(5)]
    assert forecast["forecaster"].tolist() == expected
    columns = [f"forecaster-p-{symbol}" for symbol in fitted.spec.head.vocabulary]
    assert list(probabilities.columns) == ["unique_id", "ds", *columns]
    np.testing.assert_allclose(probabilities[columns].sum(axis=1), 1.0)
    best = probabilities[columns].idxmax(axis=1).str.removeprefix("forecaster-p-")
    assert best.tolist() == forecast["forecaster"].tolist()
    assert "1 of 10 symbols of the history are not in the vocabulary" in fitted.warnings["warning"].iloc[0]


def test_sample_paths_are_symbols_at_a_temperature(fitted: Forecaster) -> None:
    cold = fitted.predict(num_samples=2, temperature=1e-6)
    assert cold["forecaster-sample-1"].tolist() == cold["forecaster"].tolist()
    hot = fitted.predict(num_samples=20, temperature=50.0, seed=1)
    drawn = hot[[f"forecaster-sample-{number}" for number in range(20)]].to_numpy()
    assert set(drawn.ravel()) == set(fitted.spec.head.vocabulary)
    with pytest.raises(InputError, match="temperature above 0; found 0"):
        fitted.predict(num_samples=1, temperature=0.0)


def test_scores_follow_from_the_forecasts_of_cross_validation(fitted: Forecaster) -> None:
    scores = fitted.evaluate().set_index("forecaster")
    assert list(scores.index) == ["forecaster", "frequencies", "markov"]
    rows = fitted.cross_validation(n_windows=1, progress=False)
    assert list(rows.columns) == ["unique_id", "ds", "cutoff", "y", "forecaster", "forecaster-p"]
    assert rows["y"].tolist()[:5].count("<unk>") == 1
    assert scores["rollout_accuracy"]["forecaster"] == pytest.approx((rows["y"] == rows["forecaster"]).mean())
    loss = -np.log(rows["forecaster-p"]).mean()
    assert scores["cross_entropy"]["forecaster"] == pytest.approx(loss)
    assert scores["perplexity"]["forecaster"] == pytest.approx(perplexity(loss))
    assert scores["accuracy"]["forecaster"] > 0.75 > scores["accuracy"]["frequencies"]
    report = fitted.report.set_index("forecaster")
    pd.testing.assert_series_equal(report.loc["forecaster"], scores.loc["forecaster", report.columns])


def test_probabilities_of_the_cross_validation_are_given_all_actuals_before_them(fitted: Forecaster) -> None:
    log = make_log(series=2).iloc[83:]
    rows = fitted.cross_validation(log, n_windows=1, progress=False)
    for step in range(5):
        before = log.iloc[: 83 - 5 + step].tail(fitted.spec.context + step)
        [row] = fitted.predict_proba(before, horizon=1).to_dict("records")
        assert rows["forecaster-p"].iloc[step] == pytest.approx(
            row[f"forecaster-p-{log['y'].iloc[78 + step]}"], abs=0.05
        )


def test_a_saved_model_forecasts_alike_and_its_golden_requests_are_verified(fitted: Forecaster, tmp_path: Path) -> None:
    bundle = fitted.save(tmp_path / "machine", histories=True)
    loaded = Forecaster.load(bundle)
    pd.testing.assert_frame_equal(loaded.predict(), fitted.predict())
    pd.testing.assert_frame_equal(loaded.predict_proba(make_log()), fitted.predict_proba(make_log()))
    assert "| markov |" in (bundle / CARD_FILE).read_text()
    golden = GoldenFile.model_validate(json.loads((bundle / "golden.json").read_text()))
    requests = [
        request.model_copy(update={"probabilities": request.probabilities[::-1]}) for request in golden.requests
    ]
    with pytest.raises(GoldenMismatch):
        replay_golden_file(load_bundle(bundle), golden.model_copy(update={"requests": tuple(requests)}))


def test_polars_frames_and_numbers_as_symbols_are_read(fitted: Forecaster) -> None:
    forecast = fitted.predict(pl.from_pandas(make_log()))
    assert isinstance(forecast, pl.DataFrame)
    assert forecast["forecaster"].to_list() == fitted.predict()["forecaster"].tolist()
    frame = pd.DataFrame({"ds": [1, 2, 3, 4], "y": [404.0, None, 200.0, 404.0]})
    assert to_frame(to_panel(frame, vocabulary=()))["y"].tolist() == ["404", None, "200", "404"]


def test_a_column_of_text_without_a_specification_is_one_of_symbols() -> None:
    forecaster = Forecaster(horizon=5)
    with pytest.raises(BadSpec, match="Expected no preset for symbols"):
        Forecaster(horizon=5, preset="daily").fit(make_log(), progress=False)
    with pytest.raises(BadSpec, match="Expected numbers where incomplete last periods are dropped"):
        Forecaster(horizon=5, drop_partial=True).fit(make_log(), progress=False)
    mixed = make_log()
    mixed.loc[5, "y"] = "12,5"
    with pytest.raises(NotANumber, match="Expected numbers in column 'y'; row 0 holds 'start'"):
        forecaster.fit(mixed, progress=False)


def test_what_needs_numbers_is_refused(fitted: Forecaster) -> None:
    with pytest.raises(LevelOutOfRange, match="predicts symbols, which have no order"):
        fitted.predict(level=80)
    for call, what in ((fitted.plot, "a plot"), (fitted.explain, "an explanation")):
        with pytest.raises(BadSpec, match=f"Expected a model of numbers for {what}; 'machine' predicts symbols"):
            call()
    with pytest.raises(BadSpec, match="Expected a model of symbols for probabilities"):
        Forecaster.pretrained().predict_proba(make_log().assign(y=1.0), horizon=2)


def test_cross_entropy_ignores_missing_and_unknown_symbols() -> None:
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0], [1.0, 0.0]])
    losses = cross_entropy(np.array([1.0, 2.0, np.nan, 0.0]), probabilities)
    np.testing.assert_allclose(losses, [np.log(2), -np.log(0.75), np.nan, np.nan])


def test_the_programs_of_the_guide_run_as_they_are_printed() -> None:
    guide = Path(__file__).parents[3] / "docs" / "symbols.md"
    results: dict[str, Any] = {}
    for program in re.findall(r"(?s)```python\n(.*?)```", guide.read_text()):
        exec(compile(program, str(guide), "exec"), results)
    assert list(results["forecast"].columns) == ["unique_id", "ds", "forecaster"]
    assert list(results["paths"].columns)[-1] == "forecaster-sample-2"
    assert len(results["probabilities"]) == 4
    scores = results["report"].set_index("forecaster")["perplexity"]
    assert scores["forecaster"] < scores["markov"] < scores["frequencies"]
    assert results["rows"].shape == (4, 4)
    assert results["word"] == ["b", "b", "b", "T"]
    assert results["scores"].unknown == 0


def test_the_example_configuration_is_one_of_symbols() -> None:
    path = Path(__file__).parents[3] / "configs" / "machine_log.yaml"
    spec = Spec.parse(yaml.safe_load(path.read_text()), where=path.name)
    assert (spec.name, spec.head.is_symbolic) == (path.stem, True)
