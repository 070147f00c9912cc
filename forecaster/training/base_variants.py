"""Variants of every preset that use the pretrained network: as it is, trained on, and its architecture from random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forecaster.bundle.pretrained.specification import base_spec
from forecaster.spec import Spec

_MAX_ORIGINS = 20  # last segments of a window that are trained; earlier ones belong to other windows
_SHARED_TRAINING: Mapping[str, Any] = {
    "epoch_steps": 50,
    "batch": 48,
    "schedule": "cosine",
    "average": 0.98,
    "refit": True,
}
_FINE_TUNING: Mapping[str, Any] = {"initial": "base", "steps": 200, "learning_rate": 3e-4}
_FROM_RANDOM_WEIGHTS: Mapping[str, Any] = {"initial": "random", "steps": 300, "learning_rate": 2e-3}


def build_base_variants(
    *, name: str, horizon: int, season: int, validation: Mapping[str, Any], max_steps: int
) -> list[Spec]:
    """Returns the variants, the simplest first: without training, fine-tuned, and trained from random weights.

    Args:
        name: Name of the model.
        horizon: Steps ahead.
        season: Steps of a season.
        validation: The training fields that define the validation windows.
        max_steps: The longest history; a longer context is useless.
    """
    whole = base_spec(season, horizon=horizon, name=name)
    segments = max(1, min(whole.context, max_steps) // whole.segment)
    trained = {**_SHARED_TRAINING, **validation, "origins": min(_MAX_ORIGINS, segments)}
    context = segments * whole.segment
    return [
        base_spec(season, horizon=horizon, name=name, training={"initial": "base", "steps": 0, **validation}),
        base_spec(season, horizon=horizon, name=name, context=context, training={**trained, **_FINE_TUNING}),
        base_spec(season, horizon=horizon, name=name, context=context, training={**trained, **_FROM_RANDOM_WEIGHTS}),
    ]
