"""From what is asked to one outcome for each series, whatever form it was sent in and is answered in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from time import perf_counter
from typing import TypeVar

import numpy as np

from forecaster.errors import BadSpec, ForecasterError, LevelOutOfRange
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64
from serving.deadline import Deadline
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.forecasting.sampling import sample_in_batches
from serving.formats import series as reading
from serving.formats import state_token as state
from serving.formats.outcome import ForecastResult, SeriesOutcome
from serving.formats.schema import ContinuedSeries, ForecastOptions, SeriesInput
from serving.formats.series import ParsedSeries
from serving.formats.state_token import ModelReference, TokenSigner
from serving.formats.timestamps import IntegerStyle, TimestampStyle

T = TypeVar("T")
_BATCH_STEPS = (
    1 << 17
)  # steps, known and foretold, that are rolled between two looks at the deadline: tens of milliseconds
_BLEND_COST_FACTOR = 64  # times that long take steps that a statistical model is fitted to


def compute_outcomes(
    series: Sequence[SeriesInput],
    options: ForecastOptions,
    model: DeployedModel | None,
    deadline: Deadline,
    signer: TokenSigner,
) -> list[SeriesOutcome]:
    """One for each series, in order.

    Raises Problem if no model is in use, if the deadline passes, or if the model cannot give what is asked of all series
    (levels, samples).
    """
    model = require_model(model)
    read = parse_all_series(series, options, model, deadline, signer)
    good = [one.series for one in read if isinstance(one, ParsedSeries)]
    means, paths = compute_forecasts(good, options, model, deadline), _sample_paths(good, options, model, deadline)
    return _assemble_outcomes(series, options, model, read, means, paths, signer, deadline)


def compute_outcomes_together(
    requests: Sequence[Sequence[SeriesInput]],
    options: ForecastOptions,
    model: DeployedModel,
    deadline: Deadline,
    signer: TokenSigner,
) -> list[list[SeriesOutcome]]:
    """Those of several requests that ask the same, without samples; rolled as one. Raises Problem as `compute_outcomes` does."""
    read = [parse_all_series(series, options, model, deadline, signer) for series in requests]
    good = [[one.series for one in some if isinstance(one, ParsedSeries)] for some in read]
    means = iter(compute_forecasts([one for some in good for one in some], options, model, deadline))
    return [
        _assemble_outcomes(
            series, options, model, some, list(islice(means, len(own))), [None] * len(own), signer, deadline
        )
        for series, some, own in zip(requests, read, good, strict=True)
    ]


def _assemble_outcomes(
    series: Sequence[SeriesInput],
    options: ForecastOptions,
    model: DeployedModel,
    parsed: Sequence[ParsedSeries | ForecasterError],
    forecasts: Sequence[Forecast | ForecasterError],
    paths: Sequence[Float64[np.ndarray, "path horizon"] | ForecasterError | None],
    signer: TokenSigner,
    deadline: Deadline,
) -> list[SeriesOutcome]:
    """Means and paths are those of the series that could be read."""
    general = horizon_warnings(options.horizon, scored_horizon=model.predictor.fitted_model.spec.horizon)
    told, drawn = iter(forecasts), iter(paths)
    done: list[SeriesOutcome] = []
    for asked, one in zip(series, parsed, strict=True):
        if not isinstance(one, ParsedSeries):
            done.append(SeriesOutcome(asked.id, one))
            continue
        found = build_result(one.style, next(told), next(drawn), general, samples=options.samples)
        if options.return_state and isinstance(found, ForecastResult):
            deadline.check()
            found = attach_state_token(found, one.series, model, signer)
        done.append(SeriesOutcome(asked.id, found))
    return done


def compute_forecasts(
    series: list[Series], options: ForecastOptions, model: DeployedModel, deadline: Deadline
) -> list[Forecast | ForecasterError]:
    """Those of series that were read. Raises Problem if the deadline passes, or for levels that the model cannot give."""

    def some(part: list[Series]) -> list[Forecast | ForecasterError]:
        began = perf_counter()
        drift = {} if model.adaptive_state is None or not options.levels else {"adaptive_state": model.adaptive_state}
        told = model.predictor.forecast_batch(part, options.horizon, levels=options.levels, **drift)
        stand_ins = sum(isinstance(one, Forecast) and bool(one.warnings) for one in told)
        model.measure_rollout(len(part), perf_counter() - began, stand_ins)
        return told

    at_once = _BATCH_STEPS // (_BLEND_COST_FACTOR if model.predictor.fitted_model.blend_weights else 1)
    found = _compute_in_batches(some, series, extra_steps=options.horizon, max_steps=at_once, deadline=deadline)
    model.record_forecasts(model, series, found)
    return found


def require_model(model: DeployedModel | None) -> DeployedModel:
    """The model; raises Problem where there is none."""
    if model is None:
        raise ApiError(
            "not_ready", "No model is in use yet. Try again later, or see /readyz.", headers={"retry-after": "1"}
        )
    return model


def build_result(
    style: TimestampStyle | IntegerStyle,
    forecast: Forecast | ForecasterError,
    paths: Float64[np.ndarray, "path horizon"] | ForecasterError | None,
    shared_warnings: list[str],
    *,
    samples: int,
) -> ForecastResult | ForecasterError:
    """A forecast and its paths, of which `samples` were asked, with what a reader should know."""
    if isinstance(forecast, ForecasterError):
        return forecast
    if isinstance(paths, ForecasterError):
        return paths
    warnings = [*shared_warnings, *forecast.warnings]
    if paths is not None and not np.isfinite(paths).all():
        left = int((~np.isfinite(paths)).any(axis=1).sum())
        warnings.append(f"{left} of {len(paths)} samples left the finite numbers; they are null from there on.")
        paths = np.where(np.logical_and.accumulate(np.isfinite(paths), axis=1), paths, np.nan)
    fewer = paths is not None and len(paths) < samples
    if paths is not None and fewer:
        warnings.append(f"The deadline left time for {len(paths)} of {samples} samples.")
    return ForecastResult(forecast, style, paths, warnings, fewer)


def attach_state_token(
    result: ForecastResult, series: Series, model: DeployedModel, signer: TokenSigner
) -> ForecastResult | ForecasterError:
    """The answer with a state to go on from after a series, or why there is none."""
    learned = model.predictor.fitted_model
    try:
        carried = model.predictor.truncate_history(series)
        told = state.issue_token(
            carried, result.style, model=ModelReference(model.release.digest, learned.encoding), signer=signer
        )
    except ForecasterError as error:
        return error
    return result._replace(state_token=told)


def parse_all_series(
    series: Sequence[SeriesInput],
    options: ForecastOptions,
    model: DeployedModel,
    deadline: Deadline,
    signer: TokenSigner,
) -> list[ParsedSeries | ForecasterError]:
    """The histories as the model reads them, or what is wrong with each. Raises Problem if the deadline passes."""
    learned = model.predictor.fitted_model
    whose = ModelReference(model.release.digest, learned.encoding)
    read: list[ParsedSeries | ForecasterError] = []
    starts: reading.StartCache = {}
    for asked in series:
        deadline.check()
        try:
            if isinstance(asked, ContinuedSeries):
                read.append(state.parse_token_series(asked, model=whose, signer=signer, horizon=options.horizon))
                continue
            read.append(
                reading.parse_series(
                    asked,
                    model_freq=learned.freq,
                    encoding=learned.encoding,
                    horizon=options.horizon,
                    start_cache=starts,
                )
            )
        except ForecasterError as error:
            read.append(error)
    return read


def _sample_paths(
    series: list[Series], options: ForecastOptions, model: DeployedModel, deadline: Deadline
) -> Sequence[Float64[np.ndarray, "path horizon"] | ForecasterError | None]:
    if not options.samples:
        return [None] * len(series)

    def draw(some: range, until: Deadline) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        def part(those: list[Series]) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
            return model.predictor.sample_batch(
                those, options.horizon, paths=len(some), seed=options.seed, first_path=some.start
            )

        return _compute_in_batches(
            part, series, extra_steps=options.horizon * len(some), max_steps=_BATCH_STEPS, deadline=until
        )

    return sample_in_batches(
        draw, samples=options.samples, steps=options.horizon * max(1, len(series)), deadline=deadline
    )


def _compute_in_batches(
    compute_batch: Callable[[list[Series]], list[T]],
    series: list[Series],
    *,
    extra_steps: int,
    max_steps: int,
    deadline: Deadline,
) -> list[T]:
    """Some series at a time; even if there is none, for what is asked of all is judged whatever becomes of them."""
    rows = max(1, max_steps // (max((len(one) for one in series), default=0) + extra_steps))
    found: list[T] = []
    for first in range(0, max(1, len(series)), rows):
        deadline.check()
        try:
            found += compute_batch(series[first : first + rows])
        except (LevelOutOfRange, BadSpec) as error:
            raise ApiError.from_forecaster_error(error) from error
    return found


def horizon_warnings(horizon: int, *, scored_horizon: int) -> list[str]:
    """What a reader should know of every forecast so far ahead."""
    if horizon <= scored_horizon:
        return []
    return [f"The horizon of {horizon} steps goes beyond the {scored_horizon} that this model was scored on."]
