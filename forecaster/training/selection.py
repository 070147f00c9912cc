"""Selection among several specifications by their forecasts of the validation windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from forecaster.errors import NonFiniteLoss
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import fit


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
) -> CandidateSelection:
    """Fits one network of each candidate and selects the best; a single candidate is returned without a fit.

    The last steps of `panel` (`Spec.validation_steps`) are the validation data; nothing after them is used.

    Args:
        panel: The data that the selected specification will be fitted on too.
        candidates: Of one horizon and with validation windows.
        accelerator: As for `fit`.
        on_result: Called with each candidate and its error.
    """
    if len(candidates) == 1:
        return CandidateSelection(candidates[0], ())
    errors = []
    for spec in candidates:
        try:
            single_member = spec.model_copy(update={"members": 1})
            errors.append(fit(panel, single_member, accelerator=accelerator).scores["valid/rollout"])
        except NonFiniteLoss:
            errors.append(float("inf"))
        if on_result is not None:
            on_result(spec, errors[-1])
    return CandidateSelection(candidates[errors.index(min(errors))], tuple(errors))
