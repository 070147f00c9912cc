"""What commands share of their arguments: where state is, how data are read, which specification and bundle are meant."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from forecaster.errors import BadSpec, InputError, NoSuchModel

if TYPE_CHECKING:
    from forecaster.spec import Spec
    from pipelines.settings import Root
    from pipelines.sources import DataSource
    from pipelines.training.spec_selection import SpecSelection

BlendOption = Annotated[
    tuple[Literal["dynamic_optimized_theta", "auto_ets", "auto_arima"], ...], Parameter(negative="")
]  # as a specification allows
_MAX_STEPS = 100_000  # as a specification allows
_PLOT_SUFFIXES = (".png", ".pdf", ".svg")


@Parameter(name="*")
@dataclass(frozen=True)
class RootOptions:
    """Where state lives."""

    root: Annotated[Path, Parameter(env_var="FORECASTER_ROOT")] = Path(".forecaster")
    "Folder of all state: runs, models, checkpoints."
    tracking_uri: Annotated[str | None, Parameter(env_var="MLFLOW_TRACKING_URI")] = None
    "An MLflow server that holds runs and models instead of the root's own database."

    def open_root(self) -> Root:
        """The root, which is made when something is written to it; raises InputError where nothing can be."""
        from pipelines.settings import Root, validate_tracking_uri

        validate_tracking_uri(self.tracking_uri)
        path = self.root.expanduser().absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise InputError(
                f"Expected a root folder that can be written; found {there}, which is not. Name another with --root.",
                where="root",
            )
        return Root(path, self.tracking_uri)

    def open_existing_root(self) -> Root:
        """The root of a registry that is there, for what only reads it; raises NoSuchModel."""
        root = self.open_root()
        if root.tracking_uri is None and not (root.path / "mlflow.db").exists():
            raise NoSuchModel(
                f"Expected a registry in {root.path}; found none. Train and register first, or name another with --root.",
                where="root",
            )
        return root


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions:
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
    sql: str | None = None
    "A query, instead of DATA, of the database whose address is in the environment, in FORECASTER_SQL_URL; read only."
    cutoff: str | None = None
    "The last stamp to look at (2026-01-31; a date alone is its midnight): later rows are ignored, late ones before it are not."

    def to_data_source(self, source: str | None) -> DataSource:
        """A source, read this way; raises InputError unless there is one, and one alone."""
        from forecaster.data.frames.panel import ColumnNames
        from pipelines.sources import DataSource

        if (source is None) == (self.sql is None):
            found = "neither" if source is None else f"both, {source} and a query"
            raise InputError(f"Expected DATA or --sql; found {found}. Give one of them.", where="data")
        columns = ColumnNames(self.id_column, self.ds_column, self.y_column)
        asked = (source or self.sql or "", self.freq, columns, self.zone)
        return DataSource(*asked, is_query=self.sql is not None, cutoff=self.cutoff)


def resolve_spec_selection(
    config: Path | None,
    data: DataSource,
    *,
    horizon: int | None,
    seed: int | None,
    preset: str | None = None,
    members: int | None = None,
    blend: Sequence[str] = (),
    fallback_spec: Spec | None = None,
    test_windows: int = 1,
) -> SpecSelection:
    """The specification that a command means, and what it was chosen from; raises BadSpec where it names none.

    Without a configuration it is that of `fallback_spec`; without either, the preset of the data's frequency, whose variants are tried on
    the windows before the test.
    """
    from forecaster.spec import Spec
    from pipelines.sources import read_spec
    from pipelines.training.spec_selection import SpecSelection, select_spec

    if config is None and horizon is None and fallback_spec is None:
        raise BadSpec("Expected --config FILE or --horizon STEPS; found neither. Say how far ahead to forecast.")
    if config is not None and preset is not None:
        raise BadSpec(
            f"Expected --config or --preset; found both, {config} and {preset}. Leave one out.", where="preset"
        )
    validate_counts(horizon=horizon, members=members)
    if config is not None:
        chosen = SpecSelection(read_spec(config))
    elif fallback_spec is not None:
        chosen = SpecSelection(fallback_spec)
    else:
        assert horizon is not None
        # What would be refused after the tries is refused before them, on a specification of no account.
        _override_spec(Spec(name="asked", context=1, horizon=horizon), "--horizon", horizon, members, blend, seed)
        chosen = select_spec(data, horizon=horizon, preset=preset, test_windows=test_windows)
    where = str(config or "--horizon")
    return chosen._replace(spec=_override_spec(chosen.spec, where, horizon, members, blend, seed))


def _override_spec(
    spec: Spec, where: str, horizon: int | None, members: int | None, blend: Sequence[str], seed: int | None
) -> Spec:
    """The specification with what a command says besides; raises BadSpec."""
    fields = spec.model_dump()
    fields["members"] = members or spec.members
    fields["blend"] = list(blend or spec.blend)
    fields["horizon"] = horizon or spec.horizon
    fields["training"]["seed"] = spec.training.seed if seed is None else seed
    return type(spec).parse(fields, where=where)


def resolve_spec(
    config: Path | None,
    data: DataSource,
    *,
    horizon: int | None,
    seed: int | None,
    blend: Sequence[str] = (),
    test_windows: int = 1,
) -> Spec:
    """The specification that a command means, without what it was chosen from."""
    return resolve_spec_selection(config, data, horizon=horizon, seed=seed, blend=blend, test_windows=test_windows).spec


def format_arguments(values: Mapping[str, Any]) -> list[str]:
    """Arguments of a command as they are typed, by the names of its parameters; None, False and () are left out.

    A group of parameters (`DataOptions`) is told one by one, less what is as it would be anyway.
    """
    words = []
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if is_dataclass(value) and not isinstance(value, type):
            usual = type(value)()
            changed = {one.name: getattr(value, one.name) for one in fields(value)}
            words += format_arguments({one: told for one, told in changed.items() if told != getattr(usual, one)})
        elif value is True:
            words.append(option)
        elif isinstance(value, tuple):
            words += [f"{option}={one}" for one in value]
        elif value is not None and value is not False:
            words.append(f"{option}={value}")
    return words


def validate_counts(**numbers: int | None) -> None:
    """Refuses numbers of steps that nobody can mean."""
    for name, number in numbers.items():
        if number is not None and not 1 <= number <= _MAX_STEPS:
            raise InputError(
                f"Expected --{name} of at least 1 and at most {_MAX_STEPS}; found {number}. Ask for another number.",
                where=name,
            )


def validate_output_paths(**paths: Path | None) -> None:
    """Refuses, before the work, a file that could not be written after it."""
    for name, path in paths.items():
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            found = (
                "found a folder of that name" if path.is_dir() else f"found no folder {path.parent} that can be written"
            )
            raise InputError(f"Expected a place for --{name} {path}; {found}. Name another file.", where=name)
        if name == "plot" and path.suffix not in _PLOT_SUFFIXES:
            raise InputError(
                f"Expected --plot with a name ending in {', '.join(_PLOT_SUFFIXES)}; found {path}. Name another file.",
                where=name,
            )


def resolve_bundle(model: str, where: RootOptions) -> Path:
    """The folder of a model: itself, or fetched from the registry by NAME or NAME@ALIAS."""
    from forecaster.registry.registry import Registry
    from pipelines.promotion.promote import fetch_bundle

    if Path(model).is_dir():
        return Path(model)
    root = where.open_existing_root()
    name, _, alias = model.partition("@")
    return fetch_bundle(Registry(root.store_uri).resolve(name, alias or "champion"), root)
