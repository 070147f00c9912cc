"""A Forecaster is what was learned; a Predictor answers with it, one outcome for each series."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from forecaster.data.batching import channels_of, mended, padded, stamps_ahead, tail
from forecaster.engines.engine import Engine, Known, Together
from forecaster.errors import (
    BadStamp,
    ForecasterError,
)
from forecaster.frequency import Stamps
from forecaster.history_summary import Past, history_scale
from forecaster.intervals.adaptive import Drift
from forecaster.prediction.carry import cut_down, needed
from forecaster.prediction.engine_choice import fastest_engine, graph_engine, together
from forecaster.prediction.fitted_model import Forecaster, Stored
from forecaster.prediction.validation import Faults
from forecaster.series import Forecast, Series
from forecaster.shapes import Float, Float64, Int
from forecaster.statistical.blend import Mixed, fitted_names, mix, need_all

if TYPE_CHECKING:
    from forecaster.engines.kernel_torch import Fused
    from forecaster.model.regressor import Regressor
else:
    Fused = Regressor = Any  # torch is loaded only where it computes

__all__ = ["Forecaster", "Predictor", "fastest_engine", "graph_engine"]

ROWS_AT_ONCE = 4096  # bounds the memory of one rollout; larger requests take several
VALUES_AT_ONCE = 1 << 24  # of all histories that are read beside each other
_LEAST_NOISE = np.float32(1e-6)  # in float32, so that the clipped noise stays there


class Predictor:
    """A forecaster ready to answer; it remembers nothing between calls, so threads may share it.

    Its rollouts run on the engine that is given, or in the compiled kernel where that knows the network, or in PyTorch on
    the device; draws that the engine cannot make are made in PyTorch, which is loaded when first needed. Of a blend, the
    statistical models are fitted to each history anew. Raises MissingPackage where the package that fits them is not installed.
    """

    def __init__(self, forecaster: Forecaster | Stored, *, device: str = "cpu", engine: Engine | None = None) -> None:
        need_all(fitted_names(forecaster.blend))
        self.forecaster, self.device, self.outline = forecaster, device, forecaster.outline
        self.engine = engine or self._own_engine()
        self._faults = Faults(forecaster)

    @cached_property
    def networks(self) -> tuple[Regressor, ...]:
        """All members, on the device."""
        return tuple(network.to(self.device).eval() for network in self.forecaster.networks)

    @property
    def network(self) -> Regressor:
        """The first of them."""
        return self.networks[0]

    @cached_property
    def fused(self) -> tuple[Fused | None, ...]:
        """All members as the kernel runs them from torch; None where it does not know one."""
        from forecaster.engines.kernel_torch import fused

        return tuple(fused(network) for network in self.networks)

    @cached_property
    def _reference(self) -> Engine:
        from forecaster.engines.pytorch import Reference

        return together([Reference(network, device=self.device) for network in self.networks])

    def _own_engine(self) -> Engine:
        reference = self._reference
        members = reference.members if isinstance(reference, Together) else (reference,)
        return together([one or member for one, member in zip(self.fused, members, strict=True)])

    def forecast(self, series: Series, horizon: int, *, levels: Sequence[float] = ()) -> Forecast:
        """The forecast of one series; raises what stands in its way."""
        outcome = self.forecast_each([series], horizon, levels=levels)[0]
        if isinstance(outcome, ForecasterError):
            raise outcome
        return outcome

    def forecast_each(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = (), drift: Drift | None = None
    ) -> list[Forecast | ForecasterError]:
        """One outcome for each series, in order; a bad one never spoils its neighbours.

        Args:
            series: The histories.
            horizon: Steps ahead.
            levels: Of the calibrated quantiles to give beside the point forecast: 0.1 and 0.9 bound an 80 % interval.
            drift: What late actuals have taught about them since.
        Raises:
            HorizonOutOfRange: `horizon` is below one.
            LevelOutOfRange: a level is not between 0 and 1, or the forecaster was not calibrated.
        """
        self._faults.check(horizon, levels)
        faults = self._faults.of_each(series, horizon)
        good = [one for one, fault in zip(series, faults, strict=True) if fault is None]
        answers = iter(self._blended(good, self._answers(good, horizon)))
        outcomes: list[Forecast | ForecasterError] = [next(answers) if fault is None else fault for fault in faults]
        return self._with_quantiles(series, outcomes, levels, drift) if levels else outcomes

    def sample_each(
        self, series: Sequence[Series], horizon: int, *, paths: int, seed: int, first: int = 0
    ) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        """Sampled futures of each series: one array of paths, or what stands in its way.

        The noise of a series is drawn from the seed and its id, so its paths do not depend on its company. They are
        numbered: those from `first` on are the same whether those before are drawn with them or not. Raises BadSpec
        if the forecaster's head has no distribution to draw from, or its forecasts are a blend, HorizonOutOfRange as
        `forecast_each`.
        """
        self._faults.check_draws(horizon)
        some = range(first, first + paths)
        outcomes: list[Float64[np.ndarray, "path horizon"] | ForecasterError] = []
        for one in series:
            fault = self.fault(one, horizon)
            outcomes.append(fault or self._paths([one], horizon, some, seed=seed)[0])
        return outcomes

    def forecast_ways(
        self, ways: Sequence[Series], horizon: int, *, levels: Sequence[float] = (), drift: Drift | None = None
    ) -> list[Forecast | ForecasterError]:
        """The forecasts of one history with several futures of its covariates: it is read once, and goes on each way.

        Args:
            ways: The same history, one series for each future: all but the covariates after its end is alike in them.
            horizon: Steps ahead.
            levels: As in `forecast_each`, which answers the same of each way.
            drift: Likewise.
        """
        self._faults.check(horizon, levels)
        faults = [self.fault(one, horizon) for one in ways]
        good = [one for one, fault in zip(ways, faults, strict=True) if fault is None]
        told = self._told(good, self._roll_ways(good, horizon)) if good else []
        answers = iter(self._blended(good, told, alike=True))
        outcomes: list[Forecast | ForecasterError] = [next(answers) if fault is None else fault for fault in faults]
        return self._with_quantiles(ways, outcomes, levels, drift) if levels else outcomes

    def sample_ways(
        self, ways: Sequence[Series], horizon: int, *, paths: int, seed: int, first: int = 0
    ) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        """Sampled futures of one history on several ways, as `forecast_ways` and `sample_each`.

        The noise is common: a path differs from the path of the same number on another way by the covariates alone.
        """
        self._faults.check_draws(horizon)
        faults = [self.fault(one, horizon) for one in ways]
        good = [one for one, fault in zip(ways, faults, strict=True) if fault is None]
        drawn = iter(self._paths(good, horizon, range(first, first + paths), seed=seed) if good else ())
        return [next(drawn) if fault is None else fault for fault in faults]

    def carry(self, one: Series) -> Series:
        """The history cut down to what this forecaster still asks of it, however long it was.

        With later values behind it, it is forecast as the whole history would be.
        """
        spec, season, outline = self.forecaster.spec, self.forecaster.season, self.outline
        held = needed(spec, before=outline.lead, season=season, blended=bool(fitted_names(self.forecaster.blend)))
        if outline.reads == "window" or len(one) < held:
            return cut_down(one, spec, held=held, season=season)
        from forecaster.prediction.recurrent_state import at_the_end, settled

        known = None if one.past is not None and one.past.memories else self._read([one], outline.shown(len(one)))
        if known is not None and settled(self.network, known) > len(one) - 2 * outline.segment:
            return cut_down(one, spec, held=len(one), season=season)  # its scale may still change: all is asked for
        memories = at_the_end(one, self.networks, self._read, device=self.device)
        return cut_down(one, spec, held=held, season=season, memories=memories)

    def _read(self, series: Sequence[Series], steps: int) -> Known:
        return self._ready(series, 1, context=steps)

    def _means(self, series: Sequence[Series], horizon: int) -> Float64[np.ndarray, "series horizon"]:
        if any(one.past is not None and one.past.memories for one in series):
            return np.concatenate([self._roll_ways([one], horizon) for one in series])
        means, lengths = np.empty((len(series), horizon)), [len(one.y) for one in series]
        shown = {length: self.outline.shown(length) for length in set(lengths)}
        for some in beside([shown[length] for length in lengths]):
            means[some] = self.engine.roll(self._ready([series[place] for place in some], horizon), horizon=horizon)
        return means

    def _ready(self, series: Sequence[Series], horizon: int, *, context: int | None = None) -> Known:
        """Windows (of all that the network reads, or of `context` steps) and future covariates, as the network reads them."""
        encoding, context = self.forecaster.encoding, context or self.outline.shown(max(map(len, series)))
        steps, names = self.steps(horizon), self.forecaster.spec.channels
        if not (encoding.width or encoding.static or names):
            return Known(padded([one.y for one in series], context=context, empty=np.nan))
        tails = [tail(one, context) for one in series]
        columns = [encoding.covariates(one, ahead=steps) for one in tails] if encoding.width else []
        known = [column[: len(one)] for one, column in zip(tails, columns, strict=True)] if columns else []
        beside = [channels_of(one, names) for one in tails] if names else []
        return Known(
            padded([one.y for one in tails], context=context, empty=np.nan),
            padded(known, context=context, empty=0.0).astype(np.float32) if columns else None,
            np.stack([encoding.groups(one) for one in tails]) if encoding.static else None,
            padded(beside, context=context, empty=np.nan) if names else None,
            np.stack([column[-steps:] for column in columns]).astype(np.float32) if columns else None,
        )

    def _ready_ways(self, ways: Sequence[Series], horizon: int) -> Known:
        """One history, from its memory on where it has one, and the covariates of every way on from it."""
        place, steps, encoding = self._place(ways[0]), self.steps(horizon), self.forecaster.encoding
        known = self._ready(ways[:1], horizon, context=None if place is None else len(ways[0]) - place)
        if len(ways) == 1 or known.ahead is None:
            return known
        tails = [tail(one, self.outline.shown(len(one))) for one in ways]
        columns = [encoding.covariates(one, ahead=steps)[-steps:] for one in tails]
        return known._replace(ahead=np.stack(columns).astype(np.float32))

    def _place(self, one: Series) -> int | None:
        return None if one.past is None else one.past.place(len(one), segment=self.outline.segment)

    def _going_on(self, one: Series, usual: Engine) -> Engine:
        """The engine that goes on from the memory of a history; the usual one where there is none."""
        place = self._place(one)
        if place is None or one.past is None:
            return usual
        from forecaster.prediction.recurrent_state import going_on

        return together(going_on(self.networks, one.past.memories[place], device=self.device))

    def _roll_ways(self, ways: Sequence[Series], horizon: int) -> Float64[np.ndarray, "way horizon"]:
        told = self._going_on(ways[0], self.engine).roll(self._ready_ways(ways, horizon), horizon=horizon)
        return np.broadcast_to(told, (len(ways), horizon))

    def _paths(
        self, ways: Sequence[Series], horizon: int, paths: range, *, seed: int
    ) -> Float64[np.ndarray, "way path horizon"]:
        """Paths fork from one warmed-up memory, with the same noise on every way.

        Members draw in turn: whole rounds are drawn, so that it does not depend on the first path who draws which.
        """
        members, known = self.forecaster.spec.members, self._ready_ways(ways, horizon)
        begin, end = paths.start // members * members, -(-paths.stop // members) * members
        own = int.from_bytes(hashlib.sha256(f"{seed} {ways[0].id}".encode()).digest()[:8], "big") >> 1
        each = (self.outline.targets, self.steps(horizon), self.outline.noise)
        noise = _uniforms(own, range(begin * math.prod(each), end * math.prod(each))).reshape(-1, *each[1:])
        if len(ways) > 1:
            noise = np.tile(noise, (len(ways), 1, 1))
            known = known._replace(ahead=None if known.ahead is None else known.ahead.repeat(end - begin, axis=0))
        engine = self._going_on(ways[0], self.engine if self.engine.draws else self._reference)
        told = engine.roll(known, horizon=horizon, noise=noise).reshape(len(ways), end - begin, horizon)
        return told[:, paths.start - begin : paths.stop - begin]

    def fault(self, one: Series, horizon: int) -> ForecasterError | None:
        """What is wrong with a history, if anything."""
        return self._faults.of(one, horizon)

    def known(self, one: Series, horizon: int) -> Known:
        """What the network reads of a series that has no fault."""
        return self._ready([one], horizon)

    def steps(self, horizon: int) -> int:
        """The horizon, rounded up to whole blocks."""
        return self.outline.whole(horizon)

    def _with_quantiles(
        self,
        series: Sequence[Series],
        outcomes: Sequence[Forecast | ForecasterError],
        levels: Sequence[float],
        drift: Drift | None,
    ) -> list[Forecast | ForecasterError]:
        """The outcomes with calibrated quantiles about their means, rising in level."""
        calibration, rising = self.forecaster.calibration, sorted(set(levels))
        assert calibration is not None, "levels were checked"
        done = list(outcomes)
        answered = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, Forecast)]
        for first in range(0, len(answered), ROWS_AT_ONCE):
            some = answered[first : first + ROWS_AT_ONCE]
            forecasts = [outcome for outcome in (outcomes[place] for place in some) if isinstance(outcome, Forecast)]
            offsets = calibration.offsets(
                rising,
                horizon=len(forecasts[0].mean),
                scales=np.nan_to_num(np.array([self.scale(series[place].y, series[place].past) for place in some])),
                groups=[self.group(series[place]) for place in some],
                drift=drift,
            )
            for place, forecast, own in zip(some, forecasts, offsets, strict=True):
                quantiles = {level: forecast.mean + own[:, column] for column, level in enumerate(rising)}
                done[place] = replace(forecast, quantiles=quantiles)
        return done

    def group(self, one: Series) -> str | None:
        """The group that a series' intervals are taken from; None, or one not known, stands for all series."""
        name = self.forecaster.spec.group
        return None if name is None else one.static.get(name)

    def scale(self, history: Float64[np.ndarray, "_"], past: Past | None = None) -> float:
        """The scale of a history that its calibration was measured in, and is undone with.

        All of it counts, as in benchmarks/intervals.py: measured on the network's short context it is so uncertain that
        intervals are wide and hold less (docs/experiments.md). Intervals of a history much shorter than those of the
        calibration hold less too.
        """
        return history_scale(history, self.forecaster.season, past=past)

    def _answers(self, series: Sequence[Series], horizon: int) -> list[Forecast | BadStamp]:
        """The forecasts, or that the stamps of one go too far."""
        return self._told(series, self._means(series, horizon))

    def _told(
        self, series: Sequence[Series], means: Float64[np.ndarray, "series horizon"]
    ) -> list[Forecast | BadStamp]:
        finite = np.isfinite(means).all(axis=1).tolist()
        return [
            ahead
            if isinstance(ahead, BadStamp)
            else Forecast(one.id, ahead, mean)
            if whole
            else self._mended(one, ahead, mean)
            for one, ahead, mean, whole in zip(series, stamps_ahead(series, means.shape[1]), means, finite, strict=True)
        ]

    def blended(
        self, means: Float64[np.ndarray, "series horizon"], histories: Sequence[Float64[np.ndarray, "_"]]
    ) -> Mixed:
        """The blend of the network's forecasts with those of statistical models, fitted to each history anew."""
        return mix(means, histories, self.forecaster.blend, season=self.forecaster.season)

    def _blended(
        self, series: Sequence[Series], answers: Sequence[Forecast | BadStamp], *, alike: bool = False
    ) -> Sequence[Forecast | BadStamp]:
        """The answers, blended; where the histories are alike the statistical models are fitted once."""
        own = [answer for answer in answers if isinstance(answer, Forecast)]
        if not self.forecaster.blend or not own:
            return answers
        known = [one.y for one, answer in zip(series, answers, strict=True) if isinstance(answer, Forecast)]
        told = self.blended(np.stack([one.mean for one in own]), known[:1] if alike else known)
        mixed = iter(
            replace(one, mean=mean, warnings=(*one.warnings, *further))
            for one, mean, further in zip(own, *told, strict=True)
        )
        return [next(mixed) if isinstance(answer, Forecast) else answer for answer in answers]

    def _mended(self, one: Series, ahead: Stamps, mean: Float64[np.ndarray, "horizon"]) -> Forecast:
        """The forecast, with the seasonal naive in place of what left the finite numbers."""
        broken = np.flatnonzero(~np.isfinite(mean))
        warning = (
            f"The network's forecast exploded at step {broken[0] + 1} of {len(mean)}; from there on it is the seasonal naive. "
            "Check the history for extreme values, or ask for a shorter horizon."
        )
        history = one.y if one.past is None else np.concatenate([one.past.latest, one.y])
        return Forecast(one.id, ahead, mended(mean, history, season=self.forecaster.season), (warning,))


def _uniforms(seed: int, places: range) -> Float[np.ndarray, "place"]:
    """The uniforms in (0, 1) at these places of an endless row of them. Two come from each step of the generator."""
    bits = np.random.PCG64(seed)
    bits.advance(places.start // 2)
    odd = places.start % 2
    drawn = np.random.Generator(bits).random(len(places) + odd, dtype=np.float32)[odd:]
    return drawn.clip(_LEAST_NOISE, 1 - _LEAST_NOISE)


def beside(lengths: Sequence[int]) -> Iterator[Int[np.ndarray, "some"]]:
    """The places of rows that are read beside each other, in order of their lengths: padded, they fit into memory."""
    if len(lengths) == 1:
        yield np.zeros(1, dtype=np.int64)
        return
    order = np.argsort(lengths, kind="stable")
    rising = np.asarray(lengths)[order]
    first = 0
    while first < len(order):
        longest = rising[first : first + ROWS_AT_ONCE]
        rows = max(1, int((longest * np.arange(1, len(longest) + 1) <= VALUES_AT_ONCE).sum()))
        yield order[first : first + rows]
        first += rows
