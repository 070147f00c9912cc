"""Runs side by side: found, held against each other on the same windows, refused where their data differ."""

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
from pipelines.training.train import TrainingResult, train
from tests.pipelines.commands.test_channels import run_command
from tests.pipelines.conftest import BAD_LEARNING_RATE, make_noise_frame, make_small_spec

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class ComparedRuns:
    """A root with two runs on the same data and one on fewer of them."""

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
    good = train(data, make_small_spec(valid_windows=1, refit=True), root, test_windows=2)
    bad = train(data, make_small_spec(learning_rate=BAD_LEARNING_RATE, seed=1, valid_windows=0), root, test_windows=2)
    return ComparedRuns(root, good, bad, train(shorter, make_small_spec(), root, test_windows=2))


def test_the_significance_test_uses_the_raw_errors(compared_runs: ComparedRuns) -> None:
    runs = [load_run(one.run_id, compared_runs.root) for one in (compared_runs.good_run, compared_runs.bad_run)]
    found = compare_runs(runs)
    assert compared_runs.good_run.backtest is not None
    assert compared_runs.bad_run.backtest is not None
    errors = [
        np.abs(one.backtest.actual - one.backtest.forecasts[CHALLENGER]).mean(axis=(1, 2)) / one.backtest.scale
        for one in (compared_runs.good_run, compared_runs.bad_run)
        if one.backtest is not None
    ]
    [(label, test)] = found.comparisons.items()
    expected = paired_t_test(errors[1] - errors[0])
    assert label == f"small {compared_runs.bad_run.run_id[:6]}"
    assert test.p == pytest.approx(expected.p, rel=1e-9)
    assert test.difference == pytest.approx(expected.difference)
    assert test.difference > 0, "the second has larger errors"
    assert found.shared_backtest is not None
    assert found.shared_backtest.scores(found.labels[1])["mase"] == pytest.approx(
        compared_runs.bad_run.scores[CHALLENGER]["mase"]
    )
    assert found.shared_backtest.stride == 4
    assert found.messages == []


def test_the_best_run_is_marked_and_only_differing_fields_are_listed(compared_runs: ComparedRuns) -> None:
    found = compare_runs(
        [load_run(one.run_id, compared_runs.root) for one in (compared_runs.good_run, compared_runs.bad_run)]
    )
    rows = {row.metric: row for row in found.rows}
    assert found.rows[0].metric == "bt/mase"
    assert rows["bt/mase"].best == (0,)
    assert rows["bt/skill_vs_snaive"].best == (0,), "more is better"
    assert rows["bt/mase"].differences[1] == pytest.approx(
        compared_runs.bad_run.scores[CHALLENGER]["mase"] - compared_runs.good_run.scores[CHALLENGER]["mase"]
    )
    assert rows["bt/crps"].values[1] is None, "the second was not calibrated"
    assert rows["bt/crps"].best == ()
    assert {one.field for one in found.spec_differences} == {
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
    said = capsys.readouterr().err
    assert "have the digests" in said
    assert "the cutoffs of" in said
    assert "--different-data" in said
    assert run_command(*command, "--different-data", "--json", tmp_path / "told.json") == 0
    captured = capsys.readouterr()
    assert "the cutoffs of" in captured.err
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["windows"] == 20, "the one cutoff that both have"
    assert told["told"]


def test_the_html_page_is_self_contained_and_agrees_with_json(
    compared_runs: ComparedRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--html", tmp_path / "page.html", "--json", tmp_path / "told.json", "--plot", tmp_path / "drawn"]
    command = [
        "compare",
        compared_runs.good_run.run_id[:12],
        compared_runs.bad_run.run_id[:12],
        "--root",
        compared_runs.root.path,
        *files,
    ]
    assert run_command(*command, "--series", "meter_3") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "paired t over 20 series" in said.out
    assert "training.learning_rate" in said.out
    page, told = (tmp_path / "page.html").read_text(), json.loads((tmp_path / "told.json").read_text())
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in page
    assert told["metrics"][0]["metric"] == "bt/mase"
    assert told["metrics"][0]["best"] == [f"small {compared_runs.good_run.run_id[:6]}"]
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"forecasts.png", "error_by_horizon.png"}
    assert run_command(*command, "--series", "nobody") == 2
    assert "meter_0" in capsys.readouterr().err


def test_models_are_selected_by_alias_and_by_version(
    compared_runs: ComparedRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    first = register_bundle(compared_runs.good_run.bundle, compared_runs.root)
    second = register_bundle(compared_runs.bad_run.bundle, compared_runs.root)
    Registry(compared_runs.root.store_uri).set_alias(second, CHALLENGER)
    where = ["--root", compared_runs.root.path]
    assert run_command("compare", f"small@{first.number}", "small@challenger", *where) == 0
    assert "small@1" in capsys.readouterr().out
    for unknown in ("small@nobody", "nobody", "f" * 32, "0" * 7):
        assert run_command("compare", "small@1", unknown, *where) == 2
        assert "run's id" in capsys.readouterr().err
    assert run_command("compare", "small@1", *where) == 2


def test_an_ambiguous_run_id_prefix_is_rejected(compared_runs: ComparedRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [compared_runs.good_run.run_id, compared_runs.bad_run.run_id]
    monkeypatch.setattr("pipelines.tracking.reader._find_runs_by_prefix", lambda client, told: both)
    with pytest.raises(InputError, match=r"'abcd' begins 2 of them: .* Give more of it"):
        load_run("abcd", compared_runs.root)


def make_recorded_run(label: str, frame: pd.DataFrame, **params: str) -> RunRecord:
    kept = StoredBacktest(CHALLENGER, frame, pd.DataFrame({"unique_id": [], "ds": [], "y": []}))
    return RunRecord(label, label, label, {"horizon": "2", **params}, {"bt/mase": 1.0}, {}, "training", kept)


def make_forecast_frame(actuals: np.ndarray, forecasts: np.ndarray) -> pd.DataFrame:
    """Series of windows that overlap by a step: `actuals` and `forecasts` are by series, window and step."""
    series, windows, horizon = actuals.shape
    rows = [
        (f"s{s}", w, w + 1 + h, h + 1, actuals[s, w, h], forecasts[s, w, h], 2.0, 4.0)
        for s in range(series)
        for w in range(windows)
        for h in range(horizon)
    ]
    return pd.DataFrame(rows, columns=["unique_id", "cutoff", "ds", "step", "y", CHALLENGER, "scale", "square_scale"])


def test_rows_in_any_order_are_reshaped_to_the_original_arrays() -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(size=(3, 4, 2))
    one, two = truth + 1.0, truth + draw.normal(size=truth.shape)
    frames = [make_forecast_frame(truth, said).sample(frac=1.0, random_state=1) for said in (one, two)]
    found = compare_runs([make_recorded_run("one", frames[0]), make_recorded_run("two", frames[1])])
    assert isinstance(found.shared_backtest, Backtest)
    order = [int(name[1:]) for name in found.series_ids]
    np.testing.assert_array_equal(found.shared_backtest.actual, truth[order])
    np.testing.assert_array_equal(found.shared_backtest.forecasts["two"], two[order])
    assert found.shared_backtest.stride == 1, "cutoffs a step apart"
    assert found.shared_backtest.scores("one")["mase"] == pytest.approx(0.5)


def test_differing_actuals_are_reported_and_not_tested() -> None:
    truth = np.arange(12.0).reshape(3, 2, 2)
    moved = truth.copy()
    moved[1, 0, 1] += 1e-6
    runs = [
        make_recorded_run("one", make_forecast_frame(truth, truth)),
        make_recorded_run("two", make_forecast_frame(moved, truth + 1)),
    ]
    with pytest.raises(InputError, match="what came is not the same for one and two at 1 of 12 steps"):
        compare_runs(runs)
    found = compare_runs(runs, allow_different_data=True)
    assert found.shared_backtest is not None
    assert found.shared_backtest.comparable_mask().sum() == 5, "the window with another truth is left out"


def test_equal_labels_are_made_distinct() -> None:
    truth = np.zeros((2, 2, 2))
    found = compare_runs([make_recorded_run("one", make_forecast_frame(truth, truth + n)) for n in range(3)])
    assert found.labels == ["one", "one (2)", "one (3)"]
    assert list(found.comparisons) == ["one (2)", "one (3)"]


def test_a_run_without_test_forecasts_is_compared_by_its_recorded_metrics() -> None:
    truth = np.zeros((2, 2, 2))
    whole = make_recorded_run("one", make_forecast_frame(truth, truth))
    found = compare_runs([whole, whole._replace(label="two", stored_backtest=None)])
    assert found.comparisons == {}
    assert found.rows[0].values == (1.0, 1.0)
    assert "two kept no raw forecasts" in found.messages[0]
