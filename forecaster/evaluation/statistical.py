"""Statistical models as forecasters of a backtest. Nothing here needs torch before it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from forecaster.errors import ForecasterError, InputError
from forecaster.series import Forecast, Series
from forecaster.statistical import LONGEST_ETS_SEASON, MODELS, STATISTICAL, Task, filled, foretell, naive2, need

if TYPE_CHECKING:
    from forecaster.evaluation.baselines import Ask

__all__ = ["LONGEST_ETS_SEASON", "MODELS", "STATISTICAL", "Progress", "filled", "naive2", "statistical"]

Progress = Callable[[int, int], None]
"""Told how many histories are done, of how many."""


def statistical(name: str, *, season: int, jobs: int = 1, progress: Progress | None = None) -> Ask:
    """The forecaster that fits one of STATISTICAL to each history it is shown, as `forecaster.statistical.foretell` does.

    A history that it cannot be fitted to (too short, say), or for which its forecast is not finite, is answered by
    seasonal naive, with a warning in the forecast.

    Args:
        name: One of STATISTICAL. `auto_ets` leaves out a season of more than 24 steps.
        season: Steps of a season.
        jobs: Processes beside each other.
        progress: Told after every history.
    Raises:
        InputError: no baseline has this name.
        MissingPackage: statsforecast is not installed; told here, before anything is asked.
    """
    if name not in STATISTICAL:
        raise InputError(
            f"Expected a statistical baseline: {', '.join(STATISTICAL)}; found {name!r}. Name one of them.",
            where="baselines",
        )
    need(name)

    def ask(series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        outcomes: list[Forecast | ForecasterError] = []
        answers = foretell([Task(name, one.y, season, horizon) for one in series], jobs=jobs)
        for one, answer in zip(series, answers, strict=True):
            outcomes.append(_outcome(one, answer, name, season=season, horizon=horizon))
            if progress is not None:
                progress(len(outcomes), len(series))
        return outcomes

    return ask


def _outcome(one: Series, answer: np.ndarray | str, name: str, *, season: int, horizon: int) -> Forecast:
    if not isinstance(answer, str):
        return Forecast(one.id, one.stamps_ahead(horizon), answer)
    from forecaster.histories import repeat_season

    warning = f"{name} could not be fitted ({answer}); seasonal naive stands in"
    return Forecast(one.id, one.stamps_ahead(horizon), repeat_season(one.y, season, horizon), (warning,))
