"""Truncation of histories to the part that forecasts depend on: the forecast stays that of the whole history.

A network that reads windows needs the steps of its last window. A network that reads whole histories needs a rollout state from
near the end of the history, after its scale has settled. Segments are counted from the end of a history, so one state is needed
for each offset within a segment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from forecaster.data.batching import take_last
from forecaster.engines.statistical.blend import MAX_FIT_STEPS
from forecaster.series import Series
from forecaster.series.history_summary import StateArrays, drop_and_summarize
from forecaster.spec import Spec


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
