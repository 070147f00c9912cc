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
from serving.errors import ApiError
from serving.forecasting import ndjson as lines
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
@pytest.mark.parametrize("kind", ["application/json", arrow.MEDIA_TYPE, lines.MEDIA_TYPE])
def test_a_compressed_body_is_read(compression_client: AppClient, encoding: str, kind: str) -> None:
    plain = {
        "application/json": json.dumps({"series": ROW_PAYLOADS, **FORECAST_OPTIONS}).encode(),
        arrow.MEDIA_TYPE: to_arrow_stream(to_arrow_table(ROW_PAYLOADS)),
        lines.MEDIA_TYPE: to_ndjson(FORECAST_OPTIONS, *ROW_PAYLOADS),
    }[kind]
    assert post_content(
        compression_client, compress(plain, encoding.lower()), kind, **{"content-encoding": encoding}
    ).content == (post_content(compression_client, plain, kind).content)


def compress(content: bytes, encoding: str) -> bytes:
    if encoding == "zstd":
        return bytes(pa.compress(content, codec="zstd", asbytes=True))
    return gzip.compress(content) if encoding == "gzip" else content


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_decompression_bomb_is_rejected_at_the_limit(compression_client: AppClient, encoding: str) -> None:
    if encoding == "gzip":
        squeeze = zlib.compressobj(9, wbits=31)
        bomb = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(300)) + squeeze.flush()
    else:
        bomb = compress(bytes(300 << 20), "zstd")
    assert len(bomb) < 1_000_000
    answer = post_content(compression_client, bomb, "application/json", **{"content-encoding": encoding})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert answer.json()["error"]["message"].count("decompressed") == 1
    assert compression_client.get("/livez").status_code == 200


def test_no_more_than_the_limit_is_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    real = compression._gunzip

    def counted(body: bytes) -> Any:
        nonlocal taken
        for part in real(body):
            taken += len(part)
            yield part

    monkeypatch.setattr(compression, "_gunzip", counted)
    with pytest.raises(ApiError):
        compression.decompress(gzip.compress(bytes(50 << 20)), b"gzip", max_bytes=1_000_000)
    assert taken <= 1_000_000 + (1 << 16)


DAMAGED_BODIES = {  # by name: a gzip holds the second in which it was made, and every process that collects tests makes its own
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
    with pytest.raises(ApiError) as problem:
        compression.decompress(content, b"gzip", max_bytes=10_000)
    assert problem.value.code == "malformed_encoding"


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
    answer = compression_client.post("/v1/forecast", json=request, headers={"accept-encoding": accepted})
    assert (answer.headers.get("content-encoding") == "gzip") is compressed
    assert len(answer.json()["forecasts"][0]["mean"]) == 1000
    small = compression_client.post(
        "/v1/forecast", json={**request, "horizon": 2}, headers={"accept-encoding": accepted}
    )
    assert "content-encoding" not in small.headers
