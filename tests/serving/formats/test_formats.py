"""POST /v1/forecast as NDJSON and Arrow: the same results as with JSON rows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.deadline import Deadline
from serving.errors import ApiError
from serving.forecasting import ndjson
from serving.formats import arrow
from serving.routes import endpoints
from tests.serving.conftest import (
    AppClient,
    LastValuePredictor,
    MakeClient,
    load_stub_with_columns,
    publish_stub,
    series_payload,
)
from tests.serving.routes.test_openapi import schema_violations

ROW_PAYLOADS = [
    series_payload(id="a"),
    series_payload(id="b", y=[1.0]),
    series_payload(id="c", y=[1, 2, 3, 4.5], start="2026-01-01T05:00:00Z"),
]
FORECAST_OPTIONS: dict[str, Any] = {"horizon": 3, "levels": [0.9, 0.1], "samples": 2, "seed": 5}


@pytest.fixture
def formats_client(slot_folder: Path, make_client: MakeClient) -> AppClient:
    publish_stub(slot_folder)
    return make_client(load=load_stub_with_columns, max_body=1_000_000, max_lines=1000)


def to_arrow_table(rows: list[dict[str, Any]], options: Any = FORECAST_OPTIONS) -> pa.Table:
    table = pa.table(
        {
            "id": [row["id"] for row in rows],
            "start": [row["start"] for row in rows],
            "freq": [row["freq"] for row in rows],
            "y": pa.array([row["y"] for row in rows], pa.list_(pa.float64())),
        }
    )
    return table.replace_schema_metadata({"forecast": json.dumps(options)})


def to_arrow_stream(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def to_ndjson(*values: Any) -> bytes:
    return b"\n".join(json.dumps(value).encode() for value in values)


def post_rows(client: AppClient, rows: list[dict[str, Any]] = ROW_PAYLOADS) -> Any:
    return client.post("/v1/forecast", json={"series": rows, **FORECAST_OPTIONS}).json()


def post_content(client: AppClient, content: bytes, media_type: str, **headers: str) -> Any:
    return client.post("/v1/forecast", content=content, headers={"content-type": media_type, **headers})


def test_json_columns_are_rejected_with_the_formats_that_replace_them(formats_client: AppClient) -> None:
    columns = {"id": ["a"], "start": ["2026-01-01"], "freq": "h", "y": [[1, 2, 3]]}
    response = formats_client.post("/v1/forecast", json={"columns": columns, "horizon": 2})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["where"]) == (422, "invalid_request", "columns")
    assert "NDJSON or Arrow" in error["message"]


def test_large_json_is_rejected_with_the_formats_that_are_read_in_parts(
    slot_folder: Path, make_client: MakeClient
) -> None:
    publish_stub(slot_folder)
    client = make_client(max_json=2000)
    payload = {"series": [series_payload(y=[1.0] * 1000)], "horizon": 2}
    response = client.post("/v1/forecast", json=payload)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert "NDJSON or Arrow (application/x-ndjson, application/vnd.apache.arrow.stream)" in response.text
    for path in ("/v1/backtest", "/v1/scenarios", "/v1/explain", "/invocations", "/v1/actuals"):
        response = client.post(path, json=payload)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large"), path
        assert "NDJSON" not in response.text, path
    many = [series_payload(id=str(number)) for number in range(100)]
    response = post_content(client, to_ndjson({"horizon": 2}, *many), ndjson.MEDIA_TYPE)
    assert json.loads(response.text.splitlines()[-1]) == {"forecast": 100, "refused": 0}, "each line is a text"
    response = post_content(client, to_ndjson({"horizon": 2}, series_payload(y=[1.0] * 1000)), ndjson.MEDIA_TYPE)
    assert json.loads(response.text.splitlines()[1])["error"]["code"] == "body_too_large"


def test_ndjson_equals_json_rows_and_ends_with_a_count(formats_client: AppClient) -> None:
    rows, response = (
        post_rows(formats_client),
        post_content(formats_client, to_ndjson(FORECAST_OPTIONS, *ROW_PAYLOADS), ndjson.MEDIA_TYPE),
    )
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
    first, *outcomes, last = map(json.loads, response.text.splitlines())
    assert first == {"model": rows["model"]}
    assert outcomes == rows["forecasts"]
    assert last == {"forecast": 2, "refused": 1}


def test_ndjson_conforms_to_the_openapi_document(formats_client: AppClient) -> None:
    document = formats_client.get("/docs.json").json()
    first, *outcomes, last = map(
        json.loads,
        post_content(formats_client, to_ndjson(FORECAST_OPTIONS, *ROW_PAYLOADS), ndjson.MEDIA_TYPE).text.splitlines(),
    )
    schemas = document["components"]["schemas"]
    assert schema_violations(FORECAST_OPTIONS, schemas["ForecastOptions"], document) == []
    assert (
        schema_violations(first, schemas["NdjsonHeader"], document)
        == schema_violations(last, schemas["NdjsonTrailer"], document)
        == []
    )
    schema_names = ["SeriesForecast", "SeriesError", "SeriesForecast"]
    assert [
        schema_violations(outcome, schemas[schema_name], document)
        for outcome, schema_name in zip(outcomes, schema_names, strict=True)
    ] == [
        [],
        [],
        [],
    ]


def test_a_bad_line_is_rejected_beside_its_good_neighbours(formats_client: AppClient) -> None:
    bad = [b"{", b'{"id": "x"}', b"[1]", json.dumps(series_payload(id="y", y=["a"])).encode(), b"\xff", b""]
    good = json.dumps(series_payload(id="good")).encode()
    content = b"\n".join([json.dumps({"horizon": 2}).encode(), good, *bad, good, b""])
    _, *outcomes, last = map(json.loads, post_content(formats_client, content, ndjson.MEDIA_TYPE).text.splitlines())
    assert [outcome["id"] for outcome in outcomes] == ["good", "", "x", "", "y", "", "good"]
    assert [outcome["error"]["code"] for outcome in outcomes[1:-1]] == [
        *("malformed_json", "invalid_request", "invalid_request", "invalid_request", "malformed_json")
    ]
    assert [outcome["error"]["where"] for outcome in outcomes[1:5]] == [
        "line.3",
        "line.4.start",
        "line.5",
        "line.6.y.0",
    ]
    assert last == {"forecast": 2, "refused": 5}


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"\n", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b'{"horizon": 0}', 422, "invalid_request"),
        (b'{"horizon": 2, "series": []}', 422, "invalid_request"),
        (b'{"horizon": 1001}', 422, "horizon_out_of_range"),
        (b'{"horizon": 2}' + b"\n1" * 1001, 422, "too_many_series"),
    ],
)
def test_ndjson_without_a_valid_first_line_is_rejected(
    formats_client: AppClient, content: bytes, status: int, code: str
) -> None:
    response = post_content(formats_client, content, ndjson.MEDIA_TYPE)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_many_lines_are_answered_in_batches(formats_client: AppClient) -> None:
    response = post_content(
        formats_client,
        to_ndjson({"horizon": 2}, *(series_payload(id=str(index)) for index in range(600))),
        ndjson.MEDIA_TYPE,
    )
    _, *outcomes, last = map(json.loads, response.text.splitlines())
    assert [outcome["id"] for outcome in outcomes] == [str(index) for index in range(600)]
    assert last["forecast"] == 600
    assert 'forecaster_series_total{outcome="forecast"} 600.0' in formats_client.get("/metrics").text


def test_ndjson_past_its_deadline_ends_with_an_error(slot_folder: Path, make_client: MakeClient) -> None:
    class SlowPredictor(LastValuePredictor):
        def forecast_batch(self, series: Any, horizon: int, *, levels: Any = ()) -> Any:
            import time

            time.sleep(0.7 if len(series) > 1 else 0)
            return super().forecast_batch(series, horizon, levels=levels)

    publish_stub(slot_folder)
    client = make_client(load=lambda folder: SlowPredictor())
    series = [series_payload(id=str(index)) for index in range(1000)]
    response = post_content(client, to_ndjson({"horizon": 2, "deadline_ms": 1000}, *series), ndjson.MEDIA_TYPE)
    *lines_before, last = map(json.loads, response.text.splitlines())
    assert response.status_code == 200
    assert last["error"]["code"] == "deadline_passed"
    assert len(lines_before) < 900
    assert client.post("/v1/forecast", json={"series": [series_payload()], "horizon": 2}).status_code == 200


@pytest.mark.parametrize("reason", ["disconnects", "does not read"])
def test_a_disconnected_or_stalled_client_stops_the_computation(reason: str) -> None:
    chunk_count, is_closed = 0, False

    async def iter_chunks() -> AsyncGenerator[bytes, None]:
        nonlocal chunk_count, is_closed
        try:
            while True:
                chunk_count += 1
                yield b"chunk"
                await asyncio.sleep(0)
        finally:
            is_closed = True

    async def receive() -> Any:
        await asyncio.sleep(0.02 if reason == "disconnects" else 3600)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(3600 if reason != "disconnects" and message["type"] == "http.response.body" else 0.005)

    async def send_response() -> None:
        response = endpoints.NdjsonResponse(iter_chunks(), Deadline.after(0.01), ())
        with contextlib.suppress(TimeoutError):  # the middleware then lets the server close the connection
            await asyncio.wait_for(response({"type": "http"}, receive, send), 5)

    asyncio.run(send_response())
    assert 1 <= chunk_count < 20
    assert is_closed


def test_arrow_equals_json_rows(formats_client: AppClient) -> None:
    rows, response = (
        post_rows(formats_client),
        post_content(formats_client, to_arrow_stream(to_arrow_table(ROW_PAYLOADS)), arrow.MEDIA_TYPE),
    )
    assert (response.status_code, response.headers["content-type"]) == (200, arrow.MEDIA_TYPE)
    table = pa.ipc.open_stream(response.content).read_all()
    assert json.loads(table.schema.metadata[b"model"]) == rows["model"]
    for row, arrow_row in zip(rows["forecasts"], table.to_pylist(), strict=True):
        assert arrow_row["id"] == row["id"]
        assert (arrow_row["error"], arrow_row["message"]) == (
            (row["error"]["code"], row["error"]["message"]) if "error" in row else (None, None)
        )
        for name in ("ds", "mean", "samples"):
            assert arrow_row[name] == row.get(name)
        assert [arrow_row["quantiles.0.1"], arrow_row["quantiles.0.9"]] == list(
            row.get("quantiles", {"": None, "-": None}).values()
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.set_column(1, "start", table["start"].cast(pa.timestamp("s", "UTC"))),
        lambda table: table.set_column(3, "y", table["y"].cast(pa.list_(pa.float32()))),
        lambda table: table.set_column(3, "y", table["y"].cast(pa.large_list(pa.float64()))),
        lambda table: table.set_column(0, "id", table["id"].cast(pa.large_string())),
        lambda table: pa.concat_tables([table.slice(0, 1), table.slice(1)]),
        lambda table: table.append_column("channels.c", table["y"]).append_column("static.b", table["id"]),
    ],
)
def test_arrow_columns_may_have_compatible_types(
    formats_client: AppClient, change: Callable[[pa.Table], pa.Table]
) -> None:
    response = post_content(formats_client, to_arrow_stream(change(to_arrow_table(ROW_PAYLOADS))), arrow.MEDIA_TYPE)
    assert response.status_code == 200, response.text
    arrow_rows = pa.ipc.open_stream(response.content).read_all().to_pylist()
    assert [arrow_row["mean"] for arrow_row in arrow_rows] == [
        row.get("mean") for row in post_rows(formats_client)["forecasts"]
    ]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC"])
def test_an_arrow_timestamp_out_of_range_rejects_its_series_alone(
    formats_client: AppClient, unit: str, zone: str | None
) -> None:
    rows = [{**row, "y": [1.0, 2.0, 3.0]} for row in [*ROW_PAYLOADS, series_payload(id="d")]]
    table = to_arrow_table(rows, {"horizon": 2})
    count = 1_767_225_600 * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    outside = [2**63 - 1, -(2**63), count] if unit != "ns" else [count + 1, count - 999, count]
    starts = pa.array([count, *outside], pa.int64()).cast(pa.timestamp(unit, tz=zone))
    response = post_content(formats_client, to_arrow_stream(table.set_column(1, "start", starts)), arrow.MEDIA_TYPE)
    assert response.status_code == 200, response.text
    result = pa.ipc.open_stream(response.content).read_all()
    assert result["error"].to_pylist() == [None, "bad_stamp", "bad_stamp", None]
    assert f"{outside[0]} {unit} after 1970" in result["message"].to_pylist()[1]
    assert result["ds"].to_pylist()[0][0].startswith("2026-01-01T03:00")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"ARROW1", "malformed_arrow"),
        (to_arrow_stream(to_arrow_table(ROW_PAYLOADS))[:-200], "malformed_arrow"),
        (to_arrow_stream(to_arrow_table(ROW_PAYLOADS), compression="zstd"), "malformed_arrow"),
        (to_arrow_stream(to_arrow_table(ROW_PAYLOADS), compression="lz4"), "malformed_arrow"),
        (
            to_arrow_stream(
                to_arrow_table(ROW_PAYLOADS).set_column(0, "id", to_arrow_table(ROW_PAYLOADS)["id"].dictionary_encode())
            ),
            "malformed_arrow",
        ),
        (to_arrow_stream(to_arrow_table(ROW_PAYLOADS).replace_schema_metadata({})), "invalid_request"),
        (to_arrow_stream(to_arrow_table(ROW_PAYLOADS, options={"horizon": 0})), "invalid_request"),
        (to_arrow_stream(to_arrow_table(ROW_PAYLOADS).drop_columns(["y"])), "invalid_request"),
        (to_arrow_stream(to_arrow_table(ROW_PAYLOADS).slice(0, 0)), "invalid_request"),
        (
            to_arrow_stream(to_arrow_table(ROW_PAYLOADS).append_column("other", to_arrow_table(ROW_PAYLOADS)["id"])),
            "invalid_request",
        ),
        (
            to_arrow_stream(to_arrow_table(ROW_PAYLOADS).set_column(0, "id", pa.array(["a", None, "b"]))),
            "invalid_request",
        ),
        (
            to_arrow_stream(to_arrow_table(ROW_PAYLOADS).set_column(0, "id", pa.array(["a", "b\n", "c"]))),
            "invalid_request",
        ),
        (
            to_arrow_stream(to_arrow_table(ROW_PAYLOADS).set_column(3, "y", pa.array(["a", "b", "c"]))),
            "invalid_request",
        ),
        (
            to_arrow_stream(to_arrow_table(ROW_PAYLOADS).set_column(1, "start", pa.array([1.5, 2.5, 3.5]))),
            "invalid_request",
        ),
    ],
)
def test_an_invalid_arrow_stream_is_rejected(formats_client: AppClient, content: bytes, code: str) -> None:
    response = post_content(formats_client, content, arrow.MEDIA_TYPE)
    assert response.status_code in (400, 422)
    assert response.json()["error"]["code"] == code


def test_an_infinite_value_in_arrow_is_rejected_for_its_series_alone(
    slot_folder: Path, make_client: MakeClient
) -> None:
    pytest.importorskip("torch")
    from forecaster.prediction.predictor import Predictor
    from tests.factories import make_fitted_model, make_spec

    publish_stub(slot_folder)
    client = make_client(load=lambda folder: Predictor(make_fitted_model(make_spec())))
    freq = client.get("/v1/model").json()["freq"]
    y = [float(value) for value in 10 + np.sin(np.arange(40))]
    rows = [series_payload(id=name, freq=freq, start="2026-01-01", y=y) for name in "abc"]
    rows[1]["y"] = [*y[:-1], float("inf")]
    response = post_content(client, to_arrow_stream(to_arrow_table(rows, options={"horizon": 2})), arrow.MEDIA_TYPE)
    outcomes = pa.ipc.open_stream(response.content).read_all().to_pylist()
    assert [outcome["error"] for outcome in outcomes] == [None, "not_a_number", None]
    assert np.isfinite(outcomes[0]["mean"]).all()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damaged_arrow_stream_crashes_the_server(data: st.DataObject) -> None:
    content = bytearray(to_arrow_stream(to_arrow_table(ROW_PAYLOADS)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ApiError):
        _, histories = arrow.decode_arrow(bytes(content))
        assert 0 < len(histories) <= len(content)
        assert sum(len(history.y) for history in histories) <= len(content)


@pytest.mark.parametrize(
    ("media_type", "content"),
    [(arrow.MEDIA_TYPE, to_arrow_stream(to_arrow_table(ROW_PAYLOADS))), ("application/json", b"")],
)
def test_without_pyarrow_arrow_and_zstd_are_a_415_with_the_reason(
    formats_client: AppClient, monkeypatch: pytest.MonkeyPatch, media_type: str, content: bytes
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    headers = {} if content else {"content-encoding": "zstd"}
    response = post_content(formats_client, content or b"{}", media_type, **headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "pyarrow" in response.json()["error"]["message"]


def test_every_response_names_the_model_and_its_duration(formats_client: AppClient) -> None:
    for response in (
        formats_client.get("/livez"),
        formats_client.get("/nowhere"),
        formats_client.post("/v1/forecast", json={"series": ROW_PAYLOADS, **FORECAST_OPTIONS}),
    ):
        assert response.headers["x-model"] == "stub/1"
        assert len(response.headers["x-model-digest"]) == 64
        assert "total;dur=" in response.headers["server-timing"]
    assert all(f"{stage};dur=" in response.headers["server-timing"] for stage in ("read", "forecast", "write"))


def test_samples_depend_on_the_seed_and_are_returned_only_on_request(formats_client: AppClient) -> None:
    def first_forecast(**options: Any) -> Any:
        return formats_client.post("/v1/forecast", json={"series": [series_payload()], "horizon": 2, **options}).json()[
            "forecasts"
        ][0]

    assert "samples" not in first_forecast()
    assert first_forecast(samples=3)["samples"] == [[2.5, 2.5], [3.5, 3.5], [4.5, 4.5]]
    assert first_forecast(samples=1, seed=9)["samples"] == [[11.5, 11.5]]


def test_a_diverging_sample_is_null_from_that_step_with_a_warning(formats_client: AppClient) -> None:
    body = formats_client.post(
        "/v1/forecast", json={"series": [series_payload(y=[1, 2, 77])], "horizon": 2, "samples": 2}
    ).json()
    assert body["forecasts"][0]["samples"] == [[None, None], [None, None]]
    assert "2 of 2 samples" in body["forecasts"][0]["warnings"][0]
