"""Selection of a specification for data: among the variants of a preset, by their forecasts of the validation windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from forecaster.data.split import hold_out
from forecaster.errors import HistoryTooShort, NonFiniteLoss
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import fit, fit_digest
from forecaster.training.presets import build_candidate_specs


class CandidateScore(NamedTuple):
    """The description of a candidate specification, and its error on the validation windows."""

    description: str
    error: float


class SpecSelection(NamedTuple):
    """A specification and the candidates it was chosen from; there are none if it was given."""

    spec: Spec
    candidates: tuple[CandidateScore, ...] = ()


def select_spec(
    panel: Panel,
    *,
    name: str,
    horizon: int,
    preset: str | None = None,
    season: int | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    test_windows: int = 1,
    accelerator: str = "auto",
    devices: str = "1",
    checkpoint_folder: Path | None = None,
    progress: Progress = NO_PROGRESS,
) -> SpecSelection:
    """Returns the variant of a preset with the best forecasts on the windows before the test.

    Args:
        panel: All data.
        name: The name of the model.
        horizon: Steps ahead.
        preset: The preset; by default that of the panel's frequency.
        season: Steps of a season; by default that of the panel's frequency.
        columns: The fields `covariates`, `static` and `channels` of all variants; by default there are none.
        test_windows: Rolling origins at the end, which do not affect the choice.
        accelerator, devices: As for `fit`.
        checkpoint_folder: As for `select_on_validation`.
        progress: Receives a phase for each variant, and the choice.
    """

    def build(horizon: int, test_windows: int) -> tuple[Panel, list[Spec]]:
        return _build_candidates(
            panel,
            name=name,
            horizon=horizon,
            preset=preset,
            season=season,
            columns=columns or {},
            test_windows=test_windows,
        )

    try:
        history, specs = build(horizon, test_windows)
    except HistoryTooShort as error:
        longest, longest_untested = (
            _find_longest_horizon(partial(build, test_windows=windows), limit=max(map(len, panel.series)))
            for windows in (test_windows, 0)
        )
        untested = f", or {longest_untested} without test windows" if longest_untested > longest else ""
        raise HistoryTooShort(
            f"{error.message} The longest horizon that these data allow is {longest}{untested}.", where=error.where
        ) from error

    selection = select_on_validation(
        history,
        specs,
        accelerator=accelerator,
        devices=devices,
        checkpoint_folder=checkpoint_folder,
        progress=progress,
    )
    # The errors are empty if there is only one candidate.
    candidates = tuple(
        CandidateScore(describe_variant(spec), error) for spec, error in zip(specs, selection.errors, strict=False)
    )
    if candidates:
        lowest = min(selection.errors)
        reason = "all variants diverged" if math.isinf(lowest) else f"it has the lowest MASE, {lowest:.4g}"
        number = 1 + selection.errors.index(lowest)
        progress.report(f"Variant {number} ({describe_variant(selection.spec)}) is used: {reason}.")
    return SpecSelection(selection.spec, candidates)


def describe_variant(spec: Spec) -> str:
    """Describes what the variants of a preset differ in."""
    return f"{spec.scaling}{' of log' * (spec.transform == 'log')}, base {spec.base}"


def _build_candidates(
    panel: Panel,
    *,
    name: str,
    horizon: int,
    preset: str | None,
    season: int | None,
    columns: Mapping[str, Sequence[str]],
    test_windows: int,
) -> tuple[Panel, list[Spec]]:
    """Returns the data before the test and the candidates for them; raises HistoryTooShort."""
    history = hold_out(panel, test_windows * horizon, min_history=2).history if test_windows else panel
    specs = [
        Spec.parse(spec.model_dump() | dict(columns), where=name) if columns else spec
        for spec in build_candidate_specs(history, horizon=horizon, name=name, preset=preset, season=season)
    ]
    for spec in specs:  # an error about short series describes the whole data, not the remaining history
        hold_out(panel, test_windows * horizon + spec.validation_steps, min_history=spec.min_steps + 1)
    return history, specs


def _find_longest_horizon(build: Callable[[int], object], *, limit: int) -> int:
    """Returns the longest horizon below the limit for which candidates can be built, by bisection; 0 if there is none."""
    longest = 0
    while limit - longest > 1:
        middle = (longest + limit) // 2
        try:
            build(middle)
            longest = middle
        except HistoryTooShort:
            limit = middle
    return longest


class CandidateSelection(NamedTuple):
    """The selected specification, and the error of each candidate.

    Attributes:
        spec: The best specification.
        errors: Free-running error of each over the seasonal naive's on the validation windows; infinite where the fit failed.
    """

    spec: Spec
    errors: tuple[float, ...]


def select_on_validation(
    panel: Panel,
    candidates: Sequence[Spec],
    *,
    accelerator: str = "auto",
    devices: str = "1",
    checkpoint_folder: Path | None = None,
    progress: Progress = NO_PROGRESS,
) -> CandidateSelection:
    """Fits one network of each candidate and selects the best; a single candidate is returned without a fit.

    The last steps of `panel` (`Spec.validation_steps`) are the validation data; nothing after them is used.

    Args:
        panel: The data that the selected specification will be fitted on too.
        candidates: Of one horizon and with validation windows.
        accelerator, devices: As for `fit`.
        checkpoint_folder: Folder for one checkpoint per candidate. An interrupted selection resumes from these: it repeats
            neither a finished candidate nor a finished epoch. The caller removes the folder.
        progress: Receives a phase for each candidate.
    """
    if len(candidates) == 1:
        return CandidateSelection(candidates[0], ())
    errors = []
    for number, spec in enumerate(candidates, start=1):
        single_member, label = spec.model_copy(update={"members": 1}), describe_variant(spec)
        checkpoint = None
        if checkpoint_folder is not None:
            checkpoint_folder.mkdir(parents=True, exist_ok=True)
            checkpoint = checkpoint_folder / f"{fit_digest(panel, single_member)[:16]}.ckpt"
        with progress.phase(f"variant {number} of {len(candidates)}", spec.training.steps):
            try:
                fitted = fit(
                    panel,
                    single_member,
                    checkpoint=checkpoint,
                    accelerator=accelerator,
                    devices=devices,
                    progress=progress,
                    label=label,
                )
            except NonFiniteLoss:
                errors.append(float("inf"))
                progress.update(0, f"{label}: diverged")
            else:
                errors.append(fitted.scores["valid/rollout"])
                progress.update(fitted.steps, f"{label}: MASE {errors[-1]:.4g} after {fitted.epochs} epochs")
    return CandidateSelection(candidates[errors.index(min(errors))], tuple(errors))
