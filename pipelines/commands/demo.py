"""The command `forecaster demo`: from the data to a served forecast."""

from __future__ import annotations

from pathlib import Path

from pipelines.commands.options import RootOptions

_ROOT_OPTIONS = RootOptions()


def demo(*, configs: Path = Path("configs"), root_options: RootOptions = _ROOT_OPTIONS) -> None:
    """Trains on real and on synthetic data, registers, promotes, serves, requests forecasts over HTTP, and draws them.

    Parameters
    ----------
    configs
        Folder with hospital.yaml and sine.yaml.
    """
    from pipelines.demo import run_demo

    run_demo(configs, root_options.open_root())
