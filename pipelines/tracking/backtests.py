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
from forecaster.evaluation.scores import by_step, overall
from pipelines.tracking.run import HEADLINE, Run

SCORED = "scored"  # the tag of a run: which column of its forecasts is its model's
FOLDER = "backtest"
CURVES = ("mase", "wql", "crps", "coverage_80", "coverage_95")
_HISTORIES = 1000  # series whose histories are kept, for pictures
_HORIZONS, _LONGEST = 3, 200  # how much of each: so many horizons, and at most so many steps
_UNNAMEABLE = re.compile(r"[^\w .:/-]")  # what MLflow takes in no metric's name


class Kept(NamedTuple):
    """The raw forecasts of a run.

    Attributes:
        model: The column that holds the run's own forecasts.
        forecasts: `unique_id, cutoff, ds, step, y`, a column for each forecaster, `scale, square_scale` of each series.
        histories: `unique_id, ds, y`: what came before the first cutoff of the first series, some steps of it.
    """

    model: str
    forecasts: pd.DataFrame
    histories: pd.DataFrame


def record(run: Run, result: Backtest, scores: pd.DataFrame, *, model: str, levels: Sequence[float]) -> None:
    """Records scores and raw forecasts.

    The model's own scores are `bt/mase` and `bt_h/mase` (step = step ahead), those of the others `bt/NAME/mase` and
    `bt_h/NAME/mase`.

    Args:
        run: Where.
        result: Raw forecasts.
        scores: Its `score_table`.
        model: Whose run it is.
        levels: Of the quantiles to keep beside the forecasts.
    """
    for name, found in overall(scores).items():
        if name == model:  # a value that is not finite is named by the run's tag
            run.headline({f"bt/{metric}": value for metric, value in found.items() if f"bt/{metric}" in HEADLINE})
        else:
            finite = {metric: value for metric, value in found.items() if np.isfinite(value)}
            run.logger.log_metrics({f"bt/{_nameable(name)}/{metric}": value for metric, value in finite.items()})
        for metric in CURVES:
            values = by_step(scores, name, metric)
            if np.isfinite(values).any():
                run.curve(f"bt_h/{metric}" if name == model else f"bt_h/{_nameable(name)}/{metric}", values)
    run.tag(SCORED, model)
    with tempfile.TemporaryDirectory() as folder:
        for name, table in (
            ("forecasts", _forecasts(result, levels)),
            ("histories", _histories(result)),
            ("scores", scores),
        ):
            table.to_parquet(Path(folder) / f"{name}.parquet", index=False, compression="zstd")
        run.folder(Path(folder), FOLDER)


def read(folder: Path, *, model: str) -> Kept:
    """What `record` kept, from a copy of the run's folder."""
    forecasts = pd.read_parquet(folder / "forecasts.parquet")
    histories = folder / "histories.parquet"
    nothing = pd.DataFrame({"unique_id": [], "ds": [], "y": []})
    return Kept(model, forecasts, pd.read_parquet(histories) if histories.exists() else nothing)


def _forecasts(result: Backtest, levels: Sequence[float]) -> pd.DataFrame:
    each = result.actual.shape[1] * result.horizon
    scales = {"scale": np.repeat(result.scale, each), "square_scale": np.repeat(result.square_scale, each)}
    return result.frame(levels=levels).assign(**scales)


def _histories(result: Backtest) -> pd.DataFrame:
    shown = min(_HORIZONS * result.horizon, _LONGEST)
    some = result.series[:_HISTORIES]
    cuts = [len(one) - result.lefts[0] for one in some]
    parts = [slice(max(0, cut - shown), cut) for cut in cuts]
    values = [one.y[part] for one, part in zip(some, parts, strict=True)]
    first, *others = (pd.Index(one.stamps)[part] for one, part in zip(some, parts, strict=True))
    names = np.array([one.id for one in some], dtype=object)
    # Not a table for each series, of which there are hundreds.
    return pd.DataFrame(
        {
            "unique_id": np.repeat(names, [len(each) for each in values]),
            "ds": first.append(others),
            "y": np.concatenate(values),
        }
    )


def _nameable(name: str) -> str:
    return _UNNAMEABLE.sub("_", name)
