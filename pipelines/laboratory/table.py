"""The table of the laboratory: every experiment with its conditions, its published figures and those of its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.laboratory.records import Experiment, Measure, Trial


def format_report(experiments: Sequence[Experiment], trials: Mapping[str, Sequence[Trial]]) -> str:
    """Formats all experiments that have trials, as Markdown."""
    parts = [format_experiment(item, trials[item.name]) for item in experiments if trials.get(item.name)]
    title = (
        "# Laboratory\n\n`make lab` runs every experiment with five seeds, except those that are stored, and writes this table; "
        "[docs/laboratory.md](../../docs/laboratory.md) explains it. A cell has the median of the seeds and their range. "
        "The experiments ran beside other work: the time on the processor is what one seed takes on one idle core.\n"
    )
    return "\n".join([title, *parts])


def format_experiment(experiment: Experiment, trials: Sequence[Trial]) -> str:
    """Formats one experiment: what was done, and a row for each cell."""
    measures = [measure for measure in experiment.measures if any(_values(trials, measure))]
    lines = [
        f"## {experiment.name}",
        "",
        experiment.question,
        "",
        f"- {experiment.conditions}",
        f"- Figure of merit: {experiment.merit}",
        f"- Published: {experiment.published}",
        f"- {_describe_runs(experiment, trials)}",
        "",
        f"| | {' | '.join(measure.name for measure in measures)} |",
        f"|---{'|---' * len(measures)}|",
    ]
    for cell in trials[0].measures:
        cells = [_format_cell(trials, cell, measure) for measure in measures]
        lines.append(f"| {cell} | {' | '.join(cells)} |")
    for cell, texts in trials[0].texts.items():
        lines += ["", *(f"- {cell}, {name} (seed {trials[0].seed}): {text}" for name, text in texts.items())]
    return "\n".join([*lines, ""])


def _values(trials: Sequence[Trial], measure: Measure) -> list[bool]:
    return [measure.name in measures for trial in trials for measures in trial.measures.values()]


def _format_cell(trials: Sequence[Trial], cell: str, measure: Measure) -> str:
    """Formats the median and the range of the seeds; a single seed has no range."""
    values = [trial.measures[cell][measure.name] for trial in trials if measure.name in trial.measures.get(cell, {})]
    if not values:
        return ""
    median, low, high = (f"{value:,.{measure.digits}f}" for value in (np.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low} to {high})"


def _describe_runs(experiment: Experiment, trials: Sequence[Trial]) -> str:
    seeds = ", ".join(str(trial.seed) for trial in trials)
    seconds = np.median([trial.seconds for trial in trials])
    cpu_seconds = np.median([trial.cpu_seconds for trial in trials])
    word, command = "Seeds" if len(trials) > 1 else "Seed", f"forecaster lab {experiment.name} --seeds {len(trials)}"
    duration = f"{seconds:.0f} s per seed, {cpu_seconds:.0f} s of them on the processor"
    return f"{word} {seeds}; {duration} ({trials[-1].machine}): `{command}`."
