"""The shadow test: compares a challenger that forecasts in parallel with the champion, on late actuals in the ledger."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import InputError, NoSuchModel, RefusedByGate
from forecaster.evaluation.sequential_test import SequentialTestResult, select_non_overlapping, sequential_test
from forecaster.ledger.accuracy import forecast_actual_pairs
from forecaster.ledger.records import ForecastFilter
from forecaster.ledger.store import Ledger
from forecaster.registry.registry import CHALLENGER, BundleVersion, Registry
from pipelines.monitoring.monitor import open_ledger
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.promote import find_champion, load_verdict
from pipelines.settings import Root

_OVERRULED_CHECKS = {"champion", "enough"}  # checks of the gate that a shadow test on late actuals overrules
ShadowOutcome = Literal["better", "worse", "undecided"]


class ShadowComparison(NamedTuple):
    """The result of a shadow test.

    Attributes:
        champion: The version that serves users.
        challenger: The version that forecast in the shadow.
        test_result: Result of the sequential test.
        n_forecasts: Number of pairs of forecasts of both versions, for the same series and origin, that have actuals.
        outcome: Whether the challenger is proved better, proved worse, or neither.
        reasons: The reasons of the outcome.
    """

    champion: BundleVersion
    challenger: BundleVersion
    test_result: SequentialTestResult
    n_forecasts: int
    outcome: ShadowOutcome
    reasons: tuple[str, ...]


def judge_shadow(
    name: str, root: Root, *, url: str | None = None, alpha: float = 0.05, margin: float = 0.0, min_origins: int = 3
) -> ShadowComparison:
    """Compares challenger and champion on their forecasts in a service's ledger, with a sequential test.

    The test may be repeated at any time. Only origins that are at least one forecast apart and whose last step has passed are
    used. Each gives one number, the relative gain in the sum of the scaled absolute errors over the series and steps for which
    both versions have a forecast and an actual.

    Args:
        name: Name of the registered model.
        root: Folder of all state; the ledger of its service is read by default.
        url: Address of another ledger.
        alpha: Probability that a challenger that is not better is called better, however often the test is repeated.
        margin: Smallest relative gain that counts as better.
        min_origins: Number of origins below which the outcome is undecided.
    Raises:
        NoSuchModel: There is no challenger or no champion.
        InputError: Both are the same version, or an argument is out of range.
        LedgerError: The ledger cannot be read.
    """
    if not (0 < alpha < 1 and 0 <= margin < 1 and min_origins >= 1):
        raise InputError(
            f"Expected 0 < alpha < 1, 0 <= margin < 1 and least >= 1; found {alpha}, {margin} and {min_origins}. Correct them."
        )
    registry = Registry(root.store_uri)
    challenger, champion = registry.resolve(name, CHALLENGER), find_champion(registry, name)
    if champion is None:
        raise NoSuchModel(f"Expected a champion of '{name}'; there is none. Promote a version first.", where=name)
    if champion.digest == challenger.digest:
        raise InputError(
            f"Expected a challenger of '{name}' that is not its champion; {challenger} is both. Register another version.",
            where=name,
        )
    ledger = open_ledger(root, url)
    try:
        joined_errors = _join_errors(ledger, champion, challenger)
    finally:
        ledger.close()
    sums = _sum_errors_by_origin(joined_errors)
    test_result = sequential_test(sums["champion"].to_numpy(), sums["challenger"].to_numpy(), margin=margin)
    outcome, reasons = _decide_outcome(test_result, alpha=alpha, margin=margin, min_origins=min_origins)
    n_forecasts = int(joined_errors.groupby(["key", "origin"]).ngroups)
    return ShadowComparison(champion, challenger, test_result, n_forecasts, outcome, reasons)


def promote_shadow(comparison: ShadowComparison, root: Root) -> BundleVersion:
    """Makes the challenger of a shadow test the champion.

    The outcome overrules the gate's comparison of backtest errors with the champion's, and no other check of the gate. Raises
    RefusedByGate if the challenger is not proved better or another check of the gate failed, BaseMoved if the champion has
    changed since the test.
    """
    version = comparison.challenger
    if comparison.outcome != "better":
        raise RefusedByGate(
            f"{version} should be proved better than the champion; {'; '.join(comparison.reasons)}. Repeat the test when "
            "the ledger has more forecasts and actuals.",
            where=version.name,
        )
    stored_verdict = load_verdict(version, root)
    failed_checks = (
        ()
        if stored_verdict is None
        else [
            check
            for check in stored_verdict.verdict.checks
            if check.passed is False and check.name not in _OVERRULED_CHECKS
        ]
    )
    if failed_checks:
        raise RefusedByGate(
            f"{version} should have passed the other checks of the gate; it is better than the champion on late actuals, but "
            f"these checks failed: {'; '.join(check.reason for check in failed_checks)}. Train a better model, or promote this "
            "version with --force.",
            where=version.name,
        )
    reason = f"shadow test: {'; '.join(comparison.reasons)}"
    registry = Registry(root.store_uri)
    registry.promote(
        version,
        expected_champion=comparison.champion,
        on_promoted=AuditLog(root.audit_log, registry).make_promotion_recorder(version, reason),
    )
    return version


def complete_promotion(name: str, root: Root) -> BundleVersion | None:
    """Returns the challenger if it is already the champion, and adds the audit log line if its promotion was interrupted."""
    registry = Registry(root.store_uri)
    version = registry.resolve(name, CHALLENGER)
    if find_champion(registry, name) != version:
        return None
    registry.promote(
        version,
        expected_champion=version,
        on_promoted=AuditLog(root.audit_log, registry).make_promotion_recorder(
            version, "shadow test; completed after an interruption"
        ),
    )
    return version


def _decide_outcome(
    test_result: SequentialTestResult, *, alpha: float, margin: float, min_origins: int
) -> tuple[ShadowOutcome, tuple[str, ...]]:
    share = "unknown" if math.isnan(test_result.gain) else f"{test_result.gain:+.2%}"
    gain = f"gain {share} over {test_result.observed} origins"
    requirement = f"at least {1 / alpha:.3g} is required"
    if test_result.observed < min_origins:
        return "undecided", (f"{test_result.observed} origins can be compared; at least {min_origins} are required",)
    if test_result.better >= 1 / alpha and test_result.gain > margin:
        return "better", (gain, f"the wealth of the bets on better reached {test_result.better:.3g}; {requirement}")
    if test_result.worse >= 1 / alpha and test_result.gain < -margin:
        return "worse", (gain, f"the wealth of the bets on worse reached {test_result.worse:.3g}; {requirement}")
    return "undecided", (
        gain,
        f"the wealth of the bets on better reached {test_result.better:.3g}, on worse {test_result.worse:.3g}; {requirement}",
    )


def _join_errors(ledger: Ledger, champion: BundleVersion, challenger: BundleVersion) -> pd.DataFrame:
    """Joins the scaled absolute errors of both versions, on the steps that both forecast and that have an actual."""
    challenger_errors, champion_errors = (
        pd.concat([_NO_ERRORS, *_iter_scaled_errors(ledger, version)]) for version in (challenger, champion)
    )
    steps = ["key", "origin", "stamp"]
    return champion_errors.merge(challenger_errors[[*steps, "error"]], on=steps, suffixes=("_champion", "_challenger"))


_NO_ERRORS = pd.DataFrame(
    {
        name: pd.Series(dtype=kind)
        for name, kind in {"key": "str", "origin": "int64", "ending": "int64", "stamp": "int64"}.items()
    }
    | {"error": pd.Series(dtype="float64")}
)


def _iter_scaled_errors(ledger: Ledger, version: BundleVersion) -> Iterator[pd.DataFrame]:
    for frame in forecast_actual_pairs(ledger, ForecastFilter(name=version.name, digest=version.digest)):
        error = (frame["mean"] - frame["actual"]).abs() / frame["scale"].where(frame["scale"] > 0)
        yield frame[["key", "origin", "ending", "stamp"]].assign(error=error).dropna()


def _sum_errors_by_origin(joined_errors: pd.DataFrame) -> pd.DataFrame:
    """Sums the errors of both versions by origin, for non-overlapping origins whose last step has passed."""
    origins = joined_errors.groupby("origin").agg(
        champion=("error_champion", "sum"), challenger=("error_challenger", "sum"), ending=("ending", "max")
    )
    completed = origins[origins["ending"] <= joined_errors["stamp"].max()] if len(joined_errors) else origins
    return completed.iloc[
        select_non_overlapping(completed.index.to_numpy(np.int64), completed["ending"].to_numpy(np.int64))
    ]
