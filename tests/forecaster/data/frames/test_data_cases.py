"""The table of docs/data.md, row by row."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from forecaster.data.frames.panel import to_panel
from forecaster.errors import (
    BadId,
    BadStamp,
    CovariateUnknown,
    DuplicateColumn,
    DuplicateStamp,
    FrequencyUnknown,
    GridTooLarge,
    IrregularStamps,
    MissingColumn,
    NoData,
    NotANumber,
    StaticChanges,
    ValueOutOfRange,
    ZoneUnknown,
)
from tests.forecaster.data.frames.column_cases import COLUMN_CASES
from tests.forecaster.data.frames.long_frames import is_regular
from tests.forecaster.data.frames.value_cases import VALUE_AND_TIMESTAMP_CASES

ROOT = Path(__file__).parents[4]
CASES = VALUE_AND_TIMESTAMP_CASES | COLUMN_CASES


def read_documentation_table() -> dict[str, tuple[str, str]]:
    """The rows of docs/data.md: what happens and the error's name, by case."""
    page = (ROOT / "docs/data.md").read_text().split("## Columns")[1].split("## Time zones and steps")[0]
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [row for row in cells if row[0] != "case"]
    assert len({row[0] for row in rows}) == len(rows), "a case is listed twice"
    return {row[0]: (row[1], row[2].strip("`")) for row in rows}


@pytest.mark.parametrize("name", CASES)
def test_a_documented_data_case(name: str) -> None:
    case = CASES[name]
    frame = case.frame()
    before = frame.copy()
    if case.error is None:
        panel = to_panel(frame, **case.options)
        assert bool(panel.repairs) == bool(case.message)
        assert re.search(case.message, "\n".join(panel.repairs))
        assert case.check(panel)
        assert is_regular(panel)
    else:
        with pytest.raises(case.error, match=case.message) as caught:
            to_panel(frame, **case.options)
        assert type(caught.value) is case.error
        assert caught.value.where
        assert len(caught.value.message) < 600
    pd.testing.assert_frame_equal(frame, before)  # the input is not modified


def test_the_documentation_table_and_the_tests_have_the_same_rows() -> None:
    assert list(read_documentation_table()) == list(CASES)


def test_the_documentation_table_states_the_outcome() -> None:
    for name, case in CASES.items():
        happens, error = read_documentation_table()[name]
        verdict = "refused" if case.error else "repaired and reported" if case.message else "accepted"
        assert happens.startswith((verdict, "accepted and reported") if case.message and not case.error else verdict), (
            name
        )
        assert error == (case.error.__name__ if case.error else ""), name


def test_every_frame_error_class_is_in_the_documentation_table() -> None:
    kinds = {BadId, BadStamp, CovariateUnknown, DuplicateColumn, DuplicateStamp, FrequencyUnknown, GridTooLarge}
    kinds |= {IrregularStamps, MissingColumn, NoData, NotANumber, StaticChanges, ValueOutOfRange, ZoneUnknown}
    assert {case.error for case in CASES.values() if case.error} == kinds
