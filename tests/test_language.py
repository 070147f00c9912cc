"""Words of a private dialect that this project once used do not return, as identifiers or in text that people read.

`docs/decisions/0029-layout-and-vocabulary.md` says why the names and words of the field are used instead.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("forecaster", "pipelines", "serving")
SOURCES = sorted(path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py"))
PAGE = sorted(path for kind in ("js", "html") for path in (CHECKOUT / "serving" / "page").glob(f"*.{kind}"))
DOCUMENTS = [
    CHECKOUT / "README.md",
    CHECKOUT / "CONTRIBUTING.md",
    *sorted(
        path
        for pattern in ("*.md", "coming-from/*.md", "concepts/*.md", "guides/*.md", "operate/*.md", "skill/*.md")
        for path in (CHECKOUT / "docs").glob(pattern)
        if path.name != "experiments.md"  # a log quotes its time
    ),
]

# Parts of identifiers, between underscores.
FORBIDDEN_IN_NAMES = {
    "told",
    "tell",
    "tells",
    "untell",
    "asked",
    "foretell",
    "foretold",
    "whoever",
    "hush",
    "errand",
    "mended",
}
# Names that are contracts: a column of the ledger, and the method that a file object has.
CONTRACT_NAMES = {"told_at", "tell"}
FORBIDDEN_IN_TEXT = re.compile(
    r"\b(?:foretells?|foretold|untell|whoever|what came|who asks|stand-ins?\b(?!_)|stands? in for|kept waiting|in its company"
    r"|is told|are told|was told|is asked|are asked|so many of)\b",
    re.IGNORECASE,
)


def names_in(path: Path) -> Iterator[tuple[int, str]]:
    """Every identifier of a file, with its line."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def text_in(path: Path) -> Iterator[tuple[int, str]]:
    """Every string and docstring of a Python file, and every line of another file."""
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.lineno, node.value
    else:
        yield from enumerate(path.read_text().splitlines(), start=1)


def forbidden_names(path: Path) -> list[str]:
    return [
        f"{path.relative_to(CHECKOUT)}:{line}: {name}"
        for line, name in names_in(path)
        if FORBIDDEN_IN_NAMES & set(name.lower().split("_")) and name not in CONTRACT_NAMES
    ]


def forbidden_text(path: Path) -> list[str]:
    return [
        f"{path.relative_to(CHECKOUT)}:{line}: {match[0]}"
        for line, text in text_in(path)
        for match in FORBIDDEN_IN_TEXT.finditer(text)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_identifier_uses_the_dialect(package: str) -> None:
    paths = [path for path in SOURCES if path.relative_to(CHECKOUT).parts[0] == package]
    assert paths
    assert [found for path in paths for found in forbidden_names(path)] == []


@pytest.mark.parametrize("paths", [SOURCES, PAGE, DOCUMENTS], ids=["sources", "page", "documents"])
def test_no_text_uses_the_dialect(paths: list[Path]) -> None:
    assert paths
    assert [found for path in paths for found in forbidden_text(path)] == []


def test_the_search_finds_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.CHECKOUT", tmp_path)
    source = tmp_path / "dialect.py"
    source.write_text('"""What came, and whoever asks."""\n\nasked_for = foretell = 1\n')
    assert forbidden_names(source) == ["dialect.py:3: asked_for", "dialect.py:3: foretell"]
    assert forbidden_text(source) == ["dialect.py:1: What came", "dialect.py:1: whoever"]


def test_every_class_name_has_one_meaning() -> None:
    owners: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                owners.setdefault(node.name, []).append(str(path.relative_to(CHECKOUT)))
    assert {name: paths for name, paths in owners.items() if len(paths) > 1} == {}
