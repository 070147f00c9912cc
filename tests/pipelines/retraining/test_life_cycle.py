"""Train, register, promote and retrain on a small data set with a real store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.artifacts
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from forecaster.bundle import artifact
from forecaster.errors import BaseMoved, InputError, NoSuchModel, RefusedByGate
from forecaster.registry.registry import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, BundleVersion, Registry, create_client
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.evidence import measure_bundle, utc_now
from pipelines.promotion.gate import judge
from pipelines.promotion.policy import Policy
from pipelines.promotion.promote import fetch_bundle, find_champion, promote_version, register_bundle
from pipelines.retraining import retrain as retraining
from pipelines.retraining.retrain import RetrainOptions, retrain
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.training.train import TrainingResult, TrainOptions, _remove_leftovers, train
from tests.pipelines.conftest import BAD_LEARNING_RATE, LENIENT_POLICY, make_noise_frame, make_small_spec

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
]  # raised by Lightning


def alias_numbers(root: Root) -> dict[str, str]:
    """Returns the version number of each alias of the small model."""
    registry, numbers = Registry(root.store_uri), {}
    for alias in (CHAMPION, CHALLENGER, PREVIOUS_CHAMPION):
        try:
            numbers[alias] = registry.resolve("small", alias).number
        except NoSuchModel:
            continue
    return numbers


def list_run_files(client: MlflowClient, run_id: str) -> set[str]:
    """Returns the paths of all artifacts of a run."""

    def list_folder(folder: str | None) -> Sequence[str]:
        entries = client.list_artifacts(run_id, folder)
        return [path for entry in entries for path in (list_folder(entry.path) if entry.is_dir else [entry.path])]

    return set(list_folder(None))


def find_left_out_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "too short to be trained on" in record.getMessage()]


def write_series(folder: Path, y: Sequence[float]) -> DataSource:
    timestamps = pd.date_range("2026-01-01", periods=len(y), freq="h")
    pd.DataFrame({"unique_id": "a", "ds": timestamps, "y": y}).to_csv(folder / "one.csv", index=False)
    return DataSource(str(folder / "one.csv"))


def test_a_champion_is_replaced_only_by_a_better_model(fresh_root: Root, noise_data: DataSource) -> None:
    first = retrain(noise_data, make_small_spec(), fresh_root)
    assert first.verdict.should_promote, first.verdict
    assert alias_numbers(fresh_root) == {CHAMPION: "1", CHALLENGER: "1"}

    worse = retrain(noise_data, make_small_spec(learning_rate=BAD_LEARNING_RATE), fresh_root)
    assert not worse.verdict.should_promote
    assert "champion" in str(worse.verdict)
    [intervals] = [check for check in worse.verdict.checks if check.name == "intervals"]
    assert "than the champion's" in intervals.reason, "both models have quantiles in the test"
    assert alias_numbers(fresh_root) == {CHAMPION: "1", CHALLENGER: "2"}
    assert worse.champion is not None
    assert worse.champion.facts["run_id"] == first.training.run_id, "the old champion stays in use"

    with pytest.raises(RefusedByGate, match=r"the gate rejected it \(.*champion.*\)\. .*--force --reason"):
        promote_version("small", fresh_root, version_number="2", force=False, reason="manual choice")
    for empty_reason in (None, " "):
        with pytest.raises(InputError, match="Give it with --reason"):
            promote_version("small", fresh_root, version_number="2", force=True, reason=empty_reason)
    assert alias_numbers(fresh_root) == {CHAMPION: "1", CHALLENGER: "2"}
    promote_version("small", fresh_root, version_number="2", force=True, reason="manual choice")
    reason = AuditLog(fresh_root.audit_log).read_entries().entries[-1].reason
    assert reason.startswith("forced against the gate (")
    assert reason.endswith("): manual choice")
    assert alias_numbers(fresh_root) == {CHAMPION: "2", CHALLENGER: "2", PREVIOUS_CHAMPION: "1"}
    better = retrain(noise_data, make_small_spec(seed=1), fresh_root, RetrainOptions(policy=LENIENT_POLICY))
    assert better.verdict.should_promote, better.verdict
    assert alias_numbers(fresh_root) == {CHAMPION: "3", CHALLENGER: "3", PREVIOUS_CHAMPION: "2"}


def test_a_verdict_is_stored_with_the_run_the_version_and_the_root(fresh_root: Root, noise_data: DataSource) -> None:
    result = retrain(
        noise_data,
        make_small_spec(learning_rate=BAD_LEARNING_RATE, valid_windows=2),
        fresh_root,
        RetrainOptions(policy=Policy(latency_ms=1e-6, megabytes=1e-6)),
    )
    assert set(result.verdict.failed_checks) >= {"latency", "size"}
    checks = {check.name: check for check in result.verdict.checks}
    for name in ("coverage", "exposure_gap", "replay", "graph"):
        assert checks[name].value is not None, name
    assert checks["replay"].passed, "the served forecasts are those that were tested"
    assert checks["graph"].passed
    folder = fresh_root.verdicts / result.training.run_id
    assert result.report_path == folder / "report.html"
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["promote"] is False
    assert verdict["policy"]["latency_ms"] == 1e-6
    client = create_client(fresh_root.store_uri)
    assert {"gate/report.html", "gate/verdict.json"} <= list_run_files(client, result.training.run_id)
    for tags in (client.get_run(result.training.run_id).data.tags, client.get_model_version("small", "1").tags):
        assert tags["gate"] == "keep"
        assert {"latency", "size"} <= set(tags["gate_failed"].split(", "))
    unjudged = register_bundle(train(noise_data, make_small_spec(seed=4), fresh_root).bundle, fresh_root)
    with pytest.raises(RefusedByGate, match="megabytes"):
        promote_version(
            "small",
            fresh_root,
            version_number=unjudged.number,
            force=False,
            policy=Policy(megabytes=1e-6, naive_room=100.0),
        )


def test_a_challenger_with_older_data_than_the_champion_is_rejected(
    fresh_root: Root, noise_data: DataSource, tmp_path: Path
) -> None:
    retrain(noise_data, make_small_spec(), fresh_root)
    old = tmp_path / "old.csv"
    make_noise_frame(steps=54).to_csv(old, index=False)
    stale = retrain(DataSource(str(old)), make_small_spec(seed=1), fresh_root, RetrainOptions(policy=LENIENT_POLICY))
    assert "fresh" in stale.verdict.failed_checks
    assert next(check.value for check in stale.verdict.checks if check.name == "fresh") == 6


def test_a_forecast_that_differs_from_the_backtest_is_detected(fresh_root: Root, noise_data: DataSource) -> None:
    training = train(noise_data, make_small_spec(), fresh_root)
    assert training.backtest is not None
    forecasts = training.backtest.forecasts[CHALLENGER]
    leaked_forecasts = (forecasts + training.backtest.actual) / 2
    leaked = replace(training.backtest, forecasts={**training.backtest.forecasts, CHALLENGER: leaked_forecasts})
    assert (
        "replay"
        not in judge(
            training.backtest, None, measure_bundle(training.bundle, training.backtest, champion=None, now=utc_now())
        ).failed_checks
    )
    assert (
        "replay"
        in judge(leaked, None, measure_bundle(training.bundle, leaked, champion=None, now=utc_now())).failed_checks
    )


def test_a_champion_that_changed_during_training_is_kept(
    fresh_root: Root, noise_data: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = retrain(noise_data, make_small_spec(learning_rate=BAD_LEARNING_RATE), fresh_root).version
    promote_version("small", fresh_root, version_number=bad.number, force=True, reason="for this test")
    other = register_bundle(train(noise_data, make_small_spec(seed=2), fresh_root).bundle, fresh_root)

    def train_slowly(*arguments: Any, **options: Any) -> TrainingResult:
        training = train(*arguments, **options)
        Registry(fresh_root.store_uri).promote(other, expected_champion=bad)
        return training

    monkeypatch.setattr(retraining, "train", train_slowly)
    with pytest.raises(BaseMoved, match=f"version {other.number}"):
        retrain(noise_data, make_small_spec(seed=3), fresh_root, RetrainOptions(policy=LENIENT_POLICY))
    assert find_champion(Registry(fresh_root.store_uri), "small") == other


def test_registering_a_bundle_twice_gives_one_version(fresh_root: Root, noise_data: DataSource) -> None:
    training = train(noise_data, make_small_spec(), fresh_root)
    versions = [register_bundle(training.bundle, fresh_root) for _ in range(2)]
    assert versions == [BundleVersion("small", "1", training.digest, training.run_id)] * 2
    assert Registry(fresh_root.store_uri).list_versions("small") == versions[:1]


def test_a_fetched_bundle_equals_the_registered_one(fresh_root: Root, noise_data: DataSource) -> None:
    training = train(noise_data, make_small_spec(), fresh_root)
    folder = fetch_bundle(register_bundle(training.bundle, fresh_root), fresh_root)
    assert folder == fresh_root.bundle_cache / training.digest
    for path in training.bundle.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    artifact.load_bundle(folder)


def test_the_run_contains_everything_needed_for_comparison(fresh_root: Root, noise_data: DataSource) -> None:
    training = train(
        noise_data, make_small_spec(valid_windows=2), fresh_root, TrainOptions(test_windows=2, trigger="schedule")
    )
    client = create_client(fresh_root.store_uri)
    run = client.get_run(training.run_id)
    assert run.info.status == "FINISHED"
    scores = training.scores[CHALLENGER]
    metrics = run.data.metrics
    assert metrics.keys() >= {
        "bt/mase",
        "bt/crps",
        "bt/wql",
        "bt/msis_95",
        "bt/coverage_80",
        "bt/coverage_95",
        "bt_h/crps",
        "bt/seasonal_naive/mase",
        "bt/rmsse",
        "bt/smape",
        "bt/skill_vs_snaive",
        "bt/exposure_gap",
        "bt_h/mase",
        "train/seconds",
        "train/windows_per_s",
        "train/loss",
        "valid/rollout",
    }
    assert metrics["bt/mase"] == pytest.approx(scores["mase"], rel=1e-12)
    skill = 1 - scores["mase"] / training.scores["seasonal_naive"]["mase"]
    assert metrics["bt/skill_vs_snaive"] == pytest.approx(skill, rel=1e-9)
    assert 0 < metrics["bt/crps"] < metrics["bt/mase"], "intervals carry more information than a point forecast"
    assert metrics["train/windows_per_s"] == pytest.approx(4 * 8 / metrics["train/seconds"])
    assert len(client.get_metric_history(training.run_id, "train/loss")) == 2, "one point per epoch"
    curve = sorted(client.get_metric_history(training.run_id, "bt_h/mase"), key=lambda point: point.step)
    assert [point.step for point in curve] == [1, 2, 3, 4]
    assert np.mean([point.value for point in curve]) == pytest.approx(scores["mase"])

    paths = list_run_files(client, training.run_id)
    assert len({path for path in paths if path.startswith("images/")}) == 10, "five figures, small and large"
    assert {path for path in paths if not path.startswith("images/")} == {
        "backtest/forecasts.parquet",
        "backtest/histories.parquet",
        "backtest/reliability.parquet",
        "backtest/scores.parquet",
        "model_card.md",
        "plots/calibration.png",
        "plots/error_by_horizon.png",
        "plots/forecast.png",
        "plots/intervals.png",
        "plots/reliability.png",
    }
    num_training_steps = 60 - 2 * 4
    cutoff = pd.Timestamp("2026-01-01") + pd.Timedelta(hours=num_training_steps - 1)
    assert training.model.cutoff == cutoff, "test windows are not trained on"
    tags = run.data.tags
    assert (tags["trigger"], tags["scored"], tags["refit"]) == ("schedule", CHALLENGER, "false")
    assert tags["cutoff"] == cutoff.isoformat()
    assert tags["bundle_digest"] == training.digest == artifact.compute_bundle_digest(training.bundle)
    assert run.inputs is not None
    dataset = run.inputs.dataset_inputs[0].dataset
    assert dataset.name == "meters"
    assert tags["data_digest"].startswith(dataset.digest)
    assert run.data.params["network.hidden"] == "4"


def test_the_recorded_forecasts_reproduce_the_recorded_score(
    fresh_root: Root, noise_data: DataSource, tmp_path: Path
) -> None:
    training = train(noise_data, make_small_spec(), fresh_root, TrainOptions(test_windows=2))
    path = mlflow.artifacts.download_artifacts(
        run_id=training.run_id,
        artifact_path="backtest/forecasts.parquet",
        dst_path=str(tmp_path),
        tracking_uri=fresh_root.store_uri,
    )
    table = pd.read_parquet(path)
    assert len(table) == 20 * 2 * 4
    assert (table["ds"] > table["cutoff"]).all()
    assert (table["y"] - table[CHALLENGER]).abs().mean() == pytest.approx(training.scores[CHALLENGER]["mae"])


def test_the_manifest_and_the_card_contain_the_scores(fresh_root: Root, noise_data: DataSource) -> None:
    training = train(noise_data, make_small_spec(), fresh_root, TrainOptions(test_windows=2))
    facts = artifact.read_manifest(training.bundle).facts
    assert facts["run_id"] == training.run_id
    assert (facts["data"], facts["series"], facts["left_out"], facts["test_windows"]) == ("meters", 20, 0, 2)
    assert (facts["epochs"], facts["steps"]) == (2, 4)
    assert facts["backtest"] == json.loads(json.dumps(training.scores))
    assert 0 <= facts["reliable_horizon"] <= 4
    card = (training.bundle / "card.md").read_text()
    for scores in training.scores.values():
        assert f"{scores['mase']:.4g}" in card
    assert f"up to step {facts['reliable_horizon']}" in card
    assert "2026-01-03T03:00:00" in card, "the cutoff"
    logged_card = fresh_root.path / "mlruns" / training.run_id / "artifacts" / "model_card.md"
    assert logged_card.read_text() == card


def test_a_model_trained_on_all_data_is_promoted_by_force_only(fresh_root: Root, noise_data: DataSource) -> None:
    training = train(noise_data, make_small_spec(), fresh_root, TrainOptions(test_windows=0))
    assert training.backtest is None
    assert training.model.cutoff == read_panel(noise_data).cutoff
    assert "Not tested" in (training.bundle / "card.md").read_text()
    version = register_bundle(training.bundle, fresh_root)
    with pytest.raises(RefusedByGate, match="never tested"):
        promote_version("small", fresh_root, version_number=version.number, force=False)
    assert find_champion(Registry(fresh_root.store_uri), "small") is None
    promote_version("small", fresh_root, version_number=version.number, force=True)
    assert find_champion(Registry(fresh_root.store_uri), "small") == version


def test_a_model_worse_than_seasonal_naive_is_promoted_by_force_only(fresh_root: Root, tmp_path: Path) -> None:
    y = np.tile([1.0, 5.0, 2.0, 9.0], 15) + np.random.default_rng(0).normal(0, 0.01, 60)
    version = register_bundle(train(write_series(tmp_path, list(y)), make_small_spec(), fresh_root).bundle, fresh_root)
    with pytest.raises(RefusedByGate, match="seasonal naive"):
        promote_version("small", fresh_root, version_number=version.number, force=False)
    promote_version("small", fresh_root, version_number=version.number, force=True)
    assert find_champion(Registry(fresh_root.store_uri), "small") == version


def test_constant_series_can_be_trained_on_and_are_judged_by_absolute_errors(fresh_root: Root, tmp_path: Path) -> None:
    training = train(write_series(tmp_path, [5.0] * 60), make_small_spec(), fresh_root)
    assert training.scores[CHALLENGER]["mase"] is None, "a constant series has no seasonal error for scaling"
    facts = artifact.read_manifest(training.bundle).facts
    assert facts["reliable_horizon"] == 0, "nothing was measured"
    version = register_bundle(training.bundle, fresh_root)
    is_good = training.scores[CHALLENGER]["mae"] <= training.scores["seasonal_naive"]["mae"]
    if is_good:
        promote_version("small", fresh_root, version_number=version.number, force=False)
    else:
        with pytest.raises(RefusedByGate):
            promote_version("small", fresh_root, version_number=version.number, force=False)


def test_a_perfectly_seasonal_series_does_not_fail_training(fresh_root: Root, tmp_path: Path) -> None:
    """The error of seasonal naive is zero then, so a skill relative to it is undefined."""
    y = np.append(np.random.default_rng(0).normal(size=44), np.tile([1.0, 2.0, 3.0, 4.0], 4))
    training = train(write_series(tmp_path, list(y)), make_small_spec(), fresh_root)
    assert training.scores["seasonal_naive"]["mase"] == 0
    run = create_client(fresh_root.store_uri).get_run(training.run_id)
    assert run.info.status == "FINISHED"
    assert "bt/skill_vs_snaive" not in run.data.metrics
    assert "bt/skill_vs_snaive" in run.data.tags["nonfinite"]


def test_a_test_window_without_observations_does_not_fail_training_and_promotes_nobody(
    fresh_root: Root, tmp_path: Path
) -> None:
    y = [*np.random.default_rng(0).normal(size=56), *[np.nan] * 4]
    result = retrain(write_series(tmp_path, y), make_small_spec(), fresh_root)
    assert not result.verdict.should_promote
    assert find_champion(Registry(fresh_root.store_uri), "small") is None


@pytest.mark.parametrize("windows", [0, -1])
def test_retraining_requires_a_test_window(windows: int) -> None:
    with pytest.raises(InputError, match="test window"):
        RetrainOptions(test_windows=windows)


def test_leftovers_of_a_killed_training_are_removed(fresh_root: Root, noise_data: DataSource) -> None:
    training = train(noise_data, make_small_spec(), fresh_root)
    leftovers = [
        fresh_root.bundles / f".{training.run_id}.abcd",
        fresh_root.bundles / f".{training.run_id}.old",
        training.bundle,
    ]
    for folder in leftovers:
        folder.mkdir(exist_ok=True)
        (folder / "card.md").write_text("incomplete card")
    _remove_leftovers(training.bundle)
    assert list(fresh_root.bundles.iterdir()) == []


def test_short_series_and_incomplete_last_periods_are_skipped_and_counted(
    fresh_root: Root, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = make_noise_frame()
    frame.loc[(frame["ds"] == frame["ds"].max()) & frame["unique_id"].isin([f"meter_{i}" for i in range(5)]), "y"] /= 4
    short_series = frame[frame["unique_id"] == "meter_1"].iloc[:9].assign(unique_id="short")
    path = tmp_path / "mixed_lengths.csv"
    pd.concat([frame, short_series]).to_csv(path, index=False)
    training = train(DataSource(str(path), drop_partial=True), make_small_spec(), fresh_root)
    facts = training.model.facts
    assert facts["series"] == 20
    assert facts["left_out"] == 1
    [line] = find_left_out_lines(caplog)
    assert line.startswith(
        f"{path}: 1 of 21 series are too short to be trained on; the longest of them, 'short', has 9 steps"
    )
    assert facts["dropped_partial"] == 5
    assert "treated as missing, in 5 series" in (training.bundle / "card.md").read_text()


def test_a_retraining_logs_the_series_left_out_once_and_its_repetition_does_not(
    fresh_root: Root, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = make_noise_frame(series=4)
    path = tmp_path / "mixed_lengths.csv"
    frame[(frame["unique_id"] != "meter_2") | (frame["ds"] < "2026-01-01T08:00")].to_csv(path, index=False)
    options = RetrainOptions(policy=LENIENT_POLICY)
    counts = []
    for _ in range(2):
        retrain(DataSource(str(path)), make_small_spec(), fresh_root, options)
        counts.append(len(find_left_out_lines(caplog)))
        caplog.clear()
    assert counts == [1, 0]
