"""The experiment `selective`: counting the a among a and X, and the gate that closes on X."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from forecaster.evaluation.plots import GRID_COLOR, HISTORY_COLOR
from forecaster.model.recurrence.cells import CellStep, GRUStep, LSTMStep
from forecaster.prediction.fitted_model import FittedModel
from forecaster.progress import Progress
from forecaster.shapes import Float
from pipelines.laboratory.counting import count_of
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

TRAINED = 10  # most a of a word of the training, and most X
_TESTED_WORDS = 200
_DRAWN = "aXXaaXaXXXaaXaYbbbbbbb" + END


def make_words(count: int, *, fewest: int, most: int, seed: int) -> list[Word]:
    """Returns words with `fewest` to `most` a, among which lie up to ten X, then Y and as many b as a."""
    rng, words = np.random.default_rng(seed), []
    for _ in range(count):
        a, x = int(rng.integers(fewest, most + 1)), int(rng.integers(0, TRAINED + 1))
        head = "".join(rng.permutation(list("a" * a + "X" * x)))
        words.append(Word(f"{head}Y{'b' * a}{END}", len(head) + 1))
    return words


def run_selective(
    seed: int, progress: Progress, *, settings: LanguageSettings | None = None, words: int = 500
) -> Findings:
    """Trains each cell, and measures the gate of its counting unit on a and on X."""
    settings = settings or LanguageSettings(cells=("elman", "gru", "lstm"))
    training = make_words(words, fewest=1, most=TRAINED, seed=seed)
    measures: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[str, Sequence[float]]] = {}
    for index, cell in enumerate(settings.cells):
        progress.update(index, cell)
        model = train_on_words(training, settings, cell=cell, seed=seed)
        measures[cell], curves[cell] = measure_selection(model, seed=seed)
    return Findings(measures, curves)


def measure_selection(model: FittedModel, *, seed: int) -> tuple[dict[str, float], dict[str, Sequence[float]]]:
    """Returns the share of right words, and how far the gate of the counting unit opens for each symbol."""
    tests = {
        f"right words, {fewest} to {most} a": make_words(_TESTED_WORDS, fewest=fewest, most=most, seed=seed + 10_000)
        for fewest, most in ((1, TRAINED), (TRAINED + 1, 2 * TRAINED))
    }
    measures = {name: float(np.mean(find_right_words(model, words))) for name, words in tests.items()}
    texts = [word.text for word in make_words(20, fewest=1, most=TRAINED, seed=seed + 20_000)]
    steps = [record_steps(model, text)[0] for text in texts]
    memories = np.concatenate([memory_of(step)[0].numpy() for step in steps])
    match = find_unit(memories, np.concatenate([count_of(text) for text in texts]), seed=seed)
    measures |= {"correlation of the counting unit": abs(match.correlation), "by chance (95 %)": match.chance}
    drawn = record_steps(model, _DRAWN)[0]
    curves: dict[str, Sequence[float]] = {"counting unit": round_curve(memory_of(drawn)[0, :, match.unit].numpy())}
    gates = [gate_of(step, match.unit) for step in steps]
    if all(len(gate) for gate in gates):
        symbols, opening = np.array(list("".join(texts))), np.concatenate(gates)
        before_y = np.concatenate([np.arange(len(text)) < text.index("Y") for text in texts])
        for symbol in "aX":
            measures[f"gate at {symbol}"] = float(opening[(symbols == symbol) & before_y].mean())
        curves["gate"] = round_curve(gate_of(drawn, match.unit))
    return measures, curves


def gate_of(step: CellStep, unit: int) -> Float[np.ndarray, "step"]:
    """Returns the gate through which new content enters a unit; empty for a cell without gates.

    It is the input gate of an LSTM, and 1 - z of a GRU.
    """
    if isinstance(step, LSTMStep):
        return step.input[0, :, unit].numpy()
    return 1 - step.update[0, :, unit].numpy() if isinstance(step, GRUStep) else np.zeros(0, dtype=np.float32)


def draw_selective(trials: Sequence[Trial]) -> Figure:
    """Draws the state of the counting unit and its gate over one word, of the first seed."""
    cells, first = list(trials[0].curves), trials[0]
    figure, all_axes = create_axes(columns=1, rows=len(cells), width=9, height=2.3)
    for axes, cell in zip(all_axes, cells, strict=True):
        axes.plot(
            first.curves[cell]["counting unit"],
            color=CELL_COLORS[cell],
            linewidth=1.6,
            label="state of the counting unit",
        )
        if "gate" in first.curves[cell]:
            gate = axes.twinx()
            gate.bar(range(len(_DRAWN)), first.curves[cell]["gate"], color=GRID_COLOR, zorder=0)
            gate.set_ylim(0, 1)
            gate.set_ylabel("gate")
            gate.spines[["top"]].set_visible(False)
            axes.set_zorder(gate.get_zorder() + 1)
            axes.patch.set_visible(False)
        axes.set_xticks(range(len(_DRAWN)), list(_DRAWN), color=HISTORY_COLOR)
        label_axes(
            axes, title=f"{cell}: counting unit (line) and the gate through which it is written (bars)", x="", y="state"
        )
    return figure


SELECTIVE = Experiment(
    name="selective",
    question="How does a cell count the a among a and X: does a gate close on X?",
    conditions="500 random words of 1 to 10 a among 0 to 10 X, then Y and as many b as a, with an end symbol; network and "
    "training as in `counting`. Tested on 200 other words each of 1 to 10 and of 11 to 20 a. The gate is that "
    "of the counting unit: the input gate of an LSTM, 1 - z of a GRU; its means are over the symbols before "
    "the Y.",
    merit="Share of right words of the lengths of the training; the gate at X below the gate at a.",
    published="Chen (2017, Exploring LSTMs): the input gate of the counting neuron ignores X. No figures.",
    measures=(
        Measure(f"right words, 1 to {TRAINED} a", 3),
        Measure(f"right words, {TRAINED + 1} to {2 * TRAINED} a", 3),
        Measure("correlation of the counting unit", 2),
        Measure("by chance (95 %)", 2),
        Measure("gate at a", 2),
        Measure("gate at X", 2),
    ),
    run=run_selective,
    draw=draw_selective,
)
