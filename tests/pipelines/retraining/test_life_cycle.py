"""The life of a model on a tiny data set and a real store: train, register, promote, retrain."""

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
from forecaster.registry.registry import CHALLENGER, CHAMPION, FORMER, Registry, Version, connect
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.evidence import gather
from pipelines.promotion.gate import judge
from pipelines.promotion.policy import Policy
from pipelines.promotion.promote import champion_of, fetch, promote, register
from pipelines.retraining import retrain as retraining
from pipelines.retraining.retrain import retrain
from pipelines.settings import Root
from pipelines.sources import Data, read
from pipelines.training.train import Trained, _clear, train
from tests.pipelines.conftest import BAD, noise, small

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's


# On a window of twenty series the bad one might have been unlucky, says the gate: here a better score is enough.
EASY = Policy(margin=0.0, confidence=0.51, group_room=10.0)


def aliases(root: Root) -> dict[str, str]:
    """The number that each alias of the small model stands for."""
    registry, found = Registry(root.store), {}
    for alias in (CHAMPION, CHALLENGER, FORMER):
        try:
            found[alias] = registry.resolve("small", alias).number
        except NoSuchModel:
            continue
    return found


def files(client: MlflowClient, run_id: str) -> set[str]:
    """Everything that a run keeps."""

    def below(folder: str | None) -> Sequence[str]:
        entries = client.list_artifacts(run_id, folder)
        return [path for one in entries for path in (below(one.path) if one.is_dir else [one.path])]

    return set(below(None))


def write(folder: Path, y: Sequence[float]) -> Data:
    stamps = pd.date_range("2026-01-01", periods=len(y), freq="h")
    pd.DataFrame({"unique_id": "a", "ds": stamps, "y": y}).to_csv(folder / "one.csv", index=False)
    return Data(str(folder / "one.csv"))


def test_a_champion_is_replaced_only_by_what_is_better(fresh: Root, data: Data) -> None:
    first = retrain(data, small(), fresh)
    assert first.verdict.promote, first.verdict
    assert aliases(fresh) == {CHAMPION: "1", CHALLENGER: "1"}

    worse = retrain(data, small(learning_rate=BAD), fresh)
    assert not worse.verdict.promote
    assert "champion" in str(worse.verdict)
    assert aliases(fresh) == {CHAMPION: "1", CHALLENGER: "2"}
    assert worse.champion is not None
    assert worse.champion.facts["run_id"] == first.trained.run_id, "the old one goes on answering"

    with pytest.raises(RefusedByGate, match=r"judged and refused \(.*champion.*\)\. .*--force --reason"):
        promote("small", fresh, number="2", force=False, reason="a person likes it")
    for nothing in (None, " "):
        with pytest.raises(InputError, match="Say it with --reason"):
            promote("small", fresh, number="2", force=True, reason=nothing)
    assert aliases(fresh) == {CHAMPION: "1", CHALLENGER: "2"}
    promote("small", fresh, number="2", force=True, reason="a person likes it")
    reason = AuditLog(fresh.audit).read().lines[-1].reason
    assert reason.startswith("forced against the gate (")
    assert reason.endswith("): a person likes it")
    assert aliases(fresh) == {CHAMPION: "2", CHALLENGER: "2", FORMER: "1"}
    better = retrain(data, small(seed=1), fresh, policy=EASY)
    assert better.verdict.promote, better.verdict
    assert aliases(fresh) == {CHAMPION: "3", CHALLENGER: "3", FORMER: "2"}


def test_a_verdict_is_kept_with_the_run_the_version_and_the_root(fresh: Root, data: Data) -> None:
    done = retrain(
        data, small(learning_rate=BAD, valid_windows=2), fresh, policy=Policy(latency_ms=1e-6, megabytes=1e-6)
    )
    assert set(done.verdict.failed) >= {"latency", "size"}
    measured = {check.name: check for check in done.verdict.checks}
    for name in ("coverage", "exposure_gap", "replay", "graph"):
        assert measured[name].value is not None, name
    assert measured["replay"].passed, "what is served is what was tested"
    assert measured["graph"].passed
    folder = fresh.verdicts / done.trained.run_id
    assert done.report == folder / "report.html"
    told = json.loads((folder / "verdict.json").read_text())
    assert told["promote"] is False
    assert told["policy"]["latency_ms"] == 1e-6
    client = connect(fresh.store)
    assert {"gate/report.html", "gate/verdict.json"} <= files(client, done.trained.run_id)
    for tags in (client.get_run(done.trained.run_id).data.tags, client.get_model_version("small", "1").tags):
        assert tags["gate"] == "keep"
        assert {"latency", "size"} <= set(tags["gate_failed"].split(", "))
    unjudged = register(train(data, small(seed=4), fresh).bundle, fresh)
    with pytest.raises(RefusedByGate, match="megabytes"):
        promote("small", fresh, number=unjudged.number, force=False, policy=Policy(megabytes=1e-6, naive_room=100.0))


def test_one_whose_data_are_older_than_the_champions_is_refused(fresh: Root, data: Data, tmp_path: Path) -> None:
    retrain(data, small(), fresh)
    old = tmp_path / "old.csv"
    noise(steps=54).to_csv(old, index=False)
    stale = retrain(Data(str(old)), small(seed=1), fresh, policy=EASY)
    assert "fresh" in stale.verdict.failed
    assert next(check.value for check in stale.verdict.checks if check.name == "fresh") == 6


def test_an_answer_that_the_backtest_did_not_get_is_seen(fresh: Root, data: Data) -> None:
    trained = train(data, small(), fresh)
    assert trained.result is not None
    honest = trained.result.forecasts[CHALLENGER]
    seen = (honest + trained.result.actual) / 2
    leaked = replace(trained.result, forecasts={**trained.result.forecasts, CHALLENGER: seen})
    assert "replay" not in judge(trained.result, None, gather(trained.bundle, trained.result, base=None)).failed
    assert "replay" in judge(leaked, None, gather(trained.bundle, leaked, base=None)).failed


def test_the_very_champion_trained_again_is_not_better_than_itself(fresh: Root, data: Data) -> None:
    assert retrain(data, small(), fresh).verdict.promote
    again = retrain(data, small(), fresh)
    assert not again.verdict.promote
    assert again.version.number == "2", "another run, hence another bundle"
    assert aliases(fresh) == {CHAMPION: "1", CHALLENGER: "2"}


def test_a_champion_that_changed_while_a_challenger_was_trained_stays(
    fresh: Root, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = retrain(data, small(learning_rate=BAD), fresh).version
    promote("small", fresh, number=bad.number, force=True, reason="for this test")
    other = register(train(data, small(seed=2), fresh).bundle, fresh)

    def train_slowly(*arguments: Any, **options: Any) -> Trained:
        trained = train(*arguments, **options)
        Registry(fresh.store).promote(other, base=bad)
        return trained

    monkeypatch.setattr(retraining, "train", train_slowly)
    with pytest.raises(BaseMoved, match=f"version {other.number}"):
        retrain(data, small(seed=3), fresh, policy=EASY)
    assert champion_of(Registry(fresh.store), "small") == other


def test_a_bundle_that_is_registered_twice_is_one_version(fresh: Root, data: Data) -> None:
    trained = train(data, small(), fresh)
    versions = [register(trained.bundle, fresh) for _ in range(2)]
    assert versions == [Version("small", "1", trained.digest, trained.run_id)] * 2
    assert Registry(fresh.store).versions("small") == versions[:1]


def test_a_fetched_bundle_is_the_one_that_was_registered(fresh: Root, data: Data) -> None:
    trained = train(data, small(), fresh)
    folder = fetch(register(trained.bundle, fresh), fresh)
    assert folder == fresh.fetched / trained.digest
    for path in trained.bundle.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    artifact.load(folder)


def test_the_run_holds_all_that_runs_are_compared_by(fresh: Root, data: Data) -> None:
    trained = train(data, small(valid_windows=2), fresh, test_windows=2, trigger="schedule")
    client = connect(fresh.store)
    run = client.get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    scores = trained.scores[CHALLENGER]
    metrics = run.data.metrics
    assert metrics.keys() >= {
        "bt/mase",
        "bt/crps",
        "bt/wql",
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
    skill = 1 - scores["mase"] / trained.scores["seasonal_naive"]["mase"]
    assert metrics["bt/skill_vs_snaive"] == pytest.approx(skill, rel=1e-9)
    assert 0 < metrics["bt/crps"] < metrics["bt/mase"], "bands say more than a point"
    assert metrics["train/windows_per_s"] == pytest.approx(4 * 8 / metrics["train/seconds"])
    assert len(client.get_metric_history(trained.run_id, "train/loss")) == 2, "one an epoch"
    curve = sorted(client.get_metric_history(trained.run_id, "bt_h/mase"), key=lambda point: point.step)
    assert [point.step for point in curve] == [1, 2, 3, 4]
    assert np.mean([point.value for point in curve]) == pytest.approx(scores["mase"])

    kept = files(client, trained.run_id)
    assert len({path for path in kept if path.startswith("images/")}) == 6, "three pictures, small and large"
    assert {path for path in kept if not path.startswith("images/")} == {
        "backtest/forecasts.parquet",
        "backtest/histories.parquet",
        "backtest/scores.parquet",
        "model_card.md",
        "plots/calibration.png",
        "plots/error_by_horizon.png",
        "plots/forecast.png",
    }
    known = 60 - 2 * 4
    cutoff = pd.Timestamp("2026-01-01") + pd.Timedelta(hours=known - 1)
    assert trained.forecaster.cutoff == cutoff, "what is tested on was not known"
    tags = run.data.tags
    assert (tags["trigger"], tags["scored"], tags["refit"]) == ("schedule", CHALLENGER, "false")
    assert tags["cutoff"] == cutoff.isoformat()
    assert tags["bundle_digest"] == trained.digest == artifact.digest(trained.bundle)
    assert run.inputs is not None
    recorded = run.inputs.dataset_inputs[0].dataset
    assert recorded.name == "meters"
    assert tags["data_digest"].startswith(recorded.digest)
    assert run.data.params["network.hidden"] == "4"


def test_the_recorded_forecasts_give_the_recorded_score(fresh: Root, data: Data, tmp_path: Path) -> None:
    trained = train(data, small(), fresh, test_windows=2)
    path = mlflow.artifacts.download_artifacts(
        run_id=trained.run_id,
        artifact_path="backtest/forecasts.parquet",
        dst_path=str(tmp_path),
        tracking_uri=fresh.store,
    )
    table = pd.read_parquet(path)
    assert len(table) == 20 * 2 * 4
    assert (table["ds"] > table["cutoff"]).all()
    assert (table["y"] - table[CHALLENGER]).abs().mean() == pytest.approx(trained.scores[CHALLENGER]["mae"])


def test_the_manifest_and_the_card_say_what_was_measured(fresh: Root, data: Data) -> None:
    trained = train(data, small(), fresh, test_windows=2)
    facts = artifact.read_manifest(trained.bundle).facts
    assert facts["run_id"] == trained.run_id
    assert (facts["data"], facts["series"], facts["left_out"], facts["test_windows"]) == ("meters", 20, 0, 2)
    assert (facts["epochs"], facts["steps"]) == (2, 4)
    assert facts["backtest"] == json.loads(json.dumps(trained.scores))
    assert 0 <= facts["reliable_horizon"] <= 4
    card = (trained.bundle / "card.md").read_text()
    for scores in trained.scores.values():
        assert f"{scores['mase']:.4g}" in card
    assert f"up to step {facts['reliable_horizon']}" in card
    assert "2026-01-03T03:00:00" in card, "the cutoff"
    kept = fresh.path / "mlruns" / trained.run_id / "artifacts" / "model_card.md"
    assert kept.read_text() == card


def test_what_was_trained_on_everything_is_promoted_by_force_alone(fresh: Root, data: Data) -> None:
    trained = train(data, small(), fresh, test_windows=0)
    assert trained.result is None
    assert trained.forecaster.cutoff == read(data).cutoff
    assert "Not tested" in (trained.bundle / "card.md").read_text()
    version = register(trained.bundle, fresh)
    with pytest.raises(RefusedByGate, match="never tested"):
        promote("small", fresh, number=version.number, force=False)
    assert champion_of(Registry(fresh.store), "small") is None
    promote("small", fresh, number=version.number, force=True)
    assert champion_of(Registry(fresh.store), "small") == version


def test_what_is_worse_than_seasonal_naive_is_promoted_by_force_alone(fresh: Root, tmp_path: Path) -> None:
    season = np.tile([1.0, 5.0, 2.0, 9.0], 15) + np.random.default_rng(0).normal(0, 0.01, 60)
    version = register(train(write(tmp_path, list(season)), small(), fresh).bundle, fresh)
    with pytest.raises(RefusedByGate, match="seasonal naive"):
        promote("small", fresh, number=version.number, force=False)
    promote("small", fresh, number=version.number, force=True)
    assert champion_of(Registry(fresh.store), "small") == version


def test_constant_series_are_trained_on_and_judged_by_absolute_errors(fresh: Root, tmp_path: Path) -> None:
    trained = train(write(tmp_path, [5.0] * 60), small(), fresh)
    assert trained.scores[CHALLENGER]["mase"] is None, "a constant has no seasonal error to be measured in"
    facts = artifact.read_manifest(trained.bundle).facts
    assert facts["reliable_horizon"] == 0, "nothing was measured"
    version = register(trained.bundle, fresh)
    exact = trained.scores[CHALLENGER]["mae"] <= trained.scores["seasonal_naive"]["mae"]
    if exact:
        promote("small", fresh, number=version.number, force=False)
    else:
        with pytest.raises(RefusedByGate):
            promote("small", fresh, number=version.number, force=False)


def test_a_season_that_repeats_itself_exactly_costs_no_training(fresh: Root, tmp_path: Path) -> None:
    """Seasonal naive makes no error then, and a skill relative to it does not exist."""
    y = np.append(np.random.default_rng(0).normal(size=44), np.tile([1.0, 2.0, 3.0, 4.0], 4))
    trained = train(write(tmp_path, list(y)), small(), fresh)
    assert trained.scores["seasonal_naive"]["mase"] == 0
    run = connect(fresh.store).get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert "bt/skill_vs_snaive" not in run.data.metrics
    assert "bt/skill_vs_snaive" in run.data.tags["nonfinite"]


def test_a_test_window_without_an_observation_costs_no_training_and_promotes_nobody(
    fresh: Root, tmp_path: Path
) -> None:
    y = [*np.random.default_rng(0).normal(size=56), *[np.nan] * 4]
    done = retrain(write(tmp_path, y), small(), fresh)
    assert not done.verdict.promote
    assert champion_of(Registry(fresh.store), "small") is None


@pytest.mark.parametrize("windows", [0, -1])
def test_retraining_needs_a_window_to_judge_by(windows: int, fresh: Root, data: Data) -> None:
    with pytest.raises(InputError, match="test window"):
        retrain(data, small(), fresh, test_windows=windows)


def test_what_a_killed_training_left_in_the_place_of_its_bundle_is_cleared_away(fresh: Root, data: Data) -> None:
    trained = train(data, small(), fresh)
    left = [fresh.bundles / f".{trained.run_id}.abcd", fresh.bundles / f".{trained.run_id}.old", trained.bundle]
    for folder in left:
        folder.mkdir(exist_ok=True)
        (folder / "card.md").write_text("half a card")
    _clear(trained.bundle)
    assert list(fresh.bundles.iterdir()) == []


def test_short_series_are_left_out_and_counted(fresh: Root, tmp_path: Path) -> None:
    frame = noise()
    short = frame[frame["unique_id"] == "meter_1"].iloc[:9].assign(unique_id="short")
    path = tmp_path / "some.csv"
    pd.concat([frame, short]).to_csv(path, index=False)
    trained = train(Data(str(path)), small(), fresh)
    facts = trained.forecaster.facts
    assert facts["series"] == 20
    assert facts["left_out"] == 1
