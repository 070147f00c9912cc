"""Specifications to begin with, by what kind of data they are for. Each was chosen on windows before anybody's test window
(docs/experiments.md, "Presets"); `forecaster tune` looks for a better one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import numpy as np

from forecaster.data.calendar import default_season
from forecaster.errors import BadSpec
from forecaster.series import Panel
from forecaster.spec import Spec

Preset = Literal["classic", "yearly", "quarterly", "monthly", "weekly", "daily", "hourly"]

_PRESET_OF_SEASON: Mapping[int, Preset] = {
    1: "yearly",
    4: "quarterly",
    12: "monthly",
    52: "weekly",
    5: "daily",
    7: "daily",
}
_MIN_STEPS_FOR_YEARLY_CONTEXT = 3 * 365  # steps of days from which a year is worth looking back
_MAX_CLASSIC_CONTEXT = 1000  # of the classical recipe: every further step costs time

# What all but the classical recipe share: one block in one go, absolute errors in units of the seasonal naive's, weights averaged
# while the learning rate falls, and a last training on what had judged.
_SHARED_FIELDS: Mapping[str, Any] = {"decoder": "direct", "head": {"kind": "point", "loss": "mae"}}
_SHARED_TRAINING: Mapping[str, Any] = {
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
_TREND_FIELDS = {"transform": "log", "scaling": "last", "base": "last"}
_SEASONAL_FIELDS = {"transform": "log", "scaling": "level_season", "base": "zero"}
_MAX_VALIDATION_WINDOWS = 20  # that judge; more tell little more
_MAX_OVERLAPPING_WINDOWS = 128
_LONG_HISTORY_SEASONS = 30  # of longer histories all is learned from alike
_LONG_SUBDAILY_STEPS = 2000  # steps, of those shorter than a day


def build_candidate_specs(panel: Panel, *, horizon: int, name: str, preset: str | None = None) -> list[Spec]:
    """The specifications that suit a panel, the likeliest first; `forecaster.training.selection.choose` tells which is best.

    Args:
        panel: What will be learned from; only its frequency and the lengths of its series are looked at.
        horizon: Steps ahead.
        name: Of the forecaster.
        kind: Which preset; that of the panel's frequency, if not given.
    """
    season = default_season(panel.freq)
    chosen = cast("Preset", preset or _PRESET_OF_SEASON.get(season, "hourly"))
    if chosen not in get_args(Preset):
        raise BadSpec(
            f"Expected a preset among {', '.join(get_args(Preset))}; found {chosen!r}. Choose one of them.",
            where="preset",
        )
    if chosen == "classic":
        return [_build_classic_spec(horizon, name)]
    lengths = [len(one) for one in panel.series]
    # Of the typical series, and of the longest: shorter histories are padded, and a longer context still serves the others.
    room, most = (max(2, int(length) - 2 * horizon) for length in (np.median(lengths), max(lengths)))
    shared = {
        **_SHARED_TRAINING,
        **build_validation_fields(
            max(1, min(_MAX_VALIDATION_WINDOWS, room // (10 * horizon))), horizon=horizon, season=season
        ),
    }
    made = []
    for fields in _preset_variants(chosen, horizon, season, most):
        training = {**shared, **fields.pop("training", {})}
        if room > (_LONG_SUBDAILY_STEPS if chosen == "hourly" else _LONG_HISTORY_SEASONS * season):
            training["recent"] = 0.0
        made.append(
            Spec.parse(
                {"name": name, "horizon": horizon, **_SHARED_FIELDS, **fields, "training": training}, where=chosen
            )
        )
    return made


def build_validation_fields(windows: int, *, horizon: int, season: int) -> dict[str, int]:
    """The fields of training that say what judges: so many windows, or more of them where a long horizon leaves room for few.

    Windows that share steps say less each, but more together: of eight windows of 336 hours one bad week is an eighth of the
    verdict (docs/experiments.md, "Presets"). They begin at the same phase of the season, whole seasons apart, in the same steps.
    """
    if not 1 < windows < _MAX_VALIDATION_WINDOWS or season >= horizon:
        return {"valid_windows": windows}
    steps = (windows - 1) * horizon
    stride = season * -(-steps // (_MAX_OVERLAPPING_WINDOWS * season))
    return {"valid_windows": 1 + steps // stride, "valid_stride": stride}


def _preset_variants(preset: Preset, horizon: int, season: int, available_steps: int) -> list[dict[str, Any]]:
    """What differs between presets: how far back, in which segments, in which units, what is corrected, how large a network."""
    match preset:
        case "yearly":
            short = {"training": {"steps": 500}, "network": {"layers": 2}}
            return [
                {"context": _fit_context(horizon + 2, 1, available_steps), "min_history": 2} | _TREND_FIELDS | short
            ]
        case "quarterly":
            shape = {
                "context": _fit_context(4 * season, 1, available_steps),
                "min_history": season,
                "network": {"layers": 2},
            }
            short = {"training": {"steps": 500}}
            return [shape | _SEASONAL_FIELDS | short, shape | _TREND_FIELDS | short]
        case "monthly":
            shape = {
                "context": _fit_context(4 * season, 3, available_steps),
                "segment": 3,
                "min_history": season,
                "lags": (season,),
            }
            return [shape | _SEASONAL_FIELDS, shape | _TREND_FIELDS, _low_capacity_fields(season, available_steps)]
        case "weekly":
            shape = {"context": _fit_context(2 * season, 4, available_steps), "segment": 4, "min_history": 8}
            return [shape | _TREND_FIELDS, shape | _TREND_FIELDS | {"base": "seasonal_naive"}]
        case "daily" if available_steps >= _MIN_STEPS_FOR_YEARLY_CONTEXT:
            shape = {
                "context": _fit_context(56 * 7, season, available_steps),
                "segment": season,
                "network": {"hidden": 128},
            }
            shape |= {"calendar": ("weekday:3", "yearday:10"), "min_history": season}
            slow = {"training": {"learning_rate": 0.003, "batch": 64}}
            return [
                shape | {"scaling": "standard", "base": "zero"} | slow,
                shape | _TREND_FIELDS | {"base": "seasonal_naive"} | slow,
            ]
        case "daily":
            shape = {
                "context": _fit_context(8 * season, season, available_steps),
                "segment": season,
                "min_history": season,
            }
            return [shape | _TREND_FIELDS | {"base": "seasonal_naive"}, shape | _SEASONAL_FIELDS]
        case _:
            return _subdaily_variants(season, available_steps)


def _low_capacity_fields(season: int, available_steps: int) -> dict[str, Any]:
    """Little more than level and season, for noise: a small network that is trained for a short time and fed its own output."""
    return {
        "context": _fit_context(5 * season, 3, available_steps),
        "segment": 3,
        "min_history": season,
        "decoder": "rollout",
        "scaling": "level_season",
        "network": {"hidden": 32},
        "training": {"steps": 150, "epoch_steps": 15, "learning_rate": 0.003, "recent": 0.0},
    }


def _subdaily_variants(season: int, available_steps: int) -> list[dict[str, Any]]:
    """Steps shorter than a day: two weeks deseasonalised in logarithms, half a day a step; or a month as it is, a day a step."""
    day = max(1, season // -(-season // 48))
    half = day // 2 if day % 2 == 0 else day
    large = {"network": {"hidden": 128}, "min_history": day}
    deep = {"network": {"hidden": 128, "layers": 2}, "training": {"learning_rate": 0.005, "recent": 6.0}}
    weeks = {"context": _fit_context(14 * season, half, available_steps), "segment": half}
    month = {
        "context": _fit_context(30 * season, day, available_steps),
        "segment": day,
        "scaling": "last",
        "base": "last",
    }
    slow = {"training": {"learning_rate": 0.003, "batch": 128, "steps": 600, "weighting": "none"}}
    return [large | weeks | _SEASONAL_FIELDS | deep, large | month | slow]


def _fit_context(desired: int, segment: int, available_steps: int) -> int:
    """The context that is wanted, or what the longest series has room for; whole segments."""
    return max(segment, min(desired, available_steps) // segment * segment)


def _build_classic_spec(horizon: int, name: str) -> Spec:
    """Point-wise, fed with its own output, the mean squared error of windows shifted by one step."""
    context = min(_MAX_CLASSIC_CONTEXT, max(12, horizon + (horizon + 3) // 4))
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
