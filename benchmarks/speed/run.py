"""How fast, beside others: the same work by this project, by hand-written PyTorch, and by Darts, NeuralForecast and GluonTS.

    python benchmarks/speed/peers/install.py          once: the others' own environment, .peers
    python benchmarks/speed/run.py                    all cases; says first how long it will take
    python benchmarks/speed/run.py --cases rollout    some of them; the others' results stay as they are

Every entrant is a process of its own, asked for one repetition at a time and in turn, so that all meet the same machine in the
same minutes; what is quoted are medians, and medians of the ratios within a turn. Writes benchmarks/results/speed.md and .json.
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
    """Measures what is asked for, writing down each case as it is done."""
    options = parse_arguments()
    chosen = [case for case in CASES.values() if options.cases & {case.group, case.name}]
    unknown = options.cases - set(ENTRANTS) - set(CASES)
    if unknown or not chosen:
        sys.exit(
            f"Expected --cases among {', '.join(CASES)}, or groups of them; found {', '.join(unknown)}. Name others."
        )
    if not runner_python("bare", options.peers).exists():
        sys.exit(
            f"Expected the others' environment in {options.peers}; found none. Make it with "
            "`python benchmarks/speed/peers/install.py`, or name it with --peers."
        )
    weights = [1.0 if options.smoke else _estimate_seconds(case, options.repeats) for case in chosen]
    log_progress(f"About {sum(weights) / 60:.0f} minutes on two quiet cores, {options.minutes:.0f} at the most.")
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        runners = RunnerPool(chosen, peers=options.peers.absolute(), threads=options.threads, folder=Path(folder))
        deadline = time.monotonic() + 60 * options.minutes
        try:
            for place, case in enumerate(chosen):
                if time.monotonic() > deadline:
                    log_progress(f"Time is up: left out are {', '.join(later.name for later in chosen[place:])}.")
                    break
                share = weights[place] / sum(weights[place:]) * (deadline - time.monotonic())
                sized = shrink_case(case) if options.smoke else case
                results[case.name] = measure_case(sized, runners, repeats=options.repeats, seconds=share)
                if options.json:
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    options.json.write_text(json.dumps(results, indent=1) + "\n")
                    options.json.with_suffix(".md").write_text(format_report(results))
            done = {case.name: results[case.name] for case in chosen if case.name in results}
            if any("failed" in one for record in done.values() for one in record["entrants"].values()):
                log_progress(runners.read_logs())
        finally:
            runners.close()
    print(format_report(done))


def parse_arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"of {','.join(ENTRANTS)}, or single cases"
    parser.add_argument("--cases", type=lambda text: set(text.split(",")), default=set(ENTRANTS), help=names)
    parser.add_argument("--repeats", type=int, default=3, help="of each entrant in each case")
    parser.add_argument("--threads", type=int, default=2, help="of every entrant")
    parser.add_argument("--minutes", type=float, default=20.0, help="after these nothing is begun")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="the environment of the others")
    parser.add_argument(
        "--json", type=Path, help="where to write, and the same with .md; benchmarks/results/speed.json"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, only to see whether all of it runs")
    options = parser.parse_args()
    if options.json is None and not options.smoke:
        options.json = ROOT / "benchmarks" / "results" / "speed.json"
    return options


def _estimate_seconds(case: SpeedCase, repeats: int) -> float:
    ready, repetition = GROUP_SECONDS[case.group]
    return ready + repeats * repetition


if __name__ == "__main__":
    main()
