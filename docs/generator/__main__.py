"""Generates the pages of docs/reference from the code, and gathers the site: `python -m docs.generator [--check]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from docs.generator.pages import list_stale_pages, write_pages
from docs.generator.site import STAGING, stage_site


def main(arguments: Sequence[str]) -> int:
    """Writes all pages; with `--check`, writes nothing and returns 1 if a page is out of date."""
    if "--check" in arguments:
        stale = list_stale_pages()
        if stale:
            print(f"Expected docs/reference to agree with the code; {', '.join(stale)} differ. Run make docs-data.")
        return int(bool(stale))
    write_pages()
    stage_site()
    print(f"pages of the site: {STAGING}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
