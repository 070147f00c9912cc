"""Fits the candidates of a selection: one after the other in this process, or at the same time wherever a caller runs them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from forecaster.errors import NonFiniteLoss
from forecaster.evaluation.validation import ValidationErrors
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.progress.steps import RunSteps
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import fit, fit_digest


class Candidate(NamedTuple):
    """A specification to fit, its number among the candidates, from 0, and how it is described."""

    number: int
    spec: Spec
    label: str


class FitOptions(NamedTuple):
    """How all candidates are fitted: accelerator and devices as for `fit`, and the folder of the checkpoints, if any."""

    accelerator: str
    devices: str
    checkpoint_folder: Path | None


class CandidateFit(NamedTuple):
    """The fit of the candidate with a number: its errors, None if it diverged, its steps, and a summary."""

    number: int
    errors: ValidationErrors | None
    steps: int
    summary: str


def fit_candidates(
    panel: Panel,
    candidates: Sequence[Candidate],
    options: FitOptions,
    *,
    run_steps: RunSteps | None,
    progress: Progress,
) -> list[CandidateFit]:
    """Fits all candidates; returns their fits in order.

    Args:
        panel: The data, with the validation windows.
        candidates: What is fitted.
        options: How it is fitted.
        run_steps: What fits candidates elsewhere, several at a time; None fits one after the other in this process.
        progress: Receives a phase for each candidate, or one for all that are fitted elsewhere.
    """
    if run_steps is not None:
        return _fit_elsewhere(panel, candidates, options, run_steps=run_steps, progress=progress)
    results = []
    for candidate in candidates:
        with progress.phase(f"variant {candidate.number + 1} of {len(candidates)}", candidate.spec.training.steps):
            result = fit_candidate(panel, options, candidate, progress=progress)
            progress.update(result.steps, result.summary)
        results.append(result)
    return results


def fit_candidate(
    panel: Panel, options: FitOptions, candidate: Candidate, *, progress: Progress = NO_PROGRESS
) -> CandidateFit:
    """Fits one candidate, in any process, and continues from its checkpoint if there is one."""
    checkpoint = None
    if options.checkpoint_folder is not None:
        options.checkpoint_folder.mkdir(parents=True, exist_ok=True)
        checkpoint = options.checkpoint_folder / f"{fit_digest(panel, candidate.spec)[:16]}.ckpt"
    try:
        fitted = fit(
            panel,
            candidate.spec,
            checkpoint=checkpoint,
            accelerator=options.accelerator,
            devices=options.devices,
            progress=progress,
            label=candidate.label,
        )
    except NonFiniteLoss:
        return CandidateFit(candidate.number, None, 0, f"{candidate.label}: diverged")
    error = fitted.scores["valid/rollout"]
    summary = f"{candidate.label}: MASE {error:.4g} after {fitted.epochs} epochs"
    return CandidateFit(candidate.number, fitted.validation_errors, fitted.steps, summary)


def _fit_elsewhere(
    panel: Panel, candidates: Sequence[Candidate], options: FitOptions, *, run_steps: RunSteps, progress: Progress
) -> list[CandidateFit]:
    results: list[CandidateFit] = []
    with progress.phase("variants", len(candidates)):
        for result in run_steps(partial(fit_candidate, panel, options), candidates):
            results.append(result)
            progress.update(len(results), result.summary)
    return sorted(results, key=lambda result: result.number)
