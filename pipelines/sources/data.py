"""What is meant by the data of a command."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from forecaster.data.frames.panel import ColumnNames
from forecaster.spec import Spec


class DataSource(NamedTuple):
    """Where a panel comes from, and how to read it.

    Attributes:
        source: A file, a folder of drops, an address in a store (`s3://...`), the name of a data set that ships, or a query.
        freq: As `to_panel` takes it.
        columns: The names of the columns.
        zone: As `to_panel` takes it.
        covariates: Columns that are known ahead.
        static: Columns that say one thing of a whole series.
        channels: Columns of which the past alone is known.
        is_query: Whether the source is SQL, asked of the database of FORECASTER_SQL_URL.
        cutoff: The last stamp that is looked at, as text; None for all there are.
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

    def for_spec(self, spec: Spec) -> DataSource:
        """The same source, with the columns that a forecaster reads besides."""
        further = () if spec.group is None or spec.group in spec.static else (spec.group,)
        return self._replace(covariates=spec.covariates, static=(*spec.static, *further), channels=spec.channels)

    @property
    def name(self) -> str:
        """What people call it."""
        return "query" if self.is_query else Path(self.source).name.split(".")[0]
