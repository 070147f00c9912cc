"""Pages of notebooks: the cells of a script in the percent format of Jupytext, as Markdown."""

from __future__ import annotations

import re
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell of a notebook: its text, and whether it is Markdown."""

    text: str
    is_markdown: bool


def split_cells(script: str) -> list[Cell]:
    """Splits a script at its marks `# %%`; the header before the first one is left out."""
    parts = re.split(r"(?m)^# %%(.*)\n", script)
    cells = []
    for mark, content in zip(parts[1::2], parts[2::2], strict=True):
        is_markdown = mark.strip() == "[markdown]"
        text = re.sub(r"(?m)^# ?", "", content) if is_markdown else content
        cells.append(Cell(text.strip(), is_markdown))
    return [cell for cell in cells if cell.text]


def render_notebook(script: str, *, name: str) -> str:
    """Returns the page of a notebook, with the title of its first cell; `name` is its file without the suffix."""
    title, *cells = split_cells(script)
    heading, _, introduction = title.text.partition("\n")
    origin = (
        f"This page is the script `docs/notebooks/{name}.py`. `make notebooks` writes it as `build/notebooks/{name}.ipynb`; a "
        "nightly test runs it."
    )
    blocks = [cell.text if cell.is_markdown else f"```python\n{cell.text}\n```" for cell in cells]
    return "\n\n".join([heading, introduction.strip(), origin, *blocks]) + "\n"
