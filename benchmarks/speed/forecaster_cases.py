"""The cases in our own words: a specification, a panel, a forecaster. Imports nothing but forecaster."""

from __future__ import annotations

import numpy as np
import pandas as pd
from cases import STAMP, Case, values

from forecaster.prediction.predictor import Forecaster
from forecaster.series import Panel, Series
from forecaster.spec import NetworkSpec, Spec, TrainingSpec
from forecaster.training.fit import fit


def spec_of(case: Case, *, steps: int, valid_windows: int = 0) -> Spec:
    """The case as a specification."""
    return Spec(
        name=case.name.replace("_", "-"),
        context=case.context,
        horizon=case.horizon,
        season=24,
        scaling="none" if case.group == "classical" else "standard",
        network=NetworkSpec(cell=case.cell, hidden=case.hidden, layers=case.layers),  # type: ignore[arg-type]
        training=TrainingSpec(
            steps=steps,
            epoch_steps=50 if valid_windows else steps,
            batch=case.batch,
            learning_rate=0.01,
            valid_windows=valid_windows,
        ),
    )


def fitted(case: Case, *, reads: str = "window") -> Forecaster:
    """A forecaster that made a step; it reads the last steps before a forecast, or the whole history."""
    spec = spec_of(case, steps=1).model_copy(update={"reads": reads})
    return fit(panel(values(case)[:1]), spec, accelerator="cpu").forecaster


def size(case: Case) -> int:
    """How many parameters it has."""
    return sum(each.numel() for each in fitted(case).network.parameters())


def panel(rows: np.ndarray) -> Panel:
    """Series by the hour."""
    start = pd.Timestamp(STAMP)
    return Panel([Series(f"s{number}", start, "h", row) for number, row in enumerate(rows)], "h")
