"""A worker serves forecasts without importing torch, which would take a second and 200 MB and is not needed by a rollout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forecaster.bundle import artifact
from serving.deployment import releases
from serving.deployment import slot as slots
from tests.factories import make_fitted_model, make_spec

pytestmark = pytest.mark.integration

# Does what a worker does: builds the application, loads a bundle, handles a request; then prints which packages were imported.
WORKER_PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from serving import service
from serving.routes.app import build_application
from serving.settings import Settings

application = build_application(Settings(slot=Path(sys.argv[1])))
application.slot.reload_if_changed()
model = application.slot.current
assert model is not None, "the bundle was rejected"
y = [1.0 + index % 4 for index in range(30)]
series = [{"id": "a", "start": "2026-01-01T00:00:00Z", "freq": "h", "y": y}] * 5
request = {"series": series, "horizon": 7, **json.loads(sys.argv[2])}
scope = {"type": "http", "method": "POST", "path": "/v1/forecast", "raw_path": b"", "query_string": b"",
         "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")], "http_version": "1.1", "client": None}
sent = []

messages = [{"type": "http.request", "body": json.dumps(request).encode(), "more_body": False}]

async def receive():
    if not messages:
        await asyncio.Event().wait()  # the client stays connected
    return messages.pop()

async def send(message):
    sent.append(message)

asyncio.run(application.app(scope, receive, send))
assert sent[0]["status"] == 200, sent
print(json.dumps({"engine": type(model.predictor.engine).__name__,
                  "imported": sorted({"torch", "pytorch_lightning", "mlflow", "matplotlib"} & set(sys.modules)),
                  "mean": json.loads(sent[1]["body"])["forecasts"][0]["mean"]}))
"""


def forecast_without_torch(slot: Path, request_json: str = "{}") -> dict[str, Any]:
    package = Path(slots.__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FORECASTER_")}
    result = subprocess.run(
        [sys.executable, "-c", WORKER_PROGRAM, str(slot), request_json],
        env=environment | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    output: dict[str, Any] = json.loads(result.stdout)
    return output


def publish_model(slot: Path, **fields: Any) -> None:
    with releases.staging(slot) as draft:
        digest = artifact.save_bundle(make_fitted_model(make_spec(**fields)), draft / "bundle", card="")
        releases.publish(slot, draft / "bundle", releases.Release(name="small", version="1", digest=digest))


@pytest.mark.parametrize(
    ("fields", "request_json"),
    [
        ({}, "{}"),
        ({"decoder": "direct", "transform": "log", "scaling": "last", "base": "last"}, "{}"),
        ({"head": {"kind": "gaussian"}, "base": "last"}, '{"samples": 3}'),
    ],
)
def test_a_worker_serving_a_kernel_model_does_not_import_torch(
    tmp_path: Path, fields: dict[str, Any], request_json: str
) -> None:
    publish_model(tmp_path, **fields)
    assert forecast_without_torch(tmp_path, request_json)["imported"] == []


def test_a_model_unsupported_by_kernel_and_onnx_imports_torch(tmp_path: Path) -> None:
    head = {"kind": "neg_binomial"}
    publish_model(tmp_path, head=head, scaling="none")
    assert forecast_without_torch(tmp_path)["imported"] == []
    assert forecast_without_torch(tmp_path, '{"samples": 3}')["imported"] == ["torch"]


def test_a_state_token_does_not_import_torch(tmp_path: Path) -> None:
    publish_model(tmp_path)
    assert forecast_without_torch(tmp_path, '{"return_state": true}')["imported"] == []
