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
_YEARS = 3 * 365  # steps of days from which a year is worth looking back
_MOST_CONTEXT = 1000  # of the classical recipe: every further step costs time

# What all but the classical recipe share: one block in one go, absolute errors in units of the seasonal naive's, weights averaged
# while the learning rate falls, and a last training on what had judged.
_RECIPE: Mapping[str, Any] = {"decoder": "direct", "head": {"kind": "point", "loss": "mae"}}
_TRAINING: Mapping[str, Any] = {
    "steps": 1000,
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
_WINDOWS = 20  # that judge; more tell little more
_MOST_OVERLAPPING = 128
_MANY_SEASONS = 30  # of longer histories all is learned from alike
_MANY_DAYS = 2000  # steps, of those shorter than a day


def candidates(panel: Panel, *, horizon: int, name: str, kind: str | None = None) -> list[Spec]:
    """The specifications that suit a panel, the likeliest first; `forecaster.training.selection.choose` tells which is best.

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
    lengths = [len(one) for one in panel.series]
    # Of the typical series, and of the longest: shorter histories are padded, and a longer context still serves the others.
    room, most = (max(2, int(length) - 2 * horizon) for length in (np.median(lengths), max(lengths)))
    shared = {**_TRAINING, **judging(max(1, min(_WINDOWS, room // (10 * horizon))), horizon=horizon, season=season)}
    made = []
    for fields in _variants(chosen, horizon, season, most):
        training = {**shared, **fields.pop("training", {})}
        if room > (_MANY_DAYS if chosen == "hourly" else _MANY_SEASONS * season):
            training["recent"] = 0.0
        made.append(
            Spec.parse({"name": name, "horizon": horizon, **_RECIPE, **fields, "training": training}, where=chosen)
        )
    return made


def judging(windows: int, *, horizon: int, season: int) -> dict[str, int]:
    """The fields of training that say what judges: so many windows, or more of them where a long horizon leaves room for few.

    Windows that share steps say less each, but more together: of eight windows of 336 hours one bad week is an eighth of the
    verdict (docs/experiments.md, "Presets"). They begin at the same phase of the season, whole seasons apart, in the same steps.
    """
    if not 1 < windows < _WINDOWS or season >= horizon:
        return {"valid_windows": windows}
    steps = (windows - 1) * horizon
    stride = season * -(-steps // (_MOST_OVERLAPPING * season))
    return {"valid_windows": 1 + steps // stride, "valid_stride": stride}


def _variants(kind: Preset, horizon: int, season: int, room: int) -> list[dict[str, Any]]:
    """What differs between presets: how far back, in which segments, in which units, what is corrected, how large a network."""
    match kind:
        case "yearly":
            short = {"training": {"steps": 500}, "network": {"layers": 2}}
            return [{"context": _fitting(horizon + 2, 1, room), "min_history": 2} | _TREND | short]
        case "quarterly":
            shape = {"context": _fitting(4 * season, 1, room), "min_history": season, "network": {"layers": 2}}
            short = {"training": {"steps": 500}}
            return [shape | _SEASON | short, shape | _TREND | short]
        case "monthly":
            shape = {"context": _fitting(4 * season, 3, room), "segment": 3, "min_history": season, "lags": (season,)}
            return [shape | _SEASON, shape | _TREND, _gentle(season, room)]
        case "weekly":
            shape = {"context": _fitting(2 * season, 4, room), "segment": 4, "min_history": 8}
            return [shape | _TREND, shape | _TREND | {"base": "seasonal_naive"}]
        case "daily" if room >= _YEARS:
            shape = {"context": _fitting(56 * 7, season, room), "segment": season, "network": {"hidden": 128}}
            shape |= {"calendar": ("weekday:3", "yearday:10"), "min_history": season}
            slow = {"training": {"learning_rate": 0.003, "batch": 64}}
            return [
                shape | {"scaling": "standard", "base": "zero"} | slow,
                shape | _TREND | {"base": "seasonal_naive"} | slow,
            ]
        case "daily":
            shape = {"context": _fitting(8 * season, season, room), "segment": season, "min_history": season}
            return [shape | _TREND | {"base": "seasonal_naive"}, shape | _SEASON]
        case _:
            return _within_days(season, room)


def _gentle(season: int, room: int) -> dict[str, Any]:
    """Little more than level and season, for noise: a small network that is trained for a short time and fed its own output."""
    return {
        "context": _fitting(5 * season, 3, room),
        "segment": 3,
        "min_history": season,
        "decoder": "rollout",
        "scaling": "level_season",
        "network": {"hidden": 32},
        "training": {"steps": 150, "epoch_steps": 15, "learning_rate": 0.003, "recent": 0.0},
    }


def _within_days(season: int, room: int) -> list[dict[str, Any]]:
    """Steps shorter than a day: two weeks deseasonalised in logarithms, half a day a step; or a month as it is, a day a step."""
    day = max(1, season // -(-season // 48))
    half = day // 2 if day % 2 == 0 else day
    large = {"network": {"hidden": 128}, "min_history": day}
    deep = {"network": {"hidden": 128, "layers": 2}, "training": {"learning_rate": 0.005, "recent": 6.0}}
    weeks = {"context": _fitting(14 * season, half, room), "segment": half}
    month = {"context": _fitting(30 * season, day, room), "segment": day, "scaling": "last", "base": "last"}
    slow = {"training": {"learning_rate": 0.003, "batch": 128, "steps": 600, "weighting": "none"}}
    return [large | weeks | _SEASON | deep, large | month | slow]


def _fitting(wanted: int, segment: int, room: int) -> int:
    """The context that is wanted, or what the longest series has room for; whole segments."""
    return max(segment, min(wanted, room) // segment * segment)


def _classic(horizon: int, name: str) -> Spec:
    """Point-wise, fed with its own output, the mean squared error of windows shifted by one step."""
    context = min(_MOST_CONTEXT, max(12, horizon + (horizon + 3) // 4))
    fields = {
        "name": name,
        "context": context,
        "horizon": horizon,
        "min_history": max(2, min(context, horizon // 2)),
        "scaling": "mean_abs",
        "network": {"hidden": 40},
        "training": {"steps": 2000, "epoch_steps": 100, "batch": 128, "patience": 8},
    }
    return Spec.parse(fields, where="classic")
