"""Bodies that come in many parts, and answers that leave in slices."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from serving import bodies
from serving.bodies import InParts, Sliced, gather


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
