"""The model of a command: a bundle folder, a registered model, or the pretrained network of the package."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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


def resolve_bundle(model: str, root_options: RootOptions) -> Path:
    """Returns the bundle folder of a model: the given folder, or a download from the registry by NAME or NAME@ALIAS.

    The name `base` is the pretrained network of the package, unless a registered model or a bundle folder has that name.
    """
    from forecaster.bundle.files import MANIFEST_FILE
    from forecaster.bundle.pretrained.base import BASE_FOLDER, BASE_NAME

    if model == BASE_NAME and not (Path(model) / MANIFEST_FILE).is_file():
        if not _is_registered(model, root_options):
            return BASE_FOLDER
    elif Path(model).is_dir():
        return Path(model)
    from forecaster.registry.registry import Registry
    from pipelines.promotion.promote import fetch_bundle

    root = root_options.open_existing_root()
    name, _, alias = model.partition("@")
    return fetch_bundle(Registry(root.store_uri).resolve(name, alias or "champion"), root)


def _is_registered(name: str, root_options: RootOptions) -> bool:
    """Whether a registry exists and has a model of this name."""
    try:
        root = root_options.open_existing_root()
    except NoSuchModel:
        return False
    from forecaster.registry.registry import Registry

    return any(model.name == name for model in Registry(root.store_uri).list_models())
