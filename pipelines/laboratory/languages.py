"""Formal languages: training on their words, the predictions that must be right, and the states while a word is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from forecaster.data.symbols import build_symbol_panel
from forecaster.data.windows import Window
from forecaster.model.recurrence.cells import CellStep, LSTMStep, run_cells
from forecaster.model.recurrent import RecurrentState, to_layer_inputs
from forecaster.model.rollout import encode_inputs, start_rollout
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.symbol_sequences import predict_next_symbols
from forecaster.shapes import Float
from forecaster.spec import CellKind, NetworkSpec, TrainingSpec
from forecaster.training.sequences import build_sequence_spec, fit_sequences

END = "."
"""The symbol that ends a word, so that a network must also predict when to stop."""


@dataclass(frozen=True)
class LanguageSettings:
    """Network and training of an experiment with words.

    Attributes:
        cells: Kinds of cell.
        hidden: Units of a layer.
        steps: Optimiser steps.
        batch: Words of a batch.
        learning_rate: Highest learning rate, which decays to zero with a cosine.
        rate_without_gates: The same for cells without gates.
    """

    cells: tuple[CellKind, ...] = ("elman", "relu", "gru", "lstm")
    hidden: int = 10
    steps: int = 4000
    batch: int = 10
    learning_rate: float = 0.06
    rate_without_gates: float = 0.03


class Word(NamedTuple):
    """A word of a language.

    Attributes:
        text: Its symbols.
        start: Index of the first symbol that follows from those before it; all later ones do too.
    """

    text: str
    start: int


def train_on_words(
    words: Sequence[Word], settings: LanguageSettings, *, cell: CellKind, seed: int, layers: int = 1
) -> FittedModel:
    """Trains a network to predict each symbol of words from those before it."""
    texts = [word.text for word in words]
    training = TrainingSpec(
        steps=settings.steps,
        epoch_steps=settings.steps,
        batch=settings.batch,
        learning_rate=settings.learning_rate if cell in ("gru", "lstm") else settings.rate_without_gates,
        schedule="cosine",
        seed=seed,
        valid_windows=0,
    )
    network = NetworkSpec(cell=cell, hidden=settings.hidden, layers=layers)
    spec = build_sequence_spec(texts, name="laboratory", network=network, training=training)
    return fit_sequences(texts, spec, accelerator="cpu").model


def find_right_words(model: FittedModel, words: Sequence[Word]) -> list[bool]:
    """Returns for each word whether every symbol from its start on was the most probable one.

    Such a word is also what the network writes when it runs freely after the symbols before the start.
    """
    vocabulary, results = np.array(model.spec.head.vocabulary), []
    for word, probabilities in zip(words, predict_next_symbols(model, [word.text for word in words]), strict=True):
        predicted = vocabulary[probabilities[word.start : len(word.text)].argmax(axis=1)]
        results.append(bool((predicted == np.array(list(word.text[word.start :]))).all()))
    return results


def record_steps(model: FittedModel, text: str) -> tuple[CellStep, ...]:
    """Returns gates, candidates and states of each layer after every symbol of a text; their first axis is a single row.

    The step before the first symbol, which reads the start of a word, is left out.
    """
    network, records = model.network, []
    panel = build_symbol_panel([text], vocabulary=model.spec.head.vocabulary, start_marker=True)

    def run_and_record(
        layer: nn.Module, inputs: Tensor, state: RecurrentState, mask: Tensor
    ) -> tuple[Tensor, RecurrentState]:
        record = run_cells(to_layer_inputs(layer, inputs, state, mask))
        records.append(record)
        cell = record.cell[None, :, -1] if isinstance(record, LSTMStep) else None
        return record.hidden, RecurrentState(record.hidden[None, :, -1], cell)

    state, window = start_rollout(network, Window(torch.from_numpy(panel.series[0].y)[None]))
    with torch.no_grad():
        encoded = encode_inputs(network, window, state)
        network.recurrent(encoded.inputs, state.recurrent_state, encoded.mask, run_and_record)
    return tuple(type(record)(*(part[:, 1:] for part in record)) for record in records)


def memory_of(step: CellStep) -> Float[Tensor, "*axes hidden"]:
    """Returns the state that a cell keeps: the cell state of an LSTM, the hidden state of the others."""
    return step.cell if isinstance(step, LSTMStep) else step.hidden
