"""The experiment `characters`: a language model of characters, as textbooks train it, on the system that forecasts series."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, Any

from forecaster.data.datasets import load_time_machine
from forecaster.data.symbols import build_symbol_panel
from forecaster.evaluation.plots import BASELINE_COLOR
from forecaster.prediction.symbol_sequences import continue_sequence, score_sequences
from forecaster.progress import Progress
from forecaster.spec import CellKind, HeadSpec, NetworkSpec, Spec, TrainingSpec
from forecaster.training.fit import fit
from forecaster.training.lightning import pl
from pipelines.laboratory.pictures import create_axes, draw_curves, label_axes
from pipelines.laboratory.records import Experiment, Findings, Measure, Trial, round_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = 1.1  # perplexity on the training text
_PREFIX, _CONTINUED = "time traveller", 50
_STEPS_PER_SCORE = 25


@dataclass(frozen=True)
class CharacterSettings:
    """Sizes of the experiment."""

    cells: tuple[CellKind, ...] = ("elman", "gru", "lstm")
    characters: int = 10_000
    hidden: int = 256
    context: int = 100
    batch: int = 16
    steps: int = 800
    learning_rate: float = 0.005


class _LossCallback(pl.Callback):
    """Keeps the perplexity of the training batches, by chunks of optimiser steps."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.perplexities: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Reads the mean loss of a chunk, which is a cross-entropy in nats."""
        self.steps.append(float(trainer.global_step))
        self.perplexities.append(exp(float(outputs["loss"])))


def run_characters(seed: int, progress: Progress, *, settings: CharacterSettings | None = None) -> Findings:
    """Trains each cell on the first characters of the text, and scores these and as many that follow."""
    settings = settings or CharacterSettings()
    text = load_time_machine()
    training, following = text[: settings.characters], text[settings.characters : 2 * settings.characters]
    measures: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[str, Sequence[float]]] = {}
    texts: dict[str, dict[str, str]] = {}
    for index, cell in enumerate(settings.cells):
        progress.update(index, cell)
        callback, started = _LossCallback(), time.process_time()
        panel = build_symbol_panel([training])
        model = fit(
            panel,
            _make_spec(cell, settings, seed=seed),
            callbacks=[callback],
            accelerator="cpu",
            steps_per_chunk=_STEPS_PER_SCORE,
        ).model
        seconds = time.process_time() - started
        measures[cell] = {
            "perplexity of the training text": score_sequences(model, [training]).perplexity,
            "perplexity of the text that follows": score_sequences(model, [following]).perplexity,
            "characters per CPU second": settings.steps * settings.batch * settings.context / seconds,
            "CPU seconds": seconds,
        }
        curves[cell] = {"step": callback.steps, "perplexity": round_curve(callback.perplexities)}
        continued = continue_sequence(model, _PREFIX, steps=_CONTINUED)
        texts[cell] = {"continuation": f"*{_PREFIX}*{''.join(symbol or '' for symbol in continued)}"}
    return Findings(measures, curves, texts)


def _make_spec(cell: CellKind, settings: CharacterSettings, *, seed: int) -> Spec:
    training = TrainingSpec(
        steps=settings.steps,
        epoch_steps=settings.steps,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        schedule="cosine",
        seed=seed,
        valid_windows=0,
    )
    return Spec(
        name="characters",
        context=settings.context,
        horizon=1,
        min_history=1,
        scaling="none",
        head=HeadSpec(kind="symbols"),
        network=NetworkSpec(cell=cell, hidden=settings.hidden),
        training=training,
    )


def draw_characters(trials: Sequence[Trial]) -> Figure:
    """Draws the perplexity of the training batches by step."""
    figure, [axes] = create_axes(columns=1, width=7, height=3.6)
    draw_curves(axes, trials, "perplexity", x="step")
    axes.axhline(TARGET, color=BASELINE_COLOR, linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.legend(frameon=False)
    label_axes(
        axes,
        title="Perplexity of the training batches, from an empty state; dotted: 1.1",
        x="optimiser step",
        y="perplexity",
    )
    return figure


CHARACTERS = Experiment(
    name="characters",
    question="Does a network that forecasts series also learn a text by heart, and what does it know of the text that "
    "follows?",
    conditions="The first 10,000 characters of The Time Machine in lower-case letters and spaces; one layer of 256 units, "
    "windows of 100 characters from an empty state, batches of 16, 800 steps of Adam at 0.005 with a cosine, "
    "gradient clipped at 1. The perplexity is that of one pass over the text, each character from all those "
    "before it.",
    merit="Perplexity of the training text, at most 1.1.",
    published="Zhang et al. (Dive into Deep Learning): GRU and LSTM with 256 units on the first 10,000 characters reach "
    "1.0 to 1.1 in 500 epochs of windows of 35, batches of 32; on GPUs, from scratch to library, a GRU makes "
    "24 k to 325 k and an LSTM 20 k to 254 k characters per second. The text that follows is not scored.",
    measures=(
        Measure("perplexity of the training text", 3),
        Measure("perplexity of the text that follows", 1),
        Measure("characters per CPU second", 0),
        Measure("CPU seconds", 0),
    ),
    run=run_characters,
    draw=draw_characters,
)
