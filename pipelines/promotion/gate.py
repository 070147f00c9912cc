"""The promotion gate: a pure function of backtest errors, of evidence measured on the bundle, and of a policy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from forecaster.data.symbols import SYMBOL_BASELINES
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.baselines import NAIVE_BASELINES, SEASONAL_NAIVE, ZERO_SHOT, format_baseline
from forecaster.evaluation.bootstrap import PairedGain
from forecaster.evaluation.scores import interval_bounds, interval_levels
from forecaster.metrics import DECILES
from forecaster.registry.registry import CHALLENGER, CHAMPION
from forecaster.shapes import Bool, Float64
from pipelines.promotion.backtest_errors import (
    compute_error_floor,
    compute_errors,
    compute_group_gains,
    compute_interval_losses,
    compute_mean_error,
)
from pipelines.promotion.policy import Policy
from pipelines.promotion.verdict import Check, Evidence, GroupGain, Verdict
from pipelines.promotion.zero_shot import (
    ZeroShotComparison,
    compare_errors,
    compare_reported_zero_shot,
    compare_zero_shot,
)

NOMINAL_COVERAGE = 0.8  # nominal coverage of the intervals that are checked
GATE_LEVELS = DECILES
"""The quantile levels that the checks of intervals need; they include the bounds of the checked intervals."""


def judge(result: Backtest, policy: Policy | None = None, evidence: Evidence | None = None) -> Verdict:
    """Judges a challenger by its backtest; it is promoted if no check fails.

    The error is the mean over series of their scaled absolute errors (MASE) on the raw forecasts of the backtest. If no
    series has a scale (all are constant or too short), absolute errors are used. Raises CovariateUnknown if the
    column `policy.group_by` is unknown.
    """
    policy, evidence = policy or Policy(), evidence or Evidence()
    errors = {name: compute_errors(result, name) for name in result.forecasts}
    floor = compute_error_floor(result)
    has_champion = CHAMPION in result.forecasts
    is_comparable = has_champion and bool(np.isfinite(errors[CHALLENGER] - errors[CHAMPION]).any())
    floored = {name: np.maximum(model_errors, floor) for name, model_errors in errors.items()}
    gain = compare_errors(floored[CHALLENGER], floored[CHAMPION], result, policy) if is_comparable else None
    group_gains: tuple[GroupGain, ...] = ()
    if is_comparable:
        group_gains = tuple(compute_group_gains(result, errors, floor, policy))
    mean_errors = {name: compute_mean_error(model_errors) for name, model_errors in errors.items()}
    checks = (
        _check_finite(result.forecasts[CHALLENGER]),
        _check_enough_data(errors[CHALLENGER], errors[SEASONAL_NAIVE] > floor, gain, policy),
        *_check_baselines(mean_errors, policy),
        *_check_zero_shot(compare_zero_shot(floored[CHALLENGER], floored.get(ZERO_SHOT), result, policy), policy),
        _check_incomparable(evidence.champion_differences, policy)
        if has_champion and not is_comparable
        else _check_champion(mean_errors, gain, policy),
        _check_worst_group(group_gains, policy),
        _check_plausibility(mean_errors, policy, floor=floor, is_comparable=is_comparable),
        _check_coverage(result, policy),
        _check_intervals(result, floor, policy),
        *_check_evidence(evidence, policy),
    )
    return Verdict(checks, gain, group_gains)


def judge_reported_scores(
    scores: Mapping[str, Mapping[str, float | None]], policy: Policy, evidence: Evidence
) -> Verdict:
    """Judges a challenger by the scores in its bundle, for use when the raw errors are not available.

    MASE is compared; the mean absolute error (MAE) if no series has a scale (constant series have none); of symbols, the
    perplexity. The check of a
    naive baseline fails if neither score is available. Means do not show what is due to chance, so the error may exceed that of
    the pretrained network by half. Bundles of earlier versions have no scores of it, or of the last value, which are then not
    compared.

    Args:
        scores: By forecaster, then by metric.
        policy: Thresholds of the gate.
        evidence: Measurements of the bundle.
    """
    checks = tuple(
        _check_reported_baseline(name, scores[CHALLENGER], scores[name], policy)
        for name in (*NAIVE_BASELINES, *SYMBOL_BASELINES)
        if name in scores
    )
    if "mase" in scores[CHALLENGER]:
        zero_shot = compare_reported_zero_shot(scores[CHALLENGER], scores.get(ZERO_SHOT))
        checks += tuple(_check_zero_shot(zero_shot, policy))
    differences = evidence.champion_differences
    incomparable = (_check_incomparable(differences, policy),) if differences else ()
    return Verdict((*checks, *incomparable, *_check_evidence(evidence, policy)))


def _check_reported_baseline(
    name: str, scores: Mapping[str, float | None], baseline_scores: Mapping[str, float | None], policy: Policy
) -> Check:
    for metric, measure in (("MASE", "mase"), ("MAE", "mae"), ("perplexity", "perplexity")):
        error, baseline_error = scores.get(measure), baseline_scores.get(measure)
        if error is not None and baseline_error is not None:
            return _check_baseline(name, error, baseline_error, policy, metric=metric)
    reason = f"the bundle has no score to compare with that of {format_baseline(name)}"
    return Check(name, False, None, None, reason)


def _check_evidence(evidence: Evidence, policy: Policy) -> tuple[Check, ...]:
    return (
        _check_upper_bound(
            "exposure_gap",
            evidence.exposure_gap,
            policy.exposure_gap,
            "the ratio of free-running to one-step errors is",
        ),
        _check_upper_bound("size", evidence.megabytes, policy.megabytes, "the size of the bundle in megabytes is"),
        _check_upper_bound(
            "latency", evidence.latency_ms, policy.latency_ms, "the latency of one forecast in milliseconds is"
        ),
        _check_upper_bound(
            "graph",
            evidence.graph_difference,
            policy.parity,
            "the largest difference between ONNX graph and reference engine, as a share of the range, is",
        ),
        _check_upper_bound(
            "replay",
            evidence.replay_difference,
            policy.parity,
            "the largest difference between served forecasts and backtest, as a share of the range, is",
        ),
        _check_clock(evidence, policy),
        _check_freshness(evidence, policy),
    )


def _check_clock(evidence: Evidence, policy: Policy) -> Check:
    description = "the number of days by which the last step of its data begins after the present is"
    check = _check_upper_bound("clock", evidence.days_ahead, policy.days_ahead, description)
    advice = ". Correct the timestamps, or declare days_ahead in the policy if no clock made them"
    return check._replace(reason=check.reason + advice) if check.passed is False else check


def _check_freshness(evidence: Evidence, policy: Policy) -> Check:
    ahead = evidence.champion_days_ahead
    if ahead is not None and ahead > policy.days_ahead:
        reason = f"the champion's data end {ahead:.0f} days after the present: their timestamps are wrong, and are not compared"
        return Check("fresh", None, None, 0.0, reason)
    description = "the number of steps by which its data end before the champion's is"
    return _check_upper_bound("fresh", evidence.steps_behind, 0, description)


def _check_finite(forecasts: Float64[np.ndarray, "series window horizon"]) -> Check:
    count = int((~np.isfinite(forecasts)).sum())
    reason = f"{count} of {forecasts.size} values of the challenger's forecasts are missing or not finite"
    return Check("finite", count == 0, float(count), 0.0, reason)


def _check_enough_data(
    errors: Float64[np.ndarray, "series window"],
    naive_errs: Bool[np.ndarray, "series window"],
    gain: PairedGain | None,
    policy: Policy,
) -> Check:
    """Counts series and windows. Against a champion only those count in which seasonal naive errs: a feed that repeats itself,
    such as a dead sensor, proves nothing.
    """
    observed = np.isfinite(errors)
    if not observed.any():
        return Check("enough", False, 0.0, 1.0, "the backtest has no observed value")
    if gain is not None:
        observed &= naive_errs
    series, windows = int(observed.any(axis=1).sum()), int(observed.any(axis=0).sum())
    if gain is None:
        return Check("enough", True, float(observed.sum()), 1.0, f"{series} series in {windows} windows have errors")
    units = max(series, windows)
    reason = f"{series} series in {windows} windows can be compared"
    if not units:
        reason = (
            "seasonal naive makes no error in any series: the feed repeats itself, as a dead one does, and proves nothing. "
            "Check the source of the data"
        )
    elif units < policy.least:
        reason += f"; at least {policy.least} series or windows are needed. Use more --test-windows"
    return Check("enough", units >= policy.least, float(units), float(policy.least), reason)


def _check_baselines(mean_errors: Mapping[str, float], policy: Policy) -> Iterator[Check]:
    """Compares the challenger with every naive baseline of the backtest."""
    for name in NAIVE_BASELINES:
        if name in mean_errors:
            yield _check_baseline(name, mean_errors[CHALLENGER], mean_errors[name], policy)


def _check_baseline(name: str, error: float, baseline_error: float, policy: Policy, *, metric: str = "MASE") -> Check:
    bound = baseline_error * (1 + policy.naive_room)
    passed = error <= bound
    verb = "beats" if passed else "does not beat"
    reason = f"{metric} {error:.4f} {verb} {format_baseline(name)}'s {baseline_error:.4f}"
    return Check(name, passed, error, bound, reason)


def _check_zero_shot(comparison: ZeroShotComparison | None, policy: Policy) -> Iterator[Check]:
    """Judges the comparison with the pretrained network, if there is one."""
    if comparison is not None:
        passed, reason = comparison.judge(policy), comparison.describe(policy)
        yield Check(ZERO_SHOT, passed, comparison.excess, policy.naive_room, reason)


def _check_incomparable(differences: Sequence[str], policy: Policy) -> Check:
    """Fails, because a champion that cannot be measured on the data cannot be beaten on them."""
    why = "; ".join(differences) or "no window has forecasts of both and an observed value"
    advice = "Promote the new model with --force --reason WHY to replace the champion, or give it a name of its own"
    return Check(CHAMPION, False, None, policy.margin, f"not comparable with the champion: {why}. {advice}")


def _check_champion(mean_errors: dict[str, float], gain: PairedGain | None, policy: Policy) -> Check:
    if gain is None:
        return Check(CHAMPION, None, None, policy.margin, "there is no champion")
    better = gain.gain > 0 and gain.gain >= policy.margin and gain.p <= 1 - policy.confidence
    reason = (
        f"MASE {mean_errors[CHALLENGER]:.4f} against the champion's {mean_errors[CHAMPION]:.4f}, a gain of "
        f"{_format_percent(gain.gain)} (required: {_format_percent(policy.margin)} at {100 * policy.confidence:g} % confidence)"
    )
    if not math.isnan(gain.low):
        reason += (
            f"; lower confidence bound {_format_percent(gain.low)}, p = {gain.p:.2g} ({gain.resampled_units} resampled)"
        )
    return Check(CHAMPION, better, gain.gain, policy.margin, reason)


def _check_worst_group(group_gains: Sequence[GroupGain], policy: Policy) -> Check:
    if not group_gains:
        return Check("groups", None, None, policy.group_room, "there are no groups to compare")
    worst = min(group_gains, key=lambda group: group.gain)
    passed = -worst.gain <= policy.group_room
    direction = "better" if worst.gain >= 0 else "worse"
    reason = (
        f"the worst of {len(group_gains)} groups, {worst.name}, is {_format_percent(abs(worst.gain))} {direction} "
        f"(limit {_format_percent(policy.group_room)} worse)"
    )
    return Check("groups", passed, -worst.gain, policy.group_room, reason)


def _check_plausibility(mean_errors: dict[str, float], policy: Policy, *, floor: float, is_comparable: bool) -> Check:
    """Fails if an error is implausibly small: noise cannot be predicted, so the future must have leaked, or the feed is dead."""
    references = [
        mean_errors[name] for name in (SEASONAL_NAIVE, CHAMPION) if math.isfinite(mean_errors.get(name, math.nan))
    ]
    best = min(references, default=math.nan)
    error, bound = mean_errors[CHALLENGER], policy.implausible * best
    if not best > floor:
        reason = "the better of seasonal naive and champion makes no error"
        advice = ", as on a dead feed. Check the source of the data" if is_comparable else ""
        return Check("plausible", not is_comparable, error, bound, reason + advice)
    passed = not error < bound
    reason = f"its error is {_format_percent(error / best)} of that of the better of seasonal naive and champion"
    hint = "" if passed else f" (limit {_format_percent(policy.implausible)}). Check the data for a leak of the future"
    return Check("plausible", passed, error, bound, reason + hint)


def _check_coverage(result: Backtest, policy: Policy) -> Check:
    bounds = result.quantiles.get(CHALLENGER)
    if bounds is None or not set(interval_levels(NOMINAL_COVERAGE)) <= set(result.levels):
        reason = "the challenger has no calibrated intervals"
        return Check("coverage", False if policy.intervals else None, None, policy.coverage_room, reason)
    low, high = interval_bounds(result, CHALLENGER, share=NOMINAL_COVERAGE)
    observed = np.isfinite(result.actual) & np.isfinite(low) & np.isfinite(high)
    if not observed.any():
        return Check("coverage", False, None, policy.coverage_room, "there is no observed value with an interval")
    share = float(((low <= result.actual) & (result.actual <= high))[observed].mean())
    # The steps of a window miss their intervals together, so windows are counted. Two standard errors are allowed for chance.
    chance = 2 * math.sqrt(NOMINAL_COVERAGE * (1 - NOMINAL_COVERAGE) / int(observed.any(axis=2).sum()))
    tolerance = policy.coverage_room + chance
    reason = (
        f"{_format_percent(share)} of the actuals lie within the {_format_percent(NOMINAL_COVERAGE)} intervals "
        f"(tolerance {_format_percent(tolerance)})"
    )
    return Check("coverage", abs(share - NOMINAL_COVERAGE) <= tolerance, share, tolerance, reason)


def _check_intervals(result: Backtest, floor: float, policy: Policy) -> Check:
    """Fails if the quantile loss is worse than the champion's by more than the policy allows, and chance does not explain it."""

    def not_applicable(reason: str) -> Check:
        return Check("intervals", None, None, policy.interval_room, reason)

    if CHAMPION not in result.forecasts:
        return not_applicable("there is no champion")
    without = [name for name in (CHALLENGER, CHAMPION) if name not in result.quantiles]
    if without or not set(GATE_LEVELS) <= set(result.levels):
        return not_applicable(f"no quantiles of the {' and the '.join(without or (CHALLENGER, CHAMPION))} to compare")
    loss, champion_loss = (np.maximum(compute_interval_losses(result, name), floor) for name in (CHALLENGER, CHAMPION))
    gain = compare_errors(loss, champion_loss, result, policy)
    if math.isnan(gain.low):
        return not_applicable("too few series and windows have quantiles of both to compare")
    # The upper confidence bound of the gain is as far above it as the lower one is below.
    proved_loss = gain.low - 2 * gain.gain
    reason = (
        f"the weighted quantile loss is {_format_percent(abs(gain.gain))} {'better' if gain.gain >= 0 else 'worse'} than the "
        f"champion's ({_format_percent(max(proved_loss, 0))} worse at least, at {100 * policy.confidence:g} % confidence; "
        f"limit {_format_percent(policy.interval_room)})"
    )
    return Check("intervals", proved_loss <= policy.interval_room, proved_loss, policy.interval_room, reason)


def _check_upper_bound(name: str, value: float | None, bound: float, description: str) -> Check:
    if value is None or math.isnan(value):
        return Check(name, None, None, bound, "not measured")
    return Check(name, value <= bound, float(value), bound, f"{description} {value:.4g} (limit {bound:g})")


def _format_percent(share: float) -> str:
    return f"{100 * share:.1f} %"
