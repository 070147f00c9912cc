"""Histories cut down to what a forecaster still asks of them: a forecast from the rest is that from the whole.

A network that reads windows asks for the last of them. One that reads whole histories asks for what its rollout carried to a
place near the end, once its scale is settled; since segments are counted from the end, for that of each place in a segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from forecaster.data.batching import take_last
from forecaster.history_summary import StateArrays, drop_and_summarize
from forecaster.series import Series
from forecaster.spec import Spec
from forecaster.statistical.blend import MAX_FIT_STEPS


def required_steps(spec: Spec, *, pre_context: int, season: int, is_blended: bool) -> int:
    """Last steps that forecasts and intervals look at; what they ask of earlier ones is in a Past.

    `pre_context` is how many steps of a window the network looks back on before its context.
    """
    return max(pre_context + spec.context, season, 2 * spec.segment, MAX_FIT_STEPS if is_blended else 0)


def truncate_series(
    series: Series,
    spec: Spec,
    *,
    kept_steps: int,
    season: int,
    rollout_states: Mapping[int, Sequence[StateArrays]] | None = None,
) -> Series:
    """The last `kept_steps` steps, with what is remembered of those before, and only the columns that a forecast asks for.

    Covariates end with the history: what is known ahead then belongs to the request. `rollout_states` are those of a network
    that reads whole histories, by the steps of `series` that were read by then.
    """
    names = {name for name in (*spec.static, spec.group) if name in series.static}
    columns = replace(
        series,
        covariates={name: series.covariates[name][: len(series)] for name in spec.covariates},
        channels={name: series.channels[name] for name in spec.channels},
        static={name: series.static[name] for name in sorted(filter(None, names))},
    )
    cut = len(series) - kept_steps
    if cut < 0 or (cut == 0 and not rollout_states):
        return columns
    _, past = drop_and_summarize(series.y, series.history_summary, cut=cut, season=season)
    places = {place - cut: each for place, each in (rollout_states or {}).items()}
    return replace(take_last(columns, kept_steps), history_summary=replace(past, rollout_states=places))
