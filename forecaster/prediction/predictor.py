"""The predictor: forecasts, quantiles and sample paths of a fitted model, with one outcome per series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from forecaster.engines.engine import Engine, RolloutInput
from forecaster.engines.statistical.blend import (
    BlendedForecasts,
    blend_forecasts,
    list_statistical_components,
    require_packages,
)
from forecaster.errors import BundleError, ForecasterError
from forecaster.intervals.adaptive import AdaptiveState
from forecaster.prediction.bounds import Bounds
from forecaster.prediction.carry import truncate_history
from forecaster.prediction.engine_choice import choose_engine
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.forecast_builder import ForecastBuilder
from forecaster.prediction.head_quantiles import has_head_quantiles
from forecaster.prediction.interval_units import IntervalUnits
from forecaster.prediction.joint_bands import forecast_joint_bands
from forecaster.prediction.path_sampling import PathSampler
from forecaster.prediction.series_rollout import SeriesRollout
from forecaster.prediction.validation import InputValidator
from forecaster.series import Forecast, Series
from forecaster.series.history_summary import HistorySummary
from forecaster.shapes import Float64

if TYPE_CHECKING:
    from forecaster.model.regressor import Regressor
else:
    Regressor = Any  # torch is imported only where it computes

__all__ = ["FittedModel", "Predictor"]

MAX_SERIES_AT_ONCE = 1 << 14  # bounds the memory of everything else but the result
Result = TypeVar("Result")


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
        engine = engine or choose_engine(fitted_model, device=device)
        self.fitted_model, self.device, self.layout, self._origin = fitted_model, device, fitted_model.layout, origin
        self.bounds, self._units = Bounds.from_facts(fitted_model.spec, fitted_model.facts), IntervalUnits(fitted_model)
        self._has_head_quantiles = has_head = has_head_quantiles(fitted_model, engine)
        self._validator = InputValidator(fitted_model, has_head_quantiles=has_head)
        self._rollout = SeriesRollout(fitted_model, engine, device=device)
        self._sampler = PathSampler(self._rollout, units=self._units, bounds=self.bounds, has_head_quantiles=has_head)
        self._builder = ForecastBuilder(
            fitted_model, units=self._units, bounds=self.bounds, has_head_quantiles=has_head, clock=clock
        )

    def __reduce__(self) -> tuple[Callable[[PredictorOrigin], Predictor], tuple[PredictorOrigin]]:
        if self._origin is None:
            raise BundleError(
                f"Expected a predictor that was loaded from a bundle, because a pickle holds its path and digest; the model "
                f"{self.fitted_model.spec.name!r} is in memory only. Write a bundle, and pickle load_predictor(folder).",
                where=self.fitted_model.spec.name,
            )
        return _load_from, (self._origin,)

    @property
    def engine(self) -> Engine:
        """The engine of rollouts."""
        return self._rollout.engine

    @property
    def networks(self) -> tuple[Regressor, ...]:
        """The networks of all members, on the device."""
        return self._rollout.networks

    @property
    def network(self) -> Regressor:
        """The network of the first member."""
        return self.networks[0]

    @property
    def has_quantiles(self) -> bool:
        """Whether forecasts may have quantiles: from a calibration, or else from the head."""
        return self.fitted_model.calibration is not None or self._has_head_quantiles

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
        return self._forecast(series, horizon, levels, joint=joint, adaptive_state=adaptive_state, shared_history=False)

    def sample_batch(
        self,
        series: Sequence[Series],
        horizon: int,
        *,
        paths: int,
        seed: int,
        first_path: int = 0,
        temperature: float = 1.0,
    ) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        """Draws sample paths of each series: one array of paths, or the error of the series.

        The noise of a series depends only on the seed and its id, so its paths do not depend on the other series. Paths are
        numbered: the paths from `first_path` on are the same whether earlier paths are drawn or not. Paths of symbols are drawn
        at a temperature, which divides the logits: near 0 they are the most probable symbols.

        Raises:
            BadSpec: The head of the model has no distribution, or the model is a blend, or a temperature for numbers.
            HorizonOutOfRange: `horizon` is below one.
        """
        self._validator.validate_sampling(horizon, temperature=temperature)
        path_indices = range(first_path, first_path + paths)
        return _compute_outcomes(
            series,
            self._validator.find_errors(series, horizon),
            lambda valid: (
                self._sampler.draw([item], horizon, path_indices, seed=seed, temperature=temperature)[0]
                for item in valid
            ),
        )

    def predict_probabilities(
        self, series: Sequence[Series], horizon: int = 1
    ) -> list[Float64[np.ndarray, "horizon symbol"] | ForecasterError]:
        """Returns the probabilities of the next symbols of each series, in the order of the vocabulary, or its error.

        Those of a step are given the most probable symbols of the steps before it, which `forecast_batch` returns.

        Raises:
            BadSpec: The model predicts numbers.
            HorizonOutOfRange: `horizon` is below one.
        """
        self._validator.validate_probabilities(horizon)
        return _compute_outcomes(
            series,
            self._validator.find_errors(series, horizon),
            lambda valid: self._rollout.predict_probabilities(valid, horizon),
        )

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
        return self._forecast(
            scenarios, horizon, levels, joint=joint, adaptive_state=adaptive_state, shared_history=True
        )

    def sample_scenarios(
        self, scenarios: Sequence[Series], horizon: int, *, paths: int, seed: int, first_path: int = 0
    ) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        """Draws sample paths of one history in several scenarios, as `forecast_scenarios` and `sample_batch`.

        All scenarios share the noise: paths of the same number in two scenarios differ only because of the covariates.
        """
        self._validator.validate_sampling(horizon)
        path_indices = range(first_path, first_path + paths)
        return _compute_outcomes(
            scenarios,
            self._validator.find_scenario_errors(scenarios, horizon),
            lambda valid: self._sampler.draw(valid, horizon, path_indices, seed=seed),
        )

    def truncate_history(self, series: Series) -> Series:
        """Truncates a history to the part that forecasts of this model depend on, however long it was.

        Extended by later values, the truncated history is forecast as the whole history would be.
        """
        return truncate_history(series, self._rollout, keep_extremes=self.bounds.is_active)

    def find_error(self, series: Series, horizon: int) -> ForecasterError | None:
        """Returns the error of a series, or None if it can be forecast."""
        return self._validator.find_error(series, horizon)

    def build_input(self, series: Series, horizon: int) -> RolloutInput:
        """Builds the network input of a valid series."""
        return self._rollout.inputs.build([series], horizon)

    def round_up_horizon(self, horizon: int) -> int:
        """Returns the horizon, rounded up to whole blocks."""
        return self.layout.round_up_horizon(horizon)

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
        return self._builder.add_quantiles(series, outcomes, levels, adaptive_state)

    def blend_means(
        self, means: Float64[np.ndarray, "series horizon"], histories: Sequence[Float64[np.ndarray, "_"]]
    ) -> BlendedForecasts:
        """Blends the network's forecasts with those of statistical models, which are fitted to each history."""
        return blend_forecasts(means, histories, self.fitted_model.blend_weights, season=self.fitted_model.season)

    def interval_group(self, series: Series) -> str | None:
        """Returns the group whose calibration a series uses; see `IntervalUnits`."""
        return self._units.interval_group(series)

    def compute_scale(self, history: Float64[np.ndarray, "_"], history_summary: HistorySummary | None = None) -> float:
        """Returns the scale of a history, the unit of errors in calibration; see `IntervalUnits`."""
        return self._units.compute_scale(history, history_summary)

    def compute_interval_scales(
        self,
        histories: Sequence[Float64[np.ndarray, "_"]],
        summaries: Sequence[HistorySummary | None] | None = None,
    ) -> Float64[np.ndarray, "history"]:
        """Returns the units of the quantile offsets of histories; see `IntervalUnits`."""
        return self._units.compute_interval_scales(histories, summaries)

    def _forecast(
        self,
        series: Sequence[Series],
        horizon: int,
        levels: Sequence[float],
        *,
        joint: bool,
        adaptive_state: AdaptiveState | None,
        shared_history: bool,
    ) -> list[Forecast | ForecasterError]:
        """Forecasts each series. With a shared history they are scenarios: it is read once, for all of them together."""
        self._validator.validate_arguments(horizon, levels)
        find_errors = self._validator.find_scenario_errors if shared_history else self._validator.find_errors
        predict = self._rollout.predict_scenarios if shared_history else self._rollout.predict
        at_once = len(series) if shared_history else MAX_SERIES_AT_ONCE
        parts = [series[first : first + at_once] for first in range(0, len(series), at_once or 1)]

        def forecast_steps(levels: Sequence[float]) -> list[Forecast | ForecasterError]:
            def build(valid: Sequence[Series]) -> list[Forecast | ForecasterError]:
                predictions = predict(valid, horizon, levels=self._builder.head_levels(levels))
                return self._builder.build(valid, predictions, levels, adaptive_state, shared_history=shared_history)

            outcomes = (_compute_outcomes(part, find_errors(part, horizon), build) for part in parts)
            return list(chain.from_iterable(outcomes))

        if joint:
            calibration = self.fitted_model.calibration
            return forecast_joint_bands(calibration, levels, horizon=horizon, forecast=forecast_steps)
        return forecast_steps(levels)


def _compute_outcomes(
    series: Sequence[Series],
    errors: Sequence[ForecasterError | None],
    compute: Callable[[Sequence[Series]], Iterable[Result | ForecasterError]],
) -> list[Result | ForecasterError]:
    """Returns the error of each series or, for the series without one, what is computed for all of them together."""
    valid = [item for item, error in zip(series, errors, strict=True) if error is None]
    results = iter(compute(valid) if valid else ())
    return [next(results) if error is None else error for error in errors]


def _load_from(origin: PredictorOrigin) -> Predictor:
    return origin.load()
