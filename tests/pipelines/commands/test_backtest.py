"""The backtest command: models and baselines on the same origins, its output files, its plots and its run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from forecaster.bundle import artifact
from forecaster.engines.statistical.models import STATISTICAL_MODELS
from forecaster.evaluation.baselines import seasonal_naive
from forecaster.evaluation.calibration import calibrate_model
from forecaster.evaluation.scores import overall_scores
from forecaster.evaluation.significance import paired_t_test
from forecaster.registry.registry import create_client
from forecaster.series import Panel
from pipelines.commands.backtest import BaselineName, load_bundles
from pipelines.commands.options import RootOptions
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from tests.factories import make_fitted_model, make_spec
from tests.pipelines.commands.test_channels import run_command
from tests.pipelines.conftest import make_noise_frame, make_small_spec

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
]  # raised by Lightning
HORIZON = 5


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twenty series of two kinds."""
    frame = make_noise_frame(steps=60)
    frame["kind"] = np.where(frame["unique_id"].str[-1].isin(list("02468")), "even", "odd")
    path = tmp_path / "meters.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def bundle(tmp_path: Path, table: Path) -> Path:
    return save_random_model(tmp_path / "bundle", table, seed=1)


def save_random_model(folder: Path, table: Path, *, seed: int, name: str = "small") -> Path:
    """Saves a calibrated model of random weights whose cutoff lies two horizons before the end of the data."""
    panel = read_panel(DataSource(str(table)))
    history = Panel([series.take_first(len(series) - 2 * HORIZON) for series in panel.series], panel.freq)
    model = replace(make_fitted_model(make_spec(horizon=HORIZON, name=name), seed=seed), cutoff=history.cutoff)
    artifact.save_bundle(calibrate_model(model, history, windows=2), folder, card="# small\n")
    return folder


def test_the_command_offers_all_available_baselines() -> None:
    assert BaselineName.__args__ == STATISTICAL_MODELS  # type: ignore[attr-defined]


def test_models_challengers_and_baselines_are_scored_on_the_same_origins(
    bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rival = save_random_model(tmp_path / "other", table, seed=2)
    out, scores = tmp_path / "out.parquet", tmp_path / "scores.csv"
    options = ["--rival", rival, "--baselines", "naive2", "--baselines", "dynamic_optimized_theta", "--windows", 2]
    files = ["--out", out, "--scores", scores, "--by", "kind", "--levels", 0.9, "--levels", 0.05]
    assert run_command("backtest", bundle, table, *options, *files) == 0
    output = capsys.readouterr()
    names = ["small", "small 2", "seasonal_naive", "last_value", "zero_shot", "naive2", "dynamic_optimized_theta"]
    rows = output.out.splitlines()
    assert [row.split("  ")[0] for row in rows[1:8]] == names
    assert "paired t over 20 series" in rows[8]
    assert rows[9].startswith("season  4 steps ")
    assert output.err == ""

    frame, score_table = pd.read_parquet(out), pd.read_csv(scores)
    quantiles = [f"{name}-{level}" for name in (*names[:2], "zero_shot") for level in ("0.05", "0.9")]
    assert set(frame.columns) == {"unique_id", "cutoff", "ds", "step", "y", *names, *quantiles}
    assert len(frame) == 20 * 2 * HORIZON
    for series in read_panel(DataSource(str(table))).series[:3]:
        for offset in (2 * HORIZON, HORIZON):
            window = frame[(frame["unique_id"] == series.id) & (frame["cutoff"] == series.timestamps[-offset - 1])]
            for name, season in (("seasonal_naive", 4), ("last_value", 1)):
                [forecast] = seasonal_naive(season)([series.take_first(len(series) - offset)], HORIZON)
                np.testing.assert_array_equal(window[name], forecast.mean)  # type: ignore[union-attr]

    assert list(score_table.columns) == ["forecaster", "metric", "group", "step", "value"]
    assert set(score_table["group"].dropna()) == {"even", "odd"}
    assert set(score_table["step"].dropna()) == set(range(1, HORIZON + 1))
    overall = overall_scores(score_table)
    errors = (frame["y"] - frame["naive2"]).abs()
    assert overall["naive2"]["mae"] == pytest.approx(errors.mean())
    odd = score_table.query("forecaster == 'naive2' and metric == 'mae' and group == 'odd' and step.isna()")
    is_odd = frame["unique_id"].str[-1].isin(list("13579"))
    assert odd["value"].item() == pytest.approx(errors[is_odd].mean())
    assert overall["small 2"]["mase_less_model"] == pytest.approx(overall["small 2"]["mase"] - overall["small"]["mase"])
    assert overall["small"]["wql"] > 0
    assert overall["small"]["msis_95"] > 0
    assert overall["small"]["stand_ins"] == overall["naive2"]["stand_ins"] == 0


def test_the_reported_p_value_is_that_of_the_written_forecasts(
    bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scores = tmp_path / "out.parquet", tmp_path / "scores.parquet"
    assert run_command("backtest", bundle, table, "--horizon", HORIZON, "--out", out, "--scores", scores) == 0
    frame, naive_scores = pd.read_parquet(out), overall_scores(pd.read_parquet(scores))["seasonal_naive"]
    panel = read_panel(DataSource(str(table)))
    scale = {series.id: np.abs(series.y[4:-HORIZON] - series.y[: -HORIZON - 4]).mean() for series in panel.series}
    difference = (frame["y"] - frame["seasonal_naive"]).abs() - (frame["y"] - frame["small"]).abs()
    means = (difference / frame["unique_id"].map(scale)).groupby(frame["unique_id"], sort=False).mean()
    expected = paired_t_test(means.to_numpy())
    assert naive_scores["p_value"] == pytest.approx(expected.p)
    assert naive_scores["mase_less_model"] == pytest.approx(expected.difference)
    printed = f"{expected.p:.3f}" if expected.p >= 0.001 else "<0.001"
    assert capsys.readouterr().out.splitlines()[2].split()[-1] == printed


def test_baseline_fallbacks_are_counted_and_reported(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = make_noise_frame(series=6)
    is_short = frame["unique_id"].isin([f"meter_{number}" for number in range(5)])
    frame = frame[~is_short | (frame.groupby("unique_id").cumcount() < 9)]
    frame.to_csv(tmp_path / "short.csv", index=False)
    scores = tmp_path / "scores.csv"
    arguments = ["backtest", bundle, tmp_path / "short.csv", "--baselines", "auto_ets", "--scores", scores]
    assert run_command(*arguments) == 0
    messages = capsys.readouterr().err.splitlines()
    assert [line for line in messages if "tiny datasets" in line] == [
        f"forecaster: series 'meter_{number}': auto_ets could not be fitted (NotImplementedError: tiny datasets); "
        "the seasonal naive forecast is used instead"
        for number in range(3)
    ]
    assert "forecaster: auto_ets: warnings at 5 of 6 windows" in messages
    assert overall_scores(pd.read_csv(scores))["auto_ets"]["stand_ins"] == 5


def test_a_model_trained_on_the_test_period_or_unable_to_forecast_is_reported(
    bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = artifact.load_bundle(save_random_model(tmp_path / "late", table, seed=3, name="late"))
    artifact.save_bundle(
        replace(late, cutoff=read_panel(DataSource(str(table))).cutoff), tmp_path / "overlapping", card=""
    )
    artifact.save_bundle(replace(late, freq="D"), tmp_path / "daily", card="")
    assert (
        run_command("backtest", bundle, table, "--rival", tmp_path / "overlapping", "--rival", tmp_path / "daily") == 0
    )
    output = capsys.readouterr()
    assert (
        "late was trained on data up to 2026-01-03 11:00:00; origins from 2026-01-03 06:00:00 on are not out of sample"
        in output.err
    )
    assert "late 2 has no forecast at 20 of 20 windows: the data have the frequency 'h', the model 'D'" in output.err
    assert "small was trained" not in output.err
    [row] = [row for row in output.out.splitlines() if row.startswith("late 2")]
    assert set(row.split()[2:]) == {"-"}
    notes = [row for row in output.out.splitlines() if row.startswith("-: ")]
    assert notes == [
        "-: late 2, all columns: it has no forecast; the data have the frequency 'h', the model 'D' (20 of 20 series)",
        "-: WQL, MSIS, in 80%, in 95% of seasonal_naive, last_value: no calibrated intervals",
    ]


def test_the_season_of_a_backtest_sets_the_scale_and_the_naive_forecast(
    bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scores = tmp_path / "out.csv", tmp_path / "scores.csv"
    assert run_command("backtest", bundle, table, "--season", 3, "--out", out, "--scores", scores) == 0
    assert "season  3 steps " in capsys.readouterr().out
    frame = pd.read_csv(out)
    panel = read_panel(DataSource(str(table)))
    naive = [
        forecast.mean  # type: ignore[union-attr]
        for series in panel.series
        for forecast in seasonal_naive(3)([series.take_first(len(series) - HORIZON)], HORIZON)
    ]
    np.testing.assert_allclose(frame["seasonal_naive"], np.concatenate(naive))
    scale = {series.id: np.abs(series.y[3:-HORIZON] - series.y[: -HORIZON - 3]).mean() for series in panel.series}
    errors = (frame["y"] - frame["small"]).abs() / frame["unique_id"].map(scale)
    assert overall_scores(pd.read_csv(scores))["small"]["mase"] == pytest.approx(errors.mean())
    assert run_command("backtest", bundle, table, "--season", 1, "--out", out) == 0
    assert "season  1 step (no season" in capsys.readouterr().out
    assert "last_value" not in pd.read_csv(out), "without a season it is seasonal naive"
    assert run_command("backtest", bundle, table, "--season", 0) == 2


def test_dashes_of_constant_series_are_explained(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_noise_frame(series=2).assign(y=5.0).to_csv(tmp_path / "constant.csv", index=False)
    assert run_command("backtest", bundle, tmp_path / "constant.csv") == 0
    rows = capsys.readouterr().out.splitlines()
    assert [value == "-" for value in rows[1].split()[1:6]] == [True, True, False, False, True]
    assert "-: MASE, RMSSE, OWA, MSIS, +MASE, p: every series is constant before the first cutoff" in "\n".join(rows)


def test_histories_shorter_than_a_season_are_scored_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_fitted_model(make_spec(season=48, horizon=3))
    artifact.save_bundle(replace(model, season=48), tmp_path / "daily", card="")
    make_noise_frame(series=2, steps=40).to_csv(tmp_path / "short.csv", index=False)
    assert run_command("backtest", tmp_path / "daily", tmp_path / "short.csv") == 0
    rows = capsys.readouterr().out.splitlines()
    assert "-" not in rows[1].split()[1:6]
    assert (
        "MASE, RMSSE: the errors of 2 of 2 series are divided by that of the last value, because their histories are not "
        "longer than a season (48 steps)"
    ) in rows


def test_a_single_series_is_compared_by_origins(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_noise_frame(series=1).to_csv(tmp_path / "one.csv", index=False)
    assert run_command("backtest", bundle, tmp_path / "one.csv", "--windows", 12, "--stride", 1) == 0
    assert "Diebold-Mariano over 12 origins" in capsys.readouterr().out
    assert run_command("backtest", bundle, tmp_path / "one.csv") == 0
    assert "too few" in capsys.readouterr().out


def test_plots_are_written_to_a_file_or_a_folder(bundle: Path, table: Path, tmp_path: Path) -> None:
    assert run_command("backtest", bundle, table, "--plot", tmp_path / "error.png") == 0
    assert (tmp_path / "error.png").read_bytes().startswith(b"\x89PNG")
    assert run_command("backtest", bundle, table, "--plot", tmp_path / "plots") == 0
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    expected = ["best_and_worst.png", "calibration.png", "error_by_horizon.png", "intervals.png", "reliability.png"]
    assert names == expected
    assert run_command("backtest", bundle, table, "--plot", tmp_path / "plots") == 0, "an existing folder is accepted"


@pytest.mark.parametrize(
    ("options", "phrases"),
    [
        (["--jobs", "0"], ["--jobs", "at least 1"]),
        (["--scores", "no/folder/scores.csv"], ["--scores", "no/folder"]),
        (["--plot", "no/folder/plots"], ["--plot", "no/folder"]),
        (["--levels", "90"], ["between 0 and 1", "90"]),
        (["--by", "colour"], ["colour"]),
        (["--baselines", "prophet"], ["prophet"]),
    ],
)
def test_contradictory_options_are_rejected(
    options: list[str], phrases: list[str], bundle: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("backtest", bundle, table, *options) == 2
    output = " ".join(capsys.readouterr())
    for phrase in phrases:
        assert phrase in output


def test_unknown_group_columns_are_rejected_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = make_spec(horizon=3)
    artifact.save_bundle(replace(make_fitted_model(spec), freq="MS"), tmp_path / "monthly", card="")
    assert run_command("backtest", tmp_path / "monthly", "hospital", "--by", "ward") == 2
    message = capsys.readouterr().err
    assert "'ward'" in message
    assert "Use a column" in message


def test_levels_of_an_uncalibrated_model_are_rejected(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact.save_bundle(make_fitted_model(make_spec()), tmp_path / "plain", card="")
    assert run_command("backtest", tmp_path / "plain", table, "--levels", 0.9) == 2
    assert "not calibrated" in capsys.readouterr().err
    assert run_command("backtest", tmp_path / "plain", table, "--plot", tmp_path / "plots") == 0
    assert not (tmp_path / "plots" / "calibration.png").exists()
    assert "WQL" not in capsys.readouterr().out


def test_a_baseline_without_its_package_names_the_extra_to_install(
    bundle: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "statsforecast.models", None)
    assert run_command("backtest", bundle, table, "--baselines", "auto_ets") == 1
    assert "pip install 'recurrent-forecaster[baselines]'" in capsys.readouterr().err


def test_predictors_have_distinct_names(bundle: Path, table: Path, tmp_path: Path) -> None:
    naive = save_random_model(tmp_path / "naive", table, seed=1, name="naive2")
    bundles = load_bundles(str(naive), [str(bundle), str(bundle), str(naive)], RootOptions(tmp_path))
    assert list(bundles) == ["naive2 2", "small", "small 2", "naive2 3"]


def list_artifacts(client: MlflowClient, run_id: str, folder: str) -> set[str]:
    return {entry.path for entry in client.list_artifacts(run_id, folder)}


def test_a_tracked_backtest_compares_with_the_champion_under_the_metric_names_of_training(
    fresh_root: Root, noise_data: DataSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, root_option = tmp_path / "small.yaml", ("--root", fresh_root.path)
    config.write_text(yaml.safe_dump(make_small_spec().model_dump()))
    assert run_command("retrain", noise_data.source, "--config", config, *root_option) == 0
    assert run_command("train", noise_data.source, "--config", config, "--seed", 1, *root_option) == 0
    [bundle] = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("bundle")]
    scores = tmp_path / "scores.csv"
    options = ["--rival", "small@champion", "--baselines", "naive2", "--track", "--scores", scores]
    assert run_command("backtest", bundle, noise_data.source, *options, *root_option) == 0
    [run_id] = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("run")]

    client = create_client(fresh_root.store_uri)
    run, overall = client.get_run(run_id), overall_scores(pd.read_csv(scores))
    assert run.info.status == "FINISHED"
    assert run.data.metrics["bt/mase"] == pytest.approx(overall["small"]["mase"])
    assert run.data.metrics["bt/wql"] == pytest.approx(overall["small"]["wql"])
    assert run.data.metrics["bt/msis_95"] == pytest.approx(overall["small"]["msis_95"])
    assert run.data.metrics["bt/small_champion/mase"] == pytest.approx(overall["small@champion"]["mase"])
    assert run.data.metrics["bt/small_champion/p_value"] == pytest.approx(overall["small@champion"]["p_value"])
    assert run.data.metrics["bt/naive2/owa"] == pytest.approx(overall["naive2"]["owa"])
    curve = sorted(client.get_metric_history(run_id, "bt_h/mase"), key=lambda point: point.step)
    assert [point.step for point in curve] == [1, 2, 3, 4]
    assert np.mean([point.value for point in curve]) == pytest.approx(overall["small"]["mase"])
    assert len(client.get_metric_history(run_id, "bt_h/small_champion/mase")) == 4
    assert list_artifacts(client, run_id, "backtest") == {
        "backtest/forecasts.parquet",
        "backtest/histories.parquet",
        "backtest/reliability.parquet",
        "backtest/scores.parquet",
    }
    assert list_artifacts(client, run_id, "plots") == {
        "plots/best_and_worst.png",
        "plots/calibration.png",
        "plots/error_by_horizon.png",
        "plots/intervals.png",
        "plots/reliability.png",
    }
    tags = run.data.tags
    assert tags["trigger"] == "backtest"
    assert tags["bundle_digest"] == artifact.compute_bundle_digest(Path(bundle))
    assert tags["trained_by"] == Path(bundle).name
    assert run.inputs is not None
    [dataset_input] = run.inputs.dataset_inputs
    assert {tag.key: tag.value for tag in dataset_input.tags}["mlflow.data.context"] == "evaluation"
