"""The command `forecaster backtest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from cyclopts import Parameter

from forecaster.errors import BadSpec
from pipelines.commands.console import print_backtest_scores, print_scores, warn, write_table
from pipelines.commands.model_options import resolve_bundle
from pipelines.commands.options import (
    DataOptions,
    RootOptions,
    is_plot_folder,
    validate_counts,
    validate_plot_path,
    validate_table_paths,
)
from pipelines.scheduling.ray_tasks import WorkPlace, open_runner

if TYPE_CHECKING:
    from pipelines.comparison.backtest import LoadedBundle
    from pipelines.sources import DataSource

BaselineName = Literal["naive2", "auto_ets", "dynamic_optimized_theta", "auto_arima"]


@Parameter(name="*")
@dataclass(frozen=True)
class BacktestOptions:
    """The origins of a backtest, the forecasters besides the model, and the output files."""

    horizon: int | None = None
    "Steps ahead; by default the model's horizon."
    windows: int = 1
    "Rolling origins per series; the last one lies a horizon before the end of the data."
    stride: int | None = None
    "Steps between the origins; by default one horizon."
    season: int | None = None
    "Steps of the season by which errors are scaled (MASE) and which seasonal naive repeats; by default the model's."
    rival: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    "Another bundle folder, registered model (NAME@champion) or `base` to compare with the model; may be repeated."
    baselines: Annotated[tuple[BaselineName, ...], Parameter(negative="", show_default=False)] = ()
    """A statistical baseline, fitted to every history; may be repeated. Time for one history of 70 months: milliseconds for
    naive2 (of the M4 competition) and dynamic_optimized_theta, 0.1 s for auto_ets, 0.5 s for auto_arima. For 700 hours,
    auto_ets takes 1 s; auto_arima takes minutes if the season is long (weeks of a year). All but naive2 need the extra
    'baselines'. Seasonal naive, the last value and the pretrained network are always included."""
    on: WorkPlace = "local"
    "Where baselines are fitted: on this machine, or as tasks on the Ray cluster that RAY_ADDRESS names (docs/batch.md)."
    jobs: int | None = None
    "Processes that fit baselines in parallel, by default one; on Ray, tasks at the same time, by default one for each CPU."
    by: str | None = None
    "A column of a static feature; the groups of its values are scored too (in --scores)."
    levels: Annotated[tuple[float, ...], Parameter(negative="", show_default=False)] = ()
    "The level of a calibrated quantile to write with the forecasts (in --out); may be repeated."
    out: Path | None = None
    "File for all forecasts and actuals (CSV or Parquet)."
    scores: Path | None = None
    "File for all scores, overall, by step ahead and by group: forecaster, metric, group, step, value."
    plot: Path | None = None
    "A file (x.png) for the error by step ahead, or a folder (plots/) for that, calibration, best and worst series."
    track: Annotated[bool, Parameter(negative="", show_default=False)] = False
    "Record scores, tables and plots as an MLflow run."

    def validate(self) -> None:
        """Rejects invalid options and output paths that cannot be written, before any work; raises InputError."""
        validate_counts(
            horizon=self.horizon, windows=self.windows, stride=self.stride, season=self.season, jobs=self.jobs
        )
        validate_table_paths(out=self.out, scores=self.scores)
        validate_plot_path(self.plot)


_ROOT_OPTIONS, _DATA_OPTIONS, _BACKTEST_OPTIONS = RootOptions(), DataOptions(), BacktestOptions()


def backtest(
    model: str,
    data: str | None = None,
    *,
    options: BacktestOptions = _BACKTEST_OPTIONS,
    data_options: DataOptions = _DATA_OPTIONS,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Scores a model, other models, naive and statistical baselines on the last rolling origins of the data.

    Parameters
    ----------
    model
        A bundle folder, a registered model as NAME or NAME@ALIAS, or `base` for the pretrained network.
    data
        Input data, as for train.
    """
    from forecaster.progress.display import create_display
    from pipelines.comparison import backtest as backtests

    options.validate()
    root = root_options.open_root() if options.track else None
    bundles = load_bundles(model, options.rival, root_options)
    source = data_options.to_data_source(data)
    if any(loaded.model.spec.head.is_symbolic for loaded in bundles.values()):
        _backtest_symbols(bundles, source, options)
        return
    with open_runner(options.on, workers=options.jobs) as run_steps:
        report = backtests.backtest(
            bundles,
            source,
            baselines=options.baselines,
            horizon=options.horizon,
            windows=options.windows,
            stride=options.stride,
            season=options.season,
            levels=options.levels,
            group_by=options.by,
            n_jobs=options.jobs or 1,
            run_steps=run_steps,
            progress=create_display(),
            now=datetime.now(UTC),
        )
    for message in report.messages:
        warn(message)
    print_backtest_scores(
        report.overall_scores,
        report.comparisons,
        report.dash_reasons,
        report.result.scale_note,
        season=report.season,
    )
    write_table(options.out, lambda: report.result.to_frame(levels=sorted(set(options.levels))))
    write_table(options.scores, lambda: report.scores)
    if options.plot is not None:
        backtests.save_figures(report, options.plot, is_folder=is_plot_folder(options.plot))
    if root is not None:
        print(f"run     {backtests.track_backtest(report, bundles, source, root)}")


def _backtest_symbols(bundles: Mapping[str, LoadedBundle], source: DataSource, options: BacktestOptions) -> None:
    """Backtests one model of symbols, and prints its scores beside those of frequencies and a Markov chain."""
    import pandas as pd

    from forecaster.evaluation.symbol_backtest import backtest_symbols
    from forecaster.progress.display import create_display
    from pipelines.sources import read_panel

    [(name, loaded), *others] = bundles.items()
    defaults = BacktestOptions()
    given = [
        field
        for field in ("rival", "baselines", "season", "by", "levels", "plot", "track")
        if getattr(options, field) != getattr(defaults, field)
    ]
    if others or given:
        raise BadSpec(
            f"Expected one model of symbols, without --{given[0]}, which is for models of numbers; found "
            f"{'several models' if others else f'{name!r}'}. Leave the option out.",
            where=given[0],
        )
    model, progress = loaded.model, create_display()
    panel = read_panel(source.for_model(model.spec, model.encoding), now=datetime.now(UTC), progress=progress)
    for repair in panel.repairs:
        warn(repair)
    result = backtest_symbols(
        panel,
        model,
        name=name,
        horizon=options.horizon or model.spec.horizon,
        windows=options.windows,
        min_history=model.spec.min_steps,
        stride=options.stride,
    )
    scores = {forecaster: result.scores(forecaster) for forecaster in result.predictions}
    print_scores(scores, season=model.season)
    rows = [(forecaster, metric, value) for forecaster, row in scores.items() for metric, value in row.items()]
    write_table(options.out, lambda: result.to_frame(name))
    write_table(options.scores, lambda: pd.DataFrame(rows, columns=["forecaster", "metric", "value"]))


def load_bundles(model: str, other_models: Sequence[str], root_options: RootOptions) -> dict[str, LoadedBundle]:
    """Loads the model and the other models by distinct names: the name of the specification, or as registered."""
    from forecaster.bundle import artifact
    from forecaster.bundle.pretrained.base import BASE_FOLDER
    from forecaster.evaluation.baselines import BASELINES
    from pipelines.comparison.backtest import LoadedBundle

    bundles: dict[str, LoadedBundle] = {}
    for reference in (model, *other_models):
        folder = resolve_bundle(reference, root_options)
        fitted = artifact.load_bundle(folder)
        use_registered_name = bool(bundles) and not Path(reference).is_dir() and folder != BASE_FOLDER
        registered_name = reference if "@" in reference else f"{reference}@champion"
        name = registered_name if use_registered_name else fitted.spec.name
        taken = {*bundles, *get_args(BaselineName), *BASELINES}
        numbered = (f"{name} {number}" for number in count(2))
        unique_name = name if name not in taken else next(other for other in numbered if other not in taken)
        bundles[unique_name] = LoadedBundle(folder, fitted)
    return bundles
