"""The stored scale of each history is the seasonal error that a series has by itself."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from forecaster.batch.history_scales import compute_history_scales
from forecaster.batch.manifest import ReadingOptions
from forecaster.data.frames.panel import to_panel
from forecaster.metrics import scale_season, seasonal_error
from tests.forecaster.batch.conftest import make_rows, shuffle_rows

ROWS = make_rows(5, steps=30)


def drop_rows(table: pa.Table, *rows: int) -> pa.Table:
    return table.filter(pa.array(~np.isin(np.arange(table.num_rows), rows)))


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(ROWS, id="regular"),
        pytest.param(shuffle_rows(ROWS), id="in any order"),
        pytest.param(drop_rows(ROWS, 3, 4, 31, 60, 61, 118), id="with absent steps"),
        pytest.param(drop_rows(ROWS, *range(3, 30), *range(36, 59)), id="shorter than a season"),
        pytest.param(pa.concat_tables([ROWS, ROWS.slice(5, 40)]), id="with repeated rows"),
        pytest.param(ROWS.set_column(2, "y", pa.array([float(n // 30) for n in range(150)])), id="constant"),
        pytest.param(
            ROWS.set_column(2, "y", pa.array([None if n in (7, 8, 140) else n % 7.0 for n in range(150)])), id="missing"
        ),
        pytest.param(ROWS.set_column(2, "y", pa.array([str(n % 5) for n in range(150)])), id="text"),
    ],
)
def test_scales_are_the_seasonal_errors_of_the_series(table: pa.Table) -> None:
    season = 7
    panel = to_panel(table.to_pandas(), freq="h")
    ids = pa.array([series.id for series in panel.series][::-1])
    found = compute_history_scales(table, ids, ReadingOptions(), freq="h", season=season)
    expected = [
        seasonal_error(series.y, season=scale_season(len(series.y), season=season)) for series in panel.series[::-1]
    ]
    np.testing.assert_allclose(found, expected)
