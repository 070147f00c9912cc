"""Where state lives: everything under one root folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Root(NamedTuple):
    """The folder of all state, and what lies where in it.

    Attributes:
        path: The folder (`--root`, FORECASTER_ROOT).
        uri: An MLflow server that holds runs and models instead of the folder's own database, if there is one.
    """

    path: Path
    uri: str | None = None

    @property
    def bundles(self) -> Path:
        """Bundles that trainings wrote, a folder each."""
        return self.path / "bundles"

    @property
    def checkpoints(self) -> Path:
        """Trainings under way, a folder each; gone when they end well."""
        return self.path / "checkpoints"

    @property
    def fetched(self) -> Path:
        """Bundles copied from the registry, by digest."""
        return self.path / "fetched"

    @property
    def slot(self) -> Path:
        """What the service serves."""
        return self.path / "slot"
