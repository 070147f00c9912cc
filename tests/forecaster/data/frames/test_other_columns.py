"""Columns that a model without covariates ignores, and rows that only such columns fill."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.data.frames.other_columns import describe_ignored_columns, keep_values
from forecaster.data.frames.rows import ColumnNames

DATES = pd.date_range("2024-01-01", periods=6, freq="D")


def make_frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"unique_id": "a", "ds": DATES, "y": [1.0, 2.0, np.nan, 4.0, np.nan, np.nan], **columns})


def keep(frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...]]:
    return tuple(keep_values(frame, ColumnNames(), freq=None, zone=None))


def test_other_columns_are_left_out_and_named() -> None:
    frame, ignored, messages = keep(make_frame(region="north", promo=np.nan))
    assert list(frame.columns) == ["unique_id", "ds", "y"]
    assert (len(frame), ignored, messages) == (6, ("region", "promo"), ())


@pytest.mark.parametrize("promo", [range(6), ["a", "b", "c", "d", "e", "f"], [[1], [2], [3], [4], [5], [6]]])
def test_rows_that_only_a_covariate_fills_are_the_future(promo: Any) -> None:
    frame, _, messages = keep(make_frame(promo=promo))
    assert list(frame["ds"]) == list(DATES[:4])
    assert "2 rows without 'y'" in messages[0]


def test_the_future_is_found_in_unsorted_rows_and_in_each_series() -> None:
    both = pd.concat([make_frame(promo=range(6)), make_frame(promo=np.nan).assign(unique_id="b")])
    frame, _, _ = keep(both.sample(frac=1, random_state=0))
    assert frame.groupby("unique_id").size().to_dict() == {"a": 4, "b": 6}


def test_empty_text_in_place_of_values_is_not_observed() -> None:
    frame, _, _ = keep(make_frame(promo=range(6)).assign(y=["1", "2", "", "4", " ", None]))
    assert list(frame["ds"]) == list(DATES[:4])


def test_a_series_without_observed_values_is_kept_for_its_error() -> None:
    frame, _, messages = keep(make_frame(promo=range(6)).assign(y=np.nan))
    assert (len(frame), messages) == (6, ())


def test_columns_of_any_kind_and_name_are_ignored() -> None:
    frame = make_frame(cells=[{}, [], None, 3, "x", b"y"], when=DATES)
    frame.columns = [*frame.columns[:3], 7, 7]
    assert keep(frame)[1] == ("7",)


def test_many_columns_are_counted() -> None:
    message = describe_ignored_columns([f"c{number}" for number in range(8)], num_series=3)
    assert "The columns c0, c1, c2, c3, c4 and 3 more of 3 series were ignored" in message
