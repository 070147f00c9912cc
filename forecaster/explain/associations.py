"""How closely units follow a signal, beside baselines of chance that respect autocorrelation: series, time and cycles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from forecaster.explain.signals import Clock
from forecaster.shapes import Complex, Float64, Int

MIN_STRETCHES = 8  # that the permutation of series exchanges; fewer series are cut into several
MIN_STRETCH_STEPS = 8
MIN_BLOCKS, MAX_BLOCKS = 5, 12  # of whole cycles, within which the clock is set to a random time
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
    windows: Sequence[Int[np.ndarray, "_"]],
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
        windows: Window of each step. Where there are several, the first cycle of each is left out: windows often begin at one
            phase of the season, so that the start from an empty state would look like the season.
        clock: The cycle.
        permutations: Number of random clocks.
        rng: Source of the random clocks.
    """
    units = states[0].shape[1]
    parts = [
        _compute_changes(_standardise(values), grid, numbers, clock.period)
        for values, grid, numbers in zip(states, positions, windows, strict=True)
    ]
    parts = [(changes, grid) for changes, grid in parts if len(grid)]
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


def _compute_changes(
    scores: Float64[np.ndarray, "step unit"],
    positions: Int[np.ndarray, "step"],
    windows: Int[np.ndarray, "step"],
    period: float,
) -> tuple[Float64[np.ndarray, "kept unit"], Int[np.ndarray, "kept"]]:
    """Returns the changes of states without their average over a cycle, within each window, and the positions of these."""
    numbers = np.unique(windows)
    head = int(np.ceil(period)) if len(numbers) > 1 else 0
    parts = [
        _subtract_cycle_mean(scores[rows][head:], positions[rows][head:], period)
        for rows in windows == numbers[:, None]
    ]
    changes = [np.diff(values, axis=0) for values, _ in parts]
    return np.concatenate(changes), np.concatenate([grid[1:] for _, grid in parts])


def _subtract_cycle_mean(
    scores: Float64[np.ndarray, "step unit"], positions: Int[np.ndarray, "step"], period: float
) -> tuple[Float64[np.ndarray, "kept unit"], Int[np.ndarray, "kept"]]:
    """Returns states without their centred moving average over a cycle, and the positions of the steps kept.

    The average of an even period gives half a weight to both ends. Half a cycle is lost at both ends of the series.
    """
    steps = max(2, round(period))
    weights = np.ones(steps) / steps if steps % 2 else np.convolve(np.ones(steps), [0.5, 0.5]) / steps
    half = len(weights) // 2
    if len(scores) <= 2 * half:
        return np.empty((0, scores.shape[1])), np.empty(0, dtype=np.int64)
    padded = np.concatenate([np.zeros((1, scores.shape[1])), np.cumsum(scores, axis=0)])
    total = padded[len(weights) :] - padded[: -len(weights)]
    if steps % 2 == 0:
        total = total - (scores[: len(total)] + scores[len(weights) - 1 :]) / 2
    return scores[half:-half] - total / steps, positions[half:-half]


def _chunks(count: int) -> Iterator[int]:
    while count > 0:
        yield min(_CHUNK, count)
        count -= _CHUNK
