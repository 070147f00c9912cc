"""Upper bound of the speed of a server: JSON and the engine in plain uvicorn, without validation, limits or logs."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from forecaster.bundle import artifact
from forecaster.errors import ForecasterError
from forecaster.prediction.predictor import Predictor
from forecaster.series import Series

BUNDLE_VARIABLE = "FORECASTER_BENCHMARK_BUNDLE"  # folder of the bundle to serve
_JSON_HEADERS = [(b"content-type", b"application/json")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Returns a forecast response in the format of our service, for any path."""
    if scope["type"] != "http":
        return
    predictor = _load_predictor()
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    content = _forecast_response(predictor, body) if body else b"{}"
    length = (b"content-length", str(len(content)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [*_JSON_HEADERS, length]})
    await send({"type": "http.response.body", "body": content})


@cache
def _load_predictor() -> Predictor:
    return artifact.load_predictor(Path(os.environ[BUNDLE_VARIABLE]))


def _forecast_response(predictor: Predictor, body: bytes) -> bytes:
    request = orjson.loads(body)
    series = [
        Series(row["id"], pd.Timestamp(row["start"]), row["freq"], np.array(row["y"], dtype=np.float64))
        for row in request["series"]
    ]
    outcomes = predictor.forecast_batch(series, request["horizon"])
    results = [outcome for outcome in outcomes if not isinstance(outcome, ForecasterError)]
    forecasts = [{"id": result.id, "ds": [str(time) for time in result.ds], "mean": result.mean} for result in results]
    return orjson.dumps({"forecasts": forecasts}, option=orjson.OPT_SERIALIZE_NUMPY)
