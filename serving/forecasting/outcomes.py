"""Computes one outcome for each series of a request, independently of the wire format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from forecaster.errors import BadSpec, ForecasterError, LevelOutOfRange, MissingPackage
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64
from serving.deadline import Deadline
from serving.deployment.pretrained import find_zero_shot_predictor
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.forecasting.sampling import PathsOrError, sample_in_batches
from serving.forecasting.symbols import validate_symbol_options
from serving.formats.outcome import ForecastResult, SeriesOutcome
from serving.formats.schema import ContinuedSeries, ForecastOptions, SeriesInput
from serving.formats.series import ParsedSeries, StartCache, parse_series
from serving.formats.state_token import ModelReference, TokenSigner, issue_token, parse_token_series
from serving.formats.timestamps import IntegerStyle, TimestampStyle

T = TypeVar("T")
_BATCH_STEPS = 1 << 17  # steps of history and horizon computed between two checks of the deadline: tens of milliseconds
GRID_STEPS = 1 << 11  # cost of the predictor and of the rollout for one more frequency or season, in steps of a network
BLEND_COST_FACTOR = 64  # cost of a step of a blend, which fits statistical models, relative to the network alone


def compute_outcomes(
    requests: Sequence[Sequence[SeriesInput]],
    options: ForecastOptions,
    model: DeployedModel,
    deadline: Deadline,
    signer: TokenSigner,
) -> list[list[SeriesOutcome]]:
    """Returns the outcome of each series of each request, in order. Requests with equal options share one rollout.

    Raises ApiError after the deadline, or if the model does not support the options (levels, samples).
    """
    validate_symbol_options(options, model)
    parsed_by_request = [parse_all_series(series, options, model, deadline, signer) for series in requests]
    valid = [item for parsed in parsed_by_request for item in parsed if isinstance(item, ParsedSeries)]
    forecasts = iter(compute_mixed_forecasts(valid, options, model, deadline))
    paths = iter(_sample_paths(valid, options, model, deadline))
    probabilities = iter(_predict_probabilities(valid, options, model, deadline))
    return [
        _assemble_outcomes(series, options, model, parsed, forecasts, paths, probabilities, signer, deadline)
        for series, parsed in zip(requests, parsed_by_request, strict=True)
    ]


def _assemble_outcomes(
    series: Sequence[SeriesInput],
    options: ForecastOptions,
    model: DeployedModel,
    parsed: Sequence[ParsedSeries | ForecasterError],
    forecasts: Iterator[Forecast | ForecasterError],
    paths: Iterator[Float64[np.ndarray, "path horizon"] | ForecasterError | None],
    probabilities: Iterator[Float64[np.ndarray, "horizon symbol"] | ForecasterError | None],
    signer: TokenSigner,
    deadline: Deadline,
) -> list[SeriesOutcome]:
    """Assembles the outcomes of one request; takes one item of each iterator per successfully parsed series."""
    vocabulary = model.predictor.fitted_model.spec.head.vocabulary
    shared_warnings = horizon_warnings(options.horizon, scored_horizon=model.predictor.fitted_model.spec.horizon)
    outcomes: list[SeriesOutcome] = []
    for series_input, item in zip(series, parsed, strict=True):
        if not isinstance(item, ParsedSeries):
            outcomes.append(SeriesOutcome(series_input.id, item))
            continue
        warnings = [*shared_warnings, *item.warnings, *unobserved_end_warnings(item.series)]
        result = build_result(item.style, next(forecasts), next(paths), warnings, samples=options.samples)
        series_probabilities = next(probabilities)
        if vocabulary and isinstance(result, ForecastResult) and not isinstance(series_probabilities, ForecasterError):
            result = result._replace(vocabulary=vocabulary, probabilities=series_probabilities)
        if options.return_state and isinstance(result, ForecastResult):
            deadline.check()
            result = attach_state_token(result, item, model, signer)
        outcomes.append(SeriesOutcome(series_input.id, result))
    return outcomes


def compute_mixed_forecasts(
    parsed: Sequence[ParsedSeries], options: ForecastOptions, model: DeployedModel, deadline: Deadline
) -> list[Forecast | ForecasterError]:
    """Forecasts series of any frequencies and seasons as `compute_forecasts`, those of one frequency and season together."""

    def forecast_series(series: list[Series], series_model: DeployedModel) -> list[Forecast | ForecasterError]:
        deadline.check()
        return compute_forecasts(series, options, series_model, deadline)

    return _compute_by_grid(parsed, model, forecast_series)


def _compute_by_grid(
    parsed: Sequence[ParsedSeries], model: DeployedModel, compute: Callable[[list[Series], DeployedModel], list[T]]
) -> list[T]:
    """Computes the series of each frequency and season with the model for them; a registered model computes all at once."""
    if not (model.is_pretrained and parsed):
        return compute([item.series for item in parsed], model)
    indices_by_grid: dict[tuple[str, int | None], list[int]] = {}
    for index, item in enumerate(parsed):
        indices_by_grid.setdefault((item.series.freq, item.season), []).append(index)
    results: dict[int, T] = {}
    for (freq, season), indices in indices_by_grid.items():
        series = [parsed[index].series for index in indices]
        results.update(zip(indices, compute(series, model.for_series(freq, season)), strict=True))
    return [results[index] for index in range(len(parsed))]


def compute_zero_shot_forecasts(
    series: list[Series], horizon: int, model: DeployedModel, deadline: Deadline
) -> list[Forecast | ForecasterError] | None:
    """Forecasts series of the model's frequency with the pretrained network, in batches; the ledger does not get them.

    Returns None if the model is the pretrained network, or the network cannot read its season. Raises ApiError after the
    deadline.
    """
    predictor = find_zero_shot_predictor(model)
    if predictor is None:
        return None
    return _compute_in_batches(
        lambda batch: predictor.forecast_batch(batch, horizon),
        series,
        extra_steps=horizon,
        max_steps=_BATCH_STEPS,
        deadline=deadline,
    )


def compute_forecasts(
    series: list[Series], options: ForecastOptions, model: DeployedModel, deadline: Deadline
) -> list[Forecast | ForecasterError]:
    """Forecasts series in batches, and records the forecasts in the ledger. The model has their frequency and season.

    Raises ApiError after the deadline, or for levels that the model does not support.
    """

    def forecast_batch(batch: list[Series]) -> list[Forecast | ForecasterError]:
        started_at = perf_counter()
        adaptive_state = model.adaptive_state if options.levels else None
        optional: dict[str, Any] = {} if adaptive_state is None else {"adaptive_state": adaptive_state}
        optional |= {"joint": True} if options.joint else {}
        results = model.predictor.forecast_batch(batch, options.horizon, levels=options.levels, **optional)
        fallback_count = sum(isinstance(result, Forecast) and result.has_fallback for result in results)
        model.measure_rollout(len(batch), perf_counter() - started_at, fallback_count)
        return results

    max_steps = _BATCH_STEPS // (BLEND_COST_FACTOR if model.predictor.fitted_model.blend_weights else 1)
    results = _compute_in_batches(
        forecast_batch, series, extra_steps=options.horizon, max_steps=max_steps, deadline=deadline
    )
    if model.predictor.fitted_model.spec.head.is_symbolic:  # the ledger compares numbers
        return results
    model.record_forecasts(model, series, [_without_bands(result) for result in results] if options.joint else results)
    return results


def _without_bands(outcome: Forecast | ForecasterError) -> Forecast | ForecasterError:
    """Returns a forecast without its bands of whole paths: the ledger counts which single steps lie between quantiles."""
    return replace(outcome, quantiles={}) if isinstance(outcome, Forecast) else outcome


def require_model(model: DeployedModel | None) -> DeployedModel:
    """Returns the model; raises ApiError (503) if there is none."""
    if model is None:
        raise ApiError(
            "not_ready", "No model is deployed yet. Try again later, or see /readyz.", headers={"retry-after": "1"}
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
    """Combines a forecast, its paths (of which `samples` were requested) and warnings into a result."""
    if isinstance(forecast, ForecasterError):
        return forecast
    if isinstance(paths, ForecasterError):
        return paths
    warnings = [*shared_warnings, *forecast.warnings]
    if paths is not None and not np.isfinite(paths).all():
        count = int((~np.isfinite(paths)).any(axis=1).sum())
        warnings.append(f"{count} of {len(paths)} samples became infinite or NaN; they are null from that step on.")
        paths = np.where(np.logical_and.accumulate(np.isfinite(paths), axis=1), paths, np.nan)
    has_fewer_paths = paths is not None and len(paths) < samples
    if paths is not None and has_fewer_paths:
        warnings.append(f"The deadline left time for only {len(paths)} of {samples} samples.")
    return ForecastResult(forecast, style, paths, warnings, has_fewer_paths)


def attach_state_token(
    result: ForecastResult, parsed: ParsedSeries, model: DeployedModel, signer: TokenSigner
) -> ForecastResult | ForecasterError:
    """Returns the result with a state token that continues the series, or the error that prevents it."""
    reference = ModelReference.of(model)
    try:
        # The pretrained network reads whole histories, and only PyTorch returns its recurrent state, so the history is kept.
        history = parsed.series if model.is_pretrained else model.predictor.truncate_history(parsed.series)
        token = issue_token(history, result.style, model=reference, signer=signer, season=parsed.season)
    except ForecasterError as error:
        return error
    return result._replace(state_token=token)


def parse_all_series(
    series: Sequence[SeriesInput],
    options: ForecastOptions,
    model: DeployedModel,
    deadline: Deadline,
    signer: TokenSigner,
) -> list[ParsedSeries | ForecasterError]:
    """Parses each series for the model, or returns its error. Raises ApiError after the deadline."""
    reference = ModelReference.of(model)
    parsed: list[ParsedSeries | ForecasterError] = []
    start_cache: StartCache = {}
    for series_input in series:
        deadline.check()
        try:
            if isinstance(series_input, ContinuedSeries):
                parsed.append(parse_token_series(series_input, model=reference, signer=signer, horizon=options.horizon))
                continue
            parsed.append(
                parse_series(
                    series_input,
                    model=model.predictor.fitted_model,
                    horizon=options.horizon,
                    start_cache=start_cache,
                    is_pretrained=model.is_pretrained,
                )
            )
        except ForecasterError as error:
            parsed.append(error)
    return parsed


def _predict_probabilities(
    parsed: Sequence[ParsedSeries], options: ForecastOptions, model: DeployedModel, deadline: Deadline
) -> Sequence[Float64[np.ndarray, "horizon symbol"] | ForecasterError | None]:
    """Returns the probabilities of the symbols of each series, if they are requested."""
    if not options.probabilities:
        return [None] * len(parsed)
    spec = model.predictor.fitted_model.spec
    return _compute_in_batches(
        lambda batch: model.predictor.predict_probabilities(batch, options.horizon),
        [item.series for item in parsed],
        extra_steps=options.horizon * len(spec.head.vocabulary),
        max_steps=_BATCH_STEPS,
        deadline=deadline,
    )


def _sample_paths(
    parsed: Sequence[ParsedSeries], options: ForecastOptions, model: DeployedModel, deadline: Deadline
) -> Sequence[Float64[np.ndarray, "path horizon"] | ForecasterError | None]:
    if not options.samples:
        return [None] * len(parsed)

    def draw(numbers: range, draw_deadline: Deadline) -> list[PathsOrError]:
        def sample_series(series: list[Series], series_model: DeployedModel) -> list[PathsOrError]:
            optional: dict[str, Any] = {} if options.temperature == 1 else {"temperature": options.temperature}
            sample = partial(
                series_model.predictor.sample_batch,
                horizon=options.horizon,
                paths=len(numbers),
                seed=options.seed,
                first_path=numbers.start,
                **optional,
            )
            extra_steps = options.horizon * len(numbers)
            return _compute_in_batches(
                sample, series, extra_steps=extra_steps, max_steps=_BATCH_STEPS, deadline=draw_deadline
            )

        return _compute_by_grid(parsed, model, sample_series)

    steps = options.horizon * max(1, len(parsed))
    return sample_in_batches(draw, samples=options.samples, steps=steps, deadline=deadline)


def _compute_in_batches(
    compute_batch: Callable[[list[Series]], list[T]],
    series: list[Series],
    *,
    extra_steps: int,
    max_steps: int,
    deadline: Deadline,
) -> list[T]:
    """Computes series in batches and checks the deadline before each.

    Without any series, one empty batch is computed, so that unsupported options of the request are still rejected.
    """
    batch_size = max(1, max_steps // (max((len(each) for each in series), default=0) + extra_steps))
    results: list[T] = []
    for first in range(0, max(1, len(series)), batch_size):
        deadline.check()
        try:
            results += compute_batch(series[first : first + batch_size])
        except (LevelOutOfRange, BadSpec, MissingPackage) as error:
            raise ApiError.from_forecaster_error(error) from error
    return results


def unobserved_end_warnings(series: Series) -> list[str]:
    """Returns a warning if a history ends with steps at which neither `y` nor a channel is observed."""
    if not np.isnan(series.y[-1]) or any(not np.isnan(values[-1]) for values in series.channels.values()):
        return []
    observed = ~np.isnan(np.stack([series.y, *series.channels.values()])).all(axis=0)
    count = int(np.argmax(observed[::-1])) if observed.any() else len(series)
    return [
        f"The history ends with {count} steps that were not observed (null), and the forecast starts after them. Leave them out "
        "to forecast from the last observed value."
    ]


def horizon_warnings(horizon: int, *, scored_horizon: int) -> list[str]:
    """Returns the warnings that apply to every forecast with this horizon."""
    if horizon <= scored_horizon:
        return []
    return [f"The horizon of {horizon} steps exceeds the {scored_horizon} steps that this model was scored on."]
