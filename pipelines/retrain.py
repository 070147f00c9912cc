"""Retraining: one plain function that reads like the life of a model, fit to be called from cron."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from forecaster import artifact
from forecaster.errors import InputError
from forecaster.evaluation.calibration import with_quantiles
from forecaster.failpoints import point
from forecaster.predict import Forecaster, Predictor
from forecaster.registry import CHALLENGER, CHAMPION, Registry, Version
from forecaster.spec import Spec
from pipelines.audit import AuditLog
from pipelines.evidence import gather
from pipelines.policy import Policy
from pipelines.promotion import LEVELS, Verdict, judge
from pipelines.releases import champion_of, fetch, record, register
from pipelines.settings import Root
from pipelines.sources import Data
from pipelines.train import Trained, train


class Retrained(NamedTuple):
    """A training, the version it became, and the gate's verdict."""

    trained: Trained
    version: Version
    verdict: Verdict
    champion: Forecaster | None  # who answers users now: this one, if it was promoted
    report: Path  # the page of the verdict


class Trial(NamedTuple):
    """A version that is to be judged, and against whom."""

    trained: Trained
    version: Version
    base: Version | None  # the champion that its backtest asked
    champion: Forecaster | None


def retrain(
    data: Data,
    spec: Spec,
    root: Root,
    *,
    warm: bool = False,
    test_windows: int = 1,
    policy: Policy | None = None,
    trigger: str = "cli",
    progress: bool = False,
) -> Retrained:
    """Reads, splits, fits, backtests against champion and seasonal naive, registers, and promotes only what is better.

    A warm start begins with the champion's weights, if there is a champion. Each time anew: `retrain_once` asks whether it has
    been done.
    """
    check_windows(test_windows)
    registry = Registry(root.store)
    base = champion_of(registry, spec.name)
    champion = None if base is None else artifact.load(fetch(base, root))
    rivals = {} if champion is None else {CHAMPION: Predictor(champion)}
    trained = train(
        data,
        spec,
        root,
        initial=champion if warm else None,
        rivals=rivals,
        test_windows=test_windows,
        trigger=trigger,
        progress=progress,
    )
    version = register(trained.bundle, root, run_id=trained.run_id)
    return decide(Trial(trained, version, base, champion), root, policy or Policy())


def check_windows(test_windows: int) -> None:
    """Refuses a retraining that could not be judged."""
    if test_windows < 1:
        raise InputError("Retraining needs a test window to judge by; found none. Ask for --test-windows 1 or more.")


def decide(trial: Trial, root: Root, policy: Policy) -> Retrained:
    """Judges a version, records the verdict, and promotes it if no check speaks against it."""
    trained, version, base, champion = trial
    assert trained.result is not None
    Registry(root.store).set_alias(version, CHALLENGER)
    result = with_quantiles(trained.result, {CHALLENGER: trained.forecaster}, levels=LEVELS)
    point("judge.before")
    verdict = judge(result, policy, gather(trained.bundle, result, base=champion))
    point("judge.decided")
    report = record(version, verdict, result, root, policy=policy, against=base)
    point("judge.recorded")
    if verdict.promote:
        promote(version, verdict, root, base=base)
        champion = trained.forecaster
    return Retrained(trained, version, verdict, champion, report)


def promote(version: Version, verdict: Verdict, root: Root, *, base: Version | None) -> None:
    """Makes a version the champion for what its verdict says; repeated after a kill, it is completed."""
    log = AuditLog(root.audit)
    Registry(root.store).promote(version, base=base, record=log.promoted(version, "; ".join(verdict.reasons)))
