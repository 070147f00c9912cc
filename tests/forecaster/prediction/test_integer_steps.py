"""A model of numbered steps, from the frame to the forecast: the numbers change the stamps and nothing else."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.data.frames.panel import to_frame, to_panel
from forecaster.data.summary import summarise
from forecaster.errors import BadSpec, BadStamp, FrequencyMismatch
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import seasonal_naive
from forecaster.evaluation.calibration import calibrated
from forecaster.evaluation.plots import forecast_plot, origins_plot
from forecaster.frequency import LAST_NUMBER
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Forecast, Panel, Series
from forecaster.training.fit import fit
from tests.factories import make_spec, wave

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's

SPEC = make_spec(training={"steps": 4, "epoch_steps": 2, "batch": 8, "valid_windows": 2})
FIRST, STEP, STEPS = 100, 10, 60


def frame(*, dated: bool) -> pd.DataFrame:
    hours = pd.date_range("2026-01-01", periods=STEPS, freq="h")
    numbers = FIRST + STEP * np.arange(STEPS)
    return pd.concat(
        pd.DataFrame({"unique_id": name, "ds": hours if dated else numbers, "y": wave(STEPS, seed=seed)})
        for seed, name in enumerate("abc")
    )


class Made(NamedTuple):
    panel: Panel
    forecaster: Forecaster


def made(*, dated: bool) -> Made:
    panel = to_panel(frame(dated=dated))
    fitted = fit(panel, SPEC, accelerator="cpu").forecaster
    return Made(panel, calibrated(fitted, panel, windows=2))


@pytest.fixture(scope="module")
def numbered() -> Made:
    return made(dated=False)


@pytest.fixture(scope="module")
def dated() -> Made:
    return made(dated=True)


def test_a_forecaster_of_numbered_steps_says_what_one_of_moments_says_and_stamps_it_with_numbers(
    numbered: Made, dated: Made
) -> None:
    assert (numbered.panel.freq, dated.panel.freq) == ("10", "h")
    assert numbered.forecaster.cutoff == numbered.panel.cutoff == FIRST + STEP * (STEPS - 1)
    ours, theirs = (
        Predictor(one.forecaster).forecast_each(one.panel.series, 7, levels=[0.1, 0.9]) for one in (numbered, dated)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(one, Forecast)
        assert isinstance(other, Forecast)
        np.testing.assert_array_equal(one.mean, other.mean)
        np.testing.assert_array_equal(one.quantiles[0.9], other.quantiles[0.9])
        assert list(one.ds) == [FIRST + STEP * (STEPS + step) for step in range(7)]
        assert one.ds.dtype == np.int64


def test_a_bundle_of_numbered_steps_is_saved_checked_and_loaded(numbered: Made, tmp_path: Path) -> None:
    digest = artifact.save(numbered.forecaster, tmp_path / "bundle", card="# numbered\n")
    manifest = artifact.read_manifest(tmp_path / "bundle")
    assert (manifest.freq, manifest.cutoff) == ("10", "690")
    loaded = artifact.load(tmp_path / "bundle")
    assert (loaded.freq, loaded.cutoff, type(loaded.cutoff)) == ("10", 690, int)
    one = numbered.panel.series[0]
    again, before = Predictor(loaded).forecast(one, 5), Predictor(numbered.forecaster).forecast(one, 5)
    np.testing.assert_array_equal(again.mean, before.mean)
    assert again.ds.equals(before.ds)
    assert artifact.save(loaded, tmp_path / "copy", card="# numbered\n") == digest


@pytest.mark.parametrize(
    ("start", "freq"), [(pd.Timestamp("2026-01-01"), "h"), (0, "1"), (0, "20"), (pd.Timestamp("2026-01-01"), "10min")]
)
def test_a_series_of_another_frequency_is_refused_beside_its_neighbours(
    numbered: Made, start: pd.Timestamp | int, freq: str
) -> None:
    good = numbered.panel.series[0]
    odd, fine = Predictor(numbered.forecaster).forecast_each([Series("odd", start, freq, good.y), good], 3)
    assert isinstance(odd, FrequencyMismatch)
    assert "learned '10'" in odd.message
    assert isinstance(fine, Forecast)


def test_numbers_are_refused_by_a_forecaster_of_moments(numbered: Made, dated: Made) -> None:
    [odd] = Predictor(dated.forecaster).forecast_each(numbered.panel.series[:1], 3)
    assert isinstance(odd, FrequencyMismatch)


@pytest.mark.parametrize("moments", [False, True])
def test_a_forecast_that_no_stamp_can_tell_is_refused_beside_its_neighbours(
    numbered: Made, dated: Made, moments: bool
) -> None:
    learned = dated if moments else numbered
    good = learned.panel.series[0].until(8)
    start = pd.Timestamp("9999-12-31T16:00") if moments else LAST_NUMBER - 10 * 8
    last = Series("last", start, good.freq, good.y)
    fine, refused = Predictor(learned.forecaster).forecast_each([good, last], 3, levels=[0.9])
    assert isinstance(fine, Forecast)
    assert isinstance(refused, BadStamp)
    with pytest.raises(BadStamp):
        Predictor(learned.forecaster).forecast(last, 3)


def test_a_backtest_of_numbered_steps_has_numbers_for_stamps(numbered: Made) -> None:
    asked = {"own": Predictor(numbered.forecaster).forecast_each, "naive": seasonal_naive(4)}
    result = backtest(numbered.panel, asked, horizon=5, windows=2, season=4)
    assert [list(cutoffs) for cutoffs in result.cutoffs] == [[590, 640]] * 3
    table = result.frame()
    assert (table["ds"].dtype, table["cutoff"].dtype) == (np.int64, np.int64)
    assert table["ds"].tolist() == list(range(600, 700, 10)) * 3
    whole = to_frame(numbered.panel).set_index(["unique_id", "ds"])["y"]
    np.testing.assert_array_equal(whole.loc[list(zip(table["unique_id"], table["ds"], strict=True))], table["y"])
    figure = origins_plot(result, "own")
    assert [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"] == [590.0, 640.0]
    figure.savefig(BytesIO())


def test_a_forecast_of_numbered_steps_is_drawn_where_it_is(numbered: Made) -> None:
    one = numbered.panel.series[0]
    forecast = Predictor(numbered.forecaster).forecast(one, 4, levels=[0.1, 0.9])
    figure = forecast_plot(one, forecast, actual=np.ones(4), title="numbers", shown=20)
    [drawn] = [line for line in figure.axes[0].lines if line.get_label() == "forecast"]
    assert list(drawn.get_xdata()) == [690, 700, 710, 720, 730]
    figure.savefig(BytesIO())


def test_a_numbered_panel_goes_to_a_frame_and_back_and_is_summed_up(numbered: Made) -> None:
    again = to_panel(to_frame(numbered.panel))
    assert again.digest() == numbered.panel.digest()
    told = summarise(numbered.panel)
    assert (told.freq, told.zone, told.first, told.last) == ("10", None, 100, 690)
    assert (told.season, told.horizon) == (1, 6)


def test_covariates_of_numbered_steps_reach_ahead() -> None:
    y = np.append(np.arange(10.0), [np.nan] * 3)
    ahead = pd.DataFrame({"unique_id": "a", "ds": np.arange(13), "y": y, "heat": np.arange(13.0)})
    panel = to_panel(ahead, covariates=("heat",))
    assert (len(panel.series[0]), panel.series[0].ahead, panel.cutoff) == (10, 3, 9)
    assert to_frame(panel)["ds"].tolist() == list(range(13))


def test_a_season_is_one_unless_the_specification_names_it() -> None:
    panel = to_panel(frame(dated=False))
    unnamed = make_spec(season=None, training={"steps": 1, "epoch_steps": 1, "batch": 2})
    assert fit(panel, unnamed, accelerator="cpu").forecaster.season == 1
    assert fit(panel, make_spec(training={"steps": 1, "batch": 2}), accelerator="cpu").forecaster.season == 4


@pytest.mark.parametrize("calendar", [("hour",), ("weekday", "holiday:US")])
def test_a_specification_with_a_calendar_is_refused_before_anything_is_trained(calendar: tuple[str, ...]) -> None:
    with pytest.raises(BadSpec, match=f"calendar features {', '.join(calendar)}; the steps of these data are numbered"):
        fit(to_panel(frame(dated=False)), make_spec(calendar=calendar), accelerator="cpu")


def test_a_channel_that_a_head_cannot_mean_is_told_of_its_number() -> None:
    counts = frame(dated=False).assign(y=2.0, heat=np.r_[np.arange(3.0), 0.5, np.arange(3 * STEPS - 4)])
    spec = make_spec(channels=("heat",), head={"kind": "neg_binomial"}, scaling="none")
    with pytest.raises(BadSpec, match=r"series 'a' has 0\.5 at 130\."):
        fit(to_panel(counts, channels=("heat",)), spec, accelerator="cpu")


def test_channels_of_numbered_steps_are_foretold_as_those_of_moments_are() -> None:
    spec = make_spec(channels=("heat",), training={"steps": 2, "epoch_steps": 2, "batch": 4, "valid_windows": 1})
    means = []
    for dated in (False, True):
        panel = to_panel(frame(dated=dated).assign(heat=wave(3 * STEPS, seed=5)), channels=("heat",))
        forecaster = fit(panel, spec, accelerator="cpu").forecaster
        means.append(np.stack([one.mean for one in Predictor(forecaster).forecast_each(panel.series, 5)]))
    np.testing.assert_array_equal(*means)
