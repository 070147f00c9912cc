"""A challenger that forecasts beside the champion, unseen by those who ask, and is judged on what came."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import InputError, NoSuchModel, RefusedByGate
from forecaster.evaluation.sequential_test import Standing, apart, standing
from forecaster.ledger.accuracy import pairs
from forecaster.ledger.records import Which
from forecaster.ledger.store import Ledger
from forecaster.registry.registry import CHALLENGER, Registry, Version
from pipelines.monitoring.monitor import open_ledger
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.promote import champion_of, recorded
from pipelines.settings import Root

_PROVEN = {"champion", "enough"}  # checks of the gate for which a trial on what came is the better proof
Word = Literal["better", "worse", "undecided"]


class Trial(NamedTuple):
    """What the ledger says of a challenger beside the champion.

    Attributes:
        champion: Who answers.
        challenger: Who answered beside it.
        standing: How far they are apart.
        forecasts: Forecasts of both, of the same series and origin, of which something came.
        word: What is proven.
        reasons: Why, in words.
    """

    champion: Version
    challenger: Version
    standing: Standing
    forecasts: int
    word: Word
    reasons: tuple[str, ...]


def judge_shadow(
    name: str, root: Root, *, url: str | None = None, alpha: float = 0.05, margin: float = 0.0, least: int = 3
) -> Trial:
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
    if not (0 < alpha < 1 and 0 <= margin < 1 and least >= 1):
        raise InputError(
            f"Expected 0 < alpha < 1, 0 <= margin < 1 and least >= 1; found {alpha}, {margin} and {least}. Correct them."
        )
    registry = Registry(root.store)
    challenger, champion = registry.resolve(name, CHALLENGER), champion_of(registry, name)
    if champion is None:
        raise NoSuchModel(f"Expected a champion of '{name}'; there is none. Promote one first.", where=name)
    if champion.digest == challenger.digest:
        raise InputError(
            f"Expected a challenger of '{name}' beside its champion; {challenger} is both. Register another.",
            where=name,
        )
    ledger = open_ledger(root, url)
    try:
        both = _side_by_side(ledger, champion, challenger)
    finally:
        ledger.close()
    found = _errors(both)
    told = standing(found["champion"].to_numpy(), found["challenger"].to_numpy(), margin=margin)
    word, reasons = _word(told, alpha=alpha, margin=margin, least=least)
    return Trial(champion, challenger, told, int(both.groupby(["key", "origin"]).ngroups), word, reasons)


def promote_shadow(trial: Trial, root: Root) -> Version:
    """Makes the challenger of a trial the champion.

    What came overrules what the gate found of its errors beside the champion's in a backtest, and nothing else that the gate
    found. Raises RefusedByGate unless it is better and nothing else speaks against it, BaseMoved for another champion.
    """
    version = trial.challenger
    if trial.word != "better":
        raise RefusedByGate(f"{version} is not promoted: {'; '.join(trial.reasons)}.", where=version.name)
    gate = recorded(version, root)
    against = (
        () if gate is None else [one for one in gate.verdict.checks if one.passed is False and one.name not in _PROVEN]
    )
    if against:
        raise RefusedByGate(
            f"{version} is better than the champion on what came, but the gate found other faults: "
            f"{'; '.join(one.reason for one in against)}. Train a better one, or promote it with --force.",
            where=version.name,
        )
    reason = f"in the shadow: {'; '.join(trial.reasons)}"
    Registry(root.store).promote(version, base=trial.champion, record=AuditLog(root.audit).promoted(version, reason))
    return version


def settled(name: str, root: Root) -> Version | None:
    """The challenger, where it is the champion already; a promotion that was cut short gets its line in the audit log now."""
    registry = Registry(root.store)
    version = registry.resolve(name, CHALLENGER)
    if champion_of(registry, name) != version:
        return None
    registry.promote(version, base=version, record=AuditLog(root.audit).promoted(version, "in the shadow; cut short"))
    return version


def _word(told: Standing, *, alpha: float, margin: float, least: int) -> tuple[Word, tuple[str, ...]]:
    share = "unknown" if math.isnan(told.gain) else f"{told.gain:+.2%}"
    seen = f"gain {share} over {told.observed} origins"
    bar = f"a capital of {1 / alpha:.3g} is asked for"
    if told.observed < least:
        return "undecided", (f"{told.observed} origins to compare, {least} are asked for",)
    if told.better >= 1 / alpha and told.gain > margin:
        return "better", (seen, f"bets on its being better made {told.better:.3g} of 1, {bar}")
    if told.worse >= 1 / alpha and told.gain < -margin:
        return "worse", (seen, f"bets on its being worse made {told.worse:.3g} of 1, {bar}")
    return "undecided", (seen, f"bets on better made {told.better:.3g} of 1, on worse {told.worse:.3g}; {bar}")


def _side_by_side(ledger: Ledger, champion: Version, challenger: Version) -> pd.DataFrame:
    """The steps that both foretold and of which the truth is known, with the scaled absolute error of each."""
    ours, theirs = (pd.concat([_EMPTY, *_scaled(ledger, version)]) for version in (challenger, champion))
    steps = ["key", "origin", "stamp"]
    return theirs.merge(ours[[*steps, "error"]], on=steps, suffixes=("_champion", "_challenger"))


_EMPTY = pd.DataFrame(
    {
        name: pd.Series(dtype=kind)
        for name, kind in {"key": "str", "origin": "int64", "ending": "int64", "stamp": "int64"}.items()
    }
    | {"error": pd.Series(dtype="float64")}
)


def _scaled(ledger: Ledger, version: Version) -> Iterator[pd.DataFrame]:
    for frame in pairs(ledger, Which(name=version.name, digest=version.digest)):
        error = (frame["mean"] - frame["actual"]).abs() / frame["scale"].where(frame["scale"] > 0)
        yield frame[["key", "origin", "ending", "stamp"]].assign(error=error).dropna()


def _errors(both: pd.DataFrame) -> pd.DataFrame:
    """By origin, the sums of both; only of origins that are a forecast apart, and whose last step's time has come."""
    origins = both.groupby("origin").agg(
        champion=("error_champion", "sum"), challenger=("error_challenger", "sum"), ending=("ending", "max")
    )
    ripe = origins[origins["ending"] <= both["stamp"].max()] if len(both) else origins
    return ripe.iloc[apart(ripe.index.to_numpy(np.int64), ripe["ending"].to_numpy(np.int64))]
