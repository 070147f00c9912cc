"""Fits a network to symbolic sequences: many short ones, such as words of a formal language, each a series of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from forecaster.data.symbols import START_MARKER_FACT, build_symbol_panel
from forecaster.errors import NoData
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.spec import HeadSpec, NetworkSpec, Spec, TrainingSpec
from forecaster.training.fit import FitResult, fit

WHOLE_SEQUENCES = (
    1e-3  # a distance from the end (`TrainingSpec.recent`) so small that every window ends with its sequence
)


def build_sequence_spec(
    sequences: Sequence[Sequence[str | None]],
    *,
    name: str = "sequences",
    network: NetworkSpec | None = None,
    training: TrainingSpec | None = None,
) -> Spec:
    """Returns a specification whose windows hold a whole sequence, so that a network is trained on the symbol after every step.

    Args:
        sequences: The sequences, of which the longest determines the context.
        name: The name of the model.
        network: The network; by default an LSTM with 32 units.
        training: The training; its windows end with their sequences, and it holds out no steps of them.
    """
    longest = max(map(len, sequences), default=0)
    if not longest:
        raise NoData(
            "Expected at least one symbol to train on; found none. Pass sequences of symbols.", where="sequences"
        )
    training = training or TrainingSpec(steps=2000, epoch_steps=100, learning_rate=0.005, average=0.99, patience=5)
    return Spec(
        name=name,
        context=longest,
        horizon=1,
        min_history=1,
        scaling="none",
        head=HeadSpec(kind="symbols"),
        network=network or NetworkSpec(cell="lstm", hidden=32),
        training=training.model_copy(update={"valid_windows": 0, "recent": training.recent or WHOLE_SEQUENCES}),
    )


def fit_sequences(
    sequences: Sequence[Sequence[str | None]],
    spec: Spec | None = None,
    *,
    validation: Sequence[Sequence[str | None]] = (),
    accelerator: str = "auto",
    progress: Progress = NO_PROGRESS,
) -> FitResult:
    """Trains a network to predict every symbol of a sequence from those before it, and the first one from nothing.

    An unknown symbol precedes each sequence as its first step (`build_symbol_panel`), so that no step is lost.

    Args:
        sequences: Texts, whose characters are the symbols, or lists of symbols.
        spec: The specification; by default that of `build_sequence_spec`. Without a vocabulary, it gets the symbols that occur.
        validation: Further sequences, whose cross-entropy chooses the best epoch and stops the training (`training.patience`).
        accelerator, progress: As for `fit`.
    Returns:
        The result of `fit`; `scores` has `valid/cross_entropy` (nats), `valid/perplexity` and `valid/accuracy`.
    """
    spec = spec or build_sequence_spec(sequences)
    panel = build_symbol_panel(sequences, vocabulary=spec.head.vocabulary, start_marker=True)
    held_out = build_symbol_panel(validation, vocabulary=panel.vocabulary, start_marker=True) if validation else None
    result = fit(panel, spec, validation=held_out, accelerator=accelerator, progress=progress)
    facts = {**result.model.facts, START_MARKER_FACT: True}
    return result._replace(model=replace(result.model, facts=facts))
