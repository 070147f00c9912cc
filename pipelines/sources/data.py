"""The description of a command's input data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from forecaster.data.encoding import Encoding
from forecaster.data.frames.rows import ColumnNames
from forecaster.spec import Spec


class DataSource(NamedTuple):
    """Where a panel comes from, and how to read it.

    Attributes:
        source: A file, a folder of data drops, the URL of an object store (`s3://...`), a built-in data set, or a query.
        freq: Frequency, as in `to_panel`.
        columns: The names of the columns.
        zone: Time zone, as in `to_panel`.
        covariates: Columns of known future covariates.
        static: Columns of static features, which have one value per series.
        channels: Columns that are observed in the past only.
        is_query: Whether the source is SQL, run on the database of FORECASTER_SQL_URL.
        cutoff: The last timestamp to read, as text; None reads all of them.
        text_covariates: The covariates that are read as text, the others as numbers; None decides by the cells.
        drop_partial: Whether the values of incomplete last periods are treated as missing.
        values_only: Whether all columns but ids, timestamps and values are ignored, as by the pretrained network.
        vocabulary: The symbols that the values are, as in `to_panel`; None: they are numbers.
    """

    source: str
    freq: str | int | None = None
    columns: ColumnNames = ColumnNames()
    zone: str | None = None
    covariates: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    is_query: bool = False
    cutoff: str | None = None
    text_covariates: tuple[str, ...] | None = None
    drop_partial: bool = False
    values_only: bool = False
    vocabulary: tuple[str, ...] | None = None

    def for_spec(self, spec: Spec | None) -> DataSource:
        """Returns the same source with the additional columns that a specification reads, none without a specification."""
        if spec is None:
            return self
        return self._replace(
            covariates=spec.covariates,
            static=spec.static_columns,
            channels=spec.channels,
            vocabulary=spec.head.vocabulary if spec.head.is_symbolic else None,
        )

    def for_model(self, spec: Spec, encoding: Encoding) -> DataSource:
        """Returns the same source with the additional columns that a model reads, of the types that it has learned."""
        return self.for_spec(spec)._replace(text_covariates=tuple(encoding.categories))

    @property
    def name(self) -> str:
        """The short name of the data: the file name without its suffixes, or `query`."""
        return "query" if self.is_query else Path(self.source).name.split(".")[0]
