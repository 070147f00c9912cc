"""The model of a command: a bundle folder, a registered model, or the pretrained network of the package."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cyclopts import Parameter

from forecaster.errors import InputError, NoSuchModel
from pipelines.commands.options import RootOptions


@Parameter(name="*")
@dataclass(frozen=True)
class SeasonOptions:
    """What the pretrained network is specialised for."""

    season: int | None = None
    "Steps of a season, for the pretrained network (base) only; by default that of the frequency."

    def validate(self, bundles: Iterable[Path]) -> None:
        """Rejects an invalid season, and one without the pretrained network among the bundles; raises InputError."""
        from forecaster.bundle.pretrained.base import BASE_FOLDER, validate_season

        if self.season is not None:
            validate_season(self.season)
        if self.season is not None and BASE_FOLDER not in bundles:
            raise InputError(
                "Expected --season with the pretrained network (base) only; other models have their own. Leave it out.",
                where="season",
            )


class ResolvedModel(NamedTuple):
    """The bundle folder of a model, and its version in the registry (`hospital/3`); None if it is not registered."""

    folder: Path
    version: str | None


def resolve_bundle(model: str, root_options: RootOptions) -> Path:
    """Returns the bundle folder of a model: the given folder, or a download from the registry by NAME or NAME@ALIAS.

    The name `base` is the pretrained network of the package, unless a registered model or a bundle folder has that name.
    """
    return resolve_model(model, root_options).folder


def resolve_model(model: str, root_options: RootOptions) -> ResolvedModel:
    """Returns the bundle folder of a model as `resolve_bundle` does, and its version."""
    from forecaster.bundle.files import MANIFEST_FILE
    from forecaster.bundle.pretrained.base import BASE_FOLDER, BASE_NAME

    if model == BASE_NAME and not (Path(model) / MANIFEST_FILE).is_file():
        if not _is_registered(model, root_options):
            return ResolvedModel(BASE_FOLDER, None)
    elif Path(model).is_dir():
        return ResolvedModel(Path(model), None)
    from forecaster.registry.registry import Registry
    from pipelines.promotion.promote import fetch_bundle

    root = root_options.open_existing_root()
    name, _, alias = model.partition("@")
    version = Registry(root.store_uri).resolve(name, alias or "champion")
    return ResolvedModel(fetch_bundle(version, root), f"{version.name}/{version.number}")


def _is_registered(name: str, root_options: RootOptions) -> bool:
    """Whether a registry exists and has a model of this name."""
    try:
        root = root_options.open_existing_root()
    except NoSuchModel:
        return False
    from forecaster.registry.registry import Registry

    return any(model.name == name for model in Registry(root.store_uri).list_models())
