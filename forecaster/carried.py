"""Histories cut down to what a forecaster still asks of them: a forecast from the rest is that from the whole."""

from __future__ import annotations

from dataclasses import replace

from forecaster.blend import LONGEST
from forecaster.histories import tail
from forecaster.past import forget
from forecaster.series import Series
from forecaster.spec import Spec


def needed(spec: Spec, *, shown: int, season: int, blended: bool) -> int:
    """Last steps that forecasts and intervals look at; what they ask of earlier ones is in a Past."""
    return max(shown, spec.context, season, LONGEST if blended else 0)


def cut_down(one: Series, spec: Spec, *, held: int, season: int) -> Series:
    """The last `held` steps, with what is remembered of those before, and only the columns that a forecast asks for.

    Covariates end with the history: what is known ahead then belongs to the request.
    """
    columns = replace(
        one,
        covariates={name: one.covariates[name][: len(one)] for name in spec.covariates},
        channels={name: one.channels[name] for name in spec.channels},
        static={
            name: one.static[name] for name in {*spec.static, spec.group} if name is not None and name in one.static
        },
    )
    if len(one) <= held:
        return columns
    _, past = forget(one.y, one.past, cut=len(one) - held, season=season)
    return replace(tail(columns, held), past=past)
