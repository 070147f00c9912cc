"""The experiment `copying`: up to three symbols are written again after an X."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from forecaster.evaluation.plots import HISTORY_COLOR
from forecaster.progress import Progress
from forecaster.spec import CellKind
from pipelines.laboratory.languages import (
    END,
    LanguageSettings,
    Word,
    find_right_words,
    memory_of,
    record_steps,
    train_on_words,
)
from pipelines.laboratory.pictures import create_axes, label_axes
from pipelines.laboratory.records import Experiment, Findings, Measure, Trial, round_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYMBOLS, LONGEST, HELD_OUT = "abc", 3, 9
_DRAWN = "abcXabc" + END


def make_word(symbols: str) -> Word:
    """Returns the symbols, X, the symbols again, and the end."""
    return Word(f"{symbols}X{symbols}{END}", len(symbols) + 1)


def split_words(seed: int) -> tuple[list[Word], list[Word]]:
    """Returns all words of one to three symbols, without nine random ones of three symbols; and these nine."""
    texts = ["".join(letters) for length in range(1, LONGEST + 1) for letters in product(SYMBOLS, repeat=length)]
    longest = [text for text in texts if len(text) == LONGEST]
    held_out = set(np.random.default_rng(seed).choice(longest, size=HELD_OUT, replace=False).tolist())
    return [make_word(text) for text in texts if text not in held_out], [make_word(text) for text in sorted(held_out)]


def run_copying(
    seed: int,
    progress: Progress,
    *,
    settings: LanguageSettings | None = None,
    networks: Sequence[tuple[CellKind, int]] = (("elman", 2), ("gru", 2), ("lstm", 1), ("lstm", 2)),
) -> Findings:
    """Trains networks of one or two layers, and tests them on words that the training did not have."""
    settings = settings or LanguageSettings(learning_rate=0.01, rate_without_gates=0.01)
    training, held_out = split_words(seed)
    measures: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[str, Sequence[float]]] = {}
    for index, (cell, layers) in enumerate(networks):
        name = f"{cell}, {layers} layer{'s' * (layers > 1)}"
        progress.update(index, name)
        model = train_on_words(training, settings, cell=cell, layers=layers, seed=seed)
        measures[name] = {
            "right words of the training": float(np.mean(find_right_words(model, training))),
            "right words held out": float(np.mean(find_right_words(model, held_out))),
        }
        curves[name] = {
            f"layer {layer}, unit {unit}": round_curve(memory_of(step)[0, :, unit].numpy())
            for layer, step in enumerate(record_steps(model, _DRAWN), start=1)
            for unit in range(settings.hidden)
        }
    return Findings(measures, curves)


def draw_copying(trials: Sequence[Trial]) -> Figure:
    """Draws the states of all units of the largest LSTM while it reads and writes one word, of the first seed."""
    name = list(trials[0].curves)[-1]
    curves = trials[0].curves[name]
    layers = sorted({label.split(",")[0] for label in curves})
    figure, all_axes = create_axes(columns=len(layers), width=4.5 * len(layers), height=3.0)
    for axes, layer in zip(all_axes, layers, strict=True):
        states = np.array([curve for label, curve in curves.items() if label.startswith(f"{layer},")])
        limit = float(np.abs(states).max())
        image = axes.imshow(states, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit)
        figure.colorbar(image, ax=axes, shrink=0.8)
        axes.grid(visible=False)
        axes.set_xticks(range(len(_DRAWN)), list(_DRAWN), color=HISTORY_COLOR)
        label_axes(axes, title=f"{name}: cell states of {layer}", x="", y="unit")
    return figure


COPYING = Experiment(
    name="copying",
    question="Can a network write up to three symbols again, in their order, also such words that it never saw?",
    conditions="Words w X w with an end symbol, w of one to three of the symbols a, b and c; of the 39 words nine of "
    "three symbols are held out. 10 units per layer, 4,000 steps of Adam with batches of 10 words, learning "
    "rate 0.01 with a cosine.",
    merit="Share of right words, of the training and held out.",
    published="Chen (2017, Exploring LSTMs): an LSTM with two layers of 10 units learns to copy up to three symbols. No "
    "figures.",
    measures=(Measure("right words of the training", 3), Measure("right words held out", 3)),
    run=run_copying,
    draw=draw_copying,
)
