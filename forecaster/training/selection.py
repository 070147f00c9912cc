"""Selection of a specification for data: the simplest variant of a preset that does not clearly forecast worse than another.

All variants forecast the same validation windows, and their errors are compared in pairs
(`forecaster.evaluation.one_standard_error`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from forecaster.data.on_disk.tape import count_steps
from forecaster.data.split import hold_out
from forecaster.errors import BadSpec, HistoryTooShort
from forecaster.evaluation.one_standard_error import (
    MAX_EXCESS,
    ErrorsByWindow,
    SimplestChoice,
    choose_simplest,
)
from forecaster.evaluation.validation import ValidationErrors
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.progress.steps import RunSteps
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.base_variants import build_base_variants
from forecaster.training.candidates import Candidate, FitOptions, fit_candidates
from forecaster.training.presets import build_candidate_specs, build_symbol_spec


class CandidateScore(NamedTuple):
    """The description of a candidate specification, its error on the validation windows, and whether it was chosen."""

    description: str
    error: float
    is_chosen: bool = False


class SpecSelection(NamedTuple):
    """A specification, the candidates it was chosen from, and the reason in a sentence; both are empty if it was given."""

    spec: Spec
    candidates: tuple[CandidateScore, ...] = ()
    reason: str = ""

    def limit_members(self, members: int | None, *, progress: Progress = NO_PROGRESS) -> int | None:
        """Returns the requested members; none where the variant is used without training, since all would be equal.

        That is reported.
        """
        if self.spec.training.steps or members in (None, 1):
            return members
        progress.report(f"The chosen variant is used without training, so it has one member instead of {members}.")
        return None


def select_spec(
    panel: Panel,
    *,
    name: str,
    horizon: int,
    preset: str | None = None,
    season: int | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    test_windows: int = 1,
    with_pretrained: bool = True,
    accelerator: str = "auto",
    devices: str = "1",
    checkpoint_folder: Path | None = None,
    run_steps: RunSteps | None = None,
    progress: Progress = NO_PROGRESS,
) -> SpecSelection:
    """Returns the simplest variant of a preset that is not clearly worse than the best on the windows before the test.

    Args:
        panel: All data.
        name: The name of the model.
        horizon: Steps ahead.
        preset: The preset; by default that of the panel's frequency.
        season: Steps of a season; by default that of the panel's frequency.
        columns: The fields `covariates`, `static` and `channels` of all variants; by default there are none.
        test_windows: Rolling origins at the end, which do not affect the choice.
        with_pretrained: Whether the pretrained network, as it is and fine-tuned, is among the variants.
        accelerator, devices: As for `fit`.
        checkpoint_folder, run_steps: As for `select_on_validation`.
        progress: Receives a phase for each variant, and the choice.
    Raises:
        BadSpec: A preset for symbols, which have one specification instead.
    """
    if panel.vocabulary:
        if preset is not None:
            raise BadSpec(
                f"Expected no preset for symbols, because presets are for numbers; found {preset!r}. Leave it out, or use a "
                "specification with `head: {kind: symbols}`.",
                where="preset",
            )
        spec = build_symbol_spec(panel, horizon=horizon, name=name, season=season, test_windows=test_windows)
        return SpecSelection(Spec.parse(spec.model_dump() | dict(columns or {}), where=name))

    def build(horizon: int, test_windows: int) -> tuple[Panel, list[Spec]]:
        return _build_candidates(
            panel,
            name=name,
            horizon=horizon,
            preset=preset,
            season=season,
            columns=columns or {},
            test_windows=test_windows,
            with_pretrained=with_pretrained,
        )

    try:
        history, specs = build(horizon, test_windows)
    except HistoryTooShort as error:
        longest, longest_untested = (
            _find_longest_horizon(partial(build, test_windows=windows), limit=int(count_steps(panel.series).max()))
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
        run_steps=run_steps,
        progress=progress,
    )
    choice = selection.choice
    if choice is None:
        return SpecSelection(selection.spec)
    descriptions = [describe_variant(spec) for spec in specs]
    candidates = tuple(
        CandidateScore(description, error, index == choice.chosen)
        for index, (description, error) in enumerate(zip(descriptions, choice.means, strict=True))
    )
    reason = describe_choice(choice, descriptions, windows=specs[0].training.valid_windows)
    progress.report(reason)
    return SpecSelection(selection.spec, candidates, reason)


def describe_variant(spec: Spec) -> str:
    """Describes what the variants of a preset differ in."""
    if spec.training.initial == "base":
        return "pretrained network, " + (
            f"fine-tuned by {spec.training.steps} steps" if spec.training.steps else "as it is"
        )
    calendar = f", calendar {' '.join(spec.calendar)}" if spec.calendar else ""
    return f"{spec.scaling}{' of log' * (spec.transform == 'log')}, base {spec.base}{calendar}"


def describe_choice(choice: SimplestChoice, descriptions: Sequence[str], *, windows: int) -> str:
    """Describes a choice among the variants with these descriptions in one sentence: which, its error, and why."""
    used = f"Variant {choice.chosen + 1} ({descriptions[choice.chosen]}) is used"
    if not np.isfinite(choice.means[choice.chosen]):
        return f"{used}: all variants diverged."
    counted = "the validation window" if windows == 1 else f"the {windows} validation windows"
    if choice.chosen != choice.best:
        difference = choice.differences[choice.chosen]
        return (
            f"{used}: it is the simplest whose MASE on {counted}, {choice.means[choice.chosen]:.4g}, is not clearly above the "
            f"lowest, {choice.means[choice.best]:.4g} of variant {choice.best + 1} ({descriptions[choice.best]}); the difference "
            f"is {difference.mean:.2g}, its standard error {difference.standard_error:.2g} over {difference.units}."
        )
    simpler = "; ".join(
        f"variant {index + 1} diverged"
        if not np.isfinite(difference.mean)
        else f"that of variant {index + 1} is larger by {difference.mean:.2g}"
        + (
            f", with a standard error of {difference.standard_error:.2g} over {difference.units}"
            if difference.mean > difference.standard_error
            else f", which is more than {MAX_EXCESS:.0%} of it"
        )
        for index, difference in enumerate(choice.differences[: choice.chosen])
    )
    compared = f", and the simpler variants are clearly worse: {simpler}" if simpler else ", and no variant is simpler"
    return f"{used}: it has the lowest MASE on {counted}, {choice.means[choice.chosen]:.4g}{compared}."


def _build_candidates(
    panel: Panel,
    *,
    name: str,
    horizon: int,
    preset: str | None,
    season: int | None,
    columns: Mapping[str, Sequence[str]],
    test_windows: int,
    with_pretrained: bool,
) -> tuple[Panel, list[Spec]]:
    """Returns the data before the test and the candidates for them; raises HistoryTooShort."""
    history = hold_out(panel, test_windows * horizon, min_history=2).history if test_windows else panel
    specs = [
        Spec.parse(spec.model_dump() | dict(columns), where=name) if columns else spec
        for spec in build_candidate_specs(history, horizon=horizon, name=name, preset=preset, season=season)
    ]
    if with_pretrained and not columns and preset != "classic":  # the pretrained network reads no further columns
        specs = [*build_base_variants(history, specs[0]), *specs]
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
    """The selected specification, and the comparison of the candidates; None if there was only one."""

    spec: Spec
    choice: SimplestChoice | None = None

    @property
    def errors(self) -> tuple[float, ...]:
        """The MASE of each candidate on the validation windows; infinite where the fit failed, empty for one candidate."""
        return () if self.choice is None else self.choice.means


def select_on_validation(
    panel: Panel,
    candidates: Sequence[Spec],
    *,
    accelerator: str = "auto",
    devices: str = "1",
    checkpoint_folder: Path | None = None,
    run_steps: RunSteps | None = None,
    progress: Progress = NO_PROGRESS,
) -> CandidateSelection:
    """Fits one network of each candidate and selects by `choose_simplest`; a single candidate is returned without a fit.

    The last steps of `panel` (`Spec.validation_steps`) are the validation data; nothing after them is used. Candidates are
    compared on the series that are long enough for all of them.

    Args:
        panel: The data that the selected specification will be fitted on too.
        candidates: From the simplest to the richest, with the same horizon, season and validation windows. What is listed first
            needs the least evidence to be used.
        accelerator, devices: As for `fit`.
        checkpoint_folder: Folder for one checkpoint per candidate. An interrupted selection resumes from these: it repeats
            neither a finished candidate nor a finished epoch. The caller removes the folder.
        run_steps: What fits the candidates elsewhere, several at a time; by default one after the other in this process.
        progress: Receives a phase for each candidate.
    Raises:
        BadSpec: The candidates do not share horizon, season and validation windows.
    """
    if len(candidates) == 1:
        return CandidateSelection(candidates[0])
    _validate_comparable(candidates)
    results = fit_candidates(
        panel,
        [
            Candidate(number, spec.model_copy(update={"members": 1}), describe_variant(spec))
            for number, spec in enumerate(candidates)
        ],
        FitOptions(accelerator, devices, checkpoint_folder),
        run_steps=run_steps,
        progress=progress,
    )
    spec = candidates[0]
    overlap = max(1.0, spec.horizon / (spec.training.valid_stride or spec.horizon))
    choice = choose_simplest(_align_series([result.errors for result in results]), overlap=overlap)
    return CandidateSelection(candidates[choice.chosen], choice)


def _validate_comparable(candidates: Sequence[Spec]) -> None:
    """Raises BadSpec unless all candidates are validated on the same windows in the same units."""
    windows = {
        (spec.horizon, spec.season, spec.training.valid_windows, spec.training.valid_stride) for spec in candidates
    }
    if len(windows) > 1 or not candidates[0].training.valid_windows:
        raise BadSpec(
            "Expected candidates with the same validation windows, at least one; found horizon, season, valid_windows and "
            f"valid_stride {', '.join(map(str, sorted(windows, key=str)))}. Give them the same values.",
            where="candidates",
        )


def _align_series(results: Sequence[ValidationErrors | None]) -> list[ErrorsByWindow | None]:
    """Returns the errors of every candidate on the series that all were validated on, in one order."""
    id_sets = [set(result.series_ids) for result in results if result is not None]
    shared = set.intersection(*id_sets) if id_sets else set()
    return [
        None
        if result is None
        else result.errors[[index for index, name in enumerate(result.series_ids) if name in shared]]
        for result in results
    ]
