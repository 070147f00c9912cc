"""Histories cut down to what a forecaster still asks of them: a forecast from the rest is that from the whole.

A network that reads windows asks for the last of them. One that reads whole histories asks for what its rollout carried to a
place near the end, once its scale is settled; since segments are counted from the end, for that of each place in a segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from forecaster.data.batching import tail
from forecaster.history_summary import Arrays, forget
from forecaster.series import Series
from forecaster.spec import Spec
from forecaster.statistical.blend import LONGEST


def needed(spec: Spec, *, before: int, season: int, blended: bool) -> int:
    """Last steps that forecasts and intervals look at; what they ask of earlier ones is in a Past.

    `before` is how many steps of a window the network looks back on before its context.
    """
    return max(before + spec.context, season, 2 * spec.segment, LONGEST if blended else 0)


def cut_down(
    one: Series, spec: Spec, *, held: int, season: int, memories: Mapping[int, Sequence[Arrays]] | None = None
) -> Series:
    """The last `held` steps, with what is remembered of those before, and only the columns that a forecast asks for.

    Covariates end with the history: what is known ahead then belongs to the request. `memories` are those of a network
    that reads whole histories, by the steps of `one` that were read by then.
    """
    names = {name for name in (*spec.static, spec.group) if name in one.static}
    columns = replace(
        one,
        covariates={name: one.covariates[name][: len(one)] for name in spec.covariates},
        channels={name: one.channels[name] for name in spec.channels},
        static={name: one.static[name] for name in sorted(filter(None, names))},
    )
    cut = len(one) - held
    if cut < 0 or (cut == 0 and not memories):
        return columns
    _, past = forget(one.y, one.past, cut=cut, season=season)
    places = {place - cut: each for place, each in (memories or {}).items()}
    return replace(tail(columns, held), past=replace(past, memories=places))
