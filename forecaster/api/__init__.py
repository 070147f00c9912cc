"""The Python API: one class from a data frame to a fitted model and its forecasts."""

from forecaster.api.forecaster import Forecaster
from forecaster.api.messages import DataWarning, ForecastWarning

__all__ = ["DataWarning", "ForecastWarning", "Forecaster"]
