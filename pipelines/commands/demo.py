"""The command `run_demo`: from a series to a served forecast."""

from __future__ import annotations

from pathlib import Path

from pipelines.commands.options import RootOptions

_ROOT_OPTIONS = RootOptions()


def demo(*, configs: Path = Path("configs"), where: RootOptions = _ROOT_OPTIONS) -> None:
    """Trains on real data and on the classical series, registers, promotes, serves, asks over HTTP, and draws the answer.

    Parameters
    ----------
    configs
        Folder with hospital.yaml and sine.yaml.
    """
    from pipelines.demo import run_demo as run

    run(configs, where.open_root())
