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
from benchmarks.service.performance import RunLength  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "serving.md"
SECTIONS_BY_NAME: dict[str, Callable[[Path, RunLength], list[str]]] = {
    "one": performance.measure_one_forecast,
    "start": performance.measure_startup,
    "panels": performance.measure_panels,
    "overload": resilience.measure_overload,
    "flips": resilience.measure_model_changes,
    "deaths": resilience.measure_worker_failure,
}
FULL_RUN = RunLength(seconds=4.0, repeats=5, overload_s=30.0, model_changes=30)
SHORT_RUN = RunLength(seconds=1.5, repeats=2, overload_s=8.0, model_changes=9)
TINY_RUN = RunLength(seconds=0.3, repeats=1, overload_s=1.0, model_changes=3)


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description="How fast the service is, and what becomes of it in trouble.")
    parser.add_argument("--only", default=",".join(SECTIONS_BY_NAME), help="sections, with commas")
    parser.add_argument("--short", action="store_true", help="less of everything")
    parser.add_argument("--tiny", action="store_true", help="so little that figures mean nothing; to see that it runs")
    parser.add_argument("--without-mlflow", action="store_true", help="leave its server out")
    parser.add_argument("--note", default="", help="what a reader should know of this run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    length = TINY_RUN if asked.tiny else SHORT_RUN if asked.short else FULL_RUN
    length = length._replace(with_mlflow=not asked.without_mlflow)
    lines = ["# The service", "", *_describe_conditions(length, asked.note), ""]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory(prefix="forecaster-benchmark-") as folder:
        work = Path(folder)
        servers.publish_bundle(work / "slot")
        for name in asked.only.split(","):
            began = time.perf_counter()
            found = [*SECTIONS_BY_NAME[name](work, length), ""]
            print("\n".join(found), f"({time.perf_counter() - began:.0f} s)\n", sep="", flush=True)
            lines += found
    asked.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _describe_conditions(length: RunLength, note: str) -> list[str]:
    now = datetime.datetime.now(datetime.UTC).date()
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    told = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {now}."
    how = f"{length.seconds:g} s of load at a time, medians of {length.repeats}; load averages before: {load}."
    return [told, how, *([note] if note else [])]


if __name__ == "__main__":
    main()
