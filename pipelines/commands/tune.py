"""The command `forecaster tune`."""

from __future__ import annotations

import shlex
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pipelines.commands.column_options import ColumnOptions
from pipelines.commands.console import print_tuning_result
from pipelines.commands.options import DataOptions, DeviceOptions, RootOptions, SpecOptions, validate_output_paths
from pipelines.scheduling.ray_tasks import WorkPlace, open_runner

if TYPE_CHECKING:
    from forecaster.spec import Spec

_ROOT_OPTIONS, _DATA_OPTIONS = RootOptions(), DataOptions()
_COLUMN_OPTIONS, _DEVICE_OPTIONS = ColumnOptions(), DeviceOptions()


def tune(
    data: str | None = None,
    *,
    horizon: int | None = None,
    config: Path | None = None,
    season: int | None = None,
    trials: int = 40,
    timeout: float | None = None,
    seed: int = 0,
    valid_windows: int | None = None,
    test_windows: int = 1,
    parallel: int = 1,
    on: WorkPlace = "local",
    on_disk: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    out: Path = Path("best.yaml"),
    column_options: ColumnOptions = _COLUMN_OPTIONS,
    device_options: DeviceOptions = _DEVICE_OPTIONS,
    data_options: DataOptions = _DATA_OPTIONS,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Searches for the specification with the best forecasts, and writes it for train. After an interruption, it can be resumed.

    Parameters
    ----------
    data
        Input data, as for train.
    horizon
        Steps ahead; overrides the specification.
    config
        Specification in YAML where the search starts; by default the preset of the data's frequency, without the variants that
        use the pretrained network.
    season
        Steps of a season, as for train; overrides the specification.
    trials
        Number of specifications to train, including those of an earlier call with the same arguments; rounded up to whole
        batches.
    timeout
        Seconds after which no further trial or batch is started.
    seed
        Seed of the search; networks use the seed of the specification.
    valid_windows
        Rolling origins on which trials are scored, one horizon apart; overrides the specification. By default at least five,
        which overlap in short histories, if a third of the median history has five.
    test_windows
        Rolling origins at the end that the search does not use, as for train.
    parallel
        Trials that are proposed together, before any of them has a result. It changes the search as --seed does; the number of
        workers does not.
    on
        Where trials are fitted: one after another in this process, or a batch at a time as tasks on the Ray cluster that
        RAY_ADDRESS names (docs/batch.md). The variants of a preset are tasks too.
    on_disk
        Keep the values in a file in the root, as for train. The search is the same; the forecasts of the baselines are in memory.
    out
        File for the best specification (YAML).
    """
    validate_output_paths(out=out)
    from forecaster.data.symbols import refuse_symbols
    from forecaster.progress.display import create_display
    from forecaster.spec import Spec
    from forecaster.training.presets import with_validation_windows
    from pipelines.sources.on_disk import read_training_panel
    from pipelines.tuning.search import select_history, validate_search
    from pipelines.tuning.search import tune as run_search

    source = column_options.apply(data_options.to_data_source(data))
    spec_options = SpecOptions(config, horizon, season, columns=column_options)
    center = spec_options.read_spec()
    if center is not None:
        refuse_symbols(center, what="a search", advice="Train it, and change its specification by hand.")
    checked = center or Spec(name="placeholder", context=1, horizon=horizon or 1)
    checked = _set_valid_windows(checked, 1 if valid_windows is None else valid_windows)
    device_options.validate()
    if on == "ray":
        device_options.validate_cluster(on_disk=on_disk)
    validate_search(checked, n_trials=trials, timeout=timeout, seed=seed, test_windows=test_windows, parallel=parallel)
    root, progress = root_options.open_root(), create_display()
    folder = root.path if on_disk else None
    panel = read_training_panel(source.for_spec(center), folder=folder, now=datetime.now(UTC), progress=progress)
    with spec_options.select_spec(
        center,
        panel,
        source,
        root,
        test_windows=test_windows,
        with_pretrained=False,  # a search changes the network, which the pretrained weights do not allow
        device_options=device_options,
        on=on,
        progress=progress,
    ) as selection:
        if valid_windows is None:
            spec = with_validation_windows(
                selection.spec, select_history(panel, selection.spec, test_windows=test_windows)
            )
        else:
            spec = _set_valid_windows(selection.spec, valid_windows)
        with open_runner(on, workers=None) as run_steps:
            result = run_search(
                source,
                spec,
                root,
                panel=panel,
                output_path=out,
                n_trials=trials,
                timeout=timeout,
                seed=seed,
                test_windows=test_windows,
                parallel=parallel,
                accelerator=device_options.accelerator if on == "local" else "cpu",
                devices=device_options.devices,
                run_steps=run_steps,
                progress=progress,
            )
    print_tuning_result(result)
    command = _format_train_command(data, out, test_windows, data_options, root_options)
    print(f"next    {command}{' --on-disk' if on_disk else ''}")


def _set_valid_windows(spec: Spec, valid_windows: int) -> Spec:
    from forecaster.spec import Spec

    fields = spec.model_dump()
    fields["training"] |= {"valid_windows": valid_windows, "valid_stride": None}
    return Spec.parse(fields, where="--valid-windows")


def _format_train_command(
    data: str | None, config: Path, test_windows: int, data_options: DataOptions, root_options: RootOptions
) -> str:
    """Formats the command that trains the best specification on the same data."""
    command = ["forecaster", "train", *([] if data is None else [data]), "--config", str(config)]
    if test_windows != 1:
        command += ["--test-windows", str(test_windows)]
    option_names = [field.name for field in dataclass_fields(data_options)]
    for options, names in ((data_options, option_names), (root_options, ["root"])):
        for name in names:
            value = getattr(options, name)
            if value != getattr(type(options)(), name):
                command += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(command)
