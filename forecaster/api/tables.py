"""The tables of a `Forecaster` besides forecasts: backtests and scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from forecaster.data.forecast_table import MODEL_COLUMN
from forecaster.data.symbols import SYMBOL_SCORES_FACT
from forecaster.errors import LevelOutOfRange
from forecaster.frequency.timestamps import format_timestamp
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.head_quantiles import has_quantiles

_CHALLENGER = "challenger"  # the name of the trained model among the scores of its bundle


def validate_calibration(model: FittedModel | StoredModel, columns: Mapping[str, float]) -> None:
    """Raises LevelOutOfRange if quantiles are requested of a model that was not calibrated, or predicts symbols."""
    if columns and model.spec.head.is_symbolic:
        raise LevelOutOfRange(
            f"Expected no `level` and no `quantiles`: model {model.spec.name!r} predicts symbols, which have no order. Use "
            "`predict_proba`, or `num_samples`.",
            where="level",
        )
    if columns and not has_quantiles(model):
        raise LevelOutOfRange(
            f"Expected no `level` and no `quantiles`: model {model.spec.name!r} is not calibrated and has point forecasts only. "
            "Fit it with a specification whose valid_windows is 1 or more, or leave them out.",
            where="level",
        )


def rename_backtest_table(frame: pd.DataFrame, columns: Mapping[str, float]) -> pd.DataFrame:
    """Returns the table of a backtest (`Backtest.to_frame`) as `unique_id, ds, cutoff, y, forecaster` and the quantiles."""
    table = frame[["unique_id", "ds", "cutoff", "y", MODEL_COLUMN]].copy()
    for name, quantile in columns.items():
        table[name] = frame[f"{MODEL_COLUMN}-{quantile:g}"].array
    return table


def build_report(model: FittedModel | StoredModel) -> pd.DataFrame:
    """Returns the scores of the test of a model, one row per forecaster; NaN for a score that could not be computed."""
    rows = [
        {MODEL_COLUMN: name, **{metric: np.nan if value is None else value for metric, value in values.items()}}
        for name, values in _read_scores(model).items()
    ]
    return pd.DataFrame(rows)


def describe_model(model: FittedModel | StoredModel) -> str:
    """Describes in a line what a model was fitted on, its network and the scores of its test."""
    network = f"{model.spec.network.cell.upper()} {model.spec.network.layers} x {model.spec.network.hidden}"
    metric, label = ("perplexity", "perplexity") if model.spec.head.is_symbolic else ("mase", "MASE")
    tested = "; ".join(
        f"{name} {values[metric]:.3g}" for name, values in _read_scores(model).items() if values[metric] is not None
    )
    return (
        f"fitted on {model.facts.get('series', 'some')} series of frequency {model.freq} to "
        f"{format_timestamp(model.cutoff)} ({network}; {label}: {tested or 'not tested'})"
    )


def _read_scores(model: FittedModel | StoredModel) -> Mapping[str, Mapping[str, float | None]]:
    """Returns the scores of the test of a model by forecaster; empty without a test."""
    scores: Mapping[str, Mapping[str, float | None]] = (
        model.facts.get(SYMBOL_SCORES_FACT) or model.facts.get("backtest") or {}
    )
    return {MODEL_COLUMN if name == _CHALLENGER else name: values for name, values in scores.items()}
