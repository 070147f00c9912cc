"""The pictures of guides and concepts are drawn by the pages that show them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from docs.generator.blocks import list_pages
from docs.generator.pictures import FOLDER, draw_pictures, list_pictures, list_unsaved
from tests.system.processes import CHECKOUT

MAX_BYTES = 80_000
SHOWN = {page: list_pictures(page.read_text()) for page in list_pages()}
PAGES = [page for page, names in SHOWN.items() if names]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_a_block_of_the_page_saves_every_picture_that_it_shows(page: Path) -> None:
    assert list_unsaved(page) == [], "a block of the page saves the picture under its name, in the working folder"
    assert [name for name in SHOWN[page] if not (FOLDER / name).is_file()] == [], "run make pictures"


def test_every_picture_is_small_and_shown_on_a_page() -> None:
    shown = {name for names in SHOWN.values() for name in names}
    assert {path.name for path in FOLDER.glob("*")} <= shown, "remove it"
    assert [path.name for path in FOLDER.glob("*") if path.stat().st_size > MAX_BYTES] == []


def write_page(path: Path, *, saved: str) -> Path:
    program = f"from PIL import Image\nImage.new('RGB', (3, 2), 'red').save({saved!r})"
    path.write_text(f"# Page\n\n```python\n{program}\n```\n\n![A](../pictures/guides/a.png)\n")
    return path


def test_the_picture_that_a_block_saves_is_stored(tmp_path: Path) -> None:
    page = write_page(tmp_path / "page.md", saved="a.png")
    assert list_unsaved(page) == []
    assert draw_pictures(page, tmp_path / "pictures") == ["a.png"]
    with Image.open(tmp_path / "pictures" / "a.png") as picture:
        assert picture.size == (3, 2)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_that_no_block_saves_is_an_error(tmp_path: Path) -> None:
    page = write_page(tmp_path / "page.md", saved="other-a.png")
    assert list_unsaved(page) == ["a.png"]
    with pytest.raises(FileNotFoundError, match=r"save a\.png in the working folder"):
        draw_pictures(page, tmp_path / "pictures")
