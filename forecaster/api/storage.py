"""Bundles that a `Forecaster` reads and writes: folders, and versions in a model registry."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forecaster.bundle import artifact
from forecaster.bundle.files import MANIFEST_FILE
from forecaster.bundle.pretrained.base import BASE_FOLDER
from forecaster.errors import BundleError, InputError, NoSuchModel
from forecaster.installation import require_package
from forecaster.prediction.fitted_model import FittedModel, StoredModel, as_fitted_model
from forecaster.series import Panel

_REGISTRY_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>[0-9]+))?")


@contextmanager
def open_bundle(address: str | os.PathLike[str], *, tracking_uri: str | None) -> Iterator[Path]:
    """Yields the folder of a bundle: the given one, or a temporary copy of a registered version (`models:/NAME@ALIAS`)."""
    text = os.fspath(address)
    if not text.startswith("models:"):
        folder = Path(text).expanduser()
        if not folder.is_dir():
            raise BundleError(
                f"Expected the folder of a bundle at {text}; found none. Check the path, or load a registered model as "
                "'models:/NAME@champion'.",
                where=text,
            )
        if not (folder / MANIFEST_FILE).is_file():
            raise BundleError(
                f"Expected the folder of a bundle at {folder}; it has no {MANIFEST_FILE}. Check the path: `save` returns the "
                "folder that it wrote.",
                where=text,
            )
        yield folder
        return
    match = _REGISTRY_ADDRESS.fullmatch(text)
    if match is None:
        raise InputError(
            f"Expected an address like 'models:/hospital@champion' or 'models:/hospital/3'; found {text!r}. Correct it.",
            where="path",
        )
    from forecaster.registry.registry import CHAMPION, Registry

    uri = _find_registry(tracking_uri)
    require_package("mlflow", purpose="registered models")
    registry = Registry(uri)
    version = (
        registry.get_version(match["name"], match["number"])
        if match["number"]
        else registry.resolve(match["name"], match["alias"] or CHAMPION)
    )
    with tempfile.TemporaryDirectory(prefix="forecaster-") as temporary:
        yield registry.fetch(version, Path(temporary) / "bundle")


def _find_registry(tracking_uri: str | None) -> str:
    """Returns the URI of the registry: the argument, MLFLOW_TRACKING_URI, or the database of the root folder."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    database = Path(os.environ.get("FORECASTER_ROOT", ".forecaster")).expanduser().absolute() / "mlflow.db"
    if not database.exists():
        raise NoSuchModel(
            f"Expected a model registry in `tracking_uri`, MLFLOW_TRACKING_URI or {database}; found none. Pass the address of "
            "an MLflow server or database.",
            where="tracking_uri",
        )
    return f"sqlite:///{database}"


def save_model(model: FittedModel | StoredModel, path: Path, *, histories: Panel | None, overwrite: bool) -> None:
    """Writes a model as a bundle with its model card; one that was not fitted has the weights and the card of the base."""
    from forecaster.training.model_card import render_model_card

    fitted_model = as_fitted_model(model)
    was_fitted = "data_digest" in fitted_model.facts
    card = render_model_card(fitted_model) if was_fitted else artifact.read_card(BASE_FOLDER)
    write_bundle(fitted_model, path, card=card, histories=histories, overwrite=overwrite)


def write_bundle(model: FittedModel, path: Path, *, card: str, histories: Panel | None, overwrite: bool) -> None:
    """Writes a bundle to a folder. With `overwrite` it replaces a bundle, and nothing else, that is there.

    Raises BundleError if the folder exists and is not to be replaced.
    """
    if not path.exists():
        artifact.save_bundle(model, path, card=card, histories=histories)
        return
    if not overwrite or not (path / MANIFEST_FILE).is_file():
        advice = (
            "Choose another path, because only a bundle is overwritten."
            if overwrite
            else "Choose another path, or set `overwrite=True`."
        )
        raise BundleError(f"Expected no folder at {path}; found one. {advice}", where=str(path))
    path = path.absolute()
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        artifact.save_bundle(model, Path(folder) / "new", card=card, histories=histories)
        path.rename(Path(folder) / "old")
        (Path(folder) / "new").rename(path)
        shutil.rmtree(Path(folder) / "old")
