"""Speed compared with other libraries: the same work by this project, plain PyTorch, Darts, NeuralForecast and GluonTS.

    python benchmarks/speed/peers/install.py          once: creates the environment of the peers, .peers
    python benchmarks/speed/run.py                    all cases; first prints the estimated time
    python benchmarks/speed/run.py --cases rollout    some cases; the results of the others are kept

Every entrant is a separate process and runs one repetition at a time, in turn, so that all run on the same machine in the same
minutes. Reports medians, and medians of the ratios within a round. Writes benchmarks/results/speed.md and .json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cases import CASES, ENTRANTS, GROUP_SECONDS, SpeedCase, shrink_case
from measure import RunnerPool, log_progress, measure_case
from report import format_report
from runner_process import ROOT, runner_python


def main() -> None:
    """Measures the selected cases and writes each result as soon as it is complete."""
    options = parse_arguments()
    selected = [case for case in CASES.values() if options.cases & {case.group, case.name}]
    unknown = options.cases - set(ENTRANTS) - set(CASES)
    if unknown or not selected:
        sys.exit(
            f"Expected --cases from {', '.join(CASES)}, or groups of them; found {', '.join(unknown)}. Change --cases."
        )
    if not runner_python("bare", options.peers).exists():
        sys.exit(
            f"Expected the environment of the peers in {options.peers}; found none. Create it with "
            "`python benchmarks/speed/peers/install.py`, or pass its folder with --peers."
        )
    weights = [1.0 if options.smoke else _estimate_seconds(case, options.repeats) for case in selected]
    log_progress(f"About {sum(weights) / 60:.0f} minutes on two idle cores, at most {options.minutes:.0f}.")
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        runners = RunnerPool(selected, peers=options.peers.absolute(), threads=options.threads, folder=Path(folder))
        deadline = time.monotonic() + 60 * options.minutes
        try:
            for index, case in enumerate(selected):
                if time.monotonic() > deadline:
                    log_progress(
                        f"Time limit reached; skipped: {', '.join(skipped_case.name for skipped_case in selected[index:])}."
                    )
                    break
                share = weights[index] / sum(weights[index:]) * (deadline - time.monotonic())
                sized_case = shrink_case(case) if options.smoke else case
                results[case.name] = measure_case(sized_case, runners, repeats=options.repeats, seconds=share)
                if options.json:
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    options.json.write_text(json.dumps(results, indent=1) + "\n")
                    options.json.with_suffix(".md").write_text(format_report(results))
            measured = {case.name: results[case.name] for case in selected if case.name in results}
            if any(
                "failed" in entrant_record
                for record in measured.values()
                for entrant_record in record["entrants"].values()
            ):
                log_progress(runners.read_logs())
        finally:
            runners.close()
    print(format_report(measured))


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    case_help = f"groups ({','.join(ENTRANTS)}) or single cases, separated by commas"
    parser.add_argument("--cases", type=lambda text: set(text.split(",")), default=set(ENTRANTS), help=case_help)
    parser.add_argument("--repeats", type=int, default=3, help="repetitions per entrant and case")
    parser.add_argument("--threads", type=int, default=2, help="threads per entrant")
    parser.add_argument("--minutes", type=float, default=20.0, help="time limit; no round starts after it")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="folder of the environment of the peers")
    parser.add_argument(
        "--json", type=Path, help="output file, and the report with suffix .md; default benchmarks/results/speed.json"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, only to check that everything runs")
    options = parser.parse_args()
    if options.json is None and not options.smoke:
        options.json = ROOT / "benchmarks" / "results" / "speed.json"
    return options


def _estimate_seconds(case: SpeedCase, repeats: int) -> float:
    ready, repetition = GROUP_SECONDS[case.group]
    return ready + repeats * repetition


if __name__ == "__main__":
    main()
