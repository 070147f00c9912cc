"""The gate: a pure decision on raw errors of the same cutoffs, on what was measured of the bundle, and on a policy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from forecaster.evaluation import baselines
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.bootstrap import PairedGain, choose_block_length, compute_paired_gain
from forecaster.evaluation.scores import group_series
from forecaster.metrics import nanmean
from forecaster.registry.registry import CHALLENGER, CHAMPION
from forecaster.shapes import Float64
from pipelines.promotion.policy import Policy

SEASONAL_NAIVE = baselines.SEASONAL_NAIVE
NOMINAL_COVERAGE = 0.8  # the share that is to lie within the intervals that are judged
GATE_LEVELS = tuple(round((1 + side * NOMINAL_COVERAGE) / 2, 6) for side in (-1, 1))


class Evidence(NamedTuple):
    """What was measured of a challenger besides its backtest; None was not measured.

    Attributes:
        megabytes: Size of the bundle, 10^6 bytes.
        latency_ms: Median of some single forecasts, as a server makes them.
        graph: The largest difference between graph and reference, as a share of the series' range.
        replay: The largest difference between the backtest and answers to histories cut at the same cutoffs, likewise.
        exposure_gap: Free-running over one-step errors.
        behind: Steps by which its data end before those of the champion.
    """

    megabytes: float | None = None
    latency_ms: float | None = None
    graph_difference: float | None = None
    replay_difference: float | None = None
    exposure_gap: float | None = None
    steps_behind: int | None = None


class Check(NamedTuple):
    """One check: its number, the bound, and what they say; one that does not apply neither passes nor fails."""

    name: str
    passed: bool | None
    value: float | None
    bound: float | None
    reason: str


class GroupGain(NamedTuple):
    """How much better or worse a group of series became."""

    name: str
    series: int
    gain: float


class Verdict(NamedTuple):
    """Whether to promote, every check, and what the pictures of a report are drawn from."""

    checks: tuple[Check, ...]
    gain: PairedGain | None = None
    groups: tuple[GroupGain, ...] = ()

    @property
    def should_promote(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    @property
    def failed_checks(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.passed is False)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why not, or, where nothing speaks against it, what the rivals came to."""
        told = [check for check in self.checks if check.passed is False]
        told = told or [check for check in self.checks if check.name in (SEASONAL_NAIVE, CHAMPION)]
        return tuple(check.reason for check in told)

    def __str__(self) -> str:
        return f"{'promote' if self.should_promote else 'keep what there is'}: {'; '.join(self.reasons)}"


def judge(result: Backtest, policy: Policy | None = None, evidence: Evidence | None = None) -> Verdict:
    """Promotes a challenger against which no check speaks.

    The measure is the mean over series of their scaled absolute errors (MASE) on the backtest's raw forecasts; where no
    series has a scale (all constant or too short), plain absolute errors. Raises CovariateUnknown for `policy.group_by`.
    """
    policy, evidence = policy or Policy(), evidence or Evidence()
    rival = CHAMPION in result.forecasts and bool(np.isfinite(result.forecasts[CHAMPION]).any())
    errors = {name: _compute_errors(result, name) for name in result.forecasts}
    windows = result.actual.shape[1]
    gain = None
    if rival:
        block = choose_block_length(windows=windows, horizon=result.horizon, stride=result.stride)
        gain = compute_paired_gain(
            errors[CHALLENGER],
            errors[CHAMPION],
            block_length=block,
            min_units=policy.least,
            confidence=policy.confidence,
            seed=policy.seed,
        )
    parted = tuple(_compute_group_gains(result, errors[CHALLENGER], errors[CHAMPION], policy)) if rival else ()
    mean = {name: _compute_mean_error(found) for name, found in errors.items()}
    checks = (
        _check_finite(result.forecasts[CHALLENGER]),
        _check_enough_data(errors[CHALLENGER], gain, policy),
        _check_seasonal_naive(mean[CHALLENGER], mean[SEASONAL_NAIVE], policy),
        _check_champion(mean, gain, policy, has_champion=CHAMPION in result.forecasts),
        _check_worst_group(parted, policy),
        _check_plausibility(mean, policy),
        _check_coverage(result, policy),
        *_check_evidence(evidence, policy),
    )
    return Verdict(checks, gain, parted)


def judge_reported_scores(
    challenger_scores: Mapping[str, float | None],
    naive_scores: Mapping[str, float | None],
    policy: Policy,
    evidence: Evidence,
) -> Verdict:
    """Judges by what a bundle says of its own test, where the raw errors are not at hand: `ours` and `naive_scores` are scores.

    By MASE; where no series has a scale (constant ones have none), by absolute error; no score is no proof.
    """
    pairs = (
        (name, challenger_scores[measure], naive_scores[measure])
        for name, measure in (("MASE", "mase"), ("MAE", "mae"))
    )
    known = next(((name, one, other) for name, one, other in pairs if one is not None and other is not None), None)
    rival = (
        Check(SEASONAL_NAIVE, False, None, None, "it has no score beside seasonal naive's")
        if known is None
        else _check_seasonal_naive(known[1], known[2], policy, metric=known[0])
    )
    return Verdict((rival, *_check_evidence(evidence, policy)))


def _check_evidence(evidence: Evidence, policy: Policy) -> tuple[Check, ...]:
    return (
        _check_upper_bound(
            "exposure_gap", evidence.exposure_gap, policy.exposure_gap, "free-running over one-step errors are"
        ),
        _check_upper_bound("size", evidence.megabytes, policy.megabytes, "megabytes of the bundle are"),
        _check_upper_bound("latency", evidence.latency_ms, policy.latency_ms, "milliseconds of one forecast are"),
        _check_upper_bound(
            "graph",
            evidence.graph_difference,
            policy.parity,
            "differences between graph and reference, over the range, are",
        ),
        _check_upper_bound(
            "replay",
            evidence.replay_difference,
            policy.parity,
            "differences between served and tested, over the range, are",
        ),
        _check_upper_bound("fresh", evidence.steps_behind, 0, "steps that its data end before the champion's are"),
    )


def _compute_errors(result: Backtest, name: str) -> Float64[np.ndarray, "series window"]:
    """The mean error of each series in each window that every forecaster answered."""
    scaled = result.scaled_errors(name)
    if not np.isfinite(scaled).any():
        keep = result.comparable_mask()[:, :, None]
        scaled = np.where(keep, np.abs(result.actual - result.forecasts[name]), np.nan)
    return nanmean(scaled, axis=2)


def _compute_mean_error(errors: Float64[np.ndarray, "series window"]) -> float:
    return float(nanmean(nanmean(errors, axis=1)))


def _check_finite(forecasts: Float64[np.ndarray, "series window horizon"]) -> Check:
    odd = int((~np.isfinite(forecasts)).sum())
    said = "are missing or not finite" if odd else "are not finite: all answered"
    return Check("finite", odd == 0, float(odd), 0.0, f"{odd} of {forecasts.size} values of the challenger {said}")


def _check_enough_data(errors: Float64[np.ndarray, "series window"], gain: PairedGain | None, policy: Policy) -> Check:
    there = np.isfinite(errors)
    series, windows = int(there.any(axis=1).sum()), int(there.any(axis=0).sum())
    if not there.any():
        return Check("enough", False, 0.0, 1.0, "the backtest has no observed value to judge by")
    if gain is None:
        return Check("enough", True, float(there.sum()), 1.0, f"{series} series in {windows} windows were measured")
    most = max(series, windows)
    told = f"{series} series in {windows} windows can be compared"
    if most < policy.least:
        told += f", and {policy.least} of either are needed: ask for more --test-windows"
    return Check("enough", most >= policy.least, float(most), float(policy.least), told)


def _check_seasonal_naive(
    challenger_error: float, naive_error: float, policy: Policy, *, metric: str = "MASE"
) -> Check:
    bound = naive_error * (1 + policy.naive_room)
    good = challenger_error <= bound
    return Check(
        SEASONAL_NAIVE,
        good,
        challenger_error,
        bound,
        _describe_comparison(challenger_error, naive_error, "seasonal naive", good, metric=metric),
    )


def _check_champion(
    mean_errors: dict[str, float], gain: PairedGain | None, policy: Policy, *, has_champion: bool
) -> Check:
    if gain is None:
        told = "the champion answers none of these series" if has_champion else "there is no champion"
        return Check(CHAMPION, None, None, policy.margin, told)
    better = gain.gain > 0 and gain.gain >= policy.margin and gain.p <= 1 - policy.confidence
    told = _describe_comparison(mean_errors[CHALLENGER], mean_errors[CHAMPION], "the champion", better)
    told += f", a gain of {_format_percent(gain.gain)} where {_format_percent(policy.margin)} are asked for"
    if not math.isnan(gain.low):
        told += f", surely above {_format_percent(gain.low)} (p {gain.p:.2g}; {gain.resampled_units} redrawn)"
    return Check(CHAMPION, better, gain.gain, policy.margin, told)


def _describe_comparison(
    challenger_error: float, reference_error: float, reference_name: str, passed: bool, *, metric: str = "MASE"
) -> str:
    return f"{metric} {challenger_error:.4f} {'beats' if passed else 'does not beat'} {reference_name}'s {reference_error:.4f}"


def _compute_group_gains(
    result: Backtest,
    challenger_errors: Float64[np.ndarray, "series window"],
    champion_errors: Float64[np.ndarray, "series window"],
    policy: Policy,
) -> Iterator[GroupGain]:
    """Every group that is large enough, by the policy's column, by all that there are, or by quarters of scale."""
    shared = set.intersection(*(set(one.static) for one in result.series)) if result.series else set()
    columns = [policy.group_by] if policy.group_by else sorted(shared)
    parts = [
        (f"{column} {name}", codes == code) for column in columns for name, code, codes in _iter_groups(result, column)
    ]
    if not columns and len(challenger_errors) >= 4:
        rank = np.argsort(np.argsort(np.nan_to_num(result.scale), kind="stable"), kind="stable")
        parts = [
            (f"quarter {number} of 4 by scale", rank * 4 // len(challenger_errors) == number - 1)
            for number in (1, 2, 3, 4)
        ]
    for name, chosen in parts:
        found, other = challenger_errors[chosen], champion_errors[chosen]
        size = int(np.isfinite(found).any(axis=1).sum())
        if size >= policy.group_least:
            mine, its = _compute_mean_error(found), _compute_mean_error(other)
            worse = -math.inf if mine > 0 else 0.0
            yield GroupGain(name, size, 1 - mine / its if its > 0 else worse)


def _iter_groups(result: Backtest, column: str) -> Iterator[tuple[str, int, np.ndarray]]:
    names, codes = group_series(result.series, column)
    yield from ((name, code, codes) for code, name in enumerate(names))


def _check_worst_group(group_gains: Sequence[GroupGain], policy: Policy) -> Check:
    if not group_gains:
        return Check("groups", None, None, policy.group_room, "there are no groups to compare")
    worst = min(group_gains, key=lambda one: one.gain)
    good = -worst.gain <= policy.group_room
    word = "better" if worst.gain >= 0 else "worse"
    told = f"of {len(group_gains)} groups the last, {worst.name}, is {_format_percent(abs(worst.gain))} {word}"
    return Check(
        "groups", good, -worst.gain, policy.group_room, f"{told}; {_format_percent(policy.group_room)} worse may be"
    )


def _check_plausibility(mean_errors: dict[str, float], policy: Policy) -> Check:
    """Nobody foretells noise: who nearly does has seen it."""
    rivals = [
        mean_errors[name] for name in (SEASONAL_NAIVE, CHAMPION) if math.isfinite(mean_errors.get(name, math.nan))
    ]
    best = min(rivals, default=math.nan)
    ours, bound = mean_errors[CHALLENGER], policy.implausible * best
    good = not ours < bound
    told = (
        f"its error is {_format_percent(ours / best)} of the best rival's"
        if best > 0
        else "the best rival makes no error"
    )
    return Check("plausible", good, ours, bound, told if good else f"{told}: has it seen what it was to foretell?")


def _check_coverage(result: Backtest, policy: Policy) -> Check:
    bounds = result.quantiles.get(CHALLENGER)
    if bounds is None or not set(GATE_LEVELS) <= set(result.levels):
        told = "it has no calibrated intervals"
        return Check("coverage", False if policy.intervals else None, None, policy.coverage_room, told)
    levels = list(result.levels)
    low, high = (bounds[..., levels.index(level)] for level in GATE_LEVELS)
    there = np.isfinite(result.actual) & np.isfinite(low) & np.isfinite(high)
    if not there.any():
        return Check("coverage", False, None, policy.coverage_room, "its intervals hold no number that was observed")
    share = float(((low <= result.actual) & (result.actual <= high))[there].mean())
    # Steps of one window are missed together, so windows are counted; two standard errors are chance's.
    chance = 2 * math.sqrt(NOMINAL_COVERAGE * (1 - NOMINAL_COVERAGE) / int(there.any(axis=2).sum()))
    room = policy.coverage_room + chance
    told = f"{_format_percent(share)} lie within the {_format_percent(NOMINAL_COVERAGE)} intervals; {_format_percent(room)} more or less may be"
    return Check("coverage", abs(share - NOMINAL_COVERAGE) <= room, share, room, told)


def _check_upper_bound(name: str, value: float | None, bound: float, description: str) -> Check:
    if value is None or math.isnan(value):
        return Check(name, None, None, bound, "not measured")
    return Check(name, value <= bound, float(value), bound, f"{description} {value:.4g}; {bound:g} may be")


def _format_percent(share: float) -> str:
    return f"{100 * share:.1f} %"
