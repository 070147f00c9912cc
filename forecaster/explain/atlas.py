"""The atlas of states: which reference signal each unit follows, beside a permutation baseline that respects autocorrelation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.explain.signals import (
    Clock,
    align_steps,
    compute_series_signals,
    list_clocks,
    select_series_signals,
)
from forecaster.explain.states import StateTrace, UnitName, list_units
from forecaster.shapes import Bool, Complex, Float64, Int

MIN_STRETCHES = 8  # that the permutation of series exchanges; fewer series are cut into several
MIN_STRETCH_STEPS = 8
MIN_BLOCKS, MAX_BLOCKS = 5, 12  # of whole cycles, within which the clock is set to a random time
RATE = 0.05  # probability that anything at all is reported by chance (family-wise error rate)
PERMUTATIONS = 4999
_CHUNK = 256  # permutations at once


class Association(NamedTuple):
    """How closely the units follow one signal, and how closely they would by chance.

    Attributes:
        signal: Name of the signal.
        share: Share of the variance of each unit within the series that the signal explains: with one coefficient for all series,
            or, of a cycle, with the phase of each series.
        sign: Sign of the coefficient; 0 for a cycle, which has several.
        chance: 95 % quantile of the share in the baseline; NaN if the data allow no baseline.
        p: Share of the baseline with at least this share of variance; NaN if the data allow no baseline.
        p_signal: p, corrected over all units: the share of the baseline in which any unit reaches as large a score (the
            single-step maxT of Westfall and Young 1993). The score is Fisher's z of the root of the share, over its root mean
            square in the baseline of the unit.
    """

    signal: str
    share: Float64[np.ndarray, "unit"]
    sign: Float64[np.ndarray, "unit"]
    chance: Float64[np.ndarray, "unit"]
    p: Float64[np.ndarray, "unit"]
    p_signal: Float64[np.ndarray, "unit"]


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
    yield associate_time(states, [trace.windows for trace in traces], permutations=permutations, rng=rng)
    positions = [steps // traces[0].segment for steps in align_steps(traces)]
    for clock in clocks:
        yield associate_clock(states, positions, clock, permutations=permutations, rng=rng)


def associate_series(
    states: Sequence[Float64[np.ndarray, "_ unit"]],
    signals: Sequence[Mapping[str, Float64[np.ndarray, "_"]]],
    names: Sequence[str],
    *,
    permutations: int,
    rng: np.random.Generator,
) -> Iterator[Association]:
    """Yields the associations with signals of the series, and the baseline that exchanges series (or stretches of them).

    The share is the square of the correlation within a stretch, averaged over stretches with its sign.
    """
    pieces = _cut_stretches(states, [np.stack([item[name] for name in names], axis=1) for item in signals])
    count, units = len(pieces), states[0].shape[1]
    if count < MIN_STRETCHES:
        empty = np.full(units, np.nan)
        yield from (Association(name, *[empty] * 5) for name in names)
        return
    state_scores = np.stack([_standardise(piece[0]) for piece in pieces])
    signal_scores = np.stack([_standardise(piece[1]) for piece in pieces])
    correlations = np.einsum("itu,jtc->cuij", state_scores, signal_scores, optimize=True) / state_scores.shape[1]
    for index, name in enumerate(names):
        by_pair = correlations[index].reshape(units, count * count)
        observed = by_pair[:, np.arange(count) * (count + 1)].mean(axis=1)
        null = []
        for size in _chunks(permutations):
            partners = rng.permuted(np.tile(np.arange(count), (size, 1)), axis=1)
            pairs = np.arange(count) * count + partners
            weights = np.zeros((size, count * count))
            np.put_along_axis(weights, pairs, 1 / count, axis=1)
            null.append(np.square(weights @ by_pair.T))
        yield _compare(name, np.square(observed), np.sign(observed), np.concatenate(null))


def associate_time(
    states: Sequence[Float64[np.ndarray, "_ unit"]],
    windows: Sequence[Int[np.ndarray, "_"]],
    *,
    permutations: int,
    rng: np.random.Generator,
) -> Association:
    """Returns the association with the steps since the network began to read, and the baseline that flips signs.

    The series must be independent of each other: a trend that all of them share follows time as well.
    """
    correlations = []
    for values, numbers in zip(states, windows, strict=True):
        parts = [values[numbers == number] for number in np.unique(numbers)]
        scores = [
            (_standardise(part) * _standardise(np.arange(len(part), dtype=np.float64)[:, None])).mean(axis=0)
            for part in parts
        ]
        correlations.append(np.mean(scores, axis=0))
    by_series = np.stack(correlations)
    observed = by_series.mean(axis=0)
    if len(by_series) < MIN_STRETCHES:
        missing = np.full(len(observed), np.nan)
        return Association("time", np.square(observed), np.sign(observed), missing, missing, missing)
    signs = rng.choice([-1.0, 1.0], size=(permutations, len(by_series)))
    return _compare("time", np.square(observed), np.sign(observed), np.square(signs @ by_series / len(by_series)))


def associate_clock(
    states: Sequence[Float64[np.ndarray, "_ unit"]],
    positions: Sequence[Int[np.ndarray, "_"]],
    clock: Clock,
    *,
    permutations: int,
    rng: np.random.Generator,
) -> Association:
    """Returns the association with the first harmonics of a cycle, and the baseline of a clock set to random times.

    Each series has amplitude and phase of its own; what counts is that they agree over the years. The share is estimated from
    pairs of blocks that are not neighbours, so that noise adds nothing to it and a slow state does not agree with itself. A
    moving average over one cycle is subtracted from the states first, so that a trend within a cycle is not taken for one. The
    harmonics are those of the differences from step to step, integrated again, since slow states leak into all frequencies.

    Args:
        states: States of the units in each series.
        positions: Position of each step on the grid of all series.
        clock: The cycle.
        permutations: Number of random clocks.
        rng: Source of the random clocks.
    """
    units = states[0].shape[1]
    parts = [_subtract_cycle_mean(values, grid, clock.period) for values, grid in zip(states, positions, strict=True)]
    parts = [(np.diff(values, axis=0), grid[1:]) for values, grid in parts if len(grid) > 1]
    cycles = int(np.median([len(grid) / clock.period for _, grid in parts])) if parts else 0
    if cycles < MIN_BLOCKS:
        return Association(clock.name, *[np.full(units, np.nan)] * 5)
    blocks = [(grid / clock.period // max(1.0, cycles / MAX_BLOCKS)).astype(np.int64) for _, grid in parts]
    numbers, pairs = _list_block_pairs(blocks)
    offsets = rng.integers(0, max(2, round(clock.period)), size=(permutations, len(numbers)))
    observed, null = np.zeros(units), np.zeros((permutations, units))
    for order in clock.orders:
        angle = 2 * np.pi * order / clock.period
        weight = (2.0 if order < clock.period / 2 else 1.0) / len(parts)
        agreement = np.zeros((len(pairs), units), dtype=np.complex128)
        for (changes, grid), block in zip(parts, blocks, strict=True):
            waves = changes * (np.exp(-1j * angle * grid) / (1 - np.exp(-1j * angle)))[:, None]
            rows, partial = _sum_block_pairs(waves, np.searchsorted(numbers, block), pairs)
            agreement[rows] += weight * partial
        observed += agreement.real.sum(axis=0)
        for start in range(0, permutations, _CHUNK):
            turns = angle * (
                offsets[start : start + _CHUNK, pairs[:, 0]] - offsets[start : start + _CHUNK, pairs[:, 1]]
            )
            null[start : start + _CHUNK] += np.cos(turns) @ agreement.real - np.sin(turns) @ agreement.imag
    return _compare(clock.name, np.maximum(observed, 0.0), np.zeros(units), np.maximum(null, 0.0))


def _list_block_pairs(
    blocks: Sequence[Int[np.ndarray, "_"]],
) -> tuple[Int[np.ndarray, "block"], Int[np.ndarray, "pair 2"]]:
    """Returns the numbers of all blocks, and the pairs of their indices that are blocks of one series and no neighbours."""
    numbers = np.unique(np.concatenate(blocks))
    pairs = set()
    for block in blocks:
        own = np.searchsorted(numbers, np.unique(block))
        pairs |= {
            (left, right)
            for index, left in enumerate(own.tolist())
            for right in own[index + 1 :].tolist()
            if numbers[right] - numbers[left] > 1
        }
    return numbers, np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _sum_block_pairs(
    waves: Complex[np.ndarray, "step unit"], block: Int[np.ndarray, "step"], pairs: Int[np.ndarray, "pair 2"]
) -> tuple[Int[np.ndarray, "own"], Complex[np.ndarray, "own unit"]]:
    """Returns the pairs of blocks that one series has, and how far its waves agree in each, per pair of steps."""
    own, local = np.unique(block, return_inverse=True)
    counts = np.bincount(local)
    sums = np.zeros((len(own), waves.shape[1]), dtype=np.complex128)
    np.add.at(sums, local, waves)
    rows = np.flatnonzero(np.isin(pairs, own).all(axis=1))
    left, right = np.searchsorted(own, pairs[rows]).T
    total = (counts[left] * counts[right]).sum()
    return rows, sums[left] * sums[right].conj() / max(total, 1)


def _compare(
    signal: str,
    share: Float64[np.ndarray, "unit"],
    sign: Float64[np.ndarray, "unit"],
    null: Float64[np.ndarray, "permutation unit"],
) -> Association:
    """Completes an association with its baseline; the data themselves count as one permutation, so that p is never 0."""
    reached = share * (1 - 1e-9)
    p = (1 + (null >= reached).sum(axis=0)) / (1 + len(null))
    null_scores, scores = _fisher_scores(null), _fisher_scores(reached)
    spread = np.maximum(np.sqrt(np.square(null_scores).mean(axis=0)), 1e-9)
    largest = np.sort((null_scores / spread).max(axis=1))
    exceeding = len(null) - np.searchsorted(largest, scores / spread)
    return Association(signal, share, sign, np.quantile(null, 0.95, axis=0), p, (1 + exceeding) / (1 + len(null)))


def _fisher_scores(share: Float64[np.ndarray, "*permutation unit"]) -> Float64[np.ndarray, "*permutation unit"]:
    """Returns the z of a correlation (Fisher 1915), given its square."""
    scores: np.ndarray = np.arctanh(np.sqrt(np.clip(share, 0.0, 1 - 1e-12)))
    return scores


def _cut_stretches(
    states: Sequence[Float64[np.ndarray, "_ unit"]], signals: Sequence[Float64[np.ndarray, "_ signal"]]
) -> list[tuple[Float64[np.ndarray, "step unit"], Float64[np.ndarray, "step signal"]]]:
    """Cuts series into stretches of one length, without steps at which a signal is not defined.

    Each series is one stretch if there are enough, otherwise several. Series shorter than half of the median are left out.
    """
    defined = [~np.isnan(values).any(axis=1) for values in signals]
    pairs = [
        (states_of_series[mask], values[mask])
        for states_of_series, values, mask in zip(states, signals, defined, strict=True)
    ]
    typical = float(np.median([len(values) for values, _ in pairs]))
    pairs = [pair for pair in pairs if len(pair[0]) >= max(1.0, typical / 2)]
    if not pairs:
        return []
    per_series = -(-MIN_STRETCHES // len(pairs))
    length = min(len(values) for values, _ in pairs) // per_series
    if length < MIN_STRETCH_STEPS:
        return []
    return [
        (values[len(values) - back * length :][:length], targets[len(targets) - back * length :][:length])
        for values, targets in pairs
        for back in range(per_series, 0, -1)
    ]


def _standardise(values: Float64[np.ndarray, "step column"]) -> Float64[np.ndarray, "step column"]:
    """Returns the columns with mean 0 and variance 1; 0 for a constant one."""
    centred = values - values.mean(axis=0)
    deviation = np.sqrt(np.square(centred).mean(axis=0))
    is_constant = deviation <= 1e-6 * (np.abs(values).max(axis=0) + 1e-12)
    scores: np.ndarray = np.where(is_constant, 0.0, centred / np.where(is_constant, 1.0, deviation))
    return scores


def _subtract_cycle_mean(
    values: Float64[np.ndarray, "step unit"], positions: Int[np.ndarray, "step"], period: float
) -> tuple[Float64[np.ndarray, "kept unit"], Int[np.ndarray, "kept"]]:
    """Returns standardised states without their centred moving average over a cycle, and the positions of the steps kept.

    The average of an even period gives half a weight to both ends. Half a cycle is lost at both ends of the series.
    """
    steps = max(2, round(period))
    weights = np.ones(steps) / steps if steps % 2 else np.convolve(np.ones(steps), [0.5, 0.5]) / steps
    half = len(weights) // 2
    if len(values) <= 2 * half:
        return np.empty((0, values.shape[1])), np.empty(0, dtype=np.int64)
    scores = _standardise(values)
    padded = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(scores, axis=0)])
    total = padded[len(weights) :] - padded[: -len(weights)]
    if steps % 2 == 0:
        total = total - (scores[: len(total)] + scores[len(weights) - 1 :]) / 2
    return scores[half:-half] - total / steps, positions[half:-half]


def _chunks(count: int) -> Iterator[int]:
    while count > 0:
        yield min(_CHUNK, count)
        count -= _CHUNK


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
            f"There are {num_series} series, so stretches of a series are exchanged instead of series: slow units and slow "
            "signals are reported too often. The time since the start is not tested."
        )
    if season > 1 and all(clock.name != "season" for clock in clocks):
        yield f"A step of the recurrence reads {segment} time points, so no state moves within a season of {season}."
    untested = sorted(set(table.loc[table["p"].isna(), "signal"]) - {"time"})
    if untested:
        yield f"The histories are too short to test: {', '.join(untested)}."
