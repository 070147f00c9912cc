"""The predictor: forecasts, quantiles and sample paths of a fitted model, with one outcome per series."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from forecaster.data.batching import compute_future_timestamps, replace_non_finite
from forecaster.data.encoding import find_category
from forecaster.engines.engine import Engine, RolloutInput, find_quantile_engine
from forecaster.engines.statistical.blend import (
    BlendedForecasts,
    blend_forecasts,
    list_statistical_components,
    require_packages,
)
from forecaster.errors import BadStamp, BundleError, ForecasterError
from forecaster.frequency.timestamps import Timestamps
from forecaster.installation import is_installed, require_package
from forecaster.intervals.adaptive import AdaptiveState
from forecaster.intervals.difficulty import count_recent_steps, measure_changes
from forecaster.prediction.bounds import Bounds, round_quantiles
from forecaster.prediction.carry import required_steps, truncate_series
from forecaster.prediction.engine_choice import choose_engine, choose_sampling_engine, combine_engines
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.head_quantiles import (
    attach_head_quantiles,
    describe_changes,
    has_head_quantiles,
    recalibrate_offsets,
    recalibrate_paths,
    split_median,
    with_median,
)
from forecaster.prediction.input_warnings import InputInspector
from forecaster.prediction.joint_bands import forecast_joint_bands
from forecaster.prediction.rollout_input import RolloutInputBuilder
from forecaster.prediction.validation import InputValidator
from forecaster.series import Forecast, Series
from forecaster.series.history_summary import HistorySummary, find_constant, history_scale, history_scales
from forecaster.shapes import Float, Float64, Int

if TYPE_CHECKING:
    from forecaster.model.regressor import Regressor
else:
    Regressor = Any  # torch is imported only where it computes

__all__ = ["FittedModel", "Predictor"]

MAX_BATCH_ROWS = 4096  # bounds the memory of one rollout; larger requests are split into several
MAX_SERIES_AT_ONCE = 1 << 14  # bounds the memory of everything else but the result
MAX_BATCH_VALUES = 1 << 24  # of all padded histories in one batch
MIN_RELATIVE_SCALE = 0.01  # unit of errors of a history that never changes, relative to its value; of zeros, absolute
_STATE_PURPOSE = "the stored states of a network that reads whole histories"
_MIN_NOISE = np.float32(1e-6)  # float32, so that clipped noise stays float32


@runtime_checkable
class PredictorOrigin(Protocol):
    """Where a predictor was loaded from; it can be pickled, and loads an equal predictor."""

    def load(self) -> Predictor:
        """Loads the predictor; raises BundleError if its files are missing or have changed."""
        ...


class Predictor:
    """A fitted model with an engine. It keeps no state between calls, so threads may share it.

    Rollouts run on the given engine, by default on the one that `choose_engine` chooses for the device. Sample paths that the
    engine cannot draw are drawn by `choose_sampling_engine`, on first use. The statistical models of a blend are fitted to each
    history. Means, quantiles and paths stay within `bounds`. With a clock, forecasts of histories whose last period contains the
    present have a warning. Raises MissingPackage if the package that fits the statistical models, or a network that only PyTorch
    runs, is not installed.

    A predictor with an `origin`, as `load_predictor` returns it, can be pickled: the pickle holds the origin, and the process
    that unpickles it loads the same bundle.
    """

    def __init__(
        self,
        fitted_model: FittedModel | StoredModel,
        *,
        device: str = "cpu",
        engine: Engine | None = None,
        clock: Callable[[], datetime] | None = None,
        origin: PredictorOrigin | None = None,
    ) -> None:
        require_packages(list_statistical_components(fitted_model.blend_weights))
        self.fitted_model, self.device, self.layout = fitted_model, device, fitted_model.layout
        self.engine = engine or choose_engine(fitted_model, device=device)
        self._has_head_quantiles = has_head_quantiles(fitted_model, self.engine)
        self._validator = InputValidator(fitted_model, has_head_quantiles=self._has_head_quantiles)
        self._inspector, self.bounds = (
            InputInspector(fitted_model),
            Bounds.from_facts(fitted_model.spec, fitted_model.facts),
        )
        self._inputs, self._clock, self._origin = RolloutInputBuilder(fitted_model), clock, origin

    def __reduce__(self) -> tuple[Callable[[PredictorOrigin], Predictor], tuple[PredictorOrigin]]:
        if self._origin is None:
            raise BundleError(
                f"Expected a predictor that was loaded from a bundle, because a pickle holds its path and digest; the model "
                f"{self.fitted_model.spec.name!r} is in memory only. Write a bundle, and pickle load_predictor(folder).",
                where=self.fitted_model.spec.name,
            )
        return _load_from, (self._origin,)

    @cached_property
    def networks(self) -> tuple[Regressor, ...]:
        """The networks of all members, on the device."""
        return tuple(network.to(self.device).eval() for network in self.fitted_model.networks)

    @property
    def has_quantiles(self) -> bool:
        """Whether forecasts may have quantiles: from a calibration, or else from the head."""
        return self.fitted_model.calibration is not None or self._has_head_quantiles

    @property
    def network(self) -> Regressor:
        """The network of the first member."""
        return self.networks[0]

    @cached_property
    def _sampling_engine(self) -> Engine:
        return choose_sampling_engine(self.fitted_model, self.engine, device=self.device)

    def forecast(self, series: Series, horizon: int, *, levels: Sequence[float] = (), joint: bool = False) -> Forecast:
        """Forecasts one series; raises the error of an invalid series."""
        outcome = self.forecast_batch([series], horizon, levels=levels, joint=joint)[0]
        if isinstance(outcome, ForecasterError):
            raise outcome
        return outcome

    def forecast_batch(
        self,
        series: Sequence[Series],
        horizon: int,
        *,
        levels: Sequence[float] = (),
        joint: bool = False,
        adaptive_state: AdaptiveState | None = None,
    ) -> list[Forecast | ForecasterError]:
        """Forecasts each series; returns one outcome per series, in order. An invalid series does not affect the others.

        Args:
            series: The histories.
            horizon: Steps ahead.
            levels: The levels of the quantiles to return with the point forecast: 0.1 and 0.9 bound an 80 % interval. They are
                those of the calibration or, without one, of the head.
            joint: Whether the quantiles bound whole paths rather than single steps: the actuals of all steps together lie between
                those of 0.1 and 0.9 with a probability of 80 %.
            adaptive_state: Shifts of the quantiles from actuals since the calibration.
        Raises:
            HorizonOutOfRange: `horizon` is below one.
            LevelOutOfRange: A level is not between 0 and 1, or the model has no quantiles, or no bands of whole paths.
        """
        self._validator.validate_arguments(horizon, levels)
        if joint:
            return forecast_joint_bands(
                self.fitted_model.calibration,
                levels,
                horizon=horizon,
                forecast=lambda widened: self.forecast_batch(
                    series, horizon, levels=widened, adaptive_state=adaptive_state
                ),
            )
        if len(series) > MAX_SERIES_AT_ONCE:
            return [
                outcome
                for first in range(0, len(series), MAX_SERIES_AT_ONCE)
                for outcome in self.forecast_batch(
                    series[first : first + MAX_SERIES_AT_ONCE], horizon, levels=levels, adaptive_state=adaptive_state
                )
            ]
        errors = self._validator.find_errors(series, horizon)
        valid = [item for item, error in zip(series, errors, strict=True) if error is None]
        if levels and self._has_head_quantiles:
            rolled_out = self._predict(valid, horizon, levels=self._head_levels(levels))
            results = iter(self._bound(valid, self._complete_head_quantiles(valid, rolled_out, levels, adaptive_state)))
            return [next(results) if error is None else error for error in errors]
        completed = self._complete_forecasts(
            valid, self._apply_blend(valid, self._forecast_valid_series(valid, horizon))
        )
        results = iter(self._bound(valid, completed, levels, adaptive_state))
        return [next(results) if error is None else error for error in errors]

    def sample_batch(
        self, series: Sequence[Series], horizon: int, *, paths: int, seed: int, first_path: int = 0
    ) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        """Draws sample paths of each series: one array of paths, or the error of the series.

        The noise of a series depends only on the seed and its id, so its paths do not depend on the other series. Paths are
        numbered: the paths from `first_path` on are the same whether earlier paths are drawn or not.

        Raises:
            BadSpec: The head of the model has no distribution, or the model is a blend.
            HorizonOutOfRange: `horizon` is below one.
        """
        self._validator.validate_sampling(horizon)
        path_indices = range(first_path, first_path + paths)
        outcomes: list[Float64[np.ndarray, "path horizon"] | ForecasterError] = []
        for item in series:
            error = self.find_error(item, horizon)
            outcomes.append(error or self._sample_paths([item], horizon, path_indices, seed=seed)[0])
        return outcomes

    def forecast_scenarios(
        self,
        scenarios: Sequence[Series],
        horizon: int,
        *,
        levels: Sequence[float] = (),
        joint: bool = False,
        adaptive_state: AdaptiveState | None = None,
    ) -> list[Forecast | ForecasterError]:
        """Forecasts one history with several futures of its covariates. The history is read once for all scenarios.

        Args:
            scenarios: The same history, one series per scenario; they differ only in the covariates after the history.
            horizon: Steps ahead.
            levels: As in `forecast_batch`, which returns the same forecast for each scenario.
            joint: As in `forecast_batch`.
            adaptive_state: As in `forecast_batch`.
        """
        self._validator.validate_arguments(horizon, levels)
        if joint:
            return forecast_joint_bands(
                self.fitted_model.calibration,
                levels,
                horizon=horizon,
                forecast=lambda widened: self.forecast_scenarios(
                    scenarios, horizon, levels=widened, adaptive_state=adaptive_state
                ),
            )
        errors = self._validator.find_scenario_errors(scenarios, horizon)
        valid = [scenario for scenario, error in zip(scenarios, errors, strict=True) if error is None]
        if levels and self._has_head_quantiles:
            rolled_out = (
                self._roll_out_scenarios(valid, horizon, levels=self._head_levels(levels))
                if valid
                else np.empty((0, 0))
            )
            results = iter(
                self._bound(valid, self._complete_head_quantiles(valid, rolled_out, levels, adaptive_state))
                if valid
                else ()
            )
            return [next(results) if error is None else error for error in errors]
        forecasts = self._build_forecasts(valid, self._roll_out_scenarios(valid, horizon)) if valid else []
        completed = self._complete_forecasts(valid, self._apply_blend(valid, forecasts, shared_history=True))
        results = iter(self._bound(valid, completed, levels, adaptive_state))
        return [next(results) if error is None else error for error in errors]

    def sample_scenarios(
        self, scenarios: Sequence[Series], horizon: int, *, paths: int, seed: int, first_path: int = 0
    ) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        """Draws sample paths of one history in several scenarios, as `forecast_scenarios` and `sample_batch`.

        All scenarios share the noise: paths of the same number in two scenarios differ only because of the covariates.
        """
        self._validator.validate_sampling(horizon)
        errors = self._validator.find_scenario_errors(scenarios, horizon)
        valid = [scenario for scenario, error in zip(scenarios, errors, strict=True) if error is None]
        path_indices = range(first_path, first_path + paths)
        results = iter(self._sample_paths(valid, horizon, path_indices, seed=seed) if valid else ())
        return [next(results) if error is None else error for error in errors]

    def truncate_history(self, series: Series) -> Series:
        """Truncates a history to the part that forecasts of this model depend on, however long it was.

        Extended by later values, the truncated history is forecast as the whole history would be.
        """
        spec, season, layout = self.fitted_model.spec, self.fitted_model.season, self.layout
        kept_steps = required_steps(
            spec,
            pre_context=layout.pre_context,
            season=season,
            is_blended=bool(list_statistical_components(self.fitted_model.blend_weights)),
        )
        calibration = self.fitted_model.calibration
        if calibration is not None and calibration.difficulty is not None:
            kept_steps = max(kept_steps, count_recent_steps(season))
        truncate = partial(truncate_series, series, spec, season=season, keep_extremes=self.bounds.is_active)
        if layout.reads == "window" or len(series) < kept_steps:
            return truncate(kept_steps=kept_steps)
        has_states = series.history_summary is not None and bool(series.history_summary.rollout_states)
        if not has_states and not is_installed("torch"):  # only PyTorch returns states, so every step is needed
            return truncate(kept_steps=len(series))
        require_package("torch", purpose=_STATE_PURPOSE)
        from forecaster.prediction.recurrent_state import scale_settled_at, states_at_end

        if not has_states:
            inputs = self._inputs.build_window([series], layout.window_length(len(series)))
            if scale_settled_at(self.network, inputs) > len(series) - 2 * layout.segment:
                # The scale may still change, so every step is needed.
                return truncate(kept_steps=len(series))
        states = states_at_end(series, self.networks, self._inputs.build_window, device=self.device)
        return truncate(kept_steps=kept_steps, rollout_states=states)

    def _predict(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> Float64[np.ndarray, "series horizon *level"]:
        """Returns point forecasts or, at levels of the head, quantiles."""
        if any(item.history_summary is not None and item.history_summary.rollout_states for item in series):
            return np.concatenate([self._roll_out_scenarios([item], horizon, levels=levels) for item in series])
        forecasts = np.empty((len(series), horizon, *([len(levels)] if levels else [])))
        lengths = [len(item.y) for item in series]
        window_lengths = {length: self.layout.window_length(length) for length in set(lengths)}
        for batch in batch_by_length([window_lengths[length] for length in lengths]):
            inputs = self._inputs.build([series[index] for index in batch], horizon)
            forecasts[batch] = _roll_out(self.engine, inputs, horizon, levels)
        return forecasts

    def _select_resume_engine(self, series: Series, default_engine: Engine) -> Engine:
        """Returns an engine that resumes from the stored state of a history; the default engine if there is none."""
        resume_step = self._inputs.find_resume_step(series)
        if resume_step is None or series.history_summary is None:
            return default_engine
        require_package("torch", purpose=_STATE_PURPOSE)
        from forecaster.prediction.recurrent_state import engines_from_states

        states = series.history_summary.rollout_states[resume_step]
        return combine_engines(engines_from_states(self.networks, states, device=self.device))

    def _roll_out_scenarios(
        self, scenarios: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> Float64[np.ndarray, "scenario horizon *level"]:
        engine = self._select_resume_engine(scenarios[0], self.engine)
        forecasts = _roll_out(engine, self._inputs.build_scenarios(scenarios, horizon), horizon, levels)
        return np.broadcast_to(forecasts, (len(scenarios), *forecasts.shape[1:]))

    def _sample_paths(
        self, scenarios: Sequence[Series], horizon: int, path_indices: range, *, seed: int
    ) -> Float64[np.ndarray, "scenario path horizon"]:
        """Draws paths from one warmed-up state, with the same noise in every scenario.

        The distribution of their values at each step is that of the quantiles, where a head is recalibrated. The members of an
        ensemble draw in turn. Whole turns are drawn, so that the member of a path does not depend on the first path.
        """
        members, inputs = self.fitted_model.spec.members, self._inputs.build_scenarios(scenarios, horizon)
        begin, end = path_indices.start // members * members, -(-path_indices.stop // members) * members
        series_seed = int.from_bytes(hashlib.sha256(f"{seed} {scenarios[0].id}".encode()).digest()[:8], "big") >> 1
        shape = (self.layout.num_targets, self.round_up_horizon(horizon), self.layout.uniforms_per_draw)
        per_path = math.prod(shape)
        noise = _draw_uniforms(series_seed, range(begin * per_path, end * per_path)).reshape(-1, *shape[1:])
        if len(scenarios) > 1:
            noise = np.tile(noise, (len(scenarios), 1, 1))
            if inputs.future_covariates is not None:
                inputs = inputs._replace(future_covariates=inputs.future_covariates.repeat(end - begin, axis=0))
        engine = self._select_resume_engine(scenarios[0], self._sampling_engine)
        paths = engine.roll_out(inputs, horizon=horizon, noise=noise).reshape(len(scenarios), end - begin, horizon)
        requested_paths = paths[:, path_indices.start - begin : path_indices.stop - begin]
        calibration = self.fitted_model.calibration
        if calibration is not None and self._has_head_quantiles:
            levels, history = self._head_levels(()), scenarios[0]
            medians, offsets = split_median(self._predict([history], horizon, levels=levels), levels)
            requested_paths = medians + recalibrate_paths(
                calibration,
                requested_paths - medians,
                offsets,
                levels,
                changes=self.measure_head_changes([history.y], [history.history_summary]),
                group=self.interval_group(history),
            )
        return self.bounds.for_series(scenarios[:1]).clip(requested_paths) if self.bounds.is_active else requested_paths

    def find_error(self, series: Series, horizon: int) -> ForecasterError | None:
        """Returns the error of a series, or None if it can be forecast."""
        return self._validator.find_error(series, horizon)

    def build_input(self, series: Series, horizon: int) -> RolloutInput:
        """Builds the network input of a valid series."""
        return self._inputs.build([series], horizon)

    def round_up_horizon(self, horizon: int) -> int:
        """Returns the horizon, rounded up to whole blocks."""
        return self.layout.round_up_horizon(horizon)

    def _bound(
        self,
        series: Sequence[Series],
        outcomes: Sequence[Forecast | ForecasterError],
        levels: Sequence[float] = (),
        adaptive_state: AdaptiveState | None = None,
    ) -> list[Forecast | ForecasterError]:
        """Returns the outcomes within the bounds of the model, with warnings where a history switches one off.

        With levels, calibrated quantiles are added around the bounded means, as the calibration measured them.
        """
        row_bounds = self.bounds.for_series(series) if self.bounds.is_active else None
        bounded = list(outcomes) if row_bounds is None else row_bounds.clip_forecasts(outcomes)
        if levels:
            bounded = self.add_quantiles(series, bounded, levels, adaptive_state)
        calibration = self.fitted_model.calibration
        if calibration is not None and calibration.is_rounded:
            bounded = round_quantiles(series, bounded)
        return bounded if row_bounds is None else row_bounds.add_warnings(row_bounds.clip_forecasts(bounded))

    def add_quantiles(
        self,
        series: Sequence[Series],
        outcomes: Sequence[Forecast | ForecasterError],
        levels: Sequence[float],
        adaptive_state: AdaptiveState | None,
    ) -> list[Forecast | ForecasterError]:
        """Returns the outcomes with calibrated quantiles around their means, in ascending order of level.

        The calibration must be in units of the history, since those of a head need its own quantiles.
        """
        calibration, sorted_levels = self.fitted_model.calibration, sorted(set(levels))
        assert calibration is not None, "the arguments were validated"
        assert calibration.unit == "history", "a head adds its quantiles itself"
        results = list(outcomes)
        forecast_indices = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Forecast)]
        for first in range(0, len(forecast_indices), MAX_BATCH_ROWS):
            batch = forecast_indices[first : first + MAX_BATCH_ROWS]
            forecasts = [outcome for outcome in (outcomes[index] for index in batch) if isinstance(outcome, Forecast)]
            offsets = calibration.compute_offsets(
                sorted_levels,
                horizon=len(forecasts[0].mean),
                scales=self.compute_interval_scales(
                    [series[index].y for index in batch], [series[index].history_summary for index in batch]
                ),
                groups=[self.interval_group(series[index]) for index in batch],
                adaptive_state=adaptive_state,
            )
            values = np.stack([forecast.mean for forecast in forecasts])[:, None] + offsets.transpose(0, 2, 1)
            for index, forecast, row in zip(
                batch, forecasts, values, strict=True
            ):  # `replace` would take most of the time
                quantiles = dict(zip(sorted_levels, row, strict=True))
                results[index] = Forecast(
                    forecast.id, forecast.ds, forecast.mean, forecast.warnings, quantiles, forecast.has_fallback
                )
        return results

    def _complete_head_quantiles(
        self,
        series: Sequence[Series],
        quantiles: Float64[np.ndarray, "series horizon level"],
        requested: Sequence[float],
        adaptive_state: AdaptiveState | None,
    ) -> list[Forecast | ForecasterError]:
        """Builds the forecasts with quantiles at the requested levels, from those at `_head_levels`."""
        levels = with_median(requested)
        means, offsets = split_median(quantiles, self._head_levels(requested))
        calibration = self.fitted_model.calibration
        if calibration is not None:
            offsets = recalibrate_offsets(
                calibration,
                offsets,
                self._head_levels(requested),
                levels,
                changes=self.measure_head_changes(
                    [item.y for item in series], [item.history_summary for item in series]
                ),
                groups=[self.interval_group(item) for item in series],
                adaptive_state=adaptive_state,
            )
        outcomes = self._complete_forecasts(series, self._build_forecasts(series, means))
        return attach_head_quantiles(
            series,
            outcomes,
            offsets,
            levels,
            requested,
            compute_error_size=lambda item: self.compute_interval_scale(item.y, item.history_summary),
        )

    def _head_levels(self, requested: Sequence[float]) -> list[float]:
        """Returns the levels at which the head is evaluated: those requested, or its own if it is recalibrated."""
        return with_median(requested if self.fitted_model.calibration is None else self.fitted_model.spec.head.levels)

    def interval_group(self, series: Series) -> str | None:
        """Returns the group whose calibration a series uses; None, and groups without their own table, use that of all series."""
        name, calibration = self.fitted_model.spec.group, self.fitted_model.calibration
        label = None if name is None else series.static.get(name)
        if label is None or calibration is None:
            return label
        groups = tuple(calibration.groups)
        index = find_category(groups, label)
        return label if index < 0 else groups[index]

    def compute_scale(self, history: Float64[np.ndarray, "_"], history_summary: HistorySummary | None = None) -> float:
        """Returns the scale of a history, the unit of errors in calibration and of quantile offsets.

        The whole history is used, as in benchmarks/intervals.py: a scale from the network's short context is so uncertain that
        intervals are wide and still cover less (docs/experiments.md). Intervals of a history much shorter than those of the
        calibration cover less too.
        """
        return history_scale(history, self.fitted_model.season, history_summary=history_summary)

    def compute_interval_scale(
        self, history: Float64[np.ndarray, "_"], history_summary: HistorySummary | None = None
    ) -> float:
        """Returns the unit of quantile offsets: the scale of a history, or the minimum of one that never changes.

        Without a minimum its intervals would have no width. Calibrations ignore such histories.
        """
        scale = self.compute_scale(history, history_summary)
        if scale != 0:  # NaN if nothing was observed
            return scale
        observed = history[~np.isnan(history)]
        last_value = float(observed[-1]) if len(observed) or history_summary is None else history_summary.last_value
        return _minimum_scale(last_value)

    def compute_interval_scales(
        self,
        histories: Sequence[Float64[np.ndarray, "_"]],
        summaries: Sequence[HistorySummary | None] | None = None,
    ) -> Float64[np.ndarray, "history"]:
        """Returns the units of the quantile offsets of histories, with their difficulty; 0 where nothing was observed."""
        scales = history_scales(histories, self.fitted_model.season, summaries)
        for row in np.flatnonzero(scales == 0).tolist():
            scales[row] = self.compute_interval_scale(histories[row], None if summaries is None else summaries[row])
        scales[np.isnan(scales)] = 0.0
        calibration = self.fitted_model.calibration
        if calibration is not None and calibration.short_histories is not None and len(scales):
            steps = _count_observed(histories, summaries)
            scales *= calibration.short_histories.compute_factors(steps)
        if calibration is None or calibration.difficulty is None or not len(scales):
            return scales
        changes = measure_changes(histories, season=self.fitted_model.season)
        has_changes = (changes > 0).any(axis=1)  # otherwise the scale is a minimum width, which has no difficulty
        scales[has_changes] *= calibration.difficulty.compute_factors(changes, scales)[has_changes]
        return scales

    def measure_head_changes(
        self,
        histories: Sequence[Float64[np.ndarray, "_"]],
        summaries: Sequence[HistorySummary | None] | None = None,
    ) -> Float64[np.ndarray, "history change"] | None:
        """Returns what the difficulty of a recalibrated head depends on; None if it has none."""
        calibration = self.fitted_model.calibration
        if calibration is None or calibration.difficulty is None:
            return None
        return describe_changes(histories, summaries, season=self.fitted_model.season)

    def _forecast_valid_series(self, series: Sequence[Series], horizon: int) -> list[Forecast | BadStamp]:
        """Forecasts valid series; the outcome is BadStamp where the timestamps of the forecast leave the calendar."""
        return self._build_forecasts(series, self._predict(series, horizon))

    def _build_forecasts(
        self, series: Sequence[Series], means: Float64[np.ndarray, "series horizon"]
    ) -> list[Forecast | BadStamp]:
        finite = np.isfinite(means).all(axis=1).tolist()
        timestamps_of_series = compute_future_timestamps(series, means.shape[1])
        return [
            timestamps
            if isinstance(timestamps, BadStamp)
            else Forecast(item.id, timestamps, mean)
            if is_finite
            else self._build_repaired_forecast(item, timestamps, mean)
            for item, timestamps, mean, is_finite in zip(series, timestamps_of_series, means, finite, strict=True)
        ]

    def blend_means(
        self, means: Float64[np.ndarray, "series horizon"], histories: Sequence[Float64[np.ndarray, "_"]]
    ) -> BlendedForecasts:
        """Blends the network's forecasts with those of statistical models, which are fitted to each history."""
        return blend_forecasts(means, histories, self.fitted_model.blend_weights, season=self.fitted_model.season)

    def _apply_blend(
        self, series: Sequence[Series], outcomes: Sequence[Forecast | BadStamp], *, shared_history: bool = False
    ) -> Sequence[Forecast | BadStamp]:
        """Blends the forecasts among the outcomes. With a shared history, the statistical models are fitted once."""
        forecasts = [outcome for outcome in outcomes if isinstance(outcome, Forecast)]
        if not self.fitted_model.blend_weights or not forecasts:
            return outcomes
        histories = [item.y for item, outcome in zip(series, outcomes, strict=True) if isinstance(outcome, Forecast)]
        blended = self.blend_means(
            np.stack([forecast.mean for forecast in forecasts]), histories[:1] if shared_history else histories
        )
        results = iter(
            replace(
                forecast,
                mean=mean,
                warnings=(*forecast.warnings, *blend_warnings),
                has_fallback=forecast.has_fallback or bool(blend_warnings),
            )
            for forecast, mean, blend_warnings in zip(forecasts, *blended, strict=True)
        )
        return [next(results) if isinstance(outcome, Forecast) else outcome for outcome in outcomes]

    def _complete_forecasts(
        self, series: Sequence[Series], outcomes: Sequence[Forecast | BadStamp]
    ) -> list[Forecast | BadStamp]:
        """Replaces the forecasts of constant histories, and adds the warnings about the input of each series."""
        pairs = [
            (item, outcome) for item, outcome in zip(series, outcomes, strict=True) if isinstance(outcome, Forecast)
        ]
        if not pairs:
            return list(outcomes)
        constants = [find_constant(item.y, item.history_summary) for item, _ in pairs]
        warnings = self._inspector.describe_batch(
            [item for item, _ in pairs],
            len(pairs[0][1].mean),
            is_constant=[constant is not None for constant in constants],
            now=None if self._clock is None else self._clock(),
        )
        completed = iter(map(_complete_forecast, [forecast for _, forecast in pairs], constants, warnings))
        return [next(completed) if isinstance(outcome, Forecast) else outcome for outcome in outcomes]

    def _build_repaired_forecast(
        self, series: Series, timestamps: Timestamps, mean: Float64[np.ndarray, "horizon"]
    ) -> Forecast:
        """Builds a forecast with a warning, and with the seasonal naive from the first non-finite value on."""
        non_finite = np.flatnonzero(~np.isfinite(mean))
        warning = (
            f"The network's forecast diverged at step {non_finite[0] + 1} of {len(mean)}; from that step on it is the seasonal "
            "naive forecast. Check the history for extreme values, or request a shorter horizon."
        )
        history = series.y
        if series.history_summary is not None:
            history = np.concatenate([series.history_summary.last_season_values, series.y])
        repaired_mean = replace_non_finite(mean, history, season=self.fitted_model.season)
        return Forecast(series.id, timestamps, repaired_mean, (warning,), has_fallback=True)


def _load_from(origin: PredictorOrigin) -> Predictor:
    return origin.load()


def _roll_out(
    engine: Engine, inputs: RolloutInput, horizon: int, levels: Sequence[float]
) -> Float64[np.ndarray, "row horizon *level"]:
    if not levels:
        return engine.roll_out(inputs, horizon=horizon)
    quantile_engine = find_quantile_engine(engine)
    assert quantile_engine is not None, "the arguments were validated"
    return quantile_engine.roll_out_quantiles(inputs, horizon=horizon, levels=levels)


def _complete_forecast(forecast: Forecast, constant: float | None, warnings: tuple[str, ...]) -> Forecast:
    """Returns the forecast with warnings; for a constant history, the constant in place of the forecast."""
    if constant is not None:
        warning = (
            f"The history is constant: all observed values are {constant:g}. The forecast is this value, without the model; its "
            f"intervals have a minimum width, as if errors were about {_minimum_scale(constant):g}."
        )
        return Forecast(forecast.id, forecast.ds, np.full(len(forecast.mean), constant), (warning, *warnings))
    return replace(forecast, warnings=(*forecast.warnings, *warnings)) if warnings else forecast


def _count_observed(
    histories: Sequence[Float64[np.ndarray, "_"]], summaries: Sequence[HistorySummary | None] | None
) -> Int[np.ndarray, "history"]:
    """Returns the number of observed values of each history, dropped steps included."""
    lengths = np.array([len(history) for history in histories])
    observed = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(~np.isnan(np.concatenate(histories)))])
    ends = np.cumsum(lengths)
    counts = np.asarray(observed[ends] - observed[ends - lengths])
    for row, summary in enumerate(summaries or ()):
        if summary is not None and not np.isnan(summary.last_value):
            counts[row] += summary.change_counts[1] + 1  # n values have n - 1 changes
    return counts


def _minimum_scale(value: float) -> float:
    return MIN_RELATIVE_SCALE * (abs(value) or 1.0)


def _draw_uniforms(seed: int, indices: range) -> Float[np.ndarray, "index"]:
    """Returns the uniforms in (0, 1) at these indices of an infinite sequence. Each step of the generator yields two."""
    bit_generator = np.random.PCG64(seed)
    bit_generator.advance(indices.start // 2)
    odd = indices.start % 2
    uniforms = np.random.Generator(bit_generator).random(len(indices) + odd, dtype=np.float32)[odd:]
    return uniforms.clip(_MIN_NOISE, 1 - _MIN_NOISE)


def batch_by_length(lengths: Sequence[int]) -> Iterator[Int[np.ndarray, "row"]]:
    """Yields the indices of rows for batches in ascending order of length; each padded batch fits into memory."""
    if len(lengths) == 1:
        yield np.zeros(1, dtype=np.int64)
        return
    order = np.argsort(lengths, kind="stable")
    sorted_lengths = np.asarray(lengths)[order]
    first = 0
    while first < len(order):
        candidates = sorted_lengths[first : first + MAX_BATCH_ROWS]
        rows = max(1, int((candidates * np.arange(1, len(candidates) + 1) <= MAX_BATCH_VALUES).sum()))
        yield order[first : first + rows]
        first += rows
