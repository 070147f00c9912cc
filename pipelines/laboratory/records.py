"""Trials of experiments: what one seed measured, stored as JSON so that tables and pictures need no training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from forecaster.errors import InputError
from forecaster.progress import Progress
from forecaster.storage.atomic import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIGITS = 5  # significant digits of stored numbers


@dataclass(frozen=True)
class Trial:
    """The result of one seed of an experiment, which compares several variants: kinds of cell, and reference methods.

    Attributes:
        experiment: Name of the experiment.
        seed: The seed, from which data, weights and batches follow.
        seconds: Duration of the trial.
        cpu_seconds: Processor time of the trial, which depends less on what else the machine does.
        machine: Versions and threads, on which times depend.
        measures: Figures by variant and by name of the measure.
        curves: Sequences of numbers for pictures, by variant and name.
        texts: Texts that belong to the result, by variant and name.
    """

    experiment: str
    seed: int
    seconds: float
    cpu_seconds: float
    machine: str
    measures: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes the trial as `EXPERIMENT-SEED.json`, one line for each field."""
        folder.mkdir(parents=True, exist_ok=True)
        fields = ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in asdict(self).items())
        write_text(folder / f"{self.experiment}-{self.seed}.json", f"{{\n{fields}\n}}\n")


@dataclass(frozen=True)
class Findings:
    """What an experiment measured, before it becomes a trial; fields as in `Trial`."""

    measures: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class Measure(NamedTuple):
    """A column of the table of an experiment.

    Attributes:
        name: Name in `Trial.measures`, and heading of the column.
        digits: Decimals that the table shows.
    """

    name: str
    digits: int


@dataclass(frozen=True)
class Experiment:
    """An experiment of the laboratory.

    Attributes:
        name: Name on the command line.
        question: What it shows, in one sentence.
        conditions: Data, network and training, in a few sentences.
        merit: The figure of merit.
        published: Published figures beside which the measured ones are shown.
        measures: Columns of its table.
        run: Runs the experiment for a seed.
        draw: Draws the picture of all trials.
    """

    name: str
    question: str
    conditions: str
    merit: str
    published: str
    measures: tuple[Measure, ...]
    run: Callable[[int, Progress], Findings]
    draw: Callable[[Sequence[Trial]], Figure]


def load_trials(folder: Path, experiment: str) -> list[Trial]:
    """Loads the trials of an experiment, by seed. Raises InputError if a file is not a trial."""
    trials = [_load_trial(path) for path in folder.glob(f"{experiment}-*.json")]
    return sorted(trials, key=lambda trial: trial.seed)


def round_curve(values: Sequence[float] | np.ndarray) -> list[float]:
    """Returns numbers of five significant digits, so that a stored trial stays small."""
    return [float(f"{value:.{_DIGITS}g}") for value in np.asarray(values, dtype=np.float64)]


def _load_trial(path: Path) -> Trial:
    try:
        return Trial(**json.loads(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Expected a trial of the laboratory; {path} is not one ({error}). Remove the file and run the experiment again.",
            where=str(path),
        ) from error
