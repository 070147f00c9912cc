"""Which of several specifications: the one whose forecasts were best on the validation windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from forecaster.errors import NonFiniteLoss
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.fit import fit


class CandidateSelection(NamedTuple):
    """The specification that was chosen, and what each came to.

    Attributes:
        spec: The best.
        errors: Of each, free-running over the seasonal naive's on the validation windows; infinite where it came to nothing.
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
    """Fits one network of each candidate, and takes the best; the first where there is one alone.

    Only what may be known is in `panel`: its last steps (`Spec.held_out`) judge, and nothing after them.

    Args:
        panel: What the chosen one will be fitted on too.
        candidates: Of one horizon and with validation windows.
        accelerator: As for `fit`.
        tell: Is told of each as it is done.
    """
    if len(candidates) == 1:
        return CandidateSelection(candidates[0], ())
    errors = []
    for spec in candidates:
        try:
            alone = spec.model_copy(update={"members": 1})
            errors.append(fit(panel, alone, accelerator=accelerator).scores["valid/rollout"])
        except NonFiniteLoss:
            errors.append(float("inf"))
        if on_result is not None:
            on_result(spec, errors[-1])
    return CandidateSelection(candidates[errors.index(min(errors))], tuple(errors))
