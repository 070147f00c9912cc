"""A backtest as people ask for it: models, their rivals and baselines on the same rolling origins, scored, drawn, tracked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.bundle import artifact
from forecaster.errors import LevelOutOfRange
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.backtest import backtest as ask_all
from forecaster.evaluation.baselines import SEASONAL_NAIVE, Ask, seasonal_naive, statistical
from forecaster.evaluation.calibration import with_quantiles
from forecaster.evaluation.scores import LEVELS, groups, overall, score_table
from forecaster.evaluation.significance import Comparison, compare
from forecaster.frequency import earlier
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Panel
from forecaster.statistical.blend import tell as tell_blend
from forecaster.statistical.models import LONGEST_ETS_SEASON
from pipelines.settings import Root
from pipelines.sources import Data, read
from pipelines.tracking import backtests
from pipelines.tracking.run import DataSet, open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Progress = Callable[[str, int, int], None]
"""Told whose histories are done, how many, and of how many."""

_TOLD = 3  # warnings of one forecaster that are told one by one


class Contender(NamedTuple):
    """A model that takes part."""

    bundle: Path
    forecaster: Forecaster


class Backtested(NamedTuple):
    """What a backtest found.

    Attributes:
        model: The name of the model that the others are held against.
        panel: All that was read.
        result: Raw forecasts beside the truth.
        scores: `score_table`.
        against: Of each other forecaster, how its errors differ from the model's.
        told: What people should know of it.
    """

    model: str
    panel: Panel
    result: Backtest
    scores: pd.DataFrame
    against: Mapping[str, Comparison]
    told: Sequence[str]

    @property
    def overall(self) -> dict[str, dict[str, float]]:
        """By forecaster, then by metric: the scores over all series and steps."""
        return overall(self.scores)


def backtest(
    contenders: Mapping[str, Contender],
    data: Data,
    *,
    baselines: Sequence[str] = (),
    horizon: int | None = None,
    windows: int = 1,
    stride: int | None = None,
    levels: Sequence[float] = (),
    by: str | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Backtested:
    """Asks models and baselines at the same origins, and scores them.

    Args:
        contenders: By name; the first is the model that the others are held against, and sets horizon and season.
        data: Where the panel comes from; what any contender reads besides is read with it.
        baselines: Statistical ones, besides seasonal naive.
        horizon: Steps ahead; the model's own, if not given.
        windows: Rolling origins of each series.
        stride: Steps between them; a horizon, if not given.
        levels: Of quantiles to keep, besides those that scores need.
        by: A static column whose groups are scored too.
        jobs: Processes that fit baselines beside each other.
        progress: Told of every history that a statistical baseline is done with.
    """
    name, model = next((name, one.forecaster) for name, one in contenders.items())
    _check_levels(levels, model)
    asked: dict[str, Ask | Predictor] = {each: Predictor(one.forecaster) for each, one in contenders.items()}
    asked[SEASONAL_NAIVE] = seasonal_naive(model.season)
    for each in dict.fromkeys(baselines):
        tell = None if progress is None else partial(progress, each)
        asked[each] = statistical(each, season=model.season, jobs=jobs, progress=tell)
    panel = read(_columns(data, [one.forecaster for one in contenders.values()], by))
    groups(panel.series, by)  # told before the work, not after it
    result = ask_all(
        panel,
        asked,
        horizon=horizon or model.spec.horizon,
        windows=windows,
        season=model.season,
        keep=model.spec.least,
        stride=stride,
    )
    forecasters = {each: one.forecaster for each, one in contenders.items()}
    result = with_quantiles(result, forecasters, levels=(*LEVELS, *levels))
    against = {each: compare(result, name, each) for each in asked if each != name}
    scores = pd.concat([score_table(result, by=by), _differences(against)], ignore_index=True)
    return Backtested(name, panel, result, scores, against, _told(panel, result, forecasters, model.season))


def pictures(done: Backtested) -> dict[str, Figure]:
    """By file name: error by step ahead, calibration where there are intervals, the best and the worst series."""
    from forecaster.evaluation.plots import best_and_worst, calibration_plot, error_by_horizon

    drawn = {
        "error_by_horizon.png": error_by_horizon(done.result),
        "best_and_worst.png": best_and_worst(done.result, done.model),
    }
    if done.result.quantiles:
        drawn["calibration.png"] = calibration_plot(done.result)
    return drawn


def draw(done: Backtested, place: Path) -> None:
    """Draws the error by step ahead into a file, or all pictures into a folder (a path without an ending), made if need be."""
    if place.suffix and not place.is_dir():
        from forecaster.evaluation.plots import error_by_horizon

        error_by_horizon(done.result).savefig(place)
        return
    place.mkdir(exist_ok=True)
    for name, figure in pictures(done).items():
        figure.savefig(place / name)


def record(done: Backtested, contenders: Mapping[str, Contender], data: Data, root: Root) -> str:
    """Tracks a backtest as a run of the model's experiment, under the names that trainings use; the run's id.

    The model's own scores are `bt/mase` and `bt_h/mase`, those of the others `bt/NAME/mase` and `bt_h/NAME/mase`.
    """
    bundle, model = contenders[done.model]
    source = DataSet(data.name, done.panel.digest(), data.source, model.cutoff, context="evaluation")
    tags = {"bundle_digest": artifact.digest(bundle), "trained_by": str(model.facts.get("run_id", ""))}
    with open_run(model.spec, source, root=root.path, uri=root.uri, trigger="backtest", tags=tags) as run:
        backtests.record(run, done.result, done.scores, model=done.model, levels=done.result.levels)
        for name, figure in pictures(done).items():
            run.figure(f"plots/{name}", figure)
        return run.id


def _check_levels(levels: Sequence[float], model: Forecaster) -> None:
    odd = [level for level in levels if not 0 < level < 1]
    if odd:
        raise LevelOutOfRange(f"Expected levels between 0 and 1; found {odd[0]}. Write 0.9 for 90 %.", where="levels")
    if levels and model.calibration is None:
        raise LevelOutOfRange(
            f"Expected no levels: {model.spec.name!r} was not calibrated, so it has point forecasts only. "
            "Train it with valid_windows of 1 or more, or ask without levels.",
            where="levels",
        )


def _columns(data: Data, models: Sequence[Forecaster], by: str | None) -> Data:
    """The source, with the columns that any of the models reads besides, and the one to score groups by."""
    each = [data.for_spec(one.spec) for one in models]
    static = [*(name for one in each for name in one.static), *([] if by is None else [by])]
    return data._replace(
        covariates=tuple(dict.fromkeys(name for one in each for name in one.covariates)),
        static=tuple(dict.fromkeys(static)),
        channels=tuple(dict.fromkeys(name for one in each for name in one.channels)),
    )


def _differences(against: Mapping[str, Comparison]) -> pd.DataFrame:
    rows = [
        (name, metric, value)
        for name, one in against.items()
        for metric, value in (
            ("mase_less_model", one.difference),
            ("mase_less_model_low", one.low),
            ("mase_less_model_high", one.high),
            ("p_value", one.p),
            ("p_value_bootstrap", one.bootstrap_p),
        )
    ]
    frame = pd.DataFrame(rows, columns=["forecaster", "metric", "value"])
    return frame.assign(
        group=pd.array([None] * len(frame), dtype="str"), step=pd.array([None] * len(frame), dtype="Int64")
    )


def _told(panel: Panel, result: Backtest, models: Mapping[str, Forecaster], season: int) -> list[str]:
    told = list(panel.repairs)
    if result.left_out:
        told.append(f"{len(result.left_out)} of {len(panel.series)} series are too short and were left out")
    firsts: list[Any] = [cutoffs[0] for cutoffs in result.cutoffs]  # all numbers, or all moments
    first = min(firsts)
    for name, one in models.items():
        if one.blend:
            told.append(f"{name} is a blend: {tell_blend(one.blend)}")
        if earlier(first, one.cutoff):
            told.append(f"{name} saw data up to {one.cutoff}; origins from {first} on are not out of sample for it")
    comparable = result.comparable()
    for name, cube in result.forecasts.items():
        missing = int((~np.isfinite(cube).all(axis=2)).sum())
        if missing:
            told.append(f"{name} has no answer at {missing} of {comparable.size} windows")
    if not comparable.all():
        told.append(
            f"scores are of the {int(comparable.sum())} of {comparable.size} windows that every forecaster answered "
            "(one that answered none does not count)"
        )
    for name, lines in result.warnings.items():
        told += lines[:_TOLD]
        told.append(f"{name}: so at {len(lines)} of {comparable.size} windows")
    if "auto_ets" in result.forecasts and season > LONGEST_ETS_SEASON:
        told.append(f"auto_ets fits no season of more than {LONGEST_ETS_SEASON} steps; here one has {season}")
    return told
