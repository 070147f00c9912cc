"""The map in CONTRIBUTING.md: every path exists, what is named beside a path is in that file, and each entry is short."""

from __future__ import annotations

import re

import pytest

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
