"""Decompression of request bodies and compression of responses."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from serving.asgi import compression
from serving.errors import ApiError
from serving.forecasting import ndjson
from serving.formats import arrow
from tests.serving.conftest import AppClient, MakeClient, publish_stub, series_payload
from tests.serving.formats.test_formats import (
    FORECAST_OPTIONS,
    ROW_PAYLOADS,
    post_content,
    to_arrow_stream,
    to_arrow_table,
    to_ndjson,
)


@pytest.fixture
def compression_client(slot_folder: Path, make_client: MakeClient) -> AppClient:
    publish_stub(slot_folder)
    return make_client(max_body=1_000_000, max_lines=1000)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "zstd", "identity"])
@pytest.mark.parametrize("media_type", ["application/json", arrow.MEDIA_TYPE, ndjson.MEDIA_TYPE])
def test_a_compressed_body_is_read(compression_client: AppClient, encoding: str, media_type: str) -> None:
    body = {
        "application/json": json.dumps({"series": ROW_PAYLOADS, **FORECAST_OPTIONS}).encode(),
        arrow.MEDIA_TYPE: to_arrow_stream(to_arrow_table(ROW_PAYLOADS)),
        ndjson.MEDIA_TYPE: to_ndjson(FORECAST_OPTIONS, *ROW_PAYLOADS),
    }[media_type]
    assert post_content(
        compression_client, compress(body, encoding.lower()), media_type, **{"content-encoding": encoding}
    ).content == (post_content(compression_client, body, media_type).content)


def compress(content: bytes, encoding: str) -> bytes:
    if encoding == "zstd":
        return bytes(pa.compress(content, codec="zstd", asbytes=True))
    return gzip.compress(content) if encoding == "gzip" else content


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_decompression_bomb_is_rejected_at_the_limit(compression_client: AppClient, encoding: str) -> None:
    if encoding == "gzip":
        compressor = zlib.compressobj(9, wbits=31)
        bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(300)) + compressor.flush()
    else:
        bomb = compress(bytes(300 << 20), "zstd")
    assert len(bomb) < 1_000_000
    response = post_content(compression_client, bomb, "application/json", **{"content-encoding": encoding})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert response.json()["error"]["message"].count("decompressed") == 1
    assert compression_client.get("/livez").status_code == 200


def test_a_body_of_many_members_is_rejected(compression_client: AppClient) -> None:
    """Each member costs as much as a chunk, even an empty one: 4 MB of them would take 100 s."""
    body = json.dumps({"series": ROW_PAYLOADS, **FORECAST_OPTIONS}).encode()
    pieces = [body[first : first + 10] for first in range(0, len(body), 10)]
    headers = {"content-encoding": "gzip"}
    members = b"".join(gzip.compress(piece) for piece in [b"".join(pieces[:-50]), *pieces[-50:]])
    assert post_content(compression_client, members, "application/json", **headers).status_code == 200
    response = post_content(compression_client, gzip.compress(b"") * 40_000, "application/json", **headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "malformed_encoding")
    assert "at most 100 members" in response.text


def test_no_more_than_the_limit_is_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    decompressed_bytes = 0
    gunzip = compression._gunzip

    def count_chunks(body: bytes) -> Any:
        nonlocal decompressed_bytes
        for chunk in gunzip(body):
            decompressed_bytes += len(chunk)
            yield chunk

    monkeypatch.setattr(compression, "_gunzip", count_chunks)
    with pytest.raises(ApiError):
        compression.decompress(gzip.compress(bytes(50 << 20)), b"gzip", max_bytes=1_000_000)
    assert decompressed_bytes <= 1_000_000 + (1 << 16)


DAMAGED_BODIES = {  # named, because gzip stores its creation time, so each process that collects tests has other bytes
    "nothing": b"",
    "two bytes": b"\x1f\x8b",
    "cut short": gzip.compress(b"{}" * 500)[:-9],
    "followed by more": gzip.compress(b"{}") + b"more",
}


@pytest.mark.parametrize("content", DAMAGED_BODIES.values(), ids=DAMAGED_BODIES)
def test_a_damaged_gzip_is_a_400(content: bytes) -> None:
    if not content:
        assert compression.decompress(content, b"gzip", max_bytes=10) == b""
        return
    with pytest.raises(ApiError) as error:
        compression.decompress(content, b"gzip", max_bytes=10_000)
    assert error.value.code == "malformed_encoding"


def test_a_gzip_with_two_members_is_decompressed(compression_client: AppClient) -> None:
    assert compression.decompress(gzip.compress(b"one ") + gzip.compress(b"two"), b"gzip", max_bytes=100) == b"one two"


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [("gzip", True), ("br, GZIP;q=0.5", True), ("*", True), ("gzip;q=0", False), ("br", False), ("", False)],
)
def test_a_large_response_is_compressed_if_accepted(
    compression_client: AppClient, accepted: str, compressed: bool
) -> None:
    request = {"series": [series_payload()], "horizon": 1000}
    response = compression_client.post("/v1/forecast", json=request, headers={"accept-encoding": accepted})
    assert (response.headers.get("content-encoding") == "gzip") is compressed
    assert len(response.json()["forecasts"][0]["mean"]) == 1000
    small = compression_client.post(
        "/v1/forecast", json={**request, "horizon": 2}, headers={"accept-encoding": accepted}
    )
    assert "content-encoding" not in small.headers
