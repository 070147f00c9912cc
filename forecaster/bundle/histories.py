"""Training histories in a bundle: one optional safetensors file with all values, so that a forecast needs no data again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load, save

from forecaster.frequency.timestamps import Timestamp, format_timestamp
from forecaster.series import Panel, Series

HISTORIES_FILE = "histories.safetensors"
_DESCRIPTION = "description"  # the tensor with JSON: ids, starts, lengths, static features and text covariates


def serialize_histories(panel: Panel) -> bytes:
    """Returns the content of the file: numbers as tensors over all series, and the rest as JSON in a tensor of bytes."""
    first = panel.series[0]
    numeric = [name for name, values in first.covariates.items() if values.dtype != object]
    records = [
        {
            "id": series.id,
            **_describe_start(series.start),
            "steps": len(series),
            "future_steps": series.covariate_horizon,
            "static": dict(series.static),
            "text": {name: values.tolist() for name, values in series.covariates.items() if name not in numeric},
        }
        for series in panel.series
    ]
    description = {"freq": panel.freq, "covariates": list(first.covariates), "series": records}
    if panel.vocabulary:
        description["vocabulary"] = list(panel.vocabulary)
    tensors = {
        _DESCRIPTION: np.frombuffer(json.dumps(description).encode(), dtype=np.uint8),
        "y": np.concatenate([series.y for series in panel.series]),
    }
    for name in numeric:
        tensors[f"covariate.{name}"] = np.concatenate(
            [series.covariates[name].astype(np.float64) for series in panel.series]
        )
    for name in first.channels:
        tensors[f"channel.{name}"] = np.concatenate([series.channels[name] for series in panel.series])
    return save(tensors)


def parse_histories(content: bytes) -> Panel:
    """Parses the output of `serialize_histories`. Other content raises an error of any type, which the caller translates."""
    tensors = load(content)
    description = json.loads(tensors.pop(_DESCRIPTION).tobytes())
    freq, records = description["freq"], description["series"]
    steps = [record["steps"] for record in records]
    steps_with_future = [record["steps"] + record["future_steps"] for record in records]
    y = _split(tensors.pop("y"), steps)
    channels = {name: _split(values, steps) for name, values in _select(tensors, "channel.").items()}
    numeric = {name: _split(values, steps_with_future) for name, values in _select(tensors, "covariate.").items()}
    series = []
    for index, record in enumerate(records):
        covariates = {
            name: numeric[name][index] if name in numeric else np.array(record["text"][name], dtype=object)
            for name in description["covariates"]
        }
        series.append(
            Series(
                record["id"],
                _parse_start(record),
                freq,
                y[index],
                covariates,
                record["static"],
                {name: values[index] for name, values in channels.items()},
            )
        )
    return Panel(series, freq, vocabulary=tuple(description.get("vocabulary", ())))


def _describe_start(start: Timestamp) -> dict[str, Any]:
    if isinstance(start, int):
        return {"start": start}
    if start.tz is None:
        return {"start": format_timestamp(start)}
    return {"start": format_timestamp(start.tz_convert("UTC")), "zone": str(start.tz)}


def _parse_start(record: Mapping[str, Any]) -> Timestamp:
    start = record["start"]
    if isinstance(start, int):
        return start
    timestamp = pd.Timestamp(start).as_unit("us")
    return timestamp.tz_convert(record["zone"]) if "zone" in record else timestamp


def _select(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}


def _split(values: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """Returns the values of each series; raises ValueError if there are more or fewer."""
    if values.shape != (sum(lengths),) or values.dtype != np.float64:
        raise ValueError(f"expected {sum(lengths)} values, found {values.dtype} of shape {values.shape}")
    return np.split(values, np.cumsum(lengths)[:-1])
