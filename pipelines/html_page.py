"""Renders self-contained HTML pages: style and figures are embedded, and the page supports the dark mode of the system."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

# Figures are drawn once, on white. The dark mode inverts them and rotates their hues back.
STYLE = """
:root { color-scheme: light dark; --ink: #23262b; --ground: #ffffff; --line: #e3e5e8; --faint: #6f757e;
        --good: #2f6b2f; --bad: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #d9dce1; --ground: #171717; --line: #33363b; --faint: #959ba5; --good: #86c586; --bad: #f2897f; }
  img { filter: invert(.91) hue-rotate(180deg); }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .6rem; vertical-align: top; }
th { border-bottom: 2px solid var(--line); } td { border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; white-space: nowrap; } td.best { font-weight: 600; color: var(--good); }
.passed { color: var(--good); } .failed { color: var(--bad); font-weight: 600; } .not { color: var(--faint); }
img { max-width: 100%; } code { font-size: .92em; } a { color: inherit; }
nav a { margin-right: 1rem; } figure { margin: 1rem 0; } figcaption p { margin: .3rem 0; }
:focus-visible { outline: 3px solid #c2410c; outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
"""


def render_page(title: str, body: Sequence[str]) -> str:
    """Renders a page; `body` has its lines of HTML."""
    head = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
    ]
    return "\n".join([*head, *body, "</body></html>", ""])


def render_figure(heading: str, figure: Figure) -> str:
    """Renders a figure below its heading."""
    return f'<h2>{escape(heading)}</h2><img alt="{escape(heading)}" src="{encode_data_uri(figure)}">'


def encode_data_uri(figure: Figure) -> str:
    """Returns a figure as the data URI of a PNG image."""
    content = io.BytesIO()
    figure.savefig(content, format="png", facecolor="white")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
