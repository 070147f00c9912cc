"""POST /v1/forecast of a model of symbols: symbols in and out, probabilities, draws, states, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.client import Client
from forecaster.data.symbols import decode_symbols, encode_symbols
from forecaster.prediction.predictor import Predictor
from forecaster.series import Series
from serving.deployment.releases import Release, publish, staging
from serving.deployment.slot import load_bundle
from tests.factories import START, make_fitted_model, make_spec
from tests.serving.conftest import AppClient, MakeClient, application_clients, publish_stub, series_payload

pytestmark = pytest.mark.integration

VOCABULARY = ("fail", "load", "run", "stop")
HISTORY = ["load", "run", "run", None, "stop", "load", "alarm", "run", "stop", "load"]
HORIZON = 5
PAYLOAD = {"id": "m1", "start": "2026-01-01T00:00:00", "freq": "h", "symbols": HISTORY}
MODEL = make_fitted_model(
    make_spec(
        name="machine",
        scaling="none",
        reads="history",
        horizon=HORIZON,
        head={"kind": "symbols", "vocabulary": VOCABULARY},
    ),
    seed=3,
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    """A client of an application that loaded the bundle of the model, as a worker does."""
    slot = tmp_path_factory.mktemp("symbols") / "slot"
    with staging(slot) as draft:
        digest = artifact.save_bundle(MODEL, draft / "bundle", card="")
        publish(slot, draft / "bundle", Release(name="machine", version="1", digest=digest))
    with application_clients(slot) as make:
        yield make(load=load_bundle, max_answer=1000)


def post(client: AppClient, payload: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
    return client.post("/v1/forecast", json={"series": [payload or PAYLOAD], "horizon": HORIZON, **options})


def forecast(client: AppClient, payload: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    response = post(client, payload, **options)
    assert response.status_code == 200, response.text
    outcome: dict[str, Any] = response.json()["forecasts"][0]
    return outcome


def make_history(symbols: list[str | None]) -> Series:
    return Series("m1", START, "h", encode_symbols(symbols, VOCABULARY))


def test_a_response_has_the_symbols_probabilities_and_samples_of_the_library(client: AppClient) -> None:
    outcome = forecast(client, probabilities=True, samples=3, seed=7, temperature=2.0)
    predictor, history = Predictor(MODEL), make_history(HISTORY)
    assert outcome["symbols"] == decode_symbols(predictor.forecast(history, HORIZON).mean, VOCABULARY)
    assert "mean" not in outcome
    [expected] = predictor.predict_probabilities([history], HORIZON)
    np.testing.assert_allclose([outcome["probabilities"][symbol] for symbol in VOCABULARY], expected.T, atol=1e-6)
    [paths] = predictor.sample_batch([history], HORIZON, paths=3, seed=7, temperature=2.0)
    assert outcome["samples"] == [decode_symbols(path, VOCABULARY) for path in paths]
    assert "1 of 9 symbols of the history are not in the vocabulary" in outcome["warnings"][0]


def test_a_state_continues_with_new_symbols(client: AppClient) -> None:
    state = forecast(client, {**PAYLOAD, "symbols": HISTORY[:6]}, return_state=True)["state"]
    continued = forecast(client, {"id": "m1", "state": state, "symbols": HISTORY[6:]}, probabilities=True)
    whole = forecast(client, probabilities=True)
    assert continued["symbols"] == whole["symbols"]
    assert continued["ds"] == whole["ds"]
    for symbol in VOCABULARY:
        np.testing.assert_allclose(continued["probabilities"][symbol], whole["probabilities"][symbol], atol=1e-5)


def test_ndjson_carries_symbols_and_arrow_refuses_them(client: AppClient) -> None:
    lines = [{"horizon": HORIZON}, PAYLOAD, {**PAYLOAD, "id": "m2", "symbols": ["run"] * 6}]
    body = "\n".join(json.dumps(line) for line in lines)
    response = client.post("/v1/forecast", content=body, headers={"content-type": "application/x-ndjson"})
    _, first, second, trailer = map(json.loads, response.text.splitlines())
    assert first["symbols"] == forecast(client)["symbols"]
    assert second["id"] == "m2"
    assert trailer == {"forecast": 2, "refused": 0}
    pa = pytest.importorskip("pyarrow")
    table = pa.table({name: [PAYLOAD[name]] for name in PAYLOAD}).replace_schema_metadata(
        {"forecast": '{"horizon": 2}'}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    refused = client.post(
        "/v1/forecast",
        content=sink.getvalue().to_pybytes(),
        headers={"content-type": "application/vnd.apache.arrow.stream"},
    )
    assert refused.status_code == 422
    assert "found `symbols`, which Arrow requests cannot carry" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("payload", "options", "code", "message"),
    [
        (
            {"symbols": None, "y": [1.0, 2.0, 3.0]},
            {},
            "not_a_symbol",
            "predicts symbols; series 'm1' has numbers in `y`",
        ),
        ({"y": [1.0]}, {}, "invalid_request", "Expected either `y` or `symbols`; found both"),
        ({"symbols": []}, {}, "history_too_short", "Expected at least one value"),
        ({"symbols": [1, 2]}, {}, "invalid_request", "symbols"),
        ({}, {"levels": [0.9]}, "level_out_of_range", "predicts symbols, which have no intervals"),
        ({}, {"samples": 1, "temperature": 0.0}, "invalid_request", "temperature"),
        ({}, {"probabilities": True, "horizon": 300}, "answer_too_large", "probabilities of 4 symbols at 300 steps"),
    ],
)
def test_an_invalid_request_to_a_model_of_symbols_is_refused(
    client: AppClient, payload: dict[str, Any], options: dict[str, Any], code: str, message: str
) -> None:
    response = post(client, {**PAYLOAD, **payload}, **options)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["code"] == code
    assert message in error["message"]


def test_a_model_of_numbers_refuses_symbols_and_their_options(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    numbers = make_client()
    response = post(numbers)
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "not_a_number"
    assert "Expected numbers in `y`" in response.json()["error"]["message"]
    for options in ({"probabilities": True}, {"temperature": 0.5}):
        response = post(numbers, series_payload(), **options)
        assert response.status_code == 422
        assert "Expected a model of symbols for `" in response.json()["error"]["message"]


def test_routes_for_numbers_refuse_a_model_of_symbols(client: AppClient) -> None:
    requests = {
        "/v1/backtest": {"series": [PAYLOAD], "horizon": 2},
        "/v1/explain": {"series": PAYLOAD},
        "/v1/scenarios": {"series": PAYLOAD, "scenarios": [{"name": "a", "covariates": {"x": [1]}}], "horizon": 1},
        "/invocations": {"instances": [{"start": "2026-01-01 00:00:00", "target": [1, 2, 3, 4]}]},
    }
    for path, request in requests.items():
        response = client.post(path, json=request)
        assert response.status_code == 422, path
        assert "symbols" in response.json()["error"]["message"]


def test_the_scoring_protocol_of_mlflow_and_the_client_read_and_return_symbols(client: AppClient) -> None:
    ds = pd.date_range("2026-01-01", periods=len(HISTORY), freq="h")
    frame = pd.DataFrame({"unique_id": "m1", "ds": ds, "y": HISTORY})
    expected = forecast(client)["symbols"]
    rows = [["m1", str(at), symbol] for at, symbol in zip(ds, HISTORY, strict=True)]
    split = {"columns": ["unique_id", "ds", "y"], "data": rows}
    response = client.post("/invocations", json={"dataframe_split": split})
    assert [row["symbol"] for row in response.json()["predictions"]] == expected

    def send(request: httpx.Request) -> httpx.Response:
        headers = {"content-type": request.headers.get("content-type", "application/json")}
        response = client.request(request.method, request.url.path, content=request.content, headers=headers)
        return httpx.Response(response.status_code, content=response.content)

    with Client("http://localhost", transport=httpx.MockTransport(send)) as service:
        table = service.forecast(frame)
    assert list(table.columns) == ["unique_id", "ds", "symbol"]
    assert table["symbol"].tolist() == expected
