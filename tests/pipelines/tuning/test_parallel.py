"""A search in batches: a function of the seed and the size of a batch, whatever fits the trials and how often it is killed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from forecaster.errors import InputError
from forecaster.registry.registry import create_client
from forecaster.training.fit import fit
from pipelines.scheduling.ray_tasks import open_runner
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.tuning import study
from pipelines.tuning.results import TuningResult
from pipelines.tuning.study import DONE, PRUNED, REFUSED, PruningCallback, open_study
from tests.case_selection import sample_cases
from tests.elsewhere import run_elsewhere
from tests.optional_packages import import_optional
from tests.pipelines.conftest import make_small_spec
from tests.pipelines.scheduling.test_ray_tasks import StubRay
from tests.pipelines.tuning.test_search import SPEC, child_runs, copy_migrated_root, reported_rollouts, run_search

pytestmark = pytest.mark.integration

TRIAL_COUNT = 6


class SearchKilled(BaseException):
    """Ends a process at any place."""


@pytest.fixture
def eager_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses the sampler's model and the pruner from the first trials on."""
    monkeypatch.setattr(study, "_SAMPLER_STARTUP_TRIALS", 2)
    monkeypatch.setattr(study, "_PRUNER_STARTUP_TRIALS", 1)


def read_trials(root: Root) -> list[tuple[Any, ...]]:
    """Returns what a study keeps of its trials, apart from times and runs; trials that failed are left out."""
    [name] = optuna.get_all_study_names(root.studies_url)
    trials = optuna.load_study(study_name=name, storage=root.studies_url).get_trials()
    return [
        (trial.params, trial.state.name, trial.value, trial.intermediate_values, trial.user_attrs.get("trial"))
        for trial in trials
        if trial.state != optuna.trial.TrialState.FAIL
    ]


def run_parallel(data: DataSource, root: Root, *, trials: int = TRIAL_COUNT, **options: Any) -> TuningResult:
    return run_search(data, root, trials=trials, parallel=2, **options)


def make_root(migrated: Path, folder: Path) -> Root:
    return copy_migrated_root(migrated, folder)


def test_workers_that_finish_in_another_order_give_the_same_study(
    six_meters: DataSource, migrated_root: Path, tmp_path: Path, eager_study: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = [make_root(migrated_root, tmp_path / name) for name in ("plain", "reversed", "ray")]
    plain = run_parallel(six_meters, roots[0])
    run_parallel(six_meters, roots[1], run_steps=run_elsewhere)
    monkeypatch.setitem(sys.modules, "ray", StubRay())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with open_runner("ray", workers=None) as tasks:
        other = run_parallel(six_meters, roots[2], run_steps=tasks)
    trials = [read_trials(root) for root in roots]
    assert trials[0] == trials[1] == trials[2]
    assert [trial[-1] for trial in trials[0] if trial[-1] is not None] == list(range(1, TRIAL_COUNT + 1))
    assert other.spec == plain.spec
    assert (roots[0].path / "best.yaml").read_bytes() == (roots[2].path / "best.yaml").read_bytes()
    [name] = optuna.get_all_study_names(roots[0].studies_url)
    assert optuna.load_study(study_name=name, storage=roots[0].studies_url).user_attrs["parallel"] == 2


def test_a_batch_has_the_runs_of_trials_one_after_another(six_meters: DataSource, fresh_root: Root) -> None:
    tuned = run_parallel(six_meters, fresh_root, trials=3)
    trained = [trial for trial in tuned.trials if trial.state != REFUSED]
    assert [trial.trial for trial in trained] == [1, 2, 3, 4], "whole batches"
    assert trained[0].params["network.hidden"] == SPEC.network.hidden, "the given specification first"
    client = create_client(fresh_root.store_uri)
    for run, trial in zip(child_runs(fresh_root, tuned.run_id), trained, strict=True):
        assert (run.info.status, run.info.run_id) == ("FINISHED", trial.run_id)
        assert run.data.tags["state"] == trial.state
        assert run.data.metrics.keys() >= {"train/loss", "valid/rollout", "valid/one_step", "train/windows_per_s"}
        assert len(client.get_metric_history(run.info.run_id, "valid/rollout")) == trial.epochs
        if trial.state == DONE:
            assert run.data.metrics["tune/value"] == trial.value


def test_another_size_of_a_batch_is_another_search_and_one_is_the_plain_one(
    six_meters: DataSource, migrated_root: Path, tmp_path: Path, eager_study: None
) -> None:
    roots = [make_root(migrated_root, tmp_path / name) for name in ("plain", "one", "two")]
    run_search(six_meters, roots[0], trials=4)
    run_search(six_meters, roots[1], trials=4, run_steps=run_elsewhere)
    run_search(six_meters, roots[2], trials=4, parallel=2)
    trials = [read_trials(root) for root in roots]
    assert trials[0] == trials[1]
    assert trials[0] != trials[2]
    names = [optuna.get_all_study_names(root.studies_url) for root in roots]
    assert names[0] == names[1] != names[2]


KILLS: dict[str, tuple[str, int]] = {
    "after one trial of a batch was fitted": ("store_outcome", 4),
    "while a batch is proposed": ("add_to_batch", 4),
    "before a trial belongs to its batch": ("ask", 4),
    "between the trials of a batch": ("start_recording", 4),
    "before the outcomes are recorded": ("start_recording", 3),
    "before a trial ends": ("finish_pending_trial", 4),
}


@pytest.mark.parametrize("case", sample_cases(list(KILLS), stride=3))
def test_a_killed_search_resumes_with_the_trials_of_its_batch(
    case: str, six_meters: DataSource, migrated_root: Path, tmp_path: Path, eager_study: None
) -> None:
    """The search is killed at the n-th call of a function, and again at the second one after that."""
    expected, root = make_root(migrated_root, tmp_path / "undisturbed"), make_root(migrated_root, tmp_path / "killed")
    run_parallel(six_meters, expected)
    name, count = KILLS[case]
    for last in (count, 2):
        original, calls = getattr(study.Study, name), 0

        def kill(*arguments: Any, original: Callable[..., Any] = original, last: int = last, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == last and name != "ask":
                raise SearchKilled
            result = original(*arguments, **options)
            if calls == last:
                raise SearchKilled
            return result

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(study.Study, name, kill)
            with pytest.raises(SearchKilled):
                run_parallel(six_meters, root)
    resumed = run_parallel(six_meters, root)
    assert read_trials(root) == read_trials(expected)
    assert reported_rollouts(root) == reported_rollouts(expected)
    assert (root.path / "best.yaml").read_bytes() == (expected.path / "best.yaml").read_bytes()
    runs = child_runs(root, resumed.run_id)
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED", "FAILED"}
    assert sum(run.info.status == "FINISHED" for run in runs) >= TRIAL_COUNT


def test_fitted_trials_of_a_killed_batch_are_not_fitted_again(
    six_meters: DataSource, fresh_root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []

    def stop_after_one(function: Callable[[Any], Any], steps: Sequence[Any]) -> Iterator[Any]:
        for step in steps:
            fitted.append(step.number)
            yield function(step)
            raise SearchKilled

    with pytest.raises(SearchKilled):
        run_parallel(six_meters, fresh_root, trials=2, run_steps=stop_after_one)
    with pytest.raises(SearchKilled):
        run_parallel(six_meters, fresh_root, trials=2, run_steps=stop_after_one)
    run_parallel(six_meters, fresh_root, trials=2, run_steps=stop_after_one)
    assert len(fitted) == len(set(fitted)) == 2


def test_an_interrupt_counts_the_fitted_trials_of_its_batch(six_meters: DataSource, fresh_root: Root) -> None:
    def stop_after_one(function: Callable[[Any], Any], steps: Sequence[Any]) -> Iterator[Any]:
        yield function(steps[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        run_parallel(six_meters, fresh_root, trials=2, run_steps=stop_after_one)
    assert raised.value.__notes__ == ["1 of 2 trials are kept; the same command continues after them."]


def test_a_trial_is_pruned_by_the_trials_before_its_batch(
    six_meters: DataSource, fresh_root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot that travels to a worker decides as the study itself does."""
    monkeypatch.setattr(study, "_PRUNER_STARTUP_TRIALS", 1)
    space = {"idle": (0, 1)}
    options = {"seed": 0, "parallel": 2, "warm_up_epochs": 1}
    with open_study(fresh_root.checkpoints, fresh_root.studies_url, "pruned", space, **options) as opened:
        first = opened.ask({"idle": 1})
        for epoch in range(4):
            first.report(1e-9, epoch)
        opened.finish_trial(first, 1e-9)
        trial = opened.ask({"idle": 1})
        direct, elsewhere = PruningCallback(trial), PruningCallback(opened.take_snapshot().open_trial())
        for callback in (direct, elsewhere):
            fitted = fit(read_panel(six_meters), SPEC, callbacks=[callback])
            assert (fitted.epochs, callback.was_pruned, len(callback.reported)) == (2, True, 2), "after the warm-up"


def test_a_diverging_network_of_a_batch_is_pruned(six_meters: DataSource, fresh_root: Root) -> None:
    tuned = run_parallel(six_meters, fresh_root, spec=make_small_spec(learning_rate=1e30, valid_windows=2), trials=4)
    first, *others = [trial for trial in tuned.trials if trial.state != REFUSED]
    assert (first.state, first.epochs) == (PRUNED, 0)
    assert "finite" in (first.fault or "")
    assert any(trial.state == DONE for trial in others)
    statuses = [run.info.status for run in child_runs(fresh_root, tuned.run_id)]
    assert statuses == ["FINISHED" if trial.fault is None else "FAILED" for trial in [first, *others]]


def test_a_batch_has_at_least_one_trial(six_meters: DataSource, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--parallel of at least 1; found 0"):
        run_search(six_meters, Root(tmp_path / "root"), parallel=0)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # of Ray
def test_workers_of_a_real_cluster_give_the_study_of_one_process(
    six_meters: DataSource, migrated_root: Path, tmp_path: Path
) -> None:
    ray = import_optional("ray")
    roots = [make_root(migrated_root, tmp_path / name) for name in ("plain", "ray")]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as a task has
    try:
        run_parallel(six_meters, roots[0], trials=4)
        options = {"include_dashboard": False, "object_store_memory": 100 << 20, "log_to_driver": False}
        ray.init(address="local", num_cpus=2, **options)
        with open_runner("ray", workers=2) as tasks:
            run_parallel(six_meters, roots[1], trials=4, run_steps=tasks)
    finally:
        torch.set_num_threads(before)
        ray.shutdown()
    assert read_trials(roots[0]) == read_trials(roots[1])
