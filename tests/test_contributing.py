"""CONTRIBUTING.md: every path of its map exists, what is named beside it is in that file, and skipped tests name its commands."""

from __future__ import annotations

import re
import sys

import pytest

from tests.optional_packages import REQUIREMENTS, import_optional
from tests.system.processes import CHECKOUT

KINDS = [
    *("head", "scaling", "decoder", "cell", "route", "command", "source of data", "metric", "setting"),
    "check of the promotion gate",
]
MOST_LINES = 10
PAGE = (CHECKOUT / "CONTRIBUTING.md").read_text()
MAP = PAGE.partition("## I want to add ...\n")[2].partition("\n## ")[0]
ENTRIES = {
    title.removeprefix("A ").removeprefix("An "): text
    for title, text in re.findall(r"(?ms)^### (.+?)\n(.*?)(?=^### |\Z)", MAP)
}
PATH = re.compile(r"`([\w.]+(?:/[\w.]+)*/(?:[\w.-]+\.\w+)?)`")
NAME_IN_FILE = re.compile(
    r"`(\w+)`(?: and (?:the fields of )?`(\w+)`)?(?: (?:in|of)|,)? \(?`((?:[\w.]+/)+[\w.-]+\.\w+)`"
)


def test_the_map_has_its_entries() -> None:
    assert list(ENTRIES) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_every_path_of_an_entry_exists(kind: str) -> None:
    paths = PATH.findall(ENTRIES[kind])
    assert len(paths) >= 5
    assert [path for path in paths if not (CHECKOUT / path).exists()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_beside_a_path_is_in_that_file(kind: str) -> None:
    text = " ".join(ENTRIES[kind].split())
    pairs = [(name, path) for first, second, path in NAME_IN_FILE.findall(text) for name in (first, second) if name]
    assert pairs or kind == "command"
    assert [pair for pair in pairs if not re.search(rf"\b{pair[0]}\b", (CHECKOUT / pair[1]).read_text())] == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_has_a_test_and_few_lines(kind: str) -> None:
    lines = [line for line in ENTRIES[kind].splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES
    assert "`tests/" in ENTRIES[kind]


@pytest.mark.parametrize("package", REQUIREMENTS)
def test_a_test_without_its_package_names_it_and_the_command_of_the_page(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(pytest.skip.Exception) as raised:
        import_optional(package)
    needed, _, command = str(raised.value).partition(": ")
    assert needed.startswith(f"needs {package};")
    assert f"`{command}` |" in PAGE.partition("## Check\n")[2].partition("\n## ")[0]


def test_every_test_names_the_packages_of_no_lock_file_in_one_way() -> None:
    """A skip of its own would name no command."""
    found = [
        f"{path.name}: {package}"
        for path in sorted((CHECKOUT / "tests").rglob("*.py"))
        for package in re.findall(r"importorskip\(\"(\w+)", path.read_text())
        if package in REQUIREMENTS
    ]
    assert found == []
