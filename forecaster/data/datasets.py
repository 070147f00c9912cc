"""Data sets that come with the project: a real panel, a synthetic series, and a text."""

from __future__ import annotations

import gzip
import re
from importlib.resources import files

import numpy as np
import pandas as pd

from forecaster.shapes import Float64


def make_sine_trend(seconds: float = 30.0, *, step: float = 0.1) -> pd.DataFrame:
    """Returns f(t) = t sin(t) / 3 + 2 sin(5 t) for t in [0, seconds) as a long frame; t is in seconds since 1970."""
    t = np.arange(round(seconds / step)) * step
    timestamps = pd.date_range("1970-01-01", periods=len(t), freq=pd.Timedelta(seconds=step))
    return pd.DataFrame({"unique_id": "sine_trend", "ds": timestamps, "y": evaluate_sine_trend(t)})


def evaluate_sine_trend(t: Float64[np.ndarray, "*series step"]) -> Float64[np.ndarray, "*series step"]:
    """Evaluates the formula of `make_sine_trend` at times in seconds."""
    return np.asarray(t * np.sin(t) / 3 + 2 * np.sin(5 * t))


def load_hospital() -> pd.DataFrame:
    """Loads monthly patient counts: 767 series of 84 months, 2000 to 2006; source and licence in `data/SOURCES.md`."""
    with (files("forecaster.data") / "hospital.csv.gz").open("rb") as file:
        return pd.read_csv(file, compression="gzip", parse_dates=["ds"])


def load_time_machine() -> str:
    """Loads "The Time Machine" by H. G. Wells as lower-case letters and single spaces; its source is in `data/SOURCES.md`.

    This is the preprocessing of Zhang et al. ("Dive into Deep Learning", 2023, section 9.2): all that is not a letter is a space.
    """
    content = gzip.decompress((files("forecaster.data") / "timemachine.txt.gz").read_bytes()).decode()
    return re.sub("[^A-Za-z]+", " ", content).lower()
