"""Runs experiments: one trial for each seed, stored; then the picture and the table of all stored trials."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from forecaster.errors import InputError
from forecaster.progress import Progress
from forecaster.storage.atomic import write_text
from pipelines.laboratory.characters import CHARACTERS
from pipelines.laboratory.copying import COPYING
from pipelines.laboratory.counting import COUNTING
from pipelines.laboratory.records import Experiment, Trial, load_trials
from pipelines.laboratory.remembering import REMEMBERING
from pipelines.laboratory.selective import SELECTIVE
from pipelines.laboratory.series import SERIES
from pipelines.laboratory.sine import SINE
from pipelines.laboratory.speed import SPEED
from pipelines.laboratory.table import format_report

EXPERIMENTS: tuple[Experiment, ...] = (SINE, SERIES, COUNTING, SELECTIVE, REMEMBERING, COPYING, CHARACTERS, SPEED)


def find_experiments(names: Sequence[str]) -> tuple[Experiment, ...]:
    """Returns the experiments of these names; `all` is every one. Raises InputError for an unknown name."""
    by_name = {experiment.name: experiment for experiment in EXPERIMENTS}
    unknown = [name for name in names if name not in (*by_name, "all")]
    if unknown:
        raise InputError(
            f"Expected an experiment of the laboratory ({', '.join(by_name)}, or all); found {unknown[0]!r}. "
            "`forecaster lab` lists what each of them shows.",
            where="names",
        )
    return EXPERIMENTS if "all" in names else tuple(by_name[name] for name in dict.fromkeys(names))


def run_experiment(
    experiment: Experiment, *, seeds: Sequence[int], folder: Path, progress: Progress, again: bool = False
) -> list[Trial]:
    """Runs the seeds of an experiment that have no stored trial, and stores them.

    Args:
        experiment: The experiment.
        seeds: The seeds.
        folder: Folder of the trials.
        progress: Receives a phase for each trial.
        again: Whether to run stored trials again.
    Returns:
        All stored trials of the experiment, those of other seeds too, by seed.
    """
    stored = {trial.seed for trial in load_trials(folder, experiment.name)}
    for seed in seeds:
        if again or seed not in stored:
            _run_trial(experiment, seed, progress).save(folder)
    return load_trials(folder, experiment.name)


def draw_experiment(experiment: Experiment, trials: Sequence[Trial], folder: Path) -> Path:
    """Draws the picture of an experiment into a folder, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{experiment.name}.png"
    experiment.draw(trials).savefig(path)
    return path


def write_report(path: Path, *, trials_folder: Path) -> str:
    """Writes the table of all stored trials, and returns it."""
    text = format_report(EXPERIMENTS, {item.name: load_trials(trials_folder, item.name) for item in EXPERIMENTS})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return text


def _run_trial(experiment: Experiment, seed: int, progress: Progress) -> Trial:
    progress.begin(f"{experiment.name}, seed {seed}")
    started, cpu_started, failed = time.perf_counter(), time.process_time(), True
    try:
        findings = experiment.run(seed, progress)
        failed = False
    finally:
        progress.end(failed=failed)
    seconds, cpu_seconds = round(time.perf_counter() - started, 1), round(time.process_time() - cpu_started, 1)
    machine = f"torch {torch.__version__}, numpy {np.__version__}, threads: {torch.get_num_threads()}"
    return Trial(
        experiment.name, seed, seconds, cpu_seconds, machine, findings.measures, findings.curves, findings.texts
    )
