"""The reference of errors: the tree of `forecaster.errors` and the codes of the service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from docs.generator.markdown import finish_sentence, render_page, render_table, take_first_paragraph
from forecaster import errors
from forecaster.errors import ForecasterError, InputError
from serving.errors import ERROR_CODES

_INDENT = "&nbsp;&nbsp;&nbsp;"


class TreeLine(NamedTuple):
    """A line of the tree at the top of `forecaster.errors`."""

    depth: int
    meaning: str


def read_tree() -> dict[str, TreeLine]:
    """Returns the lines of the tree, by class name."""
    tree: dict[str, TreeLine] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([ │├└─]*)([A-Z]\w+)(?: {2,}(.*?))?(?: {2,}exit.*)?$", line)
        if match:
            tree[match[2]] = TreeLine(len(match[1]) // 4, (match[3] or "").strip())
    return tree


def list_errors(
    root: type[ForecasterError] = ForecasterError, depth: int = 0
) -> Iterator[tuple[int, type[ForecasterError]]]:
    """Yields every class of the tree with its depth, a class before its subclasses."""
    yield depth, root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from list_errors(child, depth + 1)


def build_page() -> str:
    """Returns the page."""
    tree = read_tree()
    rows = (
        (
            f"{_INDENT * depth}`{error.__name__}`",
            f"`{error.code}`",
            str(error.exit_code),
            _find_status(error),
            describe(error, tree),
        )
        for depth, error in list_errors()
    )
    codes = (
        (f"`{code}`", str(status), meaning)
        for code, (status, meaning) in sorted(ERROR_CODES.items(), key=lambda item: item[1][0])
    )
    return render_page(
        "Errors",
        "All errors that the project raises deliberately are subclasses of `forecaster.ForecasterError`. A message has four "
        "parts: what was expected, what was found, where, and what to do. In Python they have the attributes `message`, `where` "
        "and `code`; the command line prints the message and exits with the exit code; the service responds with "
        '`{"error": {"code", "message", "where"}}`.',
        "## Classes",
        "The status is that of a request whose only result is this error. Without one, the service does not send the error.",
        render_table(("class", "code", "exit code", "HTTP status", "meaning"), rows),
        "## Codes of the service",
        "Codes that only the service has, and those of the classes above that have a status of their own.",
        render_table(("code", "HTTP status", "meaning"), codes),
    )


def _find_status(error: type[ForecasterError]) -> str:
    if error.code in ERROR_CODES:
        return str(ERROR_CODES[error.code][0])
    return "422" if issubclass(error, InputError) else ""


def describe(error: type[ForecasterError], tree: dict[str, TreeLine]) -> str:
    """Returns the meaning of an error: its line of the tree, or for the root its docstring; empty if it has none."""
    if error is ForecasterError:
        return take_first_paragraph(error.__doc__)
    return finish_sentence(tree[error.__name__].meaning) if error.__name__ in tree else ""
