"""Fitting, forecasting, saving and loading through `Forecaster`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pandas as pd
import pytest

from forecaster import Forecaster, InputError
from forecaster.api import DataWarning, ForecastWarning
from forecaster.bundle import artifact
from forecaster.data.frames.panel import to_panel
from forecaster.errors import (
    BadSpec,
    BundleDamaged,
    BundleError,
    CovariateUnknown,
    ForecasterError,
    FrequencyUnknown,
    HistoryTooShort,
    HorizonOutOfRange,
    LevelOutOfRange,
    MissingColumn,
    MissingPackage,
    NoSuchModel,
    ZoneUnknown,
)
from forecaster.prediction.predictor import Predictor
from forecaster.spec import Spec
from forecaster.training import presets, selection
from forecaster.training.sequence import train_model
from tests.forecaster.api.conftest import HORIZON, STEPS, make_fields, make_frame

pytestmark = pytest.mark.filterwarnings("ignore:On the test windows:forecaster.api.ForecastWarning")


def test_the_columns_of_a_forecast_have_the_names_of_nixtla(model: Forecaster) -> None:
    table = model.predict(level=[80, 97.5], quantiles=0.5)
    assert list(table.columns) == [
        "unique_id",
        "ds",
        "forecaster",
        "forecaster-lo-80",
        "forecaster-hi-80",
        "forecaster-lo-97.5",
        "forecaster-hi-97.5",
        "forecaster-q-0.5",
    ]
    assert len(table) == 3 * HORIZON
    assert (table["forecaster-lo-97.5"] <= table["forecaster-lo-80"]).all()
    assert (table["forecaster-lo-80"] < table["forecaster-hi-80"]).all()
    assert table["ds"].iloc[0] == pd.Timestamp("2020-01-01")


def test_joint_intervals_hold_whole_paths_and_need_enough_windows(model: Forecaster) -> None:
    many = Forecaster(spec=make_fields()).fit(make_frame(series=12), progress=False)
    single, joint = (many.predict(level=80, joint=is_joint) for is_joint in (False, True))
    assert list(joint.columns) == list(single.columns)
    assert (joint["forecaster-hi-80"] > single["forecaster-hi-80"]).all()
    assert (joint["forecaster-lo-80"] < single["forecaster-lo-80"]).all()
    assert joint["forecaster"].equals(single["forecaster"])
    with pytest.raises(LevelOutOfRange, match="at least 20 windows"):
        model.predict(level=80, joint=True)


def test_a_fit_is_the_sequence_of_the_command_with_the_baselines_beside_it(
    model: Forecaster, frame: pd.DataFrame
) -> None:
    panel = to_panel(frame)
    trained = train_model(panel, Spec.parse(make_fields(), where="a test"), accelerator="cpu")
    predictor = Predictor(trained.model)
    expected = [predictor.forecast(series, HORIZON, levels=[0.1, 0.9]) for series in panel.series]
    table = model.predict(level=80)
    for weights, expected_weights in zip(model.model.weights, trained.model.weights, strict=True):
        assert all((weights[name] == values).all() for name, values in expected_weights.items())
    np.testing.assert_allclose(table["forecaster"], np.concatenate([forecast.mean for forecast in expected]), rtol=1e-6)
    lower = np.concatenate([forecast.quantiles[0.1] for forecast in expected])
    np.testing.assert_allclose(table["forecaster-lo-80"], lower, rtol=1e-6)
    report = model.report.set_index("forecaster")
    assert report.index.tolist() == ["forecaster", "seasonal_naive", "last_value", "zero_shot"]
    assert report.loc["forecaster"].to_dict() == trained.model.facts["backtest"]["challenger"]
    errors = [np.abs(series.y[-HORIZON - 1] - series.y[-HORIZON:]).mean() for series in panel.series]
    assert report.loc["last_value", "mae"] == pytest.approx(np.mean(errors))
    zero_shot = Forecaster.pretrained(horizon=HORIZON).cross_validation(frame, n_windows=1, progress=False)
    assert report.loc["zero_shot", "mae"] == pytest.approx(np.abs(zero_shot["y"] - zero_shot["forecaster"]).mean())


def test_a_lost_test_is_a_warning_that_names_arguments(frame: pd.DataFrame) -> None:
    better = r"seasonal naive and the pretrained network are at least as good as this model.*`base`.*`members`"
    with pytest.warns(ForecastWarning, match=better):
        Forecaster(spec=make_fields(), accelerator="cpu").fit(frame, progress=False)


@pytest.mark.filterwarnings("ignore::forecaster.api.ForecastWarning")
def test_new_series_and_other_horizons_are_forecast(model: Forecaster, frame: pd.DataFrame) -> None:
    new = make_frame(series=1, steps=20, start="2022-01-01").assign(unique_id="new")
    table = model.predict(new, horizon=9)
    assert table["unique_id"].unique().tolist() == ["new"]
    assert len(table) == 9
    np.testing.assert_allclose(model.predict(new, horizon=2)["forecaster"], table["forecaster"][:2])
    short = new.tail(6)  # too short to show its frequency, which is then the model's
    assert model.predict(short, 1)["ds"].tolist() == [pd.Timestamp("2023-09-01")]


def test_sample_paths_depend_on_the_seed_and_on_the_series_only(frame: pd.DataFrame) -> None:
    forecaster = Forecaster(spec=make_fields(head={"kind": "gaussian"}), seed=3).fit(frame, progress=False)
    table = forecaster.predict(num_samples=3, seed=1)
    assert list(table.columns[3:]) == [f"forecaster-sample-{number}" for number in range(3)]
    alone = forecaster.predict(frame[frame["unique_id"] == 2], num_samples=3, seed=1)
    pd.testing.assert_frame_equal(alone, table[table["unique_id"] == 2].reset_index(drop=True))
    assert (forecaster.predict(num_samples=3, seed=2)["forecaster-sample-0"] != table["forecaster-sample-0"]).all()


def test_covariates_and_static_features_come_from_the_frame_and_from_the_future(frame: pd.DataFrame) -> None:
    rows = frame.assign(promotion=np.tile(np.arange(STEPS) % 5 == 0, 3).astype(float), region="north")
    future = make_frame(steps=HORIZON, start="2020-01-01").drop(columns="y").assign(promotion=0.0)
    forecaster = Forecaster(spec=make_fields(covariates=("promotion",), static=("region",), base="zero"))
    forecaster.fit(rows, progress=False)
    without = forecaster.predict(X_df=future)
    assert forecaster.predict(rows, X_df=future).equals(without)
    assert (forecaster.predict(X_df=future.assign(promotion=1.0))["forecaster"] != without["forecaster"]).all()
    as_text = future.assign(ds=future["ds"].dt.strftime("%Y-%m-%d"), unique_id=future["unique_id"].astype(str))
    assert forecaster.predict(X_df=as_text).equals(without)
    with pytest.raises(CovariateUnknown, match="promotion"):
        forecaster.predict()
    with pytest.raises(InputError, match=r"found '9'") as caught:
        forecaster.predict(X_df=future.assign(unique_id=9))
    assert caught.value.where == "X_df"
    with pytest.raises(InputError, match="series '1' has a value at 2015-01-01 00:00:00 already"):
        forecaster.predict(X_df=pd.concat([rows, future]))
    with pytest.raises(MissingColumn, match="region not found among"):
        forecaster.predict(rows.drop(columns="region"), X_df=future)
    with pytest.raises(InputError, match=r"ds not found. Add them, or declare their names \(`id_col`, `time_col`"):
        forecaster.predict(X_df=future.rename(columns={"ds": "month"}))
    with pytest.raises(InputError, match=r"promotion not found\. Add them\.$"):
        forecaster.predict(X_df=future.drop(columns="promotion"))
    with pytest.raises(InputError, match=r"for `X_df`; found builtins.dict"):
        forecaster.predict(X_df={})


def test_a_preset_gets_columns_season_and_seed(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_short_specs(*arguments: Any, **options: Any) -> list[Spec]:
        training = {"steps": 4, "epoch_steps": 2, "batch": 8}
        return [
            spec.model_copy(update={"training": spec.training.model_copy(update=training)})
            for spec in presets.build_candidate_specs(*arguments, **options)
        ]

    monkeypatch.setattr(selection, "build_candidate_specs", build_short_specs)
    rows = frame.assign(ds=np.tile(np.arange(STEPS), 3), price=1.0)
    forecaster = Forecaster(horizon=4, season=4, covariates=["price"], seed=5, name="sales", accelerator="cpu")
    spec = forecaster.fit(rows, progress=False).spec
    assert (spec.name, spec.season, spec.covariates, spec.training.seed) == ("sales", 4, ("price",), 5)
    assert spec.transform == "log", "a variant of the quarterly preset"
    assert "horizon=4" in repr(forecaster)
    assert "fitted on 3 series of frequency 1" in repr(forecaster)


def test_a_saved_model_forecasts_as_before_and_keeps_histories_only_if_asked(
    model: Forecaster, frame: pd.DataFrame, tmp_path: Path
) -> None:
    expected = model.predict(level=80)
    without, with_histories = model.save(tmp_path / "without"), model.save(tmp_path / "with", histories=True)
    loaded = Forecaster.load(with_histories)
    for table in (Forecaster.load(without).predict(frame, level=80), loaded.predict(level=80)):
        np.testing.assert_allclose(table["forecaster-hi-80"], expected["forecaster-hi-80"], rtol=1e-5)
    pd.testing.assert_frame_equal(loaded.report, model.report)
    with pytest.raises(InputError, match=r"Expected `df`.*`histories=True`") as caught:
        Forecaster.load(without).predict()
    assert caught.value.where == "df"
    with pytest.raises(InputError, match="loaded without them"):
        Forecaster.load(without).save(tmp_path / "again", histories=True)
    assert not any(name.startswith("histories") for name in artifact.read_manifest(without).files)


def test_histories_of_every_kind_survive_a_bundle(frame: pd.DataFrame, tmp_path: Path) -> None:
    rows = frame.assign(
        ds=frame["ds"].dt.tz_localize("Europe/Berlin"),
        price=np.arange(len(frame), dtype=float),
        weather=np.where(np.arange(len(frame)) % 2, "sun", "rain"),
        region="north",
        visits=np.where(np.arange(len(frame)) % 7, 1.0, np.nan),
    )
    fields = make_fields(
        covariates=("price", "weather"), static=("region",), channels=("visits",), decoder="rollout", base="zero"
    )
    forecaster = Forecaster(spec=fields).fit(rows, progress=False)
    panel = artifact.load_histories(forecaster.save(tmp_path / "bundle", histories=True))
    assert panel is not None
    assert (
        panel.digest == to_panel(rows, covariates=("price", "weather"), static=("region",), channels=("visits",)).digest
    )
    assert str(panel.series[0].start.tz) == "Europe/Berlin"  # type: ignore[union-attr]
    histories = tmp_path / "bundle" / "histories.safetensors"
    histories.write_bytes(histories.read_bytes()[:-8])
    with pytest.raises(BundleDamaged, match=r"histories\.safetensors"):
        artifact.load_histories(tmp_path / "bundle")


def test_only_a_bundle_is_overwritten_and_only_if_asked(model: Forecaster, tmp_path: Path) -> None:
    path = model.save(tmp_path / "bundle")
    with pytest.raises(BundleError, match="`overwrite=True`"):
        model.save(path)
    model.save(path, overwrite=True, histories=True)
    assert Forecaster.load(path).predict(horizon=1) is not None
    (tmp_path / "notes").mkdir()
    with pytest.raises(BundleError, match="only a bundle"):
        model.save(tmp_path / "notes", overwrite=True)
    assert {item.name for item in tmp_path.iterdir()} == {"bundle", "notes"}


def test_warnings_are_given_once_for_each_kind_and_remain_readable(model: Forecaster, frame: pd.DataFrame) -> None:
    constant = make_frame(series=3).assign(y=5.0)
    short = make_frame(series=1, steps=4).assign(unique_id=9)
    with pytest.warns() as caught:
        table = model.predict(pd.concat([constant, short]))
    messages = [str(item.message) for item in caught if item.category is ForecastWarning]
    assert len(messages) == 2
    assert messages[0].startswith("1 of 4 series have no forecast, the first: Series '9' has 4 steps")
    assert "Series '1', and 2 more in `warnings`" in messages[1]
    assert table["unique_id"].unique().tolist() == [1, 2, 3]
    assert model.warnings["unique_id"].tolist() == [1, 2, 3, 9]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict()
    assert len(model.warnings) == 0
    with pytest.raises(HistoryTooShort, match="'9' has 4 steps"):
        model.predict(short)


def test_incomplete_last_periods_are_a_warning_of_the_fit_or_dropped(frame: pd.DataFrame) -> None:
    partial = frame.assign(y=np.where(np.arange(len(frame)) % STEPS == STEPS - 1, 0.1, frame["y"] + 10))
    with pytest.warns(DataWarning, match=r"last period of 3 of 3 series looks incomplete.*`drop_partial=True`"):
        Forecaster(spec=make_fields(), accelerator="cpu").fit(partial, progress=False)
    with pytest.warns(DataWarning, match="treated as missing, as requested"):
        dropped = Forecaster(spec=make_fields(), drop_partial=True).fit(partial, progress=False)
    assert (dropped.predict()["forecaster"] > 10).all()


def test_repairs_of_the_data_are_warnings(model: Forecaster, frame: pd.DataFrame) -> None:
    with pytest.warns(DataWarning, match="1 absent rows in 1 of 3 series"):
        model.predict(frame.drop(index=30))


def test_an_explanation_is_a_frame_and_a_figure(model: Forecaster) -> None:
    explanation = model.explain(unique_id=2)
    table = explanation.to_frame()
    assert list(table.columns[:4]) == ["ds", "y", "attribution", "influence"]
    assert "ForecastExplanation of '2'" in repr(explanation)
    details = explanation.explanation
    assert details.forecast == pytest.approx(model.predict()["forecaster"][HORIZON : 2 * HORIZON].mean(), rel=1e-5)
    total = details.baseline + table["attribution"].sum() + details.integration_error
    assert total == pytest.approx(details.forecast)
    assert len(explanation.plot().axes) >= 4


def test_states_are_traced_as_frames_with_half_lives_followers_and_similar_stretches(
    model: Forecaster, frame: pd.DataFrame
) -> None:
    states = model.trace(whole_history=True)
    table = states.to_frame()
    assert list(table) == ["unique_id", "ds", "layer", "unit", "quantity", "value"]
    assert table.groupby("unique_id").size().to_dict() == dict.fromkeys((1, 2, 3), STEPS * 4 * 4), (
        "steps, units, quantities"
    )
    assert len(model.trace(unique_id=2).to_frame()) == 12 * 4 * 4, "the window from which it forecasts"
    assert len(states.half_lives()) == 3 * 4
    atlas = states.atlas()
    assert (atlas.num_units, atlas.num_series) == (4, 3)
    assert {"value", "level", "trend", "time", "season"} <= set(atlas.table["signal"])
    ds = frame["ds"].unique()
    matches = states.similar(2, ds[30], ds[33], threshold=0.1)
    assert set(matches["unique_id"]) <= {1, 3}
    assert (matches["shared"] <= matches["selected"]).all()
    assert "NetworkStates of 3 series: 1 layers of 4 units" in repr(states)


def test_series_that_cannot_be_forecast_are_not_traced(model: Forecaster, frame: pd.DataFrame) -> None:
    short = frame[(frame["unique_id"] > 1) | (frame["ds"] > "2019-10-01")]
    with pytest.warns(DataWarning, match="1 of 3 series were left out"):
        states = model.trace(short)
    assert {trace.id for trace in states.traces} == {"2", "3"}


def test_a_plot_has_one_pair_of_axes_for_each_series_and_shows_itself_in_a_notebook(
    model: Forecaster, frame: pd.DataFrame
) -> None:
    figure = model.plot(frame, model.predict(level=[80]), ids=[3, 1])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["3", "1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["history", "80 % interval", "forecast"]
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert len(model.plot(max_ids=1).axes) == 1
    assert [axes.get_title(loc="left") for axes in model.plot(ids=2).axes] == ["2"]


INVALID_CALLS: dict[str, tuple[Callable[[Forecaster, pd.DataFrame], Any], type[ForecasterError], str]] = {
    "no horizon": (lambda *_: Forecaster(), BadSpec, "`horizon` or `spec`"),
    "a horizon of zero": (lambda *_: Forecaster(0), InputError, "`horizon`"),
    "spec and preset": (lambda *_: Forecaster(spec=make_fields(), preset="classic"), BadSpec, "`spec` or `preset`"),
    "an invalid field": (lambda *_: Forecaster(spec=make_fields(horizon=-1)), BadSpec, "horizon"),
    "too many members": (lambda *_: Forecaster(12, members=1000), BadSpec, "members"),
    "a name instead of a list": (lambda *_: Forecaster(12, covariates="price"), InputError, r"Write \['price'\]"),
    "an unknown preset": (lambda *_: Forecaster(6, preset="annual"), BadSpec, "classic, yearly"),
    "negative test windows": (lambda _, df: Forecaster(6).fit(df, test_windows=-1), InputError, "`test_windows`"),
    "no fit": (lambda *_: Forecaster(6).predict(), InputError, r"fit\(df\)"),
    "other columns": (
        lambda model, df: model.predict(df.rename(columns={"unique_id": "id", "y": "sales"})[["id", "sales"]]),
        MissingColumn,
        "`target_col` of `Forecaster`, `Forecaster.pretrained` or `Forecaster.load`",
    ),
    "several series without ids": (
        lambda model, df: model.predict(df.drop(columns="unique_id")),
        MissingColumn,
        "`target_col` of `Forecaster`, `Forecaster.pretrained` or `Forecaster.load`",
    ),
    "a list": (lambda model, _: model.predict([1, 2, 3]), InputError, "found builtins.list"),
    "a Series without dates": (lambda model, df: model.predict(df["y"]), InputError, "DatetimeIndex"),
    "a share as level": (lambda model, _: model.predict(level=0.8), LevelOutOfRange, "`level` in percent"),
    "a percentage as quantile": (lambda model, _: model.predict(quantiles=[90]), LevelOutOfRange, "`quantiles`"),
    "samples of a point head": (lambda model, _: model.predict(num_samples=3), BadSpec, "distribution"),
    "text as level": (lambda model, _: model.predict(level="80"), LevelOutOfRange, r"`level`; found '80'"),
    "a level of almost all": (
        lambda model, _: model.predict(level=99.9999999999),
        LevelOutOfRange,
        "`level` in percent",
    ),
    "a level of zero": (lambda model, _: model.predict(level=0), LevelOutOfRange, "between 0 and 100; found 0"),
    "a list within a list": (lambda model, _: model.predict(quantiles=[[0.1]]), LevelOutOfRange, r"found \[0.1\]"),
    "text as samples": (lambda model, _: model.predict(num_samples="3"), InputError, "`num_samples`; found '3'"),
    "half a sample": (lambda model, _: model.predict(num_samples=2.5), InputError, "`num_samples`; found 2.5"),
    "a horizon without end": (lambda model, _: model.predict(horizon=10**9), HorizonOutOfRange, "`horizon` of at most"),
    "a frame as horizon": (lambda model, df: model.predict(df, df), InputError, "found an object of type DataFrame"),
    "a horizon beyond the limit": (lambda *_: Forecaster(10**6), BadSpec, "horizon"),
    "a name with a slash": (lambda *_: Forecaster(6, name="a/b"), BadSpec, "name: "),
    "an unknown zone": (lambda *_: Forecaster(6, zone="Mars"), ZoneUnknown, "found 'Mars'"),
    "an unknown frequency": (lambda *_: Forecaster(6, freq="soon"), FrequencyUnknown, "'soon'"),
    "an unknown accelerator": (lambda *_: Forecaster(6, accelerator="abacus"), InputError, "`accelerator`"),
    "no samples": (lambda model, _: model.predict(num_samples=0), InputError, "`num_samples`"),
    "a future without covariates": (lambda model, df: model.predict(X_df=df), InputError, "`X_df`"),
    "no window": (lambda model, df: model.cross_validation(df, 0), InputError, "`n_windows`"),
    "too many windows": (lambda model, df: model.cross_validation(df, 12), HistoryTooShort, "Holding out"),
    "windows without data before them": (
        lambda model, df: model.cross_validation(df, 9, progress=False),
        HistoryTooShort,
        "before the first of 9 windows, 6 steps apart: use fewer windows \\(`n_windows`",
    ),
    "a folder that is no bundle": (
        lambda *_: Forecaster.load(Path(__file__).parent),
        BundleError,
        r"has no manifest\.json",
    ),
    "an unknown series to explain": (lambda model, _: model.explain(unique_id=7), InputError, "`unique_id`; found '7'"),
    "an unknown series to trace": (lambda model, _: model.trace(unique_id=7), InputError, "`unique_id`; found '7'"),
    "an impossible rate": (lambda model, _: model.trace().atlas(rate=5), InputError, "`rate` between 0 and 1"),
    "an unknown series to plot": (lambda model, _: model.plot(ids=7), InputError, "`ids`; found '7'"),
    "no series to plot": (lambda model, _: model.plot(ids=[]), InputError, "`ids`; found none"),
    "a plot of no series": (lambda model, _: model.plot(max_ids=0), InputError, "`max_ids`"),
    "a plot of no history": (lambda model, _: model.plot(history_steps=0), InputError, "`history_steps`"),
    "a plot of data as forecast": (
        lambda model, df: model.plot(df, df),
        MissingColumn,
        "in `forecast`; forecaster not",
    ),
    "no series to explain": (lambda model, _: model.explain(), InputError, "`unique_id`"),
    "no bundle": (lambda *_: Forecaster.load("nowhere"), BundleError, "nowhere"),
    "a misspelt address": (lambda *_: Forecaster.load("models:hospital"), InputError, "models:/hospital@champion"),
}


@pytest.fixture
def _without_type_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The types of arguments are checked in tests only."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("_without_type_checks")
@pytest.mark.parametrize("case", INVALID_CALLS)
def test_errors_name_the_arguments_of_python(case: str, model: Forecaster, frame: pd.DataFrame) -> None:
    call, error_class, match = INVALID_CALLS[case]
    with pytest.raises(error_class, match=match) as caught:
        call(model, frame)
    assert "--" not in caught.value.message
    assert str(caught.value) == caught.value.message
    assert caught.value.message.endswith(".")


@pytest.mark.usefixtures("_without_type_checks")
def test_numbers_of_numpy_are_accepted(model: Forecaster) -> None:
    assert repr(Forecaster(np.int64(6))) == "Forecaster(horizon=6), not fitted"
    expected = model.predict(horizon=4, level=80, quantiles=0.25)
    given = model.predict(horizon=np.int32(4), level=np.int64(80), quantiles=np.float64(0.25))  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(given, expected)


def test_a_registered_model_needs_a_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("FORECASTER_ROOT", str(tmp_path))
    with pytest.raises(NoSuchModel, match="`tracking_uri`, MLFLOW_TRACKING_URI"):
        Forecaster.load("models:/hospital@champion")


@pytest.mark.parametrize(("package", "action"), [("matplotlib", "plot"), ("pytorch_lightning", "fit")])
def test_a_missing_package_is_named(
    package: str, action: str, model: Forecaster, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=rf"{package}.*\[train\]"):
        model.plot() if action == "plot" else Forecaster(HORIZON).fit(frame)
