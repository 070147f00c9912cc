"""Specifications to begin with, by what kind of data they are for. Each was chosen on windows before anybody's test window
(docs/experiments.md, "Presets"); `forecaster tune` looks for a better one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import numpy as np

from forecaster.data.calendar import usual_season
from forecaster.errors import BadSpec
from forecaster.series import Panel
from forecaster.spec import Spec

Preset = Literal["classic", "yearly", "quarterly", "monthly", "weekly", "daily", "hourly"]

_OF_SEASON: Mapping[int, Preset] = {1: "yearly", 4: "quarterly", 12: "monthly", 52: "weekly", 5: "daily", 7: "daily"}
_MOST_CONTEXT = 1000  # of the classical recipe: every further step costs time

# What all but the classical recipe share: one block in one go, absolute errors in units of the seasonal naive's, weights averaged
# while the learning rate falls, and a last training on what had judged.
_RECIPE: Mapping[str, Any] = {
    "decoder": "direct",
    "head": {"kind": "point", "loss": "mae"},
    "network": {"cell": "gru", "layers": 2, "hidden": 64},
}
_TRAINING: Mapping[str, Any] = {
    "steps": 500,
    "epoch_steps": 100,
    "batch": 256,
    "learning_rate": 0.01,
    "schedule": "cosine",
    "average": 0.99,
    "weighting": "seasonal_error",
    "recent": 2.0,
    "refit": True,
}
_TREND = {"transform": "log", "scaling": "last", "base": "last"}
_SEASON = {"transform": "log", "scaling": "level_season", "base": "zero"}
_LEVEL = {"transform": "none", "scaling": "mean_abs", "base": "zero"}


def candidates(panel: Panel, *, horizon: int, name: str, kind: str | None = None) -> list[Spec]:
    """The specifications that suit a panel, the likeliest first; `forecaster.training.choice.choose` tells which is best.

    Args:
        panel: What will be learned from; only its frequency and the lengths of its series are looked at.
        horizon: Steps ahead.
        name: Of the forecaster.
        kind: Which preset; that of the panel's frequency, if not given.
    """
    season = usual_season(panel.freq)
    chosen = cast("Preset", kind or _OF_SEASON.get(season, "hourly"))
    if chosen not in get_args(Preset):
        raise BadSpec(
            f"Expected a preset among {', '.join(get_args(Preset))}; found {chosen!r}. Choose one of them.",
            where="preset",
        )
    if chosen == "classic":
        return [_classic(horizon, name)]
    room = max(2, int(np.median([len(one) for one in panel.series])) - 2 * horizon)
    windows = max(1, min(20, room // (10 * horizon)))
    made = []
    for fields in _variants(chosen, horizon, season, room):
        training = {**_TRAINING, "valid_windows": windows, **fields.pop("training", {})}
        made.append(
            Spec.parse({"name": name, "horizon": horizon, **_RECIPE, **fields, "training": training}, where=chosen)
        )
    return made


def _variants(kind: Preset, horizon: int, season: int, room: int) -> list[dict[str, Any]]:
    """What differs between presets: how far back, in which segments, in which units, and what is corrected."""
    shape: dict[str, Any]
    match kind:
        case "yearly":
            shape = {"context": _fitting(2 * horizon, 1, room), "min_history": 2}
            return [shape | _TREND | {"training": {"learning_rate": 0.003}}]
        case "quarterly":
            shape = {"context": _fitting(4 * season, 1, room), "min_history": season}
            return [shape | _SEASON]
        case "monthly":
            shape = {"context": _fitting(4 * season, 3, room), "segment": 3, "min_history": season, "lags": (season,)}
            long = {"training": {"steps": 1000}}
            return [shape | _SEASON | long, shape | _TREND | long, shape | _LEVEL]
        case "weekly":
            shape = {"context": _fitting(2 * season, 4, room), "segment": 4, "min_history": 8}
            return [shape | _TREND, shape | _TREND | {"base": "seasonal_naive"}]
        case "daily":
            year = room >= 3 * 365
            shape = {"context": _fitting(392 if year else 56, season, room), "segment": season, "min_history": season}
            shape |= {"calendar": ("weekday:3", "yearday:10")} if year else {}
            return [shape | _TREND | {"base": "seasonal_naive"}, shape | _SEASON]
        case _:
            segment = season // -(-season // 48)
            shape = {"context": _fitting(14 * season, segment, room), "segment": segment, "min_history": segment}
            long = {"training": {"steps": 1000}}
            return [shape | _TREND | {"base": "seasonal_naive"} | long, shape | _SEASON | long]


def _fitting(wanted: int, segment: int, room: int) -> int:
    """The context that is wanted, or what half of the series have room for; whole segments."""
    return max(segment, min(wanted, room) // segment * segment)


def _classic(horizon: int, name: str) -> Spec:
    """Point-wise, fed with its own output, the mean squared error of windows shifted by one step."""
    context = min(_MOST_CONTEXT, max(12, horizon + (horizon + 3) // 4))
    fields = {
        "name": name,
        "context": max(context, 12),
        "horizon": horizon,
        "min_history": max(2, min(context, horizon // 2)),
        "scaling": "mean_abs",
        "network": {"hidden": 40},
        "training": {"steps": 2000, "epoch_steps": 100, "batch": 128, "patience": 8},
    }
    return Spec.parse(fields, where="classic")
