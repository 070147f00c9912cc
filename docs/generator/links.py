"""Links of a page that moves into the site: those to pages follow them, others become text."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from docs.generator.indexes import read_title

_FENCE = re.compile(r"(?ms)^(?: *)(`{3,}|~{3,}).*?^ *\1 *$|``?[^`\n]+``?")
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_IMAGE_TAG = re.compile(r"(src|href)=\"([^\"]+)\"")


def rewrite_links(text: str, *, source: Path, target: PurePosixPath, places: Mapping[Path, PurePosixPath]) -> str:
    """Returns a page with links that fit its place in the site.

    Args:
        text: The page.
        source: Its file in the checkout, which its links are relative to.
        target: Its place in the site.
        places: The place of every file of the site, by its file in the checkout.
    """

    def find_place(link: str) -> str | None:
        if re.match(r"[a-z]+:|#", link):
            return link
        name, mark, anchor = link.partition("#")
        place = places.get(Path(os.path.normpath(source.parent / name)))
        return None if place is None else os.path.relpath(place, target.parent) + mark + anchor

    def rewrite_link(match: re.Match[str]) -> str:
        place = find_place(match[3])
        if place is None and match[1]:
            raise ValueError(
                f"Expected the picture {match[3]} of {source} in the site; found none. Add its folder to the site."
            )
        text, name = match[2], match[3].partition("#")[0]
        if place is not None and name.endswith(".md") and re.fullmatch(r"[\w./-]*\.md", text):
            # The site has pages with titles, and no files.
            text = read_title(Path(os.path.normpath(source.parent / name)).read_text(encoding="utf-8")) or text
        return text if place is None else f"{match[1]}[{text}]({place})"

    def rewrite_tag(match: re.Match[str]) -> str:
        return f'{match[1]}="{find_place(match[2]) or match[2]}"'

    return outside_code(
        outside_code(text, lambda part: _LINK.sub(rewrite_link, part), blocks_only=True),
        lambda part: _IMAGE_TAG.sub(rewrite_tag, part),
    )


def outside_code(text: str, change: Callable[[str], str], *, blocks_only: bool = False) -> str:
    """Applies a change to the parts of a page that are no code: neither blocks nor, unless `blocks_only`, code in a line."""
    parts, end = [], 0
    for match in _FENCE.finditer(text):
        if blocks_only and match[1] is None:
            continue
        parts += [change(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(text[end:])])
