"""The specification of the pretrained network for any season: one set of weights serves all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forecaster.spec import Spec

BASE_NAME = "base"
BASE_BLOCK = 48  # time points that the network predicts at once
LONG_SEASONS: Mapping[int, int] = {7: 364, 24: 168, 48: 336, 96: 672}
"""By season: a second, longer one that is read too, such as the week of hourly data."""

MAX_SEASON = 20_000  # longer seasons have no meaning that users know; a week has 10 080 minutes

_LONGEST_CONTEXT = 50_000  # time points: more than two of the longest seasons
_SEGMENTS: Mapping[int, int] = {1: 1, 4: 1, 7: 6, 12: 3, 24: 12, 48: 24, 52: 12, 96: 48}
_MAX_CONTEXT_STEPS = {1: 64, 4: 100, 7: 744, 12: 180, 24: 696}
_BASE_FIELDS: Mapping[str, Any] = {
    "reads": "history",
    "decoder": "block",
    "block_steps": BASE_BLOCK,
    "scaling": "running",
    "features": "seasonal",
    "base": "mixture",
    "head": {"kind": "quantile"},
    "network": {"cell": "lstm", "layers": 2, "hidden": 96, "residual": True, "embed": True},
}


def segment_of(season: int) -> int:
    """Returns the steps that the network reads at once: about a quarter of a season, and a divisor of its block."""
    if season in _SEGMENTS:
        return _SEGMENTS[season]
    divisors = [size for size in range(1, BASE_BLOCK + 1) if BASE_BLOCK % size == 0]
    return min(divisors, key=lambda size: abs(size - season / 4))


def base_spec(season: int, *, horizon: int, name: str = BASE_NAME, **fields: Any) -> Spec:
    """Returns the specification of the pretrained network for data with a season; `fields` replace its own."""
    segment = segment_of(season)
    context = min(_MAX_CONTEXT_STEPS.get(season, 12 * season), _LONGEST_CONTEXT)
    return Spec.parse(
        {
            "name": name,
            "horizon": horizon,
            "season": season,
            "context": -(-context // segment) * segment,
            "min_history": 2,
            "segment": segment,
            "long_season": LONG_SEASONS.get(season),
            **_BASE_FIELDS,
            **fields,
        },
        where=name,
    )
