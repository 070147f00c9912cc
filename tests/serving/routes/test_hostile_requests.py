"""Whatever is sent, the answer is a fixed 4xx in the one error shape, and the next request is answered."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.asgi.middleware import Guard
from tests.serving.conftest import Client, LastValue, MakeClient, application, publish_stub, series
from tests.sweep import pairwise

JSON = {"content-type": "application/json"}
GOOD = json.dumps({"series": [series()], "horizon": 2})


def body(horizon: str = "2", **fields: str) -> str:
    """A request with raw JSON texts in place of its parts."""
    parts = {"id": '"a"', "start": '"2026-01-01"', "freq": '"h"', "y": "[1, 2, 3]", **fields}
    inside = ", ".join(f'"{name}": {text}' for name, text in parts.items())
    return f'{{"series": [{{{inside}}}], "horizon": {horizon}}}'


def asked(levels: str) -> str:
    """A request with raw JSON text as its levels."""
    return f'{body()[:-1]}, "levels": {levels}}}'


BODIES = {
    "nothing": ("", 400),
    "broken JSON": ('{"series": [', 400),
    "NaN": (body(y="[1, NaN, 3]"), 400),
    "Infinity": (body(y="[1, -Infinity, 3]"), 400),
    "1e400": (body(y="[1, 2, 1e400]"), 400),
    "10**400": (body(y=f"[1, 2, 1{'0' * 400}]"), 400),
    "a horizon of 10**400": (body(horizon=f"1{'0' * 400}"), 400),
    "a deep nest": ("[" * 5000 + "]" * 5000, 400),
    "a deep nest in y": (body(y="[" * 900 + "]" * 900), 422),
    "invalid UTF-8": (b'{"series": "\xff\xfe"}', 400),
    "UTF-16": (GOOD.encode("utf-16"), 400),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD.encode(), 400),
    "a lone surrogate": (body(id='"\\ud800"'), 400),
    "two documents": (GOOD + GOOD, 400),
    "a list": ("[]", 422),
    "null": ("null", 422),
    "a number": ("1", 422),
    "an empty object": ("{}", 422),
    "no series": ('{"series": [], "horizon": 2}', 422),
    "series as an object": ('{"series": {}, "horizon": 2}', 422),
    "series of numbers": ('{"series": [1, null, "a"], "horizon": 2}', 422),
    "horizon 0": (body(horizon="0"), 422),
    "horizon -1": (body(horizon="-1"), 422),
    "horizon 2.0": (body(horizon="2.0"), 422),
    "horizon true": (body(horizon="true"), 422),
    "horizon as text": (body(horizon='"2"'), 422),
    "horizon null": (body(horizon="null"), 422),
    "horizon 501": (body(horizon="501"), 422),
    "horizon 2**64": (body(horizon=str(2**64)), 422),
    "an unknown field": ('{"series": [], "horizon": 2, "quantiles": [0.1]}', 422),
    "an unknown field of a series": (body(weights="{}"), 422),
    "levels null": (asked("null"), 422),
    "levels as a number": (asked("0.1"), 422),
    "levels as text": (asked('["0.1"]'), 422),
    "levels as an object": (asked('{"0.1": 1}'), 422),
    "level 0": (asked("[0]"), 422),
    "level 1": (asked("[0.5, 1.0]"), 422),
    "level -0.1": (asked("[-0.1]"), 422),
    "level 90": (asked("[90]"), 422),
    "level true": (asked("[true]"), 422),
    "level null": (asked("[null]"), 422),
    "level NaN": (asked("[NaN]"), 400),
    "level 1e400": (asked("[1e400]"), 400),
    "level 1e-400, which is 0": (asked("[1e-400]"), 422),
    "a level twice": (asked("[0.1, 0.5, 0.1]"), 422),
    "a level twice, written otherwise": (asked("[0.1, 1e-1]"), 422),
    "100 levels": (asked(json.dumps([place / 101 for place in range(1, 101)])), 422),
    "too large an answer by its levels": (
        json.dumps({"series": [series()] * 50, "horizon": 20, "levels": [0.1, 0.9]}),
        422,
    ),
    "channels null": (body(channels="null"), 422),
    "channels as a list": (body(channels="[[1, 2, 3]]"), 422),
    "a channel null": (body(channels='{"a": null}'), 422),
    "a channel as text": (body(channels='{"a": "123"}'), 422),
    "a channel of lists": (body(channels='{"a": [[1], [2], [3]]}'), 422),
    "a channel of bool": (body(channels='{"a": [true, false, true]}'), 422),
    "NaN in a channel": (body(channels='{"a": [1, NaN, 3]}'), 400),
    "1e400 in a channel": (body(channels='{"a": [1, 1e400, 3]}'), 400),
    "covariates null": (body(covariates="null"), 422),
    "covariates as a list": (body(covariates="[[1, 2, 3, 4, 5]]"), 422),
    "a covariate null": (body(covariates='{"a": null}'), 422),
    "a covariate as a number": (body(covariates='{"a": 1}'), 422),
    "a covariate as text": (body(covariates='{"a": "12345"}'), 422),
    "a covariate as an object": (body(covariates='{"a": {"0": 1}}'), 422),
    "a covariate of lists": (body(covariates='{"a": [[1], [2], [3], [4], [5]]}'), 422),
    "a covariate of bool": (body(covariates='{"a": [true, false, true, true, true]}'), 422),
    "bool in a covariate": (body(covariates='{"a": [1, 2, 3, true, 5]}'), 422),
    "null in a covariate": (body(covariates='{"a": [1, null, 3, 4, 5]}'), 422),
    "null in a covariate of text": (body(covariates='{"a": ["x", null, "x", "x", "x"]}'), 422),
    "null first in a covariate": (body(covariates='{"a": [null, "x", "x", "x", "x"]}'), 422),
    "NaN in a covariate": (body(covariates='{"a": [1, NaN, 3, 4, 5]}'), 400),
    "Infinity in a covariate": (body(covariates='{"a": [1, Infinity, 3, 4, 5]}'), 400),
    "1e400 in a covariate": (body(covariates='{"a": [1, 1e400, 3, 4, 5]}'), 400),
    "1e200 in a covariate": (body(covariates='{"a": [1, 1e200, 3, 4, 5]}'), 422),
    "text after numbers in a covariate": (body(covariates='{"a": [1, 2, 3, 4, "5"]}'), 422),
    "a number after text in a covariate": (body(covariates='{"a": ["1", "2", "3", "4", 5]}'), 422),
    "an empty covariate": (body(covariates='{"a": []}'), 422),
    "a covariate shorter than y": (body(covariates='{"a": [1, 2]}'), 422),
    "covariates of different lengths": (body(covariates='{"a": [1, 2, 3, 4, 5], "b": [1, 2, 3, 4, 5, 6]}'), 422),
    "a covariate too long": (body(covariates=json.dumps({"a": [1] * 5501})), 422),
    "65 covariates": (body(covariates=json.dumps({str(name): [1] * 5 for name in range(65)})), 422),
    "a covariate without a name": (body(covariates='{"": [1, 2, 3, 4, 5]}'), 422),
    "a long text in a covariate": (body(covariates=json.dumps({"a": ["x" * 201] * 5})), 422),
    "a covariate's name of a megabyte": (body(covariates=json.dumps({"a" * 50_000: [1] * 5})), 422),
    "static null": (body(static="null"), 422),
    "static as a list": (body(static='["north"]'), 422),
    "a static value as a number": (body(static='{"a": 1}'), 422),
    "a static value null": (body(static='{"a": null}'), 422),
    "a static value as a list": (body(static='{"a": ["north"]}'), 422),
    "a static value of a megabyte": (body(static=json.dumps({"a": "x" * 50_000})), 422),
    "a static name of a megabyte": (body(static=json.dumps({"a" * 50_000: "x"})), 422),
    "65 static values": (body(static=json.dumps({str(name): "x" for name in range(65)})), 422),
    "text in y": (body(y='[1, "2", 3]'), 422),
    "bool in y": (body(y="[1, true, 3]"), 422),
    "a list in y": (body(y="[1, [2], 3]"), 422),
    "y as text": (body(y='"123"'), 422),
    "y null": (body(y="null"), 422),
    "y as an object": (body(y='{"0": 1}'), 422),
    "empty y": (body(y="[]"), 422),
    "y too long": (body(y=json.dumps([1] * 5001)), 422),
    "y of nothing known": (body(y="[null]"), 422),
    "start as a number": (body(start="0"), 422),
    "start beside ds": (body(ds='["2026-01-01"]'), 422),
    "ds null beside start": (body(ds="null"), 422),
    "start of a megabyte": (body(start=json.dumps("2" * 50_000)), 422),
    "freq of a megabyte": (body(freq=json.dumps("h" * 50_000)), 422),
    "id as a number": (body(id="1"), 422),
    "an empty id": (body(id='""'), 422),
    "an id with a line break": (body(id='"a\\nb"'), 422),
    "an id with a terminal's escape": (body(id='"\\u001b[2J"'), 422),
    "an id with a line separator": (body(id='"a\\u2028"'), 422),
    "samples beyond what is drawn": (f'{body()[:-1]}, "samples": 1001}}', 422),
    "too large an answer by its samples": (
        json.dumps({"series": [series()] * 2, "horizon": 2, "samples": 600}),
        422,
    ),
    "columns of different lengths": (
        json.dumps({"columns": {"id": ["a"], "start": ["2026-01-01"] * 2, "freq": "h", "y": [[1]]}, "horizon": 2}),
        422,
    ),
    "columns and series": (json.dumps({"columns": {}, "series": [series()], "horizon": 2}), 422),
    "columns as a list": (json.dumps({"columns": [], "horizon": 2}), 422),
    "no columns": (json.dumps({"columns": {"id": [], "start": [], "freq": "h", "y": []}, "horizon": 2}), 422),
    "deadline 0": (f'{body()[:-1]}, "deadline_ms": 0}}', 422),
    "deadline as text": (f'{body()[:-1]}, "deadline_ms": "10"}}', 422),
    "more values than are taken at once": (
        json.dumps({"series": [series(y=[1] * 600)] * 20, "horizon": 2}),
        422,
    ),
    "an id of a megabyte": (body(id=json.dumps("a" * 50_000)), 422),
    "a field name of a megabyte": (body(**{"a" * 50_000: "1"}), 422),
    "more stamps than values": ('{"series": [{"id": "a", "ds": ["2026-01-01"], "y": [1, 2]}], "horizon": 2}', 422),
    "a start of 2**64": (body(start=str(2**64)), 422),
    "a start of 10**400": (body(start=f"1{'0' * 400}"), 400),
    "a start as an object": (body(start="{}"), 422),
    "a frequency of 2**64": (body(start="1", freq=str(2**64)), 422),
    "a frequency as a list": (body(freq="[1]"), 422),
    "nested stamps": ('{"series": [{"id": "a", "ds": [[1], [2]], "y": [1, 2]}], "horizon": 2}', 422),
    "stamps of 2**63": (
        f'{{"series": [{{"id": "a", "ds": [{2**63}, {2**63 + 1}], "y": [1, 2]}}], "horizon": 2}}',
        422,
    ),
    "stamps as numbers": ('{"series": [{"id": "a", "ds": [1, 2], "y": [1, 2]}], "horizon": 2}', 422),
    "too many series": (json.dumps({"series": [series()] * 51, "horizon": 2}), 422),
    "too large an answer": (json.dumps({"series": [series()] * 50, "horizon": 41}), 422),
    "too large a body": (" " * 100_001, 413),
}


def check_shape(answer: Any) -> None:
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "where"}
    assert isinstance(error["code"], str)
    assert isinstance(error["message"], str)
    assert len(error["message"]) < 2000
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused_and_the_next_is_answered(client: Client, name: str) -> None:
    content, status = BODIES[name]
    answer = client.post("/v1/forecast", content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    check_shape(answer)
    assert client.post("/v1/forecast", content=GOOD, headers=JSON).status_code == 200


@pytest.mark.parametrize(("name", "path"), pairwise(BODIES, ["/v1/explain", "/v1/backtest"]))
def test_no_hostile_body_is_answered_by_the_other_routes(client: Client, name: str, path: str) -> None:
    content, status = BODIES[name]
    answer = client.post(path, content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    check_shape(answer)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/forecast", {"content-type": "text/plain"}, 415),
        ("POST", "/v1/forecast", {"content-type": "application/x-www-form-urlencoded"}, 415),
        ("POST", "/v1/forecast", {"content-type": "application/json; charset=latin-1"}, 415),
        ("POST", "/v1/forecast", {"content-type": "application/jsonp"}, 415),
        ("POST", "/v1/forecast", {}, 415),
        ("POST", "/v1/forecast", {**JSON, "content-encoding": "gzip"}, 400),
        ("POST", "/v1/forecast", {**JSON, "content-encoding": "br"}, 415),
        ("POST", "/v1/forecast", {**JSON, "content-encoding": "gzip, gzip"}, 415),
        ("POST", "/v1/forecast", {"content-type": "application/vnd.apache.arrow.stream"}, 400),
        ("POST", "/v1/forecast", {"content-type": "application/x-ndjson"}, 422),
        ("POST", "/v1/forecast", {**JSON, "content-length": "9" * 30}, 413),
        ("POST", "/v1/forecast", {**JSON, "content-length": "-1"}, 400),
        ("POST", "/invocations", {"content-type": "application/vnd.apache.arrow.stream"}, 415),
        ("POST", "/invocations", {"content-type": "text/csv"}, 415),
        ("GET", "/invocations", {}, 405),
        ("GET", "/v1/forecast", {}, 405),
        ("DELETE", "/v1/forecast", {}, 405),
        ("POST", "/livez", JSON, 405),
        ("BREW", "/livez", {}, 405),
        ("POST", "/", JSON, 405),
        ("GET", "/livez/", {}, 404),
        ("GET", "/%2e%2e/livez", {}, 404),
        ("POST", "/nowhere", JSON, 404),
        ("GET", "/livez%0A", {}, 400),
        ("GET", "/%00", {}, 400),
        ("GET", "/a%0Db", {}, 400),
        ("GET", "/%E2%80%A8", {}, 400),
        ("GET", "/%C2%85", {}, 400),
    ],
)
def test_a_hostile_request_is_refused(
    client: Client, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    content = GOOD.encode() if method == "POST" else None
    answer = client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    check_shape(answer)
    assert client.post("/v1/forecast", content=GOOD, headers=JSON).status_code == 200


def test_the_method_that_a_path_takes_is_told(client: Client) -> None:
    assert client.get("/v1/forecast").headers["allow"] == "POST"


def test_a_chunked_body_is_counted_too(client: Client) -> None:
    async def chunks() -> Any:
        for _ in range(200):
            yield b" " * 1000

    answer = client.post("/v1/forecast", content=chunks(), headers=JSON)
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    check_shape(answer)


def test_charset_utf8_and_a_request_id_are_accepted(client: Client) -> None:
    headers = {"content-type": 'Application/JSON; charset="UTF-8"', "x-request-id": "abc-1.2_3"}
    answer = client.post("/v1/forecast", content=GOOD, headers=headers)
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "abc-1.2_3")
    assert client.get("/livez", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_the_access_log_cannot_be_forged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="serving.access"):
        client.get('/a%0A{"path": "/forged", "status": 200}%E2%80%A8é')
    (line,) = [record.getMessage() for record in caplog.records if record.name == "serving.access"]
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["status"] == 400
    assert json.loads(line)["path"].startswith("/a\n")


def test_an_unexpected_failure_is_a_500_that_tells_nothing_and_is_logged(
    slot_folder: Any, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaking(LastValue):
        def _one(self, one: Any, horizon: int) -> Any:
            if one.id != "warm-up":
                raise RuntimeError("secret internals")
            return super()._one(one, horizon)

    publish_stub(slot_folder)
    client = make_client(load=lambda folder: Breaking())
    answer = client.post("/v1/forecast", content=GOOD, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "secret internals" in caplog.text
    assert client.get("/livez").status_code == 200


def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def never(*_: Any) -> Any:
        raise AssertionError("nobody calls the application")

    anyio.run(Guard(never, max_body=1), {"type": "websocket"}, never, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


KEYS = st.sampled_from(
    ["series", "horizon", "id", "start", "freq", "y", "ds", "levels", "covariates", "static", "other"]
)
TEXTS = st.sampled_from(["a", "h", "D", "MS", "2026-01-01", "2026-01-01T00:00:00Z", "9999-12-31"]) | st.text(
    max_size=12
)
NUMBERS = st.integers(-3, 12) | st.sampled_from([10**15, 2**62 - 1, 2**62, 2**63 - 1, -(2**62), -(2**63)])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
ITEMS = st.fixed_dictionaries(
    {"id": TEXTS, "y": st.lists(st.none() | st.floats(width=64, allow_nan=False, allow_infinity=False), max_size=8)},
    optional={
        "start": TEXTS | NUMBERS,
        "freq": TEXTS | NUMBERS,
        "ds": st.lists(TEXTS, max_size=8) | st.lists(NUMBERS, max_size=8).map(sorted),
        "covariates": st.dictionaries(KEYS, st.lists(VALUES, max_size=12), max_size=3),
        "static": st.dictionaries(KEYS, VALUES, max_size=3),
    },
)
REQUESTS = VALUES | st.fixed_dictionaries(
    {"series": st.lists(ITEMS, max_size=4), "horizon": st.integers(-1, 600)},
    optional={"levels": st.lists(st.floats(0, 1) | VALUES, max_size=4)},
)


@pytest.fixture(scope="module", params=["h", "1"])
def lasting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """An application for many examples."""
    folder = tmp_path_factory.mktemp("slot")
    publish_stub(folder, freq=request.param)
    with application(folder) as make:
        yield make()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(REQUESTS)
def test_no_json_whatever_is_a_5xx(lasting: Client, fields: Any) -> None:
    content = json.dumps(fields, ensure_ascii=True)
    answer = lasting.post("/v1/forecast", content=content, headers=JSON)
    assert answer.status_code in (200, 400, 413, 422), answer.text
    if answer.status_code != 200:
        check_shape(answer)
