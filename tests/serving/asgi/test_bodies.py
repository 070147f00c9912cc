"""Bodies that come by turns and in many parts, and answers that leave in slices."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from serving.asgi import bodies
from serving.asgi.bodies import AT_A_TIME, LARGE, InParts, Sliced, gather
from serving.asgi.middleware import Guard


def _request(messages: list[dict[str, Any]]) -> Request:
    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def _part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_parts_are_put_together_when_they_are_asked_for() -> None:
    body = asyncio.run(gather(_request([_part(b"ab", more=True), _part(b"", more=True), _part(b"c", more=False)])))
    assert isinstance(body, InParts)
    assert len(body) == 3
    assert (bytes(body), bytes(body), len(body)) == (b"abc", b"abc", 3)


def test_a_body_in_one_piece_is_taken_as_it_is() -> None:
    whole = b"{}"
    assert asyncio.run(gather(_request([_part(whole, more=False)]))) is whole


def test_a_client_that_leaves_in_between_is_noticed() -> None:
    with pytest.raises(ClientDisconnect):
        asyncio.run(gather(_request([_part(b"ab", more=True), {"type": "http.disconnect"}])))


@pytest.mark.parametrize("size", [0, 1, 8, 9, 16, 17])
def test_an_answer_leaves_in_slices(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SLICE", 8)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    whole = bytes(range(size))
    asyncio.run(Sliced(whole)({"type": "http"}, _request([]).receive, send))
    begin, *slices = sent
    assert (b"content-length", str(size).encode()) in begin["headers"]
    assert b"".join(one["body"] for one in slices) == whole
    assert max(len(one["body"]) for one in slices) <= 8
    assert [one.get("more_body", False) for one in slices] == [True] * (len(slices) - 1) + [False]


class _Bodies:
    """Requests that a guard takes in: which of them are being read, and the most at a time."""

    def __init__(self) -> None:
        self.answered: list[str] = []
        self.most = 0
        self._reading: set[str] = set()
        self._guard = Guard(self._answer, max_body=10 * LARGE)

    async def _answer(self, scope: Any, _: Any, send: Any) -> None:
        self.answered.append(scope["path"])
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def ask(
        self, name: str, *, parts: int = 5, announced: bool = True, held: asyncio.Event | None = None
    ) -> None:
        """One request, of parts of half a large body; with `held`, the last part comes when that is set."""
        sent = 0

        async def receive() -> dict[str, Any]:
            nonlocal sent
            self._reading.add(name)
            self.most = max(self.most, len(self._reading))
            await asyncio.sleep(0)
            sent += 1
            if sent == parts:
                if held is not None:
                    await held.wait()
                self._reading.discard(name)
            return _part(b"x" * (LARGE // 2), more=sent < parts)

        async def send(_: Any) -> None:
            pass

        headers = [(b"content-type", b"application/json")]
        if announced:
            headers.append((b"content-length", str(parts * LARGE // 2).encode()))
        await self._guard({"type": "http", "method": "POST", "path": name, "headers": headers}, receive, send)


def test_large_bodies_are_taken_in_a_few_at_a_time() -> None:
    async def many() -> _Bodies:
        bodies = _Bodies()
        await asyncio.gather(*(bodies.ask(f"/{number}") for number in range(9)))
        return bodies

    bodies = asyncio.run(many())
    assert len(bodies.answered) == 9
    assert bodies.most == AT_A_TIME


def test_small_bodies_wait_for_no_turn() -> None:
    async def beside() -> _Bodies:
        bodies, held = _Bodies(), asyncio.Event()
        large = [asyncio.create_task(bodies.ask(f"/{number}", held=held)) for number in range(AT_A_TIME + 1)]
        await asyncio.sleep(0.01)
        await bodies.ask("/small", parts=1)
        assert bodies.answered == ["/small"]
        held.set()
        await asyncio.gather(*large)
        return bodies

    assert len(asyncio.run(beside()).answered) == AT_A_TIME + 2


@pytest.mark.parametrize("announced", [True, False])
def test_who_sends_slowly_keeps_nobody_waiting_for_long(announced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PATIENCE_S", 0.02)

    async def behind() -> None:
        those, held = _Bodies(), asyncio.Event()
        slow = [
            asyncio.create_task(those.ask(f"/slow {number}", announced=announced, held=held))
            for number in range(AT_A_TIME)
        ]
        await asyncio.sleep(0.01)
        await asyncio.wait_for(those.ask("/next", announced=announced), 10)
        assert those.answered == ["/next"]
        held.set()
        await asyncio.gather(*slow)
        await asyncio.wait_for(asyncio.gather(*(those.ask(f"/{number}") for number in range(5))), 10)
        assert len(those.answered) == AT_A_TIME + 6

    asyncio.run(behind())


def test_a_turn_ends_with_a_client_that_leaves_or_sends_too_much() -> None:
    async def leave(those: _Bodies) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        headers = [(b"content-length", str(LARGE).encode())]
        await those._guard({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive, send)

    async def all_of_them() -> None:
        those = _Bodies()
        for _ in range(AT_A_TIME + 1):
            await asyncio.wait_for(leave(those), 10)
            await asyncio.wait_for(those.ask("/", parts=30, announced=False), 10)  # it is told that it is too large
        assert those.answered == []
        await asyncio.wait_for(those.ask("/"), 10)
        assert those.answered == ["/"]

    asyncio.run(all_of_them())
