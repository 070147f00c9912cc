"""A Forecaster is what was learned; a Predictor answers with it, one outcome for each series."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from forecaster.data.batching import (
    compute_future_timestamps,
    pad_histories,
    replace_non_finite,
    stack_channels,
    take_last,
)
from forecaster.engines.engine import Engine, EnsembleEngine, RolloutInput
from forecaster.errors import (
    BadStamp,
    ForecasterError,
)
from forecaster.frequency import Timestamps
from forecaster.history_summary import HistorySummary, history_scale
from forecaster.intervals.adaptive import AdaptiveState
from forecaster.prediction.carry import required_steps, truncate_series
from forecaster.prediction.engine_choice import build_fastest_engine, build_onnx_engine, combine_engines
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.validation import InputValidator
from forecaster.series import Forecast, Series
from forecaster.shapes import Float, Float64, Int
from forecaster.statistical.blend import (
    BlendedForecasts,
    blend_forecasts,
    list_statistical_components,
    require_packages,
)

if TYPE_CHECKING:
    from forecaster.engines.kernel_torch import TorchKernelEngine
    from forecaster.model.regressor import Regressor
else:
    TorchKernelEngine = Regressor = Any  # torch is loaded only where it computes

__all__ = ["FittedModel", "Predictor", "build_fastest_engine", "build_onnx_engine"]

MAX_BATCH_ROWS = 4096  # bounds the memory of one rollout; larger requests take several
MAX_BATCH_VALUES = 1 << 24  # of all histories that are read beside each other
_MIN_NOISE = np.float32(1e-6)  # in float32, so that the clipped noise stays there


class Predictor:
    """A forecaster ready to answer; it remembers nothing between calls, so threads may share it.

    Its rollouts run on the engine that is given, or in the compiled kernel where that knows the network, or in PyTorch on
    the device; draws that the engine cannot make are made in PyTorch, which is loaded when first needed. Of a blend, the
    statistical models are fitted to each history anew. Raises MissingPackage where the package that fits them is not installed.
    """

    def __init__(
        self, fitted_model: FittedModel | StoredModel, *, device: str = "cpu", engine: Engine | None = None
    ) -> None:
        require_packages(list_statistical_components(fitted_model.blend_weights))
        self.fitted_model, self.device, self.layout = fitted_model, device, fitted_model.layout
        self.engine = engine or self._build_default_engine()
        self._validator = InputValidator(fitted_model)

    @cached_property
    def networks(self) -> tuple[Regressor, ...]:
        """All members, on the device."""
        return tuple(network.to(self.device).eval() for network in self.fitted_model.networks)

    @property
    def network(self) -> Regressor:
        """The first of them."""
        return self.networks[0]

    @cached_property
    def kernel_members(self) -> tuple[TorchKernelEngine | None, ...]:
        """All members as the kernel runs them from torch; None where it does not know one."""
        from forecaster.engines.kernel_torch import build_torch_kernel_engine

        return tuple(build_torch_kernel_engine(network) for network in self.networks)

    @cached_property
    def _pytorch_engine(self) -> Engine:
        from forecaster.engines.pytorch import PyTorchEngine

        return combine_engines([PyTorchEngine(network, device=self.device) for network in self.networks])

    def _build_default_engine(self) -> Engine:
        reference = self._pytorch_engine
        members = reference.members if isinstance(reference, EnsembleEngine) else (reference,)
        return combine_engines([one or member for one, member in zip(self.kernel_members, members, strict=True)])

    def forecast(self, series: Series, horizon: int, *, levels: Sequence[float] = ()) -> Forecast:
        """The forecast of one series; raises what stands in its way."""
        outcome = self.forecast_batch([series], horizon, levels=levels)[0]
        if isinstance(outcome, ForecasterError):
            raise outcome
        return outcome

    def forecast_batch(
        self,
        series: Sequence[Series],
        horizon: int,
        *,
        levels: Sequence[float] = (),
        adaptive_state: AdaptiveState | None = None,
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
        self._validator.validate_arguments(horizon, levels)
        faults = self._validator.find_errors(series, horizon)
        good = [one for one, fault in zip(series, faults, strict=True) if fault is None]
        answers = iter(self._apply_blend(good, self._forecast_valid_series(good, horizon)))
        outcomes: list[Forecast | ForecasterError] = [next(answers) if fault is None else fault for fault in faults]
        return self._add_quantiles(series, outcomes, levels, adaptive_state) if levels else outcomes

    def sample_batch(
        self, series: Sequence[Series], horizon: int, *, paths: int, seed: int, first_path: int = 0
    ) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        """Sampled futures of each series: one array of paths, or what stands in its way.

        The noise of a series is drawn from the seed and its id, so its paths do not depend on its company. They are
        numbered: those from `first_path` on are the same whether those before are drawn with them or not. Raises BadSpec
        if the forecaster's head has no distribution to draw from, or its forecasts are a blend, HorizonOutOfRange as
        `forecast_batch`.
        """
        self._validator.validate_sampling(horizon)
        some = range(first_path, first_path + paths)
        outcomes: list[Float64[np.ndarray, "path horizon"] | ForecasterError] = []
        for one in series:
            fault = self.find_error(one, horizon)
            outcomes.append(fault or self._sample_paths([one], horizon, some, seed=seed)[0])
        return outcomes

    def forecast_scenarios(
        self,
        scenarios: Sequence[Series],
        horizon: int,
        *,
        levels: Sequence[float] = (),
        adaptive_state: AdaptiveState | None = None,
    ) -> list[Forecast | ForecasterError]:
        """The forecasts of one history with several futures of its covariates: it is read once, and goes on each way.

        Args:
            ways: The same history, one series for each future: all but the covariates after its end is alike in them.
            horizon: Steps ahead.
            levels: As in `forecast_batch`, which answers the same of each way.
            drift: Likewise.
        """
        self._validator.validate_arguments(horizon, levels)
        faults = [self.find_error(one, horizon) for one in scenarios]
        good = [one for one, fault in zip(scenarios, faults, strict=True) if fault is None]
        told = self._build_forecasts(good, self._roll_out_scenarios(good, horizon)) if good else []
        answers = iter(self._apply_blend(good, told, shared_history=True))
        outcomes: list[Forecast | ForecasterError] = [next(answers) if fault is None else fault for fault in faults]
        return self._add_quantiles(scenarios, outcomes, levels, adaptive_state) if levels else outcomes

    def sample_scenarios(
        self, scenarios: Sequence[Series], horizon: int, *, paths: int, seed: int, first_path: int = 0
    ) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        """Sampled futures of one history on several ways, as `forecast_scenarios` and `sample_batch`.

        The noise is common: a path differs from the path of the same number on another way by the covariates alone.
        """
        self._validator.validate_sampling(horizon)
        faults = [self.find_error(one, horizon) for one in scenarios]
        good = [one for one, fault in zip(scenarios, faults, strict=True) if fault is None]
        drawn = iter(
            self._sample_paths(good, horizon, range(first_path, first_path + paths), seed=seed) if good else ()
        )
        return [next(drawn) if fault is None else fault for fault in faults]

    def truncate_history(self, series: Series) -> Series:
        """The history cut down to what this forecaster still asks of it, however long it was.

        With later values behind it, it is forecast as the whole history would be.
        """
        spec, season, outline = self.fitted_model.spec, self.fitted_model.season, self.layout
        held = required_steps(
            spec,
            pre_context=outline.pre_context,
            season=season,
            is_blended=bool(list_statistical_components(self.fitted_model.blend_weights)),
        )
        if outline.reads == "window" or len(series) < held:
            return truncate_series(series, spec, kept_steps=held, season=season)
        from forecaster.prediction.recurrent_state import scale_settled_at, states_at_end

        known = (
            None
            if series.history_summary is not None and series.history_summary.rollout_states
            else self._build_window_input([series], outline.window_length(len(series)))
        )
        if known is not None and scale_settled_at(self.network, known) > len(series) - 2 * outline.segment:
            return truncate_series(
                series, spec, kept_steps=len(series), season=season
            )  # its scale may still change: all is asked for
        memories = states_at_end(series, self.networks, self._build_window_input, device=self.device)
        return truncate_series(series, spec, kept_steps=held, season=season, rollout_states=memories)

    def _build_window_input(self, series: Sequence[Series], steps: int) -> RolloutInput:
        return self._build_batch_input(series, 1, context=steps)

    def _predict_means(self, series: Sequence[Series], horizon: int) -> Float64[np.ndarray, "series horizon"]:
        if any(one.history_summary is not None and one.history_summary.rollout_states for one in series):
            return np.concatenate([self._roll_out_scenarios([one], horizon) for one in series])
        means, lengths = np.empty((len(series), horizon)), [len(one.y) for one in series]
        shown = {length: self.layout.window_length(length) for length in set(lengths)}
        for some in batch_by_length([shown[length] for length in lengths]):
            means[some] = self.engine.roll_out(
                self._build_batch_input([series[place] for place in some], horizon), horizon=horizon
            )
        return means

    def _build_batch_input(self, series: Sequence[Series], horizon: int, *, context: int | None = None) -> RolloutInput:
        """Windows (of all that the network reads, or of `context` steps) and future covariates, as the network reads them."""
        encoding, context = self.fitted_model.encoding, context or self.layout.window_length(max(map(len, series)))
        steps, names = self.round_up_horizon(horizon), self.fitted_model.spec.channels
        if not (encoding.num_covariates or encoding.static or names):
            return RolloutInput(pad_histories([one.y for one in series], context=context, fill_value=np.nan))
        tails = [take_last(one, context) for one in series]
        columns = (
            [encoding.encode_covariates(one, future_steps=steps) for one in tails] if encoding.num_covariates else []
        )
        known = [column[: len(one)] for one, column in zip(tails, columns, strict=True)] if columns else []
        beside = [stack_channels(one, names) for one in tails] if names else []
        return RolloutInput(
            pad_histories([one.y for one in tails], context=context, fill_value=np.nan),
            pad_histories(known, context=context, fill_value=0.0).astype(np.float32) if columns else None,
            np.stack([encoding.encode_static(one) for one in tails]) if encoding.static else None,
            pad_histories(beside, context=context, fill_value=np.nan) if names else None,
            np.stack([column[-steps:] for column in columns]).astype(np.float32) if columns else None,
        )

    def _build_scenario_input(self, scenarios: Sequence[Series], horizon: int) -> RolloutInput:
        """One history, from its memory on where it has one, and the covariates of every way on from it."""
        place, steps, encoding = (
            self._find_resume_step(scenarios[0]),
            self.round_up_horizon(horizon),
            self.fitted_model.encoding,
        )
        known = self._build_batch_input(
            scenarios[:1], horizon, context=None if place is None else len(scenarios[0]) - place
        )
        if len(scenarios) == 1 or known.future_covariates is None:
            return known
        tails = [take_last(one, self.layout.window_length(len(one))) for one in scenarios]
        columns = [encoding.encode_covariates(one, future_steps=steps)[-steps:] for one in tails]
        return known._replace(future_covariates=np.stack(columns).astype(np.float32))

    def _find_resume_step(self, series: Series) -> int | None:
        return (
            None
            if series.history_summary is None
            else series.history_summary.find_resume_step(len(series), segment=self.layout.segment)
        )

    def _select_resume_engine(self, series: Series, default_engine: Engine) -> Engine:
        """The engine that goes on from the memory of a history; the usual one where there is none."""
        place = self._find_resume_step(series)
        if place is None or series.history_summary is None:
            return default_engine
        from forecaster.prediction.recurrent_state import engines_from_states

        return combine_engines(
            engines_from_states(self.networks, series.history_summary.rollout_states[place], device=self.device)
        )

    def _roll_out_scenarios(self, scenarios: Sequence[Series], horizon: int) -> Float64[np.ndarray, "way horizon"]:
        told = self._select_resume_engine(scenarios[0], self.engine).roll_out(
            self._build_scenario_input(scenarios, horizon), horizon=horizon
        )
        return np.broadcast_to(told, (len(scenarios), horizon))

    def _sample_paths(
        self, scenarios: Sequence[Series], horizon: int, path_indices: range, *, seed: int
    ) -> Float64[np.ndarray, "way path horizon"]:
        """Paths fork from one warmed-up memory, with the same noise on every way.

        Members draw in turn: whole rounds are drawn, so that it does not depend on the first path who draws which.
        """
        members, known = self.fitted_model.spec.members, self._build_scenario_input(scenarios, horizon)
        begin, end = path_indices.start // members * members, -(-path_indices.stop // members) * members
        own = int.from_bytes(hashlib.sha256(f"{seed} {scenarios[0].id}".encode()).digest()[:8], "big") >> 1
        each = (self.layout.num_targets, self.round_up_horizon(horizon), self.layout.uniforms_per_draw)
        noise = _draw_uniforms(own, range(begin * math.prod(each), end * math.prod(each))).reshape(-1, *each[1:])
        if len(scenarios) > 1:
            noise = np.tile(noise, (len(scenarios), 1, 1))
            known = known._replace(
                future_covariates=None
                if known.future_covariates is None
                else known.future_covariates.repeat(end - begin, axis=0)
            )
        engine = self._select_resume_engine(
            scenarios[0], self.engine if self.engine.can_sample else self._pytorch_engine
        )
        told = engine.roll_out(known, horizon=horizon, noise=noise).reshape(len(scenarios), end - begin, horizon)
        return told[:, path_indices.start - begin : path_indices.stop - begin]

    def find_error(self, series: Series, horizon: int) -> ForecasterError | None:
        """What is wrong with a history, if anything."""
        return self._validator.find_error(series, horizon)

    def build_input(self, series: Series, horizon: int) -> RolloutInput:
        """What the network reads of a series that has no fault."""
        return self._build_batch_input([series], horizon)

    def round_up_horizon(self, horizon: int) -> int:
        """The horizon, rounded up to whole blocks."""
        return self.layout.round_up_horizon(horizon)

    def _add_quantiles(
        self,
        series: Sequence[Series],
        outcomes: Sequence[Forecast | ForecasterError],
        levels: Sequence[float],
        adaptive_state: AdaptiveState | None,
    ) -> list[Forecast | ForecasterError]:
        """The outcomes with calibrated quantiles about their means, rising in level."""
        calibration, rising = self.fitted_model.calibration, sorted(set(levels))
        assert calibration is not None, "levels were checked"
        done = list(outcomes)
        answered = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, Forecast)]
        for first in range(0, len(answered), MAX_BATCH_ROWS):
            some = answered[first : first + MAX_BATCH_ROWS]
            forecasts = [outcome for outcome in (outcomes[place] for place in some) if isinstance(outcome, Forecast)]
            offsets = calibration.compute_offsets(
                rising,
                horizon=len(forecasts[0].mean),
                scales=np.nan_to_num(
                    np.array([self.compute_scale(series[place].y, series[place].history_summary) for place in some])
                ),
                groups=[self.interval_group(series[place]) for place in some],
                adaptive_state=adaptive_state,
            )
            for place, forecast, own in zip(some, forecasts, offsets, strict=True):
                quantiles = {level: forecast.mean + own[:, column] for column, level in enumerate(rising)}
                done[place] = replace(forecast, quantiles=quantiles)
        return done

    def interval_group(self, series: Series) -> str | None:
        """The group that a series' intervals are taken from; None, or one not known, stands for all series."""
        name = self.fitted_model.spec.group
        return None if name is None else series.static.get(name)

    def compute_scale(self, history: Float64[np.ndarray, "_"], history_summary: HistorySummary | None = None) -> float:
        """The scale of a history that its calibration was measured in, and is undone with.

        All of it counts, as in benchmarks/intervals.py: measured on the network's short context it is so uncertain that
        intervals are wide and hold less (docs/experiments.md). Intervals of a history much shorter than those of the
        calibration hold less too.
        """
        return history_scale(history, self.fitted_model.season, history_summary=history_summary)

    def _forecast_valid_series(self, series: Sequence[Series], horizon: int) -> list[Forecast | BadStamp]:
        """The forecasts, or that the stamps of one go too far."""
        return self._build_forecasts(series, self._predict_means(series, horizon))

    def _build_forecasts(
        self, series: Sequence[Series], means: Float64[np.ndarray, "series horizon"]
    ) -> list[Forecast | BadStamp]:
        finite = np.isfinite(means).all(axis=1).tolist()
        return [
            ahead
            if isinstance(ahead, BadStamp)
            else Forecast(one.id, ahead, mean)
            if whole
            else self._build_repaired_forecast(one, ahead, mean)
            for one, ahead, mean, whole in zip(
                series, compute_future_timestamps(series, means.shape[1]), means, finite, strict=True
            )
        ]

    def blend_means(
        self, means: Float64[np.ndarray, "series horizon"], histories: Sequence[Float64[np.ndarray, "_"]]
    ) -> BlendedForecasts:
        """The blend of the network's forecasts with those of statistical models, fitted to each history anew."""
        return blend_forecasts(means, histories, self.fitted_model.blend_weights, season=self.fitted_model.season)

    def _apply_blend(
        self, series: Sequence[Series], forecasts: Sequence[Forecast | BadStamp], *, shared_history: bool = False
    ) -> Sequence[Forecast | BadStamp]:
        """The answers, blended; where the histories are alike the statistical models are fitted once."""
        own = [answer for answer in forecasts if isinstance(answer, Forecast)]
        if not self.fitted_model.blend_weights or not own:
            return forecasts
        known = [one.y for one, answer in zip(series, forecasts, strict=True) if isinstance(answer, Forecast)]
        told = self.blend_means(np.stack([one.mean for one in own]), known[:1] if shared_history else known)
        mixed = iter(
            replace(one, mean=mean, warnings=(*one.warnings, *further))
            for one, mean, further in zip(own, *told, strict=True)
        )
        return [next(mixed) if isinstance(answer, Forecast) else answer for answer in forecasts]

    def _build_repaired_forecast(
        self, series: Series, timestamps: Timestamps, mean: Float64[np.ndarray, "horizon"]
    ) -> Forecast:
        """The forecast, with the seasonal naive in place of what left the finite numbers."""
        broken = np.flatnonzero(~np.isfinite(mean))
        warning = (
            f"The network's forecast exploded at step {broken[0] + 1} of {len(mean)}; from there on it is the seasonal naive. "
            "Check the history for extreme values, or ask for a shorter horizon."
        )
        history = (
            series.y
            if series.history_summary is None
            else np.concatenate([series.history_summary.last_season_values, series.y])
        )
        return Forecast(
            series.id, timestamps, replace_non_finite(mean, history, season=self.fitted_model.season), (warning,)
        )


def _draw_uniforms(seed: int, indices: range) -> Float[np.ndarray, "place"]:
    """The uniforms in (0, 1) at these places of an endless row of them. Two come from each step of the generator."""
    bits = np.random.PCG64(seed)
    bits.advance(indices.start // 2)
    odd = indices.start % 2
    drawn = np.random.Generator(bits).random(len(indices) + odd, dtype=np.float32)[odd:]
    return drawn.clip(_MIN_NOISE, 1 - _MIN_NOISE)


def batch_by_length(lengths: Sequence[int]) -> Iterator[Int[np.ndarray, "some"]]:
    """The places of rows that are read beside each other, in order of their lengths: padded, they fit into memory."""
    if len(lengths) == 1:
        yield np.zeros(1, dtype=np.int64)
        return
    order = np.argsort(lengths, kind="stable")
    rising = np.asarray(lengths)[order]
    first = 0
    while first < len(order):
        longest = rising[first : first + MAX_BATCH_ROWS]
        rows = max(1, int((longest * np.arange(1, len(longest) + 1) <= MAX_BATCH_VALUES).sum()))
        yield order[first : first + rows]
        first += rows
