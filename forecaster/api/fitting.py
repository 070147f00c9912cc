"""The arguments of a `Forecaster`, and what it fits with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from forecaster.api.messages import validate_counts, warn_about_data
from forecaster.data.frames.rows import ColumnNames
from forecaster.data.frames.timestamps import load_time_zone
from forecaster.errors import BadSpec, InputError
from forecaster.frequency.timestamps import normalize_frequency
from forecaster.installation import require_package
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.progress.display import create_display
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.presets import parse_preset

if TYPE_CHECKING:
    from forecaster.training.selection import SpecSelection
    from forecaster.training.sequence import TrainedModel

_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
_ARGUMENTS = "the combination of arguments"


@dataclass(frozen=True)
class ModelOptions:
    """What is fitted, and how the data are read. Nothing is read or imported before a fit.

    Attributes are those of `Forecaster`. Raises BadSpec or InputError, which name the argument.
    """

    horizon: int | None = None
    freq: Any = None
    spec: Spec | None = None
    preset: str | None = None
    members: int | None = None
    blend: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    season: int | None = None
    zone: str | None = None
    drop_partial: bool = False
    name: str = "forecaster"
    seed: int | None = None
    accelerator: str = "auto"
    columns: ColumnNames = field(default_factory=ColumnNames)

    def __post_init__(self) -> None:
        if self.spec is None and self.horizon is None:
            raise BadSpec(
                "Expected `horizon` or `spec`; found neither. Set the number of steps to forecast.", where="horizon"
            )
        given = [name for name in ("preset", "season", "covariates", "static", "channels") if getattr(self, name)]
        if self.spec is not None and given:
            raise BadSpec(
                f"Expected `spec` or `{given[0]}`; found both. Set {given[0]!r} in the specification, or leave `spec` out.",
                where=given[0],
            )
        if self.preset is not None:
            parse_preset(self.preset)
        if self.accelerator not in _ACCELERATORS:
            raise InputError(
                f"Expected `accelerator` to be one of {', '.join(_ACCELERATORS)}; found {self.accelerator!r}. Use 'auto', which "
                "takes a GPU if there is one.",
                where="accelerator",
            )
        if self.freq is not None:
            normalize_frequency(self.freq, where="freq")
        if self.zone is not None:
            load_time_zone(self.zone)
        fields = {"name": self.name, "context": 1, "horizon": self.horizon}
        self.override(self.spec or Spec.parse(fields, where=_ARGUMENTS))  # validates the rest

    def override(self, spec: Spec) -> Spec:
        """Returns a specification with the fields that the arguments set; raises BadSpec."""
        return spec.override(
            horizon=self.horizon, members=self.members, blend=self.blend, seed=self.seed, where=_ARGUMENTS
        )

    @property
    def steps_ahead(self) -> int:
        """The horizon, or that of the specification."""
        if self.horizon is not None:
            return self.horizon
        assert self.spec is not None
        return self.spec.horizon

    @property
    def read_columns(self) -> Mapping[str, tuple[str, ...]]:
        """The columns to read besides id, timestamps and values, by role."""
        if self.spec is not None:
            return columns_of_spec(self.spec)
        return {"covariates": self.covariates, "static": self.static, "channels": self.channels}

    def describe(self) -> str:
        """Formats the arguments that differ from their defaults."""
        defaults = ModelOptions(horizon=1)
        parts = [f"horizon={self.steps_ahead}"]
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("horizon", "columns") or value == getattr(defaults, item.name):
                continue
            parts.append(f"spec={self.spec.name!r}" if item.name == "spec" and self.spec else f"{item.name}={value!r}")
        return ", ".join(parts)


def columns_of_spec(spec: Spec) -> Mapping[str, tuple[str, ...]]:
    """Returns the columns that a specification reads, by role."""
    return {"covariates": spec.covariates, "static": spec.static_columns, "channels": spec.channels}


def parse_count(argument: str, count: int | None) -> int | None:
    """Returns a number of at least 1 as an int, also one of numpy; raises InputError, which names the argument."""
    validate_counts(**{argument: count})
    return None if count is None else int(count)


def parse_names(argument: str, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names that an argument lists; raises InputError for one name without a list."""
    if isinstance(names, str):
        raise InputError(
            f"Expected a list of names for `{argument}`; found the text {names!r}. Write [{names!r}].", where=argument
        )
    return tuple(names)


def parse_spec(spec: Spec | Mapping[str, Any] | None) -> Spec | None:
    """Returns a specification that may be given as its fields; raises BadSpec."""
    if spec is None or isinstance(spec, Spec):
        return spec
    return Spec.parse(spec, where="spec")


def choose_spec(panel: Panel, options: ModelOptions, *, test_windows: int, progress: Progress) -> SpecSelection:
    """Returns the given specification, or the best variant of a preset on the windows before the test."""
    require_training()
    from forecaster.training.devices import validate_device
    from forecaster.training.selection import SpecSelection, select_spec

    if options.accelerator not in ("auto", "cpu"):
        validate_device(accelerator=options.accelerator, devices="1")
    if options.spec is not None:
        return SpecSelection(options.override(options.spec))
    selection = select_spec(
        panel,
        name=options.name,
        horizon=options.steps_ahead,
        preset=options.preset,
        season=options.season,
        columns={name: columns for name, columns in options.read_columns.items() if columns},
        test_windows=test_windows,
        accelerator=options.accelerator,
        progress=progress,
    )
    members = selection.limit_members(options.members, progress=progress)
    return selection._replace(spec=replace(options, members=members).override(selection.spec))


def fit_spec(
    panel: Panel, spec: Spec, options: ModelOptions, *, test_windows: int, data_name: str, progress: Progress
) -> TrainedModel:
    """Fits, calibrates and tests a model, beside naive forecasts and the pretrained network."""
    require_training()
    from forecaster.training.sequence import train_model

    return train_model(
        panel,
        spec,
        test_windows=test_windows,
        facts={"data": data_name},
        accelerator=options.accelerator,
        progress=progress,
    )


def warn_about_left_out(panel: Panel, spec: Spec, *, test_windows: int) -> None:
    """Gives a `DataWarning` if some series are too short to be trained on."""
    from forecaster.training.sequence import describe_left_out

    message = describe_left_out(panel, spec, test_windows=test_windows)
    if message is not None:
        warn_about_data([message])


def open_progress(progress: bool | Progress) -> Progress:
    """Returns what receives the progress: the given object, or a display if progress is to be shown."""
    if isinstance(progress, Progress):
        return progress
    return create_display() if progress else NO_PROGRESS


def parse_test_windows(test_windows: int) -> int:
    """Returns the number of test windows; raises InputError for one that is below 0 or not whole."""
    if isinstance(test_windows, bool) or not isinstance(test_windows, (int, np.integer)) or test_windows < 0:
        raise InputError(
            f"Expected `test_windows` of at least 0; found {test_windows!r}. Use 0 to fit on all data.",
            where="test_windows",
        )
    return test_windows


def require_training() -> None:
    """Raises MissingPackage if the packages that fit a model are not installed."""
    for package in ("torch", "pytorch_lightning"):
        require_package(package, purpose="fitting")
