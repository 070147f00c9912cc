"""The experiment `counting`: which cells learn to write as many b as they have read a, and the unit that counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from forecaster.evaluation.plots import BASELINE_COLOR, HISTORY_COLOR
from forecaster.prediction.fitted_model import FittedModel
from forecaster.progress import Progress
from forecaster.shapes import Float64
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
from pipelines.laboratory.units import find_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINED = 10  # the longest words of the training have this many a
FARTHEST = (*range(1, 101), 200, 500, 1000)
_DRAWN = 19


def make_word(count: int) -> Word:
    """Returns a^n X b^n and the end; what follows the X is determined."""
    return Word("a" * count + "X" + "b" * count + END, count + 1)


def count_of(text: str) -> Float64[np.ndarray, "step"]:
    """Returns the number of b that are still due after each symbol, if the word ended with its a here."""
    steps = {"a": 1.0, "b": -1.0}
    return np.cumsum([steps.get(symbol, 0.0) for symbol in text])


def longest_right_prefix(counts: Sequence[int], right: Sequence[bool]) -> int:
    """Returns the largest count up to which all counts are right; 0 if the first is wrong."""
    wrong = next((index for index, is_right in enumerate(right) if not is_right), len(counts))
    return counts[wrong - 1] if wrong else 0


def run_counting(seed: int, progress: Progress, *, settings: LanguageSettings | None = None) -> Findings:
    """Trains each cell on n of 1 to 10, and tests it on n of up to 1000."""
    settings = settings or LanguageSettings()
    measures: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[str, Sequence[float]]] = {}
    for index, cell in enumerate(settings.cells):
        progress.update(index, cell)
        model = train_on_words([make_word(n) for n in range(1, TRAINED + 1)], settings, cell=cell, seed=seed)
        measures[cell], curves[cell] = measure_counting(model, seed=seed)
    return Findings(measures, curves)


def measure_counting(model: FittedModel, *, seed: int) -> tuple[dict[str, float], dict[str, Sequence[float]]]:
    """Returns how far a model counts, and its counting unit: of the cell state of an LSTM, else of the hidden state."""
    right = find_right_words(model, [make_word(n) for n in FARTHEST])
    texts = [make_word(n).text for n in range(1, TRAINED + 1)]
    memories = [memory_of(record_steps(model, text)[0])[0].numpy() for text in texts]
    match = find_unit(np.concatenate(memories), np.concatenate([count_of(text) for text in texts]), seed=seed)
    drawn = make_word(_DRAWN).text
    measures = {
        "right up to n": float(longest_right_prefix(FARTHEST, right)),
        "right at n = 1000": float(right[-1]),
        "correlation of the counting unit": abs(match.correlation),
        "by chance (95 %)": match.chance,
    }
    curves: dict[str, Sequence[float]] = {
        "counting unit": round_curve(memory_of(record_steps(model, drawn)[0])[0, :, match.unit].numpy()),
        "right": [float(is_right) for is_right in right],
    }
    return measures, curves


def draw_counting(trials: Sequence[Trial]) -> Figure:
    """Draws how far each seed of each cell counts, and the counting units of the first seed."""
    cells = list(trials[0].measures)
    figure, (reach, *units) = create_axes(columns=1 + len(cells), width=3.0 * (1 + len(cells)), height=3.2)
    for index, cell in enumerate(cells):
        counts = [max(0.8, trial.measures[cell]["right up to n"]) for trial in trials]
        reach.plot([index] * len(counts), counts, "o", color=CELL_COLORS[cell], alpha=0.7)
    reach.set_yscale("log")
    reach.set_ylim(0.7, 1500)
    reach.set_xticks(range(len(cells)), cells)
    reach.axhline(TRAINED, color=BASELINE_COLOR, linestyle=":", linewidth=1)
    label_axes(reach, title="Right up to n (trained to 10)", x="", y="n")
    text = make_word(_DRAWN).text
    for axes, cell in zip(units, cells, strict=True):
        axes.plot(trials[0].curves[cell]["counting unit"], color=CELL_COLORS[cell], linewidth=1.6)
        axes.axvline(text.index("X"), color=BASELINE_COLOR, linestyle=":", linewidth=1)
        axes.set_xticks([0, text.index("X"), len(text) - 1], ["first a", "X", "end"], color=HISTORY_COLOR)
        correlation = trials[0].measures[cell]["correlation of the counting unit"]
        label_axes(
            axes, title=f"{cell}: |r| = {correlation:.2f}", x=f"step of a^{_DRAWN} X b^{_DRAWN}", y="state of the unit"
        )
    return figure


COUNTING = Experiment(
    name="counting",
    question="Which cells write as many b as they have read a, and which unit counts?",
    conditions="Words a^n X b^n with an end symbol, n = 1 to 10, each a sequence of its own; one layer of 10 units, "
    "one-hot inputs, 4,000 steps of Adam with batches of 10 words, learning rate 0.06 (without gates 0.03) "
    "with a cosine: of 0.01, 0.03 and 0.06 the one with the lowest training loss of an LSTM and of an Elman "
    "network. A word is right if every symbol after the X is the most probable one. The counting unit has the "
    "largest correlation of its state with the number of b due, on the words of the training; chance is that "
    "of circular shifts.",
    merit="Right at least up to n = 19.",
    published="Chen (2017, Exploring LSTMs): an LSTM with 10 units, trained to n = 10, is right up to 18 and fails at "
    "19. Weiss, Goldberg and Yahav (2018): an LSTM accepts a^1000 b^1000, a GRU does not; a rectified Elman "
    "network can count, one with tanh cannot.",
    measures=(
        Measure("right up to n", 0),
        Measure("right at n = 1000", 0),
        Measure("correlation of the counting unit", 2),
        Measure("by chance (95 %)", 2),
    ),
    run=run_counting,
    draw=draw_counting,
)
