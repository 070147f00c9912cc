"""Comparison of runs: selection, significance on shared windows, and rejection if their data differ."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.errors import InputError
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.significance import paired_t_test
from forecaster.registry.registry import CHALLENGER, Registry
from pipelines.comparison.compare import compare_runs
from pipelines.promotion.promote import register_bundle
from pipelines.settings import Root
from pipelines.sources import DataSource
from pipelines.tracking.backtests import StoredBacktest
from pipelines.tracking.reader import RunRecord, load_run
from pipelines.training.train import TrainingResult, TrainOptions, train
from tests.pipelines.commands.test_channels import run_command
from tests.pipelines.conftest import BAD_LEARNING_RATE, make_noise_frame, make_small_spec

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class ComparedRuns:
    """A root with two runs on the same data and one run on shorter series."""

    root: Root
    good_run: TrainingResult
    bad_run: TrainingResult
    smaller_run: TrainingResult


@pytest.fixture(scope="module")
def compared_runs(migrated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> ComparedRuns:
    folder = tmp_path_factory.mktemp("compare")
    make_noise_frame().to_csv(folder / "meters.csv", index=False)
    make_noise_frame().groupby("unique_id").head(56).to_csv(folder / "shorter.csv", index=False)
    root = Root(folder / "root")
    root.path.mkdir()
    (root.path / "mlflow.db").write_bytes((migrated_root / "mlflow.db").read_bytes())
    data, shorter = DataSource(str(folder / "meters.csv")), DataSource(str(folder / "shorter.csv"))
    options = TrainOptions(test_windows=2)
    good = train(data, make_small_spec(valid_windows=1, refit=True), root, options)
    bad = train(data, make_small_spec(learning_rate=BAD_LEARNING_RATE, seed=1, valid_windows=0), root, options)
    return ComparedRuns(root, good, bad, train(shorter, make_small_spec(), root, options))


def test_the_significance_test_uses_the_raw_errors(compared_runs: ComparedRuns) -> None:
    trained = (compared_runs.good_run, compared_runs.bad_run)
    comparison = compare_runs([load_run(training.run_id, compared_runs.root) for training in trained])
    assert compared_runs.good_run.backtest is not None
    assert compared_runs.bad_run.backtest is not None
    errors = [
        np.abs(training.backtest.actual - training.backtest.forecasts[CHALLENGER]).mean(axis=(1, 2))
        / training.backtest.scale
        for training in trained
        if training.backtest is not None
    ]
    [(label, test)] = comparison.comparisons.items()
    expected = paired_t_test(errors[1] - errors[0])
    assert label == f"small {compared_runs.bad_run.run_id[:6]}"
    assert test.p == pytest.approx(expected.p, rel=1e-9)
    assert test.difference == pytest.approx(expected.difference)
    assert test.difference > 0, "the second has larger errors"
    assert comparison.shared_backtest is not None
    assert comparison.shared_backtest.scores(comparison.labels[1])["mase"] == pytest.approx(
        compared_runs.bad_run.scores[CHALLENGER]["mase"]
    )
    assert comparison.shared_backtest.stride == 4
    assert comparison.messages == []


def test_the_best_run_is_marked_and_only_differing_fields_are_listed(compared_runs: ComparedRuns) -> None:
    comparison = compare_runs(
        [load_run(training.run_id, compared_runs.root) for training in (compared_runs.good_run, compared_runs.bad_run)]
    )
    rows = {row.metric: row for row in comparison.rows}
    assert comparison.rows[0].metric == "bt/mase"
    assert rows["bt/mase"].best == (0,)
    assert rows["bt/wql"].values[0] is not None
    assert rows["bt/msis_95"].values[0] is not None
    assert rows["bt/skill_vs_snaive"].best == (0,), "higher is better"
    assert rows["bt/mase"].differences[1] == pytest.approx(
        compared_runs.bad_run.scores[CHALLENGER]["mase"] - compared_runs.good_run.scores[CHALLENGER]["mase"]
    )
    assert rows["bt/crps"].values[1] is None, "the second was not calibrated"
    assert rows["bt/crps"].best == ()
    assert {difference.field for difference in comparison.spec_differences} == {
        "training.learning_rate",
        "training.seed",
        "training.refit",
        "training.valid_windows",
    }


def test_runs_on_different_data_are_rejected_unless_allowed(
    compared_runs: ComparedRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "compare",
        compared_runs.good_run.run_id,
        compared_runs.smaller_run.run_id,
        "--root",
        compared_runs.root.path,
    ]
    assert run_command(*command) == 2
    error_output = capsys.readouterr().err
    assert "have the digests" in error_output
    assert "the cutoffs of" in error_output
    assert "--different-data" in error_output
    assert run_command(*command, "--different-data", "--json", tmp_path / "comparison.json") == 0
    captured = capsys.readouterr()
    assert "the cutoffs of" in captured.err
    fields = json.loads((tmp_path / "comparison.json").read_text())
    assert fields["windows"] == 20, "the only cutoff that both runs have"
    assert fields["told"]


def test_the_html_page_is_self_contained_and_agrees_with_json(
    compared_runs: ComparedRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--html", tmp_path / "page.html", "--json", tmp_path / "comparison.json", "--plot", tmp_path / "plots"]
    command = [
        "compare",
        compared_runs.good_run.run_id[:12],
        compared_runs.bad_run.run_id[:12],
        "--root",
        compared_runs.root.path,
        *files,
    ]
    assert run_command(*command, "--series", "meter_3") == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "paired t over 20 series" in output.out
    assert "training.learning_rate" in output.out
    page, fields = (tmp_path / "page.html").read_text(), json.loads((tmp_path / "comparison.json").read_text())
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in page
    assert fields["metrics"][0]["metric"] == "bt/mase"
    assert fields["metrics"][0]["best"] == [f"small {compared_runs.good_run.run_id[:6]}"]
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"forecasts.png", "error_by_horizon.png"}
    assert run_command(*command[:-1], tmp_path / "one.png", "--series", "meter_3") == 0
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG"), "a name with a suffix is a file"
    assert run_command(*command, "--series", "nobody") == 2
    assert "meter_0" in capsys.readouterr().err


def test_models_are_selected_by_alias_and_by_version(
    compared_runs: ComparedRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    first = register_bundle(compared_runs.good_run.bundle, compared_runs.root)
    second = register_bundle(compared_runs.bad_run.bundle, compared_runs.root)
    Registry(compared_runs.root.store_uri).set_alias(second, CHALLENGER)
    root_option = ["--root", compared_runs.root.path]
    assert run_command("compare", f"small@{first.number}", "small@challenger", *root_option) == 0
    assert "small@1" in capsys.readouterr().out
    for unknown in ("small@nobody", "nobody", "f" * 32, "0" * 7):
        assert run_command("compare", "small@1", unknown, *root_option) == 2
        assert "run id" in capsys.readouterr().err
    assert run_command("compare", "small@1", *root_option) == 2


def test_an_ambiguous_run_id_prefix_is_rejected(compared_runs: ComparedRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    run_ids = [compared_runs.good_run.run_id, compared_runs.bad_run.run_id]
    monkeypatch.setattr("pipelines.tracking.reader._find_runs_by_prefix", lambda client, prefix: run_ids)
    with pytest.raises(InputError, match=r"'abcd' matches 2: .* Give a longer prefix"):
        load_run("abcd", compared_runs.root)


def make_recorded_run(label: str, frame: pd.DataFrame, **params: str) -> RunRecord:
    stored_backtest = StoredBacktest(CHALLENGER, frame, pd.DataFrame({"unique_id": [], "ds": [], "y": []}))
    return RunRecord(label, label, label, {"horizon": "2", **params}, {"bt/mase": 1.0}, {}, "training", stored_backtest)


def make_forecast_frame(actuals: np.ndarray, forecasts: np.ndarray) -> pd.DataFrame:
    """Builds the table of forecasts, from arrays "series window step"; successive windows overlap by one step."""
    series, windows, horizon = actuals.shape
    rows = [
        (f"s{s}", window, window + step + 1, step + 1, actuals[s, window, step], forecasts[s, window, step], 2.0, 4.0)
        for s in range(series)
        for window in range(windows)
        for step in range(horizon)
    ]
    return pd.DataFrame(rows, columns=["unique_id", "cutoff", "ds", "step", "y", CHALLENGER, "scale", "square_scale"])


def test_rows_in_any_order_are_reshaped_to_the_original_arrays() -> None:
    draw = np.random.default_rng(0)
    actuals = draw.normal(size=(3, 4, 2))
    first, second = actuals + 1.0, actuals + draw.normal(size=actuals.shape)
    frames = [make_forecast_frame(actuals, mean).sample(frac=1.0, random_state=1) for mean in (first, second)]
    comparison = compare_runs([make_recorded_run("one", frames[0]), make_recorded_run("two", frames[1])])
    assert isinstance(comparison.shared_backtest, Backtest)
    order = [int(name[1:]) for name in comparison.series_ids]
    np.testing.assert_array_equal(comparison.shared_backtest.actual, actuals[order])
    np.testing.assert_array_equal(comparison.shared_backtest.forecasts["two"], second[order])
    assert comparison.shared_backtest.stride == 1, "the cutoffs are one step apart"
    assert comparison.shared_backtest.scores("one")["mase"] == pytest.approx(0.5)


def test_differing_actuals_are_reported_and_not_tested() -> None:
    actuals = np.arange(12.0).reshape(3, 2, 2)
    changed = actuals.copy()
    changed[1, 0, 1] += 1e-6
    runs = [
        make_recorded_run("one", make_forecast_frame(actuals, actuals)),
        make_recorded_run("two", make_forecast_frame(changed, actuals + 1)),
    ]
    with pytest.raises(InputError, match="the actuals of one and two differ at 1 of 12 steps"):
        compare_runs(runs)
    comparison = compare_runs(runs, allow_different_data=True)
    assert comparison.shared_backtest is not None
    assert comparison.shared_backtest.comparable_mask().sum() == 5, "the window with a different actual is excluded"


def test_equal_labels_are_made_distinct() -> None:
    actuals = np.zeros((2, 2, 2))
    comparison = compare_runs(
        [make_recorded_run("one", make_forecast_frame(actuals, actuals + shift)) for shift in range(3)]
    )
    assert comparison.labels == ["one", "one (2)", "one (3)"]
    assert list(comparison.comparisons) == ["one (2)", "one (3)"]


def test_a_run_without_test_forecasts_is_compared_by_its_recorded_metrics() -> None:
    actuals = np.zeros((2, 2, 2))
    tested = make_recorded_run("one", make_forecast_frame(actuals, actuals))
    comparison = compare_runs([tested, tested._replace(label="two", stored_backtest=None)])
    assert comparison.comparisons == {}
    assert comparison.rows[0].values == (1.0, 1.0)
    assert "no backtest is stored for two" in comparison.messages[0]
