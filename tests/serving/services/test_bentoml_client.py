"""The client of BentoML against the real application over HTTP."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bentoml
import pytest

from serving.asgi import auth
from tests.page.conftest import serve_application
from tests.serving.conftest import publish_stub

pytestmark = pytest.mark.integration

HISTORY = {"id": "a", "start": "2026-01-01T00:00:00Z", "freq": "h", "y": [1.0, None, 2.5]}


@contextmanager
def connect(url: str, **options: Any) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of BentoML's own imports
        with bentoml.SyncHTTPClient(url, **options) as client:
            yield client
            client._temp_dir.cleanup()  # the client leaves it to the garbage collector, which warns


def test_the_client_of_bentoml_has_a_method_for_every_route_and_forecasts(tmp_path: Path) -> None:
    publish_stub(tmp_path / "slot")
    key = auth.create_key("reader", ["read"], tmp_path / "keys")
    with (
        serve_application(tmp_path / "slot", keys_file=tmp_path / "keys", root_path="/forecasts") as address,
        connect(f"{address}/forecasts", token=key) as client,
    ):
        assert set(client.endpoints) == {"forecast", "scenarios", "invocations", "backtest", "explain", "actuals"}
        response = client.forecast(series=[HISTORY], horizon=2, levels=[0.1])
        assert response["model"]["name"] == "stub"
        forecast = response["forecasts"][0]
        assert (forecast["mean"], forecast["quantiles"]) == ([2.5, 2.5], {"0.1": [2.6, 2.6]})
        frame = {
            "columns": ["unique_id", "ds", "y"],
            "data": [["a", f"2026-01-01T0{hour}:00", 1.0] for hour in range(4)],
        }
        assert len(client.invocations({"dataframe_split": frame, "params": {"horizon": 3}})["predictions"]) == 3
        with pytest.raises(bentoml.exceptions.UnprocessableEntity, match="invalid_request"):
            client.forecast(series=[], horizon=2)
        with pytest.raises(TypeError, match="horizon"):
            client.forecast(series=[HISTORY])
