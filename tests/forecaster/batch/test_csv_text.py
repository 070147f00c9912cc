"""The fast CSV writer has the text of pandas, whatever the columns hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forecaster.batch import csv_text

NUMBERS = [
    0.0,
    -0.0,
    1.0,
    -3.0,
    0.1,
    1e-4,
    9.9e-5,
    1e-5,
    1e15,
    1e16,
    1.5e16,
    1e22,
    1e-320,
    123456789.125,
    np.nan,
    np.inf,
    -np.inf,
]


def make_table(rows: int = 600) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    values = np.resize(NUMBERS, rows)
    exponents = 10.0 ** rng.integers(-8, 20, size=rows)
    return pd.DataFrame(
        {
            "unique_id": pd.array(np.resize(['a"b', "a,b", " a", "", None, "ä", "1"], rows), dtype="str"),
            "ds": pd.date_range("2024-01-01", periods=rows, freq="h", tz="Europe/Berlin"),
            "day": pd.date_range("2024-01-01", periods=rows, freq="D"),
            "mean": values,
            "0.9": rng.normal(size=rows) * exponents,
            "step": np.arange(rows),
            "label": pd.Categorical(np.resize(["x", "y"], rows)),
        }
    )


CASES = {
    "every type": make_table(),
    "no rows": make_table().head(0),
    "one column": make_table()[["unique_id"]],
    "text of several lines": make_table(3).assign(label=pd.array(["a\nb", "c", "d"], dtype="str")),
    "mixed objects": make_table(3).assign(label=pd.Series([1, 1.0, True], dtype=object)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_text_is_that_of_pandas(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_text, "_ROWS_AT_ONCE", 100)
    assert "".join(csv_text.iterate_csv(CASES[case])) == CASES[case].to_csv(index=False)
