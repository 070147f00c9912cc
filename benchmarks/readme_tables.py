"""Writes the tables of README.md, docs/accuracy.md and docs/pretrained.md from the files in benchmarks/results, between the
markers of each table.

python benchmarks/readme_tables.py            writes both documents
python benchmarks/readme_tables.py --check    exits with 1 if a table is not that of the results
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
RESULTS = CHECKOUT / "benchmarks" / "results"
OURS = "forecaster"
OTHERS = {
    "Darts": "darts/",
    "NeuralForecast": "neuralforecast/",
    "GluonTS DeepAR": "gluonts/",
    "PyTorch loop": "bare/PyTorch",
}


def read_markdown_rows(path: Path, first_column: str) -> list[dict[str, str]]:
    """Reads the table of a Markdown file whose first column has this title, as one dictionary per row without emphasis."""
    lines = path.read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    titles = _split_row(lines[start])
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(titles, _split_row(line), strict=True)))
    return rows


def _split_row(line: str) -> list[str]:
    return [cell.strip().replace("*", "") for cell in line.strip().strip("|").split("|")]


def accuracy_table(results: Path = RESULTS) -> list[str]:
    """Formats our accuracy beside that of published models: the mean over the short panels, and the longer sets."""
    path = results / "accuracy.md"
    text = path.read_text()
    panels = {row["set"]: row for row in read_markdown_rows(path, "set")}
    mean = next(row for name, row in panels.items() if name.startswith("geometric mean"))
    others = ("seasonal naive", "AutoETS", "4-model ensemble", "DeepAR", "TiRex")
    untrained = _zero_shot_errors(results)
    rows = [
        ["data, measure (smaller is better)", f"{OURS}, fitted", f"{OURS}, pretrained", *others],
        [
            "M1, M3, hospital, FRED-MD: MASE over seasonal naive",
            f"**{mean['ours']}**",
            f"**{untrained['geometric mean over seasonal naive']}**",
            *(mean[name] for name in others),
        ],
    ]
    for name, title in (("m4_hourly", "M4 hourly, 48 h: MASE"), ("us_births", "US births, 30 days: MASE")):
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        ours = re.search(r"MASE \*\*([\d.]+)\*\*", row)
        assert ours is not None
        published = dict(re.findall(r"([A-Za-z][\w .-]*?) ([\d.]+)(?:;|$)", _split_row(row)[5]))
        rows.append(
            [title, f"**{ours[1]}**", f"**{untrained[name]}**", *(published.get(other, "") for other in others)]
        )
    return format_rows(rows)


def _zero_shot_errors(results: Path) -> dict[str, str]:
    """Returns the error of the pretrained network by data set."""
    lines = (results / "pretrained.md").read_text().splitlines()
    cells = (_split_row(line) for line in lines if line.startswith("| ") and not line.startswith("| set |"))
    return {name.split(",")[0]: re.split(r"[ ,]", error)[0] for name, error, *_ in cells}


def panels_table(results: Path = RESULTS) -> list[str]:
    """Formats the errors of every short panel beside those of others."""
    titles = ("ours", "seasonal naive", "AutoETS", "4-model ensemble", "DeepAR", "TiRex")
    rows = [
        [row["set"].removesuffix(", all eight"), f"**{row['ours']}**", *(row[title] for title in titles[1:])]
        for row in read_markdown_rows(results / "accuracy.md", "set")
    ]
    return format_rows([["set, MASE", *titles], *rows])


def long_series_table(results: Path = RESULTS) -> list[str]:
    """Formats the errors on long series and long horizons beside published ones."""
    lines = (results / "accuracy.md").read_text().splitlines()
    start = lines.index("## Long series and long horizons")
    end = lines.index("## Specifications")
    cells = [_split_row(line) for line in lines[start:end] if line.startswith("| ") and not line.startswith("| set |")]
    return format_rows([["set", "ours", "published", "seeds"], *([row[0], row[1], row[5], row[6]] for row in cells)])


def quantiles_table(results: Path = RESULTS) -> list[str]:
    """Formats the weighted quantile losses beside published ones."""
    titles = ("ours", "seasonal naive", "AutoETS", "DeepAR", "TiRex", "Chronos-2", "seeds")
    rows = [
        [row["set"], f"**{row['ours']}**", *(row[title] for title in titles[1:])]
        for row in read_markdown_rows(results / "quantiles.md", "set")
    ]
    return format_rows([["set, weighted quantile loss", *titles], *rows])


def pretrained_table(results: Path = RESULTS) -> list[str]:
    """Formats the errors of the pretrained network beside those of others: short panels, guards, and long series."""
    lines = (results / "pretrained.md").read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("## "))
    return [line.replace("## ", "### ") for line in lines[start:]]


def speed_table(results: Path = RESULTS) -> list[str]:
    """Formats how many times as long as ours the fastest way of each other library takes for the same work."""
    records = json.loads((results / "speed.json").read_text())
    titles = {
        "classical": "training, LSTM 64x1 (tracked, checkpointed)",
        "large_lstm": "training, LSTM 128x2",
        "rollout_64x1_1x24": "forecast of one series, 24 steps",
        "rollout_64x1_1x720": "forecast of one series, 720 steps",
        "rollout_64x1_1024x24": "forecast of 1024 series, 24 steps",
        "backtest": "backtest, 500 cutoffs",
    }
    rows = [["time of others / ours, 2 CPU cores", *OTHERS]]
    rows += [
        [title, *(_format_ratio(records[name], prefix) for prefix in OTHERS.values())] for name, title in titles.items()
    ]
    return format_rows(rows)


def _format_ratio(record: Mapping[str, Any], prefix: str) -> str:
    """Formats the ratio of the fastest way of a library to ours, the median over rounds."""
    entrants = record["entrants"]
    ours = next(values["seconds"] for name, values in entrants.items() if name.startswith("ours/"))
    ratios = [
        statistics.median(other / own for other, own in zip(values["seconds"], ours, strict=False))
        for name, values in entrants.items()
        if name.startswith(prefix) and values.get("seconds")
    ]
    if not ratios:
        return ""
    return f"{min(ratios):.{1 if min(ratios) < 10 else 0}f}x"


def format_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Formats rows, the first of which has the titles, as a Markdown table."""
    title, *values = [f"| {' | '.join(row)} |" for row in rows]
    return [title, "|" + "---|" * len(rows[0]), *values]


Tables = Mapping[str, Callable[[], list[str]]]
TABLES: Tables = {"accuracy": accuracy_table, "speed": speed_table}
DOCUMENTS: Mapping[str, Tables] = {
    "README.md": TABLES,
    "docs/accuracy.md": {
        "panels": panels_table,
        "long series": long_series_table,
        "quantiles": quantiles_table,
        "speed": speed_table,
    },
    "docs/pretrained.md": {"pretrained": pretrained_table},
}


def insert_tables(text: str, tables: Tables = TABLES) -> str:
    """Returns the text with the current tables between `<!-- table NAME -->` and `<!-- end -->`."""
    for name, build in tables.items():
        start, end = f"<!-- table {name} -->", "<!-- end -->"
        before, found, rest = text.partition(start)
        if not found:
            raise ValueError(
                f"Expected the marker {start} in the document; found none. Add it where the table belongs."
            )
        text = "\n".join([before + start, *build(), rest[rest.index(end) :]])
    return text


def main() -> int:
    """Writes the documents, or compares them with what would be written."""
    is_current = True
    for name, tables in DOCUMENTS.items():
        document = CHECKOUT / name
        text = document.read_text()
        current = insert_tables(text, tables)
        is_current &= current == text
        if "--check" not in sys.argv[1:]:
            document.write_text(current)
    return int(not is_current) if "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    raise SystemExit(main())
