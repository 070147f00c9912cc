"""The command `demo`: from a series to a served forecast."""

from __future__ import annotations

from pathlib import Path

from pipelines.commands.options import Where

_WHERE = Where()


def demo(*, configs: Path = Path("configs"), where: Where = _WHERE) -> None:
    """Trains on real data and on the classical series, registers, promotes, serves, asks over HTTP, and draws the answer.

    Parameters
    ----------
    configs
        Folder with hospital.yaml and sine.yaml.
    """
    from pipelines.demo import demo as run

    run(configs, where.open())
