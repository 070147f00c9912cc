"""Selection of a specification for data: among the variants of a preset, by their forecasts of the validation windows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from forecaster.data.split import hold_out
from forecaster.errors import NonFiniteLoss
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import fit
from forecaster.training.presets import build_candidate_specs

_log = logging.getLogger(__name__)


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
        accelerator: As for `fit`.
        progress: Receives a phase for each variant, and the choice.
    """
    history = hold_out(panel, test_windows * horizon, min_history=2).history if test_windows else panel
    specs = [
        Spec.parse(spec.model_dump() | dict(columns), where=name) if columns else spec
        for spec in build_candidate_specs(history, horizon=horizon, name=name, preset=preset, season=season)
    ]
    for spec in specs:  # an error about short series describes the whole data, not the remaining history
        hold_out(panel, test_windows * horizon + spec.validation_steps, min_history=spec.min_steps + 1)

    candidates: list[CandidateScore] = []

    def add_candidate(spec: Spec, error: float) -> None:
        description = f"{spec.scaling}{' of log' * (spec.transform == 'log')}, base {spec.base}"
        candidates.append(CandidateScore(description, error))
        _log.info("candidate %s: %.4g times the error of seasonal naive", description, error)

    selection = select_on_validation(
        history, specs, accelerator=accelerator, on_result=add_candidate, progress=progress
    )
    if candidates:
        best = min(candidates, key=lambda candidate: candidate.error)
        progress.report(
            f"Variant {best.description} was chosen, with {best.error:.4g} times the error of seasonal naive."
        )
    return SpecSelection(selection.spec, tuple(candidates))


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
    on_result: Callable[[Spec, float], None] | None = None,
    progress: Progress = NO_PROGRESS,
) -> CandidateSelection:
    """Fits one network of each candidate and selects the best; a single candidate is returned without a fit.

    The last steps of `panel` (`Spec.validation_steps`) are the validation data; nothing after them is used.

    Args:
        panel: The data that the selected specification will be fitted on too.
        candidates: Of one horizon and with validation windows.
        accelerator: As for `fit`.
        on_result: Called with each candidate and its error.
        progress: Receives a phase for each candidate.
    """
    if len(candidates) == 1:
        return CandidateSelection(candidates[0], ())
    errors = []
    for number, spec in enumerate(candidates, start=1):
        with progress.phase(f"variant {number} of {len(candidates)}"):
            try:
                single_member = spec.model_copy(update={"members": 1})
                errors.append(fit(panel, single_member, accelerator=accelerator).scores["valid/rollout"])
            except NonFiniteLoss:
                errors.append(float("inf"))
        if on_result is not None:
            on_result(spec, errors[-1])
    return CandidateSelection(candidates[errors.index(min(errors))], tuple(errors))
