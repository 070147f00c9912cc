"""Similar stretches: the moments in other series at which the same units are on (LSTMVis, Strobelt et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import BadId, InputError
from forecaster.explain.states import StateTrace, list_units
from forecaster.frequency.timestamps import Timestamp, add_steps, format_timestamp, is_earlier
from forecaster.series import Series
from forecaster.shapes import Bool, Float64, Int

THRESHOLD = 0.5  # standard deviations from the mean of a unit beyond which it is on
MAX_MATCHES = 10


class Match(NamedTuple):
    """A stretch in which most of the selected units are on.

    Attributes:
        series: The series.
        first: Index of its first time point.
        stop: Index after its last time point.
        shared: Number of selected units that are on throughout.
        extra: Number of other units that are on throughout.
        chance: Share of all stretches of this length in the searched series that share at least as many units.
    """

    series: Series
    first: int
    stop: int
    shared: int
    extra: int
    chance: float


@dataclass(frozen=True, eq=False)
class SimilarStretches:
    """A selected stretch and its matches.

    Attributes:
        series: The series of the selection.
        first: Index of the first time point of the selection.
        stop: Index after its last time point.
        selected: Names of the units that are on throughout it, such as `layer 1 unit 7 high`.
        matches: The matches, the closest first.
    """

    series: Series
    first: int
    stop: int
    selected: tuple[str, ...]
    matches: tuple[Match, ...]


def find_similar(
    traces: Sequence[StateTrace],
    unique_id: str,
    *,
    start: Timestamp,
    end: Timestamp,
    threshold: float = THRESHOLD,
    max_matches: int = MAX_MATCHES,
) -> SimilarStretches:
    """Finds the stretches of other series that are most like [start, end) of one series, by the units that are on.

    After Strobelt et al. 2018 (LSTMVis, "Select" and "Match"): units whose state is beyond a threshold at every step of the
    stretch are selected, and stretches elsewhere are ordered by the number of selected units that are on there throughout, then
    by how few other units are. Three things differ: states are standardised over all series, so that one threshold suits all
    units; a unit is on above the threshold (high) or below its negative (low), as two units would be; and matches have the
    length of the selection. If there is only one series, its other stretches are searched.

    Args:
        traces: Traces of all members for several series.
        unique_id: Id of the series of the selection.
        start: First timestamp of the selection.
        end: The timestamp after the selection.
        threshold: Standard deviations beyond which a unit is on.
        max_matches: Number of matches, which do not overlap.
    Raises:
        BadId: There is no series of this id.
        InputError: The stretch has no step of the network, or no unit is on throughout it.
    """
    ids = list(dict.fromkeys(trace.id for trace in traces))
    if unique_id not in ids:
        raise BadId(f"Expected the id of a traced series; found {unique_id!r}. Use another id.", where="unique_id")
    activity = {series_id: [trace for trace in traces if trace.id == series_id] for series_id in ids}
    states = _switch_on([activity[series_id] for series_id in ids], threshold)
    query = activity[unique_id][0]
    steps = _find_steps(query, start, end)
    on = states[ids.index(unique_id)]
    selected = on[steps].all(axis=0)
    if not selected.any():
        raise InputError(
            f"Expected a stretch throughout which a unit is on; in {unique_id!r} from {format_timestamp(start)} to "
            f"{format_timestamp(end)} none is beyond {threshold:g} standard deviations at each of {len(steps)} steps. Choose a "
            "shorter stretch, or a lower threshold.",
            where="start",
        )
    names = np.array(
        [
            f"{f'member {trace.member} ' if len(activity[unique_id]) > 1 else ''}layer {unit.layer} unit {unit.unit} {side}"
            for side in ("high", "low")
            for trace in activity[unique_id]
            for unit in list_units(trace)
        ]
    )
    searched = [index for index, series_id in enumerate(ids) if series_id != unique_id or len(ids) == 1]
    scores = []
    for index in searched:
        trace = activity[ids[index]][0]
        score = _score_windows(states[index], trace.windows, selected, length=len(steps))
        if ids[index] == unique_id:
            overlaps = np.abs(score.starts - steps[0]) < len(steps)
            score = _Scores(*(values[~overlaps] for values in score))
        scores.append(score)
    matches = _select_matches([activity[ids[index]][0] for index in searched], scores, len(steps), max_matches)
    first, stop = _to_time_points(query, int(steps[0]), len(steps))
    return SimilarStretches(query.series, first, stop, tuple(names[selected].tolist()), tuple(matches))


def build_match_table(found: SimilarStretches) -> pd.DataFrame:
    """Returns one row per match: `unique_id, start, end, shared, selected, extra, chance`; `end` is the timestamp after it."""
    rows = [
        {
            "unique_id": match.series.id,
            "start": match.series.timestamp_at(match.first),
            "end": timestamp_after(match.series, match.stop),
            "shared": match.shared,
            "selected": len(found.selected),
            "extra": match.extra,
            "chance": match.chance,
        }
        for match in found.matches
    ]
    return pd.DataFrame(rows, columns=["unique_id", "start", "end", "shared", "selected", "extra", "chance"])


def timestamp_after(series: Series, stop: int) -> Timestamp:
    """Returns the timestamp at an index, which may be the one after the last value."""
    return series.timestamp_at(stop) if stop < len(series) else add_steps(series.end, series.freq, 1)


def parse_bounds(series: Series, start: Any, end: Any) -> tuple[Timestamp, Timestamp]:
    """Returns the bounds of a stretch as timestamps of a series, in its time zone if it has one.

    Raises InputError for anything else, and if the end is not after the start.
    """
    try:
        first, last = (_to_timestamp(series, bound) for bound in (start, end))
        if not is_earlier(first, last):
            raise ValueError("the end is not after the start")
    except (ValueError, TypeError) as error:
        raise InputError(
            f"Expected the first timestamp of a stretch and the one after it, such as {format_timestamp(series.start)} and "
            f"{format_timestamp(series.end)}; found {start!s} and {end!s} ({error}). Correct them.",
            where="start",
        ) from error
    return first, last


def _to_timestamp(series: Series, bound: Any) -> Timestamp:
    if isinstance(series.start, int):
        return int(bound)
    timestamp = pd.Timestamp(bound)
    if pd.isna(timestamp):
        raise ValueError("a timestamp is missing")
    zone = series.start.tz
    if zone is None or timestamp.tz is not None:
        return timestamp if zone is None else timestamp.tz_convert(zone)
    return timestamp.tz_localize(zone)


class _Scores(NamedTuple):
    """The windows of one series: first step, number of selected and of other units that are on throughout."""

    starts: Int[np.ndarray, "window"]
    shared: Int[np.ndarray, "window"]
    extra: Int[np.ndarray, "window"]


def _switch_on(traces: Sequence[Sequence[StateTrace]], threshold: float) -> list[Bool[np.ndarray, "_ unit"]]:
    """Returns for each series which units are on at each step: high ones of all members, then low ones."""
    states: list[Float64[np.ndarray, "_ unit"]] = [
        np.concatenate([trace.hidden for trace in of_series], axis=1).astype(np.float64) for of_series in traces
    ]
    pooled = np.concatenate(states)
    mean, deviation = pooled.mean(axis=0), pooled.std(axis=0)
    deviation = np.where(deviation > 1e-6, deviation, np.inf)  # a constant unit is never on
    scores = [(values - mean) / deviation for values in states]
    return [np.concatenate([score >= threshold, score <= -threshold], axis=1) for score in scores]


def _find_steps(trace: StateTrace, start: Timestamp, end: Timestamp) -> Int[np.ndarray, "step"]:
    """Returns the steps of a trace within [start, end); raises InputError if there are none."""
    ds = trace.ds
    steps = np.flatnonzero((ds >= start) & (ds < end))
    if not len(steps):
        raise InputError(
            f"Expected a stretch with a step of the network in {trace.id!r}; {format_timestamp(start)} to "
            f"{format_timestamp(end)} has none. The network reads it from {format_timestamp(ds[0])} to "
            f"{format_timestamp(ds[-1])}, {trace.segment} time points in one step. Choose a stretch within it.",
            where="start",
        )
    return steps


def _score_windows(
    on: Bool[np.ndarray, "step unit"],
    windows: Int[np.ndarray, "step"],
    selected: Bool[np.ndarray, "unit"],
    *,
    length: int,
) -> _Scores:
    """Scores every stretch of this length that lies within one window of the network."""
    if len(on) < length:
        empty = np.empty(0, dtype=np.int64)
        return _Scores(empty, empty, empty)
    counts = np.concatenate([np.zeros((1, on.shape[1]), dtype=np.int64), np.cumsum(on, axis=0)])
    throughout = counts[length:] - counts[:-length] == length
    starts = np.flatnonzero(windows[length - 1 :] == windows[: len(windows) - length + 1])
    return _Scores(starts, throughout[starts][:, selected].sum(axis=1), throughout[starts][:, ~selected].sum(axis=1))


def _select_matches(
    traces: Sequence[StateTrace], scores: Sequence[_Scores], length: int, max_matches: int
) -> list[Match]:
    """Returns the best stretches that do not overlap; those that share no unit are no match."""
    shared = np.concatenate([score.shared for score in scores])
    extra = np.concatenate([score.extra for score in scores])
    starts = np.concatenate([score.starts for score in scores])
    owners = np.repeat(np.arange(len(scores)), [len(score.starts) for score in scores])
    ranked = np.sort(shared)
    taken: list[tuple[int, int]] = []
    matches: list[Match] = []
    for row in np.lexsort((extra, -shared)).tolist():
        if len(matches) == max_matches or shared[row] == 0:
            break
        owner, start = int(owners[row]), int(starts[row])
        if any(other == owner and abs(start - begin) < length for other, begin in taken):
            continue
        taken.append((owner, start))
        first, stop = _to_time_points(traces[owner], start, length)
        chance = 1 - np.searchsorted(ranked, shared[row]) / len(ranked)
        matches.append(Match(traces[owner].series, first, stop, int(shared[row]), int(extra[row]), float(chance)))
    return matches


def _to_time_points(trace: StateTrace, start: int, length: int) -> tuple[int, int]:
    """Returns the index of the first time point of some steps, and the index after the last one."""
    first = max(0, int(trace.indices[start]) - trace.segment + 1)
    return first, int(trace.indices[start + length - 1]) + 1
