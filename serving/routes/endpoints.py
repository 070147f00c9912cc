"""The endpoints of the service: each reads a request, admits one computation, and writes its response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, lru_cache, partial
from time import perf_counter
from typing import Any
from urllib.parse import quote

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.asgi.admission import Admission
from serving.asgi.bodies import Body, ChunkedResponse, read_body
from serving.asgi.compression import accepts_gzip
from serving.asgi.metrics import CONTENT_TYPE, Metrics
from serving.asgi.middleware import HeaderList
from serving.deadline import Deadline
from serving.deployment import status
from serving.deployment.slot import DeployedModel, Slot
from serving.errors import ApiError
from serving.forecasting import ndjson
from serving.forecasting.endpoint import ComputeJob, Endpoint
from serving.forecasting.forecast import FORECAST
from serving.forecasting.outcomes import require_model
from serving.formats.forecast_formats import ARROW, JSON
from serving.formats.limits import BYTES_PER_STEP, validate_json_size
from serving.ledger_writer import LedgerWriter
from serving.routes import accuracy, actuals, bentoml_schema, openapi
from serving.routes.model import describe_model
from serving.settings import Settings

_MAX_LEDGER_REQUESTS = 16  # largest number of concurrent requests to the ledger
_MAX_INLINE_BYTES = (
    1 << 14
)  # of a JSON body that is decoded in the event loop, which takes less than handing it to a thread
_STREAMED_MEDIA_TYPES = (ndjson.MEDIA_TYPE, ARROW.media_type)
_STREAM_GRACE_S = 1.0  # time after the deadline for the line that reports it


class Endpoints:
    """The handlers of the routes, and the slot, admission and ledger that they share."""

    def __init__(self, settings: Settings, slot: Slot, metrics: Metrics) -> None:
        self._settings = settings
        self._slot = slot
        self._metrics = metrics
        self.shadow_slot = None if settings.shadow_slot is None else slot.with_folder(settings.shadow_slot)
        self._ledger_writer = LedgerWriter(
            settings, count=metrics.count_ledger_forecasts, get_shadow_model=self._get_shadow_model
        )
        self._admission = Admission(
            threads=settings.rollouts, capacity=settings.max_in_flight, timeout_s=settings.timeout_s
        )
        # A separate admission, so that an unresponsive database takes no thread from forecasts.
        self._ledger_admission = Admission(threads=1, capacity=_MAX_LEDGER_REQUESTS, timeout_s=settings.timeout_s)

    def _get_shadow_model(self) -> DeployedModel | None:
        return None if self.shadow_slot is None else self.shadow_slot.current

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Watches the slots and writes the ledger while the service runs."""
        slots = [slot for slot in (self._slot, self.shadow_slot) if slot is not None]
        for slot in slots:
            slot.start()
        self._ledger_writer.start()
        try:
            yield
        finally:
            for slot in slots:
                slot.stop()
            await asyncio.to_thread(self._ledger_writer.stop)
            self._admission.close()
            self._ledger_admission.close()

    async def forecast(self, request: Request) -> Response:
        """POST /v1/forecast: a stream for NDJSON, one computation for the other formats."""
        if _parse_media_type(request) == ndjson.MEDIA_TYPE:
            return await self._stream_ndjson(request)
        return await self.compute(FORECAST, request)

    async def compute(self, endpoint: Endpoint[Any], request: Request) -> Response:
        """The handler of every computing route: decodes, admits one computation, and writes the response."""
        started_at, media_type = perf_counter(), _parse_media_type(request)
        body = await self._read_body(request)
        deadline, model = self._admission.new_deadline(), self._slot.current
        if endpoint.is_recorded:
            model = self._ledger_writer.attach(model)
        wait_for_disconnect = partial(_wait_for_disconnect, request.receive)
        if media_type == JSON.media_type and len(body) <= _MAX_INLINE_BYTES:
            decoded = endpoint.decode(body, media_type, self._settings)
        else:
            decoded = await self._admission.run(
                endpoint.decode,
                body,
                media_type,
                self._settings,
                steps=len(body) // BYTES_PER_STEP,
                deadline=deadline,
                wait_for_disconnect=wait_for_disconnect,
            )
        read_seconds, model = perf_counter() - started_at, require_model(model)
        deadline = deadline.capped(decoded.deadline_ms)
        use_gzip = accepts_gzip(request.headers.get("accept-encoding", ""))
        encoded = await self._admission.run_grouped(
            endpoint.respond,
            ComputeJob(decoded, model, deadline, self._settings, use_gzip),
            kind=endpoint.compute,
            steps=endpoint.estimate_work(decoded, model),
            is_groupable=endpoint.is_groupable,
            deadline=deadline,
            wait_for_disconnect=wait_for_disconnect,
        )
        self._metrics.count_series(forecast=encoded.forecast_count, refused=encoded.refused_count)
        response = ChunkedResponse(encoded.body, media_type=encoded.media_type)
        stages = {"read": read_seconds, **encoded.seconds_by_stage}
        timing = ", ".join([f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in stages.items()])
        response.raw_headers += [*model_headers(model), (b"server-timing", timing.encode())]
        if encoded.is_compressed:
            response.raw_headers += [(b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]
        return response

    async def actuals(self, request: Request) -> Response:
        """POST /v1/actuals."""
        body, deadline = await self._read_body(request), self._admission.new_deadline()
        self._ledger_writer.attach(self._slot.current)
        content = await self._ledger_admission.run(
            actuals.record_actuals, body, self._ledger_writer, self._settings, deadline, deadline=deadline
        )
        return json_response(content)

    async def accuracy(self, request: Request) -> Response:
        """GET /v1/accuracy."""
        deadline = self._admission.new_deadline()
        content = await self._ledger_admission.run(
            accuracy.report_accuracy,
            dict(request.query_params),
            self._slot.current,
            self._ledger_writer,
            deadline,
            deadline=deadline,
        )
        return json_response(content)

    async def _read_body(self, request: Request) -> Body:
        """Receives the body. Raises ApiError (413) for JSON that is too large to be parsed at once."""
        body, media_type = await read_body(request), _parse_media_type(request)
        if media_type == JSON.media_type:
            alternatives = _STREAMED_MEDIA_TYPES if request.url.path == "/v1/forecast" else ()
            validate_json_size(len(body), self._settings, alternatives=alternatives)
        return body

    async def _stream_ndjson(self, request: Request) -> Response:
        """Awaits the first chunk, so that an invalid request gets its error status, and streams the others."""
        body = await self._read_body(request)
        deadline, model = self._admission.new_deadline(), self._ledger_writer.attach(self._slot.current)
        stream = await self._admission.run(
            ndjson.NdjsonForecast,
            body,
            model,
            deadline,
            self._settings,
            steps=len(body) // BYTES_PER_STEP,
            deadline=deadline,
        )
        next_chunk = partial(
            self._admission.run, ndjson.NdjsonForecast.next_chunk, stream, steps=stream.chunk_steps, deadline=deadline
        )
        first = await next_chunk()
        assert first is not None, "the first chunk holds the header"

        async def iter_body() -> AsyncGenerator[bytes, None]:
            yield first
            try:
                while (chunk := await next_chunk(wait_for_capacity=True)) is not None:
                    yield chunk
            except ApiError as error:  # the status has been sent, so the last line reports the error
                yield error.to_json() + b"\n"
            finally:
                self._metrics.count_series(forecast=stream.forecast_count, refused=stream.refused_count)

        return NdjsonResponse(iter_body(), deadline, model_headers(model))

    async def model(self, _: Request) -> Response:
        """GET /v1/model."""
        return json_response({**describe_model(self._require_model()), **self._deployment_status()})

    async def livez(self, _: Request) -> Response:
        """GET /livez."""
        return json_response({"live": True})

    async def readyz(self, _: Request) -> Response:
        """GET /readyz, and GET /ping."""
        model = self._require_model()
        return json_response(
            {"ready": True, "model": model.info, "age_s": round(model.age_s, 3), **self._deployment_status()}
        )

    async def metrics(self, _: Request) -> Response:
        """GET /metrics."""
        if self._settings.follows_registry:
            self._metrics.set_registry_reached(status.read_follower_state(self._settings.slot).reached_at)
        return Response(await asyncio.to_thread(self._metrics.render), media_type=CONTENT_TYPE)

    async def docs(self, _: Request) -> Response:
        """GET /docs.json, and GET /openapi.json."""
        return json_response(await asyncio.to_thread(_openapi_json, self._settings.root_path))

    async def bentoml_schema(self, _: Request) -> Response:
        """GET /schema.json."""
        return json_response(await asyncio.to_thread(_bentoml_schema_json))

    def _require_model(self) -> DeployedModel:
        model = self._slot.current
        if model is None:
            fields = self._deployment_status()
            reasons = [f"The slot cannot be checked ({fields['slot']['error']})"] if fields["slot"]["error"] else []
            reasons += [fields["refused"]["reason"]] if "refused" in fields else []
            reasons += [fields["follower"]["behind"]] if fields.get("follower", {}).get("behind") else []
            details = "".join(f" {reason.rstrip('.')}." for reason in reasons)
            raise ApiError(
                "not_ready", f"No model is in use yet.{details} Put a release into the slot, or wait for the follower."
            )
        return model

    def _deployment_status(self) -> dict[str, Any]:
        """Returns the status of this worker's slot and follower as response fields; does not contact the registry."""
        fields: dict[str, Any] = {"slot": self._slot.last_check.to_status().model_dump()}
        if self._settings.follows_registry:
            fields["follower"] = status.compute_follower_status(
                self._settings.slot, poll_s=self._settings.poll_s
            ).model_dump()
        if self._slot.rejection is not None:
            fields["refused"] = self._slot.rejection.to_status().model_dump()
        return fields


class NdjsonResponse(Response):
    """A streamed response.

    A client that has not read it by the deadline is disconnected. When the client disconnects, the computation stops.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], deadline: Deadline, headers: HeaderList) -> None:
        super().__init__(media_type=ndjson.MEDIA_TYPE)
        self._chunks = chunks
        self._deadline = deadline
        self.raw_headers = [(b"content-type", ndjson.MEDIA_TYPE.encode()), *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the chunks. Raises TimeoutError if the client does not read them in time."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            async for chunk in self._chunks:
                if disconnected.done():
                    return
                timeout_s = self._deadline.remaining_s + _STREAM_GRACE_S
                await asyncio.wait_for(
                    send({"type": "http.response.body", "body": chunk, "more_body": True}), timeout_s
                )
            await send({"type": "http.response.body", "body": b""})
        finally:
            disconnected.cancel()
            await self._chunks.aclose()


def _parse_media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() or JSON.media_type


async def _wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


@cache
def _openapi_json(root_path: str) -> bytes:
    """Builds the document on the first request, so that a worker becomes ready sooner."""
    return orjson.dumps(openapi.build_document(root_path))


@cache
def _bentoml_schema_json() -> bytes:
    return orjson.dumps(bentoml_schema.build_schema())


@lru_cache(8)
def _build_model_headers(name: str, version: str, digest: str, blend: tuple[tuple[str, float], ...]) -> HeaderList:
    headers = [(b"x-model", f"{quote(name)}/{quote(version)}".encode()), (b"x-model-digest", digest.encode())]
    if blend:
        weights = ", ".join(f"{quote(component)}={weight:g}" for component, weight in blend)
        headers.append((b"x-model-blend", weights.encode()))
    return headers


def model_headers(model: DeployedModel | None) -> HeaderList:
    """Returns the headers that identify the model."""
    if model is None:
        return ()
    release, blend = model.release, model.predictor.fitted_model.blend_weights
    return _build_model_headers(release.name, release.version, release.digest, tuple(blend.items()))


def json_response(
    content: bytes | dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Returns a JSON response; bytes are sent as they are."""
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return ChunkedResponse(body, status_code=status, media_type="application/json", headers=headers)
