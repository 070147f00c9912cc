"""Initial specifications by the frequency of the data.

Each was chosen on windows before any test window (docs/experiments.md, "Presets"); `forecaster tune` searches for a better one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import numpy as np

from forecaster.data.calendar import default_season
from forecaster.data.on_disk.tape import count_steps
from forecaster.errors import BadSpec
from forecaster.frequency.timestamps import is_integer_frequency
from forecaster.series import Panel
from forecaster.spec import HeadSpec, NetworkSpec, Spec, TrainingSpec

Preset = Literal["classic", "yearly", "quarterly", "monthly", "weekly", "daily", "hourly"]

_PRESET_OF_SEASON: Mapping[int, Preset] = {
    1: "yearly",
    4: "quarterly",
    12: "monthly",
    52: "weekly",
    5: "daily",
    7: "daily",
}
_MIN_STEPS_FOR_YEARLY_CONTEXT = 3 * 365  # daily steps from which a context of a year pays off
_YEARS_FOR_CALENDAR = 2  # years of history from which the calendar of the year can be learned
_MAX_CLASSIC_CONTEXT = 1000  # of the classical recipe, whose training time grows with every step

# Shared by all but the classical recipe: one direct block, absolute errors in units of the seasonal naive's, weights averaged
# while the learning rate falls, and a refit that includes the validation data.
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
# A small network with a short training, for noise and random walks: longer trainings get worse there with every step.
_LOW_CAPACITY_FIELDS: dict[str, Any] = {
    "network": {"hidden": 32},
    "training": {"steps": 150, "epoch_steps": 15, "learning_rate": 0.003, "recent": 0.0},
}
_MIN_VALIDATION_WINDOWS = 5  # fewer leave the choice of a variant to chance
_MAX_VALIDATION_WINDOWS = 20  # validation windows; more add little information
_MAX_VALIDATION_SHARE = 3  # validation windows cover at most a third of the median series, or one horizon
_MAX_OVERLAPPING_WINDOWS = 128
_MAX_SYMBOL_CONTEXT = 64  # steps of a training window of symbols; each costs a step of the recurrence
_MAX_SYMBOL_VALIDATION_SHARE = (
    5  # validation windows of symbols cover at most a fifth of the median series, or one horizon
)
_LONG_HISTORY_SEASONS = 30  # longer histories are sampled uniformly
_LONG_SUBDAILY_STEPS = 2000  # the same limit in steps, for frequencies below a day


def build_candidate_specs(
    panel: Panel, *, horizon: int, name: str, preset: str | None = None, season: int | None = None
) -> list[Spec]:
    """Returns the specifications that suit a panel, from the simplest to the richest.

    `selection.select_on_validation` takes the first that is not clearly worse than the best, so the order matters: the variant
    that departs least from a simple forecast of such data comes first (the last value for days and weeks, level and season for
    months and quarters), and one that reads the calendar of the year last.

    Args:
        panel: The training data; only its frequency and the lengths of its series are used.
        horizon: Steps ahead.
        name: Name of the model.
        preset: Defaults to the preset of the frequency, or of the season if the frequency has none.
        season: Steps of a season, by which errors are weighted and judged; by default that of the panel's frequency. Contexts
            and segments follow the frequency.
    """
    given_season, cycle = season, _find_cycle(panel, season)
    chosen = _PRESET_OF_SEASON.get(cycle, "hourly") if preset is None else parse_preset(preset)
    if chosen == "classic":
        return [_build_classic_spec(horizon, name, given_season)]
    lengths = count_steps(panel.series)
    # Of the median series and of the longest: shorter histories are padded, and long ones benefit from a longer context.
    typical_steps, max_steps = (max(2, int(length) - 2 * horizon) for length in (np.median(lengths), lengths.max()))
    shared_training = {
        **_SHARED_TRAINING,
        **choose_validation_fields(
            int(np.median(lengths)), typical_steps // (10 * horizon), horizon=horizon, season=cycle
        ),
    }
    specs = []
    has_calendar = not is_integer_frequency(panel.freq)
    for fields in _preset_variants(chosen, horizon, cycle, max_steps, has_calendar=has_calendar):
        training = {**shared_training, **fields.pop("training", {})}
        if typical_steps > (_LONG_SUBDAILY_STEPS if chosen == "hourly" else _LONG_HISTORY_SEASONS * cycle):
            training["recent"] = 0.0
        specs.append(
            Spec.parse(
                {
                    "name": name,
                    "horizon": horizon,
                    "season": given_season,
                    **_SHARED_FIELDS,
                    **fields,
                    "training": training,
                },
                where=chosen,
            )
        )
    return specs


def with_validation_windows(spec: Spec, panel: Panel) -> Spec:
    """Returns a specification with at least five validation windows, if the histories allow them, and not fewer than its own.

    Args:
        spec: The specification.
        panel: The training data; only its frequency and the lengths of its series are used.
    """
    training = spec.training
    if training.valid_windows >= _MIN_VALIDATION_WINDOWS:
        return spec
    length, season = int(np.median(count_steps(panel.series))), _find_cycle(panel, spec.season)
    fields = choose_validation_fields(length, training.valid_windows, horizon=spec.horizon, season=season)
    if fields["valid_windows"] <= training.valid_windows:
        return spec
    windows = {"valid_stride": None, **fields}
    return Spec.parse(spec.model_dump() | {"training": training.model_dump() | windows}, where=spec.name)


def _find_cycle(panel: Panel, season: int | None) -> int:
    """Returns the steps of the season that the frequency has; without one, those of the given season."""
    usual_season = default_season(panel.freq)
    return usual_season if usual_season > 1 else season or usual_season


def choose_validation_fields(length: int, desired: int, *, horizon: int, season: int) -> dict[str, int]:
    """Returns the training fields that define at least five validation windows, if the histories allow them.

    Where five windows side by side would take more than a third of a history they overlap; where a third has fewer than five
    origins, there is a window from each of them.

    Args:
        length: Steps of the median series.
        desired: Number of windows that a long history is validated on; at least 5 and at most 20 are used.
        horizon: Steps ahead.
        season: Steps of a season.
    """
    windows = min(max(desired, _MIN_VALIDATION_WINDOWS), _MAX_VALIDATION_WINDOWS)
    max_steps = max(horizon, length // _MAX_VALIDATION_SHARE)
    if windows * horizon <= max_steps:
        return build_validation_fields(windows, horizon=horizon, season=season)
    span = max_steps - horizon  # steps between the first and the last origin
    if season < horizon and span >= (_MIN_VALIDATION_WINDOWS - 1) * season:
        return _overlapping_windows(span, season)
    stride = max(1, span // (_MIN_VALIDATION_WINDOWS - 1))
    windows = min(_MIN_VALIDATION_WINDOWS, 1 + span)
    return {"valid_windows": windows} | ({"valid_stride": stride} if windows > 1 else {})


def build_validation_fields(windows: int, *, horizon: int, season: int) -> dict[str, int]:
    """Returns the training fields that define the validation windows.

    These are `windows` windows, or more that overlap where a long horizon allows only few. Overlapping windows carry less
    information each, but more together: of eight windows of 336 hours one bad week is an eighth of the score
    (docs/experiments.md, "Presets"). They begin at the same phase of the season, whole seasons apart, and cover the same steps.
    """
    if not 1 < windows < _MAX_VALIDATION_WINDOWS or season >= horizon:
        return {"valid_windows": windows}
    return _overlapping_windows((windows - 1) * horizon, season)


def _overlapping_windows(span: int, season: int) -> dict[str, int]:
    """Returns windows whose origins lie whole seasons apart, over `span` steps between the first and the last."""
    stride = season * -(-span // (_MAX_OVERLAPPING_WINDOWS * season))
    return {"valid_windows": 1 + span // stride, "valid_stride": stride}


def parse_preset(name: str) -> Preset:
    """Returns the preset of a name; raises BadSpec."""
    if name not in get_args(Preset):
        raise BadSpec(
            f"Expected one of the presets {', '.join(get_args(Preset))}; found {name!r}. Choose one of them.",
            where="preset",
        )
    return cast("Preset", name)


def _preset_variants(
    preset: Preset, horizon: int, season: int, available_steps: int, *, has_calendar: bool
) -> list[dict[str, Any]]:
    """Returns the fields that differ between presets: context, segments, units, base forecast and size of the network.

    Variants are listed from the simplest to the richest. Integer steps have no calendar.
    """
    match preset:
        case "yearly":
            few_steps = {"training": {"steps": 500}, "network": {"layers": 2}}
            return [
                {"context": _fit_context(horizon + 2, 1, available_steps), "min_history": 2} | _TREND_FIELDS | few_steps
            ]
        case "quarterly":
            fields = {
                "context": _fit_context(4 * season, 1, available_steps),
                "min_history": season,
                "network": {"layers": 2},
            }
            few_steps = {"training": {"steps": 500}}
            return [fields | _SEASONAL_FIELDS | few_steps, fields | _TREND_FIELDS | few_steps]
        case "monthly":
            fields = {
                "context": _fit_context(4 * season, 3, available_steps),
                "segment": 3,
                "min_history": season,
                "lags": (season,),
            }
            return [_low_capacity_fields(season, available_steps), fields | _SEASONAL_FIELDS, fields | _TREND_FIELDS]
        case "weekly":
            fields = {"context": _fit_context(2 * season, 4, available_steps), "segment": 4, "min_history": 8}
            variants: list[dict[str, Any]] = [
                fields | _TREND_FIELDS | _LOW_CAPACITY_FIELDS,
                fields | _TREND_FIELDS,
                fields | _TREND_FIELDS | {"base": "seasonal_naive"},
            ]
            if has_calendar and available_steps >= _YEARS_FOR_CALENDAR * season:
                variants.append(fields | _TREND_FIELDS | {"calendar": ("yearday:3",)})
            return variants
        case "daily":
            return _daily_variants(season, available_steps, has_calendar=has_calendar)
        case _:
            return _subdaily_variants(season, available_steps)


def _low_capacity_fields(season: int, available_steps: int) -> dict[str, Any]:
    """Returns a model of little more than level and season, for noisy data: a small rollout network with a short training."""
    return _LOW_CAPACITY_FIELDS | {
        "context": _fit_context(5 * season, 3, available_steps),
        "segment": 3,
        "min_history": season,
        "decoder": "rollout",
        "scaling": "level_season",
    }


def _daily_variants(season: int, available_steps: int, *, has_calendar: bool) -> list[dict[str, Any]]:
    """Returns variants with eight weeks of context and, for histories of three years, two with more than a year.

    The simplest corrects the last value a little, which random walks such as prices cannot be forecast better than. Histories of
    at least two years have variants that read the calendar of the year.
    """
    fields = {"context": _fit_context(8 * season, season, available_steps), "segment": season, "min_history": season}
    last_value = fields | _TREND_FIELDS | _LOW_CAPACITY_FIELDS
    seasonal = fields | _TREND_FIELDS | {"base": "seasonal_naive"}
    if available_steps >= _MIN_STEPS_FOR_YEARLY_CONTEXT:
        calendar = {"calendar": ("weekday:3", "yearday:10")} if has_calendar else {}
        low_rate = {"training": {"learning_rate": 0.003, "batch": 64}, "network": {"hidden": 128}}
        long = fields | {"context": _fit_context(56 * 7, season, available_steps)} | calendar | low_rate
        return [
            last_value,
            long | {"scaling": "standard", "base": "zero"},
            long | _TREND_FIELDS | {"base": "seasonal_naive"},
        ]
    variants = [last_value, seasonal, fields | _SEASONAL_FIELDS]
    if has_calendar and available_steps >= _YEARS_FOR_CALENDAR * 365:
        variants.append(seasonal | {"calendar": ("weekday:3", "yearday:3")})
    return variants


def _subdaily_variants(season: int, available_steps: int) -> list[dict[str, Any]]:
    """Returns two variants for steps shorter than a day.

    The first has two weeks of context, deseasonalised in logarithms, and segments of half a day; the second a month without
    transformation, and segments of a day.
    """
    day_steps = max(1, season // -(-season // 48))
    half_day = day_steps // 2 if day_steps % 2 == 0 else day_steps
    large_network = {"network": {"hidden": 128}, "min_history": day_steps}
    deep_network = {"network": {"hidden": 128, "layers": 2}, "training": {"learning_rate": 0.005, "recent": 6.0}}
    two_weeks = {"context": _fit_context(14 * season, half_day, available_steps), "segment": half_day}
    month = {
        "context": _fit_context(30 * season, day_steps, available_steps),
        "segment": day_steps,
        "scaling": "last",
        "base": "last",
    }
    low_rate = {"training": {"learning_rate": 0.003, "batch": 128, "steps": 600, "weighting": "none"}}
    return [large_network | two_weeks | _SEASONAL_FIELDS | deep_network, large_network | month | low_rate]


def _fit_context(desired: int, segment: int, available_steps: int) -> int:
    """Returns the desired context, limited by the longest series and rounded to whole segments."""
    return max(segment, min(desired, available_steps) // segment * segment)


def _build_classic_spec(horizon: int, name: str, season: int | None) -> Spec:
    """Returns the classical recipe: point forecasts by rollout, mean squared error on windows shifted by one step."""
    context = min(_MAX_CLASSIC_CONTEXT, max(12, horizon + (horizon + 3) // 4))
    fields = {
        "name": name,
        "context": context,
        "horizon": horizon,
        "season": season,
        "min_history": max(2, min(context, horizon // 2)),
        "scaling": "mean_abs",
        "network": {"hidden": 40},
        "training": {"steps": 2000, "epoch_steps": 100, "batch": 128, "patience": 8},
    }
    return Spec.parse(fields, where="classic")


def build_symbol_spec(
    panel: Panel, *, horizon: int, name: str, season: int | None = None, test_windows: int = 0
) -> Spec:
    """Returns the initial specification for symbols: an LSTM over as much context as most series have, up to a limit.

    Args:
        panel: All data.
        horizon: Steps ahead.
        name: The name of the model.
        season: Steps of a season; by default that of the frequency.
        test_windows: Rolling origins at the end that are held out for the test.
    """
    available = int(np.median([len(series) for series in panel.series])) - test_windows * horizon
    windows = max(1, min(_MAX_VALIDATION_WINDOWS, available // (_MAX_SYMBOL_VALIDATION_SHARE * horizon)))
    return Spec(
        name=name,
        context=max(1, min(_MAX_SYMBOL_CONTEXT, available - (windows + 1) * horizon)),
        horizon=horizon,
        min_history=1,
        season=season,
        scaling="none",
        head=HeadSpec(kind="symbols"),
        network=NetworkSpec(cell="lstm", hidden=64),
        training=TrainingSpec(
            steps=2000,
            epoch_steps=100,
            batch=64,
            learning_rate=0.005,
            schedule="cosine",
            average=0.99,
            patience=5,
            valid_windows=windows,
        ),
    )
