"""Variants of every preset that use the pretrained network: as it is, and trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from forecaster.bundle.pretrained.specification import base_spec
from forecaster.data.calendar import default_season
from forecaster.data.on_disk.tape import count_steps
from forecaster.series import Panel
from forecaster.spec import Spec

_MIN_STEPS = 4000  # of all series together, below which fine-tuning learns noise (docs/experiments.md)
_MAX_ORIGINS = 20  # last segments of a window that are trained; earlier ones belong to other windows
_FINE_TUNING: Mapping[str, Any] = {
    "initial": "base",
    "steps": 100,
    "epoch_steps": 25,
    "batch": 48,
    "learning_rate": 2e-4,
    "schedule": "cosine",
    "average": 0.98,
    "refit": True,
}
_MIN_LONG_STEPS, _MIN_LONG_LENGTH = 50_000, 500  # of all series together, and of the median one
_LONG_FINE_TUNING: Mapping[str, Any] = {**_FINE_TUNING, "steps": 500, "epoch_steps": 50, "learning_rate": 6e-4}


def build_base_variants(panel: Panel, preset: Spec) -> list[Spec]:
    """Returns the variants, the simplest first: without any training, fine-tuned, and for longer, where there are enough data.

    Args:
        panel: The training data; only its frequency and the longest series are used.
        preset: A variant of the preset, for its name, horizon, season and validation windows.
    """
    season = preset.season or default_season(panel.freq)
    whole = base_spec(season, horizon=preset.horizon)
    lengths = count_steps(panel.series)
    segments = max(1, min(whole.context, int(lengths.max()) - preset.horizon) // whole.segment)
    validation = {name: getattr(preset.training, name) for name in ("valid_windows", "valid_stride")}
    origins = min(_MAX_ORIGINS, segments)
    untrained = _build_variant(season, preset, training={"initial": "base", "steps": 0, **validation})
    if lengths.sum() < _MIN_STEPS:
        return [untrained]
    is_long = bool(lengths.sum() >= _MIN_LONG_STEPS) and float(np.median(lengths)) >= _MIN_LONG_LENGTH
    trainings = [_FINE_TUNING, _LONG_FINE_TUNING] if is_long else [_FINE_TUNING]
    return [
        untrained,
        *(
            _build_variant(
                season,
                preset,
                context=segments * whole.segment,
                training={**training, **validation, "origins": origins},
            )
            for training in trainings
        ),
    ]


def _build_variant(season: int, preset: Spec, **fields: Any) -> Spec:
    spec = base_spec(season, horizon=preset.horizon, name=preset.name, **fields)
    return spec.model_copy(update={"season": preset.season})
