"""Reads the data of a `Forecaster`: frames to panels, with the future of the covariates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

import pandas as pd

from forecaster.api.fitting import ModelOptions, columns_of_spec
from forecaster.api.frames import FrameStyle, InputFrame, read_frame, read_future
from forecaster.api.messages import warn_about_data
from forecaster.data.frames.columns import is_symbol_column, validate_columns
from forecaster.data.frames.future import append_future
from forecaster.data.frames.other_columns import describe_ignored_columns, keep_values
from forecaster.data.frames.panel import to_frame, to_panel
from forecaster.data.frames.rows import ColumnNames
from forecaster.data.on_disk.parquet import ParquetSource, read_parquet_panel
from forecaster.data.partial_periods import check_partial_periods
from forecaster.errors import FrequencyUnknown, InputError
from forecaster.frequency.timestamps import normalize_frequency
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.series import Panel


class PanelInput(NamedTuple):
    """A validated panel, the style of results, and messages that concern every series."""

    panel: Panel
    style: FrameStyle
    ignored: tuple[str, ...] = ()


class DataReader(NamedTuple):
    """Reads frames as the arguments of a `Forecaster` say and, once it is fitted, with the columns and types of its model.

    Attributes:
        options: The arguments.
        model: The fitted model, if there is one.
        values_only: Whether all other columns are ignored, as by the pretrained network.
    """

    options: ModelOptions
    model: FittedModel | StoredModel | None = None
    values_only: bool = False

    @property
    def columns(self) -> Mapping[str, tuple[str, ...]]:
        """The columns to read besides id, timestamps and values, by role."""
        return self.options.read_columns if self.model is None else columns_of_spec(self.model.spec)

    def find_vocabulary(self, rows: pd.DataFrame) -> tuple[str, ...] | None:
        """Returns the vocabulary by which the values of some rows are read as symbols; None if they are numbers.

        Without a model and a specification, a column of text without any number holds symbols; () stands for all that occur.
        """
        spec = self.options.spec if self.model is None else self.model.spec
        if self.values_only:
            return None
        if spec is not None:
            return spec.head.vocabulary if spec.head.is_symbolic else None
        name = self.options.columns.y
        is_single = list(rows.columns).count(name) == 1
        return () if is_single and is_symbol_column(rows[name]) else None

    def read(self, df: Any, future: Any = None, *, warn_partial: bool = False) -> PanelInput:
        """Reads a frame, and the future of its covariates if given; repairs give a `DataWarning`.

        With `warn_partial`, incomplete last periods do so too. Forecasts have their own warnings of these.
        """
        if self.values_only:
            return self._read_values(df, future)
        extra_columns = [name for names in self.columns.values() for name in names]
        frame = read_frame(df, self.options.columns, extra_columns=extra_columns)
        return self._to_panel(frame, future, warn_partial=warn_partial)

    def read_files(self, path: Path) -> PanelInput:
        """Reads Parquet files into a panel on disk, in the folder of temporary files; repairs give a `DataWarning`."""
        options, columns = self.options, self.columns
        for name, is_given in {"covariates": bool(columns["covariates"]), "drop_partial": options.drop_partial}.items():
            if is_given:
                raise InputError(
                    f"Expected no `{name}` with the path of Parquet files; found it set. Leave it out, or read a data frame.",
                    where=name,
                )
        source = ParquetSource(
            path, options.freq, options.columns, options.zone, static=columns["static"], channels=columns["channels"]
        )
        panel = read_parquet_panel(source, folder=Path(gettempdir()))
        panel = self._check_partial_periods(panel)
        warn_about_data(panel.repairs)
        return PanelInput(panel, FrameStyle(options.columns))

    def _read_values(self, df: Any, future: Any) -> PanelInput:
        """Reads ids, timestamps and values; one warning names all other columns, also those of future covariates."""
        options = self.options
        frame = read_frame(df, options.columns)
        freq = None if options.freq is None else normalize_frequency(options.freq, where="freq")
        values = keep_values(frame.rows, options.columns, freq=freq, zone=options.zone)
        result = self._to_panel(InputFrame(values.frame, frame.style), None)
        warn_about_data(values.messages)
        later = [] if future is None else map(str, getattr(future, "columns", ["X_df"]))
        names = dict.fromkeys([*values.ignored, *(name for name in later if name not in options.columns)])
        if not names:
            return result
        message = describe_ignored_columns(list(names), num_series=len(result.panel.series))
        warn_about_data([message])
        return result._replace(ignored=(message,))

    def extend(self, panel: Panel, style: FrameStyle, future: Any) -> PanelInput:
        """Appends the future of the covariates to a panel."""
        names = dict(zip(ColumnNames(), self.options.columns, strict=True))
        return self._to_panel(InputFrame(to_frame(panel).rename(columns=names), style), future)

    def _to_panel(self, frame: InputFrame, future: Any, *, warn_partial: bool = False) -> PanelInput:
        rows = frame.rows if future is None else self._append_future(frame.rows, future)
        try:
            panel = self._validate_rows(rows, self.options.freq)
        except FrequencyUnknown:  # a history may be too short to show the frequency of the model
            if self.model is None:
                raise
            panel = self._validate_rows(rows, self.model.freq)
        if warn_partial or self.options.drop_partial:
            panel = self._check_partial_periods(panel)
        warn_about_data(panel.repairs)
        return PanelInput(panel, frame.style)

    def _check_partial_periods(self, panel: Panel) -> Panel:
        """Warns about incomplete last periods, or treats their values as missing."""
        panel, messages = check_partial_periods(panel, now=datetime.now(UTC), drop=self.options.drop_partial)
        warn_about_data(
            f"{message}. Values of incomplete periods make forecasts wrong; `drop_partial=True` treats them as missing"
            for message in messages
        )
        return panel

    def _validate_rows(self, rows: pd.DataFrame, freq: Any) -> Panel:
        return to_panel(
            rows,
            freq=freq,
            columns=self.options.columns,
            zone=self.options.zone,
            text_covariates=None if self.model is None else tuple(self.model.encoding.categories),
            covariates=self.columns["covariates"],
            static=self.columns["static"],
            channels=self.columns["channels"],
            vocabulary=self.find_vocabulary(rows),
        )

    def _append_future(self, rows: pd.DataFrame, future: Any) -> pd.DataFrame:
        columns, names = self.columns, self.options.columns
        if not columns["covariates"]:
            raise InputError(
                "Expected no `X_df`, because this model has no covariates. Leave it out, or fit with `covariates`.",
                where="X_df",
            )
        validate_columns(rows, required=names, optional=[name for listed in columns.values() for name in listed])
        later = read_future(future, names, argument="X_df")
        return append_future(
            rows, later, names, covariates=columns["covariates"], static=columns["static"], zone=self.options.zone
        )


def select_ids(available: Sequence[str], ids: Any, *, max_ids: int, argument: str = "ids") -> list[str]:
    """Returns the text of the requested ids, one or several, by default of the first.

    Raises InputError, which names the argument, for an id that the data lack and for an empty list.
    """
    if ids is None:
        return list(available[:max_ids])
    wanted = [str(item) for item in ([ids] if isinstance(ids, str) or not isinstance(ids, Iterable) else ids)]
    missing = [series_id for series_id in wanted if series_id not in available]
    if missing or not wanted:
        raise InputError(
            f"Expected ids of the data in `{argument}`; found {repr(missing[0]) if missing else 'none'}. The data have "
            f"{', '.join(map(repr, available[:5]))}{' and more' if len(available) > 5 else ''}. Choose among them.",
            where=argument,
        )
    return wanted
