"""The devices of a training, as Lightning's Trainer selects them."""

from __future__ import annotations

from forecaster.errors import InputError
from forecaster.training.lightning import MisconfigurationException, pl, quiet_lightning
from forecaster.training.processes import refuse_other_launchers


def parse_devices(devices: str) -> int | str:
    """Returns the devices as Lightning's Trainer expects them: a number of devices, or indices such as `2,`."""
    return int(devices) if devices.isdecimal() else devices


def count_devices(devices: str) -> int:
    """Returns how many devices these are: a number, or indices separated by commas."""
    return int(devices) if devices.isdecimal() else len([index for index in devices.split(",") if index.strip()])


def validate_device(*, accelerator: str, devices: str, allow_several: bool = False) -> None:
    """Raises InputError unless this machine has the accelerator and `devices` selects one device of it, or several where allowed.

    It also raises in a process that `torchrun` started beside others.
    """
    refuse_other_launchers()
    try:
        with quiet_lightning():
            trainer = pl.Trainer(
                accelerator=accelerator,
                devices=parse_devices(devices),
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"Expected an accelerator of this machine and one of its devices; found accelerator {accelerator!r} with devices "
            f"{devices!r} ({' '.join(str(error).split()).rstrip('.')}). Use the accelerator 'auto', which takes a GPU if there "
            "is one that this PyTorch supports.",
            where="accelerator",
        ) from error
    if trainer.num_devices != 1 and not allow_several:
        raise InputError(
            f"Expected one device, because a training uses one; found {trainer.num_devices} for devices {devices!r}. Name a "
            "device by its index and a comma (0,), and start several trainings to use several devices.",
            where="devices",
        )
    check_device_count(trainer, devices, expected=count_devices(devices))


def check_device_count(trainer: pl.Trainer, devices: str, *, expected: int) -> None:
    """Raises InputError where Lightning would use more devices than there are processes, and start the program again for each."""
    if trainer.num_devices != expected:
        raise InputError(
            f"Expected the number of devices, or their indices; found {devices!r}, by which Lightning selects "
            f"{trainer.num_devices}. Write 2 or 0,1 for two devices.",
            where="devices",
        )
