"""The command `forecaster package`: makes a Bento of a model."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipelines.commands.options import RootOptions

if TYPE_CHECKING:
    from pipelines.promotion.bento import ReleasedBundle

_ROOT_OPTIONS = RootOptions()


def package(model: str, *, folder: Path | None = None, root_options: RootOptions = _ROOT_OPTIONS) -> None:
    """Makes a Bento of a model, which BentoML serves without a registry and puts into a container image.

    The Bento contains the bundle, the service and the exact versions of its requirements. Packaging a later version makes
    another Bento.

    Parameters
    ----------
    model
        A registered model as NAME or NAME@ALIAS (by default its champion), or a bundle folder.
    folder
        Where to keep the folder that the Bento is built from, to edit it and run `bentoml build`; by default it is deleted.
    """
    from forecaster.installation import require_package

    require_package("bentoml", purpose="packaging")
    from pipelines.promotion.bento import package_release

    release = _find_release(model, root_options)
    with TemporaryDirectory(prefix="forecaster-bento-") as temporary:
        tag = package_release(release, Path(temporary) / "bento" if folder is None else folder.expanduser().absolute())
    print(f"{tag}: version {release.version} of {release.name} ({release.digest[:12]})")
    name = tag.partition(":")[0]
    print(f"Serve it with: bentoml serve {name}:latest\nMake an image with: bentoml containerize {name}:latest")


def _find_release(model: str, root_options: RootOptions) -> ReleasedBundle:
    from forecaster.bundle import artifact
    from pipelines.promotion.bento import ReleasedBundle

    if Path(model).exists() or os.sep in model:
        folder = Path(model)
        digest = artifact.compute_bundle_digest(folder)
        name = artifact.load_predictor(folder).fitted_model.spec.name
        return ReleasedBundle(name, "unregistered", digest, folder)
    from forecaster.registry.registry import CHAMPION, Registry
    from pipelines.promotion.promote import fetch_bundle

    root = root_options.open_existing_root()
    name, _, alias = model.partition("@")
    version = Registry(root.store_uri).resolve(name, alias or CHAMPION)
    return ReleasedBundle(version.name, version.number, version.digest, fetch_bundle(version, root))
