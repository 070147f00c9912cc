"""What commands share of their arguments: where state is, how data are read, which specification and bundle are meant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from cyclopts import Parameter

from forecaster.errors import BadSpec, InputError, NoSuchModel

if TYPE_CHECKING:
    from forecaster.spec import Spec
    from pipelines.backtest import Contender
    from pipelines.settings import Root
    from pipelines.sources import Data

_MOST_STEPS = 100_000  # as a specification allows
_PICTURES = (".png", ".pdf", ".svg")

Baseline = Literal["naive2", "auto_ets", "dynamic_optimized_theta", "auto_arima"]


@Parameter(name="*")
@dataclass(frozen=True)
class Where:
    """Where state lives."""

    root: Annotated[Path, Parameter(env_var="FORECASTER_ROOT")] = Path(".forecaster")
    "Folder of all state: runs, models, checkpoints."
    tracking_uri: Annotated[str | None, Parameter(env_var="MLFLOW_TRACKING_URI")] = None
    "An MLflow server that holds runs and models instead of the root's own database."

    def open(self) -> Root:
        """The root, which is made when something is written to it; raises InputError where nothing can be."""
        from pipelines.settings import Root

        path = self.root.expanduser().absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise InputError(
                f"Expected a root folder that can be written; found {there}, which is not. Name another with --root.",
                where="root",
            )
        return Root(path, self.tracking_uri)

    def existing(self) -> Root:
        """The root of a registry that is there, for what only reads it; raises NoSuchModel."""
        root = self.open()
        if root.uri is None and not (root.path / "mlflow.db").exists():
            raise NoSuchModel(
                f"Expected a registry in {root.path}; found none. Train and register first, or name another with --root.",
                where="root",
            )
        return root


@Parameter(name="*")
@dataclass(frozen=True)
class Reading:
    """How to read the data."""

    freq: str | None = None
    "Frequency as a pandas offset alias (h, D, MS, 15min), or a whole number (1, 10) for numbered steps; inferred where certain."
    id_column: str = "unique_id"
    "Column with the name of the series."
    ds_column: str = "ds"
    "Column with the time stamps, or with the whole numbers of the steps."
    y_column: str = "y"
    "Column with the values; empty means not observed."
    zone: str | None = None
    "Time zone of stamps that carry no offset (Europe/Berlin); those that do are told in it."

    def of(self, source: str) -> Data:
        """A source, read this way."""
        from forecaster.data.frames import Columns
        from pipelines.sources import Data

        return Data(source, self.freq, Columns(self.id_column, self.ds_column, self.y_column), self.zone)


@Parameter(name="*")
@dataclass(frozen=True)
class Contest:
    """What a backtest asks, whom besides the model, and where its results go."""

    horizon: int | None = None
    "Steps ahead; the model's own, if not given."
    windows: int = 1
    "Rolling origins of each series; the last has a horizon left."
    stride: int | None = None
    "Steps between them; a horizon, if not given."
    rival: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    "Another bundle folder or registered model (NAME@champion) to hold against the model; may be given again."
    baselines: Annotated[tuple[Baseline, ...], Parameter(negative="")] = ()
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

    def check(self) -> None:
        """Refuses, before any work, what cannot be meant or could not be written after it."""
        in_range(horizon=self.horizon, windows=self.windows, stride=self.stride, jobs=self.jobs)
        can_be_written(out=self.out, scores=self.scores)
        folder = self.plot is not None and (self.plot.is_dir() or not self.plot.suffix)
        if not folder or self.plot is None:
            can_be_written(plot=self.plot)
        elif not os.access(self.plot if self.plot.is_dir() else self.plot.parent, os.W_OK):
            raise InputError(
                f"Expected a folder for --plot {self.plot}; found none that can be written. Name another.", where="plot"
            )


def spec_of(config: Path | None, data: str, *, horizon: int | None, seed: int | None) -> Spec:
    """The specification that a command means; raises BadSpec where it names none."""
    from forecaster.spec import Spec
    from pipelines.sources import Data, default_spec, read_spec

    if config is None and horizon is None:
        raise BadSpec("Expected --config FILE or --horizon STEPS; found neither. Say how far ahead to forecast.")
    in_range(horizon=horizon)
    if config is None:
        assert horizon is not None
        spec = default_spec(Data(data).name, horizon=horizon)
    else:
        spec = read_spec(config)
    fields = spec.model_dump()
    fields["horizon"] = horizon or spec.horizon
    fields["training"]["seed"] = spec.training.seed if seed is None else seed
    return Spec.parse(fields, where=str(config or "--horizon"))


def in_range(**numbers: int | None) -> None:
    """Refuses numbers of steps that nobody can mean."""
    for name, number in numbers.items():
        if number is not None and not 1 <= number <= _MOST_STEPS:
            raise InputError(
                f"Expected --{name} of at least 1 and at most {_MOST_STEPS}; found {number}. Ask for another number.",
                where=name,
            )


def can_be_written(**paths: Path | None) -> None:
    """Refuses, before the work, a file that could not be written after it."""
    for name, path in paths.items():
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            found = (
                "found a folder of that name" if path.is_dir() else f"found no folder {path.parent} that can be written"
            )
            raise InputError(f"Expected a place for --{name} {path}; {found}. Name another file.", where=name)
        if name == "plot" and path.suffix not in _PICTURES:
            raise InputError(
                f"Expected --plot with a name ending in {', '.join(_PICTURES)}; found {path}. Name another file.",
                where=name,
            )


def bundle_of(model: str, where: Where) -> Path:
    """The folder of a model: itself, or fetched from the registry by NAME or NAME@ALIAS."""
    from forecaster.registry import Registry
    from pipelines.releases import fetch

    if Path(model).is_dir():
        return Path(model)
    root = where.existing()
    name, _, alias = model.partition("@")
    return fetch(Registry(root.store).resolve(name, alias or "champion"), root)


def contenders(model: str, rivals: Sequence[str], where: Where) -> dict[str, Contender]:
    """The model and its rivals, loaded, by names that tell them apart: those of their specifications, or as registered."""
    from forecaster import artifact
    from forecaster.evaluation.baselines import SEASONAL_NAIVE
    from pipelines.backtest import Contender

    found: dict[str, Contender] = {}
    for told in (model, *rivals):
        folder = bundle_of(told, where)
        forecaster = artifact.load(folder)
        registered = bool(found) and not Path(told).is_dir()
        name = (told if "@" in told else f"{told}@champion") if registered else forecaster.spec.name
        others = (f"{name} {number}" for number in count(2))
        taken = {*found, *get_args(Baseline), SEASONAL_NAIVE}
        found[name if name not in taken else next(one for one in others if one not in taken)] = Contender(
            folder, forecaster
        )
    return found
