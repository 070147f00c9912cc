"""`forecaster inspect`: why a forecast is as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forecaster.errors import BadId, InputError
from pipelines.commands.console import warn, write_table
from pipelines.commands.options import DataOptions, RootOptions, resolve_bundle, validate_counts, validate_output_paths

if TYPE_CHECKING:
    from forecaster.explain.attribution import Explanation

_ROOT_OPTIONS, _DATA_OPTIONS = RootOptions(), DataOptions()
_MAX_ATTRIBUTIONS = 5  # values that are told one by one


def inspect(
    model: str,
    data: str | None = None,
    *,
    series: str | None = None,
    horizon: int | None = None,
    steps: int = 256,
    plot: Path | None = None,
    out: Path | None = None,
    reading: DataOptions = _DATA_OPTIONS,
    where: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Looks into a network while it reads a history: how far back it remembers, its gates, what its forecast rests on.

    Parameters
    ----------
    model
        A bundle folder, or a registered model as NAME or NAME@ALIAS.
    data
        As for train.
    series
        Which series; the first, if not given.
    horizon
        Steps ahead whose mean is explained; the model's own, if not given.
    steps
        How many of the latest steps to look at, 1024 at the most.
    plot
        Where to draw it all (PNG).
    out
        Where to write a table with a row for each step (CSV or Parquet).
    """
    from forecaster.bundle import artifact
    from forecaster.explain.attribution import MAX_STEPS, explain
    from pipelines.sources import read_panel

    validate_counts(horizon=horizon)
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(
            f"Expected --steps from 1 to {MAX_STEPS}; found {steps}. Ask for another number.", where="steps"
        )
    validate_output_paths(out=out, plot=plot)
    source = reading.to_data_source(data)
    forecaster = artifact.load_bundle(resolve_bundle(model, where))
    panel = read_panel(source.for_spec(forecaster.spec))
    for repair in panel.repairs:
        warn(repair)
    found = [one for one in panel.series if series is None or one.id == series]
    if not found:
        raise BadId(
            f"Expected --series with the id of one in the data; found {series!r}. Name another.", where="series"
        )
    told = explain(forecaster, found[0], horizon=horizon, steps=steps)
    for note in told.notes:
        warn(note)
    _print_explanation(told)
    if plot is not None or out is not None:
        from forecaster.explain.plots import build_explanation_table, plot_explanation

        write_table(out, lambda: build_explanation_table(told))
        if plot is not None:
            plot_explanation(told, title=f"{forecaster.spec.name}: {told.id}").savefig(plot)


def _print_explanation(explanation: Explanation) -> None:
    import numpy as np

    remembered = "nothing moves its state" if explanation.half_life is None else f"{explanation.half_life:.4g} steps"
    print(f"{'series':12}{explanation.id}, {len(explanation.ds)} steps up to {explanation.ds[-1]}")
    print(f"{'half-life':12}{remembered}")
    for number, layer in enumerate(explanation.layers, start=1):
        means = [f"{name} {np.nanmean(values):.3g}" for name, values in layer.gates.items()]
        alone = [] if layer.half_life is None else [f"half-life of its gate alone {layer.half_life:.4g} steps"]
        told_of = [*means, *alone, f"size of its state {np.nanmean(layer.norm):.3g}"]
        print(f"{f'layer {number}':12}{', '.join(told_of)}")
    ahead = f"on average over {explanation.horizon} steps"
    print(
        f"{'forecast':12}{explanation.forecast:.6g} {ahead}, {explanation.baseline:.6g} from a history that scaling turns to zeros"
    )
    order = np.argsort(-np.abs(explanation.attribution), kind="stable")[:_MAX_ATTRIBUTIONS]
    for place in sorted(int(one) for one in order if explanation.attribution[one]):
        print(f"{'':12}{explanation.attribution[place]:+.4g} by {explanation.ds[place]} ({explanation.y[place]:.6g})")
