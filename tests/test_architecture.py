"""docs/architecture.md names only files and functions that exist, and every folder and file at the top of the packages."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PAGE = CHECKOUT / "docs" / "architecture.md"
PACKAGES = ("forecaster", "pipelines", "serving")
RESERVED = {
    "api.py",
    "forecaster/api.py",
    "Forecaster",
}
TERMS = re.findall(r"`([^`\n]+)`", PAGE.read_text())


@cache
def defined_names() -> set[str]:
    """Functions, classes, constants and attributes of the packages; methods and attributes also as `Class.name`."""
    names: set[str] = set()
    for package in PACKAGES:
        for path in (CHECKOUT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    names.add(node.name)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    names.add(node.id)
                if isinstance(node, ast.ClassDef):
                    for member in ast.walk(node):
                        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                            names.add(f"{node.name}.{member.name}")
                        elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                            names.add(f"{node.name}.{member.target.id}")
                        elif isinstance(member, ast.Attribute) and isinstance(member.ctx, ast.Store):
                            names.add(f"{node.name}.{member.attr}")
    return names


@pytest.mark.parametrize(
    "term", sorted({term for term in TERMS if re.fullmatch(r"[\w./]+(?:\.py|/)", term)} - RESERVED)
)
def test_a_named_file_or_folder_exists(term: str) -> None:
    places = [CHECKOUT, *(CHECKOUT / package for package in PACKAGES), CHECKOUT / "forecaster/model/recurrence"]
    assert any((place / term).exists() for place in places)


@pytest.mark.parametrize(
    "term",
    sorted(
        {
            term
            for term in TERMS
            if re.fullmatch(r"_?[A-Za-z]\w*(?:\.\w+)?", term)
            and re.search(r"[A-Z_]", term)
            and not term.endswith(".py")
        }
        - RESERVED
    ),
)
def test_a_named_function_or_class_exists(term: str) -> None:
    assert term in defined_names()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_and_file_at_the_top_of_a_package_is_described(package: str) -> None:
    top = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (CHECKOUT / package).iterdir()
        if not path.name.startswith(("__init__", "__pycache__", "py.typed"))
    }
    assert {name for name in top if f"`{name}`" not in PAGE.read_text()} == set()


@pytest.mark.parametrize(("package", "most"), [("forecaster", 24), ("pipelines", 16), ("serving", 14)])
def test_a_package_has_few_names_at_its_top(package: str, most: int) -> None:
    names = [path for path in (CHECKOUT / package).iterdir() if not path.name.startswith(("__", "py.typed"))]
    assert len(names) <= most
