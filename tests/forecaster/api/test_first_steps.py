"""The programs of first-steps.md, explaining.md and python.md run as they are printed, and have as many lines as they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from forecaster.spec import Spec
from forecaster.training import presets, selection
from tests.forecaster.api.conftest import make_frame

DOCS = Path(__file__).parents[3] / "docs"


def read_programs(page: str) -> list[str]:
    """Returns the Python programs of a page."""
    return re.findall(r"(?s)```python\n(.*?)```", (DOCS / page).read_text())


def count_lines(program: str) -> int:
    return sum(bool(line.strip()) and not line.startswith("#") for line in program.splitlines())


@pytest.fixture
def short_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets whose variants are trained for a few steps."""

    def build_short_specs(*arguments: Any, **options: Any) -> list[Spec]:
        specs = presets.build_candidate_specs(*arguments, **options)
        training = {"steps": 4, "epoch_steps": 2, "batch": 8}
        return [spec.model_copy(update={"training": spec.training.model_copy(update=training)}) for spec in specs[:2]]

    monkeypatch.setattr(selection, "build_candidate_specs", build_short_specs)


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


@pytest.mark.integration
def test_the_example_of_an_atlas_runs_as_it_is_printed() -> None:
    [program] = read_programs("explaining.md")
    results: dict[str, Any] = {}
    exec(compile(program, "explaining.md", "exec"), results)
    assert list(results["table"]) == ["unique_id", "ds", "layer", "unit", "quantity", "value"]
    assert len(results["half_lives"]) == 2 * 96, "layers, units"
    assert list(results["matches"]) == ["unique_id", "start", "end", "shared", "selected", "extra", "chance"]


def test_the_first_forecast_takes_three_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = read_programs("first-steps.md")[0]
    assert count_lines(program) == 3
    monkeypatch.chdir(tmp_path)
    make_frame(series=2, steps=84).to_csv("sales.csv", index=False)
    results: dict[str, Any] = {}
    exec(compile(program, "first-steps.md", "exec"), results)
    assert len(results["forecast"]) == 2 * 12
    assert list(results["forecast"].columns)[:3] == ["unique_id", "ds", "forecaster"]
    assert "forecaster-lo-80" in results["forecast"]


def test_the_programs_of_the_pretrained_network_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [program] = read_programs("pretrained.md")
    monkeypatch.chdir(tmp_path)
    make_frame(series=2, steps=84).to_csv("data.csv", index=False)
    results: dict[str, Any] = {}
    exec(compile(program, "pretrained.md", "exec"), results)
    assert len(results["forecast"]) == 2 * 12
    assert (results["scores"]["windows"] == 2 * 4).all()


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
