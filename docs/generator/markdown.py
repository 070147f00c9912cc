"""Pieces of Markdown that generated pages consist of."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

HEADER = "<!-- Generated from the code by `make docs-data`; do not edit. -->\n"


def render_page(title: str, *parts: str) -> str:
    """Returns a page with the mark of generated pages, a title, and parts separated by empty lines."""
    return "\n\n".join([f"{HEADER}\n# {title}", *(part.strip() for part in parts if part.strip())]) + "\n"


def render_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; line breaks and vertical bars in cells are escaped. Empty without rows."""
    lines = [f"| {' | '.join(escape_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *lines]) if lines else ""


def escape_cell(text: str) -> str:
    """Returns a text as the content of one cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", join_lines(text))


def join_lines(text: str) -> str:
    """Returns a text on one line."""
    return " ".join(text.split())


def take_first_paragraph(docstring: str | None) -> str:
    """Returns the first paragraph of a docstring on one line."""
    return join_lines(inspect.cleandoc(docstring or "").split("\n\n")[0])


def take_table(docstring: str | None) -> str:
    """Returns the table in a docstring, with its head."""
    return "\n".join(line for line in inspect.cleandoc(docstring or "").splitlines() if line.startswith("|"))


def to_anchor(heading: str) -> str:
    """Returns the anchor that GitHub and the site give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def finish_sentence(text: str) -> str:
    """Returns a description on one line, with a capital letter at its start and a full stop at its end."""
    line = join_lines(text)
    if not line:
        return ""
    if re.match(r"[a-z][a-z-]*,?( |$)", line):  # a name or a choice (`seasonal_error:`) keeps its case
        line = line[0].upper() + line[1:]
    return line if line.endswith((".", "?", "!")) else f"{line}."
