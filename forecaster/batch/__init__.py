"""Forecasts of whole tables and data sets: Arrow in, Arrow out, and an archive of nightly batches."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from forecaster.batch.forecasts import BatchResult as BatchResult
from forecaster.batch.forecasts import forecast_table as forecast_table

if TYPE_CHECKING:
    from forecaster.batch.archive import list_nights as list_nights
    from forecaster.batch.archive import open_archive as open_archive
    from forecaster.batch.archive import read_archive as read_archive
    from forecaster.batch.scores import score_archive as score_archive

_MODULE_OF_NAME = {
    "list_nights": "archive",
    "open_archive": "archive",
    "read_archive": "archive",
    "score_archive": "scores",
}  # imported on first use, because they need pyarrow


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'forecaster.batch' has no attribute {name!r}")
    return getattr(import_module(f"forecaster.batch.{_MODULE_OF_NAME[name]}"), name)
