"""The ledger of the service: what is stored, the accuracy it reports, and that no forecast is slower or fails because of it."""

from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.asgi import auth
from serving.ledger_writer import LedgerWriter
from serving.settings import Settings
from tests.serving.conftest import AppClient, MakeClient, publish_stub, series_payload
from tests.serving.routes.test_openapi import response_schema, schema_violations

pytestmark = pytest.mark.integration

TIMESTAMPS = [f"2026-01-01T{hour:02}:00:00Z" for hour in range(24)]


@pytest.fixture
def ledger_client(slot_folder: Path, make_client: MakeClient) -> AppClient:
    """A service with a ledger in the slot's folder, and a model that repeats the last value."""
    publish_stub(slot_folder)
    return make_client(ledger="on", max_series=50, max_values=6000, max_history=5000, max_body=200_000)


def post_forecast(
    client: AppClient, *names: str, horizon: int = 3, y: tuple[float | None, ...] = (1.0, None, 2.5), **fields: Any
) -> None:
    request = {"series": [series_payload(id=name, y=list(y)) for name in names or ("a",)], "horizon": horizon, **fields}
    assert client.post("/v1/forecast", json=request).status_code == 200


def post_actuals(client: AppClient, *payloads: dict[str, Any]) -> list[dict[str, Any]]:
    response = client.post("/v1/actuals", json={"series": list(payloads)})
    assert response.status_code == 200, response.text
    outcomes: list[dict[str, Any]] = response.json()["outcomes"]
    return outcomes


def actuals_payload(
    name: str = "a", *, start: str = TIMESTAMPS[3], y: tuple[float | None, ...] = (2.5, 3.5, 0.5)
) -> dict[str, Any]:
    return {"id": name, "start": start, "freq": "h", "y": list(y)}


def get_accuracy(client: AppClient, *, forecasts: int, query: str = "") -> dict[str, Any]:
    """Returns the accuracy, once the background thread has stored `forecasts` forecasts."""
    deadline = time.monotonic() + 10
    while True:
        response = client.get(f"/v1/accuracy{query}")
        assert response.status_code == 200, response.text
        accuracy: dict[str, Any] = response.json()
        if accuracy["forecasts"] == forecasts:
            return accuracy
        assert time.monotonic() < deadline, accuracy
        time.sleep(0.02)


def query_rows(slot_folder: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(slot_folder / "ledger.db") as connection:
        rows = connection.execute(query).fetchall()
    connection.close()
    return rows


def actuals_metric(client: AppClient, outcome: str) -> float:
    line = next(
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith(f'forecaster_ledger_forecasts_total{{outcome="{outcome}"}}')
    )
    return float(line.split()[-1])


def test_actuals_are_scored_against_served_forecasts(ledger_client: AppClient) -> None:
    post_forecast(ledger_client, levels=[0.1, 0.9])  # 2.5 at every step, quantiles 2.6 and 3.4
    get_accuracy(ledger_client, forecasts=1)
    assert post_actuals(ledger_client, actuals_payload()) == [
        {"id": "a", "stored": 3, "corrected": 0, "scored": 1, "by_horizon": {"1": 1, "2": 1, "3": 1}}
    ]
    accuracy = get_accuracy(ledger_client, forecasts=1)
    assert (accuracy["model"]["name"], accuracy["model"]["version"], accuracy["scored"]) == ("stub", "1", 1)
    overall = accuracy["overall"]
    assert overall == {"n": 3, "mae": 1.0, "bias": pytest.approx(1 / 3), "mase": None, "coverage": {"0.8": 0.0}} | {
        "width": {"0.8": pytest.approx(0.8)},
        "wql_recorded": None,
        "msis_95": None,
    }
    assert [(scores["step"], scores["n"], scores["mae"], scores["bias"]) for scores in accuracy["by_horizon"]] == [
        (1, 1, 0.0, 0.0),
        (2, 1, 1.0, -1.0),
        (3, 1, 2.0, 2.0),
    ]
    assert accuracy["since"] == accuracy["until"]


def test_an_actual_counts_once_and_a_correction_replaces_it(ledger_client: AppClient) -> None:
    post_forecast(ledger_client)
    get_accuracy(ledger_client, forecasts=1)
    post_actuals(ledger_client, actuals_payload())
    assert post_actuals(ledger_client, actuals_payload())[0] | {"id": ""} == {
        "id": "",
        "stored": 0,
        "corrected": 0,
        "scored": 1,
        "by_horizon": {"1": 1, "2": 1, "3": 1},
    }
    assert get_accuracy(ledger_client, forecasts=1)["overall"]["n"] == 3
    assert post_actuals(ledger_client, actuals_payload(y=(2.5,)), actuals_payload(y=(4.5,)))[1]["corrected"] == 1
    accuracy = get_accuracy(ledger_client, forecasts=1)
    assert (accuracy["overall"]["n"], accuracy["by_horizon"][0]["mae"]) == (3, 2.0)


def test_a_repeated_forecast_counts_once_unless_its_horizon_is_longer(ledger_client: AppClient) -> None:
    for horizon in (2, 2, 3, 1):
        post_forecast(ledger_client, horizon=horizon)
    post_forecast(ledger_client, "b")
    post_actuals(ledger_client, actuals_payload(), actuals_payload("b"))
    accuracy = get_accuracy(ledger_client, forecasts=2)
    assert (accuracy["scored"], accuracy["overall"]["n"]) == (2, 6)


def test_actuals_may_arrive_before_their_forecast_is_stored(ledger_client: AppClient) -> None:
    assert post_actuals(ledger_client, actuals_payload())[0]["scored"] == 0
    post_forecast(ledger_client)
    assert get_accuracy(ledger_client, forecasts=1)["overall"]["n"] == 3


def test_timestamps_match_in_any_format(ledger_client: AppClient) -> None:
    post_forecast(ledger_client)
    get_accuracy(ledger_client, forecasts=1)
    mixed = {"id": "a", "ds": ["2026-01-01T06:00:00+02:00", "2026-01-01 03:00"]}
    assert post_actuals(ledger_client, {**mixed, "y": [1, 2]})[0]["error"]["code"] == "bad_stamp"
    outcomes = post_actuals(
        ledger_client, {"id": "a", "ds": ["2026-01-01T06:00:00+02:00", "2026-01-01T03:00:00Z"], "y": [1, 2]}
    )
    assert outcomes[0]["by_horizon"] == {"1": 1, "2": 1}
    assert post_actuals(ledger_client, {"id": "a", "ds": ["2026-01-01 05:00"], "y": [3]})[0]["by_horizon"] == {"3": 1}


def test_integer_steps_are_kept_separate(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder, freq="1")
    client = make_client(ledger="on")
    request = {"series": [{"id": "a", "start": 7, "freq": 1, "y": [1, 2, 3]}], "horizon": 2}
    assert client.post("/v1/forecast", json=request).status_code == 200
    get_accuracy(client, forecasts=1)
    assert post_actuals(client, {"id": "a", "ds": [11, 10], "y": [3, 4]})[0]["by_horizon"] == {"1": 1, "2": 1}
    assert get_accuracy(client, forecasts=1)["overall"]["mae"] == 0.5


def test_one_bad_series_does_not_affect_its_neighbours(ledger_client: AppClient) -> None:
    outcomes = post_actuals(
        ledger_client,
        actuals_payload("a", y=()),
        {"id": "b", "start": "2026-01-02", "freq": "MS", "y": [1]},
        actuals_payload("c", y=(1e101,)),
        {"id": "d", "ds": ["yesterday"], "y": [1]},
        actuals_payload("e", start="9999-12-31T22:00:00Z"),
        {"id": "f", "start": 3, "freq": "h", "y": [1]},
        actuals_payload("good", y=(None, 1)),
    )
    assert [outcome.get("error", {}).get("code") for outcome in outcomes] == [
        "history_too_short",
        "irregular_stamps",
        "value_out_of_range",
        "bad_stamp",
        "bad_stamp",
        "bad_stamp",
        None,
    ]
    assert outcomes[-1]["stored"] == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_json"),
        (b'{"series":[{"id":"a","ds":["2026-01-01"],"y":[NaN]}]}', 400, "malformed_json"),
        (b"[]", 422, "invalid_request"),
        (b'{"series":[]}', 422, "invalid_request"),
        (b'{"series":[{"id":"a","y":[1]}]}', 422, "invalid_request"),
        (b'{"series":[{"id":"a","ds":["2026-01-01"],"y":[1,2]}]}', 422, "invalid_request"),
        (b'{"series":[{"id":"a","ds":["2026-01-01"],"y":["1"]}]}', 422, "invalid_request"),
        (b'{"series":[{"id":"a\\u0000","ds":["2026-01-01"],"y":[1]}]}', 422, "invalid_request"),
        (b'{"series":[{"id":"","ds":["2026-01-01"],"y":[1]}]}', 422, "invalid_request"),
        (b'{"series":[{"id":"a","ds":["2026-01-01"],"y":[1],"x":1}]}', 422, "invalid_request"),
        (b'{"series":[{"id":"a","start":1,"freq":1,"y":[' + b"1," * 5000 + b"1]}]}", 422, "history_too_long"),
        (
            b'{"series":[' + b'{"id":"a","ds":[1],"y":[1]},' * 50 + b'{"id":"a","ds":[1],"y":[1]}]}',
            422,
            "too_many_series",
        ),
    ],
)
def test_an_invalid_body_gets_a_documented_error(ledger_client: AppClient, body: bytes, status: int, code: str) -> None:
    response = ledger_client.post("/v1/actuals", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?since=2026-01-01", 200),
        ("?since=0001-01-01", 200),
        ("?since=9999-12-31T23:59:59Z", 200),
        ("?version=all", 200),
        ("?version=77", 200),
        ("?version=%00", 200),
        ("?since=yesterday", 422),
        ("?since=", 422),
        ("?since=1", 422),
        ("?version=" + "1" * 201, 422),
        ("?other=1", 422),
    ],
)
def test_query_parameters_are_validated(ledger_client: AppClient, query: str, status: int) -> None:
    assert ledger_client.get(f"/v1/accuracy{query}").status_code == status


def test_forecasts_are_separated_by_version_and_time(slot_folder: Path, ledger_client: AppClient) -> None:
    post_forecast(ledger_client)
    get_accuracy(ledger_client, forecasts=1)
    publish_stub(slot_folder, version="2", shift=1.0)
    deadline = time.monotonic() + 10
    while ledger_client.get("/v1/model").json()["model"]["version"] != "2":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    post_forecast(ledger_client)
    post_actuals(ledger_client, actuals_payload())
    assert get_accuracy(ledger_client, forecasts=1)["overall"]["mae"] == pytest.approx(4 / 3)
    first = get_accuracy(ledger_client, forecasts=1, query="?version=1")
    assert (first["model"]["version"], first["overall"]["mae"]) == ("1", 1.0)
    both = get_accuracy(ledger_client, forecasts=2, query="?version=all")
    assert (both["model"], both["overall"]["n"]) == (None, 6)
    assert get_accuracy(ledger_client, forecasts=0, query="?since=9000-01-01")["overall"]["mae"] is None


def test_responses_conform_to_the_openapi_document(ledger_client: AppClient) -> None:
    document = ledger_client.get("/docs.json").json()
    post_forecast(ledger_client, levels=[0.1, 0.9])
    for accuracy in (
        get_accuracy(ledger_client, forecasts=1),
        (post_actuals(ledger_client, actuals_payload()), get_accuracy(ledger_client, forecasts=1))[1],
    ):
        assert schema_violations(accuracy, response_schema(document, "get", "/v1/accuracy", 200), document) == []
    body = {"series": [actuals_payload(), actuals_payload("b", y=()), {"id": "c", "ds": [TIMESTAMPS[0]], "y": [1.5]}]}
    request_schema = document["paths"]["/v1/actuals"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema_violations(body, request_schema, document) == []
    outcomes = ledger_client.post("/v1/actuals", json=body).json()
    assert schema_violations(outcomes, response_schema(document, "post", "/v1/actuals", 200), document) == []
    assert {parameter["name"] for parameter in document["paths"]["/v1/accuracy"]["get"]["parameters"]} == {
        "version",
        "since",
    }


def test_without_a_ledger_both_routes_report_it(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    client = make_client()
    for response in (client.get("/v1/accuracy"), client.post("/v1/actuals", json={"series": [actuals_payload()]})):
        assert (response.status_code, response.json()["error"]["code"]) == (404, "ledger_off")
    post_forecast(client)
    assert not (slot_folder / "ledger.db").exists()


def test_ids_are_stored_as_joinable_hashes_unless_plain_ids_are_allowed(
    slot_folder: Path, make_client: MakeClient
) -> None:
    publish_stub(slot_folder)
    client = make_client(ledger="on")
    post_forecast(client, "customer 17")
    get_accuracy(client, forecasts=1)
    assert post_actuals(client, actuals_payload("customer 17"))[0]["scored"] == 1
    file = slot_folder / "ledger.db"
    content = b"".join(path.read_bytes() for path in slot_folder.glob("ledger.db*"))
    assert b"customer 17" not in content
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    plain_ids_client = make_client(ledger="on", ledger_clear_ids=True)
    post_forecast(plain_ids_client, "customer 18", y=(1.0, 1.0, 1.0, 1.0))
    get_accuracy(plain_ids_client, forecasts=2)
    assert query_rows(slot_folder, "SELECT id FROM ledger_forecasts ORDER BY number") == [(None,), ("customer 18",)]


def test_every_worker_samples_the_same_forecasts(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    names = [f"meter {number}" for number in range(400)]
    counts = []
    for share in (0.25, 0.25, 0.5, 0.0):
        client = make_client(ledger="on", ledger_share=share)
        post_forecast(client, *names)
        _wait_for_ledger_writer(client)
        counts.append(query_rows(slot_folder, "SELECT count(*) FROM ledger_forecasts")[0][0])
    assert 60 <= counts[0] <= 140
    assert counts[1] == counts[0]
    assert 160 <= counts[2] <= 240
    assert counts[3] == counts[2]


def _wait_for_ledger_writer(client: AppClient) -> None:
    """Waits until no forecast is queued."""
    ledger_writer = _ledger_writer_of(client)
    deadline = time.monotonic() + 10
    while ledger_writer._queued_forecasts:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _ledger_writer_of(client: AppClient) -> LedgerWriter:
    writers = [writer for writer in _ledger_writers if writer._settings.ledger != "off"]
    return writers[-1]


_ledger_writers: list[LedgerWriter] = []


@pytest.fixture(autouse=True)
def _recorded_ledger_writers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Records the ledger writers that applications create."""
    original_init = LedgerWriter.__init__

    def recording_init(self: LedgerWriter, *args: Any, **fields: Any) -> None:
        original_init(self, *args, **fields)
        _ledger_writers.append(self)

    monkeypatch.setattr(LedgerWriter, "__init__", recording_init)
    yield
    _ledger_writers.clear()


def test_a_locked_database_never_fails_a_forecast(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    client = make_client(ledger="on", ledger_waiting=3)
    post_forecast(client)
    get_accuracy(client, forecasts=1)
    lock_holder = sqlite3.connect(slot_folder / "ledger.db", isolation_level=None)
    lock_holder.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    for number in range(8):
        post_forecast(client, f"held {number}")
    assert time.monotonic() - started < 4, "waiting for the lock would take five seconds or more"
    assert actuals_metric(client, "dropped") >= 5
    assert get_accuracy(client, forecasts=1)["scored"] == 0, "reading is not blocked"
    lock_holder.execute("ROLLBACK")
    lock_holder.close()
    accuracy = get_accuracy(client, forecasts=4)
    assert accuracy["forecasts"] == 4, "queued forecasts are stored"


def test_a_missing_database_never_fails_a_forecast(slot_folder: Path, make_client: MakeClient, tmp_path: Path) -> None:
    publish_stub(slot_folder)
    (tmp_path / "file").write_text("")
    for address in (f"sqlite:///{tmp_path}/file/ledger.db", "postgresql+psycopg://me:fck_secret@127.0.0.1:9/none"):
        client = make_client(ledger=address)
        started = time.monotonic()
        post_forecast(client)
        assert time.monotonic() - started < 4
        for response in (client.get("/v1/accuracy"), client.post("/v1/actuals", json={"series": [actuals_payload()]})):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "ledger_unavailable")
            assert "secret" not in response.text


def test_a_password_is_never_logged(
    slot_folder: Path, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    publish_stub(slot_folder)
    client = make_client(ledger="postgresql+psycopg://me:fck_secret@127.0.0.1:9/none")
    client.get("/v1/accuracy")
    assert "127.0.0.1:9" in caplog.text
    assert "fck_secret" not in caplog.text
    assert "fck_secret" not in repr(Settings(ledger="postgresql+psycopg://me:fck_secret@127.0.0.1:9/none"))


def test_forecasts_of_every_format_are_stored(ledger_client: AppClient) -> None:
    series = {"id": "b", "start": TIMESTAMPS[0], "freq": "h", "y": [1, 2, 3]}
    assert ledger_client.post("/v1/forecast", json={"series": [series], "horizon": 2}).status_code == 200
    lines = b'{"horizon": 2}\n{"id": "c", "start": "2026-01-01", "freq": "h", "y": [1, 2, 3]}\n'
    response = ledger_client.post("/v1/forecast", content=lines, headers={"content-type": "application/x-ndjson"})
    assert response.status_code == 200
    deepar = {"instances": [{"start": "2026-01-01", "target": [1, 2, 3]}], "configuration": {"output_types": ["mean"]}}
    assert ledger_client.post("/invocations", json=deepar).status_code == 200
    assert get_accuracy(ledger_client, forecasts=3)["scored"] == 0


def test_actuals_require_their_own_scope(slot_folder: Path, make_client: MakeClient, tmp_path: Path) -> None:
    publish_stub(slot_folder)
    keys = {scope: auth.create_key(scope, [scope], tmp_path / "keys") for scope in ("read", "actuals")}
    client = make_client(ledger="on", keys_file=tmp_path / "keys")

    def statuses(scope: str) -> list[int]:
        headers = {"x-api-key": keys[scope]}
        return [
            client.post("/v1/actuals", json={"series": [actuals_payload()]}, headers=headers).status_code,
            client.get("/v1/accuracy", headers=headers).status_code,
        ]

    assert statuses("actuals") == [200, 403]
    assert statuses("read") == [403, 200]
