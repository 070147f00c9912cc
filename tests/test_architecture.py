"""docs/architecture.md agrees with the code: its files and functions, its folders, and the arrows of its diagram."""

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


@cache
def names_of_file(path: Path) -> set[str]:
    """Functions, classes, methods and names that a file assigns."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    return names | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


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


def test_a_function_named_after_its_file_is_defined_there() -> None:
    pairs = re.findall(
        r"`((?:forecaster|pipelines|serving)/[\w/]+\.py)` `([\w.]+)`", " ".join(PAGE.read_text().split())
    )
    pairs = [(path, name) for path, name in pairs if not name.endswith(".py")]
    assert len(pairs) > 60
    missing = [(path, name) for path, name in pairs if name.rpartition(".")[2] not in names_of_file(CHECKOUT / path)]
    assert missing == []


def list_drawn_imports(package: str) -> set[tuple[str, str]]:
    """The arrows of the diagram of a package, as names of folders and of files without their suffix."""
    part = re.search(rf"(?s)### {package}\n\n```mermaid\nflowchart TB\n(.*?)\n```", PAGE.read_text())
    assert part is not None
    labels = {name: label.removesuffix(".py") for name, label in re.findall(r"(\w+)\[([\w.]+)\]", part[1])}

    def read_names(text: str) -> list[str]:
        names = [re.sub(r"\[.*\]", "", name.strip()) for name in text.split("&")]
        return [labels.get(name, name) for name in names]

    arrows = [line.split("-->") for line in part[1].splitlines() if "-->" in line]
    return {(start, end) for left, right in arrows for start in read_names(left) for end in read_names(right)}


def list_imports(package: str) -> set[tuple[str, str]]:
    """The imports between the folders and files at the top of a package, apart from its own `__init__`."""
    imports = set()
    for path in (CHECKOUT / package).rglob("*.py"):
        importer = path.relative_to(CHECKOUT / package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or importer == "__init__":
                continue
            modules = (
                [f"{package}.{name.name}" for name in node.names] if node.module == package else [str(node.module)]
            )
            imported = {module.split(".")[1] for module in modules if module.startswith(f"{package}.")}
            imports |= {(importer, name) for name in imported if name != importer and name != "__version__"}
    return imports


def list_implied(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows, and those that follow from them."""
    implied = set(arrows)
    while True:
        further = {(start, end) for start, middle in implied for other, end in arrows if middle == other} - implied
        if not further:
            return implied
        implied |= further


@pytest.mark.parametrize("package", PACKAGES)
def test_the_arrows_of_the_diagram_are_the_imports(package: str) -> None:
    drawn, imports = list_drawn_imports(package), list_imports(package)
    assert len(drawn) > 10
    assert drawn - imports == set(), "these arrows are no imports"
    assert imports - list_implied(drawn) == set(), "these imports are not drawn"
    assert {arrow for arrow in drawn if arrow in list_implied(drawn - {arrow})} == set(), (
        "these arrows follow from others"
    )


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
