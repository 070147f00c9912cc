"""Checks a built site: links and anchors lead somewhere, and a browser requests nothing from another server.

`python -m docs.generator.site_check FOLDER`; it needs the standard library only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes that make a browser request something. A link that a person follows is none; of <link>, only some kinds are.
_REQUESTING = {
    ("script", "src"), ("img", "src"), ("img", "srcset"), ("iframe", "src"), ("source", "src"), ("source", "srcset"),
    ("video", "src"), ("audio", "src"), ("embed", "src"), ("object", "data"), ("image", "href"), ("use", "href"),
}  # fmt: skip
_REQUESTING_KINDS = {
    "stylesheet",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "icon",
    "modulepreload",
    "manifest",
}
_REMOTE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_CSS_REQUEST = re.compile(r"(?:url\(\s*|@import\s+)['\"]?((?:https?:)?//[^'\")\s]+)", re.IGNORECASE)
_SCRIPT_REQUEST = re.compile(r"(?:fetch|import|importScripts)\(\s*[\"']((?:https?:)?//[^\"']+)", re.IGNORECASE)
_CDN = re.compile(
    r"https?://[\w.-]*(?:unpkg\.com|jsdelivr\.net|cdnjs\.cloudflare\.com|googleapis\.com|gstatic\.com)[^\"'`\s]*"
)

# Two addresses in the code of the theme. It loads Mermaid where an element has the class `mermaid`, which ours have not, and the
# polyfill in browsers without ResizeObserver, all of which are older than 2020.
MERMAID = "https://unpkg.com/mermaid@"
POLYFILL = "https://unpkg.com/resize-observer-polyfill"


class Page(HTMLParser):
    """What a page names: anchors, links, what it makes a browser request, and the classes of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "__top"}
        self.links: list[str] = []
        self.requests: list[str] = []
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Records one element."""
        attributes = {name: value or "" for name, value in attrs}
        self.anchors |= {attributes[name] for name in ("id", "name") if name in attributes}
        self.classes |= set(attributes.get("class", "").split())
        if tag == "link":
            requesting = bool(_REQUESTING_KINDS & set(attributes.get("rel", "").split()))
            (self.requests if requesting else self.links).append(attributes.get("href", ""))
        elif tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        for name, value in attributes.items():
            if (tag, name) in _REQUESTING:
                self.requests.append(value)
            self.requests += [match[1] for match in _CSS_REQUEST.finditer(value) if name == "style"]


def check_site(site: Path) -> list[str]:
    """Returns the faults of a built site, one line each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    faults = [fault for path, page in pages.items() for fault in _check_page(path, page, pages, site)]
    return faults + [fault for path in sorted(site.rglob("*")) for fault in _check_asset(path, pages, site)]


def _check_page(path: Path, page: Page, pages: dict[Path, Page], site: Path) -> Iterator[str]:
    name = path.relative_to(site)
    for address in page.requests:
        if _REMOTE.match(address):
            yield f"{name}: a browser would request {address} from another server"
    for link in {*page.links, *page.requests}:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or name.name == "404.html":  # 404.html is served at any depth
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file():
            yield f"{name}: {link} leads to no file"
        elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
            yield f"{name}: {link} leads to no heading"


def _check_asset(path: Path, pages: dict[Path, Page], site: Path) -> Iterator[str]:
    if path.suffix not in (".css", ".js"):
        return
    text, name = path.read_text(encoding="utf-8"), path.relative_to(site)
    pattern = _CSS_REQUEST if path.suffix == ".css" else _SCRIPT_REQUEST
    for match in pattern.finditer(text):
        yield f"{name}: a browser would request {match[1]} from another server"
    if (
        path.suffix == ".js" and path.name != "mermaid.tiny.js"
    ):  # which requests nothing, and names pages of its documentation
        allowed = {POLYFILL} if any("mermaid" in page.classes for page in pages.values()) else {POLYFILL, MERMAID}
        for match in _CDN.finditer(text):
            if not match[0].startswith(tuple(allowed)):
                yield f"{name}: a browser may request {match[0]} from another server"


def main(folder: str) -> int:
    """Prints the faults of a site and returns 1, or 0 without faults."""
    faults = check_site(Path(folder))
    count = len(list(Path(folder).rglob("*.html")))
    print(
        "\n".join(faults) or f"{count} pages: links and anchors lead somewhere, and nothing is requested from elsewhere"
    )
    return int(bool(faults) or not count)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
