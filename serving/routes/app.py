"""The routes, as a Starlette application; and the same with the guard in front, which is what is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from forecaster.frequency import format_timestamp
from serving.asgi import assets, auth
from serving.asgi.admission import Admission
from serving.asgi.bodies import Body, ChunkedResponse, read_body
from serving.asgi.compression import accepts_gzip
from serving.asgi.metrics import CONTENT_TYPE, Metrics
from serving.asgi.middleware import HeaderList, RequestMiddleware
from serving.deadline import Deadline
from serving.deployment import status as standing
from serving.deployment.slot import DeployedModel, LoadPredictor, Slot, load_bundle
from serving.errors import ApiError
from serving.forecasting import ndjson
from serving.forecasting.answer import RawRequest, next_chunk, start_ndjson
from serving.forecasting.batcher import Batcher, PendingRequest
from serving.ledger_writer import LedgerWriter
from serving.routes import accuracy, actuals, backtest, explain, invocations, openapi, scenarios
from serving.settings import Settings

_MAX_LEDGER_REQUESTS = 16  # requests about the ledger that may be under way
_STREAM_GRACE_S = 1.0  # for the line that says that the deadline passed


class Application(NamedTuple):
    """An application and what it is made of."""

    app: RequestMiddleware  # answers requests
    routes: Starlette  # inside the guard; its lifespan starts and stops the slot
    slot: Slot
    shadow_slot: Slot | None  # of the model in the shadow


def build_application(
    settings: Settings, *, slot: Slot | None = None, load: LoadPredictor = load_bundle
) -> Application:
    """The application of one worker. Raises BadKeys where it would answer anyone, unless the settings want that."""
    keyring = auth.build_keyring(settings)
    settings = settings.with_state_key()
    page = assets.load_assets()
    metrics = Metrics([*(route.path for route in openapi.ROUTES), assets.METRICS_LABEL])
    slot = slot or Slot(
        settings.slot,
        load=load,
        reload_s=settings.reload_s,
        retry_s=settings.retry_s,
        on_model_change=metrics.count_model_change,
        measure_rollout=metrics.observe_rollout,
    )
    desk = Endpoints(settings, slot, metrics)
    paths: dict[tuple[str, str], Callable[[Request], Awaitable[Response]]] = {
        ("post", "/v1/forecast"): desk.forecast,
        ("post", "/v1/scenarios"): desk.scenarios,
        ("post", "/invocations"): desk.invocations,
        ("post", "/v1/backtest"): partial(desk.respond_with, backtest.run_backtest),
        ("post", "/v1/explain"): partial(desk.respond_with, explain.run_explanation),
        ("post", "/v1/actuals"): desk.actuals,
        ("get", "/v1/accuracy"): desk.accuracy,
        ("get", "/ping"): desk.readyz,
        ("get", "/v1/model"): desk.model,
        ("get", "/livez"): desk.livez,
        ("get", "/readyz"): desk.readyz,
        ("get", "/metrics"): desk.metrics,
        ("get", "/docs.json"): desk.docs,
    }
    routes = Starlette(
        routes=[
            *(Route(one.path, paths[one.method, one.path], methods=[one.method.upper()]) for one in openapi.ROUTES),
            *(Route(asset.path, asset.serve, methods=["GET"]) for asset in page),
        ],
        # One for every failure, so that Starlette never writes its own; what is unexpected is raised on to the guard.
        exception_handlers={
            HTTPException: _http_error_response,
            ApiError: _error_response,
            Exception: _internal_error_response,
        },
        lifespan=desk.lifespan,
    )
    routes.router.redirect_slashes = False
    scopes = {route.path: route.scope for route in openapi.ROUTES if route.scope is not None}
    open_paths = {route.path for route in openapi.ROUTES} - set(scopes) | {asset.path for asset in page}

    def admit(path: str, headers: Mapping[bytes, bytes]) -> str | None:
        return None if keyring is None or path in open_paths else keyring.authorize(scopes.get(path), headers)

    guard = RequestMiddleware(
        routes,
        max_body_bytes=settings.max_body,
        observe=lambda path, status, seconds: metrics.count_request(assets.metrics_label(path), status, seconds),
        authorize=admit,
        media_types={
            route.path: [form.media_type for form in route.request_formats]
            for route in openapi.ROUTES
            if route.request_formats
        },
        model_headers=lambda: _model_headers(slot.current),
    )
    return Application(guard, routes, slot, desk.shadow_slot)


class Endpoints:
    """The endpoints, and what they share."""

    def __init__(self, settings: Settings, slot: Slot, metrics: Metrics) -> None:
        self._settings = settings
        self._slot = slot
        self._metrics = metrics
        beside = settings.shadow_slot
        self.shadow_slot = None if beside is None else slot.with_folder(beside)
        self._ledger_writer = LedgerWriter(
            settings, count=metrics.count_ledger_forecasts, get_shadow_model=self._get_shadow_model
        )
        self._admission = Admission(
            threads=settings.rollouts, capacity=settings.max_in_flight, timeout_s=settings.timeout_s
        )
        self._batcher = Batcher(settings)
        # Apart, so that a database which does not answer takes no thread from forecasts.
        self._ledger_admission = Admission(threads=1, capacity=_MAX_LEDGER_REQUESTS, timeout_s=settings.timeout_s)

    def _get_shadow_model(self) -> DeployedModel | None:
        return None if self.shadow_slot is None else self.shadow_slot.current

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Watches the slot, and keeps what is served, while the server runs."""
        watched = [one for one in (self._slot, self.shadow_slot) if one is not None]
        for one in watched:
            one.start()
        self._ledger_writer.start()
        try:
            yield
        finally:
            for one in watched:
                one.stop()
            await asyncio.to_thread(self._ledger_writer.stop)
            self._admission.close()
            self._ledger_admission.close()

    async def forecast(self, request: Request) -> Response:
        """POST /v1/forecast."""
        body, deadline, model = (
            await read_body(request),
            self._admission.new_deadline(),
            self._ledger_writer.attach(self._slot.current),
        )
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower() or "application/json"
        if media_type == ndjson.MEDIA_TYPE:
            return await self._stream_ndjson(body, model, deadline)
        pack = accepts_gzip(request.headers.get("accept-encoding", ""))
        ticket = PendingRequest(RawRequest(body, media_type, model, deadline, pack))
        waits, leaves = partial(self._batcher.enqueue, ticket), partial(_wait_for_disconnect, request.receive)
        work = self._batcher.respond, ticket
        at_once = partial(self._batcher.try_immediately, ticket)
        answered = await self._admission.run(
            *work, deadline=deadline, wait_for_disconnect=leaves, on_admitted=waits, run_immediately=at_once
        )
        self._metrics.count_series(forecast=answered.forecast_count, refused=answered.refused_count)
        took = ", ".join([f"{part};dur={seconds * 1000:.2f}" for part, seconds in answered.seconds_by_stage.items()])
        response = ChunkedResponse(answered.body, media_type=media_type)
        response.raw_headers += [*_model_headers(model), (b"server-timing", took.encode())]
        if answered.is_compressed:
            response.raw_headers += [(b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]
        return response

    async def scenarios(self, request: Request) -> Response:
        """POST /v1/scenarios."""
        body, deadline, model = (
            await read_body(request),
            self._admission.new_deadline(),
            self._ledger_writer.attach(self._slot.current),
        )
        work, leaves = (
            (scenarios.run_scenarios, body, model, self._settings, deadline),
            partial(_wait_for_disconnect, request.receive),
        )
        told = await self._admission.run(*work, deadline=deadline, wait_for_disconnect=leaves)
        self._metrics.count_series(forecast=told.forecast_count, refused=told.refused_count)
        response = _json_response(told.body)
        response.raw_headers += _model_headers(model)
        return response

    async def invocations(self, request: Request) -> Response:
        """POST /invocations."""
        body, deadline, model = (
            await read_body(request),
            self._admission.new_deadline(),
            self._ledger_writer.attach(self._slot.current),
        )
        work = (invocations.run_invocation, body, model, self._settings, deadline)
        leaves = partial(_wait_for_disconnect, request.receive)
        content, series = await self._admission.run(*work, deadline=deadline, wait_for_disconnect=leaves)
        self._metrics.count_series(forecast=series, refused=0)
        response = _json_response(content)
        response.raw_headers += _model_headers(model)
        return response

    async def respond_with(
        self, compute: Callable[[Body, DeployedModel | None, Settings, Deadline], bytes], request: Request
    ) -> Response:
        """Routes that are one piece of work from body to answer: POST /v1/backtest and /v1/explain."""
        body, deadline, model = await read_body(request), self._admission.new_deadline(), self._slot.current
        response = _json_response(
            await self._admission.run(compute, body, model, self._settings, deadline, deadline=deadline)
        )
        response.raw_headers += _model_headers(model)
        return response

    async def actuals(self, request: Request) -> Response:
        """POST /v1/actuals."""
        body, deadline = await read_body(request), self._admission.new_deadline()
        self._ledger_writer.attach(self._slot.current)
        work = (actuals.record_actuals, body, self._ledger_writer, self._settings, deadline)
        return _json_response(await self._ledger_admission.run(*work, deadline=deadline))

    async def accuracy(self, request: Request) -> Response:
        """GET /v1/accuracy."""
        deadline = self._admission.new_deadline()
        work = (accuracy.report_accuracy, dict(request.query_params), self._slot.current, self._ledger_writer, deadline)
        return _json_response(await self._ledger_admission.run(*work, deadline=deadline))

    async def _stream_ndjson(self, body: Body, model: DeployedModel | None, deadline: Deadline) -> Response:
        """The first piece is awaited, so that a request that cannot be used gets its status; the others are streamed."""
        asked, pieces, first = await self._admission.run(
            start_ndjson, body, model, self._settings, deadline, deadline=deadline
        )

        async def whole() -> AsyncGenerator[bytes, None]:
            yield first
            try:
                while (
                    piece := await self._admission.run(next_chunk, pieces, deadline=deadline, wait_for_capacity=True)
                ) is not None:
                    yield piece
            except ApiError as problem:  # the status is out: a last line says it
                yield problem.to_json() + b"\n"
            finally:
                self._metrics.count_series(forecast=asked.forecast_count, refused=asked.refused_count)

        return NdjsonResponse(whole(), deadline, _model_headers(model))

    async def model(self, _: Request) -> Response:
        """GET /v1/model."""
        model = self._require_model()
        learned = model.predictor.fitted_model
        return _json_response(
            {
                "model": model.info,
                "spec": learned.spec.model_dump(mode="json"),
                "freq": learned.freq,
                "season": learned.season,
                "cutoff": format_timestamp(learned.cutoff),
                "facts": learned.facts,
                "card": model.card,
                "age_s": round(model.age_s, 3),
                **self._deployment_status(),
            }
        )

    async def livez(self, _: Request) -> Response:
        """GET /livez."""
        return _json_response({"live": True})

    async def readyz(self, _: Request) -> Response:
        """GET /readyz, and /ping for those who ask so."""
        model = self._require_model()
        return _json_response(
            {"ready": True, "model": model.info, "age_s": round(model.age_s, 3), **self._deployment_status()}
        )

    async def metrics(self, _: Request) -> Response:
        """GET /metrics."""
        if self._settings.follows_registry:
            self._metrics.set_registry_reached(standing.read_follower_state(self._settings.slot).reached_at)
        return Response(await asyncio.to_thread(self._metrics.render), media_type=CONTENT_TYPE)

    async def docs(self, _: Request) -> Response:
        """GET /docs.json."""
        return _json_response(await asyncio.to_thread(_openapi_json))

    def _require_model(self) -> DeployedModel:
        model = self._slot.current
        if model is None:
            told = self._deployment_status()
            reasons = [told["refused"]["reason"]] if "refused" in told else []
            reasons += [told["follower"]["behind"]] if told.get("follower", {}).get("behind") else []
            why = "".join(f" {one.rstrip('.')}." for one in reasons)
            raise ApiError(
                "not_ready", f"No model is in use yet.{why} Put one into the slot, or wait for the follower."
            )
        return model

    def _deployment_status(self) -> dict[str, Any]:
        """How this worker stands to the slot and to the registry; nothing is asked of that."""
        told: dict[str, Any] = {}
        if self._settings.follows_registry:
            told["follower"] = standing.compute_follower_status(
                self._settings.slot, poll_s=self._settings.poll_s
            ).model_dump()
        if self._slot.rejection is not None:
            told["refused"] = self._slot.rejection.to_status().model_dump()
        return told


class NdjsonResponse(Response):
    """An answer in pieces. Who does not fetch them before the deadline is cut off; who leaves gets no more computed."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], deadline: Deadline, headers: HeaderList) -> None:
        super().__init__(media_type=ndjson.MEDIA_TYPE)
        self._chunks = chunks
        self._deadline = deadline
        self.raw_headers = [(b"content-type", ndjson.MEDIA_TYPE.encode()), *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        left = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            async for piece in self._chunks:
                if left.done():
                    return
                patience = self._deadline.remaining_s + _STREAM_GRACE_S
                await asyncio.wait_for(send({"type": "http.response.body", "body": piece, "more_body": True}), patience)
            await send({"type": "http.response.body", "body": b""})
        finally:
            left.cancel()
            await self._chunks.aclose()


async def _wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


@cache
def _openapi_json() -> bytes:
    """Made when it is first asked for: a worker should be ready soon."""
    return orjson.dumps(openapi.build_document())


@lru_cache(8)
def _build_model_headers(name: str, version: str, digest: str, blend: tuple[tuple[str, float], ...]) -> HeaderList:
    pairs = [(b"x-model", f"{quote(name)}/{quote(version)}".encode()), (b"x-model-digest", digest.encode())]
    if blend:
        pairs.append((b"x-model-blend", ", ".join(f"{quote(one)}={weight:g}" for one, weight in blend).encode()))
    return pairs


def _model_headers(model: DeployedModel | None) -> HeaderList:
    """The headers that say which model it is."""
    if model is None:
        return ()
    release, blend = model.release, model.predictor.fitted_model.blend_weights
    return _build_model_headers(release.name, release.version, release.digest, tuple(blend.items()))


def _json_response(
    content: bytes | dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return ChunkedResponse(body, status_code=status, media_type="application/json", headers=headers)


async def _error_response(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "Starlette calls it for nothing else"
    return _json_response(error.to_json(), status=error.status, headers=error.headers)


async def _http_error_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "Starlette calls it for nothing else"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        problem = ApiError("method_not_allowed", f"This path takes {allowed}.", headers={"allow": allowed})
    elif error.status_code == 404:
        problem = ApiError("not_found", "There is no such path; /docs.json lists all.")
    else:
        problem = ApiError("invalid_request", error.detail, status=error.status_code)
    return await _error_response(request, problem)


async def _internal_error_response(request: Request, _: Exception) -> Response:
    return await _error_response(
        request, ApiError("internal_error", "The server failed; its log says more under the request id.")
    )
