"""What a run keeps of a backtest: its scores under the names that all runs share, and the raw forecasts beside the truth."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.scores import overall_scores, scores_by_step
from pipelines.tracking.run import HEADLINE_METRICS, TrackedRun

SCORED_TAG = "scored"  # the tag of a run: which column of its forecasts is its model's
BACKTEST_FOLDER = "backtest"
CURVE_METRICS = ("mase", "wql", "crps", "coverage_80", "coverage_95")
_MAX_HISTORIES = 1000  # series whose histories are kept, for pictures
_HISTORY_HORIZONS, _MAX_HISTORY_STEPS = 3, 200  # how much of each: so many horizons, and at most so many steps
_INVALID_METRIC_CHARACTERS = re.compile(r"[^\w .:/-]")  # what MLflow takes in no metric's name


class StoredBacktest(NamedTuple):
    """The raw forecasts of a run.

    Attributes:
        model: The column that holds the run's own forecasts.
        forecasts: `unique_id, cutoff, ds, step, y`, a column for each forecaster, `scale, square_scale` of each series.
        histories: `unique_id, ds, y`: what came before the first cutoff of the first series, some steps of it.
    """

    model_column: str
    forecasts: pd.DataFrame
    histories: pd.DataFrame


def record_backtest(
    run: TrackedRun, result: Backtest, scores: pd.DataFrame, *, model_name: str, levels: Sequence[float]
) -> None:
    """Records scores and raw forecasts.

    The model's own scores are `bt/mase` and `bt_h/mase` (step = step ahead), those of the others `bt/RELEASE/mase` and
    `bt_h/RELEASE/mase`.

    Args:
        run: Where.
        result: Raw forecasts.
        scores: Its `score_table`.
        model: Whose run it is.
        levels: Of the quantiles to keep beside the forecasts.
    """
    for name, found in overall_scores(scores).items():
        if name == model_name:  # a value that is not finite is named by the run's tag
            run.log_headline_metrics(
                {f"bt/{metric}": value for metric, value in found.items() if f"bt/{metric}" in HEADLINE_METRICS}
            )
        else:
            finite = {metric: value for metric, value in found.items() if np.isfinite(value)}
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
    with tempfile.TemporaryDirectory() as folder:
        for name, table in (
            ("forecasts", _build_forecast_table(result, levels)),
            ("histories", _build_history_table(result)),
            ("scores", scores),
        ):
            table.to_parquet(Path(folder) / f"{name}.parquet", index=False, compression="zstd")
        run.log_artifacts(Path(folder), BACKTEST_FOLDER)


def read_backtest(folder: Path, *, model_column: str) -> StoredBacktest:
    """What `record_backtest` kept, from a copy of the run's folder."""
    forecasts = pd.read_parquet(folder / "forecasts.parquet")
    histories = folder / "histories.parquet"
    nothing = pd.DataFrame({"unique_id": [], "ds": [], "y": []})
    return StoredBacktest(model_column, forecasts, pd.read_parquet(histories) if histories.exists() else nothing)


def _build_forecast_table(result: Backtest, levels: Sequence[float]) -> pd.DataFrame:
    each = result.actual.shape[1] * result.horizon
    scales = {"scale": np.repeat(result.scale, each), "square_scale": np.repeat(result.square_scale, each)}
    return result.to_frame(levels=levels).assign(**scales)


def _build_history_table(result: Backtest) -> pd.DataFrame:
    shown = min(_HISTORY_HORIZONS * result.horizon, _MAX_HISTORY_STEPS)
    some = result.series[:_MAX_HISTORIES]
    cuts = [len(one) - result.origin_offsets[0] for one in some]
    parts = [slice(max(0, cut - shown), cut) for cut in cuts]
    values = [one.y[part] for one, part in zip(some, parts, strict=True)]
    first, *others = (pd.Index(one.timestamps)[part] for one, part in zip(some, parts, strict=True))
    names = np.array([one.id for one in some], dtype=object)
    # Not a table for each series, of which there are hundreds.
    return pd.DataFrame(
        {
            "unique_id": np.repeat(names, [len(each) for each in values]),
            "ds": first.append(others),
            "y": np.concatenate(values),
        }
    )


def _sanitize_metric_name(name: str) -> str:
    return _INVALID_METRIC_CHARACTERS.sub("_", name)
