"""Every experiment at a tiny size: its measures, its picture, and the table of stored trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forecaster.errors import InputError
from forecaster.progress import NO_PROGRESS, Progress
from pipelines import cli
from pipelines.laboratory import characters, copying, counting, remembering, selective, series, sine, speed
from pipelines.laboratory.languages import LanguageSettings
from pipelines.laboratory.records import Experiment, Findings, Trial, load_trials
from pipelines.laboratory.run import EXPERIMENTS, draw_experiment, find_experiments, run_experiment, write_report

pytestmark = pytest.mark.integration

TINY = LanguageSettings(cells=("elman", "lstm"), hidden=3, steps=2, batch=2)
TINY_RUNS: dict[str, Callable[[int], Findings]] = {
    "sine": lambda seed: sine.run_sine(
        seed,
        NO_PROGRESS,
        settings=sine.SineSettings(cells=("relu", "lstm"), steps=4, hidden=3, batch=4, steps_per_score=2),
    ),
    "series": lambda seed: series.run_series(
        seed,
        NO_PROGRESS,
        settings=series.SeriesSettings(cells=("gru",), sine_steps=2, hospital_steps=2, hidden=3),
    ),
    "counting": lambda seed: counting.run_counting(seed, NO_PROGRESS, settings=TINY),
    "selective": lambda seed: selective.run_selective(seed, NO_PROGRESS, settings=TINY, words=5),
    "remembering": lambda seed: remembering.run_remembering(seed, NO_PROGRESS, settings=TINY),
    "copying": lambda seed: copying.run_copying(seed, NO_PROGRESS, settings=TINY, networks=(("elman", 1), ("lstm", 2))),
    "characters": lambda seed: characters.run_characters(
        seed,
        NO_PROGRESS,
        settings=characters.CharacterSettings(cells=("gru",), characters=300, hidden=4, context=10, batch=2, steps=2),
    ),
    "speed": lambda seed: speed.run_speed(seed, NO_PROGRESS, sizes={"tiny": speed.LayerSizes(2, 3, 2, 4, rounds=1)}),
}


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_an_experiment_measures_what_its_table_shows_and_draws_a_picture(
    experiment: Experiment, tmp_path: Path
) -> None:
    findings = TINY_RUNS[experiment.name](3)
    measured = {name for measures in findings.measures.values() for name in measures}
    shown = {measure.name.replace("iteration 200", "iteration 4") for measure in experiment.measures}
    assert measured == shown
    trial = Trial(experiment.name, 3, 1.0, 1.0, "machine", findings.measures, findings.curves, findings.texts)
    trial.save(tmp_path)
    [stored] = load_trials(tmp_path, experiment.name)
    assert stored.measures == findings.measures
    assert draw_experiment(experiment, [stored, stored], tmp_path / "pictures").stat().st_size > 1000


def test_a_seed_determines_an_experiment() -> None:
    first, second, other = (TINY_RUNS["copying"](seed) for seed in (1, 1, 2))
    assert first == second
    assert first.curves != other.curves


def test_stored_trials_are_not_run_again_and_make_the_table(tmp_path: Path) -> None:
    seeds: list[int] = []

    def run(seed: int, progress: Progress) -> Findings:
        seeds.append(seed)
        return Findings({"lstm": {"right up to n": 10.0 + seed}})

    experiment = replace(find_experiments(["counting"])[0], run=run)
    run_experiment(experiment, seeds=[0, 1], folder=tmp_path, progress=NO_PROGRESS)
    trials = run_experiment(experiment, seeds=[1, 2], folder=tmp_path, progress=NO_PROGRESS)
    assert seeds == [0, 1, 2]
    assert [trial.seed for trial in trials] == [0, 1, 2]
    run_experiment(experiment, seeds=[2], folder=tmp_path, progress=NO_PROGRESS, again=True)
    assert seeds == [0, 1, 2, 2]
    text = write_report(tmp_path / "laboratory.md", trials_folder=tmp_path)
    assert "| lstm | 11 (10 to 12) |" in text
    assert "`forecaster lab counting --seeds 3`" in text
    (tmp_path / "counting-0.json").write_text("[]")
    with pytest.raises(InputError, match="Expected a trial of the laboratory"):
        load_trials(tmp_path, "counting")


def test_an_unknown_experiment_is_refused_with_the_names_of_all() -> None:
    assert find_experiments(["all"]) == EXPERIMENTS
    assert find_experiments([]) == ()
    with pytest.raises(InputError, match="found 'cosine'"):
        find_experiments(["sine", "cosine"])


def test_the_linear_autoregression_continues_what_it_can_express() -> None:
    """A sine obeys a linear recurrence of two steps, so that its forecasts are exact."""
    y = np.sin(0.3 * np.arange(1000))
    forecasts = series.forecast_linearly(y)
    assert np.abs(forecasts[10] - y[614 : 614 + 64]).max() < 1e-9


def test_the_command_lists_experiments_and_writes_trials_pictures_and_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.app(["lab"], result_action="return_value")
    listed = capsys.readouterr().out
    assert all(f"{experiment.name} " in listed for experiment in EXPERIMENTS)
    quick = replace(find_experiments(["remembering"])[0], run=lambda seed, progress: TINY_RUNS["remembering"](seed))
    monkeypatch.setattr("pipelines.laboratory.run.EXPERIMENTS", (quick,))
    cli.app(["lab", "remembering", "--seeds", "2", "--out", str(tmp_path)], result_action="return_value")
    assert "| elman |" in capsys.readouterr().out
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"remembering-0.json", "remembering-1.json", "remembering.png", "laboratory.md"}
