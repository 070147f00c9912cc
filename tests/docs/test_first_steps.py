"""The programs of docs/first-steps.md and docs/python.md: what they return, and how many lines they have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from docs.generator.blocks import find_blocks
from tests.forecaster.api.conftest import make_frame
from tests.system.processes import CHECKOUT

DOCS = CHECKOUT / "docs"


def read_programs(page: str) -> list[str]:
    """Returns the Python programs of a page."""
    return [block.source for block in find_blocks(DOCS / page) if block.language == "python"]


def count_lines(program: str) -> int:
    return sum(bool(line.strip()) and not line.startswith("#") for line in program.splitlines())


@pytest.mark.integration
@pytest.mark.usefixtures("short_presets")
@pytest.mark.filterwarnings("ignore::forecaster.api.ForecastWarning")
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_the_first_steps_run_as_they_are_printed(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, program, polars_lines = read_programs("first-steps.md")
    assert count_lines(program) <= 12
    if library == "polars":
        pytest.importorskip("polars")
        first, second = filter(None, polars_lines.splitlines())
        program = program.replace("import pandas as pd", first)
        program = re.sub(r"(?m)^df = .*$", second, program)
    monkeypatch.chdir(tmp_path)
    make_frame(series=2, steps=84).to_csv("sales.csv", index=False)
    results: dict[str, Any] = {}
    exec(compile(program, "first-steps.md", "exec"), results)
    for name in ("forecast", "scores"):
        assert type(results[name]).__module__.split(".")[0] == library
    assert list(results["forecast"].columns)[:4] == ["unique_id", "ds", "forecaster", "forecaster-lo-80"]
    assert len(results["scores"]) == 2 * 2 * 12
    assert len(results["later"]) == 2 * 6
    assert Path("forecast.png").stat().st_size > 10_000


def test_the_first_forecast_takes_three_lines() -> None:
    assert count_lines(read_programs("first-steps.md")[0]) == 3


def test_the_comparison_of_libraries_states_the_lines_of_its_programs() -> None:
    text = (DOCS / "python.md").read_text()
    stated = dict(re.findall(r"(?m)^\| \[?(\w+)\]?(?:\([^)]*\))? \| (\d+)(?: for each series)? \|", text))
    programs = {
        program.split()[1].rstrip(","): count_lines(program)
        for program in read_programs("python.md")
        if program.startswith("# ")
    }
    programs["forecaster"] = count_lines(read_programs("first-steps.md")[1])
    assert len(programs) == 6
    assert programs == {name: int(lines) for name, lines in stated.items()}


def test_the_reference_names_every_argument() -> None:
    """Those of the class are in its table; the methods are described by their docstrings."""
    from inspect import signature

    from forecaster import Forecaster

    text = (DOCS / "python.md").read_text()
    assert [name for name in signature(Forecaster).parameters if f"`{name}`" not in text] == []
    for name, method in vars(Forecaster).items():
        if callable(method) and not name.startswith("_"):
            parameters = [parameter for parameter in signature(method).parameters if parameter not in ("self", "cls")]
            assert [parameter for parameter in parameters if parameter not in (method.__doc__ or "")] == [], name


def test_the_frame_of_the_page_has_the_columns_that_it_names() -> None:
    rows = re.findall(r"(?m)^\| (.+) \|$", (DOCS / "first-steps.md").read_text())
    assert rows[0].split(" | ") == list(pd.DataFrame(make_frame()).columns)
