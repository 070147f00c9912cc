"""Large request bodies, which are received a few at a time and in chunks, and responses that are sent in chunks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from serving.asgi import bodies
from serving.asgi.bodies import LARGE_BODY_BYTES, MAX_LARGE_UPLOADS, ChunkedBody, ChunkedResponse, read_body
from serving.asgi.middleware import RequestMiddleware


def _request(messages: list[dict[str, Any]]) -> Request:
    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def _chunk(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_chunks_are_joined_on_demand() -> None:
    body = asyncio.run(
        read_body(_request([_chunk(b"ab", more=True), _chunk(b"", more=True), _chunk(b"c", more=False)]))
    )
    assert isinstance(body, ChunkedBody)
    assert len(body) == 3
    assert (bytes(body), bytes(body), len(body)) == (b"abc", b"abc", 3)


def test_a_body_in_one_chunk_is_not_copied() -> None:
    content = b"{}"
    assert asyncio.run(read_body(_request([_chunk(content, more=False)]))) is content


def test_a_disconnect_between_chunks_is_detected() -> None:
    with pytest.raises(ClientDisconnect):
        asyncio.run(read_body(_request([_chunk(b"ab", more=True), {"type": "http.disconnect"}])))


@pytest.mark.parametrize("size", [0, 1, 8, 9, 16, 17])
def test_a_response_is_sent_in_slices(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "CHUNK_BYTES", 8)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    content = bytes(range(size))
    asyncio.run(ChunkedResponse(content)({"type": "http"}, _request([]).receive, send))
    start, *messages = sent
    assert (b"content-length", str(size).encode()) in start["headers"]
    assert b"".join(message["body"] for message in messages) == content
    assert max(len(message["body"]) for message in messages) <= 8
    assert [message.get("more_body", False) for message in messages] == [True] * (len(messages) - 1) + [False]


class _ConcurrentBodies:
    """Requests to one middleware; counts how many bodies it reads at the same time."""

    def __init__(self) -> None:
        self.completed: list[str] = []
        self.max_reading = 0
        self._reading: set[str] = set()
        self.middleware = RequestMiddleware(self._application, max_body_bytes=10 * LARGE_BODY_BYTES)

    async def _application(self, scope: Any, _: Any, send: Any) -> None:
        self.completed.append(scope["path"])
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def send(
        self, name: str, *, chunks: int = 5, content_length: bool = True, last_chunk_event: asyncio.Event | None = None
    ) -> None:
        """Sends one request in chunks of half a large body; the last chunk waits for `last_chunk_event`, if given."""
        sent = 0

        async def receive() -> dict[str, Any]:
            nonlocal sent
            self._reading.add(name)
            self.max_reading = max(self.max_reading, len(self._reading))
            await asyncio.sleep(0)
            sent += 1
            if sent == chunks:
                if last_chunk_event is not None:
                    await last_chunk_event.wait()
                self._reading.discard(name)
            return _chunk(b"x" * (LARGE_BODY_BYTES // 2), more=sent < chunks)

        async def send(_: Any) -> None:
            pass

        headers = [(b"content-type", b"application/json")]
        if content_length:
            headers.append((b"content-length", str(chunks * LARGE_BODY_BYTES // 2).encode()))
        await self.middleware({"type": "http", "method": "POST", "path": name, "headers": headers}, receive, send)


def test_the_number_of_concurrent_large_bodies_is_limited() -> None:
    async def send_concurrently() -> _ConcurrentBodies:
        bodies = _ConcurrentBodies()
        await asyncio.gather(*(bodies.send(f"/{number}") for number in range(9)))
        return bodies

    bodies = asyncio.run(send_concurrently())
    assert len(bodies.completed) == 9
    assert bodies.max_reading == MAX_LARGE_UPLOADS


def test_small_bodies_are_not_queued() -> None:
    async def send_concurrently() -> _ConcurrentBodies:
        bodies, last_chunk = _ConcurrentBodies(), asyncio.Event()
        large = [
            asyncio.create_task(bodies.send(f"/{number}", last_chunk_event=last_chunk))
            for number in range(MAX_LARGE_UPLOADS + 1)
        ]
        await asyncio.sleep(0.01)
        await bodies.send("/small", chunks=1)
        assert bodies.completed == ["/small"]
        last_chunk.set()
        await asyncio.gather(*large)
        return bodies

    assert len(asyncio.run(send_concurrently()).completed) == MAX_LARGE_UPLOADS + 2


@pytest.mark.parametrize("content_length", [True, False])
def test_a_slow_sender_does_not_block_others_for_long(content_length: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "UPLOAD_PERMIT_S", 0.02)

    async def send_concurrently() -> None:
        concurrent_bodies, last_chunk = _ConcurrentBodies(), asyncio.Event()
        tasks = [
            asyncio.create_task(
                concurrent_bodies.send(f"/slow {number}", content_length=content_length, last_chunk_event=last_chunk)
            )
            for number in range(MAX_LARGE_UPLOADS)
        ]
        await asyncio.sleep(0.01)
        await asyncio.wait_for(concurrent_bodies.send("/next", content_length=content_length), 10)
        assert concurrent_bodies.completed == ["/next"]
        last_chunk.set()
        await asyncio.gather(*tasks)
        await asyncio.wait_for(asyncio.gather(*(concurrent_bodies.send(f"/{number}") for number in range(5))), 10)
        assert len(concurrent_bodies.completed) == MAX_LARGE_UPLOADS + 6

    asyncio.run(send_concurrently())


def test_the_permit_is_released_on_disconnect_and_on_an_oversized_body() -> None:
    async def disconnect(concurrent_bodies: _ConcurrentBodies) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        headers = [(b"content-length", str(LARGE_BODY_BYTES).encode())]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        await concurrent_bodies.middleware(scope, receive, send)

    async def send_sequentially() -> None:
        concurrent_bodies = _ConcurrentBodies()
        for _ in range(MAX_LARGE_UPLOADS + 1):
            await asyncio.wait_for(disconnect(concurrent_bodies), 10)
            # The body exceeds the limit of the middleware.
            await asyncio.wait_for(concurrent_bodies.send("/", chunks=30, content_length=False), 10)
        assert concurrent_bodies.completed == []
        await asyncio.wait_for(concurrent_bodies.send("/"), 10)
        assert concurrent_bodies.completed == ["/"]

    asyncio.run(send_sequentially())
