"""How fast the service is, and what becomes of it in trouble; all on this machine's loopback.

    .venv/bin/python benchmarks/serving.py                     # everything: 6 minutes
    .venv/bin/python benchmarks/serving.py --short             # everything, for a look: 2 minutes
    .venv/bin/python benchmarks/serving.py --only one,start    # some of it: one, start, panels, overload, flips, deaths

It prints what it finds and writes it to results/serving.md. The load comes from a process of its own (service/load.py), and takes
a part of the machine; the others that are measured have the same network and engine behind them. Ratios are those of turns
within one run.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # or this file would be found as the package of its name

from benchmarks.service import performance, resilience, servers  # noqa: E402
from benchmarks.service.performance import Length  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "serving.md"
SECTIONS: dict[str, Callable[[Path, Length], list[str]]] = {
    "one": performance.one_forecast,
    "start": performance.start,
    "panels": performance.panels,
    "overload": resilience.overload,
    "flips": resilience.flips,
    "deaths": resilience.deaths,
}
FULL = Length(seconds=4.0, rounds=5, overload_s=30.0, flips=30)
SHORT = Length(seconds=1.5, rounds=2, overload_s=8.0, flips=9)
TINY = Length(seconds=0.3, rounds=1, overload_s=1.0, flips=3)


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description="How fast the service is, and what becomes of it in trouble.")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas")
    parser.add_argument("--short", action="store_true", help="less of everything")
    parser.add_argument("--tiny", action="store_true", help="so little that figures mean nothing; to see that it runs")
    parser.add_argument("--without-mlflow", action="store_true", help="leave its server out")
    parser.add_argument("--note", default="", help="what a reader should know of this run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    length = TINY if asked.tiny else SHORT if asked.short else FULL
    length = length._replace(mlflow=not asked.without_mlflow)
    lines = ["# The service", "", *_conditions(length, asked.note), ""]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory(prefix="forecaster-benchmark-") as folder:
        work = Path(folder)
        servers.publish(work / "slot")
        for name in asked.only.split(","):
            began = time.perf_counter()
            found = [*SECTIONS[name](work, length), ""]
            print("\n".join(found), f"({time.perf_counter() - began:.0f} s)\n", sep="", flush=True)
            lines += found
    asked.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _conditions(length: Length, note: str) -> list[str]:
    now = datetime.datetime.now(datetime.UTC).date()
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    told = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {now}."
    how = f"{length.seconds:g} s of load at a time, medians of {length.rounds}; load averages before: {load}."
    return [told, how, *([note] if note else [])]


if __name__ == "__main__":
    main()
