"""The backtest of a run: scores under the metric names that all runs share, and raw forecasts with the actuals."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.interval_reliability import reliability_table
from forecaster.evaluation.scores import INTERVALS, SCORED_LEVELS, overall_scores, scores_by_step
from pipelines.tracking.run import HEADLINE_METRICS, TrackedRun

SCORED_TAG = "scored"  # tag of a run: the column of its forecast table that holds its own model's forecasts
BACKTEST_FOLDER = "backtest"
CURVE_METRICS = ("mase", "wql", "crps", "msis_95", "coverage_80", "coverage_95")
_MAX_HISTORIES = 1000  # series whose histories are stored, for figures
_HISTORY_HORIZONS, _MAX_HISTORY_STEPS = (
    3,
    200,
)  # stored length of a history: this many horizons, and at most this many steps
_INVALID_METRIC_CHARACTERS = re.compile(r"[^\w .:/-]")  # characters that MLflow rejects in metric names


class StoredBacktest(NamedTuple):
    """The raw forecasts of a run.

    Attributes:
        model_column: The column of `forecasts` that holds the run's own forecasts.
        forecasts: Columns `unique_id, cutoff, ds, step, y`, one column per model, and `scale, square_scale` of the series.
        histories: Columns `unique_id, ds, y`: the last steps before the first cutoff, of up to 1000 series.
    """

    model_column: str
    forecasts: pd.DataFrame
    histories: pd.DataFrame


def record_backtest(
    run: TrackedRun, result: Backtest, scores: pd.DataFrame, *, model_name: str, levels: Sequence[float]
) -> None:
    """Records the scores and the raw forecasts of a backtest in a run.

    The scores of the run's own model are named `bt/mase` and `bt_h/mase` (step = step ahead), those of other models
    `bt/NAME/mase` and `bt_h/NAME/mase`. For models with intervals the coverage by decile is stored as well.

    Args:
        run: The run to write to.
        result: The backtest with its raw forecasts.
        scores: Its `score_table`.
        model_name: Name of the run's own model in `result`.
        levels: Levels of the quantiles to store with the forecasts.
    """
    for name, model_scores in overall_scores(scores).items():
        if name == model_name:  # the logger names a value that is not finite in a tag of the run
            run.log_headline_metrics(
                {f"bt/{metric}": value for metric, value in model_scores.items() if f"bt/{metric}" in HEADLINE_METRICS}
            )
        else:
            finite = {metric: value for metric, value in model_scores.items() if np.isfinite(value)}
            run.logger.log_metrics(
                {f"bt/{_sanitize_metric_name(name)}/{metric}": value for metric, value in finite.items()}
            )
        for metric in CURVE_METRICS:
            values = scores_by_step(scores, name, metric)
            if np.isfinite(values).any():
                run.log_curve(
                    f"bt_h/{metric}" if name == model_name else f"bt_h/{_sanitize_metric_name(name)}/{metric}", values
                )
    run.set_tag(SCORED_TAG, model_name)
    tables = {
        "forecasts": _build_forecast_table(result, levels),
        "histories": _build_history_table(result),
        "scores": scores,
    }
    if result.quantiles and set(SCORED_LEVELS) <= set(result.levels):
        reliability = [reliability_table(result, name, shares=INTERVALS) for name in result.quantiles]
        tables["reliability"] = pd.concat(reliability, ignore_index=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, table in tables.items():
            table.to_parquet(Path(folder) / f"{name}.parquet", index=False, compression="zstd")
        run.log_artifacts(Path(folder), BACKTEST_FOLDER)


def read_backtest(folder: Path, *, model_column: str) -> StoredBacktest:
    """Reads what `record_backtest` stored, from a local copy of the run's `backtest` folder."""
    forecasts = pd.read_parquet(folder / "forecasts.parquet")
    histories_path = folder / "histories.parquet"
    empty = pd.DataFrame({"unique_id": [], "ds": [], "y": []})
    histories = pd.read_parquet(histories_path) if histories_path.exists() else empty
    return StoredBacktest(model_column, forecasts, histories)


def _build_forecast_table(result: Backtest, levels: Sequence[float]) -> pd.DataFrame:
    rows_per_series = result.actual.shape[1] * result.horizon
    scales = {
        "scale": np.repeat(result.scale, rows_per_series),
        "square_scale": np.repeat(result.square_scale, rows_per_series),
    }
    return result.to_frame(levels=levels).assign(**scales)


def _build_history_table(result: Backtest) -> pd.DataFrame:
    max_steps = min(_HISTORY_HORIZONS * result.horizon, _MAX_HISTORY_STEPS)
    stored = result.series[:_MAX_HISTORIES]
    ends = [len(series) - result.origin_offsets[0] for series in stored]
    parts = [slice(max(0, end - max_steps), end) for end in ends]
    values = [series.y[part] for series, part in zip(stored, parts, strict=True)]
    first, *others = (pd.Index(series.timestamps)[part] for series, part in zip(stored, parts, strict=True))
    ids = np.array([series.id for series in stored], dtype=object)
    # One table is built for all series; a table per series is slow, as there are hundreds.
    return pd.DataFrame(
        {
            "unique_id": np.repeat(ids, [len(history) for history in values]),
            "ds": first.append(others),
            "y": np.concatenate(values),
        }
    )


def _sanitize_metric_name(name: str) -> str:
    return _INVALID_METRIC_CHARACTERS.sub("_", name)
