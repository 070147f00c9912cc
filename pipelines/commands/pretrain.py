"""The command `forecaster pretrain`: the network that ships with the package, trained on generated series."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from forecaster.installation import DISTRIBUTION
from pipelines.commands.options import DeviceOptions, RootOptions
from pipelines.commands.train import can_record


@Parameter(name="*")
@dataclass(frozen=True)
class PretrainOptions:
    """What determines the weights; an option that is not given keeps the value of the shipped network's recipe."""

    steps: int | None = None
    "Optimizer steps."
    seed: int | None = None
    "Seed of the series and of the initial weights."
    cell: Literal["gru", "lstm", "elman"] | None = None
    "Cell of the recurrence."
    layers: int | None = None
    "Layers of the recurrence."
    hidden: int | None = None
    "Units of each layer."
    learning_rate: float | None = None
    "Peak of the learning rate, which rises over the first steps and then falls as a cosine."
    weight_decay: float | None = None
    "Decay of the weights per step, times the learning rate."
    gradient_clip: float | None = None
    "Maximum global norm of the gradient."
    segments: int | None = None
    "Steps of the recurrence in a batch, over all its series; a batch of more takes longer."
    origins: int | None = None
    "Points in each series after which a block is predicted."
    epoch_steps: int | None = None
    "Steps between two checkpoints."


_PRETRAIN_OPTIONS, _DEVICE_OPTIONS, _ROOT_OPTIONS = PretrainOptions(), DeviceOptions(), RootOptions()


def pretrain(
    *,
    out: Path,
    pretrain_options: PretrainOptions = _PRETRAIN_OPTIONS,
    device_options: DeviceOptions = _DEVICE_OPTIONS,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Trains the network `base` on generated series, and writes its bundle. After an interruption, the same command resumes it.

    Parameters
    ----------
    out
        A new folder for the bundle.
    """
    from forecaster.progress.display import create_display
    from pipelines.training import pretrain as pretraining

    options = pretraining.parse_options(**asdict(pretrain_options))
    root = root_options.open_root()
    pretraining.find_interrupted_bundle(out, options, root)  # refuses another folder before any work
    record = can_record(root)
    device_options.validate()
    result = pretraining.pretrain(
        options,
        root,
        out=out,
        record=record,
        accelerator=device_options.accelerator,
        devices=device_options.devices,
        progress=create_display(),
    )
    run_id = result.run_id or f"not recorded: MLflow is not installed (pip install '{DISTRIBUTION}[track]')"
    print(f"bundle  {result.bundle}\nrun     {run_id}")
    print(
        f"loss {result.loss:.4g} after {result.steps} steps, {result.cpu_seconds / 60:.1f} minutes of CPU, "
        f"digest {result.digest}, {result.num_bytes / 1e6:.2f} MB"
    )
