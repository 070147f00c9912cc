"""Draws the pictures of guides and concepts: `python -m docs.generator.pictures [PAGE...]`, by default of all pages.

A page shows `pictures/guides/NAME.png`, and one of its own blocks saves `NAME.png` in the working folder. The blocks of the page
run here in a temporary folder, with the presets as they are, and the pictures are stored in docs/pictures/guides.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

from PIL import Image

from docs.generator.blocks import Block, find_blocks, list_pages
from docs.generator.page_runs import fill_folder, open_session, run_blocks
from docs.generator.site import CHECKOUT

FOLDER = CHECKOUT / "docs" / "pictures" / "guides"
_VARIABLES = ("FORECASTER_ROOT", "FORECASTER_KEY", "MLFLOW_TRACKING_URI")


def list_pictures(text: str) -> list[str]:
    """Returns the names of the pictures of docs/pictures/guides that a page shows, in their order."""
    return list(dict.fromkeys(re.findall(r"!\[[^\]]*\]\([./]*pictures/guides/([\w.-]+\.png)\)", text)))


def list_unsaved(page: Path) -> list[str]:
    """Returns the pictures that a page shows and that none of the blocks that run here saves."""
    sources = [block.source for block in find_blocks(page) if not block.skip_reason and _runs(block)]
    names = list_pictures(page.read_text(encoding="utf-8"))
    return [name for name in names if not any(re.search(rf"(?<![\w-]){re.escape(name)}\b", text) for text in sources)]


def draw_pictures(page: Path, target: Path = FOLDER) -> list[str]:
    """Runs the blocks of a page and copies the pictures that it shows; returns their names.

    Raises FileNotFoundError for a picture that no block has saved, and what a block raises.
    """
    names = list_pictures(page.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as temporary, chdir(temporary):
        folder = Path(temporary)
        fill_folder(folder)
        with open_session(folder) as session:
            run_blocks(page, session, accept=_runs)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"Expected the blocks of {page.name} to save {', '.join(missing)} in the working folder; found no such file. "
                "Save the picture in a block of the page, or do not show it."
            )
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            store_picture(folder / name, target / name)
    return names


def store_picture(source: Path, target: Path) -> None:
    """Writes a picture with a palette, which takes less than half of the bytes of one with the colors of every pixel."""
    with Image.open(source) as picture:
        colors = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        colors.save(target, format="PNG", optimize=True)


def _runs(block: Block) -> bool:
    """Whether a block runs for a picture: programs, and commands that neither train nor need a registry."""
    return block.language == "python" or not block.is_slow


def main(arguments: Sequence[str]) -> int:
    """Draws the pictures of the pages that are named, or of all that show some."""
    pages = [Path(argument).resolve() for argument in arguments] or list_pages()
    for name in _VARIABLES:
        os.environ.pop(name, None)
    for page in pages:
        if list_pictures(page.read_text(encoding="utf-8")):
            print(f"{page.relative_to(CHECKOUT)}: {', '.join(draw_pictures(page))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
