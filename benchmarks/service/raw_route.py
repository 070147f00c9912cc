"""What a server could do at the most: nothing but JSON and the engine in uvicorn itself. No checks, no limits, no log."""

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

BUNDLE_VARIABLE = "FORECASTER_BENCHMARK_BUNDLE"  # the folder of the bundle to answer with
_JSON_HEADERS = [(b"content-type", b"application/json")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers a forecast request in the words of ours, whatever the path."""
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
    asked = orjson.loads(body)
    series = [
        Series(one["id"], pd.Timestamp(one["start"]), one["freq"], np.array(one["y"], dtype=np.float64))
        for one in asked["series"]
    ]
    told = predictor.forecast_batch(series, asked["horizon"])
    good = [one for one in told if not isinstance(one, ForecasterError)]
    forecasts = [{"id": one.id, "ds": [str(stamp) for stamp in one.ds], "mean": one.mean} for one in good]
    return orjson.dumps({"forecasts": forecasts}, option=orjson.OPT_SERIALIZE_NUMPY)
