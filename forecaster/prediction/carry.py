"""Truncation of histories to the part that forecasts depend on: the forecast stays that of the whole history.

A network that reads windows needs the steps of its last window. A network that reads whole histories needs a rollout state from
near the end of the history, after its scale has settled. Segments are counted from the end of a history, so one state is needed
for each offset within a segment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from forecaster.data.batching import take_last
from forecaster.engines.statistical.blend import MAX_FIT_STEPS, list_statistical_components
from forecaster.installation import is_installed, require_package
from forecaster.intervals.difficulty import count_recent_steps
from forecaster.prediction.series_rollout import STATE_PURPOSE, SeriesRollout
from forecaster.series import Series
from forecaster.series.history_summary import StateArrays, drop_and_summarize
from forecaster.spec import Spec


def truncate_history(series: Series, rollout: SeriesRollout, *, keep_extremes: bool) -> Series:
    """Truncates a history to the part that forecasts of a model depend on, with the rollout states of its networks.

    Args:
        series: The history.
        rollout: Of the model.
        keep_extremes: Whether forecasts depend on the extremes of the dropped steps, because they have bounds.
    Raises:
        MissingPackage: A network reads whole histories, and torch, which returns its states, is not installed.
    """
    fitted_model, layout = rollout.fitted_model, rollout.layout
    spec, season, calibration = fitted_model.spec, fitted_model.season, fitted_model.calibration
    kept_steps = required_steps(
        spec,
        pre_context=layout.pre_context,
        season=season,
        is_blended=bool(list_statistical_components(fitted_model.blend_weights)),
    )
    if calibration is not None and calibration.difficulty is not None:
        kept_steps = max(kept_steps, count_recent_steps(season))
    truncate = partial(truncate_series, series, spec, season=season, keep_extremes=keep_extremes)
    if layout.reads == "window" or len(series) < kept_steps:
        return truncate(kept_steps=kept_steps)
    has_states = series.history_summary is not None and bool(series.history_summary.rollout_states)
    if not has_states and not is_installed("torch"):  # only PyTorch returns states, so every step is needed
        return truncate(kept_steps=len(series))
    require_package("torch", purpose=STATE_PURPOSE)
    from forecaster.prediction.recurrent_state import scale_settled_at, states_at_end

    if not has_states:
        inputs = rollout.inputs.build_window([series], layout.window_length(len(series)))
        if scale_settled_at(rollout.networks[0], inputs) > len(series) - 2 * layout.segment:
            # The scale may still change, so every step is needed.
            return truncate(kept_steps=len(series))
    states = states_at_end(series, rollout.networks, rollout.inputs.build_window, device=rollout.device)
    return truncate(kept_steps=kept_steps, rollout_states=states)


def required_steps(spec: Spec, *, pre_context: int, season: int, is_blended: bool) -> int:
    """Returns the number of last steps that forecasts and intervals depend on; a HistorySummary covers the earlier steps.

    `pre_context` is the number of steps of a window before its context (see `Layout`).
    """
    return max(pre_context + spec.context, season, 2 * spec.segment, MAX_FIT_STEPS if is_blended else 0)


def truncate_series(
    series: Series,
    spec: Spec,
    *,
    kept_steps: int,
    season: int,
    rollout_states: Mapping[int, Sequence[StateArrays]] | None = None,
    keep_extremes: bool = False,
) -> Series:
    """Truncates a series to its last `kept_steps` steps and the columns of the specification, with a summary of earlier steps.

    Future covariates are removed: they belong to the request. `rollout_states` are the states of a network that reads whole
    histories; their keys are numbers of steps of `series` that the state has read. The extremes of the dropped steps are kept
    if forecasts have bounds, which depend on them; older versions of the service do not read summaries with extremes.
    """
    names = {name for name in (*spec.static, spec.group) if name in series.static}
    selected = replace(
        series,
        covariates={name: series.covariates[name][: len(series)] for name in spec.covariates},
        channels={name: series.channels[name] for name in spec.channels},
        static={name: series.static[name] for name in sorted(filter(None, names))},
    )
    cut = len(series) - kept_steps
    if cut < 0 or (cut == 0 and not rollout_states):
        return selected
    _, history_summary = drop_and_summarize(series.y, series.history_summary, cut=cut, season=season)
    states = {step - cut: state for step, state in (rollout_states or {}).items()}
    history_summary = replace(history_summary, rollout_states=states)
    if not keep_extremes:
        history_summary = replace(history_summary, lowest=math.nan, highest=math.nan)
    return replace(take_last(selected, kept_steps), history_summary=history_summary)
