"""The reference of the Python interface: the public names, which mkdocstrings describes from their docstrings."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import NamedTuple

import forecaster
from docs.generator.markdown import render_page, render_table, take_first_paragraph


class PublicName(NamedTuple):
    """A public name, with the path at which mkdocstrings finds its definition."""

    name: str
    path: str
    summary: str


# Modules with public names, and a title for each; `__all__` lists the names.
MODULES = {"forecaster": "Library", "forecaster.client": "Client of the service"}


def list_public_names(module_name: str) -> Iterator[PublicName]:
    """Yields the names in `__all__` of a module, classes and functions with capital letters first."""
    module = import_module(module_name)
    for name in sorted(module.__all__, key=lambda name: (name.islower(), name != "Forecaster", name)):
        value = getattr(module, name)
        yield PublicName(name, f"{value.__module__}.{value.__qualname__}", take_first_paragraph(value.__doc__))


def build_page() -> str:
    """Returns the page."""
    return render_page(
        "Python reference",
        f"The public names of version {forecaster.__version__}, from their docstrings. [Python](../python.md) is the guide.",
        *(part for module_name, title in MODULES.items() for part in _render_module(module_name, title)),
    )


def _render_module(module_name: str, title: str) -> Iterator[str]:
    names = list(list_public_names(module_name))
    yield f"## {title}"
    imports = "".join(f"    {item.name},\n" for item in names)  # as the formatter of the project writes them
    yield f"```python\nfrom {module_name} import (\n{imports})\n```"
    yield render_table(("name", "what it is"), ((f"`{item.name}`", item.summary) for item in names))
    for item in names:
        yield f"### {item.name}"
        yield f"::: {item.path}"
