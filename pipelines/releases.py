"""Bundles on their way into the registry and back out of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from forecaster import artifact
from forecaster.errors import NoSuchModel, RefusedByGate
from forecaster.frequency import origin, regular
from forecaster.registry import CHALLENGER, CHAMPION, Registry, Version
from pipelines.promotion import SEASONAL_NAIVE
from pipelines.settings import Root


def register(bundle: Path, root: Root, *, run_id: str | None = None) -> Version:
    """Puts a bundle into the registry as a version of its spec's name; one that is there already is answered as it is."""
    forecaster, digest = artifact.load(bundle), artifact.digest(bundle)
    run = run_id or str(forecaster.facts["run_id"])
    steps = forecaster.spec.context
    stamps = regular(origin(forecaster.freq), freq=forecaster.freq, steps=steps + 2)
    example = pd.DataFrame({"unique_id": "example", "ds": stamps[:steps], "y": np.arange(1.0, steps + 1)})
    answer = pd.DataFrame({"unique_id": "example", "ds": stamps[steps:], "mean": [0.0, 0.0]})
    return Registry(root.store).register(
        bundle, name=forecaster.spec.name, digest=digest, run_id=run, input_example=example, output_example=answer
    )


def fetch(version: Version, root: Root) -> Path:
    """The folder of a registered bundle, copied from the registry the first time it is asked for."""
    folder = root.fetched / version.digest
    return folder if folder.exists() else Registry(root.store).fetch(version, folder)


def promote(name: str, root: Root, *, number: str | None, force: bool) -> Version:
    """Makes a version (None: the challenger) the champion.

    This is a person's word against the champion, so only the bundle's own backtest is asked: unless forced, it must not
    be worse than seasonal naive. `retrain` compares with the champion too.
    Raises NoSuchModel, RefusedByGate.
    """
    registry = Registry(root.store)
    version = registry.resolve(name, CHALLENGER) if number is None else registry.version(name, number)
    scores = artifact.load(fetch(version, root)).facts.get("backtest", {})
    if not force and not scores:
        raise RefusedByGate(
            f"{version} was never tested: it was trained on everything. Promote it with --force.", where=name
        )
    if not force and not _no_worse(scores[CHALLENGER], scores[SEASONAL_NAIVE]):
        raise RefusedByGate(
            f"{version} should not be worse than seasonal naive; it has {_said(scores[CHALLENGER])}, seasonal naive "
            f"{_said(scores[SEASONAL_NAIVE])}. Train a better one, or promote it with --force.",
            where=name,
        )
    registry.promote(version, base=champion_of(registry, name))
    return version


def champion_of(registry: Registry, name: str) -> Version | None:
    """The champion of a name, if there is one."""
    try:
        return registry.resolve(name, CHAMPION)
    except NoSuchModel:
        return None


def _no_worse(ours: Mapping[str, float | None], theirs: Mapping[str, float | None]) -> bool:
    """By MASE; where no series has a scale (constant ones have none), by absolute error; no score is no proof."""
    for measure in ("mase", "mae"):
        one, other = ours[measure], theirs[measure]
        if one is not None and other is not None:
            return one <= other
    return False


def _said(scores: Mapping[str, float | None]) -> str:
    return f"a MASE of {scores['mase']} and a mean absolute error of {scores['mae']}"
