"""A challenger that forecasts beside the champion, unseen by those who ask, and is judged on what came."""

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

_OVERRULED_CHECKS = {"champion", "enough"}  # checks of the gate for which a trial on what came is the better proof
ShadowOutcome = Literal["better", "worse", "undecided"]


class ShadowComparison(NamedTuple):
    """What the ledger says of a challenger beside the champion.

    Attributes:
        champion: Who answers.
        challenger: Who answered beside it.
        standing: How far they are apart.
        forecasts: Forecasts of both, of the same series and origin, of which something came.
        word: What is proven.
        reasons: Why, in words.
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
    """Compares challenger and champion on the forecasts of both that a service's ledger has, with a test that may be asked daily.

    Origins are taken a forecast apart, and only when their last step's time has come. Each gives one number, the relative gain
    in the sum of all scaled absolute errors (of series and steps that are known of both).

    Args:
        name: The registered model.
        root: Where state lives; the ledger in its slot is read, if no other is named.
        url: The address of another ledger.
        alpha: The chance of calling a challenger better that is not, however often it is asked.
        margin: The least relative gain that counts as better.
        least: Origins before anything is said.
    Raises:
        NoSuchModel: there is no challenger, or no champion.
        InputError: both are the same version, or a bound makes no sense.
        LedgerError: the ledger cannot be read.
    """
    if not (0 < alpha < 1 and 0 <= margin < 1 and min_origins >= 1):
        raise InputError(
            f"Expected 0 < alpha < 1, 0 <= margin < 1 and least >= 1; found {alpha}, {margin} and {min_origins}. Correct them."
        )
    registry = Registry(root.store_uri)
    challenger, champion = registry.resolve(name, CHALLENGER), find_champion(registry, name)
    if champion is None:
        raise NoSuchModel(f"Expected a champion of '{name}'; there is none. Promote one first.", where=name)
    if champion.digest == challenger.digest:
        raise InputError(
            f"Expected a challenger of '{name}' beside its champion; {challenger} is both. Register another.",
            where=name,
        )
    ledger = open_ledger(root, url)
    try:
        both = _join_errors(ledger, champion, challenger)
    finally:
        ledger.close()
    found = _sum_errors_by_origin(both)
    told = sequential_test(found["champion"].to_numpy(), found["challenger"].to_numpy(), margin=margin)
    word, reasons = _decide_outcome(told, alpha=alpha, margin=margin, min_origins=min_origins)
    return ShadowComparison(champion, challenger, told, int(both.groupby(["key", "origin"]).ngroups), word, reasons)


def promote_shadow(comparison: ShadowComparison, root: Root) -> BundleVersion:
    """Makes the challenger of a trial the champion.

    What came overrules what the gate found of its errors beside the champion's in a backtest, and nothing else that the gate
    found. Raises RefusedByGate unless it is better and nothing else speaks against it, BaseMoved for another champion.
    """
    version = comparison.challenger
    if comparison.outcome != "better":
        raise RefusedByGate(f"{version} is not promoted: {'; '.join(comparison.reasons)}.", where=version.name)
    gate = load_verdict(version, root)
    against = (
        ()
        if gate is None
        else [one for one in gate.verdict.checks if one.passed is False and one.name not in _OVERRULED_CHECKS]
    )
    if against:
        raise RefusedByGate(
            f"{version} is better than the champion on what came, but the gate found other faults: "
            f"{'; '.join(one.reason for one in against)}. Train a better one, or promote it with --force.",
            where=version.name,
        )
    reason = f"in the shadow: {'; '.join(comparison.reasons)}"
    Registry(root.store_uri).promote(
        version,
        expected_champion=comparison.champion,
        on_promoted=AuditLog(root.audit_log).make_promotion_recorder(version, reason),
    )
    return version


def complete_promotion(name: str, root: Root) -> BundleVersion | None:
    """The challenger, where it is the champion already; a promotion that was cut short gets its line in the audit log now."""
    registry = Registry(root.store_uri)
    version = registry.resolve(name, CHALLENGER)
    if find_champion(registry, name) != version:
        return None
    registry.promote(
        version,
        expected_champion=version,
        on_promoted=AuditLog(root.audit_log).make_promotion_recorder(version, "in the shadow; cut short"),
    )
    return version


def _decide_outcome(
    test_result: SequentialTestResult, *, alpha: float, margin: float, min_origins: int
) -> tuple[ShadowOutcome, tuple[str, ...]]:
    share = "unknown" if math.isnan(test_result.gain) else f"{test_result.gain:+.2%}"
    seen = f"gain {share} over {test_result.observed} origins"
    bar = f"a capital of {1 / alpha:.3g} is asked for"
    if test_result.observed < min_origins:
        return "undecided", (f"{test_result.observed} origins to compare, {min_origins} are asked for",)
    if test_result.better >= 1 / alpha and test_result.gain > margin:
        return "better", (seen, f"bets on its being better made {test_result.better:.3g} of 1, {bar}")
    if test_result.worse >= 1 / alpha and test_result.gain < -margin:
        return "worse", (seen, f"bets on its being worse made {test_result.worse:.3g} of 1, {bar}")
    return "undecided", (
        seen,
        f"bets on better made {test_result.better:.3g} of 1, on worse {test_result.worse:.3g}; {bar}",
    )


def _join_errors(ledger: Ledger, champion: BundleVersion, challenger: BundleVersion) -> pd.DataFrame:
    """The steps that both foretold and of which the truth is known, with the scaled absolute error of each."""
    ours, theirs = (
        pd.concat([_NO_ERRORS, *_iter_scaled_errors(ledger, version)]) for version in (challenger, champion)
    )
    steps = ["key", "origin", "stamp"]
    return theirs.merge(ours[[*steps, "error"]], on=steps, suffixes=("_champion", "_challenger"))


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
    """By origin, the sums of both; only of origins that are a forecast apart, and whose last step's time has come."""
    origins = joined_errors.groupby("origin").agg(
        champion=("error_champion", "sum"), challenger=("error_challenger", "sum"), ending=("ending", "max")
    )
    ripe = origins[origins["ending"] <= joined_errors["stamp"].max()] if len(joined_errors) else origins
    return ripe.iloc[select_non_overlapping(ripe.index.to_numpy(np.int64), ripe["ending"].to_numpy(np.int64))]
