"""The folder from which the site is built: the pages of the checkout with fitting links, indexes, `openapi.json`, `llms.txt`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from docs.generator.http_service import build_openapi_text
from docs.generator.indexes import build_benchmark_index, build_decision_index, read_summary, read_title
from docs.generator.links import rewrite_links
from docs.generator.notebooks import render_notebook

CHECKOUT = Path(__file__).parents[2]
STAGING = CHECKOUT / "build" / "site-source"
CONFIGURATION = CHECKOUT / "mkdocs.yml"
# Pages outside of docs/ that the site has too, with their places.
FURTHER_PAGES = {
    "README.md": "index.md",  # only for links: docs/index.md is the page
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks/running.md",
    "forecaster/data/SOURCES.md": "data-sources.md",
}
# Folders whose page is a generated index.
INDEXES = {"docs/decisions": "decisions/index.md", "benchmarks/results": "benchmarks/index.md"}
_SUFFIXES = {".md", ".png", ".svg", ".txt", ".css", ".js"}
_LEFT_OUT = {"generator"}


class Entry(NamedTuple):
    """A page in the navigation of the site."""

    section: str
    title: str
    page: str


def stage_site(checkout: Path = CHECKOUT, staging: Path = STAGING) -> None:
    """Writes the folder from which the site is built anew."""
    shutil.rmtree(staging, ignore_errors=True)
    places = find_places(checkout)
    for source, place in places.items():
        if source.is_dir() or (source.name == "README.md" and source.parent == checkout):
            continue
        target = staging / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".md":
            text = source.read_text(encoding="utf-8")
            text = render_notebook(text, name=source.stem) if source.suffix == ".py" else text
            target.write_text(rewrite_links(text, source=source, target=place, places=places), encoding="utf-8")
        else:
            shutil.copyfile(source, target)
    decisions, benchmarks = (staging / place for place in INDEXES.values())
    decisions.write_text(build_decision_index(checkout / "docs" / "decisions"), encoding="utf-8")
    readme = (checkout / "benchmarks" / "README.md").read_text(encoding="utf-8")
    benchmarks.write_text(build_benchmark_index(checkout / "benchmarks" / "results", readme), encoding="utf-8")
    (staging / "openapi.json").write_text(build_openapi_text(), encoding="utf-8")
    (staging / "llms.txt").write_text(build_llms_text(read_navigation(), staging), encoding="utf-8")


def find_places(checkout: Path) -> dict[Path, PurePosixPath]:
    """Returns the place in the site of every file that it has, and of the folders with an index, by their paths."""
    docs, results = checkout / "docs", checkout / "benchmarks" / "results"
    places = {
        path: PurePosixPath(path.relative_to(docs))
        for path in sorted(docs.rglob("*"))
        if (path.suffix in _SUFFIXES or path.name == "LICENSE") and not _LEFT_OUT & set(path.relative_to(docs).parts)
    }
    places |= {
        path: PurePosixPath("benchmarks", path.name) for path in sorted(results.iterdir()) if path.suffix in _SUFFIXES
    }
    notebooks = sorted((docs / "notebooks").glob("*.py"))
    places |= {path: PurePosixPath(path.relative_to(docs)).with_suffix(".md") for path in notebooks}
    places |= {checkout / name: PurePosixPath(place) for name, place in FURTHER_PAGES.items()}
    return places | {checkout / folder: PurePosixPath(place) for folder, place in INDEXES.items()}


def read_navigation(configuration: Path = CONFIGURATION) -> list[Entry]:
    """Returns the pages in the navigation of the site, in order."""
    fields = yaml.load(configuration.read_text(encoding="utf-8"), Loader=_ConfigurationLoader)  # noqa: S506 - a safe loader
    return list(_walk_navigation(fields["nav"], ""))


def _walk_navigation(items: list[Any], section: str) -> Iterator[Entry]:
    for item in items:
        [(title, content)] = item.items()
        if isinstance(content, str):
            yield Entry(section or title, title, content)
        else:
            yield from _walk_navigation(content, section or title)


class _ConfigurationLoader(yaml.SafeLoader):
    """Reads the configuration of MkDocs, whose names of Python functions remain text."""


_ConfigurationLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda _, suffix, __: suffix)


def build_llms_text(entries: list[Entry], staging: Path) -> str:
    """Returns the overview for language models (llmstxt.org): every page of the navigation with its address and one line."""
    lines = ["# forecaster", "", f"> {read_summary((staging / 'index.md').read_text(encoding='utf-8'))}"]
    lines += ["", "[openapi.json](openapi.json) is the OpenAPI document of the service, with sorted keys."]
    section = ""
    for entry in entries:
        if entry.section != section:
            section = entry.section
            lines += ["", f"## {section}", ""]
        text = (staging / entry.page).read_text(encoding="utf-8")
        summary = read_summary(text)
        address = str(PurePosixPath(entry.page).with_suffix(".html"))
        lines.append(
            f"- [{entry.title if entry.title != section else read_title(text)}]({address})"
            + (f": {summary}" if summary else "")
        )
    return "\n".join(lines) + "\n"


def list_missing_pages(navigation: list[Entry]) -> list[str]:
    """Returns the pages of docs/ that are not in the navigation; folders with an index need no entry for each page."""
    listed = {entry.page for entry in navigation}
    indexed = {str(PurePosixPath(place).parent) for place in INDEXES.values()}
    docs = CHECKOUT / "docs"
    pages = (PurePosixPath(path.relative_to(docs)) for path in docs.rglob("*.md"))
    return sorted(str(page) for page in pages if str(page) not in listed and page.parts[0] not in indexed | {"assets"})
