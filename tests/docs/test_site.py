"""The site: its navigation has every page, links follow pages that move, and faults of a built site are found."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from docs.generator import screenshots
from docs.generator.indexes import read_summary, read_title
from docs.generator.links import rewrite_links
from docs.generator.site import build_llms_text, list_missing_pages, read_navigation, stage_site
from docs.generator.site_check import MERMAID, check_site
from tests.system.processes import CHECKOUT

NAVIGATION = read_navigation()
MKDOCS = CHECKOUT / "build" / "docs-venv" / "bin" / "mkdocs"


@pytest.fixture(scope="module")
def staging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "source"
    stage_site(CHECKOUT, folder)
    return folder


def test_every_page_is_in_the_navigation() -> None:
    assert list_missing_pages(NAVIGATION) == [], "add a line to `nav` in mkdocs.yml"


def test_every_page_of_the_navigation_exists(staging: Path) -> None:
    assert [entry.page for entry in NAVIGATION if not (staging / entry.page).is_file()] == []
    assert {"Get started", "Guides", "Operate", "Concepts", "Reference"} <= {entry.section for entry in NAVIGATION}


def test_the_indexes_have_every_decision_and_result(staging: Path) -> None:
    decisions = (staging / "decisions" / "index.md").read_text()
    assert all(f"]({path.name})" in decisions for path in (CHECKOUT / "docs" / "decisions").glob("*.md"))
    benchmarks = (staging / "benchmarks" / "index.md").read_text()
    assert all(f"]({path.name})" in benchmarks for path in (CHECKOUT / "benchmarks" / "results").glob("*.md"))


def test_links_of_staged_pages_lead_to_staged_files(staging: Path) -> None:
    broken = []
    for page in staging.rglob("*.md"):
        text = re.sub(r"(?ms)^ *```.*?^ *```|`[^`\n]*`", "", page.read_text())
        links = (link for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) if not re.match(r"[a-z]+:", link))
        broken += [f"{page.relative_to(staging)}: {link}" for link in links if not (page.parent / link).is_file()]
    assert broken == []


def test_the_overview_for_language_models_describes_every_page(staging: Path) -> None:
    lines = [line for line in build_llms_text(NAVIGATION, staging).splitlines() if line.startswith("- ")]
    assert len(lines) == len(NAVIGATION)
    assert "[openapi.json](openapi.json)" in build_llms_text(NAVIGATION, staging)
    assert "paths" in json.loads((staging / "openapi.json").read_text())
    assert [line for line in lines if not re.fullmatch(r"- \[[^\]]+\]\([\w/.-]+\.html\): .{10,}", line)] == []


def test_a_link_follows_its_page_and_one_outside_of_the_site_becomes_text(tmp_path: Path) -> None:
    source = tmp_path / "docs" / "a.md"
    places = {tmp_path / "results" / "b.md": PurePosixPath("benchmarks/b.md"), source: PurePosixPath("deep/a.md")}
    text = "[b](../results/b.md#c), [code](../setup.py), [x](https://e.org), `[b](../results/b.md)`\n\n"
    text += "```\n[b](../setup.py)\n```\n"
    rewritten = rewrite_links(text, source=source, target=PurePosixPath("deep/a.md"), places=places)
    assert rewritten.startswith("[b](../benchmarks/b.md#c), code, [x](https://e.org)")
    assert rewritten.endswith("```\n[b](../setup.py)\n```\n")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "b.md").write_text("# Results of b\n")
    named = rewrite_links("[b.md](../results/b.md#c)", source=source, target=PurePosixPath("deep/a.md"), places=places)
    assert named == "[Results of b](../benchmarks/b.md#c)", "a file name becomes the title of the page"
    with pytest.raises(ValueError, match=r"Expected the picture \.\./c\.png"):
        rewrite_links("![c](../c.png)", source=source, target=PurePosixPath("deep/a.md"), places=places)


def test_the_summary_of_a_page_is_its_first_sentence() -> None:
    page = "<!-- no -->\n# Title\n\n| a |\n|---|\n\n```\ncode\n```\n\nOne [link](x.md) here,\nand `more`. Another.\n"
    assert read_title(page) == "Title"
    assert read_summary(page) == "One link here, and `more`."
    assert read_summary("---\nname: a\n---\n\n# A\n\nThis is it. More.") == "This is it."
    assert read_summary("# 5. A\n\n## Context\nPickles execute code. A registry\n") == "Pickles execute code."


@pytest.mark.parametrize(
    ("element", "fault"),
    [
        ('<a href="b.html#there">x</a>', None),
        ('<a href="https://elsewhere.example/">x</a>', None),
        ('<a href="c.html">x</a>', "c.html leads to no file"),
        ('<a href="b.html#nowhere">x</a>', "b.html#nowhere leads to no heading"),
        ('<img src="https://elsewhere.example/x.png">', "would request https://elsewhere.example/x.png"),
        ('<script src="//elsewhere.example/x.js"></script>', "would request //elsewhere.example/x.js"),
        (
            '<link rel="stylesheet" href="https://fonts.googleapis.com/css">',
            "would request https://fonts.googleapis.com/css",
        ),
        ('<link rel="preconnect" href="https://fonts.gstatic.com">', "would request https://fonts.gstatic.com"),
        ('<i style="background: url(https://elsewhere.example/i)"></i>', "would request https://elsewhere.example/i"),
    ],
)
def test_a_fault_of_a_page_is_found(element: str, fault: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(f"<html><body>{element}</body></html>")
    (tmp_path / "b.html").write_text('<html><body><h2 id="there">There</h2></body></html>')
    faults = check_site(tmp_path)
    assert (
        faults == [] if fault is None else len(faults) > 0 and all(fault in line or "file" in line for line in faults)
    )


@pytest.mark.parametrize(
    ("name", "text", "is_fault"),
    [
        ("a.css", "body { background: url(picture.png) }", False),
        ("a.css", "@font-face { src: url('https://fonts.gstatic.com/a.woff2') }", True),
        ("a.js", "const documentation = 'https://elsewhere.example'", False),
        ("a.js", "fetch('https://elsewhere.example/data')", True),
        ("a.js", "load('https://cdn.jsdelivr.net/x.js')", True),
    ],
)
def test_a_fault_of_an_asset_is_found(name: str, text: str, is_fault: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert bool(check_site(tmp_path)) == is_fault


@pytest.mark.nightly
@pytest.mark.skipif(not MKDOCS.exists(), reason="needs mkdocs: make docs")
def test_the_site_builds_without_a_warning_and_without_a_fault(tmp_path: Path) -> None:
    stage_site()
    command = [str(MKDOCS), "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    completed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert check_site(tmp_path / "site") == []
    assert (tmp_path / "site" / "llms.txt").is_file()
    assert (
        "forecaster.api.forecaster.Forecaster.predict" in (tmp_path / "site" / "reference" / "python.html").read_text()
    )


@pytest.mark.parametrize("scheme", screenshots.SCHEMES)
def test_the_pictures_of_the_site_are_small_and_of_their_size(scheme: str) -> None:
    path = screenshots.PICTURES / f"site-{scheme}.png"
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:24]) == screenshots.SIZE
    assert path.stat().st_size <= screenshots.MAX_BYTES


def test_the_theme_loads_no_diagrams_from_elsewhere(tmp_path: Path) -> None:
    """Its code names an address from which it loads Mermaid for elements of a class that no page may have."""
    (tmp_path / "theme.js").write_text(f'load("{MERMAID}11/dist/mermaid.min.js")')
    (tmp_path / "a.html").write_text('<pre class="diagram">flowchart</pre>')
    assert check_site(tmp_path) == []
    (tmp_path / "a.html").write_text('<pre class="mermaid">flowchart</pre>')
    assert len(check_site(tmp_path)) == 1
