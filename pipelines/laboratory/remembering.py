"""The experiment `remembering`: A or B must be remembered over a stretch of x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from forecaster.evaluation.plots import BASELINE_COLOR, HISTORY_COLOR
from forecaster.prediction.fitted_model import FittedModel
from forecaster.progress import Progress
from pipelines.laboratory.counting import longest_right_prefix
from pipelines.laboratory.languages import (
    END,
    LanguageSettings,
    Word,
    find_right_words,
    memory_of,
    record_steps,
    train_on_words,
)
from pipelines.laboratory.pictures import CELL_COLORS, create_axes, label_axes
from pipelines.laboratory.records import Experiment, Findings, Measure, Trial, round_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINED = 10  # most x of a word of the training
FARTHEST = (*range(1, 101), 200, 500, 1000)
_DRAWN = 20


def make_words(length: int) -> list[Word]:
    """Returns A x^length Y a and B x^length Y b, each with the end; what follows the Y is determined."""
    return [Word(f"{letter}{'x' * length}Y{letter.lower()}{END}", length + 2) for letter in "AB"]


def run_remembering(seed: int, progress: Progress, *, settings: LanguageSettings | None = None) -> Findings:
    """Trains each cell on 1 to 10 x, and tests it on up to 1000."""
    settings = settings or LanguageSettings(cells=("elman", "gru", "lstm"), steps=6000, learning_rate=0.03)
    training = [word for length in range(1, TRAINED + 1) for word in make_words(length)]
    measures: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[str, Sequence[float]]] = {}
    for index, cell in enumerate(settings.cells):
        progress.update(index, cell)
        model = train_on_words(training, settings, cell=cell, seed=seed)
        measures[cell], curves[cell] = measure_memory(model)
    return Findings(measures, curves)


def measure_memory(model: FittedModel) -> tuple[dict[str, float], dict[str, Sequence[float]]]:
    """Returns how many x the first letter survives, and the unit that differs most between A and B before the Y."""
    right = find_right_words(model, [word for length in FARTHEST for word in make_words(length)])
    both = [first and second for first, second in zip(right[::2], right[1::2], strict=True)]
    states = [memory_of(record_steps(model, word.text)[0])[0].numpy() for word in make_words(_DRAWN)]
    unit = int(np.abs(states[0][_DRAWN] - states[1][_DRAWN]).argmax())
    measures = {"right up to x": float(longest_right_prefix(FARTHEST, both)), "right at 1000 x": float(both[-1])}
    curves: dict[str, Sequence[float]] = {
        f"unit after {letter}": round_curve(state[:, unit]) for letter, state in zip("AB", states, strict=True)
    }
    return measures, curves


def draw_remembering(trials: Sequence[Trial]) -> Figure:
    """Draws how far each seed remembers, and the unit that distinguishes A and B, of the first seed."""
    cells, first = list(trials[0].measures), trials[0]
    figure, (reach, *units) = create_axes(columns=1 + len(cells), width=3.0 * (1 + len(cells)), height=3.0)
    for index, cell in enumerate(cells):
        counts = [max(0.8, trial.measures[cell]["right up to x"]) for trial in trials]
        reach.plot([index] * len(counts), counts, "o", color=CELL_COLORS[cell], alpha=0.7)
    reach.set_yscale("log")
    reach.set_ylim(0.7, 1500)
    reach.set_xticks(range(len(cells)), cells)
    reach.axhline(TRAINED, color=BASELINE_COLOR, linestyle=":", linewidth=1)
    label_axes(reach, title="Right up to x (trained to 10)", x="", y="number of x")
    for axes, cell in zip(units, cells, strict=True):
        for letter, style in (("A", "-"), ("B", "--")):
            curve = first.curves[cell][f"unit after {letter}"]
            axes.plot(curve, style, color=CELL_COLORS[cell], linewidth=1.6, label=f"after {letter}")
        axes.axvline(_DRAWN + 1, color=HISTORY_COLOR, linestyle=":", linewidth=1)
        label_axes(axes, title=f"{cell}: the unit that differs most", x=f"step of A x^{_DRAWN} Y a", y="state")
        axes.legend(frameon=False, fontsize=8)
    return figure


REMEMBERING = Experiment(
    name="remembering",
    question="Over how many steps without information does a cell remember which of two letters came first?",
    conditions="The 20 words A x^k Y a and B x^k Y b with an end symbol, k = 1 to 10; one layer of 10 units, 6,000 steps "
    "of Adam with batches of 10 words, learning rate 0.03 with a cosine. A length is right if both words are.",
    merit="Right for all lengths of the training, and far beyond.",
    published="Chen (2017, Exploring LSTMs): an LSTM remembers over 1 to 10 x; one neuron holds the letter. No figures "
    "beyond.",
    measures=(Measure("right up to x", 0), Measure("right at 1000 x", 0)),
    run=run_remembering,
    draw=draw_remembering,
)
