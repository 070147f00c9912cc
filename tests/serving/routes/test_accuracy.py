"""The ledger behind the service: what is kept, what is told of it, and that no forecast is slower or fails because of it."""

from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.asgi import auth
from serving.ledger_writer import Scribe
from serving.settings import Settings
from tests.serving.conftest import Client, MakeClient, publish_stub, series
from tests.serving.routes.test_openapi import faults, schema_of

HOURS = [f"2026-01-01T{hour:02}:00:00Z" for hour in range(24)]


@pytest.fixture
def client(slot_folder: Path, make_client: MakeClient) -> Client:
    """A ledger in the slot's folder, and a model that repeats the last value."""
    publish_stub(slot_folder)
    return make_client(ledger="on", max_series=50, max_values=6000, max_history=5000, max_body=200_000)


def forecast(
    client: Client, *names: str, horizon: int = 3, y: tuple[float | None, ...] = (1.0, None, 2.5), **fields: Any
) -> None:
    asked = {"series": [series(id=name, y=list(y)) for name in names or ("a",)], "horizon": horizon, **fields}
    assert client.post("/v1/forecast", json=asked).status_code == 200


def actuals(client: Client, *told: dict[str, Any]) -> list[dict[str, Any]]:
    answer = client.post("/v1/actuals", json={"series": list(told)})
    assert answer.status_code == 200, answer.text
    outcomes: list[dict[str, Any]] = answer.json()["outcomes"]
    return outcomes


def came(name: str = "a", *, start: str = HOURS[3], y: tuple[float | None, ...] = (2.5, 3.5, 0.5)) -> dict[str, Any]:
    return {"id": name, "start": start, "freq": "h", "y": list(y)}


def accuracy(client: Client, *, forecasts: int, query: str = "") -> dict[str, Any]:
    """The answer, once the background has kept so many forecasts."""
    deadline = time.monotonic() + 10
    while True:
        answer = client.get(f"/v1/accuracy{query}")
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        if told["forecasts"] == forecasts:
            return told
        assert time.monotonic() < deadline, told
        time.sleep(0.02)


def rows(slot_folder: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(slot_folder / "ledger.db") as connection:
        found = connection.execute(query).fetchall()
    connection.close()
    return found


def metric(client: Client, outcome: str) -> float:
    line = next(
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith(f'forecaster_ledger_forecasts_total{{outcome="{outcome}"}}')
    )
    return float(line.split()[-1])


def test_what_came_is_scored_against_what_was_served(client: Client) -> None:
    forecast(client, levels=[0.1, 0.9])  # 2.5 at every step, quantiles 2.6 and 3.4
    accuracy(client, forecasts=1)
    assert actuals(client, came()) == [
        {"id": "a", "stored": 3, "corrected": 0, "scored": 1, "by_horizon": {"1": 1, "2": 1, "3": 1}}
    ]
    told = accuracy(client, forecasts=1)
    assert (told["model"]["name"], told["model"]["version"], told["scored"]) == ("stub", "1", 1)
    overall = told["overall"]
    assert overall == {"n": 3, "mae": 1.0, "bias": pytest.approx(1 / 3), "mase": None, "coverage": {"0.8": 0.0}} | {
        "width": {"0.8": pytest.approx(0.8)}
    }
    assert [(one["step"], one["n"], one["mae"], one["bias"]) for one in told["by_horizon"]] == [
        (1, 1, 0.0, 0.0),
        (2, 1, 1.0, -1.0),
        (3, 1, 2.0, 2.0),
    ]
    assert told["since"] == told["until"]


def test_an_actual_counts_once_and_a_corrected_one_replaces(client: Client) -> None:
    forecast(client)
    accuracy(client, forecasts=1)
    actuals(client, came())
    assert actuals(client, came())[0] | {"id": ""} == {
        "id": "",
        "stored": 0,
        "corrected": 0,
        "scored": 1,
        "by_horizon": {"1": 1, "2": 1, "3": 1},
    }
    assert accuracy(client, forecasts=1)["overall"]["n"] == 3
    assert actuals(client, came(y=(2.5,)), came(y=(4.5,)))[1]["corrected"] == 1
    told = accuracy(client, forecasts=1)
    assert (told["overall"]["n"], told["by_horizon"][0]["mae"]) == (3, 2.0)


def test_a_forecast_that_is_asked_for_again_counts_once_unless_it_reaches_further(client: Client) -> None:
    for horizon in (2, 2, 3, 1):
        forecast(client, horizon=horizon)
    forecast(client, "b")
    actuals(client, came(), came("b"))
    told = accuracy(client, forecasts=2)
    assert (told["scored"], told["overall"]["n"]) == (2, 6)


def test_actuals_may_come_before_the_forecast_of_them_is_kept(client: Client) -> None:
    assert actuals(client, came())[0]["scored"] == 0
    forecast(client)
    assert accuracy(client, forecasts=1)["overall"]["n"] == 3


def test_stamps_meet_whatever_they_are_written_as(client: Client) -> None:
    forecast(client)
    accuracy(client, forecasts=1)
    mixed = {"id": "a", "ds": ["2026-01-01T06:00:00+02:00", "2026-01-01 03:00"]}
    assert actuals(client, {**mixed, "y": [1, 2]})[0]["error"]["code"] == "bad_stamp"
    told = actuals(client, {"id": "a", "ds": ["2026-01-01T06:00:00+02:00", "2026-01-01T03:00:00Z"], "y": [1, 2]})
    assert told[0]["by_horizon"] == {"1": 1, "2": 1}
    assert actuals(client, {"id": "a", "ds": ["2026-01-01 05:00"], "y": [3]})[0]["by_horizon"] == {"3": 1}


def test_numbered_steps_are_their_own(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder, freq="1")
    client = make_client(ledger="on")
    asked = {"series": [{"id": "a", "start": 7, "freq": 1, "y": [1, 2, 3]}], "horizon": 2}
    assert client.post("/v1/forecast", json=asked).status_code == 200
    accuracy(client, forecasts=1)
    assert actuals(client, {"id": "a", "ds": [11, 10], "y": [3, 4]})[0]["by_horizon"] == {"1": 1, "2": 1}
    assert accuracy(client, forecasts=1)["overall"]["mae"] == 0.5


def test_one_bad_series_does_not_spoil_its_neighbours(client: Client) -> None:
    outcomes = actuals(
        client,
        came("a", y=()),
        {"id": "b", "start": "2026-01-02", "freq": "MS", "y": [1]},
        came("c", y=(1e101,)),
        {"id": "d", "ds": ["yesterday"], "y": [1]},
        came("e", start="9999-12-31T22:00:00Z"),
        {"id": "f", "start": 3, "freq": "h", "y": [1]},
        came("good", y=(None, 1)),
    )
    assert [one.get("error", {}).get("code") for one in outcomes] == [
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
def test_a_body_that_cannot_be_used_gets_a_fixed_answer(client: Client, body: bytes, status: int, code: str) -> None:
    answer = client.post("/v1/actuals", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


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
def test_parameters_are_taken_or_refused(client: Client, query: str, status: int) -> None:
    assert client.get(f"/v1/accuracy{query}").status_code == status


def test_forecasts_are_told_apart_by_version_and_time(slot_folder: Path, client: Client) -> None:
    forecast(client)
    accuracy(client, forecasts=1)
    publish_stub(slot_folder, version="2", shift=1.0)
    deadline = time.monotonic() + 10
    while client.get("/v1/model").json()["model"]["version"] != "2":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    forecast(client)
    actuals(client, came())
    assert accuracy(client, forecasts=1)["overall"]["mae"] == pytest.approx(4 / 3)
    first = accuracy(client, forecasts=1, query="?version=1")
    assert (first["model"]["version"], first["overall"]["mae"]) == ("1", 1.0)
    both = accuracy(client, forecasts=2, query="?version=all")
    assert (both["model"], both["overall"]["n"]) == (None, 6)
    assert accuracy(client, forecasts=0, query="?since=9000-01-01")["overall"]["mae"] is None


def test_answers_are_as_the_document_says(client: Client) -> None:
    document = client.get("/docs.json").json()
    forecast(client, levels=[0.1, 0.9])
    for told in (accuracy(client, forecasts=1), (actuals(client, came()), accuracy(client, forecasts=1))[1]):
        assert faults(told, schema_of(document, "get", "/v1/accuracy", 200), document) == []
    body = {"series": [came(), came("b", y=()), {"id": "c", "ds": [HOURS[0]], "y": [1.5]}]}
    asked = document["paths"]["/v1/actuals"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert faults(body, asked, document) == []
    answer = client.post("/v1/actuals", json=body).json()
    assert faults(answer, schema_of(document, "post", "/v1/actuals", 200), document) == []
    assert {one["name"] for one in document["paths"]["/v1/accuracy"]["get"]["parameters"]} == {"version", "since"}


def test_without_a_ledger_both_routes_say_so(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    client = make_client()
    for answer in (client.get("/v1/accuracy"), client.post("/v1/actuals", json={"series": [came()]})):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "ledger_off")
    forecast(client)
    assert not (slot_folder / "ledger.db").exists()


def test_ids_are_kept_as_hashes_that_join_unless_allowed_in_clear(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    client = make_client(ledger="on")
    forecast(client, "customer 17")
    accuracy(client, forecasts=1)
    assert actuals(client, came("customer 17"))[0]["scored"] == 1
    file = slot_folder / "ledger.db"
    held = b"".join(path.read_bytes() for path in slot_folder.glob("ledger.db*"))
    assert b"customer 17" not in held
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    clear = make_client(ledger="on", ledger_clear_ids=True)
    forecast(clear, "customer 18", y=(1.0, 1.0, 1.0, 1.0))
    accuracy(clear, forecasts=2)
    assert rows(slot_folder, "SELECT id FROM ledger_forecasts ORDER BY number") == [(None,), ("customer 18",)]


def test_some_forecasts_are_kept_and_the_same_ones_by_every_worker(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    names = [f"meter {number}" for number in range(400)]
    kept = []
    for share in (0.25, 0.25, 0.5, 0.0):
        client = make_client(ledger="on", ledger_share=share)
        forecast(client, *names)
        _settle(client)
        kept.append(rows(slot_folder, "SELECT count(*) FROM ledger_forecasts")[0][0])
    assert 60 <= kept[0] <= 140
    assert kept[1] == kept[0]
    assert 160 <= kept[2] <= 240
    assert kept[3] == kept[2]


def _settle(client: Client) -> None:
    """Until nothing waits any more."""
    scribe = _scribe(client)
    deadline = time.monotonic() + 10
    while scribe._forecasts:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _scribe(client: Client) -> Scribe:
    found = [one for one in _scribes if one._settings.ledger != "off"]
    return found[-1]


_scribes: list[Scribe] = []


@pytest.fixture(autouse=True)
def _known_scribes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remembers the scribes that applications make."""
    before = Scribe.__init__

    def noted(self: Scribe, *args: Any, **fields: Any) -> None:
        before(self, *args, **fields)
        _scribes.append(self)

    monkeypatch.setattr(Scribe, "__init__", noted)
    yield
    _scribes.clear()


def test_a_database_that_others_hold_never_fails_a_forecast(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    client = make_client(ledger="on", ledger_waiting=3)
    forecast(client)
    accuracy(client, forecasts=1)
    holder = sqlite3.connect(slot_folder / "ledger.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    for number in range(8):
        forecast(client, f"held {number}")
    assert time.monotonic() - began < 4, "the database is held for five seconds and more"
    assert metric(client, "dropped") >= 5
    assert accuracy(client, forecasts=1)["scored"] == 0, "reading goes on"
    holder.execute("ROLLBACK")
    holder.close()
    told = accuracy(client, forecasts=4)
    assert told["forecasts"] == 4, "what waited is kept"


def test_a_database_that_is_not_there_never_fails_a_forecast(
    slot_folder: Path, make_client: MakeClient, tmp_path: Path
) -> None:
    publish_stub(slot_folder)
    (tmp_path / "file").write_text("")
    for address in (f"sqlite:///{tmp_path}/file/ledger.db", "postgresql+psycopg://me:fck_secret@127.0.0.1:9/none"):
        client = make_client(ledger=address)
        began = time.monotonic()
        forecast(client)
        assert time.monotonic() - began < 4
        for answer in (client.get("/v1/accuracy"), client.post("/v1/actuals", json={"series": [came()]})):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger_unavailable")
            assert "secret" not in answer.text


def test_a_password_is_never_logged(
    slot_folder: Path, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    publish_stub(slot_folder)
    client = make_client(ledger="postgresql+psycopg://me:fck_secret@127.0.0.1:9/none")
    client.get("/v1/accuracy")
    assert "127.0.0.1:9" in caplog.text
    assert "fck_secret" not in caplog.text
    assert "fck_secret" not in repr(Settings(ledger="postgresql+psycopg://me:fck_secret@127.0.0.1:9/none"))


def test_every_form_of_a_request_is_kept(client: Client) -> None:
    columns = {"id": ["b"], "start": [HOURS[0]], "freq": "h", "y": [[1, 2, 3]]}
    assert client.post("/v1/forecast", json={"columns": columns, "horizon": 2}).status_code == 200
    lines = b'{"horizon": 2}\n{"id": "c", "start": "2026-01-01", "freq": "h", "y": [1, 2, 3]}\n'
    told = client.post("/v1/forecast", content=lines, headers={"content-type": "application/x-ndjson"})
    assert told.status_code == 200
    deepar = {"instances": [{"start": "2026-01-01", "target": [1, 2, 3]}], "configuration": {"output_types": ["mean"]}}
    assert client.post("/invocations", json=deepar).status_code == 200
    assert accuracy(client, forecasts=3)["scored"] == 0


def test_what_came_needs_a_key_of_its_own(slot_folder: Path, make_client: MakeClient, tmp_path: Path) -> None:
    publish_stub(slot_folder)
    made = {scope: auth.new(scope, [scope], tmp_path / "keys") for scope in ("read", "actuals")}
    client = make_client(ledger="on", keys_file=tmp_path / "keys")

    def statuses(scope: str) -> list[int]:
        headers = {"x-api-key": made[scope]}
        return [
            client.post("/v1/actuals", json={"series": [came()]}, headers=headers).status_code,
            client.get("/v1/accuracy", headers=headers).status_code,
        ]

    assert statuses("actuals") == [200, 403]
    assert statuses("read") == [403, 200]
