"""What makes two retrainings the same: their data, their specification, their gate and the code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import forecaster
from forecaster.frequency import format_timestamp
from forecaster.series import Panel
from forecaster.spec import Spec
from pipelines.promotion.policy import Policy

RETRAIN_KEY_TAG = "retrain_key"  # of runs and versions, and among a bundle's facts


def compute_retrain_key(panel: Panel, spec: Spec, policy: Policy, *, test_windows: int, warm_start: bool) -> str:
    """sha256 over all that a retraining's verdict comes from, but for the champion: who is told of a verdict once need not
    hear another because somebody was promoted since.

    Covariates that are known ahead are of the key as far as the data go: what is known further ahead is not trained on.
    """
    known = [
        replace(one, covariates={name: values[: len(one)] for name, values in one.covariates.items()})
        for one in panel.series
    ]
    parts = {
        "cutoff": format_timestamp(panel.cutoff),
        "data": panel._replace(series=known).digest(),
        "code": compute_code_version(),
        "spec": spec.model_dump(mode="json"),
        "policy": policy.model_dump(mode="json"),
        "test_windows": test_windows,
        "warm": warm_start,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def compute_code_version() -> str:
    """The version's number, and a digest of the sources of forecaster and pipelines: a number alone outlives many changes."""
    total = hashlib.sha256()
    for name, content in _iter_sources(Path(forecaster.__file__).parent, Path(__file__).parents[1]):
        total.update(f"\n{len(content)} {name}\n".encode() + content)
    return f"{forecaster.__version__}+{total.hexdigest()[:16]}"


def _iter_sources(*packages: Path) -> Iterator[tuple[str, bytes]]:
    for package in packages:
        for path in sorted(package.rglob("*.py")):
            yield path.relative_to(package.parent).as_posix(), path.read_bytes()
