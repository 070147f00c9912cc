"""The table and the pictures of the laboratory, from stored trials; seeds without a stored trial are run.

    python benchmarks/laboratory.py                    five seeds of every experiment that has them, one of the others
    python benchmarks/laboratory.py --stored           only the table and the pictures, in seconds

Trials are in benchmarks/results/laboratory/, the table is benchmarks/results/laboratory.md, and the pictures are in
docs/pictures/laboratory/. `forecaster lab` runs single experiments.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from forecaster.progress.display import create_display
from pipelines.laboratory.records import load_trials
from pipelines.laboratory.run import EXPERIMENTS, draw_experiment, run_experiment, write_report

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parents[1] / "docs" / "pictures" / "laboratory"
SEEDS = {"speed": 1}  # the speed does not depend on the seed


def main() -> None:
    """Runs the missing trials of the chosen experiments, then draws and writes everything that is stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="experiments; by default all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--stored", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    trials_folder = RESULTS / "laboratory"
    for experiment in EXPERIMENTS:
        if not arguments.stored and (not arguments.names or experiment.name in arguments.names):
            seeds = range(min(arguments.seeds, SEEDS.get(experiment.name, arguments.seeds)))
            run_experiment(experiment, seeds=seeds, folder=trials_folder, progress=create_display())
        trials = load_trials(trials_folder, experiment.name)
        if trials:
            draw_experiment(experiment, trials, PICTURES)
    print(write_report(RESULTS / "laboratory.md", trials_folder=trials_folder))


if __name__ == "__main__":
    sys.exit(main())
