"""A hyperparameter search on tiny data and real stores: its trials, its result, its runs and its resumption."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow.artifacts
import numpy as np
import optuna
import pandas as pd
import pytest
from mlflow.entities import Run

from forecaster.bundle.pretrained.specification import base_spec
from forecaster.data.frames.panel import to_panel
from forecaster.data.split import hold_out
from forecaster.errors import InputError, TrainingError
from forecaster.registry.registry import create_client
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import FitResult, fit
from forecaster.training.lightning import pl
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel, read_spec
from pipelines.training.train import train
from pipelines.tuning import trials as tuning
from pipelines.tuning.plots import plot_optimization_history, plot_param_importances
from pipelines.tuning.results import TuningResult
from pipelines.tuning.search import _score_baselines, _select_search_panel, tune
from pipelines.tuning.study import DONE, PRUNED, REFUSED, PruningCallback, TrialResult, _hold_search_lock
from tests.pipelines.conftest import make_small_spec

pytestmark = pytest.mark.integration

SPEC = make_small_spec(steps=6, epoch_steps=2, valid_windows=2)
TRIAL_COUNT = 4

RunSearch = Callable[..., TuningResult]


def copy_migrated_root(migrated: Path, folder: Path) -> Root:
    folder.mkdir()
    shutil.copy(migrated / "mlflow.db", folder)
    return Root(folder)


def run_search(
    data: DataSource, root: Root, *, spec: Spec = SPEC, trials: int = TRIAL_COUNT, **options: Any
) -> TuningResult:
    return tune(data, spec, root, output_path=root.path / "best.yaml", n_trials=trials, **options)


@pytest.fixture(scope="module")
def finished_search(
    six_meters: DataSource, migrated_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TuningResult, Root]:
    """A search that was not interrupted."""
    root = copy_migrated_root(migrated_root, tmp_path_factory.mktemp("done") / "root")
    return run_search(six_meters, root), root


def comparable_trials(result: Sequence[TrialResult]) -> list[TrialResult]:
    """Removes the fields that differ between processes."""
    return [trial._replace(seconds=None, run_id=None) for trial in result]


def reported_rollouts(root: Root) -> list[dict[int, float]]:
    """Returns the reported value of every epoch of the finished trials."""
    [name] = optuna.get_all_study_names(root.studies_url)
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    study = optuna.load_study(study_name=name, storage=root.studies_url)
    return [trial.intermediate_values for trial in study.get_trials(states=states)]


def child_runs(root: Root, parent: str) -> list[Run]:
    client = create_client(root.store_uri)
    experiment = client.get_run(parent).info.experiment_id
    runs = client.search_runs([experiment], filter_string=f"tags.`mlflow.parentRunId` = '{parent}'")
    return sorted(runs, key=lambda run: int(run.data.tags["trial"]))


def test_a_search_keeps_the_trial_with_the_best_rollout_and_tries_the_given_spec_first(
    finished_search: tuple[TuningResult, Root],
) -> None:
    tuned, _ = finished_search
    trained = [trial for trial in tuned.trials if trial.state != REFUSED]
    assert [trial.trial for trial in trained] == list(range(1, TRIAL_COUNT + 1))
    assert trained[0].params["training.learning_rate"] == SPEC.training.learning_rate
    assert trained[0].params["context"] == SPEC.context
    assert len({tuple(trial.params.values()) for trial in trained}) == TRIAL_COUNT
    assert (
        tuned.best_value
        == tuned.ranked_trials[0].value
        == min(trial.value for trial in trained if trial.state == DONE and trial.value)
    )
    assert read_spec(tuned.output_path) == tuned.spec
    assert tuned.spec.horizon == SPEC.horizon


def test_an_inconsistent_spec_is_rejected_immediately_and_uses_no_trial(
    six_meters: DataSource, fresh_root: Root
) -> None:
    tuned = run_search(six_meters, fresh_root, spec=SPEC.model_copy(update={"horizon": 6}), trials=5)
    rejected = [trial for trial in tuned.trials if trial.state == REFUSED]
    assert rejected, "for example a context of 4 with a segment of 3"
    for trial in rejected:
        is_indivisible = trial.params["context"] % trial.params["segment"]
        assert ("multiple of segment" if is_indivisible else "mean_abs") in (trial.fault or "")
        assert (trial.trial, trial.run_id, trial.value, trial.epochs) == (None, None, None, 0)
    assert sum(trial.state != REFUSED for trial in tuned.trials) == 5
    assert len(child_runs(fresh_root, tuned.run_id)) == 5


def test_training_the_best_spec_reproduces_the_search(
    six_meters: DataSource, finished_search: tuple[TuningResult, Root], fresh_root: Root
) -> None:
    tuned, _ = finished_search
    trained = train(six_meters, read_spec(tuned.output_path), fresh_root)
    assert trained.model.facts["validation"]["valid/rollout"] == tuned.best_value


def test_the_runs_describe_the_search_and_every_trial(
    finished_search: tuple[TuningResult, Root], tmp_path: Path
) -> None:
    tuned, root = finished_search
    client = create_client(root.store_uri)
    parent = client.get_run(tuned.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["best.network.hidden"] == str(tuned.spec.network.hidden)
    assert parent.data.params["best.trial"] == str(tuned.ranked_trials[0].trial)
    assert parent.data.params["network.hidden"] == str(SPEC.network.hidden), "the center of the search"
    assert parent.data.metrics["tune/value"] == tuned.best_value
    for name in ("seasonal_naive", "last_value", "zero_shot"):
        assert parent.data.metrics[f"tune/{name}"] == tuned.baseline_values[name]
    assert parent.data.metrics["tune/trials"] == TRIAL_COUNT
    history = client.get_metric_history(tuned.run_id, "tune/value")
    best = [point.value for point in sorted(history, key=lambda point: point.step)]
    assert [point.step for point in history] == list(range(1, TRIAL_COUNT + 1))
    assert best == sorted(best, reverse=True)

    runs, trained = child_runs(root, tuned.run_id), [trial for trial in tuned.trials if trial.state != REFUSED]
    assert [run.info.run_name for run in runs] == [f"trial {number}" for number in range(1, TRIAL_COUNT + 1)]
    for run, trial in zip(runs, trained, strict=True):
        assert run.info.status == "FINISHED"
        assert run.info.run_id == trial.run_id
        assert run.data.tags["state"] == trial.state
        assert run.data.tags["trigger"] == "tune"
        assert run.data.tags["data_digest"] == parent.data.tags["data_digest"]
        for path, value in trial.params.items():
            assert run.data.params[path] == str(value)
        assert run.data.metrics.keys() >= {"train/loss", "valid/rollout", "valid/one_step", "train/windows_per_s"}
        if trial.state == DONE:
            assert run.data.metrics["tune/value"] == trial.value
        assert len(client.get_metric_history(run.info.run_id, "valid/rollout")) == trial.epochs

    folder = Path(
        mlflow.artifacts.download_artifacts(
            run_id=tuned.run_id, artifact_path="", dst_path=str(tmp_path), tracking_uri=root.store_uri
        )
    )
    assert (folder / "plots/optimization_history.png").stat().st_size > 1000
    assert read_spec(folder / "best.yaml") == tuned.spec
    table = pd.read_csv(folder / "tune/trials.csv")
    assert table["state"].tolist() == [trial.state for trial in tuned.trials]
    assert table["value"].min() == tuned.best_value
    assert table["network.hidden"].tolist() == [trial.params["network.hidden"] for trial in tuned.trials]


def test_test_windows_do_not_affect_the_search(
    six_meters: DataSource, finished_search: tuple[TuningResult, Root], fresh_root: Root, tmp_path: Path
) -> None:
    frame = pd.read_csv(six_meters.source)
    last = frame.groupby("unique_id").cumcount(ascending=False) < SPEC.horizon
    frame.loc[last, "y"] = 1000 * np.arange(last.sum()) - 3e6
    frame.to_csv(tmp_path / "meters.csv", index=False)
    tuned, root = finished_search
    other = run_search(DataSource(str(tmp_path / "meters.csv")), fresh_root)
    assert other.spec == tuned.spec
    assert (other.best_value, other.seasonal_naive_value) == (tuned.best_value, tuned.seasonal_naive_value)
    assert comparable_trials(other.trials) == comparable_trials(tuned.trials)
    assert reported_rollouts(fresh_root) == reported_rollouts(root)
    assert optuna.get_all_study_names(fresh_root.studies_url) == optuna.get_all_study_names(root.studies_url)


def test_validation_windows_determine_the_search(
    six_meters: DataSource, finished_search: tuple[TuningResult, Root], fresh_root: Root
) -> None:
    tuned, root = finished_search
    other = run_search(six_meters, fresh_root, test_windows=2, trials=1)
    assert comparable_trials(other.trials)[0].value != tuned.trials[0].value
    assert optuna.get_all_study_names(fresh_root.studies_url) != optuna.get_all_study_names(root.studies_url)


class SearchInterrupted(Exception):
    """Ends a process in the middle of a trial."""


class InterruptFit(pl.Callback):
    """Interrupts a fit after its first epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise SearchInterrupted


def search_until_interrupted(trial: int, data: DataSource, root: Root) -> None:
    """Runs a search that is interrupted in the trial with this number."""
    fits = 0

    def interrupted_fit(panel: Panel, spec: Spec, *, callbacks: Sequence[pl.Callback], **options: Any) -> FitResult:
        nonlocal fits
        fits += 1
        return fit(panel, spec, callbacks=[*callbacks, *([InterruptFit()] if fits == trial else [])], **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tuning, "fit", interrupted_fit)
        with pytest.raises(SearchInterrupted):
            run_search(data, root)


def test_an_interrupted_search_resumes_and_gives_the_same_result(
    six_meters: DataSource,
    finished_search: tuple[TuningResult, Root],
    fresh_root: Root,
    caplog: pytest.LogCaptureFixture,
) -> None:
    search_until_interrupted(3, six_meters, fresh_root)
    caplog.clear()
    with caplog.at_level("INFO"):
        resumed = run_search(six_meters, fresh_root)
    tuned, root = finished_search
    assert f"2 of {TRIAL_COUNT} trials are done, 1 was interrupted and is repeated." in caplog.text
    assert comparable_trials(resumed.trials) == comparable_trials(tuned.trials)
    assert reported_rollouts(fresh_root) == reported_rollouts(root)
    assert resumed.spec == tuned.spec
    runs = child_runs(fresh_root, resumed.run_id)
    assert [run.data.tags["trial"] for run in runs] == ["1", "2", "3", "3", "4"]
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 4 + ["KILLED"]
    assert create_client(fresh_root.store_uri).get_run(resumed.run_id).info.status == "FINISHED"


def test_a_search_interrupted_in_its_first_trial_tries_the_given_spec_first(
    six_meters: DataSource, fresh_root: Root
) -> None:
    for _ in range(2):
        search_until_interrupted(1, six_meters, fresh_root)
    resumed = run_search(six_meters, fresh_root, trials=1)
    assert [trial.params["network.hidden"] for trial in resumed.trials] == [SPEC.network.hidden]


def test_at_the_time_limit_the_running_trial_completes_and_the_search_can_resume(
    six_meters: DataSource, finished_search: tuple[TuningResult, Root], fresh_root: Root
) -> None:
    first = run_search(six_meters, fresh_root, timeout=1e-9)
    assert len(first.trials) == 1
    assert first.spec.training == SPEC.training
    complete = run_search(six_meters, fresh_root)
    assert comparable_trials(complete.trials) == comparable_trials(finished_search[0].trials)
    assert complete.run_id != first.run_id, "the first run had ended"
    assert len(child_runs(fresh_root, complete.run_id)) == TRIAL_COUNT - 1
    further = run_search(six_meters, fresh_root)
    assert further.trials == complete.trials, "no trial is left"
    assert child_runs(fresh_root, further.run_id) == []


def test_a_different_seed_is_a_different_search(
    six_meters: DataSource, finished_search: tuple[TuningResult, Root], fresh_root: Root
) -> None:
    other = run_search(six_meters, fresh_root, seed=1, trials=2)
    assert comparable_trials(other.trials)[0] == comparable_trials(finished_search[0].trials)[0]
    assert other.trials[1].params != finished_search[0].trials[1].params


def test_a_diverging_network_is_pruned_and_the_search_continues(six_meters: DataSource, fresh_root: Root) -> None:
    tuned = run_search(six_meters, fresh_root, spec=make_small_spec(learning_rate=1e30, valid_windows=2), trials=3)
    first, *others = [trial for trial in tuned.trials if trial.state != REFUSED]
    assert first.state == PRUNED
    assert "finite" in (first.fault or "")
    assert any(trial.state == DONE for trial in others)
    assert child_runs(fresh_root, tuned.run_id)[0].info.status == "FAILED"


def test_a_search_without_a_completed_trial_reports_it(six_meters: DataSource, fresh_root: Root) -> None:
    with pytest.raises(TrainingError, match=r"none of 1 did.*finite"):
        run_search(six_meters, fresh_root, spec=make_small_spec(learning_rate=1e30, valid_windows=2), trials=1)


class StubOptunaTrial:
    """Records reported values, and is pruned after `after` of them."""

    def __init__(self, after: int) -> None:
        self.values: dict[int, float] = {}
        self._after = after

    def report(self, value: float, step: int) -> None:
        self.values[step] = value

    def should_prune(self) -> bool:
        return len(self.values) >= self._after


@pytest.mark.parametrize(("after", "epochs", "pruned"), [(1, 1, True), (2, 2, True), (3, 3, False), (9, 3, False)])
def test_a_pruned_fit_stops_after_its_epoch_and_a_completed_one_is_not_pruned(
    after: int, epochs: int, pruned: bool, six_meters: DataSource
) -> None:
    trial = StubOptunaTrial(after)
    pruning_callback = PruningCallback(trial)  # type: ignore[arg-type]
    fitted = fit(read_panel(six_meters), SPEC, callbacks=[pruning_callback])
    assert (fitted.epochs, pruning_callback.was_pruned) == (epochs, pruned)
    assert list(trial.values) == list(range(epochs))
    assert min(trial.values.values()) == fitted.scores["valid/rollout"]


def test_baselines_are_scored_like_the_trials(six_meters: DataSource) -> None:
    frame = pd.read_csv(six_meters.source)
    frame.loc[[57, 118, 119], "y"] = np.nan  # in the last window of series that continue after it
    frame["ds"] = pd.to_datetime(frame["ds"])
    panel = to_panel(frame)
    assert {len(series) for series in panel.series} == {60}
    errors = {}
    training_windows = {name: getattr(SPEC.training, name) for name in ("valid_windows", "valid_stride")}
    for name, base in (("seasonal_naive", "seasonal_naive"), ("last_value", "last")):
        spec = SPEC.model_copy(update={"base": base, "context": 40, "min_history": 8})
        constant_training = spec.training.model_copy(update={"learning_rate": 1e-30})
        errors[name] = fit(panel, spec.model_copy(update={"training": constant_training})).scores["valid/rollout"]
    untrained = base_spec(4, horizon=SPEC.horizon, training={**training_windows, "initial": "base", "steps": 0})
    errors["zero_shot"] = fit(panel, untrained).scores["valid/rollout"]
    assert _score_baselines(panel, SPEC, season=4) == pytest.approx(errors, rel=1e-5)
    names = list(_score_baselines(panel, SPEC, season=1))
    assert names == ["seasonal_naive", "zero_shot"], "without a season seasonal naive and the last value are one"


def test_series_too_short_for_all_windows_are_excluded_from_trials(six_meters: DataSource) -> None:
    panel = read_panel(six_meters)
    shortened = [series.take_first(steps) for series, steps in zip(panel.series, [60, 60, 21, 20, 60, 60], strict=True)]
    search_panel = _select_search_panel(Panel(shortened, panel.freq), SPEC, test_windows=1)
    assert [len(series) for series in search_panel.series] == [56, 56, 17, 56, 56], (
        "a context of 8, 1 training step, 2 validation and 1 test windows of 4"
    )
    assert len(hold_out(search_panel, 8, min_history=9).excluded_ids) == 0


def test_the_history_plot_shows_trials_the_best_value_and_the_baselines() -> None:
    trials = [(1, 0.9, True), (2, 0.7, False), (3, 0.8, True), (4, 50.0, False), (5, math.inf, False)]
    figure = plot_optimization_history(
        trials, baseline_values={"seasonal naive": 1.0, "last value": 1.1}, title="a search"
    )
    figure.savefig(io.BytesIO())
    [axes] = figure.axes
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert lines["best so far"] == [0.9, 0.9, 0.8, 0.8, 0.8], "a pruned trial cannot be the best"
    assert set(lines["seasonal naive"]) == {1.0}
    assert set(lines["last value"]) == {1.1}
    assert axes.get_ylim()[1] < 1.6, "an outlier does not flatten the rest"
    only_pruned = plot_optimization_history(
        [(1, 1.0, False)], baseline_values={"seasonal naive": 1.0}, title="only pruned trials"
    )
    only_pruned.savefig(io.BytesIO())


def test_the_importance_plot_has_one_bar_per_parameter_in_order() -> None:
    [axes] = plot_param_importances({"context": 0.75, "segment": 0.25}, title="a search").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["segment", "context"]
    assert [patch.get_width() for patch in axes.patches] == [0.25, 0.75]


def test_importance_identifies_the_decisive_parameter(fresh_root: Root) -> None:
    from pipelines.tuning.study import open_study

    space = {"decides": (0, 1), "idle": (0, 1)}
    with open_study(
        fresh_root.checkpoints, fresh_root.studies_url, "synthetic", space, seed=0, warm_up_epochs=1
    ) as study:
        assert study.compute_importances() == {}
        for number in range(1, 25):
            trial = study.ask({"decides": 1, "idle": 1})
            study.start_trial(trial, trial_number=number, run_id="none")
            study.finish_trial(trial, 1.0 - 0.5 * trial.params["decides"] + 0.001 * number)
        importances = study.compute_importances()
    assert list(importances) == ["decides", "idle"]
    assert sum(importances.values()) == pytest.approx(1.0)


def test_the_same_search_does_not_run_twice_concurrently(
    six_meters: DataSource, finished_search: tuple[TuningResult, Root]
) -> None:
    _, root = finished_search
    [name] = optuna.get_all_study_names(root.studies_url)
    with _hold_search_lock(root.checkpoints / f"{name}.lock"), pytest.raises(TrainingError, match="already running"):
        run_search(six_meters, root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "--trials of at least 1; found 0"),
        ({"timeout": 0.0}, "--timeout of more than 0"),
        ({"timeout": math.nan}, "--timeout of more than 0"),
        ({"seed": -1}, "--seed of at least 0"),
        ({"test_windows": -1}, "--test-windows of at least 0"),
        ({"spec": make_small_spec(valid_windows=0)}, "--valid-windows of at least 1"),
        ({"test_windows": 100}, "fewer windows"),
        ({"spec": base_spec(4, horizon=4, training={"initial": "base", "steps": 10})}, "training.initial 'random'"),
    ],
)
def test_an_impossible_search_is_rejected_before_anything_is_written(
    options: dict[str, Any], message: str, six_meters: DataSource, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run_search(six_meters, Root(tmp_path / "root"), **options)
    assert not (tmp_path / "root").exists()


def test_a_run_left_open_on_another_server_is_not_resumed(
    six_meters: DataSource, fresh_root: Root, migrated_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search is stored in the root, but the tracking server may have changed since its run was opened."""
    search_until_interrupted(1, six_meters, fresh_root)
    elsewhere = copy_migrated_root(migrated_root, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)  # where MLflow puts the files of a store without an artifact location
    tuned = run_search(six_meters, Root(fresh_root.path, elsewhere.store_uri), trials=1)
    assert create_client(elsewhere.store_uri).get_run(tuned.run_id).info.status == "FINISHED"
