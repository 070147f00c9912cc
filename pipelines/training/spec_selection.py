"""A specification for data of which nothing was said but how far ahead to forecast."""

from __future__ import annotations

import logging
from typing import NamedTuple

from forecaster.data.split import hold_out
from forecaster.spec import Spec
from forecaster.training.presets import build_candidate_specs
from forecaster.training.selection import select_on_validation
from pipelines.sources import DataSource, derive_model_name, read_panel, validate_test_windows
from pipelines.training.train import CandidateScore

_log = logging.getLogger(__name__)


class SpecSelection(NamedTuple):
    """A specification, and what it was chosen from; nothing where it was given."""

    spec: Spec
    candidates: tuple[CandidateScore, ...] = ()


def select_spec(data: DataSource, *, horizon: int, preset: str | None = None, test_windows: int = 1) -> SpecSelection:
    """The variant of a preset whose forecasts were best on the windows before the test.

    Args:
        data: Where the panel comes from.
        horizon: Steps ahead.
        kind: The preset; that of the panel's frequency, if not given.
        test_windows: Rolling origins at the end that nothing is chosen by.
    """
    validate_test_windows(test_windows)
    panel = read_panel(data)
    known = hold_out(panel, test_windows * horizon, min_history=2).history if test_windows else panel
    made = build_candidate_specs(known, horizon=horizon, name=derive_model_name(data.name), preset=preset)
    for spec in made:  # told of the data as they are, not of what is left of them
        hold_out(panel, test_windows * horizon + spec.validation_steps, min_history=spec.min_steps + 1)

    tried: list[CandidateScore] = []

    def tell(spec: Spec, error: float) -> None:
        what = f"{spec.scaling}{' of log' * (spec.transform == 'log')}, base {spec.base}"
        tried.append(CandidateScore(what, error))
        _log.info("tried %s: %.4g times the seasonal naive's error", what, error)

    return SpecSelection(select_on_validation(known, made, on_result=tell).spec, tuple(tried))
