"""A history that ends with null moves the start of its forecast, so the forecast has a warning."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forecaster.series import Series
from serving.forecasting.outcomes import unobserved_end_warnings

NAN = float("nan")


@pytest.mark.parametrize(
    ("y", "rain", "count"),
    [
        ([1, 2, 3], None, 0),
        ([1, NAN, 3], None, 0),
        ([1, 2, NAN], None, 1),
        ([1, NAN, NAN], None, 2),
        ([NAN, NAN, NAN], None, 3),
        ([1, NAN, NAN], [1, 2, 3], 0),
        ([1, NAN, NAN], [1, 2, NAN], 1),
    ],
)
def test_a_history_that_ends_with_null_has_a_warning(y: list[float], rain: list[float] | None, count: int) -> None:
    channels = {} if rain is None else {"rain": np.array(rain, dtype=np.float64)}
    series = Series("a", pd.Timestamp("2026-01-01"), "D", np.array(y, dtype=np.float64), channels=channels)
    warnings = unobserved_end_warnings(series)
    assert [f"ends with {count} steps" in warning for warning in warnings] == ([True] if count else [])
