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

from forecaster.frequency import tell
from serving.asgi import assets, auth
from serving.asgi.admission import Admission
from serving.asgi.bodies import Body, Sliced, gather
from serving.asgi.compression import takes_gzip
from serving.asgi.metrics import CONTENT_TYPE, Metrics
from serving.asgi.middleware import Guard, Pairs
from serving.deadline import Deadline
from serving.deployment import status as standing
from serving.deployment.slot import InUse, Load, Slot, load_bundle
from serving.errors import Problem
from serving.forecasting import ndjson
from serving.forecasting.answer import Asked, answer_lines, begin_lines
from serving.forecasting.batcher import Batcher, Ticket
from serving.ledger_writer import Scribe
from serving.routes import accuracy, actuals, backtest, explain, invocations, openapi, scenarios
from serving.settings import Settings

_BOOKS = 16  # requests about the ledger that may be under way
_GRACE_S = 1.0  # for the line that says that the deadline passed


class Served(NamedTuple):
    """An application and what it is made of."""

    app: Guard  # answers requests
    routes: Starlette  # inside the guard; its lifespan starts and stops the slot
    slot: Slot
    beside: Slot | None  # of the model in the shadow


def build(settings: Settings, *, slot: Slot | None = None, load: Load = load_bundle) -> Served:
    """The application of one worker. Raises BadKeys where it would answer anyone, unless the settings want that."""
    keyring = auth.keyring(settings)
    settings = settings.with_state_key()
    page = assets.read()
    metrics = Metrics([*(route.path for route in openapi.ROUTES), assets.LABEL])
    slot = slot or Slot(
        settings.slot,
        load=load,
        reload_s=settings.reload_s,
        retry_s=settings.retry_s,
        noticed=metrics.model,
        measure=metrics.rolled,
    )
    desk = Desk(settings, slot, metrics)
    paths: dict[tuple[str, str], Callable[[Request], Awaitable[Response]]] = {
        ("post", "/v1/forecast"): desk.forecast,
        ("post", "/v1/scenarios"): desk.scenarios,
        ("post", "/invocations"): desk.invocations,
        ("post", "/v1/backtest"): partial(desk.asked, backtest.answer),
        ("post", "/v1/explain"): partial(desk.asked, explain.answer),
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
            *(Route(asset.path, asset.answer, methods=["GET"]) for asset in page),
        ],
        # One for every failure, so that Starlette never writes its own; what is unexpected is raised on to the guard.
        exception_handlers={HTTPException: _no_route, Problem: _problem, Exception: _last_resort},
        lifespan=desk.lifespan,
    )
    routes.router.redirect_slashes = False
    scopes = {route.path: route.scope for route in openapi.ROUTES if route.scope is not None}
    open_paths = {route.path for route in openapi.ROUTES} - set(scopes) | {asset.path for asset in page}

    def admit(path: str, headers: Mapping[bytes, bytes]) -> str | None:
        return None if keyring is None or path in open_paths else keyring.admit(scopes.get(path), headers)

    guard = Guard(
        routes,
        max_body=settings.max_body,
        observe=lambda path, status, seconds: metrics.request(assets.label(path), status, seconds),
        admit=admit,
        takes={route.path: [form.media_type for form in route.asks] for route in openapi.ROUTES if route.asks},
        stamp=lambda: _named(slot.current),
    )
    return Served(guard, routes, slot, desk.shadow)


class Desk:
    """The endpoints, and what they share."""

    def __init__(self, settings: Settings, slot: Slot, metrics: Metrics) -> None:
        self._settings = settings
        self._slot = slot
        self._metrics = metrics
        beside = settings.shadow_slot
        self.shadow = None if beside is None else slot.beside(beside)
        self._scribe = Scribe(settings, counted=metrics.ledger, shadow=self._beside)
        self._admission = Admission(
            threads=settings.rollouts, places=settings.max_in_flight, timeout_s=settings.timeout_s
        )
        self._batcher = Batcher(settings)
        # Apart, so that a database which does not answer takes no thread from forecasts.
        self._books = Admission(threads=1, places=_BOOKS, timeout_s=settings.timeout_s)

    def _beside(self) -> InUse | None:
        return None if self.shadow is None else self.shadow.current

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Watches the slot, and keeps what is served, while the server runs."""
        watched = [one for one in (self._slot, self.shadow) if one is not None]
        for one in watched:
            one.start()
        self._scribe.start()
        try:
            yield
        finally:
            for one in watched:
                one.stop()
            await asyncio.to_thread(self._scribe.stop)
            self._admission.close()
            self._books.close()

    async def forecast(self, request: Request) -> Response:
        """POST /v1/forecast."""
        body, deadline, model = await gather(request), self._admission.deadline(), self._scribe.on(self._slot.current)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower() or "application/json"
        if media_type == ndjson.MEDIA_TYPE:
            return await self._lines(body, model, deadline)
        pack = takes_gzip(request.headers.get("accept-encoding", ""))
        ticket = Ticket(Asked(body, media_type, model, deadline, pack))
        waits, leaves = partial(self._batcher.wait, ticket), partial(_left, request.receive)
        work = self._batcher.answer, ticket
        at_once = partial(self._batcher.at_once, ticket)
        answered = await self._admission.run(*work, deadline=deadline, leaves=leaves, admitted=waits, at_once=at_once)
        self._metrics.series(forecast=answered.forecast, refused=answered.refused)
        took = ", ".join([f"{part};dur={seconds * 1000:.2f}" for part, seconds in answered.seconds.items()])
        response = Sliced(answered.body, media_type=media_type)
        response.raw_headers += [*_named(model), (b"server-timing", took.encode())]
        if answered.packed:
            response.raw_headers += [(b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]
        return response

    async def scenarios(self, request: Request) -> Response:
        """POST /v1/scenarios."""
        body, deadline, model = await gather(request), self._admission.deadline(), self._scribe.on(self._slot.current)
        work, leaves = (scenarios.answer, body, model, self._settings, deadline), partial(_left, request.receive)
        told = await self._admission.run(*work, deadline=deadline, leaves=leaves)
        self._metrics.series(forecast=told.forecast, refused=told.refused)
        response = _json(told.body)
        response.raw_headers += _named(model)
        return response

    async def invocations(self, request: Request) -> Response:
        """POST /invocations."""
        body, deadline, model = await gather(request), self._admission.deadline(), self._scribe.on(self._slot.current)
        work = (invocations.answer, body, model, self._settings, deadline)
        leaves = partial(_left, request.receive)
        content, series = await self._admission.run(*work, deadline=deadline, leaves=leaves)
        self._metrics.series(forecast=series, refused=0)
        response = _json(content)
        response.raw_headers += _named(model)
        return response

    async def asked(
        self, work: Callable[[Body, InUse | None, Settings, Deadline], bytes], request: Request
    ) -> Response:
        """Routes that are one piece of work from body to answer: POST /v1/backtest and /v1/explain."""
        body, deadline, model = await gather(request), self._admission.deadline(), self._slot.current
        response = _json(await self._admission.run(work, body, model, self._settings, deadline, deadline=deadline))
        response.raw_headers += _named(model)
        return response

    async def actuals(self, request: Request) -> Response:
        """POST /v1/actuals."""
        body, deadline = await gather(request), self._admission.deadline()
        self._scribe.on(self._slot.current)
        work = (actuals.answer, body, self._scribe, self._settings, deadline)
        return _json(await self._books.run(*work, deadline=deadline))

    async def accuracy(self, request: Request) -> Response:
        """GET /v1/accuracy."""
        deadline = self._admission.deadline()
        work = (accuracy.answer, dict(request.query_params), self._slot.current, self._scribe, deadline)
        return _json(await self._books.run(*work, deadline=deadline))

    async def _lines(self, body: Body, model: InUse | None, deadline: Deadline) -> Response:
        """The first piece is awaited, so that a request that cannot be used gets its status; the others are streamed."""
        asked, pieces, first = await self._admission.run(
            begin_lines, body, model, self._settings, deadline, deadline=deadline
        )

        async def whole() -> AsyncGenerator[bytes, None]:
            yield first
            try:
                while (
                    piece := await self._admission.run(answer_lines, pieces, deadline=deadline, wait=True)
                ) is not None:
                    yield piece
            except Problem as problem:  # the status is out: a last line says it
                yield problem.body() + b"\n"
            finally:
                self._metrics.series(forecast=asked.forecast, refused=asked.refused)

        return Streamed(whole(), deadline, _named(model))

    async def model(self, _: Request) -> Response:
        """GET /v1/model."""
        model = self._in_use()
        learned = model.predictor.forecaster
        return _json(
            {
                "model": model.name,
                "spec": learned.spec.model_dump(mode="json"),
                "freq": learned.freq,
                "season": learned.season,
                "cutoff": tell(learned.cutoff),
                "facts": learned.facts,
                "card": model.card,
                "age_s": round(model.age_s, 3),
                **self._standing(),
            }
        )

    async def livez(self, _: Request) -> Response:
        """GET /livez."""
        return _json({"live": True})

    async def readyz(self, _: Request) -> Response:
        """GET /readyz, and /ping for those who ask so."""
        model = self._in_use()
        return _json({"ready": True, "model": model.name, "age_s": round(model.age_s, 3), **self._standing()})

    async def metrics(self, _: Request) -> Response:
        """GET /metrics."""
        if self._settings.follows:
            self._metrics.reached(standing.read(self._settings.slot).reached_at)
        return Response(await asyncio.to_thread(self._metrics.page), media_type=CONTENT_TYPE)

    async def docs(self, _: Request) -> Response:
        """GET /docs.json."""
        return _json(await asyncio.to_thread(_document))

    def _in_use(self) -> InUse:
        model = self._slot.current
        if model is None:
            told = self._standing()
            reasons = [told["refused"]["reason"]] if "refused" in told else []
            reasons += [told["follower"]["behind"]] if told.get("follower", {}).get("behind") else []
            why = "".join(f" {one.rstrip('.')}." for one in reasons)
            raise Problem("not_ready", f"No model is in use yet.{why} Put one into the slot, or wait for the follower.")
        return model

    def _standing(self) -> dict[str, Any]:
        """How this worker stands to the slot and to the registry; nothing is asked of that."""
        told: dict[str, Any] = {}
        if self._settings.follows:
            told["follower"] = standing.tell(self._settings.slot, poll_s=self._settings.poll_s).model_dump()
        if self._slot.refusal is not None:
            told["refused"] = self._slot.refusal.told().model_dump()
        return told


class Streamed(Response):
    """An answer in pieces. Who does not fetch them before the deadline is cut off; who leaves gets no more computed."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], deadline: Deadline, headers: Pairs) -> None:
        super().__init__(media_type=ndjson.MEDIA_TYPE)
        self._pieces = pieces
        self._deadline = deadline
        self.raw_headers = [(b"content-type", ndjson.MEDIA_TYPE.encode()), *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        left = asyncio.ensure_future(_left(receive))
        try:
            async for piece in self._pieces:
                if left.done():
                    return
                patience = self._deadline.left + _GRACE_S
                await asyncio.wait_for(send({"type": "http.response.body", "body": piece, "more_body": True}), patience)
            await send({"type": "http.response.body", "body": b""})
        finally:
            left.cancel()
            await self._pieces.aclose()


async def _left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


@cache
def _document() -> bytes:
    """Made when it is first asked for: a worker should be ready soon."""
    return orjson.dumps(openapi.document())


@lru_cache(8)
def _headers(name: str, version: str, digest: str, blend: tuple[tuple[str, float], ...]) -> Pairs:
    pairs = [(b"x-model", f"{quote(name)}/{quote(version)}".encode()), (b"x-model-digest", digest.encode())]
    if blend:
        pairs.append((b"x-model-blend", ", ".join(f"{quote(one)}={weight:g}" for one, weight in blend).encode()))
    return pairs


def _named(model: InUse | None) -> Pairs:
    """The headers that say which model it is."""
    if model is None:
        return ()
    release, blend = model.release, model.predictor.forecaster.blend
    return _headers(release.name, release.version, release.digest, tuple(blend.items()))


def _json(content: bytes | dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return Sliced(body, status_code=status, media_type="application/json", headers=headers)


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem), "Starlette calls it for nothing else"
    return _json(error.body(), status=error.status, headers=error.headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "Starlette calls it for nothing else"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        problem = Problem("method_not_allowed", f"This path takes {allowed}.", headers={"allow": allowed})
    elif error.status_code == 404:
        problem = Problem("not_found", "There is no such path; /docs.json lists all.")
    else:
        problem = Problem("invalid_request", error.detail, status=error.status_code)
    return await _problem(request, problem)


async def _last_resort(request: Request, _: Exception) -> Response:
    return await _problem(
        request, Problem("internal_error", "The server failed; its log says more under the request id.")
    )
