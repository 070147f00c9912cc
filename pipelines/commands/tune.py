"""The command `forecaster tune`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.commands.console import print_status, print_tuning_result
from pipelines.commands.options import DataOptions, RootOptions, resolve_spec, validate_counts, validate_output_paths

if TYPE_CHECKING:
    from forecaster.spec import Spec

_ROOT_OPTIONS, _DATA_OPTIONS = RootOptions(), DataOptions()


def tune(
    data: str | None = None,
    *,
    horizon: int | None = None,
    config: Path | None = None,
    trials: int = 40,
    timeout: float | None = None,
    seed: int = 0,
    valid_windows: int = 2,
    test_windows: int = 1,
    out: Path = Path("best.yaml"),
    reading: DataOptions = _DATA_OPTIONS,
    where: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Searches for the specification that forecasts best, and writes it for train. Started again after a kill, it goes on.

    Parameters
    ----------
    data
        As for train.
    horizon
        Steps ahead, instead of the specification's.
    config
        Specification in YAML to search around; without one, the preset of the data's frequency. It is tried first.
    trials
        How many specifications to train; those that an earlier call with the same arguments trained are among them.
    timeout
        Seconds after which no further trial is begun.
    seed
        Seed of the search; networks have the specification's.
    valid_windows
        Rolling origins that trials are judged by, a horizon apart, instead of the specification's.
    test_windows
        Rolling origins after those that the search never sees, as for train.
    out
        Where to write the best specification (YAML).
    """
    validate_output_paths(out=out)
    from forecaster.spec import Spec
    from pipelines.tuning.search import tune as run
    from pipelines.tuning.search import validate_search

    source = reading.to_data_source(data)
    validate_counts(horizon=horizon)
    if config is None and horizon is not None:  # before presets are tried, on a specification of no account
        some = _set_valid_windows(Spec(name="asked", context=1, horizon=horizon), valid_windows)
        validate_search(some, n_trials=trials, timeout=timeout, seed=seed, test_windows=test_windows)
    asked = resolve_spec(config, source, horizon=horizon, seed=None, test_windows=test_windows)
    spec = _set_valid_windows(asked, valid_windows)
    tuned = run(
        source,
        spec,
        where.open_root(),
        output_path=out,
        n_trials=trials,
        timeout=timeout,
        seed=seed,
        test_windows=test_windows,
        report_status=print_status if sys.stderr.isatty() else lambda _: None,
    )
    print_tuning_result(tuned)
    print(f"next    {_format_train_command(data, out, test_windows, reading, where)}")


def _set_valid_windows(spec: Spec, valid_windows: int) -> Spec:
    from forecaster.spec import Spec

    whole = spec.model_dump()
    whole["training"] |= {"valid_windows": valid_windows, "valid_stride": None}
    return Spec.parse(whole, where="--valid-windows")


def _format_train_command(
    data: str | None, config: Path, test_windows: int, reading: DataOptions, where: RootOptions
) -> str:
    """The command that trains what was found, on the same data."""
    words = ["forecaster", "train", *([] if data is None else [data]), "--config", str(config)]
    if test_windows != 1:
        words += ["--test-windows", str(test_windows)]
    for group, names in ((reading, [field.name for field in fields(reading)]), (where, ["root"])):
        for name in names:
            value = getattr(group, name)
            if value != getattr(type(group)(), name):
                words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
