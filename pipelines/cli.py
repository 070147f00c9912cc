"""The command line. A command reads its input, calls one function and prints one result; heavy imports wait until then.

Exit codes: 0 ok, 1 failed, 2 wrong usage or input, 3 refused by a gate.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter

from forecaster.errors import BadSpec, ForecasterError, InputError, NoSuchModel, RefusedByGate

if TYPE_CHECKING:
    from forecaster.series import Panel
    from forecaster.spec import Spec
    from pipelines.settings import Root
    from pipelines.sources import Data

app = App(name="forecaster", help="Forecasts time series with recurrent networks: train, compare, promote, serve.")
data_app = App(name="data", help="Looks at data before anything is trained on them.")
app.command(data_app)


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
    "Frequency as a pandas offset alias (h, D, MS, 15min); inferred where it is certain."
    id_column: str = "unique_id"
    "Column with the name of the series."
    ds_column: str = "ds"
    "Column with the time stamps."
    y_column: str = "y"
    "Column with the values; empty means not observed."
    zone: str | None = None
    "Time zone of stamps that carry no offset (Europe/Berlin); those that do are told in it."

    def of(self, source: str) -> Data:
        """A source, read this way."""
        from forecaster.data.frames import Columns
        from pipelines.sources import Data

        return Data(source, self.freq, Columns(self.id_column, self.ds_column, self.y_column), self.zone)


_WHERE, _READING = Where(), Reading()
_OURS = ("forecaster", "pipelines", "serving")
_MOST_STEPS = 100_000  # as a specification allows
_PICTURES = (".png", ".pdf", ".svg")


@app.command
def train(
    data: str,
    *,
    config: Path | None = None,
    horizon: int | None = None,
    seed: int | None = None,
    test_windows: int = 1,
    reading: Reading = _READING,
    where: Where = _WHERE,
) -> None:
    """Fits a forecaster, backtests it on what it has not seen, and writes its bundle. Started again after a kill, it goes on.

    Parameters
    ----------
    data
        A CSV or Parquet file with the columns unique_id, ds, y; or a data set that ships: hospital, sine_trend.
    config
        Specification in YAML; without one, a small GRU that fits the horizon.
    horizon
        Steps ahead, instead of the specification's.
    seed
        Seed, instead of the specification's.
    test_windows
        Rolling origins kept from the fit and used to test it; 0 trains on everything.
    """
    from pipelines.train import train as run

    spec = _spec(config, data, horizon=horizon, seed=seed)
    trained = run(reading.of(data), spec, where.open(), test_windows=test_windows, progress=sys.stderr.isatty())
    _print_scores(trained.scores)
    print(f"bundle  {trained.bundle}\nrun     {trained.run_id}\ndigest  {trained.digest}")


@app.command
def backtest(
    model: str,
    data: str,
    *,
    horizon: int | None = None,
    windows: int = 1,
    out: Path | None = None,
    plot: Path | None = None,
    reading: Reading = _READING,
    where: Where = _WHERE,
) -> None:
    """Scores a model and seasonal naive on the last rolling origins of the data.

    Parameters
    ----------
    model
        A bundle folder, or a registered model as NAME or NAME@ALIAS.
    data
        As for train.
    horizon
        Steps ahead; the model's own, if not given.
    windows
        Rolling origins, a horizon apart.
    out
        Where to write every forecast beside the truth (CSV or Parquet).
    plot
        Where to draw the error by step ahead (PNG).
    """
    from forecaster import artifact
    from forecaster.evaluation.backtest import backtest as run
    from forecaster.evaluation.baselines import seasonal_naive
    from forecaster.predict import Predictor
    from pipelines.sources import read

    _in_range(horizon=horizon, windows=windows)
    _can_be_written(out=out, plot=plot)
    forecaster = artifact.load(_bundle(model, where))
    panel = read(reading.of(data).for_spec(forecaster.spec))
    for repair in panel.repairs:
        _warn(repair)
    rivals = {
        forecaster.spec.name: Predictor(forecaster).forecast_each,
        "seasonal_naive": seasonal_naive(forecaster.season),
    }
    steps = horizon or forecaster.spec.horizon
    result = run(panel, rivals, horizon=steps, windows=windows, season=forecaster.season, keep=forecaster.spec.least)
    first = min(cutoffs[0] for cutoffs in result.cutoffs)
    if (first.tz is None) == (forecaster.cutoff.tz is None) and first < forecaster.cutoff:
        _warn(f"the model saw data up to {forecaster.cutoff}; origins from {first} on are not out of sample")
    _print_scores({name: result.scores(name) for name in rivals})
    _write_table(out, result.frame)
    if plot is not None:
        from forecaster.evaluation.plots import error_by_horizon

        error_by_horizon(result).savefig(plot)


@app.command
def forecast(
    model: str,
    data: str,
    *,
    horizon: int | None = None,
    levels: tuple[float, ...] = (),
    out: Path | None = None,
    plot: Path | None = None,
    reading: Reading = _READING,
    where: Where = _WHERE,
) -> None:
    """Forecasts what comes after the data, as a table `unique_id, ds, mean` and a column for each level.

    Parameters
    ----------
    model
        A bundle folder, or a registered model as NAME or NAME@ALIAS.
    data
        As for train.
    horizon
        Steps ahead; the model's own, if not given.
    levels
        Of calibrated quantiles: `--levels 0.1 --levels 0.9` bound an interval that holds 80 % of what comes.
    out
        Where to write the table (CSV or Parquet); without it, CSV goes to the terminal.
    plot
        Where to draw the first series (PNG).
    """
    import pandas as pd

    from forecaster import artifact
    from forecaster.predict import Predictor
    from forecaster.series import Forecast
    from pipelines.sources import read

    _in_range(horizon=horizon)
    _can_be_written(out=out, plot=plot)
    forecaster = artifact.load(_bundle(model, where))
    panel = read(reading.of(data).for_spec(forecaster.spec))
    for repair in panel.repairs:
        _warn(repair)
    outcomes = Predictor(forecaster).forecast_each(panel.series, horizon or forecaster.spec.horizon, levels=levels)
    good = [outcome for outcome in outcomes if isinstance(outcome, Forecast)]
    bad = [outcome for outcome in outcomes if isinstance(outcome, ForecasterError)]
    for fault in bad[:10]:
        _warn(fault.message)
    for one in good:
        for warning in one.warnings:
            _warn(f"series {one.id!r}: {warning}")
    if not good:
        raise bad[0]
    if bad:
        _warn(f"{len(bad)} of {len(outcomes)} series have no forecast")
    table = pd.concat(
        [
            pd.DataFrame(
                {"unique_id": one.id, "ds": one.ds, "mean": one.mean}
                | {f"{level:g}": values for level, values in one.quantiles.items()}
            )
            for one in good
        ]
    )
    if out is None:
        table.to_csv(sys.stdout, index=False)
    _write_table(out, lambda: table)
    if plot is not None:
        from forecaster.evaluation.plots import forecast_plot

        history = next(one for one in panel.series if one.id == good[0].id)
        forecast_plot(history, good[0], title=f"{forecaster.spec.name}: {history.id}").savefig(plot)


@app.command
def register(bundle: Path, *, where: Where = _WHERE) -> None:
    """Puts a bundle into the registry, as the challenger of its name.

    Parameters
    ----------
    bundle
        The folder that train wrote.
    """
    from forecaster.registry import CHALLENGER, Registry
    from pipelines.releases import register as run

    root = where.existing()
    version = run(bundle, root)
    Registry(root.store).set_alias(version, CHALLENGER)
    print(f"{version.name} version {version.number} is the challenger ({version.digest[:12]})")


@app.command
def promote(name: str, *, version: str | None = None, force: bool = False, where: Where = _WHERE) -> None:
    """Makes the challenger the champion, which the service follows; the old champion becomes the former.

    Parameters
    ----------
    name
        The registered model.
    version
        A version's number, instead of the challenger.
    force
        Promote even what did not beat seasonal naive in its own backtest, or was never tested.
    """
    from pipelines.releases import promote as run

    promoted = run(name, where.existing(), number=version, force=force)
    print(f"{promoted.name} version {promoted.number} is the champion ({promoted.digest[:12]})")


@app.command
def retrain(
    data: str,
    *,
    config: Path | None = None,
    horizon: int | None = None,
    seed: int | None = None,
    test_windows: int = 1,
    trigger: str = "cli",
    reading: Reading = _READING,
    where: Where = _WHERE,
) -> None:
    """Trains a challenger and promotes it if it proves better than champion and seasonal naive on the same origins.

    Ends with 0 when it was promoted and with 3 when it was not; fit to be called from cron.

    Parameters
    ----------
    data
        As for train.
    config
        Specification in YAML; its name is the model's.
    horizon
        Steps ahead, instead of the specification's.
    seed
        Seed, instead of the specification's.
    test_windows
        Rolling origins to judge by, a horizon apart.
    trigger
        What started it, for the run's tags.
    """
    from pipelines.retrain import retrain as run

    spec = _spec(config, data, horizon=horizon, seed=seed)
    done = run(
        reading.of(data),
        spec,
        where.open(),
        test_windows=test_windows,
        trigger=trigger,
        progress=sys.stderr.isatty(),
    )
    _print_scores(done.trained.scores)
    print(f"version {done.version.number} of {done.version.name}: {done.verdict}")
    if not done.verdict.promote:
        raise RefusedByGate(
            f"Version {done.version.number} was registered but not promoted: {'; '.join(done.verdict.reasons)}."
        )


@data_app.command
def check(
    data: str,
    *,
    covariate: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    static: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    reading: Reading = _READING,
) -> None:
    """Checks data as train would, and tells what they are like. Ends with 0 if they can be used, with 2 if not.

    Parameters
    ----------
    data
        As for train.
    covariate
        A column that is known ahead; may be given again.
    static
        A column that says one thing of a whole series; may be given again.
    """
    from pipelines.sources import read

    try:
        panel = read(reading.of(data)._replace(covariates=covariate, static=static))
    except InputError as error:
        print(f"{data}: cannot be used ({error.code})")
        raise
    print(f"{data}: can be used{', as repaired' if panel.repairs else ''}")
    _print_summary(panel)


@app.command
def verify(bundle: Path) -> None:
    """Checks a bundle: digests, shapes, finite weights, golden requests.

    Parameters
    ----------
    bundle
        The folder.
    """
    from forecaster import artifact

    forecaster = artifact.load(bundle)
    print(f"{forecaster.spec.name}: a good bundle ({artifact.digest(bundle)})")


@app.command
def serve(
    model: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_MODEL")] = None,
    *,
    host: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_HOST")] = None,
    port: Annotated[int | None, Parameter(env_var="FORECASTER_SERVING_PORT")] = None,
    where: Where = _WHERE,
) -> None:
    """Serves the champion of a registered model over HTTP, and follows it when another is promoted.

    Parameters
    ----------
    model
        The registered model; without one, what was served last.
    host
        Address to listen on; 127.0.0.1 unless told otherwise.
    port
        Port to listen on; 3000 unless told otherwise.
    """
    from pipelines.settings import serving_environment

    root = where.open()
    environment = serving_environment(os.environ, root, model=model, host=host, port=port)
    if model is None and environment["FORECASTER_SERVING_SLOT"] == str(root.slot) and not root.slot.exists():
        raise NoSuchModel(
            f"Expected a model to serve; none is named, and none was ever served from {root.path}. "
            "Name a registered model: forecaster serve NAME, or FORECASTER_SERVING_MODEL=NAME.",
            where="model",
        )
    # By name and not by import: serving and pipelines meet only in the registry.
    os.execve(sys.executable, [sys.executable, "-m", "serving"], environment)  # noqa: S606


@app.command
def demo(*, configs: Path = Path("configs"), where: Where = _WHERE) -> None:
    """Trains on real data and on the classical series, registers, promotes, serves, asks over HTTP, and draws the answer.

    Parameters
    ----------
    configs
        Folder with hospital.yaml and sine.yaml.
    """
    from pipelines.demo import demo as run

    run(configs, where.open())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and ends with its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _hush()
    try:
        app(arguments, exit_on_error=False, print_error=True)
    except ForecasterError as error:
        print(f"forecaster: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except CycloptsError:  # told by cyclopts already
        sys.exit(2)
    except OSError as error:  # a full disk, a file that went away: the system's own words say what and where
        print(f"forecaster: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("forecaster: interrupted", file=sys.stderr)
        sys.exit(130)


def _hush() -> None:
    """Keeps other libraries' advertisements and notices off the terminal; their warnings stay."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith(_OURS))
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def _spec(config: Path | None, data: str, *, horizon: int | None, seed: int | None) -> Spec:
    from forecaster.spec import Spec
    from pipelines.sources import Data, default_spec, read_spec

    if config is None and horizon is None:
        raise BadSpec("Expected --config FILE or --horizon STEPS; found neither. Say how far ahead to forecast.")
    _in_range(horizon=horizon)
    if config is None:
        assert horizon is not None
        spec = default_spec(Data(data).name, horizon=horizon)
    else:
        spec = read_spec(config)
    fields = spec.model_dump()
    fields["horizon"] = horizon or spec.horizon
    fields["training"]["seed"] = spec.training.seed if seed is None else seed
    return Spec.parse(fields, where=str(config or "--horizon"))


def _in_range(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and not 1 <= number <= _MOST_STEPS:
            raise InputError(
                f"Expected --{name} of at least 1 and at most {_MOST_STEPS}; found {number}. Ask for another number.",
                where=name,
            )


def _can_be_written(**paths: Path | None) -> None:
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


def _bundle(model: str, where: Where) -> Path:
    from forecaster.registry import Registry
    from pipelines.releases import fetch

    if Path(model).is_dir():
        return Path(model)
    root = where.existing()
    name, _, alias = model.partition("@")
    return fetch(Registry(root.store).resolve(name, alias or "champion"), root)


def _write_table(path: Path | None, make: object) -> None:
    """Writes a table by the ending of its path."""
    import pandas as pd

    if path is None:
        return
    assert callable(make)
    table: pd.DataFrame = make()
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False)


def _print_scores(scores: Mapping[str, Mapping[str, float]]) -> None:
    if not scores:
        return
    names = list(next(iter(scores.values())))
    print(f"{'':16}" + "".join(f"{name.upper() if name != 'smape' else 'sMAPE':>10}" for name in names))
    for forecaster, values in scores.items():
        print(
            f"{forecaster:16}"
            + "".join(f"{'-' if value is None else format(value, '.4g'):>10}" for value in values.values())
        )


def _print_summary(panel: Panel) -> None:
    from forecaster.data.summary import summarise

    told = summarise(panel)
    constant = f"{len(told.constant)}" + (f" ({told.constant[0]!r} first)" if told.constant else "")
    lines = {
        "series": f"{told.series}",
        "frequency": told.freq,
        "zone": told.zone or "none",
        "span": f"{told.first} to {told.last}",
        "length": f"{told.shortest} to {told.longest} steps, median {told.median}",
        "missing": f"{told.missing} of {told.steps} values",
        "constant": constant,
        "covariates": f"{', '.join(told.covariates)}, {told.ahead} steps ahead" if told.covariates else "none",
        "static": ", ".join(told.static) or "none",
        "suggested": f"season {told.season}, horizon {told.horizon}",
    }
    for name, line in lines.items():
        print(f"{name:12}{line}")
    for repair in panel.repairs:
        print(f"{'repaired':12}{repair}")


def _warn(message: str) -> None:
    print(f"forecaster: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
