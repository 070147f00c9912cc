"""A small frame, a specification that is fitted in a moment, and a forecaster that is fitted once."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster import Forecaster
from forecaster.api import ForecastWarning

STEPS, HORIZON = 60, 6


def make_fields(**fields: Any) -> dict[str, Any]:
    """Returns the fields of a small specification: 40 steps of a direct network."""
    training = {"steps": 40, "epoch_steps": 20, "batch": 8, "valid_windows": 2, "learning_rate": 0.02}
    return {
        "name": "tiny",
        "context": 12,
        "horizon": HORIZON,
        "min_history": 6,
        "decoder": "direct",
        "scaling": "last",
        "base": "last",
        "network": {"hidden": 4},
        "training": training,
    } | fields


def make_frame(*, series: int = 3, steps: int = STEPS, start: str = "2015-01-01") -> pd.DataFrame:
    """Returns monthly series with a season, named 1, 2, 3 as numbers."""
    rng = np.random.default_rng(0)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "unique_id": number,
                    "ds": pd.date_range(start, periods=steps, freq="MS"),
                    "y": 10 * number + 2 * np.sin(np.arange(steps) * np.pi / 6) + 0.1 * rng.normal(size=steps),
                }
            )
            for number in range(1, series + 1)
        ],
        ignore_index=True,
    )


@pytest.fixture(scope="package")
def frame() -> pd.DataFrame:
    return make_frame()


@pytest.fixture(scope="package")
def model(frame: pd.DataFrame) -> Forecaster:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ForecastWarning)  # seasonal naive is better than a model of few steps
        return Forecaster(spec=make_fields(), accelerator="cpu").fit(frame, progress=False)
