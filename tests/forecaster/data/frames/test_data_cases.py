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
from tests.forecaster.data.frames.column_cases import OF_FURTHER_COLUMNS
from tests.forecaster.data.frames.long_frames import regular
from tests.forecaster.data.frames.value_cases import OF_VALUES_AND_STAMPS

ROOT = Path(__file__).parents[4]
CASES = OF_VALUES_AND_STAMPS | OF_FURTHER_COLUMNS


def table() -> dict[str, tuple[str, str]]:
    """The rows of docs/data.md: what happens and the error's name, by case."""
    page = (ROOT / "docs/data.md").read_text().split("## Columns")[1].split("## Where time is")[0]
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [row for row in cells if row[0] != "case"]
    assert len({row[0] for row in rows}) == len(rows), "a case is told twice"
    return {row[0]: (row[1], row[2].strip("`")) for row in rows}


@pytest.mark.parametrize("name", CASES)
def test_a_case_of_the_table(name: str) -> None:
    case = CASES[name]
    frame = case.frame()
    before = frame.copy()
    if case.refused is None:
        panel = to_panel(frame, **case.options)
        assert bool(panel.repairs) == bool(case.says)
        assert re.search(case.says, "\n".join(panel.repairs))
        assert case.holds(panel)
        assert regular(panel)
    else:
        with pytest.raises(case.refused, match=case.says) as caught:
            to_panel(frame, **case.options)
        assert type(caught.value) is case.refused
        assert caught.value.where
        assert len(caught.value.message) < 600
    pd.testing.assert_frame_equal(frame, before)  # what was given is left as it was


def test_the_table_and_its_tests_have_the_same_rows() -> None:
    assert list(table()) == list(CASES)


def test_the_table_tells_what_happens() -> None:
    for name, case in CASES.items():
        happens, error = table()[name]
        verdict = "refused" if case.refused else "repaired and reported" if case.says else "accepted"
        assert happens.startswith(verdict), name
        assert error == (case.refused.__name__ if case.refused else ""), name


def test_every_kind_of_frame_error_is_in_the_table() -> None:
    kinds = {BadId, BadStamp, CovariateUnknown, DuplicateColumn, DuplicateStamp, FrequencyUnknown, GridTooLarge}
    kinds |= {IrregularStamps, MissingColumn, NoData, NotANumber, StaticChanges, ValueOutOfRange, ZoneUnknown}
    assert {case.refused for case in CASES.values() if case.refused} == kinds
