"""A specification for data of which nothing was said but how far ahead to forecast."""

from __future__ import annotations

import logging
from typing import NamedTuple

from forecaster.data.split import hold_out
from forecaster.spec import Spec
from forecaster.training.presets import candidates
from forecaster.training.selection import choose
from pipelines.sources import Data, check_test_windows, model_name, read
from pipelines.training.train import Candidate

_log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """A specification, and what it was chosen from; nothing where it was given."""

    spec: Spec
    tried: tuple[Candidate, ...] = ()


def first_choice(data: Data, *, horizon: int, kind: str | None = None, test_windows: int = 1) -> Chosen:
    """The variant of a preset whose forecasts were best on the windows before the test.

    Args:
        data: Where the panel comes from.
        horizon: Steps ahead.
        kind: The preset; that of the panel's frequency, if not given.
        test_windows: Rolling origins at the end that nothing is chosen by.
    """
    check_test_windows(test_windows)
    panel = read(data)
    known = hold_out(panel, test_windows * horizon, keep=2).known if test_windows else panel
    made = candidates(known, horizon=horizon, name=model_name(data.name), kind=kind)
    for spec in made:  # told of the data as they are, not of what is left of them
        hold_out(panel, test_windows * horizon + spec.held_out, keep=spec.least + 1)

    tried: list[Candidate] = []

    def tell(spec: Spec, error: float) -> None:
        what = f"{spec.scaling}{' of log' * (spec.transform == 'log')}, base {spec.base}"
        tried.append(Candidate(what, error))
        _log.info("tried %s: %.4g times the seasonal naive's error", what, error)

    return Chosen(choose(known, made, tell=tell).spec, tuple(tried))
