"""Options and arguments that commands share: the root, how to read data, and the specification."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from forecaster.errors import BadSpec, InputError, NoSuchModel
from pipelines.commands.column_options import ColumnOptions
from pipelines.scheduling.ray_tasks import WorkPlace, open_runner, require_ray

if TYPE_CHECKING:
    from forecaster.progress import Progress
    from forecaster.series import Panel
    from forecaster.spec import Spec
    from forecaster.training.selection import SpecSelection
    from pipelines.settings import Root
    from pipelines.sources import DataSource

BlendOption = Annotated[
    tuple[Literal["dynamic_optimized_theta", "auto_ets", "auto_arima"], ...], Parameter(negative="", show_default=False)
]  # the models that a specification allows
_MAX_STEPS = 100_000  # the limit of a specification
_TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet")
_PLOT_SUFFIXES = (".png", ".pdf", ".svg")


@Parameter(name="*")
@dataclass(frozen=True)
class RootOptions:
    """The root folder and the tracking server."""

    root: Annotated[Path, Parameter(env_var="FORECASTER_ROOT")] = Path(".forecaster")
    "Folder of all state: runs, models, checkpoints."
    tracking_uri: Annotated[str | None, Parameter(env_var="MLFLOW_TRACKING_URI")] = None
    "An MLflow server for runs and models; by default a database in the root."

    def open_root(self) -> Root:
        """Returns the root, which is created on the first write; raises InputError if it cannot be written."""
        from pipelines.settings import Root, validate_tracking_uri

        validate_tracking_uri(self.tracking_uri)
        path = self.root.expanduser().absolute()
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise InputError(
                f"Expected a writable root folder; found {existing}, which is not. Use another one with --root.",
                where="root",
            )
        return Root(path, self.tracking_uri)

    def open_existing_root(self) -> Root:
        """Returns the root of an existing registry, for commands that only read it; raises NoSuchModel."""
        root = self.open_root()
        if root.tracking_uri is None and not (root.path / "mlflow.db").exists():
            raise NoSuchModel(
                f"Expected a registry in {root.path}; found none. Train and register a model first, or use another --root.",
                where="root",
            )
        return root


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions:
    """How to read the data."""

    freq: str | None = None
    "Frequency: a pandas alias (h, D, MS, 15min), working days (C-1111110), or an integer for integer steps; inferred if certain."
    id_column: str = "unique_id"
    "Column with the id of the series."
    ds_column: str = "ds"
    "Column with the timestamps or the integer steps."
    y_column: str = "y"
    "Column with the values; an empty value is not observed."
    zone: str | None = None
    "Time zone (Europe/Berlin) of timestamps without a UTC offset; others are converted to it."
    sql: str | None = None
    "A query to run instead of reading DATA; the database URL is read from FORECASTER_SQL_URL. The connection is read-only."
    cutoff: str | None = None
    "The last timestamp to use (2026-01-31; a date means its midnight). Later rows are ignored; late arrivals before it are used."
    drop_partial: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Treat the values of incomplete last periods as missing: a year with four months, today's half-day. They are found by a
    fall of many series at once, and by the clock; without this option they are reported and used."""

    def to_data_source(self, source: str | None) -> DataSource:
        """Returns the data source; raises InputError unless exactly one of DATA and --sql is given."""
        from forecaster.data.frames.rows import ColumnNames
        from pipelines.sources import DataSource

        if (source is None) == (self.sql is None):
            found = "neither" if source is None else f"both {source} and a query"
            raise InputError(f"Expected either DATA or --sql; found {found}. Give exactly one of them.", where="data")
        columns = ColumnNames(self.id_column, self.ds_column, self.y_column)
        return DataSource(
            source or self.sql or "",
            self.freq,
            columns,
            self.zone,
            is_query=self.sql is not None,
            cutoff=self.cutoff,
            drop_partial=self.drop_partial,
        )


def resolve_ledger_url(url: str | None) -> str | None:
    """Returns the option `--url`, or else the ledger of the environment.

    Raises InputError if the option has a password, because other users of the machine see command lines.
    """
    from forecaster.storage.addresses import redact_addresses
    from pipelines.redaction import has_password

    if url is None:
        return os.environ.get("FORECASTER_SERVING_LEDGER")
    if has_password(url):
        raise InputError(
            f"Expected the URL of a ledger without a password; found one in {redact_addresses(url)}. Leave --url out, and set "
            "FORECASTER_SERVING_LEDGER to the whole URL.",
            where="url",
        )
    return url


@Parameter(name="*")
@dataclass(frozen=True)
class DeviceOptions:
    """Where a network is trained."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    "Hardware of the training: auto takes a GPU if there is one. A small network is often faster on the CPU."
    devices: str = "1"
    """Number of devices of the accelerator, or the index of one and a comma (2,). With several, `train` and `retrain` start a
    process for each of them, and all of these train one model together."""

    def validate(self, *, allow_several: bool = False) -> None:
        """Raises InputError if this machine has no such device, before any data are read."""
        from forecaster.training.devices import validate_device
        from forecaster.training.processes import refuse_other_launchers

        refuse_other_launchers()
        if self != DeviceOptions():
            validate_device(accelerator=self.accelerator, devices=self.devices, allow_several=allow_several)

    def validate_cluster(self, *, on_disk: bool = False) -> None:
        """Raises InputError for options that tasks of one CPU on a Ray cluster cannot have; MissingPackage without Ray."""
        if on_disk or self.accelerator not in ("auto", "cpu") or self.devices != "1":
            found = "--on-disk" if on_disk else f"--accelerator {self.accelerator} --devices {self.devices}"
            raise InputError(
                f"Expected --on ray with data in memory and one CPU for each variant; found {found}. Leave that out, or --on.",
                where="on",
            )
        require_ray()


@Parameter(name="*")
@dataclass(frozen=True)
class SpecOptions:
    """The specification of a training."""

    config: Path | None = None
    """Specification in YAML; its name is the name of the model. By default it is the best variant of the preset of the data's
    frequency, chosen on the last windows before the test."""
    horizon: int | None = None
    "Steps ahead; overrides the specification."
    season: int | None = None
    """Steps of a season (7: a week of days), by which errors are weighted and judged and which seasonal naive repeats; overrides
    the specification. By default the usual season of the frequency."""
    preset: str | None = None
    "Preset to use instead of the one of the frequency: classic, yearly, quarterly, monthly, weekly, daily or hourly."
    members: int | None = None
    """Number of networks with different seeds, which are trained together; the forecast is their median. Five networks take
    about five times as long as one."""
    blend: BlendOption = ()
    """A statistical model whose forecasts are blended with the network's, with weights from the validation windows; may be
    repeated. It is fitted to every history, also in the service, and needs the extra 'baselines' in both places."""
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    "Columns that the variants of a preset read; a specification names its own."

    def read_spec(self, *, seed: int | None = None, fallback: Spec | None = None) -> Spec | None:
        """Returns the specification of --config, else the fallback; None if `select_spec` has to choose it for the data.

        Raises BadSpec if the options cannot be used, before any data are read.
        """
        from forecaster.spec import Spec
        from pipelines.sources import read_spec

        if self.config is None and self.horizon is None and fallback is None:
            raise BadSpec(
                "Expected --config FILE or --horizon STEPS; found neither. Set the number of steps to forecast."
            )
        if self.config is not None and self.preset is not None:
            raise BadSpec(
                f"Expected either --config or --preset; found both {self.config} and {self.preset}. Leave one out.",
                where="preset",
            )
        validate_counts(horizon=self.horizon, members=self.members, season=self.season)
        if self.config is not None or fallback is not None:
            self.columns.refuse_beside("--start-from" if self.config is None else "--config")
        spec = fallback if self.config is None else read_spec(self.config)
        if spec is None:
            fields = {"name": "placeholder", "context": 1, "horizon": self.horizon, **self.columns.spec_fields}
            self._override(Spec.parse(fields, where="options"), seed)  # validates the options
            return None
        return self._override(spec, seed)

    @contextmanager
    def select_spec(
        self,
        spec: Spec | None,
        panel: Panel,
        data: DataSource,
        root: Root,
        *,
        seed: int | None = None,
        test_windows: int,
        with_pretrained: bool = True,
        device_options: DeviceOptions,
        on: WorkPlace = "local",
        progress: Progress,
    ) -> Iterator[SpecSelection]:
        """Provides the specification that `read_spec` found, else the best for the panel, with its candidates.

        The candidates, among them the pretrained network unless `with_pretrained` is False, are fitted on this machine or on a
        Ray cluster (`on`). Their checkpoints are kept until the block ends without an error.
        """
        from forecaster.training.selection import SpecSelection, select_spec
        from pipelines.sources import derive_model_name
        from pipelines.training.interruptions import keep_variant_checkpoints, lock_variants

        if spec is not None:
            yield SpecSelection(spec)
            return
        assert self.horizon is not None
        name = derive_model_name(data.name)
        with keep_variant_checkpoints(
            panel,
            root,
            name=name,
            horizon=self.horizon,
            preset=self.preset,
            season=self.season,
            test_windows=test_windows,
        ) as folder:
            with lock_variants(folder), open_runner(on, workers=None) as run_steps:
                selection = select_spec(
                    panel,
                    name=name,
                    horizon=self.horizon,
                    preset=self.preset,
                    season=self.season,
                    columns=self.columns.spec_fields,
                    test_windows=test_windows,
                    with_pretrained=with_pretrained,
                    accelerator=device_options.accelerator if on == "local" else "cpu",
                    devices=device_options.devices,
                    checkpoint_folder=folder.absolute(),
                    run_steps=run_steps,
                    progress=progress,
                )
            members = selection.limit_members(self.members, progress=progress)
            yield selection._replace(spec=replace(self, members=members)._override(selection.spec, seed))

    def _override(self, spec: Spec, seed: int | None) -> Spec:
        """Returns a specification with the overrides of the command; raises BadSpec."""
        where = str(self.config or "--horizon")
        return spec.override(
            horizon=self.horizon, season=self.season, members=self.members, blend=self.blend, seed=seed, where=where
        )


def format_arguments(values: Mapping[str, Any]) -> list[str]:
    """Formats the parameters of a command as command line arguments; None, False and () are left out.

    Of a group of parameters (`DataOptions`), only values that differ from the defaults are included.
    """
    arguments: list[str] = []
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if is_dataclass(value) and not isinstance(value, type):
            defaults = type(value)()
            options = {field.name: getattr(value, field.name) for field in fields(value)}
            arguments += format_arguments(
                {key: setting for key, setting in options.items() if setting != getattr(defaults, key)}
            )
        elif value is True:
            arguments.append(option)
        elif isinstance(value, tuple):
            arguments += [f"{option}={item}" for item in value]
        elif value is not None and value is not False:
            arguments.append(f"{option}={value}")
    return arguments


def validate_counts(**numbers: int | None) -> None:
    """Rejects numbers outside of the range that a specification allows; raises InputError."""
    for name, number in numbers.items():
        if number is not None and not 1 <= number <= _MAX_STEPS:
            raise InputError(
                f"Expected --{name} of at least 1 and at most {_MAX_STEPS}; found {number}. Use a number in this range.",
                where=name,
            )


def validate_output_paths(**paths: Path | None) -> None:
    """Rejects output files that cannot be written, before any work; raises InputError."""
    for name, path in paths.items():
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            found = "a folder of that name" if path.is_dir() else f"no writable folder {path.parent}"
            raise InputError(
                f"Expected a writable file for --{name} {path}; found {found}. Use another file.", where=name
            )
        if name == "plot" and path.suffix.lower() not in _PLOT_SUFFIXES:
            raise InputError(
                f"Expected --plot with a name ending in {', '.join(_PLOT_SUFFIXES)}; found {path}. Use another file name.",
                where=name,
            )


def is_plot_folder(path: Path) -> bool:
    """Whether --plot names a folder for several plots: one that exists, or a name without a suffix; x.png is a file."""
    return path.is_dir() or not path.suffix


def validate_plot_path(path: Path | None) -> None:
    """Rejects a file or folder for plots that cannot be written, before any work; raises InputError."""
    if path is None or not is_plot_folder(path):
        validate_output_paths(plot=path)
    elif not os.access(path if path.is_dir() else path.parent, os.W_OK):
        raise InputError(
            f"Expected a writable folder for --plot; found {path}, which is not. Use another folder, or a file such as "
            "plot.png.",
            where="plot",
        )


def validate_table_paths(**paths: Path | None) -> None:
    """Rejects files for tables that cannot be written or whose suffix names no supported format; raises InputError."""
    validate_output_paths(**paths)
    for name, path in paths.items():
        if path is not None and not path.name.lower().endswith(_TABLE_SUFFIXES):
            raise InputError(
                f"Expected --{name} with a name ending in {', '.join(_TABLE_SUFFIXES)}; found {path}. Use another file name.",
                where=name,
            )
