"""`forecaster inspect --html --like`: one page that needs nothing else, and the stretches in the terminal."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from tests.factories import make_fitted_model, make_spec, make_wave
from tests.pipelines.commands.test_channels import run_command

pytestmark = pytest.mark.integration

SECTIONS = ["forecast", "contributions", "faithfulness", "memory", "atlas", "similar"]
VOID_ELEMENTS = {"meta", "img"}


class Page(HTMLParser):
    """Collects the ids, links, pictures and text of a page, and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.scrollable: list[str | None] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"] or "")
        if tag == "img":
            self.pictures.append(values)
        if values.get("class") == "wide":
            self.scrollable.append(values.get("tabindex"))
        self.links += [values[name] or "" for name in ("href", "src") if name in values]
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with random weights and nine series, in the working folder."""
    monkeypatch.chdir(tmp_path)
    artifact.save_bundle(make_fitted_model(make_spec(context=48, reads="history")), tmp_path / "bundle", card="")
    ds = pd.date_range("2026-01-01", periods=60, freq="h")
    rows = [
        pd.DataFrame({"unique_id": f"<{number}>", "ds": ds, "y": make_wave(60, seed=number)}) for number in range(9)
    ]
    pd.concat(rows).to_csv("data.csv", index=False)
    return tmp_path


def test_the_report_is_one_accessible_page_without_links_to_elsewhere(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stretch = "2026-01-02 06:00..2026-01-02 09:00"
    arguments = ["inspect", "bundle", "data.csv", "--series", "<1>", "--html", "report.html", "--like", stretch]
    assert run_command(*arguments) == 0
    output = capsys.readouterr().out
    assert "memory        half-life of the state" in output
    assert "season 4, context 48" in output
    page = Page(Path("report.html").read_text())
    assert page.ids == ["main", *SECTIONS]
    assert all(link.startswith("data:image/png;base64,") or link[1:] in page.ids for link in page.links)
    assert len(page.pictures) >= len(SECTIONS) - 1, "one per section, except that of faithfulness"
    for picture in page.pictures:
        assert len(picture["alt"] or "") > 40
        assert base64.b64decode((picture["src"] or "").partition(",")[2]).startswith(b"\x89PNG")
    assert page.text.count("What it shows.") == len(page.pictures) <= page.text.count("When it misleads.")
    assert set(page.scrollable) == {"0"}, "tables scroll by the keyboard"
    assert "prefers-color-scheme: dark" in Path("report.html").read_text()
    assert "9 of 9 series, 6 units" in page.text
    matches = [line.split()[0] for line in output.splitlines() if line.lstrip().startswith("<")]
    assert matches
    assert "<1>" not in matches
    assert all(match in page.text for match in matches)


def test_similar_stretches_need_no_report(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stretch = "2026-01-02 06:00..2026-01-02 09:00"
    assert run_command("inspect", "bundle", "data.csv", "--like", stretch) == 0
    assert "units are on throughout: layer 1 unit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stretch", "message"),
    [
        ("2026-01-02", "two dots between them; found '2026-01-02'"),
        ("2026-01-03..2026-01-02", "the end is not after the start"),
        ("2027-01-03..2027-01-05", "2027-01-05T00:00:00 has none"),
    ],
)
def test_an_unusable_stretch_is_refused(
    stretch: str, message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("inspect", "bundle", "data.csv", "--like", stretch) == 2
    assert message in capsys.readouterr().err
    assert np.all([not path.name.endswith(".html") for path in files.iterdir()])
