"""The README fits on two screens, its tables are those of the results, and the links of all documents lead somewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.system.processes import CHECKOUT

DOCUMENTS = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]


def anchors_of(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"(?m)^#{1,6} (.+)$", path.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-") for heading in headings}


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((CHECKOUT / "README.md").read_text().splitlines()) <= 150


def test_the_tables_of_the_readme_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    import readme_tables

    text = (CHECKOUT / "README.md").read_text()
    assert readme_tables.insert_tables(text) == text, "run python benchmarks/readme_tables.py"
    assert "**0.704**" in readme_tables.accuracy_table()[2]
    altered = text.replace("| **0.704** |", "| **0.500** |")
    assert readme_tables.insert_tables(altered) == text
    for name, tables in readme_tables.DOCUMENTS.items():
        document = (CHECKOUT / name).read_text()
        assert readme_tables.insert_tables(document, tables) == document, (
            f"{name}: run python benchmarks/readme_tables.py"
        )
    sys.modules.pop("readme_tables")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_links_lead_to_files_and_headings(path: Path) -> None:
    broken = []
    text = re.sub(r"(?s)```.*?```", "", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        link = target[0] or target[1]
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            broken.append(link)
    assert broken == []
