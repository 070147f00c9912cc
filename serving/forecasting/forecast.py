"""`POST /v1/forecast`: decode, validate, group, forecast, encode. Small requests that wait together share one rollout.

No request waits for a group to fill: a group is what has queued up while the thread computed the group before.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

from forecaster.errors import ForecasterError, StateOfOtherModel
from serving.asgi.bodies import Body
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.forecasting.endpoint import ComputeJob, EncodedResponse, Endpoint
from serving.forecasting.outcomes import GRID_STEPS, compute_outcomes
from serving.formats import limits
from serving.formats.forecast_formats import FORMATS, Format
from serving.formats.outcome import SeriesOutcome
from serving.formats.schema import ForecastOptions, SeriesInput
from serving.formats.state_token import TokenSigner
from serving.settings import Settings

# Steps of history and horizon of a request in a group. A full group stays below the steps between two checks of a deadline.
MAX_GROUPED_STEPS = 1 << 14


class DecodedForecast(NamedTuple):
    """A decoded forecast request: its options, its histories, and the format of the response."""

    options: ForecastOptions
    series: Sequence[SeriesInput]
    format: Format

    @property
    def deadline_ms(self) -> int | None:
        """Milliseconds until the client needs the response."""
        return self.options.deadline_ms


def decode_forecast(body: Body, media_type: str, settings: Settings) -> DecodedForecast:
    """Decodes a request in one of the formats, and validates its size. Raises ApiError (400, 415, 422)."""
    body_format = FORMATS[media_type]
    options, series = body_format.decode(body)
    limits.validate_request_size(options, series, settings)
    return DecodedForecast(options, series, body_format)


def count_forecast_steps(request: DecodedForecast, model: DeployedModel) -> int:
    """Returns the steps of all histories, and of all forecasts with their quantiles and samples.

    The pretrained network also computes each frequency and season apart.
    """
    options = request.options
    history_steps = sum(len(series.y) for series in request.series)
    forecast_steps = len(request.series) * options.horizon * (1 + len(options.levels) + options.samples)
    return history_steps + forecast_steps + (_count_grids(request.series) * GRID_STEPS if model.is_pretrained else 0)


def _count_grids(series: Sequence[SeriesInput]) -> int:
    """Returns the number of different frequencies and seasons, as the request declares them."""
    return len({(getattr(item, "freq", None), item.season) for item in series})


def compute_group(jobs: Sequence[ComputeJob[DecodedForecast]]) -> list[EncodedResponse | Exception]:
    """Returns the response or the error of each job, the same as if each were computed alone.

    The error of a job is an ApiError if all of its series have a state of another model (409), after the deadline, if the model
    does not support the options, or if its only series is rejected: a client that sends one series can rely on the status alone.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, job in enumerate(jobs):
        groups.setdefault(_group_key(job, index), []).append(index)
    outcomes: dict[int, EncodedResponse | Exception] = {}
    for indices in groups.values():
        outcomes.update(zip(indices, _compute_jobs([jobs[index] for index in indices]), strict=True))
    return [outcomes[index] for index in range(len(jobs))]


def _group_key(job: ComputeJob[DecodedForecast], index: int) -> tuple[object, ...]:
    """Returns what the jobs of a rollout share. Large jobs and jobs with samples share it with no other."""
    options, model = job.request.options, job.model
    if options.samples or options.probabilities or FORECAST.estimate_work(job.request, model) > MAX_GROUPED_STEPS:
        return (index,)
    # Both ids are unique, because the jobs hold references to the objects.
    ids = id(model.predictor), id(model.adaptive_state)
    return (model.release, *ids, options.horizon, tuple(options.levels), options.joint, options.return_state)


def _compute_jobs(jobs: Sequence[ComputeJob[DecodedForecast]]) -> list[EncodedResponse | Exception]:
    """Computes jobs in one rollout; after an error one by one, so that each job gets its own."""
    started_at, first = perf_counter(), jobs[0]
    try:
        for job in jobs:
            num_symbols = len(job.model.predictor.fitted_model.spec.head.vocabulary)
            limits.validate_probability_size(job.request.options, len(job.request.series), num_symbols, job.settings)
        deadline = max((job.deadline for job in jobs), key=lambda each: each.remaining_s)
        outcomes_by_job = compute_outcomes(
            [job.request.series for job in jobs],
            first.request.options,
            first.model,
            deadline,
            TokenSigner.from_settings(first.settings),
        )
    except Exception as error:
        return [error] if len(jobs) == 1 else [response for job in jobs for response in _compute_jobs([job])]
    seconds = perf_counter() - started_at
    return [_encode(job, outcomes, seconds) for job, outcomes in zip(jobs, outcomes_by_job, strict=True)]


def _encode(
    job: ComputeJob[DecodedForecast], outcomes: Sequence[SeriesOutcome], forecast_seconds: float
) -> EncodedResponse | Exception:
    """Encodes the outcomes of one job, whose computation took `forecast_seconds`."""
    started_at, request = perf_counter(), job.request
    errors = [outcome.result for outcome in outcomes if isinstance(outcome.result, ForecasterError)]
    try:
        job.deadline.check()
        if len(errors) == len(outcomes) and (
            all(isinstance(error, StateOfOtherModel) for error in errors)
            or (len(errors) == 1 and request.format.raises_single_error)
        ):
            raise ApiError.from_forecaster_error(errors[0])
        body = request.format.encode(job.model.info, outcomes, request.options)
    except Exception as error:
        return error
    seconds = {"forecast": forecast_seconds, "write": perf_counter() - started_at}
    return EncodedResponse(body, len(outcomes) - len(errors), len(errors), request.format.media_type, seconds)


FORECAST = Endpoint(decode_forecast, count_forecast_steps, compute_group, is_groupable=True, is_recorded=True)
