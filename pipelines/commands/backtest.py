"""The command `forecaster backtest`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from cyclopts import Parameter

from forecaster.errors import InputError
from pipelines.commands.console import make_progress_printer, print_backtest_scores, warn, write_table
from pipelines.commands.options import DataOptions, RootOptions, resolve_bundle, validate_counts, validate_output_paths

if TYPE_CHECKING:
    from pipelines.backtest import LoadedBundle

BaselineName = Literal["naive2", "auto_ets", "dynamic_optimized_theta", "auto_arima"]


@Parameter(name="*")
@dataclass(frozen=True)
class BacktestOptions:
    """What a backtest asks, whom besides the model, and where its results go."""

    horizon: int | None = None
    "Steps ahead; the model's own, if not given."
    windows: int = 1
    "Rolling origins of each series; the last has a horizon left."
    stride: int | None = None
    "Steps between them; a horizon, if not given."
    rival: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    "Another bundle folder or registered model (NAME@champion) to hold against the model; may be given again."
    baselines: Annotated[tuple[BaselineName, ...], Parameter(negative="")] = ()
    """Fitted to every history anew; may be given again. One history of 70 months takes about: naive2 (M4's) and
    dynamic_optimized_theta milliseconds, auto_ets 0.1 s, auto_arima 0.5 s; of 700 hours, auto_ets 1 s; auto_arima takes
    minutes where a season is long (weeks of a year). Those but naive2 need the extra 'baselines'. Seasonal naive is
    always there."""
    jobs: int = 1
    "Processes that fit baselines beside each other."
    by: str | None = None
    "A column that says one thing of a whole series: scores of each group too (in --scores)."
    levels: Annotated[tuple[float, ...], Parameter(negative="")] = ()
    "Of calibrated quantiles to write beside the forecasts (in --out); may be given again."
    out: Path | None = None
    "Where to write every forecast beside the truth (CSV or Parquet)."
    scores: Path | None = None
    "Where to write every score, over all, by step ahead and by group: forecaster, metric, group, step, value."
    plot: Path | None = None
    "Where to draw the error by step ahead (a picture), or that, calibration, best and worst series (a folder)."
    track: Annotated[bool, Parameter(negative="")] = False
    "Record scores, tables and pictures as an MLflow run."

    def validate(self) -> None:
        """Refuses, before any work, what cannot be meant or could not be written after it."""
        validate_counts(horizon=self.horizon, windows=self.windows, stride=self.stride, jobs=self.jobs)
        validate_output_paths(out=self.out, scores=self.scores)
        folder = self.plot is not None and (self.plot.is_dir() or not self.plot.suffix)
        if not folder or self.plot is None:
            validate_output_paths(plot=self.plot)
        elif not os.access(self.plot if self.plot.is_dir() else self.plot.parent, os.W_OK):
            raise InputError(
                f"Expected a folder for --plot {self.plot}; found none that can be written. Name another.", where="plot"
            )


_ROOT_OPTIONS, _DATA_OPTIONS, _BACKTEST_OPTIONS = RootOptions(), DataOptions(), BacktestOptions()


def backtest(
    model: str,
    data: str | None = None,
    *,
    contest: BacktestOptions = _BACKTEST_OPTIONS,
    reading: DataOptions = _DATA_OPTIONS,
    where: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Scores a model beside seasonal naive, other models and statistical baselines on the last rolling origins of the data.

    Parameters
    ----------
    model
        A bundle folder, or a registered model as NAME or NAME@ALIAS.
    data
        As for train.
    """
    from pipelines import backtest as work

    contest.validate()
    root = where.open_root() if contest.track else None
    models = load_bundles(model, contest.rival, where)
    done = work.backtest(
        models,
        reading.to_data_source(data),
        baselines=contest.baselines,
        horizon=contest.horizon,
        windows=contest.windows,
        stride=contest.stride,
        levels=contest.levels,
        group_by=contest.by,
        n_jobs=contest.jobs,
        progress=make_progress_printer(),
    )
    for line in done.messages:
        warn(line)
    print_backtest_scores(done.overall_scores, done.comparisons)
    write_table(contest.out, lambda: done.result.to_frame(levels=sorted(set(contest.levels))))
    write_table(contest.scores, lambda: done.scores)
    if contest.plot is not None:
        work.save_figures(done, contest.plot)
    if root is not None:
        print(f"run     {work.track_backtest(done, models, reading.to_data_source(data), root)}")


def load_bundles(model: str, other_models: Sequence[str], where: RootOptions) -> dict[str, LoadedBundle]:
    """The model and its rivals, loaded, by names that tell them apart: those of their specifications, or as registered."""
    from forecaster.bundle import artifact
    from forecaster.evaluation.baselines import SEASONAL_NAIVE
    from pipelines.backtest import LoadedBundle

    found: dict[str, LoadedBundle] = {}
    for told in (model, *other_models):
        folder = resolve_bundle(told, where)
        forecaster = artifact.load_bundle(folder)
        registered = bool(found) and not Path(told).is_dir()
        name = (told if "@" in told else f"{told}@champion") if registered else forecaster.spec.name
        others = (f"{name} {number}" for number in count(2))
        taken = {*found, *get_args(BaselineName), SEASONAL_NAIVE}
        found[name if name not in taken else next(one for one in others if one not in taken)] = LoadedBundle(
            folder, forecaster
        )
    return found
