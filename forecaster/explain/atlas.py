"""The atlas of states: which reference signal each unit follows, beside a permutation baseline that respects autocorrelation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from forecaster.explain.associations import (
    MIN_STRETCHES,
    Association,
    associate_clock,
    associate_series,
    associate_time,
)
from forecaster.explain.signals import (
    Clock,
    align_steps,
    compute_series_signals,
    list_clocks,
    select_series_signals,
)
from forecaster.explain.states import StateTrace, UnitName, list_units
from forecaster.shapes import Bool

RATE = 0.05  # probability that anything at all is reported by chance (family-wise error rate)
PERMUTATIONS = 4999


@dataclass(frozen=True, eq=False)
class Atlas:
    """What the units of a model follow.

    Attributes:
        table: One row per member, unit and signal: `member, layer, unit, signal, share, sign, chance, p, p_adjusted, follows`.
            `p_adjusted` corrects p over all units, signals and members. `follows` is True for the signal with the largest share
            among those whose `p_adjusted` is at most the rate.
        num_series: Number of series.
        rate: Probability that anything at all is reported by chance.
        notes: What limits the reading.
    """

    table: pd.DataFrame
    num_series: int
    rate: float
    notes: tuple[str, ...] = ()

    def count_followers(self) -> dict[str, int]:
        """Returns the number of units that follow each signal more closely than any other, the most frequent first."""
        followed = self.table.loc[self.table["follows"], "signal"].value_counts()
        return {str(name): int(count) for name, count in followed.items()}

    def count_significant(self) -> dict[str, int]:
        """Returns the number of units with an association beyond chance, by signal."""
        significant = self.table["p_adjusted"] <= self.rate
        return {
            str(name): int(count) for name, count in significant.groupby(self.table["signal"], sort=False).sum().items()
        }

    @property
    def num_units(self) -> int:
        """Number of units over all members."""
        return len(self.table[["member", "layer", "unit"]].drop_duplicates())


def build_atlas(
    traces: Sequence[StateTrace], *, season: int, rate: float = RATE, permutations: int = PERMUTATIONS, seed: int = 0
) -> Atlas:
    """Measures what each unit follows over several series, against baselines of chance.

    The baseline of value, level, trend, volatility, zeros and gaps exchanges the series: the states of each series are paired
    with the signals of another one, so that both keep their autocorrelation and their trends. With fewer than 8 series each is
    cut into stretches, which are exchanged. The baseline of a cycle sets the clock to a random time, in each of 5 to 13 blocks
    of whole cycles, and to the same time for all series, so that what the series have in common counts once. The baseline of the
    time since the start flips the sign of the association at random in each series. Decision 48 has the reasons.

    Args:
        traces: Traces of all members for several series of one frequency.
        season: Steps of a season.
        rate: Probability that anything at all is reported by chance.
        permutations: Number of permutations of each baseline. Fewer than signals times members over the rate find nothing.
        seed: Seed of the permutations.
    """
    members = sorted({trace.member for trace in traces})
    by_member = {member: [trace for trace in traces if trace.member == member] for member in members}
    first = by_member[members[0]]
    clocks = list_clocks(first[0].series, season=season, segment=first[0].segment)
    tables = []
    for member, member_traces in by_member.items():
        rng = np.random.default_rng([seed, member])
        units = list_units(member_traces[0])
        associations = list(_associate(member_traces, clocks, season=season, permutations=permutations, rng=rng))
        tables += [_to_table(association, units, member) for association in associations]
    table = pd.concat(tables, ignore_index=True)
    num_families = table.loc[table["p"].notna(), ["member", "signal"]].drop_duplicates().shape[0]
    table["p_adjusted"] = (table.pop("p_signal") * num_families).clip(upper=1.0)  # Bonferroni over signals and members
    table["follows"] = _find_leading(table, rate)
    return Atlas(table, len(first), rate, tuple(_describe_limits(table, clocks, len(first), season, first[0].segment)))


def _associate(
    traces: Sequence[StateTrace], clocks: Sequence[Clock], *, season: int, permutations: int, rng: np.random.Generator
) -> Iterator[Association]:
    signals = [compute_series_signals(trace, season=season) for trace in traces]
    states = [trace.hidden.astype(np.float64) for trace in traces]
    yield from associate_series(states, signals, select_series_signals(signals), permutations=permutations, rng=rng)
    windows = [trace.windows for trace in traces]
    yield associate_time(states, windows, permutations=permutations, rng=rng)
    positions = [steps // traces[0].segment for steps in align_steps(traces)]
    for clock in clocks:
        yield associate_clock(states, positions, windows, clock, permutations=permutations, rng=rng)


def _to_table(association: Association, units: Sequence[UnitName], member: int) -> pd.DataFrame:
    columns = {"member": member, "layer": [unit.layer for unit in units], "unit": [unit.unit for unit in units]}
    return pd.DataFrame(columns | association._asdict())


def _find_leading(table: pd.DataFrame, rate: float) -> Bool[np.ndarray, "row"]:
    """Returns where a signal has the largest share among the significant ones of its unit."""
    significant = table["share"].where(table["p_adjusted"] <= rate, -1.0)
    largest = significant.groupby([table["member"], table["layer"], table["unit"]]).transform("max")
    return ((significant == largest) & (significant >= 0)).to_numpy()


def _describe_limits(
    table: pd.DataFrame, clocks: Sequence[Clock], num_series: int, season: int, segment: int
) -> Iterator[str]:
    if num_series < MIN_STRETCHES:
        yield (
            f"The data have {num_series} series only, so stretches of a series are exchanged instead of series: slow units and "
            "slow signals are reported too often. The time since the start is not tested."
        )
    if season > 1 and all(clock.name != "season" for clock in clocks):
        yield f"A step of the recurrence reads {segment} time points, so no state moves within a season of {season}."
    untested = sorted(set(table.loc[table["p"].isna(), "signal"]) - {"time"})
    if untested:
        yield f"The histories are too short to test: {', '.join(untested)}."
