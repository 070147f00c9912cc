"""Scores of an archive when the actuals are known, computed by joins and groups of Arrow in the memory of the actuals.

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
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from pyarrow import acero

from forecaster.batch.archive import list_nights, open_archive
from forecaster.batch.shard import AS_OF_COLUMN, SCALE_COLUMN, STEP_COLUMN, VERSION_COLUMN
from forecaster.data.forecast_table import MODEL_COLUMN
from forecaster.errors import BadStamp, DuplicateStamp, InputError, MissingColumn, NoData

_INTERVAL_COLUMN = re.compile(rf"{MODEL_COLUMN}-(lo|hi)-([\d.]+)")
_QUANTILE_COLUMN = re.compile(rf"{MODEL_COLUMN}-q-([\d.]+)")
_ACTUAL = "actual"
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
    keys = _intersect([plan.list_scored_keys() for plan in plans])
    tables = []
    for location, plan in zip((path, rival), plans, strict=True):
        table = plan.score(keys)
        tables.append(table.add_column(0, ARCHIVE_COLUMN, pa.repeat(location, table.num_rows)))
    return pa.concat_tables(tables, promote_options="default")


class _ScorePlan(NamedTuple):
    """A data set of forecasts, the actuals in its types, and the columns of the groups."""

    dataset: Any
    actuals: pa.Table
    id_column: str
    ds_column: str
    groups: tuple[str, ...]
    group_names: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """The columns that identify an actual."""
        return [self.id_column, self.ds_column]

    def score(self, keys: pa.Table | None = None) -> pa.Table:
        """Returns the scores by group, of all rows or of those with some keys."""
        names = self.dataset.schema.names
        quantiles, intervals = find_quantiles(names), find_intervals(names)
        terms = _build_terms(quantiles, intervals)
        joined = self._join(keys)
        projected = acero.Declaration(
            "project",
            acero.ProjectNodeOptions(
                [*(pc.field(name) for name in self.groups), *terms.values()], [*self.groups, *terms]
            ),
            [joined],
        )
        aggregates = [(name, "hash_sum", None, f"{name}_sum") for name in terms]
        aggregates += [(name, "hash_count", None, f"{name}_count") for name in terms]
        declaration = acero.Declaration(
            "aggregate", acero.AggregateNodeOptions(aggregates, keys=[*self.groups, "all"]), [projected]
        )
        sums = declaration.to_table(use_threads=False)  # in one order, so that equal data give equal sums
        return _build_scores(sums, self, quantiles=quantiles, intervals=intervals)

    def list_scored_keys(self) -> pa.Table:
        """Returns series, timestamp and night of every row with an actual."""
        columns = [*self.keys, AS_OF_COLUMN]
        present = acero.Declaration(
            "filter", acero.FilterNodeOptions(pc.is_valid(pc.field(_ACTUAL))), [self._join(None)]
        )
        declaration = acero.Declaration(
            "project", acero.ProjectNodeOptions([pc.field(name) for name in columns], columns), [present]
        )
        return declaration.to_table(use_threads=False)

    def _join(self, keys: pa.Table | None) -> Any:
        """Returns the rows of the forecasts with their actuals: the forecasts pass by, the actuals are in memory."""
        columns = [name for name in self.dataset.schema.names if name != "model_digest"]
        scan = acero.Declaration("scan", acero.ScanNodeOptions(self.dataset, columns=columns, use_threads=False))
        plain = [
            pc.field(name).cast(pa.string())
            if name in (AS_OF_COLUMN, VERSION_COLUMN, self.id_column)
            else pc.field(name)
            for name in columns
        ]
        rows = acero.Declaration("project", acero.ProjectNodeOptions(plain, columns), [scan])
        if keys is not None:
            on = [*self.keys, AS_OF_COLUMN]
            rows = acero.Declaration(
                "hashjoin",
                acero.HashJoinNodeOptions("left semi", on, on, left_output=columns, right_output=[]),
                [rows, acero.Declaration("table_source", acero.TableSourceNodeOptions(keys))],
            )
        others = [name for name in self.actuals.column_names if name not in self.keys]
        return acero.Declaration(
            "hashjoin",
            acero.HashJoinNodeOptions("left outer", self.keys, self.keys, left_output=columns, right_output=others),
            [rows, acero.Declaration("table_source", acero.TableSourceNodeOptions(self.actuals))],
        )


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
    prepared = _prepare_actuals(actuals, night.id_column, night.ds_column, dataset.schema, group_columns)
    groups = tuple(GROUPS.get(name, name) for name in by)
    return _ScorePlan(dataset, prepared, night.id_column, night.ds_column, groups, tuple(by))


def _prepare_actuals(
    actuals: Actuals, id_column: str, ds_column: str, schema: pa.Schema, groups: Sequence[str]
) -> pa.Table:
    """Returns the actuals in the types of the archive, null where not observed; refuses two values for one key."""
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
    columns = {
        id_column: actuals.table.column(id_column).cast(pa.string()),
        ds_column: actuals.table.column(ds_column).cast(expected),
        _ACTUAL: y,
        **{name: actuals.table.column(name).cast(pa.string()) for name in groups},
    }
    table = pa.table(columns)
    counts = table.select([id_column, ds_column]).group_by([id_column, ds_column]).aggregate([([], "count_all")])
    repeated = counts.filter(pc.greater(counts.column("count_all"), 1)).slice(0, 1).to_pylist()
    if repeated:
        raise DuplicateStamp(
            f"Expected one actual for each series and timestamp; series {repeated[0][id_column]!r} has "
            f"{repeated[0]['count_all']} at {repeated[0][ds_column]}. Keep one of them.",
            where=repeated[0][id_column],
        )
    return table


def _build_terms(quantiles: Mapping[float, str], intervals: Mapping[float, tuple[str, str]]) -> dict[str, Any]:
    """Returns the expressions whose sums and counts make the scores; null where a value is missing."""
    actual, forecast, scale = pc.field(_ACTUAL), pc.field(MODEL_COLUMN), pc.field(SCALE_COLUMN)
    error = pc.subtract(forecast, actual)
    terms = {
        "all": pc.scalar(1.0),
        "error": error,
        "absolute": pc.abs(error),
        "scaled": pc.divide(pc.abs(error), scale),
        "size": pc.abs(pc.if_else(pc.is_valid(error), actual, pc.scalar(None).cast(pa.float64()))),
    }
    for level, name in quantiles.items():
        miss = pc.subtract(actual, pc.field(name))
        terms[f"pinball_{level:g}"] = pc.max_element_wise(
            pc.multiply(miss, pc.scalar(level)), pc.multiply(miss, pc.scalar(level - 1)), skip_nulls=False
        )
        terms[f"size_{level:g}"] = pc.if_else(pc.is_valid(miss), pc.abs(actual), pc.scalar(None).cast(pa.float64()))
    for percent, (lower, upper) in intervals.items():
        low, high, zero = pc.field(lower), pc.field(upper), pc.scalar(0.0)
        inside = pc.and_kleene(pc.less_equal(low, actual), pc.less_equal(actual, high))
        width = pc.subtract(high, low)
        outside = pc.add(
            pc.max_element_wise(pc.subtract(low, actual), zero, skip_nulls=False),
            pc.max_element_wise(pc.subtract(actual, high), zero, skip_nulls=False),
        )
        score = pc.add(width, pc.multiply(outside, pc.scalar(2 / (1 - percent / 100))))
        terms[f"inside_{percent:g}"] = inside.cast(pa.float64())
        terms[f"width_{percent:g}"] = pc.if_else(pc.is_valid(actual), width, pc.scalar(None).cast(pa.float64()))
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


def _intersect(tables: Sequence[pa.Table]) -> pa.Table:
    """Returns the keys that two tables have."""
    first, second = tables
    return first.join(second, keys=first.column_names, join_type="left semi", use_threads=False)
