"""Retraining: one plain function that reads like the life of a model, fit to be called from cron."""

from __future__ import annotations

from typing import NamedTuple

from forecaster import artifact
from forecaster.errors import InputError
from forecaster.predict import Forecaster, Predictor
from forecaster.registry import CHALLENGER, CHAMPION, Registry, Version
from forecaster.spec import Spec
from pipelines.promotion import Verdict, judge
from pipelines.releases import champion_of, fetch, register
from pipelines.settings import Root
from pipelines.sources import Data
from pipelines.train import Trained, train


class Retrained(NamedTuple):
    """A training, the version it became, and the gate's verdict."""

    trained: Trained
    version: Version
    verdict: Verdict
    champion: Forecaster | None  # who answers users now: this one, if it was promoted


def retrain(
    data: Data,
    spec: Spec,
    root: Root,
    *,
    warm: bool = False,
    test_windows: int = 1,
    trigger: str = "cli",
    progress: bool = False,
) -> Retrained:
    """Reads, splits, fits, backtests against champion and seasonal naive, registers, and promotes only what is better.

    A warm start begins with the champion's weights, if there is a champion.
    """
    if test_windows < 1:
        raise InputError("Retraining needs a test window to judge by; found none. Ask for --test-windows 1 or more.")
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
    assert trained.result is not None
    version = register(trained.bundle, root, run_id=trained.run_id)
    registry.set_alias(version, CHALLENGER)
    verdict = judge(trained.result)
    if verdict.promote:
        registry.promote(version, base=base)
        champion = trained.forecaster
    return Retrained(trained, version, verdict, champion)
