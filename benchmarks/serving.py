"""Speed of the service, and its behaviour under overload, model changes and failures, over the loopback interface.

    .venv/bin/python benchmarks/serving.py                     # everything: 6 minutes
    .venv/bin/python benchmarks/serving.py --short             # everything, shorter: 2 minutes
    .venv/bin/python benchmarks/serving.py --only one,start    # selected sections: one, start, panels, overload, flips, deaths

Prints the results and writes them to results/serving.md. The load comes from a separate process (service/load_generator.py),
which takes a share of the machine. The other servers that are measured use the same network and engine. Ratios are computed
within the rounds of one run.
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

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # replaces the script's folder, which would shadow packages of the same name

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
    """Runs the selected sections."""
    parser = argparse.ArgumentParser(description="Measures the speed of the service and its behaviour under failures.")
    parser.add_argument("--only", default=",".join(SECTIONS_BY_NAME), help="sections, separated by commas")
    parser.add_argument("--short", action="store_true", help="shorter measurements")
    parser.add_argument(
        "--tiny", action="store_true", help="only check that the benchmark runs; the figures mean nothing"
    )
    parser.add_argument("--without-mlflow", action="store_true", help="skip the MLflow model server")
    parser.add_argument("--note", default="", help="a remark on this run for the report")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    length = TINY_RUN if options.tiny else SHORT_RUN if options.short else FULL_RUN
    length = length._replace(with_mlflow=not options.without_mlflow)
    lines = ["# The service", "", *_describe_conditions(length, options.note), ""]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory(prefix="forecaster-benchmark-") as folder:
        work_folder = Path(folder)
        servers.publish_bundle(work_folder / "slot")
        for name in options.only.split(","):
            started = time.perf_counter()
            section_lines = [*SECTIONS_BY_NAME[name](work_folder, length), ""]
            print("\n".join(section_lines), f"({time.perf_counter() - started:.0f} s)\n", sep="", flush=True)
            lines += section_lines
    options.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _describe_conditions(length: RunLength, note: str) -> list[str]:
    today = datetime.datetime.now(datetime.UTC).date()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    cpu = platform.processor() or platform.machine()
    machine = f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {today}."
    load_line = f"{length.seconds:g} s of load at a time, medians of {length.repeats}; load averages before: {load}."
    return [machine, load_line, *([note] if note else [])]


if __name__ == "__main__":
    main()
