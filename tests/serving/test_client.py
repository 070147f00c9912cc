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
from forecaster.client import AsyncClient, Client, RetryPolicy
from forecaster.client.transport import HttpResponse, NoResponse
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
from serving.deployment.slot import LoadPredictor, Release, Slot, load_bundle, publish, staging
from serving.routes import app
from serving.settings import Settings
from tests.factories import make_forecaster, make_spec, make_wave
from tests.serving.conftest import load_stub, publish_stub

pytestmark = pytest.mark.integration

IMMEDIATE_RETRY = RetryPolicy(retries=2, initial_delay_s=0.0)


def make_frame(*names: str, steps: int = 30, **columns: Any) -> pd.DataFrame:
    stamps = pd.date_range("2026-01-01", periods=steps, freq="h")
    each = [
        pd.DataFrame({"unique_id": name, "ds": stamps, "y": make_wave(steps, seed=n), **columns})
        for n, name in enumerate(names)
    ]
    return pd.concat(each, ignore_index=True)


StartServer = Callable[..., str]


@pytest.fixture
def start_server(slot_folder: Path) -> Iterator[StartServer]:
    """Starts a server of the real application on 127.0.0.1; answers its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(*, load: LoadPredictor = load_stub, **fields: Any) -> str:
        settings = Settings(slot=slot_folder, reload_s=0.05, **fields)
        slot = Slot(slot_folder, load=load, reload_s=settings.reload_s)
        slot.reload_if_changed()
        server = uvicorn.Server(
            uvicorn.Config(app.build_application(settings, slot=slot).app, log_config=None, lifespan="on")
        )
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


def publish_random_model(slot: Path, **fields: Any) -> Predictor:
    """A network of random weights in the slot, and its Predictor."""
    forecaster = make_forecaster(make_spec(**fields))
    with staging(slot) as draft:
        digest = artifact.save_bundle(forecaster, draft / "bundle", card="")
        publish(slot, draft / "bundle", Release(name="small", version="1", digest=digest))
    return Predictor(forecaster)


def test_a_frame_is_forecast(slot_folder: Path, start_server: StartServer) -> None:
    publish_stub(slot_folder)
    with Client(start_server()) as client:
        assert client.is_ready()
        found = client.forecast(make_frame("a", "b"), 3, levels=(0.9, 0.1))
        assert client.get_model()["model"]["name"] == "stub"
    assert list(found.columns) == ["unique_id", "ds", "mean", "0.1", "0.9"]
    assert found["unique_id"].tolist() == ["a"] * 3 + ["b"] * 3
    assert found["ds"].tolist() == 2 * pd.date_range("2026-01-02 06:00", periods=3, freq="h").tolist()
    np.testing.assert_allclose(found["mean"][:3], make_wave(30)[-1])
    np.testing.assert_allclose(found["0.9"] - found["mean"], 0.9)


def test_the_async_client_gives_the_same_result(slot_folder: Path, start_server: StartServer) -> None:
    publish_stub(slot_folder)
    url = start_server()

    async def asked() -> tuple[pd.DataFrame, bool, dict[str, Any]]:
        async with AsyncClient(url) as client:
            both = await asyncio.gather(
                client.forecast(make_frame("a"), 3, levels=[0.5]), client.forecast(make_frame("b"), 3)
            )
            return both[0], await client.is_ready(), await client.get_model()

    found, ready, model = asyncio.run(asked())
    with Client(url) as client:
        pd.testing.assert_frame_equal(found, client.forecast(make_frame("a"), 3, levels=[0.5]))
        assert (ready, model["model"]) == (True, client.get_model()["model"])


def test_covariates_static_features_and_channels_are_sent_and_the_forecast_equals_the_library(
    slot_folder: Path, start_server: StartServer
) -> None:
    predictor = publish_random_model(slot_folder, channels=["temperature"], decoder="direct")
    whole = make_frame("a", "b", temperature=make_wave(30, seed=9), ignored="text")
    with Client(start_server(load=load_bundle)) as client:
        found = client.forecast(whole)
    panel = to_panel(whole, channels=["temperature"])
    expected = [predictor.forecast(one, 5).mean for one in panel.series]
    np.testing.assert_allclose(found["mean"], np.concatenate(expected), rtol=1e-6)


def test_timestamps_keep_the_zone_of_the_frame_across_a_clock_change(
    slot_folder: Path, start_server: StartServer
) -> None:
    publish_stub(slot_folder, freq="D")
    days = pd.date_range("2026-03-20", periods=8, freq="D", tz="Europe/Berlin")
    with Client(start_server()) as client:
        found = client.forecast(pd.DataFrame({"unique_id": "a", "ds": days, "y": 1.0}), 4)
    assert found["ds"].tolist() == pd.date_range("2026-03-28", periods=4, freq="D", tz="Europe/Berlin").tolist()


def test_an_ambiguous_frequency_is_taken_from_the_model(slot_folder: Path, start_server: StartServer) -> None:
    publish_stub(slot_folder, freq="D")
    gappy = make_frame("a", steps=4).assign(ds=pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-04", "2026-01-09"]))
    with Client(start_server()) as client:
        assert client.forecast(gappy, 1)["ds"].tolist() == [pd.Timestamp("2026-01-10")]


def test_errors_of_single_series_are_raised_together_or_returned(slot_folder: Path, start_server: StartServer) -> None:
    publish_stub(slot_folder)
    mixed = pd.concat([make_frame("a"), make_frame("short", "shorter", steps=2), make_frame("b")])
    with Client(start_server()) as client:
        with pytest.raises(SeriesRefused, match="2 of 4 series have no forecast") as caught:
            client.forecast(mixed, 2)
        assert [type(fault) for fault in caught.value.errors] == [HistoryTooShort, HistoryTooShort]
        found = client.forecast(mixed, 2, errors="return")
        assert found.table["unique_id"].unique().tolist() == ["a", "b"]
        assert {name: fault.code for name, fault in found.errors.items()} == dict.fromkeys(
            ("short", "shorter"), "history_too_short"
        )
        alone = client.forecast(make_frame("short", steps=2), 2, errors="return", freq="h")
        assert isinstance(alone.errors["short"], HistoryTooShort)
        assert list(alone.table.columns) == ["unique_id", "ds", "mean"]


def test_an_invalid_frame_is_rejected_by_the_client(slot_folder: Path) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(BadStamp):
        client.forecast(pd.DataFrame({"unique_id": "a", "ds": ["never"], "y": 1.0}), 2)


@pytest.mark.parametrize(
    "limits", [{"max_series": 3}, {"max_values": 100}, {"max_answer": 50}, {"max_body": 2000}, {"max_series": 1}]
)
def test_large_frames_are_split_into_batches_within_the_server_limits(
    slot_folder: Path, start_server: StartServer, limits: dict[str, int]
) -> None:
    publish_stub(slot_folder)
    names = [f"s{number}" for number in range(11)]
    with Client(start_server(**limits)) as client:
        found = client.forecast(make_frame(*names), 10)
    assert found["unique_id"].tolist() == [name for name in names for _ in range(10)]
    np.testing.assert_allclose(found["mean"][::10], [make_wave(30, seed=seed)[-1] for seed in range(11)])


def test_a_single_series_above_the_limits_is_reported(slot_folder: Path, start_server: StartServer) -> None:
    publish_stub(slot_folder)
    with Client(start_server(max_history=20)) as client, pytest.raises(RequestRefused) as caught:
        client.forecast(make_frame("a", "b"), 10)
    told = caught.value
    assert (told.code, told.status, told.where, told.exit_code) == ("history_too_long", 422, "series.0.y", 2)
    assert told.request_id


def test_a_key_is_accepted_and_never_shown(
    slot_folder: Path, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_stub(slot_folder)
    key = auth.create_key("shop", ["read"], slot_folder.parent / "keys")
    url = start_server(keys_file=slot_folder.parent / "keys")
    monkeypatch.setenv("FORECASTER_KEY", key)
    with Client(url) as client:
        assert len(client.forecast(make_frame("a"), 2)) == 2
        assert key not in repr(client) + str(vars(client)) + repr(client._http.headers)
    with Client(url, "fck_wrong") as client, pytest.raises(KeyRefused) as caught:
        client.get_model()
    assert (caught.value.code, caught.value.status) == ("unauthorized", 401)
    assert "fck_wrong" not in str(caught.value)
    with pytest.raises(InputError) as refused:
        Client(url, "se cret\n")
    assert "se cret" not in str(refused.value)


@pytest.mark.parametrize("url", ["127.0.0.1:3000", "ftp://a", "http://", "http://me:secret@host"])
def test_an_invalid_url_is_rejected(url: str) -> None:
    with pytest.raises(InputError, match="address") as caught:
        Client(url)
    assert "secret" not in str(caught.value)


def test_without_a_model_or_a_server_the_client_raises(slot_folder: Path, start_server: StartServer) -> None:
    with Client(start_server(), retry_policy=IMMEDIATE_RETRY) as client:
        assert not client.is_ready()
        with pytest.raises(ServiceNotReady):
            client.forecast(make_frame("a"), 2)
    with Client("http://127.0.0.1:9", retry_policy=IMMEDIATE_RETRY) as client:
        assert not client.is_ready()
        with pytest.raises(Unreachable):
            client.get_model()


def recording_transport(*responses: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A transport that gives these one after the other, and what it was asked."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        one = responses[min(len(asked), len(responses)) - 1]
        if isinstance(one, Exception):
            raise one
        return one

    return httpx.MockTransport(answer), asked


def error_response(status: int, code: str = "x") -> httpx.Response:
    error = {"code": code, "message": f"no: {code}", "where": None}
    return httpx.Response(status, json={"error": error}, headers={"x-request-id": "r1"})


GOOD_RESPONSE = httpx.Response(200, json={"model": {}})


@pytest.mark.parametrize(
    "failure",
    [
        error_response(429),
        error_response(503),
        httpx.ConnectError("refused"),
        httpx.ReadError("cut"),
        httpx.RemoteProtocolError("cut"),
    ],
)
def test_rejected_or_lost_requests_are_retried(failure: httpx.Response | Exception) -> None:
    transport, asked = recording_transport(failure, failure, GOOD_RESPONSE)
    with Client("http://service", retry_policy=IMMEDIATE_RETRY, transport=transport) as client:
        assert client.get_model() == {"model": {}}
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("final", "kind"),
    [
        (error_response(400), RequestRefused),
        (error_response(422), RequestRefused),
        (error_response(500), ServiceError),
        (error_response(504), AnswerTooLate),
        (httpx.ReadTimeout("slow"), AnswerTooLate),
        (httpx.Response(302, headers={"location": "http://elsewhere"}), ServiceError),
        (httpx.Response(502, text="<html>bad gateway</html>"), ServiceError),
        (httpx.Response(200, text="<html>hello</html>"), ServiceError),
    ],
)
def test_other_errors_are_not_retried(final: httpx.Response | Exception, kind: type[ServiceError]) -> None:
    transport, asked = recording_transport(final)
    with (
        Client("http://service", retry_policy=IMMEDIATE_RETRY, transport=transport) as client,
        pytest.raises(kind) as caught,
    ):
        client.get_model()
    assert len(asked) == 1
    assert type(caught.value) is kind


def test_exhausted_retries_raise_the_last_error() -> None:
    transport, asked = recording_transport(error_response(429, "too_many_requests"))
    with (
        Client("http://service", retry_policy=IMMEDIATE_RETRY, transport=transport) as client,
        pytest.raises(ServiceBusy) as caught,
    ):
        client.get_model()
    assert len(asked) == 3
    assert (caught.value.code, caught.value.request_id) == ("too_many_requests", "r1")


def test_retry_delays_grow_and_respect_retry_after() -> None:
    patience = RetryPolicy(retries=3, initial_delay_s=0.5, max_delay_s=60)
    own = [patience.delay_before_retry(made, NoResponse("lost", timed_out=False)) for made in (1, 2, 3)]
    for pause, least in zip(own, (0.5, 1.0, 2.0), strict=True):
        assert pause is not None
        assert least <= pause <= 1.25 * least
    assert patience.delay_before_retry(4, NoResponse("lost", timed_out=False)) is None
    assert patience.delay_before_retry(1, NoResponse("slow", timed_out=True)) is None
    asked = patience.delay_before_retry(1, HttpResponse(429, {"retry-after": "7"}, b""))
    assert asked is not None
    assert 7 <= asked <= 8.75
    moment = patience.delay_before_retry(1, HttpResponse(503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""))
    assert moment is not None
    assert moment <= 0.625, "that was long ago"
    assert patience.delay_before_retry(1, HttpResponse(503, {"retry-after": "3600"}, b"")) is None
    odd = patience.delay_before_retry(1, HttpResponse(429, {"retry-after": "nan"}, b""))
    assert odd is not None
    assert odd <= 0.625


@pytest.mark.parametrize("content", ["[]", "{}", '{"columns": {}, "model": {}}', '{"columns": null, "model": {}}'])
def test_a_malformed_response_is_reported(content: str) -> None:
    transport, _ = recording_transport(httpx.Response(200, text=content))
    with Client("http://service", transport=transport) as client, pytest.raises(ServiceError, match="another shape"):
        client.forecast(make_frame("a"), 2)


def test_requests_are_strict_json_with_a_deadline() -> None:
    transport, asked = recording_transport(error_response(422))
    holed = make_frame("a")
    holed.loc[3, "y"] = np.nan
    with Client("http://service/under/", timeout=2.5, transport=transport) as client, pytest.raises(RequestRefused):
        client.forecast(holed, 2)
    assert str(asked[0].url) == "http://service/under/v1/forecast"
    sent = json.loads(asked[0].content)
    assert (sent["deadline_ms"], sent["columns"]["y"][0][3], sent["columns"]["freq"]) == (2500, None, "h")


def test_the_client_imports_neither_torch_nor_httpx() -> None:
    program = (
        "import sys, forecaster.client\n"
        "found = {'torch', 'httpx', 'onnxruntime', 'pytorch_lightning'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(found)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def run_command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


def test_the_command_line_gives_the_same_forecast_from_a_service_as_from_a_bundle(
    slot_folder: Path, start_server: StartServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_random_model(slot_folder, base="last")
    table, short = tmp_path / "data.csv", make_frame("short", steps=2)
    pd.concat([make_frame("a", "b"), short]).to_csv(table, index=False)
    told = []
    url = start_server(load=load_bundle)
    for source in ([str(slot_folder / "current" / "bundle"), str(table)], [str(table), "--url", url]):
        assert run_command("forecast", *source, "--plot", str(tmp_path / f"{len(told)}.png")) == 0
        told.append(capsys.readouterr())
    here, there = (pd.read_csv(StringIO(one.out)) for one in told)
    pd.testing.assert_frame_equal(here, there)  # a server's engine may be another: the last digits differ
    assert told[0].err == told[1].err
    assert "1 of 3 series have no forecast" in told[1].err
    assert len(here) == 10
    assert min((tmp_path / f"{n}.png").stat().st_size for n in (0, 1)) > 10_000
    assert run_command("forecast", str(table)) == 2
    assert run_command("forecast", "--url", url) == 2
    assert run_command("forecast") == 2
    assert run_command("forecast", "model", str(table), "--url", url) == 2
    assert run_command("forecast", str(table), "--url", "http://127.0.0.1:9") == 1
