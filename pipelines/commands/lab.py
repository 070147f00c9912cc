"""The command `forecaster lab`: experiments that show what recurrent networks learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forecaster.errors import InputError
from pipelines.commands.options import validate_counts


def lab(
    *names: str,
    seed: int = 0,
    seeds: int = 1,
    out: Path = Path("laboratory"),
    again: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """Runs experiments that show what recurrent networks learn. Without a name it lists them.

    Every experiment trains with the code of all other models, and takes less than five minutes for one seed. Its trials are
    stored, so that an interrupted command continues and a picture needs no second training.

    Parameters
    ----------
    names
        Names of experiments, or `all`.
    seed
        First seed; data, weights and batches follow from it.
    seeds
        Number of seeds, one after the other.
    out
        Folder for the trials (JSON), the pictures (PNG) and the table (laboratory.md).
    again
        Run stored trials again.
    """
    from forecaster.progress.display import create_display
    from pipelines.laboratory.run import EXPERIMENTS, draw_experiment, find_experiments, run_experiment, write_report
    from pipelines.laboratory.table import format_experiment

    validate_counts(seeds=seeds)
    if seed < 0:
        raise InputError(f"Expected --seed of at least 0; found {seed}. Use another first seed.", where="seed")
    experiments, progress = find_experiments(names), create_display()
    if not experiments:
        width = max(len(experiment.name) for experiment in EXPERIMENTS) + 2
        for experiment in EXPERIMENTS:
            print(f"{experiment.name:{width}}{experiment.question}")
        return
    for experiment in experiments:
        trials = run_experiment(experiment, seeds=range(seed, seed + seeds), folder=out, progress=progress, again=again)
        picture = draw_experiment(experiment, trials, out)
        print(format_experiment(experiment, trials))
        print(picture)
    write_report(out / "laboratory.md", trials_folder=out)
