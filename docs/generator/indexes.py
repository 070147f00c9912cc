"""Index pages of folders whose pages are many: decisions and results of benchmarks."""

from __future__ import annotations

import re
from pathlib import Path

from docs.generator.markdown import join_lines, render_page, render_table


def read_title(text: str) -> str:
    """Returns the title of a page."""
    match = re.search(r"(?m)^# (.+)$", text)
    return "" if match is None else match[1].strip()


def read_summary(text: str) -> str:
    """Returns the first sentence of the prose of a page, without links."""
    prose = re.sub(r"(?s)\A---\n.*?\n---\n", "", text)  # fields before the page
    prose = re.sub(r"(?s)<!--.*?-->|^```.*?^```", "", prose, flags=re.MULTILINE)
    prose = re.sub(r"(?m)^(#|\||!\[|<|:::).*$", "", prose)  # headings, tables, pictures, elements
    paragraph = next((block for block in re.split(r"\n\s*\n", prose) if block.strip()), "")
    line = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", join_lines(paragraph)).replace("**", "")
    return re.split(r"(?<=[.:])\s+(?=[A-Z`]|$)", line)[0].rstrip(":")


def build_decision_index(folder: Path) -> str:
    """Returns the index of the decision records, with one line for each."""
    rows = []
    for path in sorted(folder.glob("[0-9]*.md")):
        number, _, title = read_title(path.read_text(encoding="utf-8")).partition(". ")
        rows.append((number, f"[{title}]({path.name})"))
    return render_page(
        "Decisions",
        "Decisions with lasting consequences, each on one page: context, choice, price. A later record may replace a part of an "
        "earlier one, and says so.",
        render_table(("number", "decision"), rows),
    )


def build_benchmark_index(folder: Path, readme: str) -> str:
    """Returns the index of the results of benchmarks, with the question of the script that each names first.

    Args:
        folder: The pages with the results.
        readme: `benchmarks/README.md`, whose table has the questions.
    """
    questions = dict(re.findall(r"(?m)^\| `([\w/]+\.py)` \| (.+?) \|$", readme))
    rows = []
    for path in sorted(folder.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        script = re.search(r"benchmarks/([\w/]+\.py)", text)
        question = questions.get(script[1], "") if script else ""
        rows.append((f"[{read_title(text)}]({path.name})", question[:1].upper() + question[1:]))
    return render_page(
        "Benchmarks",
        "Measured results, each with its command, machine and seeds. [Accuracy and speed](../accuracy.md) is the summary, "
        "[running benchmarks](running.md) says how to repeat them.",
        render_table(("result", "question"), rows),
    )
