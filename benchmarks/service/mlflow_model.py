"""The same network as a Python model for MLflow's model server.

A row of the input frame is a history, with a column per step; a row of the output is a forecast. MLflow reads this file as code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import set_model

from forecaster.bundle import artifact
from forecaster.errors import ForecasterError
from forecaster.series import Series

HORIZON = 24


class ForecastPythonModel(mlflow.pyfunc.PythonModel):
    """The bundle on its fastest engine."""

    def load_context(self, context: Any) -> None:
        """Loads the bundle."""
        self._predictor = artifact.load_predictor(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Returns a forecast for each row."""
        start = pd.Timestamp("2026-01-01", tz="UTC")
        rows = model_input.to_numpy(dtype=np.float64)
        series = [Series(str(number), start, "h", row) for number, row in enumerate(rows)]
        outcomes = self._predictor.forecast_batch(series, HORIZON)
        return pd.DataFrame([outcome.mean for outcome in outcomes if not isinstance(outcome, ForecasterError)])


def save_model(bundle: Path, folder: Path) -> None:
    """Writes the model without an environment."""
    mlflow.pyfunc.save_model(
        folder, python_model=__file__, artifacts={"bundle": str(bundle)}, pip_requirements=[], code_paths=None
    )


set_model(ForecastPythonModel())
