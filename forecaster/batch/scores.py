"""Scores of an archive when the actuals are known, computed by columns: the actuals are in memory, the forecasts pass by.

All scores are means over the rows that have an actual: over series and steps alike.

| column | definition |
|---|---|
| `rows`, `scored` | rows of forecasts, and those of them with an actual |
| `mae`, `bias` | mean absolute error; mean of forecast less actual |
| `mase` | mean of the absolute errors over the scale of each series that the batch stored (Hyndman and Koehler 2006) |
| `wql` | weighted quantile loss, the mean over the levels of the archive (Salinas et al. 2020) |
| `coverage_80`, `width_80` | share of actuals within the interval of 80 percent, and its mean width |
| `msis_80` | mean scaled interval score (Gneiting and Raftery 2007, equation 43), with the scale of MASE as in M4 |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from forecaster.batch.actual_index import ActualIndex
from forecaster.batch.archive import list_nights, open_archive
from forecaster.batch.shard import AS_OF_COLUMN, DIGEST_COLUMN, SCALE_COLUMN, STEP_COLUMN, VERSION_COLUMN
from forecaster.data.forecast_table import MODEL_COLUMN
from forecaster.errors import BadStamp, InputError, MissingColumn, NoData
from forecaster.shapes import Int

_INTERVAL_COLUMN = re.compile(rf"{MODEL_COLUMN}-(lo|hi)-([\d.]+)")
_QUANTILE_COLUMN = re.compile(rf"{MODEL_COLUMN}-q-([\d.]+)")
_PART_ROWS = 1 << 18
GROUPS = {"step": STEP_COLUMN, "version": VERSION_COLUMN, "as_of": AS_OF_COLUMN}
"""The columns of the forecasts by which they are grouped, by the name of the group."""
ARCHIVE_COLUMN = "archive"


class Actuals(NamedTuple):
    """The actuals of an archive: a table, and the name of its column of values.

    The table has the columns of ids and timestamps of the archive, and may have others by which scores are grouped.
    """

    table: pa.Table
    y_column: str = "y"


def score_archive(
    path: str,
    actuals: Actuals,
    *,
    as_of: str | Sequence[str] | None = None,
    by: Sequence[str] = (),
    rival: str | None = None,
) -> pa.Table:
    """Scores the forecasts of an archive; rows without an actual so far are counted and not scored.

    Args:
        path: The folder of the archive.
        actuals: The actuals, which are in memory.
        as_of: One night or several; by default all.
        by: The groups: `step`, `version`, `as_of`, or columns of the actuals.
        rival: Another archive. Both are then scored on the rows that both have, and the column `archive` names them.
    Returns:
        One row per group with the columns of `by` and of the scores, sorted by group.
    Raises:
        NoData: The archive has no such night, or no forecast has an actual.
        MissingColumn: The actuals lack a column.
        DuplicateStamp: The actuals have two values for one series and timestamp.
        BadStamp: The timestamps of the actuals are of another kind than those of the archive.
    """
    plans = [_plan_scores(location, actuals, as_of=as_of, by=by) for location in (path, rival) if location is not None]
    if rival is None:
        return plans[0].score()
    nights = sorted({night for plan in plans for night in plan.nights})
    own_keys, rival_keys = (plan.list_scored_keys(nights) for plan in plans)
    keys = np.intersect1d(own_keys, rival_keys)
    tables = []
    for location, plan in zip((path, rival), plans, strict=True):
        table = plan.score(_SharedKeys(keys, nights))
        tables.append(table.add_column(0, ARCHIVE_COLUMN, pa.repeat(location, table.num_rows)))
    return pa.concat_tables(tables, promote_options="default")


class _SharedKeys(NamedTuple):
    """The actuals by night that two archives have in common: sorted numbers, as `_number_rows` gives them."""

    keys: Int[np.ndarray, "key"]
    nights: Sequence[str]


class _ArchivePart(NamedTuple):
    """Some rows of forecasts, the rows of their actuals (-1: none), and the actuals."""

    table: pa.Table
    rows: Int[np.ndarray, "row"]
    actual: pa.Array

    def select(self, is_selected: np.ndarray) -> _ArchivePart:
        """Returns the selected rows."""
        mask = pa.array(is_selected)
        return _ArchivePart(self.table.filter(mask), self.rows[is_selected], self.actual.filter(mask))


class _ScorePlan(NamedTuple):
    """A data set of forecasts, their actuals, and the columns of the groups with their names."""

    dataset: Any
    observed: ActualIndex
    id_column: str
    ds_column: str
    nights: tuple[str, ...]
    groups: tuple[str, ...]
    group_names: tuple[str, ...]

    def score(self, shared: _SharedKeys | None = None) -> pa.Table:
        """Returns the scores by group, of all rows or of those that two archives share."""
        names = self.dataset.schema.names
        quantiles, intervals = find_quantiles(names), find_intervals(names)
        partial = []
        for part in self._iter_parts():
            if shared is not None:
                part = part.select(np.isin(_number_rows(part, shared.nights), shared.keys))
            partial.append(self._sum(part, _build_terms(part, quantiles, intervals)))
        return _build_scores(self._add_sums(partial), self, quantiles=quantiles, intervals=intervals)

    def list_scored_keys(self, nights: Sequence[str]) -> Int[np.ndarray, "key"]:
        """Returns the number of actual and night of every row with an actual."""
        keys = [
            _number_rows(part, nights)[pc.is_valid(part.actual).to_numpy(zero_copy_only=False)]
            for part in self._iter_parts()
        ]
        return np.concatenate(keys) if keys else np.zeros(0, dtype=np.int64)

    def _iter_parts(self) -> Iterator[_ArchivePart]:
        """Yields the forecasts with their actuals, some rows at a time and in one order."""
        columns = [name for name in self.dataset.schema.names if name != DIGEST_COLUMN]
        scanner = self.dataset.scanner(
            columns=columns, batch_size=_PART_ROWS, batch_readahead=1, fragment_readahead=1, use_threads=False
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                rows = self.observed.find_rows(
                    batch.column(self.id_column).cast(pa.string()), batch.column(self.ds_column)
                )
                yield _ArchivePart(pa.Table.from_batches([batch]), rows, self.observed.take_values(rows))

    def _sum(self, part: _ArchivePart, terms: Mapping[str, Any]) -> pa.Table:
        """Returns sum and count of each term by group."""
        columns = {}
        for name in self.groups:
            own = name in part.table.column_names
            column = part.table.column(name) if own else self.observed.take_group(name, part.rows)
            columns[name] = column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
        table = pa.table({**columns, **terms})
        aggregates = [(name, kind) for name in terms for kind in ("sum", "count")]
        return table.group_by([*self.groups, "all"], use_threads=False).aggregate(aggregates)

    def _add_sums(self, partial: Sequence[pa.Table]) -> pa.Table:
        table = pa.concat_tables(partial, promote_options="permissive")
        totals = [name for name in table.column_names if name not in (*self.groups, "all")]
        grouped = table.group_by([*self.groups, "all"], use_threads=False).aggregate([(name, "sum") for name in totals])
        return grouped.rename_columns(
            [
                name.removesuffix("_sum") if name.removesuffix("_sum") in totals else name
                for name in grouped.column_names
            ]
        )


def _number_rows(part: _ArchivePart, nights: Sequence[str]) -> Int[np.ndarray, "row"]:
    """Returns one number for the actual and the night of each row, -1 without an actual."""
    night = pc.index_in(part.table.column(AS_OF_COLUMN).cast(pa.string()), value_set=pa.array(nights)).to_numpy()
    return np.where(part.rows >= 0, part.rows * len(nights) + night, -1)


def find_intervals(names: Sequence[str]) -> dict[float, tuple[str, str]]:
    """Returns the columns of the bounds of each interval, by its percentage."""
    sides: dict[float, dict[str, str]] = {}
    for name in names:
        if match := _INTERVAL_COLUMN.fullmatch(name):
            sides.setdefault(float(match[2]), {})[match[1]] = name
    return {percent: (both["lo"], both["hi"]) for percent, both in sorted(sides.items()) if len(both) == 2}


def find_quantiles(names: Sequence[str]) -> dict[float, str]:
    """Returns the column of each quantile, those of intervals too."""
    found: dict[float, str] = {}
    for percent, (lower, upper) in find_intervals(names).items():
        found |= {round((1 - percent / 100) / 2, 9): lower, round((1 + percent / 100) / 2, 9): upper}
    for name in names:
        if match := _QUANTILE_COLUMN.fullmatch(name):
            found[float(match[1])] = name
    return dict(sorted(found.items()))


def _plan_scores(path: str, actuals: Actuals, *, as_of: str | Sequence[str] | None, by: Sequence[str]) -> _ScorePlan:
    dataset = open_archive(path, as_of=as_of)
    night = list_nights(path)[0]
    group_columns = [name for name in by if name not in GROUPS]
    clashing = [name for name in group_columns if name in dataset.schema.names]
    if clashing:
        raise InputError(
            f"Expected groups among {', '.join(GROUPS)} or the columns of the actuals; found {clashing[0]!r}, a column of the "
            "forecasts. Use another.",
            where="by",
        )
    index = _index_actuals(actuals, night.id_column, night.ds_column, dataset.schema, group_columns)
    groups = tuple(GROUPS.get(name, name) for name in by)
    nights = tuple(other.as_of for other in list_nights(path))
    return _ScorePlan(dataset, index, night.id_column, night.ds_column, nights, groups, tuple(by))


def _index_actuals(
    actuals: Actuals, id_column: str, ds_column: str, schema: pa.Schema, groups: Sequence[str]
) -> ActualIndex:
    """Returns the index of the actuals in the types of the archive."""
    wanted = [id_column, ds_column, actuals.y_column, *groups]
    missing = [name for name in wanted if name not in actuals.table.column_names]
    if missing:
        raise MissingColumn(
            f"Expected the columns {', '.join(wanted)} in the actuals; {', '.join(missing)} not found. Add them, or name others.",
            where=missing[0],
        )
    found, expected = actuals.table.schema.field(ds_column).type, schema.field(ds_column).type
    has_zones = [getattr(kind, "tz", None) is not None for kind in (found, expected)]
    if pa.types.is_temporal(found) != pa.types.is_temporal(expected) or has_zones[0] != has_zones[1]:
        raise BadStamp(
            f"Expected timestamps of type {expected} in the column {ds_column!r} of the actuals, as in the archive; found "
            f"{found}. Convert them.",
            where=ds_column,
        )
    y = actuals.table.column(actuals.y_column).cast(pa.float64())
    y = pc.if_else(pc.fill_null(pc.is_finite(y), False), y, pa.scalar(None, pa.float64()))
    return ActualIndex(
        actuals.table.column(id_column).cast(pa.string()),
        actuals.table.column(ds_column).cast(expected),
        y,
        {name: actuals.table.column(name).cast(pa.string()) for name in groups},
    )


def _build_terms(
    part: _ArchivePart, quantiles: Mapping[float, str], intervals: Mapping[float, tuple[str, str]]
) -> dict[str, Any]:
    """Returns the values whose sums and counts make the scores; null where a value is missing."""
    actual, table = part.actual, part.table.combine_chunks()
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    forecast, scale = columns[MODEL_COLUMN], columns[SCALE_COLUMN]
    missing, zero = pa.scalar(None, pa.float64()), pa.scalar(0.0)
    error = pc.subtract(forecast, actual)
    terms = {
        "all": pa.repeat(pa.scalar(1.0), table.num_rows),
        "error": error,
        "absolute": pc.abs(error),
        "scaled": pc.divide(pc.abs(error), scale),
        "size": pc.abs(pc.if_else(pc.is_valid(error), actual, missing)),
    }
    for level, name in quantiles.items():
        miss = pc.subtract(actual, columns[name])
        terms[f"pinball_{level:g}"] = pc.max_element_wise(
            pc.multiply(miss, pa.scalar(level)), pc.multiply(miss, pa.scalar(level - 1)), skip_nulls=False
        )
        terms[f"size_{level:g}"] = pc.if_else(pc.is_valid(miss), pc.abs(actual), missing)
    for percent, (lower, upper) in intervals.items():
        low, high = columns[lower], columns[upper]
        inside = pc.and_kleene(pc.less_equal(low, actual), pc.less_equal(actual, high))
        width = pc.subtract(high, low)
        outside = pc.add(
            pc.max_element_wise(pc.subtract(low, actual), zero, skip_nulls=False),
            pc.max_element_wise(pc.subtract(actual, high), zero, skip_nulls=False),
        )
        score = pc.add(width, pc.multiply(outside, pa.scalar(2 / (1 - percent / 100))))
        terms[f"inside_{percent:g}"] = inside.cast(pa.float64())
        terms[f"width_{percent:g}"] = pc.if_else(pc.is_valid(actual), width, missing)
        terms[f"interval_{percent:g}"] = pc.divide(score, scale)
    return terms


def _build_scores(
    sums: pa.Table, plan: _ScorePlan, *, quantiles: Mapping[float, str], intervals: Mapping[float, tuple[str, str]]
) -> pa.Table:
    """Returns the table of scores from the sums and counts of the terms."""

    def mean(term: str) -> pa.ChunkedArray:
        count = sums.column(f"{term}_count")
        total = sums.column(f"{term}_sum")
        return pc.divide(total, pc.if_else(pc.equal(count, 0), pa.scalar(None, pa.int64()), count))

    columns = {name: sums.column(group) for name, group in zip(plan.group_names, plan.groups, strict=True)}
    columns |= {"rows": sums.column("all_count"), "scored": sums.column("error_count")}
    columns |= {"mae": mean("absolute"), "mase": mean("scaled"), "bias": mean("error")}
    if quantiles:
        losses = []
        for level in quantiles:
            size = sums.column(f"size_{level:g}_sum")
            safe = pc.if_else(pc.equal(size, 0.0), pa.scalar(None, pa.float64()), size)
            losses.append(pc.divide(pc.multiply(sums.column(f"pinball_{level:g}_sum"), 2.0), safe))
        total = losses[0]
        for loss in losses[1:]:
            total = pc.add(total, loss)
        columns["wql"] = pc.divide(total, float(len(losses)))
    for percent in intervals:
        columns |= {
            f"coverage_{percent:g}": mean(f"inside_{percent:g}"),
            f"width_{percent:g}": mean(f"width_{percent:g}"),
            f"msis_{percent:g}": mean(f"interval_{percent:g}"),
        }
    table = pa.table(columns)
    grouped_by_actuals = [name for name in plan.group_names if name not in GROUPS]
    for name in grouped_by_actuals:  # a forecast without an actual has no group
        table = table.filter(pc.or_(pc.is_valid(table.column(name)), pc.greater(table.column("scored"), 0)))
    if not pc.sum(table.column("scored")).as_py():
        raise NoData(
            f"Expected actuals of the forecasts; none of {pc.sum(sums.column('all_count')).as_py()} rows has one. Send actuals "
            "with the ids and timestamps of the archive.",
            where="actuals",
        )
    return table.sort_by([(name, "ascending") for name in plan.group_names]) if plan.group_names else table
