"""The notebooks of docs/notebooks: their cells, their pages, and what they compute when they run."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generator.notebooks import render_notebook, split_cells
from docs.generator.site import read_navigation
from tests.optional_packages import import_optional
from tests.system.processes import CHECKOUT

SCRIPTS = sorted((CHECKOUT / "docs" / "notebooks").glob("*.py"))
JUPYTEXT = CHECKOUT / "build" / "docs-venv" / "bin" / "jupytext"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("FORECASTER_", "MLFLOW_"))},
    "PYTHONPATH": str(CHECKOUT),
    "MPLBACKEND": "agg",
    "PYTHONWARNINGS": "ignore",
}
by_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def test_every_notebook_is_a_page_of_the_site() -> None:
    pages = {entry.page for entry in read_navigation() if entry.page.startswith("notebooks/")}
    assert pages == {f"notebooks/{script.stem}.md" for script in SCRIPTS}
    assert len(SCRIPTS) == 3


@by_script
def test_a_notebook_begins_with_its_title_and_its_code_is_complete(script: Path) -> None:
    first, *cells = split_cells(script.read_text())
    assert first.is_markdown
    assert re.match(r"# .+\n\n[A-Z]", first.text)
    code = "\n".join(cell.text for cell in cells if not cell.is_markdown)
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(script.read_text()))
    page = render_notebook(script.read_text(), name=script.stem)
    assert page.count("```python") == sum(not cell.is_markdown for cell in cells)


def test_cells_are_split_at_their_marks() -> None:
    script = "# ---\n# jupyter: x\n# ---\n\n# %% [markdown]\n# # Title\n#\n# Text, a `# %%` in it.\n\n# %%\na = 1  # %% no mark\n"
    assert [(cell.text, cell.is_markdown) for cell in split_cells(script)] == [
        ("# Title\n\nText, a `# %%` in it.", True),
        ("a = 1  # %% no mark", False),
    ]


@pytest.mark.nightly
@by_script
def test_a_notebook_runs_as_a_script(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(script)]
    completed = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    match script.stem:
        case "first_steps":
            assert "48 series" in completed.stdout
            assert (tmp_path / "hospital" / "manifest.json").is_file()
        case "streaming_and_explaining":
            difference = re.search(r"(?m)^difference: (\S+)$", completed.stdout)
            assert difference is not None
            assert float(difference[1]) < 1e-4
            sizes = re.search(r"first request: (\d+) and of the largest later one: (\d+)", completed.stdout)
            assert sizes is not None
            assert int(sizes[1]) > 1.5 * int(sizes[2])


@pytest.mark.nightly
@by_script
@pytest.mark.skipif(not JUPYTEXT.exists(), reason="needs jupytext: make notebooks")
def test_a_notebook_runs_as_a_notebook(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = import_optional("nbclient")
    import_optional("ipykernel")
    import nbformat

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND")  # the kernel has one of its own, which shows pictures in the notebook
    command = [str(JUPYTEXT), "--quiet", "--to", "ipynb", "--output", str(tmp_path / "notebook.ipynb"), str(script)]
    subprocess.run(command, check=True)
    notebook = nbformat.read(tmp_path / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs), "a picture is shown"
