"""The tools of the MCP server: they respond as the routes of the service, and a client of the protocol can call them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from serving.deployment.pretrained import PretrainedSlot
from serving.deployment.slot import Slot
from serving.errors import ApiError
from serving.forecasting.endpoint import ComputeJob, EncodedResponse
from serving.forecasting.forecast import FORECAST
from serving.services.mcp_server import ForecastTools
from serving.settings import Settings
from tests.optional_packages import import_optional
from tests.serving.conftest import MakeClient, load_stub, publish_stub, series_payload
from tests.system.processes import CHECKOUT

HISTORY: dict[str, Any] = {
    "id": "ward 7",
    "start": "2005-01-01",
    "freq": "MS",
    "y": [21, 18, 25, 23, None, 19, 22, 24] * 4,
}
MODULE = "serving.services.mcp_server"


def make_environment(slot: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FORECASTER_", "MLFLOW_"))}
    serving = {"FORECASTER_SERVING_PRETRAINED": "true", "FORECASTER_SERVING_SLOT": str(slot)}
    return {**inherited, "PYTHONPATH": str(CHECKOUT), **serving, "FORECASTER_SERVING_MAX_HORIZON": "50"}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> ForecastTools:
    folder = tmp_path_factory.mktemp("slot")
    slot = PretrainedSlot(folder)
    slot.reload_if_changed()
    return ForecastTools(Settings(slot=folder, pretrained=True, max_horizon=50), slot)


def test_a_forecast_and_the_model_are_those_of_the_routes(tools: ForecastTools, make_client: MakeClient) -> None:
    client = make_client(pretrained=True)
    body = {"series": [HISTORY, HISTORY | {"id": "short", "y": [1]}], "horizon": 3, "levels": [0.1, 0.9]}
    response = client.post("/v1/forecast", json=body)
    assert response.status_code == 200, response.text
    assert tools.forecast(**body) == response.json()
    described, of_route = tools.model(), client.get("/v1/model").json()
    assert described == {name: of_route[name] for name in described} | {"age_s": described["age_s"]}
    assert {"spec", "card", "min_history"} <= set(described)


def test_an_explanation_is_that_of_the_route(tools: ForecastTools, make_client: MakeClient) -> None:
    pytest.importorskip("torch")
    client = make_client(pretrained=True)
    explanation = tools.explain(HISTORY, horizon=3, steps=8)
    response = client.post("/v1/explain", json={"series": HISTORY, "horizon": 3, "steps": 8})
    assert explanation == response.json()
    assert len(explanation["attribution"]) == 8


@pytest.mark.parametrize(
    ("arguments", "code", "where"),
    [
        ({"series": [], "horizon": 3}, "invalid_request", "series"),
        ({"series": [HISTORY], "horizon": 51}, "horizon_out_of_range", None),
        ({"series": [HISTORY], "horizon": 2**70}, "invalid_request", None),
        ({"series": [HISTORY | {"freq": "nonsense"}], "horizon": 3}, None, "ward 7"),
        ({"series": [{"id": "a"}], "horizon": 3}, "invalid_request", None),
        ({"series": [HISTORY | {"y": [1.0, float("nan"), 2.0]}], "horizon": 3}, "malformed_json", None),
        ({"series": [HISTORY | {"y": [1.0, float("inf"), 2.0]}], "horizon": 3}, "malformed_json", None),
        ({"series": [HISTORY | {"id": "x" * (4 << 20)}], "horizon": 3}, "body_too_large", None),
    ],
)
def test_an_error_is_that_of_the_project(
    tools: ForecastTools, arguments: dict[str, Any], code: str | None, where: str | None
) -> None:
    with pytest.raises(ApiError) as raised:
        tools.forecast(**arguments)
    assert code in (raised.value.code, None)
    line = raised.value.to_line()
    assert line.startswith(f"{raised.value.code}: {raised.value.message}")
    assert where is None or where in line


def test_a_call_that_finds_no_free_rollout_ends_at_its_deadline(slot_folder: Path) -> None:
    publish_stub(slot_folder, version="1")
    slot, started, may_end = Slot(slot_folder, load=load_stub), Event(), Event()
    slot.reload_if_changed()
    tools = ForecastTools(Settings(slot=slot_folder, timeout_s=0.2), slot)
    tools.model()

    def block(jobs: Sequence[ComputeJob[Any]]) -> list[EncodedResponse | Exception]:
        started.set()
        assert may_end.wait(60)
        return [EncodedResponse(b"{}") for _ in jobs]

    blocking = FORECAST._replace(compute=block)
    fields = {"series": [series_payload()], "horizon": 2}
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(tools._compute, blocking, fields)
        assert started.wait(60)
        with pytest.raises(ApiError) as raised:
            tools.forecast(**fields)
        may_end.set()
        assert first.result() == {}
    assert raised.value.code == "deadline_passed"
    assert len(tools.forecast(**fields)["forecasts"]) == 1


def test_a_new_model_in_the_slot_is_used(slot_folder: Path) -> None:
    slot = Slot(slot_folder, load=load_stub)
    tools = ForecastTools(Settings(slot=slot_folder), slot)
    for version, shift in (("1", 0.0), ("2", 5.0)):
        publish_stub(slot_folder, version=version, shift=shift)
        slot.reload_if_changed()
        response = tools.forecast([series_payload()], 2)
        assert response["model"]["version"] == version
        assert response["forecasts"][0]["mean"] == [series_payload()["y"][-1] + shift] * 2


def test_without_a_model_the_tools_say_so(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="model") as raised:
        ForecastTools(Settings(slot=tmp_path), Slot(tmp_path)).forecast([HISTORY], 3)
    assert raised.value.code == "not_ready"


@pytest.mark.integration
@pytest.mark.skipif(find_spec("mcp") is not None, reason="mcp is installed")
@pytest.mark.parametrize("command", [["-m", MODULE], ["-m", "pipelines", "mcp"]], ids=["module", "command"])
def test_without_the_package_its_extra_is_named(command: list[str], tmp_path: Path) -> None:
    environment = make_environment(tmp_path)
    completed = subprocess.run(
        [sys.executable, *command], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert completed.returncode == 1
    assert completed.stdout == ""
    assert completed.stderr.count("\n") == 1
    assert "recurrent-forecaster[mcp]" in completed.stderr


@pytest.mark.integration
@pytest.mark.parametrize(
    "command", [["-m", MODULE], ["-m", "pipelines", "mcp", "--root", "root"]], ids=["module", "command"]
)
def test_a_client_of_the_protocol_calls_the_tools(command: list[str], tools: ForecastTools, tmp_path: Path) -> None:
    mcp = import_optional("mcp")

    async def call() -> tuple[list[Any], Any, Any]:
        parameters = mcp.StdioServerParameters(
            command=sys.executable, args=command, env=make_environment(tmp_path), cwd=tmp_path
        )
        async with mcp.Client(parameters) as client:
            listed = (await client.list_tools()).tools
            forecast = await client.call_tool("forecast", {"series": [HISTORY], "horizon": 3, "levels": [0.1, 0.9]})
            refused = await client.call_tool("forecast", {"series": [HISTORY], "horizon": 51})
            return listed, forecast, refused

    listed, forecast, refused = asyncio.run(call())
    assert {tool.name for tool in listed} == {"forecast", "explain", "model"}
    assert all(tool.description for tool in listed)
    assert not forecast.is_error
    assert forecast.structured_content == tools.forecast([HISTORY], 3, [0.1, 0.9])
    assert json.loads(forecast.content[0].text) == forecast.structured_content
    assert refused.is_error
    assert "horizon_out_of_range: Expected" in refused.content[0].text


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs signals of POSIX")
def test_an_interrupt_ends_the_server_while_its_input_is_open(tmp_path: Path) -> None:
    import_optional("mcp")
    version = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": version}
    with subprocess.Popen(
        [sys.executable, "-m", MODULE],
        env=make_environment(tmp_path),
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == 1
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 130
        finally:
            process.kill()
        assert process.stderr.read() == ""
