"""The records that all computing routes share: the endpoint, its jobs, and the encoded response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from serving.asgi import compression
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import DeployedModel
from serving.forecasting.outcomes import BLEND_COST_FACTOR
from serving.settings import Settings


class DecodedRequest(Protocol):
    """The decoded and validated request of an endpoint."""

    @property
    def deadline_ms(self) -> int | None:
        """Milliseconds until the client needs the response; None if the request does not say."""


RequestT = TypeVar("RequestT", bound=DecodedRequest)


class ComputeJob(NamedTuple, Generic[RequestT]):
    """A decoded request, with what its computation needs.

    Attributes:
        request: The request.
        model: The model in use when the request arrived.
        deadline: The deadline of the response.
        settings: The settings of the server.
        accepts_gzip: Whether the response may be in gzip.
    """

    request: RequestT
    model: DeployedModel
    deadline: Deadline
    settings: Settings
    accepts_gzip: bool = False


class EncodedResponse(NamedTuple):
    """An encoded response and its statistics.

    Attributes:
        body: The response body.
        forecast_count: Series with a forecast.
        refused_count: Series with an error.
        media_type: The media type of the body.
        seconds_by_stage: Seconds spent, by stage ("forecast", "write").
        is_compressed: Whether the body is in gzip.
    """

    body: bytes
    forecast_count: int = 0
    refused_count: int = 0
    media_type: str = "application/json"
    seconds_by_stage: dict[str, float] = {}  # noqa: RUF012  # never modified
    is_compressed: bool = False


class Endpoint(NamedTuple, Generic[RequestT]):
    """One computing route: decode, estimate the work, compute.

    Attributes:
        decode: Returns the request in a body of a media type. Raises ApiError (400, 415, 422), also for the limits.
        count_steps: Returns the steps of histories and forecasts, for the network alone.
        compute: Returns the response or the error of each job of a group, the same as if each were computed alone.
        is_groupable: Whether `compute` is faster with several jobs at once.
        is_recorded: Whether the forecasts are recorded in the ledger.
    """

    decode: Callable[[Body, str, Settings], RequestT]
    count_steps: Callable[[RequestT, DeployedModel], int]
    compute: Callable[[Sequence[ComputeJob[RequestT]]], list[EncodedResponse | Exception]]
    is_groupable: bool = False
    is_recorded: bool = False

    def estimate_work(self, request: RequestT, model: DeployedModel) -> int:
        """Returns the size of the work, in steps of a network; admission decides by it. A blend also fits statistical models."""
        cost_factor = BLEND_COST_FACTOR if model.predictor.fitted_model.blend_weights else 1
        return cost_factor * self.count_steps(request, model)

    def respond(self, jobs: Sequence[ComputeJob[RequestT]]) -> list[EncodedResponse | Exception]:
        """Computes a group of jobs, and compresses the responses whose clients accept that."""
        return [
            compress_response(outcome) if job.accepts_gzip and isinstance(outcome, EncodedResponse) else outcome
            for job, outcome in zip(jobs, self.compute(jobs), strict=True)
        ]


def compress_response(response: EncodedResponse) -> EncodedResponse:
    """Returns the response in gzip, unless it is small."""
    if len(response.body) < compression.MIN_COMPRESSED_BYTES:
        return response
    return response._replace(body=compression.compress(response.body), is_compressed=True)
