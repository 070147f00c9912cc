"""A specification for data of which nothing was said but how far ahead to forecast."""

from __future__ import annotations

import logging

from forecaster.data.split import hold_out
from forecaster.presets import candidates
from forecaster.spec import Spec
from forecaster.training.choice import choose
from pipelines.sources import Data, check_test_windows, model_name, read

_log = logging.getLogger(__name__)


def first_choice(data: Data, *, horizon: int, kind: str | None = None, test_windows: int = 1) -> Spec:
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
        hold_out(panel, (test_windows + spec.training.valid_windows) * horizon, keep=spec.least + 1)

    def tell(spec: Spec, error: float) -> None:
        what = f"{spec.scaling}{' of log' * (spec.transform == 'log')}, base {spec.base}"
        _log.info("tried %s: %.4g times the seasonal naive's error", what, error)

    return choose(known, made, tell=tell).spec
