"""Hostile bodies of every format and route, against a server process: a 4xx each, while `/livez` responds within a second."""

from __future__ import annotations

import gzip
import http.client
import json
import random
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from serving.forecasting import ndjson
from serving.formats import arrow
from tests.serving.formats.test_formats import to_arrow_stream
from tests.serving.routes.test_hostile_requests import HOSTILE_BODIES
from tests.system.hostile.target import GOOD_BODY, JSON_HEADERS, SERIES, Target

pytestmark = pytest.mark.integration

NDJSON_HEADERS = {"content-type": ndjson.MEDIA_TYPE}
ARROW_HEADERS = {"content-type": arrow.MEDIA_TYPE}
ROUTES = ("/v1/forecast", "/v1/backtest", "/v1/explain", "/v1/scenarios", "/v1/actuals", "/invocations")
_ITEM_COUNT = 1_000_000


def fill(template: str, item: str, count: int = _ITEM_COUNT) -> bytes:
    """Returns a body in which `@` is replaced by a list of items."""
    return template.replace("@", f"[{','.join([item] * count)}]").encode()


def with_series(**fields: Any) -> str:
    return json.dumps({"series": [{**SERIES, **fields}], "horizon": 1}).replace('"@"', "@")


def compress_zeros(size: int) -> bytes:
    compressor = zlib.compressobj(9, wbits=31)
    return b"".join(compressor.compress(bytes(1 << 20)) for _ in range(size >> 20)) + compressor.flush()


LARGE_BODIES: dict[str, Callable[[], bytes]] = {
    "a million empty series": lambda: fill('{"horizon":1,"series":@}', "{}"),
    "a thousand empty series": lambda: fill('{"horizon":1,"series":@}', "{}", 1000),
    "a million series that are null": lambda: fill('{"horizon":1,"series":@}', "null", _ITEM_COUNT * 3 // 4),
    "a million levels": lambda: fill(f'{{"series":[{json.dumps(SERIES)}],"horizon":1,"levels":@}}', "2"),
    "half a million texts in y": lambda: fill(with_series(y="@"), '"a"', 500_000),
    "a million lists in y": lambda: fill(with_series(y="@"), "[]"),
    "half a million timestamps": lambda: fill(with_series(ds="@").replace('"start"', '"x"'), '"a"', 500_000),
    "half a million texts in a covariate": lambda: fill(with_series(covariates={"a": "@"}), '"a"', 500_000),
    "a million values in a channel": lambda: fill(with_series(channels={"a": "@"}), "{}"),
    "a hundred thousand covariates": lambda: (
        with_series(covariates="@").replace("@", json.dumps({str(name): [] for name in range(200_000)})).encode()
    ),
    "a hundred thousand unknown fields": lambda: json.dumps({str(name): 0 for name in range(200_000)}).encode(),
    "a million scenarios": lambda: fill(f'{{"series":{json.dumps(SERIES)},"horizon":1,"scenarios":@}}', "{}"),
    "a million rows of a table": lambda: fill('{"dataframe_split":{"columns":["y"],"data":@}}', "[]"),
    "a million records": lambda: fill('{"dataframe_records":@}', "{}"),
    "a number of four million digits": lambda: with_series(y="@").replace("@", f"[{'1' * 4_000_000}]").encode(),
    "a million open brackets": lambda: b"[" * 4_000_000,
    "four million blanks": lambda: b" " * 4_000_000,
    "a text of escapes": lambda: (with_series(id="@").replace("@", '"' + "\\u0041" * 650_000 + '"')).encode(),
}


def post_all(target: Target, requests: list[tuple[str, bytes, dict[str, str]]]) -> dict[str, int]:
    """Sends requests one after the other on connections that are kept; returns every status that is no 4xx."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
    unexpected = {}
    for path, body, headers in requests:
        try:
            connection.request("POST", path, body=body, headers=headers)
            response = connection.getresponse()
        except (ConnectionError, http.client.BadStatusLine):  # the server closed it after a 413
            connection.close()
            connection.request("POST", path, body=body, headers=headers)
            response = connection.getresponse()
        content = response.read()
        if not 400 <= response.status < 500:
            unexpected[f"{path} {headers} {body[:60]!r} {content[:80]!r}"] = response.status
    connection.close()
    return unexpected


def test_every_hostile_body_gets_a_4xx(target: Target) -> None:
    # Some bodies exceed limits of that test; they are within those of a server, and are forecast.
    within_limits = {
        "horizon 501",
        "too many series",
        "too large a body",
        "y too long",
        "a covariate too long",
        "too many values",
    }
    within_limits |= {name for name in HOSTILE_BODIES if name.startswith("too large a response")}
    bodies = [
        content if isinstance(content, bytes) else content.encode()
        for name, (content, _) in HOSTILE_BODIES.items()
        if name not in within_limits
    ]
    with target.watched():
        assert post_all(target, [("/v1/forecast", body, JSON_HEADERS) for body in bodies]) == {}


@pytest.mark.nightly
@pytest.mark.parametrize("path", ROUTES[1:])
def test_every_route_rejects_every_hostile_body(target: Target, path: str) -> None:
    bodies = [content if isinstance(content, bytes) else content.encode() for content, _ in HOSTILE_BODIES.values()]
    with target.watched():
        unexpected = post_all(target, [(path, body, JSON_HEADERS) for body in bodies])
    assert {status for status in unexpected.values() if status >= 500} == set()


@pytest.mark.parametrize(
    "name", ["a million empty series", "half a million texts in y", "a hundred thousand unknown fields"]
)
def test_a_large_hostile_body_blocks_nobody(target: Target, name: str) -> None:
    body = LARGE_BODIES[name]()
    with target.watched():
        assert post_all(target, [("/v1/forecast", body, JSON_HEADERS)]) == {}


@pytest.mark.nightly
@pytest.mark.parametrize("name", LARGE_BODIES)
def test_a_large_hostile_body_blocks_nobody_on_any_route(target: Target, name: str) -> None:
    body = LARGE_BODIES[name]()
    assert len(body) < 4.9e6
    with target.watched():
        assert post_all(target, [(path, body, JSON_HEADERS) for path in ROUTES]) == {}


def mutate(body: bytes, seed: int) -> bytes:
    """Returns a body with some bytes replaced, removed or repeated."""
    choices, content = random.Random(seed), bytearray(body)
    for _ in range(choices.randint(1, 8)):
        position = choices.randrange(len(content))
        kind = choices.randrange(3)
        if kind == 0:
            content[position] = choices.randrange(256)
        elif kind == 1:
            del content[position : position + choices.randint(1, 40)]
        else:
            content[position:position] = content[position : position + choices.randint(1, 40)]
        content = content or bytearray(b"{")
    return bytes(content)


def make_arrow_body(starts: pa.Array) -> bytes:
    count = len(starts)
    table = pa.table(
        {
            "id": [str(number) for number in range(count)],
            "start": starts,
            "freq": ["h"] * count,
            "y": pa.array([SERIES["y"]] * count, pa.list_(pa.float64())),
        }
    )
    return to_arrow_stream(table.replace_schema_metadata({"forecast": json.dumps({"horizon": 1})}))


def test_no_damaged_body_of_any_format_is_a_5xx(target: Target) -> None:
    lines = json.dumps({"horizon": 1}).encode() + b"\n" + json.dumps(SERIES).encode()
    formats = [
        (GOOD_BODY, JSON_HEADERS),
        (lines, NDJSON_HEADERS),
        (make_arrow_body(pa.array(["2026-01-01"])), ARROW_HEADERS),
    ]
    formats += [(gzip.compress(body), {**headers, "content-encoding": "gzip"}) for body, headers in formats]
    requests = [("/v1/forecast", mutate(body, seed), headers) for seed in range(40) for body, headers in formats]
    with target.watched():
        unexpected = post_all(target, requests)
    assert set(unexpected.values()) <= {200}, "a change may leave a body valid"


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_arrow_timestamps_out_of_range_are_no_5xx(target: Target, unit: str) -> None:
    extremes = [2**63 - 1, -(2**63), 0, 2**62, -(2**62), 10**15, -(10**15), 253_402_300_800]
    bodies = [
        make_arrow_body(pa.array(extremes, pa.int64()).cast(pa.timestamp(unit, tz=zone))) for zone in (None, "UTC")
    ]
    with target.watched():
        unexpected = post_all(target, [("/v1/forecast", body, ARROW_HEADERS) for body in bodies])
    assert set(unexpected.values()) <= {200}


@pytest.mark.parametrize(
    ("make_body", "headers"),
    [
        (lambda: b"{}\n" * 5_000_000, NDJSON_HEADERS),
        (lambda: b'{"horizon":1}\n' + b"[" * 15_000_000, NDJSON_HEADERS),
        (lambda: b'{"horizon":1}\n' + b"{}\n" * 90_000, NDJSON_HEADERS),
        (lambda: b"\n" * 15_000_000, NDJSON_HEADERS),
        (lambda: b"\xff" * 15_000_000, ARROW_HEADERS),
    ],
    ids=["objects", "brackets", "empty series", "blank lines", "no Arrow"],
)
@pytest.mark.nightly
def test_a_large_hostile_stream_blocks_nobody(
    target: Target, make_body: Callable[[], bytes], headers: dict[str, str]
) -> None:
    body = make_body()
    with target.watched():
        unexpected = post_all(target, [("/v1/forecast", body, headers)])
    assert set(unexpected.values()) <= {200}, "lines of a stream are rejected one by one"


@pytest.mark.parametrize(
    ("make_body", "encoding"),
    [
        (lambda: compress_zeros(300 << 20), "gzip"),
        (lambda: gzip.compress(b"") * 200_000, "gzip"),
        (lambda: gzip.compress(b" ") * 190_000, "gzip"),
        (lambda: gzip.compress(GOOD_BODY)[:-9], "gzip"),
        (lambda: bytes(pa.compress(bytes(300 << 20), codec="zstd", asbytes=True)), "zstd"),
        (lambda: b"\x28\xb5\x2f\xfd" * 1_000_000, "zstd"),
    ],
    ids=["a bomb", "empty members", "members of one byte", "the end is missing", "a zstd bomb", "zstd frames"],
)
def test_compressed_bombs_block_nobody(target: Target, make_body: Callable[[], bytes], encoding: str) -> None:
    body = make_body()
    with target.watched():
        assert post_all(target, [("/v1/forecast", body, {**JSON_HEADERS, "content-encoding": encoding})] * 3) == {}
