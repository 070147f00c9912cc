"""The client against the real application, over TCP; and against scripted, also malformed, responses."""

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
from forecaster.client import AsyncClient, Client, ColumnNames, RetryPolicy
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
from forecaster.explain.attribution import explain
from forecaster.prediction.predictor import Predictor
from pipelines.cli import main
from serving.asgi import auth
from serving.deployment.releases import Release, publish, staging
from serving.deployment.slot import LoadPredictor, Slot, load_bundle
from serving.routes import app
from serving.settings import Settings
from tests.factories import make_fitted_model, make_series, make_spec, make_wave
from tests.serving.conftest import load_stub, publish_stub

pytestmark = pytest.mark.integration

IMMEDIATE_RETRY = RetryPolicy(retries=2, initial_delay_s=0.0)


def make_frame(*names: str, steps: int = 30, **columns: Any) -> pd.DataFrame:
    timestamps = pd.date_range("2026-01-01", periods=steps, freq="h")
    frames = [
        pd.DataFrame({"unique_id": name, "ds": timestamps, "y": make_wave(steps, seed=seed), **columns})
        for seed, name in enumerate(names)
    ]
    return pd.concat(frames, ignore_index=True)


StartServer = Callable[..., str]


@pytest.fixture
def start_server(slot_folder: Path) -> Iterator[StartServer]:
    """Starts a server of the real application on 127.0.0.1 and returns its URL."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(*, load: LoadPredictor = load_stub, **fields: Any) -> str:
        settings = Settings(slot=slot_folder, reload_s=0.05, **fields)
        slot = Slot(slot_folder, load=load, reload_s=settings.reload_s)
        slot.reload_if_changed()
        server = uvicorn.Server(
            uvicorn.Config(app.build_application(settings, slot=slot).app, log_config=None, lifespan="on")
        )
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.005)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


def publish_random_model(slot: Path, **fields: Any) -> Predictor:
    """Publishes a network of random weights in the slot, and returns its Predictor."""
    model = make_fitted_model(make_spec(**fields))
    with staging(slot) as draft:
        digest = artifact.save_bundle(model, draft / "bundle", card="")
        publish(slot, draft / "bundle", Release(name="small", version="1", digest=digest))
    return Predictor(model)


def test_a_frame_is_forecast(slot_folder: Path, start_server: StartServer) -> None:
    publish_stub(slot_folder)
    with Client(start_server()) as client:
        assert client.is_ready()
        table = client.forecast(make_frame("a", "b"), 3, levels=(0.9, 0.1))
        assert client.get_model()["model"]["name"] == "stub"
    assert list(table.columns) == ["unique_id", "ds", "mean", "0.1", "0.9"]
    assert table["unique_id"].tolist() == ["a"] * 3 + ["b"] * 3
    assert table["ds"].tolist() == 2 * pd.date_range("2026-01-02 06:00", periods=3, freq="h").tolist()
    np.testing.assert_allclose(table["mean"][:3], make_wave(30)[-1])
    np.testing.assert_allclose(table["0.9"] - table["mean"], 0.9)


def test_a_frame_with_other_column_names_is_forecast(slot_folder: Path, start_server: StartServer) -> None:
    publish_stub(slot_folder)
    frame = make_frame("a", "b")
    renamed = frame.rename(columns={"unique_id": "shop", "ds": "hour", "y": "visitors"})
    with Client(start_server()) as client:
        table = client.forecast(renamed, 3, columns=ColumnNames("shop", "hour", "visitors"))
        pd.testing.assert_frame_equal(table, client.forecast(frame, 3))


def test_the_async_client_gives_the_same_result(slot_folder: Path, start_server: StartServer) -> None:
    publish_stub(slot_folder)
    url = start_server()

    async def request_all() -> tuple[pd.DataFrame, bool, dict[str, Any]]:
        async with AsyncClient(url) as client:
            partial = await client.forecast_partial(make_frame("short", steps=2), 2, freq="h")
            assert isinstance(partial.errors["short"], HistoryTooShort)
            tables = await asyncio.gather(
                client.forecast(make_frame("a"), 3, levels=[0.5]), client.forecast(make_frame("b"), 3)
            )
            return tables[0], await client.is_ready(), await client.get_model()

    table, ready, model = asyncio.run(request_all())
    with Client(url) as client:
        pd.testing.assert_frame_equal(table, client.forecast(make_frame("a"), 3, levels=[0.5]))
        assert (ready, model["model"]) == (True, client.get_model()["model"])


def test_both_clients_return_the_explanation_of_the_library(slot_folder: Path, start_server: StartServer) -> None:
    predictor, series = publish_random_model(slot_folder), make_series(make_wave(30))
    url = start_server(load=load_bundle)

    async def request_explanation() -> dict[str, Any]:
        async with AsyncClient(url) as client:
            return await client.explain(series, 3)

    with Client(url) as client:
        explanation = client.explain(series, 3, steps=12, faithfulness=True)
    expected = explain(predictor.fitted_model, series, horizon=3, steps=12, faithfulness=True)
    np.testing.assert_allclose(explanation["attribution"], expected.attribution, rtol=1e-4, atol=1e-6)
    assert expected.faithfulness is not None
    assert explanation["faithfulness"]["num_features"] == expected.faithfulness.num_features == 12
    assert asyncio.run(request_explanation())["faithfulness"] is None


def test_covariates_static_features_and_channels_are_sent_and_the_forecast_equals_the_library(
    slot_folder: Path, start_server: StartServer
) -> None:
    predictor = publish_random_model(slot_folder, channels=["temperature"], decoder="direct")
    frame = make_frame("a", "b", temperature=make_wave(30, seed=9), ignored="text")
    with Client(start_server(load=load_bundle)) as client:
        table = client.forecast(frame)
    panel = to_panel(frame, channels=["temperature"])
    expected = [predictor.forecast(series, 5).mean for series in panel.series]
    np.testing.assert_allclose(table["mean"], np.concatenate(expected), rtol=1e-6)


def test_timestamps_keep_the_zone_of_the_frame_across_a_clock_change(
    slot_folder: Path, start_server: StartServer
) -> None:
    publish_stub(slot_folder, freq="D")
    days = pd.date_range("2026-03-20", periods=8, freq="D", tz="Europe/Berlin")
    with Client(start_server()) as client:
        table = client.forecast(pd.DataFrame({"unique_id": "a", "ds": days, "y": 1.0}), 4)
    assert table["ds"].tolist() == pd.date_range("2026-03-28", periods=4, freq="D", tz="Europe/Berlin").tolist()


def test_an_ambiguous_frequency_is_taken_from_the_model(slot_folder: Path, start_server: StartServer) -> None:
    publish_stub(slot_folder, freq="D")
    gappy = make_frame("a", steps=4).assign(ds=pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-04", "2026-01-09"]))
    with Client(start_server()) as client:
        assert client.forecast(gappy, 1)["ds"].tolist() == [pd.Timestamp("2026-01-10")]


def test_errors_of_single_series_are_raised_together_or_returned(slot_folder: Path, start_server: StartServer) -> None:
    publish_stub(slot_folder)
    mixed = pd.concat([make_frame("a"), make_frame("short", "shorter", steps=2), make_frame("b")])
    with Client(start_server()) as client:
        with pytest.raises(SeriesRefused, match="2 of 4 series have no forecast") as raised:
            client.forecast(mixed, 2)
        assert [type(error) for error in raised.value.errors] == [HistoryTooShort, HistoryTooShort]
        result = client.forecast_partial(mixed, 2)
        assert result.table["unique_id"].unique().tolist() == ["a", "b"]
        assert {name: error.code for name, error in result.errors.items()} == dict.fromkeys(
            ("short", "shorter"), "history_too_short"
        )
        single = client.forecast_partial(make_frame("short", steps=2), 2, freq="h")
        assert isinstance(single.errors["short"], HistoryTooShort)
        assert list(single.table.columns) == ["unique_id", "ds", "mean"]


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
    names = [f"s{index:02}" for index in range(11)]  # in the order of the panel: sorted
    with Client(start_server(**limits)) as client:
        table = client.forecast(make_frame(*names), 10)
    assert table["unique_id"].tolist() == [name for name in names for _ in range(10)]
    np.testing.assert_allclose(table["mean"][::10], [make_wave(30, seed=seed)[-1] for seed in range(11)])


def test_a_single_series_above_the_limits_is_reported(slot_folder: Path, start_server: StartServer) -> None:
    publish_stub(slot_folder)
    with Client(start_server(max_history=20)) as client, pytest.raises(RequestRefused) as raised:
        client.forecast(make_frame("a", "b"), 10)
    error = raised.value
    assert (error.code, error.status, error.where, error.exit_code) == ("history_too_long", 422, "series.0.y", 2)
    assert error.request_id


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
    with Client(url, "fck_wrong") as client, pytest.raises(KeyRefused) as raised:
        client.get_model()
    assert (raised.value.code, raised.value.status) == ("unauthorized", 401)
    assert "fck_wrong" not in str(raised.value)
    with pytest.raises(InputError) as refused:
        Client(url, "se cret\n")
    assert "se cret" not in str(refused.value)


@pytest.mark.parametrize("url", ["127.0.0.1:3000", "ftp://a", "http://", "http://me:secret@host"])
def test_an_invalid_url_is_rejected(url: str) -> None:
    with pytest.raises(InputError, match="address") as raised:
        Client(url)
    assert "secret" not in str(raised.value)


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
    """Returns a transport that gives these responses in order, and the list of requests it received."""
    requests: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        response = responses[min(len(requests), len(responses)) - 1]
        if isinstance(response, Exception):
            raise response
        return response

    return httpx.MockTransport(respond), requests


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
    transport, requests = recording_transport(failure, failure, GOOD_RESPONSE)
    with Client("http://service", retry_policy=IMMEDIATE_RETRY, transport=transport) as client:
        assert client.get_model() == {"model": {}}
    assert len(requests) == 3


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
    transport, requests = recording_transport(final)
    with (
        Client("http://service", retry_policy=IMMEDIATE_RETRY, transport=transport) as client,
        pytest.raises(kind) as raised,
    ):
        client.get_model()
    assert len(requests) == 1
    assert type(raised.value) is kind


def test_exhausted_retries_raise_the_last_error() -> None:
    transport, requests = recording_transport(error_response(429, "too_many_requests"))
    with (
        Client("http://service", retry_policy=IMMEDIATE_RETRY, transport=transport) as client,
        pytest.raises(ServiceBusy) as raised,
    ):
        client.get_model()
    assert len(requests) == 3
    assert (raised.value.code, raised.value.request_id) == ("too_many_requests", "r1")


def test_retry_delays_grow_and_respect_retry_after() -> None:
    policy = RetryPolicy(retries=3, initial_delay_s=0.5, max_delay_s=60)
    delays = [policy.delay_before_retry(attempts, NoResponse("lost", timed_out=False)) for attempts in (1, 2, 3)]
    for delay, minimum in zip(delays, (0.5, 1.0, 2.0), strict=True):
        assert delay is not None
        assert minimum <= delay <= 1.25 * minimum
    assert policy.delay_before_retry(4, NoResponse("lost", timed_out=False)) is None
    assert policy.delay_before_retry(1, NoResponse("slow", timed_out=True)) is None
    requested_delay = policy.delay_before_retry(1, HttpResponse(429, {"retry-after": "7"}, b""))
    assert requested_delay is not None
    assert 7 <= requested_delay <= 8.75
    dated_delay = policy.delay_before_retry(1, HttpResponse(503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""))
    assert dated_delay is not None
    assert dated_delay <= 0.625, "the date is in the past"
    assert policy.delay_before_retry(1, HttpResponse(503, {"retry-after": "3600"}, b"")) is None
    invalid_delay = policy.delay_before_retry(1, HttpResponse(429, {"retry-after": "nan"}, b""))
    assert invalid_delay is not None
    assert invalid_delay <= 0.625


@pytest.mark.parametrize("content", ["[]", "{}", '{"forecasts": [], "model": {}}', '{"forecasts": null, "model": {}}'])
def test_a_malformed_response_is_reported(content: str) -> None:
    transport, _ = recording_transport(httpx.Response(200, text=content))
    with Client("http://service", transport=transport) as client, pytest.raises(ServiceError, match="another shape"):
        client.forecast(make_frame("a"), 2)


def test_requests_are_strict_json_with_a_deadline() -> None:
    transport, requests = recording_transport(error_response(422))
    gappy = make_frame("a")
    gappy.loc[3, "y"] = np.nan
    with Client("http://service/under/", timeout=2.5, transport=transport) as client, pytest.raises(RequestRefused):
        client.forecast(gappy, 2)
    assert str(requests[0].url) == "http://service/under/v1/forecast"
    body = json.loads(requests[0].content)
    assert (body["deadline_ms"], body["series"][0]["y"][3], body["series"][0]["freq"]) == (2500, None, "h")


def test_the_client_imports_neither_torch_nor_httpx() -> None:
    program = (
        "import sys, forecaster.client\n"
        "found = {'torch', 'httpx', 'onnxruntime', 'pytorch_lightning'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(found)) or 0)"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr


def run_command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(list(arguments))
    return int(exit_info.value.code or 0)


def test_the_command_line_gives_the_same_forecast_from_a_service_as_from_a_bundle(
    slot_folder: Path, start_server: StartServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_random_model(slot_folder, base="last")
    table, short = tmp_path / "data.csv", make_frame("short", steps=2)
    pd.concat([make_frame("a", "b"), short]).to_csv(table, index=False)
    outputs = []
    url = start_server(load=load_bundle)
    for source in ([str(slot_folder / "current" / "bundle"), str(table)], [str(table), "--url", url]):
        assert run_command("forecast", *source, "--plot", str(tmp_path / f"{len(outputs)}.png")) == 0
        outputs.append(capsys.readouterr())
    from_bundle, from_service = (pd.read_csv(StringIO(output.out)) for output in outputs)
    pd.testing.assert_frame_equal(
        from_bundle, from_service
    )  # the service may use another engine: the last digits differ
    assert outputs[0].err == outputs[1].err
    assert "1 of 3 series have no forecast" in outputs[1].err
    assert len(from_bundle) == 10
    assert min((tmp_path / f"{n}.png").stat().st_size for n in (0, 1)) > 10_000
    assert run_command("forecast", str(table)) == 0
    assert "pretrained network" in capsys.readouterr().err
    assert run_command("forecast", "--url", url) == 2
    assert run_command("forecast") == 2
    assert run_command("forecast", "model", str(table), "--url", url) == 2
    assert run_command("forecast", str(table), "--url", "http://127.0.0.1:9") == 1
