"""Selects a specification for data when only the horizon is given."""

from __future__ import annotations

import logging
from typing import NamedTuple

from forecaster.data.split import hold_out
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.presets import build_candidate_specs
from forecaster.training.selection import select_on_validation
from pipelines.training.train import CandidateScore

_log = logging.getLogger(__name__)


class SpecSelection(NamedTuple):
    """A specification and the candidates it was chosen from; there are none if it was given."""

    spec: Spec
    candidates: tuple[CandidateScore, ...] = ()


def select_spec(
    panel: Panel, *, name: str, horizon: int, preset: str | None = None, test_windows: int = 1
) -> SpecSelection:
    """Returns the variant of a preset with the best forecasts on the windows before the test.

    Args:
        panel: All data.
        name: The name of the model.
        horizon: Steps ahead.
        preset: The preset; by default that of the panel's frequency.
        test_windows: Rolling origins at the end, which do not affect the choice.
    """
    history = hold_out(panel, test_windows * horizon, min_history=2).history if test_windows else panel
    specs = build_candidate_specs(history, horizon=horizon, name=name, preset=preset)
    for spec in specs:  # an error about short series describes the whole data, not the remaining history
        hold_out(panel, test_windows * horizon + spec.validation_steps, min_history=spec.min_steps + 1)

    candidates: list[CandidateScore] = []

    def add_candidate(spec: Spec, error: float) -> None:
        description = f"{spec.scaling}{' of log' * (spec.transform == 'log')}, base {spec.base}"
        candidates.append(CandidateScore(description, error))
        _log.info("candidate %s: %.4g times the error of seasonal naive", description, error)

    return SpecSelection(select_on_validation(history, specs, on_result=add_candidate).spec, tuple(candidates))
