"""Symbols in the tables of a `Forecaster`: codes become symbols, and probabilities become columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from forecaster.data.forecast_table import MODEL_COLUMN
from forecaster.data.symbols import decode_symbols
from forecaster.errors import ForecasterError
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.series import Forecast


def decode_columns(table: pd.DataFrame, model: FittedModel | StoredModel) -> pd.DataFrame:
    """Returns a table of forecasts with symbols in place of codes; that of a model of numbers stays as it is."""
    vocabulary = model.spec.head.vocabulary
    if not model.spec.head.is_symbolic or table.empty:
        return table
    names = [name for name in table if name == MODEL_COLUMN or str(name).startswith(f"{MODEL_COLUMN}-sample-")]
    decoded: dict[str, Any] = {
        str(name): pd.Series(decode_symbols(table[name].to_numpy(dtype=np.float64), vocabulary), dtype=object)
        for name in names
    }
    return table.assign(**decoded)


def build_probability_table(
    forecasts: Sequence[Forecast], probabilities: Sequence[np.ndarray | ForecasterError], vocabulary: Sequence[str]
) -> pd.DataFrame:
    """Returns one row per series and step, with the probability of each symbol: `unique_id, ds, forecaster-p-SYMBOL...`.

    Args:
        forecasts: The forecasts of the series that have one, for ids and timestamps.
        probabilities: Of the same series, "horizon symbol".
        vocabulary: The symbols.
    """
    rows = [part for part in probabilities if isinstance(part, np.ndarray)]
    assert len(rows) == len(forecasts), "the series were validated"
    ds = [forecast.ds for forecast in forecasts]
    table = pd.DataFrame(
        {
            "unique_id": np.repeat([forecast.id for forecast in forecasts], [len(timestamps) for timestamps in ds]),
            "ds": ds[0].append(ds[1:]),
        }
    )
    columns = [f"{MODEL_COLUMN}-p-{symbol}" for symbol in vocabulary]
    return pd.concat([table, pd.DataFrame(np.concatenate(rows), columns=columns)], axis=1)
