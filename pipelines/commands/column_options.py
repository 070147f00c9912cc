"""The options that name further columns of the data beside id, timestamp and value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from forecaster.errors import BadSpec

if TYPE_CHECKING:
    from pipelines.sources import DataSource

ColumnNames = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True)
class ColumnOptions:
    """Further columns of the data, which a specification names otherwise."""

    covariate: ColumnNames = ()
    "A column of a known future covariate; may be repeated."
    static: ColumnNames = ()
    "A column of a static feature, with one value per series; may be repeated."
    channel: ColumnNames = ()
    "A column that is observed in the past only; may be repeated."

    @property
    def spec_fields(self) -> Mapping[str, tuple[str, ...]]:
        """The fields of a specification that name these columns; fields without a column are left out."""
        columns = {"covariates": self.covariate, "static": self.static, "channels": self.channel}
        return {field: names for field, names in columns.items() if names}

    def apply(self, source: DataSource) -> DataSource:
        """Returns the data source with these columns."""
        return source._replace(covariates=self.covariate, static=self.static, channels=self.channel)

    def refuse_beside(self, other: str) -> None:
        """Raises BadSpec if a column is named beside another option, whose specification names the columns."""
        for option in ("covariate", "static", "channel"):
            if names := getattr(self, option):
                raise BadSpec(
                    f"Expected either {other} or --{option}; found both, with {', '.join(names)}. Name the columns in the "
                    f"specification, or leave {other} out.",
                    where=option,
                )
