"""Retraining: one plain function that reads like the life of a model, fit to be called from cron."""

from __future__ import annotations

from collections.abc import Sequence
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
from pipelines.train import Candidate, Trained, train


class Retrained(NamedTuple):
    """A training, the version it became, and the gate's verdict."""

    trained: Trained
    version: Version
    verdict: Verdict
    champion: Forecaster | None  # who answers users now: this one, if it was promoted
    report: Path  # the page of the verdict


def retrain(
    data: Data,
    spec: Spec,
    root: Root,
    *,
    warm: bool = False,
    test_windows: int = 1,
    policy: Policy | None = None,
    trigger: str = "cli",
    tried: Sequence[Candidate] = (),
    progress: bool = False,
) -> Retrained:
    """Reads, splits, fits, backtests against champion and seasonal naive, registers, and promotes only what is better.

    A warm start begins with the champion's weights, if there is a champion.
    """
    if test_windows < 1:
        raise InputError("Retraining needs a test window to judge by; found none. Ask for --test-windows 1 or more.")
    policy, registry = policy or Policy(), Registry(root.store)
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
        tried=tried,
        progress=progress,
    )
    assert trained.result is not None
    version = register(trained.bundle, root, run_id=trained.run_id)
    registry.set_alias(version, CHALLENGER)
    result = with_quantiles(trained.result, {CHALLENGER: trained.forecaster}, levels=LEVELS)
    point("judge.before")
    verdict = judge(result, policy, gather(trained.bundle, result, base=champion))
    point("judge.decided")
    report = record(version, verdict, result, root, policy=policy)
    point("judge.recorded")
    if verdict.promote:
        log = AuditLog(root.audit)
        registry.promote(version, base=base, record=log.promoted(version, "; ".join(verdict.reasons)))
        champion = trained.forecaster
    return Retrained(trained, version, verdict, champion, report)
