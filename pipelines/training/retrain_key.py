"""The key of a retraining: two retrainings of the same data, specification, gate policy and code have the same key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import forecaster
from forecaster.frequency.timestamps import format_timestamp
from forecaster.series import Panel
from forecaster.spec import Spec
from pipelines.promotion.policy import Policy

RETRAIN_KEY_TAG = "retrain_key"  # of runs and versions, and among the facts of a bundle


def compute_retrain_key(panel: Panel, spec: Spec, policy: Policy, *, test_windows: int, warm_start: bool) -> str:
    """Returns the sha256 over everything that determines the verdict of a retraining, except the champion.

    The champion is left out so that a recorded verdict stays valid when another version is promoted later. Known future
    covariates are part of the key up to the end of the data only: later values are not trained on.
    """
    parts = {
        "cutoff": format_timestamp(panel.cutoff),
        "data": _drop_known_future(panel).digest,
        "drop_partial": panel.dropped_partial is not None,
        "code": compute_code_version(),
        "spec": spec.model_dump(mode="json"),
        "policy": policy.model_dump(mode="json"),
        "test_windows": test_windows,
        "warm": warm_start,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _drop_known_future(panel: Panel) -> Panel:
    """Returns the panel without the covariates after its data; the panel itself, whose digest is known, if there are none."""
    if all(len(values) == len(series) for series in panel.series for values in series.covariates.values()):
        return panel
    series_to_cutoff = [
        replace(series, covariates={name: values[: len(series)] for name, values in series.covariates.items()})
        for series in panel.series
    ]
    return replace(panel, series=series_to_cutoff)


@cache
def compute_code_version() -> str:
    """Returns the version number and a digest of the sources of forecaster and pipelines.

    The number alone does not identify the code, because it stays the same over many changes.
    """
    digest = hashlib.sha256()
    for name, content in _iter_sources(Path(forecaster.__file__).parent, Path(__file__).parents[1]):
        digest.update(f"\n{len(content)} {name}\n".encode() + content)
    return f"{forecaster.__version__}+{digest.hexdigest()[:16]}"


def _iter_sources(*packages: Path) -> Iterator[tuple[str, bytes]]:
    for package in packages:
        for path in sorted(package.rglob("*.py")):
            yield path.relative_to(package.parent).as_posix(), path.read_bytes()
