"""The records of the data and of their forecasts, and the summary of the part of a history that is dropped."""

from forecaster.series.records import MAX_ABS_VALUE as MAX_ABS_VALUE
from forecaster.series.records import Forecast as Forecast
from forecaster.series.records import Panel as Panel
from forecaster.series.records import Series as Series
