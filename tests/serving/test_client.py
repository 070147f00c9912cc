"""The client against the real application, on 127.0.0.1 or in this process; and against answers that no server should give."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import uvicorn

from forecaster.bundle import artifact
from forecaster.client import AsyncClient, Client, Patience
from forecaster.client.transport import Reply, Silence
from forecaster.data.frames.panel import to_panel
from forecaster.errors import (
    AnswerTooLate,
    BadStamp,
    HistoryTooShort,
    InputError,
    KeyRefused,
    RequestRefused,
    SeriesRefused,
    ServiceBusy,
    ServiceError,
    ServiceNotReady,
    Unreachable,
)
from forecaster.prediction.predictor import Predictor
from pipelines.cli import main
from serving.asgi import auth
from serving.deployment.slot import Load, Release, Slot, load_bundle, publish, staging
from serving.routes import app
from serving.settings import Settings
from tests.factories import make_forecaster, make_spec, wave
from tests.serving.conftest import load_stub, publish_stub

AT_ONCE = Patience(retries=2, first_s=0.0)


def frame(*names: str, steps: int = 30, **columns: Any) -> pd.DataFrame:
    stamps = pd.date_range("2026-01-01", periods=steps, freq="h")
    each = [
        pd.DataFrame({"unique_id": name, "ds": stamps, "y": wave(steps, seed=n), **columns})
        for n, name in enumerate(names)
    ]
    return pd.concat(each, ignore_index=True)


Serve = Callable[..., str]


@pytest.fixture
def serve(slot_folder: Path) -> Iterator[Serve]:
    """Starts a server of the real application on 127.0.0.1; answers its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(*, load: Load = load_stub, **fields: Any) -> str:
        settings = Settings(slot=slot_folder, reload_s=0.05, **fields)
        slot = Slot(slot_folder, load=load, reload_s=settings.reload_s)
        slot.check()
        server = uvicorn.Server(uvicorn.Config(app.build(settings, slot=slot).app, log_config=None, lifespan="on"))
        door = socket.socket()
        door.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.005)
        return f"http://127.0.0.1:{door.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


def publish_real(slot: Path, **fields: Any) -> Predictor:
    """A network of random weights in the slot, and its Predictor."""
    forecaster = make_forecaster(make_spec(**fields))
    with staging(slot) as draft:
        digest = artifact.save(forecaster, draft / "bundle", card="")
        publish(slot, draft / "bundle", Release(name="small", version="1", digest=digest))
    return Predictor(forecaster)


def test_a_frame_comes_back_as_its_forecast(slot_folder: Path, serve: Serve) -> None:
    publish_stub(slot_folder)
    with Client(serve()) as client:
        assert client.ready()
        found = client.forecast(frame("a", "b"), 3, levels=(0.9, 0.1))
        assert client.model()["model"]["name"] == "stub"
    assert list(found.columns) == ["unique_id", "ds", "mean", "0.1", "0.9"]
    assert found["unique_id"].tolist() == ["a"] * 3 + ["b"] * 3
    assert found["ds"].tolist() == 2 * pd.date_range("2026-01-02 06:00", periods=3, freq="h").tolist()
    np.testing.assert_allclose(found["mean"][:3], wave(30)[-1])
    np.testing.assert_allclose(found["0.9"] - found["mean"], 0.9)


def test_the_asynchronous_client_says_the_same(slot_folder: Path, serve: Serve) -> None:
    publish_stub(slot_folder)
    url = serve()

    async def asked() -> tuple[pd.DataFrame, bool, dict[str, Any]]:
        async with AsyncClient(url) as client:
            both = await asyncio.gather(client.forecast(frame("a"), 3, levels=[0.5]), client.forecast(frame("b"), 3))
            return both[0], await client.ready(), await client.model()

    found, ready, model = asyncio.run(asked())
    with Client(url) as client:
        pd.testing.assert_frame_equal(found, client.forecast(frame("a"), 3, levels=[0.5]))
        assert (ready, model["model"]) == (True, client.model()["model"])


def test_covariates_static_columns_and_channels_travel_and_the_forecast_is_that_of_the_library(
    slot_folder: Path, serve: Serve
) -> None:
    predictor = publish_real(slot_folder, channels=["temperature"], decoder="direct")
    whole = frame("a", "b", temperature=wave(30, seed=9), ignored="text")
    with Client(serve(load=load_bundle)) as client:
        found = client.forecast(whole)
    panel = to_panel(whole, channels=["temperature"])
    expected = [predictor.forecast(one, 5).mean for one in panel.series]
    np.testing.assert_allclose(found["mean"], np.concatenate(expected), rtol=1e-6)


def test_stamps_come_back_in_the_zone_of_the_frame_over_a_clock_change(slot_folder: Path, serve: Serve) -> None:
    publish_stub(slot_folder, freq="D")
    days = pd.date_range("2026-03-20", periods=8, freq="D", tz="Europe/Berlin")
    with Client(serve()) as client:
        found = client.forecast(pd.DataFrame({"unique_id": "a", "ds": days, "y": 1.0}), 4)
    assert found["ds"].tolist() == pd.date_range("2026-03-28", periods=4, freq="D", tz="Europe/Berlin").tolist()


def test_a_frequency_that_is_not_certain_is_the_models(slot_folder: Path, serve: Serve) -> None:
    publish_stub(slot_folder, freq="D")
    gappy = frame("a", steps=4).assign(ds=pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-04", "2026-01-09"]))
    with Client(serve()) as client:
        assert client.forecast(gappy, 1)["ds"].tolist() == [pd.Timestamp("2026-01-10")]


def test_errors_of_single_series_are_raised_together_or_returned(slot_folder: Path, serve: Serve) -> None:
    publish_stub(slot_folder)
    mixed = pd.concat([frame("a"), frame("short", "shorter", steps=2), frame("b")])
    with Client(serve()) as client:
        with pytest.raises(SeriesRefused, match="2 of 4 series have no forecast") as caught:
            client.forecast(mixed, 2)
        assert [type(fault) for fault in caught.value.faults] == [HistoryTooShort, HistoryTooShort]
        found = client.forecast(mixed, 2, errors="return")
        assert found.table["unique_id"].unique().tolist() == ["a", "b"]
        assert {name: fault.code for name, fault in found.faults.items()} == dict.fromkeys(
            ("short", "shorter"), "history_too_short"
        )
        alone = client.forecast(frame("short", steps=2), 2, errors="return", freq="h")
        assert isinstance(alone.faults["short"], HistoryTooShort)
        assert list(alone.table.columns) == ["unique_id", "ds", "mean"]


def test_a_frame_that_cannot_be_used_is_refused_here(slot_folder: Path) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(BadStamp):
        client.forecast(pd.DataFrame({"unique_id": "a", "ds": ["never"], "y": 1.0}), 2)


@pytest.mark.parametrize(
    "limits", [{"max_series": 3}, {"max_values": 100}, {"max_answer": 50}, {"max_body": 2000}, {"max_series": 1}]
)
def test_large_frames_are_asked_in_parts_that_the_server_takes(
    slot_folder: Path, serve: Serve, limits: dict[str, int]
) -> None:
    publish_stub(slot_folder)
    names = [f"s{number}" for number in range(11)]
    with Client(serve(**limits)) as client:
        found = client.forecast(frame(*names), 10)
    assert found["unique_id"].tolist() == [name for name in names for _ in range(10)]
    np.testing.assert_allclose(found["mean"][::10], [wave(30, seed=seed)[-1] for seed in range(11)])


def test_one_series_that_is_too_much_is_told(slot_folder: Path, serve: Serve) -> None:
    publish_stub(slot_folder)
    with Client(serve(max_history=20)) as client, pytest.raises(RequestRefused) as caught:
        client.forecast(frame("a", "b"), 10)
    told = caught.value
    assert (told.code, told.status, told.where, told.exit_code) == ("history_too_long", 422, "series.0.y", 2)
    assert told.request_id


def test_a_key_lets_in_and_is_shown_nowhere(slot_folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_stub(slot_folder)
    key = auth.new("shop", ["read"], slot_folder.parent / "keys")
    url = serve(keys_file=slot_folder.parent / "keys")
    monkeypatch.setenv("FORECASTER_KEY", key)
    with Client(url) as client:
        assert len(client.forecast(frame("a"), 2)) == 2
        assert key not in repr(client) + str(vars(client)) + repr(client._http.headers)
    with Client(url, "fck_wrong") as client, pytest.raises(KeyRefused) as caught:
        client.model()
    assert (caught.value.code, caught.value.status) == ("unauthorized", 401)
    assert "fck_wrong" not in str(caught.value)
    with pytest.raises(InputError) as refused:
        Client(url, "se cret\n")
    assert "se cret" not in str(refused.value)


@pytest.mark.parametrize("url", ["127.0.0.1:3000", "ftp://a", "http://", "http://me:secret@host"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="address") as caught:
        Client(url)
    assert "secret" not in str(caught.value)


def test_without_a_model_and_without_a_server_there_is_no_answer(slot_folder: Path, serve: Serve) -> None:
    with Client(serve(), patience=AT_ONCE) as client:
        assert not client.ready()
        with pytest.raises(ServiceNotReady):
            client.forecast(frame("a"), 2)
    with Client("http://127.0.0.1:9", patience=AT_ONCE) as client:
        assert not client.ready()
        with pytest.raises(Unreachable):
            client.model()


def answering(*answers: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A transport that gives these one after the other, and what it was asked."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        one = answers[min(len(asked), len(answers)) - 1]
        if isinstance(one, Exception):
            raise one
        return one

    return httpx.MockTransport(answer), asked


def said(status: int, code: str = "x") -> httpx.Response:
    error = {"code": code, "message": f"no: {code}", "where": None}
    return httpx.Response(status, json={"error": error}, headers={"x-request-id": "r1"})


GOOD = httpx.Response(200, json={"model": {}})


@pytest.mark.parametrize(
    "lost",
    [said(429), said(503), httpx.ConnectError("refused"), httpx.ReadError("cut"), httpx.RemoteProtocolError("cut")],
)
def test_what_was_sent_away_or_lost_is_asked_again(lost: httpx.Response | Exception) -> None:
    transport, asked = answering(lost, lost, GOOD)
    with Client("http://service", patience=AT_ONCE, transport=transport) as client:
        assert client.model() == {"model": {}}
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("final", "kind"),
    [
        (said(400), RequestRefused),
        (said(422), RequestRefused),
        (said(500), ServiceError),
        (said(504), AnswerTooLate),
        (httpx.ReadTimeout("slow"), AnswerTooLate),
        (httpx.Response(302, headers={"location": "http://elsewhere"}), ServiceError),
        (httpx.Response(502, text="<html>bad gateway</html>"), ServiceError),
        (httpx.Response(200, text="<html>hello</html>"), ServiceError),
    ],
)
def test_nothing_else_is_asked_again(final: httpx.Response | Exception, kind: type[ServiceError]) -> None:
    transport, asked = answering(final)
    with Client("http://service", patience=AT_ONCE, transport=transport) as client, pytest.raises(kind) as caught:
        client.model()
    assert len(asked) == 1
    assert type(caught.value) is kind


def test_patience_ends_with_the_last_answer() -> None:
    transport, asked = answering(said(429, "too_many_requests"))
    with (
        Client("http://service", patience=AT_ONCE, transport=transport) as client,
        pytest.raises(ServiceBusy) as caught,
    ):
        client.model()
    assert len(asked) == 3
    assert (caught.value.code, caught.value.request_id) == ("too_many_requests", "r1")


def test_pauses_grow_and_heed_what_the_service_asks_for() -> None:
    patience = Patience(retries=3, first_s=0.5, longest_s=60)
    own = [patience.pause(made, Silence("lost", late=False)) for made in (1, 2, 3)]
    for pause, least in zip(own, (0.5, 1.0, 2.0), strict=True):
        assert pause is not None
        assert least <= pause <= 1.25 * least
    assert patience.pause(4, Silence("lost", late=False)) is None
    assert patience.pause(1, Silence("slow", late=True)) is None
    asked = patience.pause(1, Reply(429, {"retry-after": "7"}, b""))
    assert asked is not None
    assert 7 <= asked <= 8.75
    moment = patience.pause(1, Reply(503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""))
    assert moment is not None
    assert moment <= 0.625, "that was long ago"
    assert patience.pause(1, Reply(503, {"retry-after": "3600"}, b"")) is None
    odd = patience.pause(1, Reply(429, {"retry-after": "nan"}, b""))
    assert odd is not None
    assert odd <= 0.625


@pytest.mark.parametrize("content", ["[]", "{}", '{"columns": {}, "model": {}}', '{"columns": null, "model": {}}'])
def test_an_answer_of_another_shape_is_told(content: str) -> None:
    transport, _ = answering(httpx.Response(200, text=content))
    with Client("http://service", transport=transport) as client, pytest.raises(ServiceError, match="another shape"):
        client.forecast(frame("a"), 2)


def test_what_is_sent_is_strict_json_with_a_deadline() -> None:
    transport, asked = answering(said(422))
    holed = frame("a")
    holed.loc[3, "y"] = np.nan
    with Client("http://service/under/", timeout=2.5, transport=transport) as client, pytest.raises(RequestRefused):
        client.forecast(holed, 2)
    assert str(asked[0].url) == "http://service/under/v1/forecast"
    sent = json.loads(asked[0].content)
    assert (sent["deadline_ms"], sent["columns"]["y"][0][3], sent["columns"]["freq"]) == (2500, None, "h")


def test_the_client_brings_no_torch_and_needs_no_httpx_to_be_imported() -> None:
    program = (
        "import sys, forecaster.client\n"
        "found = {'torch', 'httpx', 'onnxruntime', 'pytorch_lightning'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(found)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


def test_the_command_line_says_the_same_of_a_service_as_of_a_bundle(
    slot_folder: Path, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_real(slot_folder, base="last")
    table, short = tmp_path / "data.csv", frame("short", steps=2)
    pd.concat([frame("a", "b"), short]).to_csv(table, index=False)
    told = []
    url = serve(load=load_bundle)
    for source in ([str(slot_folder / "current" / "bundle"), str(table)], [str(table), "--url", url]):
        assert run("forecast", *source, "--plot", str(tmp_path / f"{len(told)}.png")) == 0
        told.append(capsys.readouterr())
    here, there = (pd.read_csv(StringIO(one.out)) for one in told)
    pd.testing.assert_frame_equal(here, there)  # a server's engine may be another: the last digits differ
    assert told[0].err == told[1].err
    assert "1 of 3 series have no forecast" in told[1].err
    assert len(here) == 10
    assert min((tmp_path / f"{n}.png").stat().st_size for n in (0, 1)) > 10_000
    assert run("forecast", str(table)) == 2
    assert run("forecast", "--url", url) == 2
    assert run("forecast") == 2
    assert run("forecast", "model", str(table), "--url", url) == 2
    assert run("forecast", str(table), "--url", "http://127.0.0.1:9") == 1
