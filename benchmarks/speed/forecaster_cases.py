"""The cases as specifications, panels and models of this project. Imports only forecaster."""

from __future__ import annotations

import numpy as np
import pandas as pd
from cases import FIRST_TIMESTAMP, SpeedCase, make_values

from forecaster.prediction.predictor import FittedModel
from forecaster.series import Panel, Series
from forecaster.spec import NetworkSpec, Spec, TrainingSpec
from forecaster.training.fit import fit


def make_spec(case: SpeedCase, *, steps: int, valid_windows: int = 0) -> Spec:
    """Returns the specification of a case."""
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


def fit_one_step(case: SpeedCase, *, reads: str = "window") -> FittedModel:
    """Returns a model trained for one step; it reads the last window or the whole history."""
    spec = make_spec(case, steps=1).model_copy(update={"reads": reads})
    return fit(make_panel(make_values(case)[:1]), spec, accelerator="cpu").model


def count_parameters(case: SpeedCase) -> int:
    """Returns the number of parameters."""
    return sum(parameter.numel() for parameter in fit_one_step(case).network.parameters())


def make_panel(rows: np.ndarray) -> Panel:
    """Returns a panel of hourly series."""
    start = pd.Timestamp(FIRST_TIMESTAMP)
    return Panel([Series(f"s{number}", start, "h", row) for number, row in enumerate(rows)], "h")
