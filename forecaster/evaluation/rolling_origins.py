"""What a forecaster says at every rolling origin of many series, without asking it at each.

A network that reads whole histories reads each series once: the state after a step serves the origin there. One that reads
windows shares nothing between origins, but all windows are rows of few batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.data.batching import mended
from forecaster.data.split import origins
from forecaster.data.windows import Tape
from forecaster.engines.engine import median
from forecaster.engines.kernel_torch import Fused
from forecaster.errors import HorizonOutOfRange
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import Memory, pick, roll, warm_up
from forecaster.model.rollout_origins import MEMORIES_AT_ONCE, memories
from forecaster.model.scaling import settle
from forecaster.prediction.predictor import ROWS_AT_ONCE, Predictor, beside
from forecaster.series import Series
from forecaster.shapes import Bool, Float, Float64, Int

Cube = Float64[np.ndarray, "series window horizon"]


def all_origins(
    predictor: Predictor, series: Sequence[Series], *, horizon: int, windows: int, stride: int | None = None
) -> Cube:
    """The point forecasts at the last `windows` origins of every series, as `predictor.forecast_each` gives them there.

    Args:
        predictor: Whom to ask.
        series: Whole series; what lies after an origin has no part in its forecast.
        horizon: Steps ahead.
        windows: Origins of each series, the last of them a horizon before its end.
        stride: Steps between them; a horizon, if not given.
    Returns:
        NaN where there is no forecast: the history is too short there, say.
    Raises:
        HorizonOutOfRange: `horizon` is below one.
    """
    if horizon < 1:
        raise HorizonOutOfRange(f"Expected a horizon of at least 1 step; found {horizon}.", where="horizon")
    apart = stride or horizon
    lefts = np.array(origins(windows=windows, horizon=horizon, stride=apart), dtype=np.int64)
    cuts = np.array([len(one) for one in series], dtype=np.int64)[:, None] - lefts
    faultless = [_answered(predictor, one, at, horizon) for one, at in zip(series, cuts, strict=True)]
    answered = np.array(faultless, dtype=bool).reshape(cuts.shape)
    found = np.full((*cuts.shape, horizon), np.nan)
    rows = np.flatnonzero(answered.any(axis=1))
    for some in beside([predictor.network.shown(len(series[int(row)])) for row in rows]):
        group = rows[some]
        at = (group, slice(int(answered[group].any(axis=0).argmax()), None))
        whole = [series[int(row)] for row in group]
        told = [
            _ask(_Asked(predictor, network, compiled, whole, cuts[at], answered[at], horizon, apart))
            for network, compiled in zip(predictor.networks, predictor.fused, strict=True)
        ]
        agreed = told[0] if len(told) == 1 else median(np.stack(told))
        found[at] = _mended(agreed, whole, cuts[at], answered[at], season=predictor.forecaster.season)
    if predictor.forecaster.blend:
        known = [series[row].y[: cuts[row, window]] for row, window in np.argwhere(answered)]
        found[answered] = predictor.blended(found[answered], known).forecasts
    return found


class _Asked(NamedTuple):
    """The origins of some series that are laid on one tape; each has an answer somewhere, and so has the oldest origin.

    Attributes:
        predictor: Who is asked.
        network: Which of its members.
        fused: The same as the compiled kernel runs it; None where that does not know it.
        series: Whole series.
        cuts: How many steps are known at each origin, in rising order.
        answered: Where there is a forecast.
        horizon: Steps ahead.
        stride: Steps between origins.
    """

    predictor: Predictor
    network: Regressor
    fused: Fused | None
    series: Sequence[Series]
    cuts: Int[np.ndarray, "series window"]
    answered: Bool[np.ndarray, "series window"]
    horizon: int
    stride: int


class _Told(NamedTuple):
    """Forecasts, and the origins they are of."""

    forecasts: Float64[Tensor, "row horizon"]
    series: Int[np.ndarray, "row"]
    window: Int[np.ndarray, "row"]


def _ask(asked: _Asked) -> Cube:
    predictor, network = asked.predictor, asked.network
    steps, longest = predictor.steps(asked.horizon), max(map(len, asked.series))
    found = np.full((*asked.cuts.shape, asked.horizon), np.nan)
    tape = Tape.record(
        asked.series,
        context=network.shown(longest) + network.segment,
        horizon=steps,
        encoding=predictor.forecaster.encoding,
        channels=predictor.forecaster.spec.channels,
        ahead=max(0, steps - asked.horizon),
    ).to(predictor.device)
    read = _windows if network.reads == "window" else _histories
    with torch.inference_mode():
        for told in read(asked, tape):
            found[told.series, told.window] = told.forecasts.cpu().numpy()
    return found


def _rolled(
    asked: _Asked, tape: Tape, memory: Memory, series: Int[np.ndarray, "row"], window: Int[np.ndarray, "row"]
) -> _Told:
    """What follows memories at their origins."""
    ahead = _ahead(tape, series, asked.cuts[series, window], asked.predictor.steps(asked.horizon))
    return _Told(roll(asked.network, memory, horizon=asked.horizon, ahead=ahead)[0], series, window)


def _mended(
    told: Cube,
    series: Sequence[Series],
    cuts: Int[np.ndarray, "series window"],
    answered: Bool[np.ndarray, "series window"],
    *,
    season: int,
) -> Cube:
    for row, window in np.argwhere(answered & ~np.isfinite(told).all(axis=2)):
        told[row, window] = mended(told[row, window], series[row].y[: cuts[row, window]], season=season)
    return told


def _windows(asked: _Asked, tape: Tape, only: Bool[np.ndarray, "series window"] | None = None) -> Iterator[_Told]:
    """Every origin from a window of its own."""
    network = asked.network
    series, window = np.nonzero(asked.answered if only is None else only)
    cuts = asked.cuts[series, window]
    for some in beside([network.shown(int(cut)) for cut in cuts]):
        rows = torch.from_numpy(series[some]).to(tape.values.device)
        places = tape.first[rows] + torch.from_numpy(cuts[some]).to(rows.device)
        shown = network.shown(int(cuts[some].max()))
        known = tape.cut(places, context=shown, horizon=0, series=rows).window
        if asked.fused is not None:
            yield _Told(asked.fused.forecast(known.values, horizon=asked.horizon), series[some], window[some])
        else:
            yield _rolled(asked, tape, warm_up(network, known), series[some], window[some])


def _histories(asked: _Asked, tape: Tape) -> Iterator[_Told]:
    """Every origin from what one pass over its series knew there; those before the scale has settled from one of their own.

    The recurrence reads whole segments, and the last of them ends at the origin. So only origins a multiple of the segment
    apart share a pass; there are as many passes, beside each other, as it takes.
    """
    network, (_, windows) = asked.network, asked.cuts.shape
    shared = asked.answered & _settled(asked, tape)
    if (asked.answered & ~shared).any():
        yield from _windows(asked, tape, asked.answered & ~shared)
    phases = min(network.segment // gcd(network.segment, asked.stride), windows)
    every, count = phases * asked.stride, -(-windows // phases)
    # By row: its place on the tape, and of each of its places which window it is; -1 is none.
    numbers = windows - 1 - np.arange(phases)[:, None] - phases * np.arange(count - 1, -1, -1)
    row, phase = np.nonzero(np.stack([shared[:, each[each >= 0]].any(axis=1) for each in numbers], axis=1))
    ends = asked.cuts[row, numbers[phase, -1]]
    if not len(row):
        return
    rows = torch.from_numpy(row).to(tape.values.device)
    places = tape.first[rows] + torch.from_numpy(ends).to(rows.device)
    width = max(network.shown(int(ends.max())), network.lead + (count - 1) * every + network.segment)
    window = tape.cut(places, context=width, horizon=0, series=rows).window
    if asked.fused is not None and count <= MEMORIES_AT_ONCE:
        at_once = max(1, MEMORIES_AT_ONCE // count)
        for first in range(0, len(row), at_once):
            part = slice(first, first + at_once)
            series, number = row[part].repeat(count), numbers[phase[part]].ravel()
            wanted = np.flatnonzero((number >= 0) & shared[series, number])
            reached = asked.fused.reach(window.values[part], every=every, count=count).pick(torch.from_numpy(wanted))
            yield _Told(asked.fused.go_on(reached, horizon=asked.horizon), series[wanted], number[wanted])
        return
    done = 0
    for memory in memories(network, window, every=every, count=count):
        span = len(memory.output) // len(row)
        series, number = np.tile(row, span), numbers[phase, done : done + span].T.flatten()
        wanted = np.flatnonzero((number >= 0) & shared[series, number])
        for first in range(0, len(wanted), ROWS_AT_ONCE):
            some = wanted[first : first + ROWS_AT_ONCE]
            picked = pick(memory, torch.from_numpy(some).to(rows.device))
            yield _rolled(asked, tape, picked, series[some], number[some])
        done += span


def _settled(asked: _Asked, tape: Tape) -> Bool[np.ndarray, "series window"]:
    """At which origins the scale of a series is the one it keeps; a channel that was not observed yet needs none."""
    network, longest = asked.network, int(asked.cuts.max())
    tracks = tape.cut(tape.first + longest, context=longest, horizon=0).window.tracks
    found = settle(tracks, network.scaling, steps=network.context, season=network.season, transform=network.transform)
    begin, since = (part.reshape(-1, network.targets, 1).cpu().numpy() for part in (found.begin, found.since))
    cuts = asked.cuts[:, None]
    return np.asarray(((cuts <= begin) | (cuts >= since)).all(axis=1))


def _ahead(
    tape: Tape, series: Int[np.ndarray, "row"], cuts: Int[np.ndarray, "row"], steps: int
) -> Float[Tensor, "row step covariate"] | None:
    """The covariates of the steps after each origin."""
    if tape.covariates is None:
        return None
    first = tape.first[torch.from_numpy(series).to(tape.first.device)] + torch.from_numpy(cuts).to(tape.first.device)
    return tape.covariates[first[:, None] + torch.arange(steps, device=first.device)]


def _answered(
    predictor: Predictor, one: Series, cuts: Int[np.ndarray, "window"], horizon: int
) -> Bool[np.ndarray, "window"]:
    """At which origins of a series the predictor finds no fault with what is known."""
    spec, numeric = predictor.forecaster.spec, predictor.forecaster.encoding.numeric
    long_enough = cuts >= spec.least
    if not long_enough.any():
        return long_enough
    sound = predictor.fault(one.until(int(cuts.max())), horizon) is None
    if sound and all(np.isfinite(one.covariates[name]).all() for name in numeric):
        seen = np.concatenate([[0], np.cumsum(~np.isnan(one.y))])
        return np.asarray(long_enough & (seen[cuts.clip(0)] > seen[(cuts - spec.context).clip(0)]))
    # Something is wrong somewhere: every origin is looked at on its own.
    return np.array(
        [
            bool(known) and predictor.fault(one.until(int(cut)), horizon) is None
            for cut, known in zip(cuts, long_enough, strict=True)
        ]
    )
