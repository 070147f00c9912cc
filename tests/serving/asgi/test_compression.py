"""Bodies and answers that are compressed."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from serving.asgi import compression
from serving.errors import Problem
from serving.forecasting import ndjson as lines
from serving.formats import arrow
from tests.serving.conftest import Client, MakeClient, publish_stub, series
from tests.serving.formats.test_formats import ASK, ROWS, ndjson, post, stream, table


@pytest.fixture
def client(slot_folder: Path, make_client: MakeClient) -> Client:
    publish_stub(slot_folder)
    return make_client(max_body=1_000_000, max_lines=1000)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "zstd", "identity"])
@pytest.mark.parametrize("kind", ["application/json", arrow.MEDIA_TYPE, lines.MEDIA_TYPE])
def test_a_compressed_body_is_read(client: Client, encoding: str, kind: str) -> None:
    plain = {
        "application/json": json.dumps({"series": ROWS, **ASK}).encode(),
        arrow.MEDIA_TYPE: stream(table(ROWS)),
        lines.MEDIA_TYPE: ndjson(ASK, *ROWS),
    }[kind]
    assert post(client, packed(plain, encoding.lower()), kind, **{"content-encoding": encoding}).content == (
        post(client, plain, kind).content
    )


def packed(plain: bytes, encoding: str) -> bytes:
    if encoding == "zstd":
        return bytes(pa.compress(plain, codec="zstd", asbytes=True))
    return gzip.compress(plain) if encoding == "gzip" else plain


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_refused_as_soon_as_it_is_too_large(client: Client, encoding: str) -> None:
    if encoding == "gzip":
        squeeze = zlib.compressobj(9, wbits=31)
        bomb = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(300)) + squeeze.flush()
    else:
        bomb = packed(bytes(300 << 20), "zstd")
    assert len(bomb) < 1_000_000
    answer = post(client, bomb, "application/json", **{"content-encoding": encoding})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert answer.json()["error"]["message"].count("unpacked") == 1
    assert client.get("/livez").status_code == 200


def test_no_more_is_unpacked_than_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    real = compression._gunzip

    def counted(body: bytes) -> Any:
        nonlocal taken
        for part in real(body):
            taken += len(part)
            yield part

    monkeypatch.setattr(compression, "_gunzip", counted)
    with pytest.raises(Problem):
        compression.unpack(gzip.compress(bytes(50 << 20)), b"gzip", most=1_000_000)
    assert taken <= 1_000_000 + (1 << 16)


DAMAGED = {  # by name: a gzip holds the second in which it was made, and every process that collects tests makes its own
    "nothing": b"",
    "two bytes": b"\x1f\x8b",
    "cut short": gzip.compress(b"{}" * 500)[:-9],
    "followed by more": gzip.compress(b"{}") + b"more",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_gzip_is_a_400(content: bytes) -> None:
    if not content:
        assert compression.unpack(content, b"gzip", most=10) == b""
        return
    with pytest.raises(Problem) as problem:
        compression.unpack(content, b"gzip", most=10_000)
    assert problem.value.code == "malformed_encoding"


def test_a_gzip_of_two_members_is_both(client: Client) -> None:
    assert compression.unpack(gzip.compress(b"one ") + gzip.compress(b"two"), b"gzip", most=100) == b"one two"


@pytest.mark.parametrize(
    ("accepted", "packs"),
    [("gzip", True), ("br, GZIP;q=0.5", True), ("*", True), ("gzip;q=0", False), ("br", False), ("", False)],
)
def test_a_large_answer_is_packed_for_who_takes_it(client: Client, accepted: str, packs: bool) -> None:
    request = {"series": [series()], "horizon": 1000}
    answer = client.post("/v1/forecast", json=request, headers={"accept-encoding": accepted})
    assert (answer.headers.get("content-encoding") == "gzip") is packs
    assert len(answer.json()["forecasts"][0]["mean"]) == 1000
    small = client.post("/v1/forecast", json={**request, "horizon": 2}, headers={"accept-encoding": accepted})
    assert "content-encoding" not in small.headers
