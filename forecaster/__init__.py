"""Time-series forecasting: the public names of the package. They are imported on first use, so importing the package is cheap."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forecaster.api import Forecaster
    from forecaster.bundle.artifact import load_predictor
    from forecaster.errors import ForecasterError, InputError
    from forecaster.prediction.fitted_model import FittedModel
    from forecaster.prediction.predictor import Predictor
    from forecaster.series import Forecast, Panel, Series
    from forecaster.spec import Spec

_MODULE_OF_NAME = {
    "Forecast": "series",
    "Forecaster": "api",
    "FittedModel": "prediction.fitted_model",
    "ForecasterError": "errors",
    "InputError": "errors",
    "Panel": "series",
    "Predictor": "prediction.predictor",
    "Series": "series",
    "Spec": "spec",
    "load_predictor": "bundle.artifact",
}

__all__ = [
    "FittedModel",
    "Forecast",
    "Forecaster",
    "ForecasterError",
    "InputError",
    "Panel",
    "Predictor",
    "Series",
    "Spec",
    "load_predictor",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'forecaster' has no attribute {name!r}")
    return getattr(import_module(f"forecaster.{_MODULE_OF_NAME[name]}"), name)
