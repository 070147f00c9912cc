"""Hostile requests get a documented 4xx with the standard error body, and the next request succeeds."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.asgi.middleware import RequestMiddleware
from tests.case_selection import checkerboard_product
from tests.serving.conftest import (
    AppClient,
    LastValuePredictor,
    MakeClient,
    application_clients,
    publish_stub,
    series_payload,
)

pytestmark = pytest.mark.integration

JSON_HEADERS = {"content-type": "application/json"}
GOOD_BODY = json.dumps({"series": [series_payload()], "horizon": 2})


def raw_request(horizon: str = "2", **fields: str) -> str:
    """Returns a request whose fields are raw JSON texts."""
    fields_with_defaults = {"id": '"a"', "start": '"2026-01-01"', "freq": '"h"', "y": "[1, 2, 3]", **fields}
    members = ", ".join(f'"{name}": {text}' for name, text in fields_with_defaults.items())
    return f'{{"series": [{{{members}}}], "horizon": {horizon}}}'


def raw_request_with_levels(levels: str) -> str:
    """Returns a request with a raw JSON text as its levels."""
    return f'{raw_request()[:-1]}, "levels": {levels}}}'


HOSTILE_BODIES = {
    "nothing": ("", 400),
    "broken JSON": ('{"series": [', 400),
    "NaN": (raw_request(y="[1, NaN, 3]"), 400),
    "Infinity": (raw_request(y="[1, -Infinity, 3]"), 400),
    "1e400": (raw_request(y="[1, 2, 1e400]"), 400),
    "10**400": (raw_request(y=f"[1, 2, 1{'0' * 400}]"), 400),
    "a horizon of 10**400": (raw_request(horizon=f"1{'0' * 400}"), 400),
    "a deep nest": ("[" * 5000 + "]" * 5000, 400),
    "a deep nest in y": (raw_request(y="[" * 900 + "]" * 900), 422),
    "invalid UTF-8": (b'{"series": "\xff\xfe"}', 400),
    "UTF-16": (GOOD_BODY.encode("utf-16"), 400),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD_BODY.encode(), 400),
    "a lone surrogate": (raw_request(id='"\\ud800"'), 400),
    "two documents": (GOOD_BODY + GOOD_BODY, 400),
    "a list": ("[]", 422),
    "null": ("null", 422),
    "a number": ("1", 422),
    "an empty object": ("{}", 422),
    "no series": ('{"series": [], "horizon": 2}', 422),
    "series as an object": ('{"series": {}, "horizon": 2}', 422),
    "series of numbers": ('{"series": [1, null, "a"], "horizon": 2}', 422),
    "horizon 0": (raw_request(horizon="0"), 422),
    "horizon -1": (raw_request(horizon="-1"), 422),
    "horizon 2.0": (raw_request(horizon="2.0"), 422),
    "horizon true": (raw_request(horizon="true"), 422),
    "horizon as text": (raw_request(horizon='"2"'), 422),
    "horizon null": (raw_request(horizon="null"), 422),
    "horizon 501": (raw_request(horizon="501"), 422),
    "horizon 2**64": (raw_request(horizon=str(2**64)), 422),
    "an unknown field": ('{"series": [], "horizon": 2, "quantiles": [0.1]}', 422),
    "an unknown field of a series": (raw_request(weights="{}"), 422),
    "levels null": (raw_request_with_levels("null"), 422),
    "levels as a number": (raw_request_with_levels("0.1"), 422),
    "levels as text": (raw_request_with_levels('["0.1"]'), 422),
    "levels as an object": (raw_request_with_levels('{"0.1": 1}'), 422),
    "level 0": (raw_request_with_levels("[0]"), 422),
    "level 1": (raw_request_with_levels("[0.5, 1.0]"), 422),
    "level -0.1": (raw_request_with_levels("[-0.1]"), 422),
    "level 90": (raw_request_with_levels("[90]"), 422),
    "level true": (raw_request_with_levels("[true]"), 422),
    "level null": (raw_request_with_levels("[null]"), 422),
    "level NaN": (raw_request_with_levels("[NaN]"), 400),
    "level 1e400": (raw_request_with_levels("[1e400]"), 400),
    "level 1e-400, which is 0": (raw_request_with_levels("[1e-400]"), 422),
    "a level twice": (raw_request_with_levels("[0.1, 0.5, 0.1]"), 422),
    "a level twice, in another notation": (raw_request_with_levels("[0.1, 1e-1]"), 422),
    "100 levels": (raw_request_with_levels(json.dumps([index / 101 for index in range(1, 101)])), 422),
    "too large a response by its levels": (
        json.dumps({"series": [series_payload()] * 50, "horizon": 20, "levels": [0.1, 0.9]}),
        422,
    ),
    "channels null": (raw_request(channels="null"), 422),
    "channels as a list": (raw_request(channels="[[1, 2, 3]]"), 422),
    "a channel null": (raw_request(channels='{"a": null}'), 422),
    "a channel as text": (raw_request(channels='{"a": "123"}'), 422),
    "a channel of lists": (raw_request(channels='{"a": [[1], [2], [3]]}'), 422),
    "a channel of bool": (raw_request(channels='{"a": [true, false, true]}'), 422),
    "NaN in a channel": (raw_request(channels='{"a": [1, NaN, 3]}'), 400),
    "1e400 in a channel": (raw_request(channels='{"a": [1, 1e400, 3]}'), 400),
    "covariates null": (raw_request(covariates="null"), 422),
    "covariates as a list": (raw_request(covariates="[[1, 2, 3, 4, 5]]"), 422),
    "a covariate null": (raw_request(covariates='{"a": null}'), 422),
    "a covariate as a number": (raw_request(covariates='{"a": 1}'), 422),
    "a covariate as text": (raw_request(covariates='{"a": "12345"}'), 422),
    "a covariate as an object": (raw_request(covariates='{"a": {"0": 1}}'), 422),
    "a covariate of lists": (raw_request(covariates='{"a": [[1], [2], [3], [4], [5]]}'), 422),
    "a covariate of bool": (raw_request(covariates='{"a": [true, false, true, true, true]}'), 422),
    "bool in a covariate": (raw_request(covariates='{"a": [1, 2, 3, true, 5]}'), 422),
    "null in a covariate": (raw_request(covariates='{"a": [1, null, 3, 4, 5]}'), 422),
    "null in a covariate of text": (raw_request(covariates='{"a": ["x", null, "x", "x", "x"]}'), 422),
    "null first in a covariate": (raw_request(covariates='{"a": [null, "x", "x", "x", "x"]}'), 422),
    "NaN in a covariate": (raw_request(covariates='{"a": [1, NaN, 3, 4, 5]}'), 400),
    "Infinity in a covariate": (raw_request(covariates='{"a": [1, Infinity, 3, 4, 5]}'), 400),
    "1e400 in a covariate": (raw_request(covariates='{"a": [1, 1e400, 3, 4, 5]}'), 400),
    "1e200 in a covariate": (raw_request(covariates='{"a": [1, 1e200, 3, 4, 5]}'), 422),
    "text after numbers in a covariate": (raw_request(covariates='{"a": [1, 2, 3, 4, "5"]}'), 422),
    "a number after text in a covariate": (raw_request(covariates='{"a": ["1", "2", "3", "4", 5]}'), 422),
    "an empty covariate": (raw_request(covariates='{"a": []}'), 422),
    "a covariate shorter than y": (raw_request(covariates='{"a": [1, 2]}'), 422),
    "covariates of different lengths": (raw_request(covariates='{"a": [1, 2, 3, 4, 5], "b": [1, 2, 3, 4, 5, 6]}'), 422),
    "a covariate too long": (raw_request(covariates=json.dumps({"a": [1] * 5501})), 422),
    "65 covariates": (raw_request(covariates=json.dumps({str(name): [1] * 5 for name in range(65)})), 422),
    "a covariate without a name": (raw_request(covariates='{"": [1, 2, 3, 4, 5]}'), 422),
    "a long text in a covariate": (raw_request(covariates=json.dumps({"a": ["x" * 201] * 5})), 422),
    "a covariate's name of a megabyte": (raw_request(covariates=json.dumps({"a" * 50_000: [1] * 5})), 422),
    "static null": (raw_request(static="null"), 422),
    "static as a list": (raw_request(static='["north"]'), 422),
    "a static value as a number": (raw_request(static='{"a": 1}'), 422),
    "a static value null": (raw_request(static='{"a": null}'), 422),
    "a static value as a list": (raw_request(static='{"a": ["north"]}'), 422),
    "a static value of a megabyte": (raw_request(static=json.dumps({"a": "x" * 50_000})), 422),
    "a static name of a megabyte": (raw_request(static=json.dumps({"a" * 50_000: "x"})), 422),
    "65 static values": (raw_request(static=json.dumps({str(name): "x" for name in range(65)})), 422),
    "text in y": (raw_request(y='[1, "2", 3]'), 422),
    "bool in y": (raw_request(y="[1, true, 3]"), 422),
    "a list in y": (raw_request(y="[1, [2], 3]"), 422),
    "y as text": (raw_request(y='"123"'), 422),
    "y null": (raw_request(y="null"), 422),
    "y as an object": (raw_request(y='{"0": 1}'), 422),
    "empty y": (raw_request(y="[]"), 422),
    "y too long": (raw_request(y=json.dumps([1] * 5001)), 422),
    "y without observed values": (raw_request(y="[null]"), 422),
    "start as a number": (raw_request(start="0"), 422),
    "start beside ds": (raw_request(ds='["2026-01-01"]'), 422),
    "ds null beside start": (raw_request(ds="null"), 422),
    "start of a megabyte": (raw_request(start=json.dumps("2" * 50_000)), 422),
    "freq of a megabyte": (raw_request(freq=json.dumps("h" * 50_000)), 422),
    "id as a number": (raw_request(id="1"), 422),
    "an empty id": (raw_request(id='""'), 422),
    "an id with a line break": (raw_request(id='"a\\nb"'), 422),
    "an id with a terminal's escape": (raw_request(id='"\\u001b[2J"'), 422),
    "an id with a line separator": (raw_request(id='"a\\u2028"'), 422),
    "too many samples": (f'{raw_request()[:-1]}, "samples": 1001}}', 422),
    "too large a response by its samples": (
        json.dumps({"series": [series_payload()] * 2, "horizon": 2, "samples": 600}),
        422,
    ),
    "columns and series": (json.dumps({"columns": {}, "series": [series_payload()], "horizon": 2}), 422),
    "columns as a list": (json.dumps({"columns": [], "horizon": 2}), 422),
    "deadline 0": (f'{raw_request()[:-1]}, "deadline_ms": 0}}', 422),
    "deadline as text": (f'{raw_request()[:-1]}, "deadline_ms": "10"}}', 422),
    "too many values": (
        json.dumps({"series": [series_payload(y=[1] * 600)] * 20, "horizon": 2}),
        422,
    ),
    "an id of a megabyte": (raw_request(id=json.dumps("a" * 50_000)), 422),
    "a field name of a megabyte": (raw_request(**{"a" * 50_000: "1"}), 422),
    "more timestamps than values": ('{"series": [{"id": "a", "ds": ["2026-01-01"], "y": [1, 2]}], "horizon": 2}', 422),
    "a start of 2**64": (raw_request(start=str(2**64)), 422),
    "a start of 10**400": (raw_request(start=f"1{'0' * 400}"), 400),
    "a start as an object": (raw_request(start="{}"), 422),
    "a frequency of 2**64": (raw_request(start="1", freq=str(2**64)), 422),
    "a frequency as a list": (raw_request(freq="[1]"), 422),
    "nested timestamps": ('{"series": [{"id": "a", "ds": [[1], [2]], "y": [1, 2]}], "horizon": 2}', 422),
    "timestamps of 2**63": (
        f'{{"series": [{{"id": "a", "ds": [{2**63}, {2**63 + 1}], "y": [1, 2]}}], "horizon": 2}}',
        422,
    ),
    "timestamps as numbers": ('{"series": [{"id": "a", "ds": [1, 2], "y": [1, 2]}], "horizon": 2}', 422),
    "too many series": (json.dumps({"series": [series_payload()] * 51, "horizon": 2}), 422),
    "too large a response": (json.dumps({"series": [series_payload()] * 50, "horizon": 41}), 422),
    "too large a body": (" " * 100_001, 413),
}


def check_error_body(response: Any) -> None:
    error = response.json()["error"]
    assert set(error) == {"code", "message", "where"}
    assert isinstance(error["code"], str)
    assert isinstance(error["message"], str)
    assert len(error["message"]) < 2000
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("name", HOSTILE_BODIES)
def test_a_hostile_body_is_rejected_and_the_next_request_is_answered(client: AppClient, name: str) -> None:
    content, status = HOSTILE_BODIES[name]
    response = client.post("/v1/forecast", content=content, headers=JSON_HEADERS)
    assert response.status_code == status, response.text
    check_error_body(response)
    assert client.post("/v1/forecast", content=GOOD_BODY, headers=JSON_HEADERS).status_code == 200


@pytest.mark.parametrize(("name", "path"), checkerboard_product(HOSTILE_BODIES, ["/v1/explain", "/v1/backtest"]))
def test_other_routes_reject_every_hostile_body(client: AppClient, name: str, path: str) -> None:
    content, status = HOSTILE_BODIES[name]
    response = client.post(path, content=content, headers=JSON_HEADERS)
    assert response.status_code == status, response.text
    check_error_body(response)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/forecast", {"content-type": "text/plain"}, 415),
        ("POST", "/v1/forecast", {"content-type": "application/x-www-form-urlencoded"}, 415),
        ("POST", "/v1/forecast", {"content-type": "application/json; charset=latin-1"}, 415),
        ("POST", "/v1/forecast", {"content-type": "application/jsonp"}, 415),
        ("POST", "/v1/forecast", {}, 415),
        ("POST", "/v1/forecast", {**JSON_HEADERS, "content-encoding": "gzip"}, 400),
        ("POST", "/v1/forecast", {**JSON_HEADERS, "content-encoding": "br"}, 415),
        ("POST", "/v1/forecast", {**JSON_HEADERS, "content-encoding": "gzip, gzip"}, 415),
        ("POST", "/v1/forecast", {"content-type": "application/vnd.apache.arrow.stream"}, 400),
        ("POST", "/v1/forecast", {"content-type": "application/x-ndjson"}, 422),
        ("POST", "/v1/forecast", {**JSON_HEADERS, "content-length": "9" * 30}, 413),
        ("POST", "/v1/forecast", {**JSON_HEADERS, "content-length": "-1"}, 400),
        ("POST", "/invocations", {"content-type": "application/vnd.apache.arrow.stream"}, 415),
        ("POST", "/invocations", {"content-type": "text/csv"}, 415),
        ("GET", "/invocations", {}, 405),
        ("GET", "/v1/forecast", {}, 405),
        ("DELETE", "/v1/forecast", {}, 405),
        ("POST", "/livez", JSON_HEADERS, 405),
        ("BREW", "/livez", {}, 405),
        ("POST", "/", JSON_HEADERS, 405),
        ("GET", "/livez/", {}, 404),
        ("GET", "/%2e%2e/livez", {}, 404),
        ("POST", "/nowhere", JSON_HEADERS, 404),
        ("GET", "/livez%0A", {}, 400),
        ("GET", "/%00", {}, 400),
        ("GET", "/a%0Db", {}, 400),
        ("GET", "/%E2%80%A8", {}, 400),
        ("GET", "/%C2%85", {}, 400),
    ],
)
def test_a_hostile_request_is_rejected(
    client: AppClient, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    content = GOOD_BODY.encode() if method == "POST" else None
    response = client.request(method, path, content=content, headers=headers)
    assert response.status_code == status, response.text
    check_error_body(response)
    assert client.post("/v1/forecast", content=GOOD_BODY, headers=JSON_HEADERS).status_code == 200


def test_the_allowed_method_is_reported(client: AppClient) -> None:
    assert client.get("/v1/forecast").headers["allow"] == "POST"


def test_a_chunked_body_is_limited_too(client: AppClient) -> None:
    async def chunks() -> Any:
        for _ in range(200):
            yield b" " * 1000

    response = client.post("/v1/forecast", content=chunks(), headers=JSON_HEADERS)
    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    check_error_body(response)


def test_charset_utf8_and_a_request_id_are_accepted(client: AppClient) -> None:
    headers = {"content-type": 'Application/JSON; charset="UTF-8"', "x-request-id": "abc-1.2_3"}
    response = client.post("/v1/forecast", content=GOOD_BODY, headers=headers)
    assert (response.status_code, response.headers["x-request-id"]) == (200, "abc-1.2_3")
    assert client.get("/livez", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_the_access_log_cannot_be_forged(client: AppClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="serving.access"):
        client.get('/a%0A{"path": "/forged", "status": 200}%E2%80%A8é')
    (line,) = [record.getMessage() for record in caplog.records if record.name == "serving.access"]
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["status"] == 400
    assert json.loads(line)["path"].startswith("/a\n")


def test_an_unexpected_failure_is_a_500_without_details_and_is_logged(
    slot_folder: Any, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    class RaisingPredictor(LastValuePredictor):
        def _forecast_series(self, series: Any, horizon: int) -> Any:
            if series.id != "warm-up":
                raise RuntimeError("secret internals")
            return super()._forecast_series(series, horizon)

    publish_stub(slot_folder)
    client = make_client(load=lambda folder: RaisingPredictor())
    response = client.post("/v1/forecast", content=GOOD_BODY, headers=JSON_HEADERS)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert "secret internals" in caplog.text
    assert client.get("/livez").status_code == 200


def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def unexpected_call(*_: Any) -> Any:
        raise AssertionError("the application is not called")

    anyio.run(RequestMiddleware(unexpected_call, max_body_bytes=1), {"type": "websocket"}, unexpected_call, send)
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
def shared_client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    """An application shared by many examples."""
    folder = tmp_path_factory.mktemp("slot")
    publish_stub(folder, freq=request.param)
    with application_clients(folder) as make:
        yield make()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(REQUESTS)
def test_no_json_causes_a_5xx(shared_client: AppClient, fields: Any) -> None:
    content = json.dumps(fields, ensure_ascii=True)
    response = shared_client.post("/v1/forecast", content=content, headers=JSON_HEADERS)
    assert response.status_code in (200, 400, 413, 422), response.text
    if response.status_code != 200:
        check_error_body(response)
