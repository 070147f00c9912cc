"""The command `forecaster demo`: from the data to a served forecast."""

from __future__ import annotations

from pathlib import Path

from pipelines.commands.options import RootOptions

_ROOT_OPTIONS = RootOptions()


def demo(*, configs: Path = Path("configs"), root_options: RootOptions = _ROOT_OPTIONS) -> None:
    """Trains on real and on synthetic data, registers, promotes, serves, requests forecasts over HTTP, and shows them on a page.

    Parameters
    ----------
    configs
        Folder with hospital.yaml, sine.yaml and sine_unrolled.yaml.
    """
    from pipelines.demo.run import run_demo

    run_demo(configs, root_options.open_root())
