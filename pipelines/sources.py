"""Where data and specifications come from: files, and the data sets that ship with the project."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from forecaster.data.datasets import hospital, sine_trend
from forecaster.data.frames import Columns, to_panel
from forecaster.errors import BadSpec, InputError, SourceNotFound
from forecaster.series import Panel
from forecaster.spec import Spec

BUILT_IN: dict[str, Callable[[], pd.DataFrame]] = {"hospital": hospital, "sine_trend": sine_trend}


class Data(NamedTuple):
    """Where a panel comes from, and how to read it."""

    source: str  # a file, or the name of a data set that ships with the project
    freq: str | int | None = None
    columns: Columns = Columns()
    zone: str | None = None
    covariates: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    def for_spec(self, spec: Spec) -> Data:
        """The same source, with the columns that a forecaster reads besides."""
        further = () if spec.group is None or spec.group in spec.static else (spec.group,)
        return self._replace(covariates=spec.covariates, static=(*spec.static, *further), channels=spec.channels)

    @property
    def name(self) -> str:
        """What people call it."""
        return Path(self.source).name.split(".")[0]


def _read_csv(path: Path, data: Data) -> pd.DataFrame:
    """Ids and static columns stay text: 007 is not 7, and a series may be called NA."""
    empty = {name: _EMPTY for name in pd.read_csv(path, nrows=0).columns if name != data.columns.unique_id}
    text: dict[Hashable, Any] = dict.fromkeys([data.columns.unique_id, *data.static], str)
    return pd.read_csv(path, dtype=text, na_values=empty, keep_default_na=False, low_memory=False)


# What means "not observed" in a column of values.
_EMPTY = ["", "#N/A", "<NA>", "N/A", "n/a", "NA", "NaN", "nan", "-nan", "NULL", "null", "None"]
_READERS: dict[str, Callable[[Path, Data], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".parquet": lambda path, _: pd.read_parquet(path),
}


def read(data: Data) -> Panel:
    """The panel of a source; raises InputError's kinds, with the source, the column and the row or stamp."""
    if data.source in BUILT_IN:
        return to_panel(BUILT_IN[data.source](), freq=data.freq, zone=data.zone)
    path = Path(data.source)
    reader = next((reader for suffix, reader in _READERS.items() if path.name.endswith(suffix)), None)
    if reader is None:
        raise SourceNotFound(
            f"Expected a file ending in {', '.join(_READERS)}, or one of the data sets {', '.join(BUILT_IN)}; found "
            f"{data.source!r}. Convert the file, or give another.",
            where=data.source,
        )
    if not path.is_file():
        found = "a folder" if path.is_dir() else "none"
        raise SourceNotFound(f"Expected a file at {data.source}; found {found}. Check the path.", where=data.source)
    try:
        frame = reader(path, data)
    except (ValueError, OSError, EOFError, zlib.error) as error:  # parser and Arrow errors are ValueErrors
        raise InputError(
            f"Expected a readable table in {data.source}; {' '.join(str(error).split())}. Write it anew, as UTF-8.",
            where=data.source,
        ) from error
    return to_panel(
        frame,
        freq=data.freq,
        columns=data.columns,
        zone=data.zone,
        covariates=data.covariates,
        static=data.static,
        channels=data.channels,
    )


def read_spec(path: Path) -> Spec:
    """The specification in a YAML file; raises BadSpec."""
    try:
        fields: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadSpec(f"Expected a specification at {path}; it cannot be read ({error}).", where=str(path)) from error
    except yaml.YAMLError as error:
        raise BadSpec(f"Expected YAML in {path}; {' '.join(str(error).split())}.", where=str(path)) from error
    return Spec.parse(fields, where=str(path))


def check_test_windows(windows: int) -> None:
    """Refuses a number of windows that nobody can mean."""
    if windows < 0:
        raise InputError(
            f"Expected --test-windows of at least 0; found {windows}. Ask for 0 test windows to train on everything.",
            where="test_windows",
        )


def model_name(name: str) -> str:
    """The name of data as the registry takes it for a model's."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name).lstrip("_-")[:64] or "forecaster"
