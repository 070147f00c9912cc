"""Forecasts of whole tables, as engines for large data map them: Arrow in, Arrow out."""

from forecaster.batch.forecasts import BatchResult as BatchResult
from forecaster.batch.forecasts import forecast_table as forecast_table
