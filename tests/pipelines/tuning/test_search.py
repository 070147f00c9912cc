"""A search on tiny data and real stores: what it tries, keeps, records and goes on with."""

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
import pytorch_lightning as pl
from mlflow.entities import Run

from forecaster.data.frames.panel import to_panel
from forecaster.data.split import hold_out
from forecaster.errors import InputError, TrainingError
from forecaster.registry.registry import connect
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import Fitted, fit
from pipelines.settings import Root
from pipelines.sources import Data, read, read_spec
from pipelines.training.train import train
from pipelines.tuning import search as tuning
from pipelines.tuning.plots import optimization_history, parameter_importance
from pipelines.tuning.search import Tuned, _known, _seasonal_naive, tune
from pipelines.tuning.study import DONE, PRUNED, REFUSED, Reporter, Tried, _alone
from tests.pipelines.conftest import small

SPEC = small(steps=6, epoch_steps=2, valid_windows=2)
TRIALS = 4

Search = Callable[..., Tuned]


def new_root(migrated: Path, folder: Path) -> Root:
    folder.mkdir()
    shutil.copy(migrated / "mlflow.db", folder)
    return Root(folder)


def search(data: Data, root: Root, *, spec: Spec = SPEC, trials: int = TRIALS, **options: Any) -> Tuned:
    return tune(data, spec, root, out=root.path / "best.yaml", trials=trials, **options)


@pytest.fixture(scope="module")
def done(meters: Data, migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tuned, Root]:
    """A search that nothing happened to."""
    root = new_root(migrated, tmp_path_factory.mktemp("done") / "root")
    return search(meters, root), root


def tried_alike(found: Sequence[Tried]) -> list[Tried]:
    """Without what differs from one process to the next."""
    return [one._replace(seconds=None, run_id=None) for one in found]


def reported(root: Root) -> list[dict[int, float]]:
    """Every rollout of every epoch of the trials that ended."""
    [name] = optuna.get_all_study_names(root.studies)
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    study = optuna.load_study(study_name=name, storage=root.studies)
    return [one.intermediate_values for one in study.get_trials(states=states)]


def children(root: Root, parent: str) -> list[Run]:
    client = connect(root.store)
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], filter_string=f"tags.`mlflow.parentRunId` = '{parent}'")
    return sorted(found, key=lambda run: int(run.data.tags["trial"]))


def test_a_search_keeps_the_trial_with_the_best_rollout_and_tries_the_given_specification_first(
    done: tuple[Tuned, Root],
) -> None:
    tuned, _ = done
    trained = [one for one in tuned.tried if one.state != REFUSED]
    assert [one.trial for one in trained] == list(range(1, TRIALS + 1))
    assert trained[0].params["training.learning_rate"] == SPEC.training.learning_rate
    assert trained[0].params["context"] == SPEC.context
    assert len({tuple(one.params.values()) for one in trained}) == TRIALS
    assert tuned.value == tuned.best[0].value == min(one.value for one in trained if one.state == DONE and one.value)
    assert read_spec(tuned.out) == tuned.spec
    assert tuned.spec.horizon == SPEC.horizon


def test_a_specification_that_does_not_hold_together_is_refused_at_once_and_takes_no_trial(
    meters: Data, fresh: Root
) -> None:
    tuned = search(meters, fresh, spec=SPEC.model_copy(update={"horizon": 6}), trials=5)
    refused = [one for one in tuned.tried if one.state == REFUSED]
    assert refused, "a context of 4 with a segment of 3, say"
    for one in refused:
        odd = one.params["context"] % one.params["segment"]
        assert ("multiple of segment" if odd else "mean_abs") in (one.fault or "")
        assert (one.trial, one.run_id, one.value, one.epochs) == (None, None, None, 0)
    assert sum(one.state != REFUSED for one in tuned.tried) == 5
    assert len(children(fresh, tuned.run_id)) == 5


def test_what_was_found_is_what_train_makes_of_it(meters: Data, done: tuple[Tuned, Root], fresh: Root) -> None:
    tuned, _ = done
    trained = train(meters, read_spec(tuned.out), fresh)
    assert trained.forecaster.facts["validation"]["valid/rollout"] == tuned.value


def test_the_runs_tell_of_the_search_and_of_every_trial(done: tuple[Tuned, Root], tmp_path: Path) -> None:
    tuned, root = done
    client = connect(root.store)
    parent = client.get_run(tuned.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["best.network.hidden"] == str(tuned.spec.network.hidden)
    assert parent.data.params["best.trial"] == str(tuned.best[0].trial)
    assert parent.data.params["network.hidden"] == str(SPEC.network.hidden), "what was searched around"
    assert parent.data.metrics["tune/value"] == tuned.value
    assert parent.data.metrics["tune/seasonal_naive"] == tuned.naive
    assert parent.data.metrics["tune/trials"] == TRIALS
    history = client.get_metric_history(tuned.run_id, "tune/value")
    best = [point.value for point in sorted(history, key=lambda point: point.step)]
    assert [point.step for point in history] == list(range(1, TRIALS + 1))
    assert best == sorted(best, reverse=True)

    runs, trained = children(root, tuned.run_id), [one for one in tuned.tried if one.state != REFUSED]
    assert [run.info.run_name for run in runs] == [f"trial {number}" for number in range(1, TRIALS + 1)]
    for run, one in zip(runs, trained, strict=True):
        assert run.info.status == "FINISHED"
        assert run.info.run_id == one.run_id
        assert run.data.tags["state"] == one.state
        assert run.data.tags["trigger"] == "tune"
        assert run.data.tags["data_digest"] == parent.data.tags["data_digest"]
        for path, value in one.params.items():
            assert run.data.params[path] == str(value)
        assert run.data.metrics.keys() >= {"train/loss", "valid/rollout", "valid/one_step", "train/windows_per_s"}
        if one.state == DONE:
            assert run.data.metrics["tune/value"] == one.value
        assert len(client.get_metric_history(run.info.run_id, "valid/rollout")) == one.epochs

    folder = Path(
        mlflow.artifacts.download_artifacts(
            run_id=tuned.run_id, artifact_path="", dst_path=str(tmp_path), tracking_uri=root.store
        )
    )
    assert (folder / "plots/optimization_history.png").stat().st_size > 1000
    assert read_spec(folder / "best.yaml") == tuned.spec
    table = pd.read_csv(folder / "tune/trials.csv")
    assert table["state"].tolist() == [one.state for one in tuned.tried]
    assert table["value"].min() == tuned.value
    assert table["network.hidden"].tolist() == [one.params["network.hidden"] for one in tuned.tried]


def test_what_the_test_windows_hold_changes_nothing(
    meters: Data, done: tuple[Tuned, Root], fresh: Root, tmp_path: Path
) -> None:
    frame = pd.read_csv(meters.source)
    last = frame.groupby("unique_id").cumcount(ascending=False) < SPEC.horizon
    frame.loc[last, "y"] = 1000 * np.arange(last.sum()) - 3e6
    frame.to_csv(tmp_path / "meters.csv", index=False)
    tuned, root = done
    other = search(Data(str(tmp_path / "meters.csv")), fresh)
    assert other.spec == tuned.spec
    assert (other.value, other.naive) == (tuned.value, tuned.naive)
    assert tried_alike(other.tried) == tried_alike(tuned.tried)
    assert reported(fresh) == reported(root)
    assert optuna.get_all_study_names(fresh.studies) == optuna.get_all_study_names(root.studies)


def test_what_the_validation_windows_hold_is_what_is_looked_at(
    meters: Data, done: tuple[Tuned, Root], fresh: Root
) -> None:
    tuned, root = done
    other = search(meters, fresh, test_windows=2, trials=1)
    assert tried_alike(other.tried)[0].value != tuned.tried[0].value
    assert optuna.get_all_study_names(fresh.studies) != optuna.get_all_study_names(root.studies)


class Broken(Exception):
    """What ends a process in the middle of a trial."""


class Breaker(pl.Callback):
    """Breaks a fit off after its first epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise Broken


def search_until(trial: int, data: Data, root: Root) -> None:
    """A search that is broken off in that trial."""
    fits = 0

    def broken(panel: Panel, spec: Spec, *, callbacks: Sequence[pl.Callback], **options: Any) -> Fitted:
        nonlocal fits
        fits += 1
        return fit(panel, spec, callbacks=[*callbacks, *([Breaker()] if fits == trial else [])], **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tuning, "fit", broken)
        with pytest.raises(Broken):
            search(data, root)


def test_a_search_that_broke_off_goes_on_and_ends_as_if_nothing_had_happened(
    meters: Data,
    done: tuple[Tuned, Root],
    fresh: Root,
    caplog: pytest.LogCaptureFixture,
) -> None:
    search_until(3, meters, fresh)
    caplog.clear()
    with caplog.at_level("INFO"):
        again = search(meters, fresh)
    tuned, root = done
    assert f"2 of {TRIALS} trials are there, 1 broke off and is tried again." in caplog.text
    assert tried_alike(again.tried) == tried_alike(tuned.tried)
    assert reported(fresh) == reported(root)
    assert again.spec == tuned.spec
    runs = children(fresh, again.run_id)
    assert [run.data.tags["trial"] for run in runs] == ["1", "2", "3", "3", "4"]
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 4 + ["KILLED"]
    assert connect(fresh.store).get_run(again.run_id).info.status == "FINISHED"


def test_a_search_that_broke_off_in_its_first_trial_tries_that_first(meters: Data, fresh: Root) -> None:
    for _ in range(2):
        search_until(1, meters, fresh)
    again = search(meters, fresh, trials=1)
    assert [one.params["network.hidden"] for one in again.tried] == [SPEC.network.hidden]


def test_when_time_is_up_the_running_trial_is_the_last_and_the_search_can_be_gone_on_with(
    meters: Data, done: tuple[Tuned, Root], fresh: Root
) -> None:
    first = search(meters, fresh, timeout=1e-9)
    assert len(first.tried) == 1
    assert first.spec.training == SPEC.training
    whole = search(meters, fresh)
    assert tried_alike(whole.tried) == tried_alike(done[0].tried)
    assert whole.run_id != first.run_id, "the first had ended"
    assert len(children(fresh, whole.run_id)) == TRIALS - 1
    further = search(meters, fresh)
    assert further.tried == whole.tried, "there is nothing left to try"
    assert children(fresh, further.run_id) == []


def test_another_seed_is_another_search(meters: Data, done: tuple[Tuned, Root], fresh: Root) -> None:
    other = search(meters, fresh, seed=1, trials=2)
    assert tried_alike(other.tried)[0] == tried_alike(done[0].tried)[0]
    assert other.tried[1].params != done[0].tried[1].params


def test_a_network_that_diverges_is_pruned_and_the_search_goes_on(meters: Data, fresh: Root) -> None:
    tuned = search(meters, fresh, spec=small(learning_rate=1e30, valid_windows=2), trials=3)
    first, *others = [one for one in tuned.tried if one.state != REFUSED]
    assert first.state == PRUNED
    assert "finite" in (first.fault or "")
    assert any(one.state == DONE for one in others)
    assert children(fresh, tuned.run_id)[0].info.status == "FAILED"


def test_a_search_of_which_nothing_came_to_its_end_says_so(meters: Data, fresh: Root) -> None:
    with pytest.raises(TrainingError, match=r"none of 1 did.*finite"):
        search(meters, fresh, spec=small(learning_rate=1e30, valid_windows=2), trials=1)


class StubTrial:
    """Is told values, and is pruned after so many."""

    def __init__(self, after: int) -> None:
        self.values: dict[int, float] = {}
        self._after = after

    def report(self, value: float, step: int) -> None:
        self.values[step] = value

    def should_prune(self) -> bool:
        return len(self.values) >= self._after


@pytest.mark.parametrize(("after", "epochs", "pruned"), [(1, 1, True), (2, 2, True), (3, 3, False), (9, 3, False)])
def test_a_pruned_fit_stops_at_the_end_of_its_epoch_and_a_finished_one_is_not_pruned(
    after: int, epochs: int, pruned: bool, meters: Data
) -> None:
    trial, lines = StubTrial(after), io.StringIO()
    reporter = Reporter(trial, lambda line: print(line, file=lines))  # type: ignore[arg-type]
    fitted = fit(read(meters), SPEC, callbacks=[reporter])
    assert (fitted.epochs, reporter.pruned) == (epochs, pruned)
    assert list(trial.values) == list(range(epochs))
    assert min(trial.values.values()) == fitted.scores["valid/rollout"]
    assert lines.getvalue().splitlines()[-1].startswith(f"epoch {epochs} of 3: ")


def test_seasonal_naive_is_measured_as_trials_are(meters: Data) -> None:
    frame = pd.read_csv(meters.source)
    frame.loc[[57, 118, 119], "y"] = np.nan  # of the last window; of series that go on after them
    frame["ds"] = pd.to_datetime(frame["ds"])
    panel = to_panel(frame)
    assert {len(one) for one in panel.series} == {60}
    spec = SPEC.model_copy(update={"base": "seasonal_naive", "context": 40, "min_history": 8})
    still = spec.training.model_copy(update={"learning_rate": 1e-30})
    fitted = fit(panel, spec.model_copy(update={"training": still}))
    assert _seasonal_naive(panel, SPEC) == pytest.approx(fitted.scores["valid/rollout"], rel=1e-6)


def test_series_too_short_for_all_windows_are_in_no_trial(meters: Data) -> None:
    panel = read(meters)
    short = [one.until(steps) for one, steps in zip(panel.series, [60, 60, 21, 20, 60, 60], strict=True)]
    known = _known(Panel(short, panel.freq), SPEC, test_windows=1)
    assert [len(one) for one in known.series] == [56, 56, 17, 56, 56], (
        "8 to start from, 1 to learn, 2 and 1 windows of 4"
    )
    assert len(hold_out(known, 8, keep=9).left_out) == 0


def test_the_picture_of_a_search_shows_trials_the_best_so_far_and_seasonal_naive() -> None:
    trials = [(1, 0.9, True), (2, 0.7, False), (3, 0.8, True), (4, 50.0, False), (5, math.inf, False)]
    figure = optimization_history(trials, naive=1.0, title="a search")
    figure.savefig(io.BytesIO())
    [axes] = figure.axes
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert lines["best so far"] == [0.9, 0.9, 0.8, 0.8, 0.8], "one that was pruned is no best"
    assert set(lines["seasonal naive"]) == {1.0}
    assert axes.get_ylim()[1] < 1.6, "what is far off does not flatten the rest"
    optimization_history([(1, 1.0, False)], naive=1.0, title="nothing but pruned").savefig(io.BytesIO())


def test_the_picture_of_importance_has_a_bar_a_field_the_largest_on_top() -> None:
    [axes] = parameter_importance({"context": 0.75, "segment": 0.25}, title="a search").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["segment", "context"]
    assert [patch.get_width() for patch in axes.patches] == [0.25, 0.75]


def test_importance_finds_what_decides(fresh: Root) -> None:
    from pipelines.tuning.study import opened

    space = {"decides": (0, 1), "idle": (0, 1)}
    with opened(fresh.checkpoints, fresh.studies, "made-up", space, seed=0, warm_up=1) as study:
        assert study.importance() == {}
        for count in range(1, 25):
            trial = study.ask({"decides": 1, "idle": 1})
            study.begin(trial, count=count, run_id="none")
            study.end(trial, 1.0 - 0.5 * trial.params["decides"] + 0.001 * count)
        found = study.importance()
    assert list(found) == ["decides", "idle"]
    assert sum(found.values()) == pytest.approx(1.0)


def test_two_of_the_same_search_do_not_run_beside_each_other(meters: Data, done: tuple[Tuned, Root]) -> None:
    _, root = done
    [name] = optuna.get_all_study_names(root.studies)
    with _alone(root.checkpoints / f"{name}.lock"), pytest.raises(TrainingError, match="running already"):
        search(meters, root)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "--trials of at least 1; found 0"),
        ({"timeout": 0.0}, "--timeout of more than 0"),
        ({"timeout": math.nan}, "--timeout of more than 0"),
        ({"seed": -1}, "--seed of at least 0"),
        ({"test_windows": -1}, "--test-windows of at least 0"),
        ({"spec": small(valid_windows=0)}, "--valid-windows of at least 1"),
        ({"test_windows": 100}, "fewer windows"),
    ],
)
def test_what_nobody_can_search_is_refused_before_anything_is_written(
    options: dict[str, Any], said: str, meters: Data, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        search(meters, Root(tmp_path / "root"), **options)
    assert not (tmp_path / "root").exists()


def test_a_run_that_was_left_open_elsewhere_is_not_gone_on_with(
    meters: Data, fresh: Root, migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search is in the root, its runs may be on a server that is another one now."""
    search_until(1, meters, fresh)
    elsewhere = new_root(migrated, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)  # where MLflow puts the files of a store that says nothing else
    tuned = search(meters, Root(fresh.path, elsewhere.store), trials=1)
    assert connect(elsewhere.store).get_run(tuned.run_id).info.status == "FINISHED"
