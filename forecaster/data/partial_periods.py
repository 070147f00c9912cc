"""Incomplete last periods: a year with four months, today's half-day. They are found by the value and by the clock.

A total of an incomplete period looks like a collapse of the series, and a model that starts from it forecasts far too low
(`docs/data.md`, "Incomplete last periods"; figures in `benchmarks/results/partial_periods.md`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from forecaster.data.calendar import default_season, step_seconds
from forecaster.errors import BadSpec, NoData
from forecaster.frequency.clock import is_period_running
from forecaster.frequency.timestamps import Timestamp, format_timestamp, parse_frequency
from forecaster.series import Panel, Series
from forecaster.shapes import Float64

MAX_SHARE = 0.7  # a last value above this share of its reference is no drop
MIN_SCORE = 5.0  # robust standard deviations from the usual change of the series
MIN_EXCESS = 1.5  # the drop, relative to the largest earlier one
MIN_CHANGES = 6  # earlier changes that show what is usual
CHANCE = 0.01  # share of series that end with such a drop by chance; at most 0.5 % in each public panel
SIGNIFICANCE = 0.01  # of the number of such series at one timestamp
_MIN_SPREAD = 0.05  # of logarithms: changes of 5 % are usual in every series
_MAX_STEPS = 250  # at the end of a history that are compared
_DAY_SECONDS = 86_400.0
_MAX_LISTED_IDS = 5


class LastDrop(NamedTuple):
    """The fall of the last value of a series below its reference: the smaller of the value before it and the one a season before.

    Attributes:
        share: The last value relative to its reference.
        score: By how many robust standard deviations the fall differs from the usual change; infinite for a fall to zero.
    """

    share: float
    score: float


def find_last_drop(
    y: Float64[np.ndarray, "_"], season: int, *, min_score: float = MIN_SCORE, max_share: float = MAX_SHARE
) -> LastDrop | None:
    """Returns the fall of the last value if it is far beyond what the series has shown, else None.

    It is far beyond if it goes below `max_share` of the reference, exceeds MIN_EXCESS times the largest earlier fall, and
    differs from the usual change by `min_score` median absolute deviations (scaled to standard deviations). Changes are
    differences of logarithms, so that series with negative values have none. Most series are settled by their last value and
    its references. There is no finding if the last value or a reference is missing, or with fewer than MIN_CHANGES earlier
    changes.
    """
    length = len(y)
    has_season = season > 1 and length > season
    if length <= MIN_CHANGES + 1 or not 0 <= y[-1] <= max_share * y[-2] or y[-2] == 0:
        return None
    if has_season and (not y[-1] <= max_share * y[-1 - season] or y[-1 - season] == 0):
        return None
    values = y[-(_MAX_STEPS + season) :]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
        drops = logs[:-1] - logs[1:]
        if has_season:
            drops = np.minimum(drops[season - 1 :], logs[:-season] - logs[season:])
    last, usual = float(drops[-1]), drops[:-1]
    largest = float(np.fmax.reduce(usual, initial=0.0))  # infinite if a fall to zero is usual
    if not last >= MIN_EXCESS * largest or math.isinf(largest):
        return None
    usual, lowest = usual[np.isfinite(usual)], float(np.fmin.reduce(values[:-1]))
    if len(usual) < MIN_CHANGES or lowest < 0 or lowest == y[-1] == 0:
        return None
    center = _median(usual)
    spread = max(_MIN_SPREAD, 1.4826 * _median(np.abs(usual - center)))
    drop = LastDrop(math.exp(-last), (last - center) / spread)
    return drop if drop.score >= min_score else None


class EndClock:
    """Determines which series end in a period that contains the present; the series of a panel often end together."""

    def __init__(self, now: datetime) -> None:
        """Takes the present, with a time zone."""
        self._now, self._answers = now, dict[tuple[Any, ...], bool]()

    def is_end_running(self, series: Series) -> bool:
        """Whether the last period of a series contains the present (`is_period_running`)."""
        start = series.start
        kind = None if isinstance(start, int) else (start.tz, start.unit)  # of such datetimes, equal ones may differ
        key = (start, kind, series.freq, len(series.y))
        answer = self._answers.get(key)
        if answer is None:
            answer = self._answers[key] = is_period_running(series.end, series.freq, self._now)
        return answer


def is_last_period_running(series: Series, season: int, clock: EndClock) -> bool:
    """Whether the last value of a series may be one of a period that contains the present.

    A value below zero is no total. Steps below a day are often readings of a moment, which are complete at once: there, the value
    also has to be below the one before it and below the one a season before.
    """
    y = series.y
    if not len(y) or not y[-1] >= 0 or not clock.is_end_running(series):
        return False
    seconds = step_seconds(parse_frequency(series.freq))
    if seconds is None or seconds >= _DAY_SECONDS:
        return True
    return bool(len(y) > season and y[-1] < y[-2] and y[-1] < y[-1 - season])


class PartialPeriods(NamedTuple):
    """The series whose last period is incomplete, by the evidence for it.

    Attributes:
        by_clock: Indices of series whose last period contains the present.
        by_drop: Indices of other series, whose last value has fallen as it never did before, together with others.
    """

    by_clock: tuple[int, ...] = ()
    by_drop: tuple[int, ...] = ()


def find_partial_periods(
    panel: Panel, *, now: datetime | None = None, season: int | None = None, min_score: float = MIN_SCORE
) -> PartialPeriods:
    """Finds the series of a panel whose last period is incomplete.

    The falls at one timestamp count if they are so many that chance does not explain them: with CHANCE for each series, their
    number has a probability of at most SIGNIFICANCE, divided by the number of timestamps at which series end. If more than half
    of the series that end there have fallen so, the period is incomplete in all of them.

    Args:
        panel: The data.
        now: The present, with a time zone; None does not use the clock.
        season: Steps of a season; by default the usual one of the frequency.
        min_score: The score from which a fall counts.
    """
    season = default_season(panel.freq) if season is None else season
    clock = None if now is None else EndClock(now)
    by_clock = (
        [index for index, item in enumerate(panel.series) if is_last_period_running(item, season, clock)]
        if clock
        else []
    )
    running, ending = set(by_clock), defaultdict(list)
    for index, item in enumerate(panel.series):
        if index not in running and not np.isnan(item.y[-1]):
            ending[item.end].append(index)
    by_drop: list[int] = []
    limit = (1 + 1e-9) * SIGNIFICANCE / max(1, len(ending))
    for indices in ending.values():
        fallen = [
            index for index in indices if find_last_drop(panel.series[index].y, season, min_score=min_score) is not None
        ]
        if fallen and _binomial_tail(len(fallen), len(indices), CHANCE) <= limit:
            by_drop += indices if 2 * len(fallen) > len(indices) else fallen
    return PartialPeriods(tuple(by_clock), tuple(sorted(by_drop)))


def describe_partial_periods(panel: Panel, partial: PartialPeriods) -> list[str]:
    """Describes incomplete last periods with the ids of their series, one message for each kind of evidence."""
    evidence = {
        "contains the present": partial.by_clock,
        "looks incomplete (the last value has fallen as never before in these series, and in more of them than by chance)": (
            partial.by_drop
        ),
    }
    return [
        f"the last period of {len(indices)} of {len(panel.series)} series {text}: {_format_series(panel, indices)}"
        for text, indices in evidence.items()
        if indices
    ]


def drop_partial_periods(panel: Panel, partial: PartialPeriods) -> Panel:
    """Returns the panel with the values of incomplete last periods treated as missing, which its repairs report.

    The step remains, without `y` and channels. A series without any other observed value is left out. Raises NoData if nothing
    is left.
    """
    indices = sorted({*partial.by_clock, *partial.by_drop})
    dropped = {index: _drop_last_value(panel.series[index]) for index in indices}
    kept = [dropped.get(index, item) for index, item in enumerate(panel.series)]
    series = [item for item in kept if not np.isnan(item.y).all()]
    if not series:
        raise NoData(
            f"Expected values before the incomplete last period; each of the {len(kept)} series, such as {kept[0].id!r}, has no "
            "other value. Send longer histories, or keep the last values.",
            where=kept[0].id,
        )
    repairs = [
        *panel.repairs,
        *(
            f"{message}; its values were treated as missing, as requested"
            for message in describe_partial_periods(panel, partial)
        ),
    ]
    if len(series) < len(kept):
        repairs.append(f"{len(kept) - len(series)} series without any other observed value were excluded")
    ids = tuple(panel.series[index].id for index in indices)
    return replace(panel, series=series, repairs=tuple(repairs), dropped_partial=ids)


def refuse_symbols(panel: Panel) -> None:
    """Raises BadSpec for symbols, whose periods are not sums that grow until they end."""
    if panel.vocabulary:
        raise BadSpec(
            "Expected numbers where incomplete last periods are dropped; found symbols, which are complete when they are "
            "observed. Leave the option out.",
            where="drop_partial",
        )


def check_partial_periods(panel: Panel, *, now: datetime | None, drop: bool) -> tuple[Panel, list[str]]:
    """Returns the panel, and warnings about incomplete last periods.

    With `drop` their values are treated as missing: the panel reports them among its repairs, and there are no warnings.
    """
    if drop:
        refuse_symbols(panel)
    if panel.vocabulary:
        return panel, []
    partial = find_partial_periods(panel, now=now)
    if drop:
        return drop_partial_periods(panel, partial), []
    return panel, describe_partial_periods(panel, partial)


def describe_partial_end(series: Series, season: int, clock: EndClock | None) -> str | None:
    """Describes the incomplete last period of a single series, as a warning about its forecast; None if it looks complete."""
    drop = find_last_drop(series.y, season)
    is_running = clock is not None and is_last_period_running(series, season, clock)
    if drop is None and not is_running:
        return None
    reasons = [
        *(["its period contains the present"] if is_running else []),
        *([f"it is {drop.share:.0%} of the values before it, a fall as never before in this history"] if drop else []),
    ]
    return (
        f"The last value ({series.y[-1]:.6g} at {format_timestamp(series.end)}) may be of an incomplete period: "
        f"{' and '.join(reasons)}. If so, the forecast is too low; send the value as missing (null), or leave it out."
    )


def _drop_last_value(series: Series) -> Series:
    def mask(values: Float64[np.ndarray, "_"]) -> Float64[np.ndarray, "_"]:
        return np.append(values[:-1], np.nan)

    return replace(series, y=mask(series.y), channels={name: mask(values) for name, values in series.channels.items()})


def _format_series(panel: Panel, indices: Sequence[int]) -> str:
    """Formats ids with their last timestamps, at most _MAX_LISTED_IDS of them."""
    by_end: dict[Timestamp, list[str]] = defaultdict(list)
    for index in indices[:_MAX_LISTED_IDS]:
        by_end[panel.series[index].end].append(repr(panel.series[index].id))
    listed = "; ".join(f"{', '.join(ids)} at {format_timestamp(end)}" for end, ids in by_end.items())
    return f"{listed} and {len(indices) - _MAX_LISTED_IDS} more" if len(indices) > _MAX_LISTED_IDS else listed


def _median(values: Float64[np.ndarray, "_"]) -> float:
    """Returns the median; quicker than numpy's for short arrays."""
    ordered = np.sort(values)
    middle = len(ordered) // 2
    return float(ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2)


def _binomial_tail(successes: int, trials: int, probability: float) -> float:
    """Returns the probability of at least so many successes."""
    log_odds, log_term, below = math.log(probability / (1 - probability)), trials * math.log1p(-probability), 0.0
    for count in range(successes):
        below += math.exp(log_term)
        log_term += log_odds + math.log((trials - count) / (count + 1))
    return max(0.0, 1 - below)
