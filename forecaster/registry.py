"""Versions of bundles and their aliases, kept in MLflow.

The one file here that knows MLflow. It works through clients of its own alone: MLflow's process-wide tracking URI and
active run are neither read nor set, so two registries in one process do not mix.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from forecaster.errors import BaseMoved, BundleDamaged, BundleError, NoSuchModel, RegistryError
from forecaster.failpoints import point
from forecaster.lease import lease

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.types import Schema

CHAMPION = "champion"
CHALLENGER = "challenger"
FORMER = "former"

_DIGEST = "digest"  # the tag of a version: sha256 of its bundle's manifest
_BUNDLE = "bundle"  # the folder of a logged model that holds the bundle, beside MLflow's own files
_REPLACED = "replaced"  # the tag of a version: the number of the champion whose place it took
_GOING_BACK = "going-back"  # the alias of the version that a rollback under way goes to

# A server that is down must cost seconds, not MLflow's minutes. What the user has set is left alone.
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Version(NamedTuple):
    """One registered bundle.

    Attributes:
        name: Of the model it is a version of.
        number: Counts up from "1" within a name.
        digest: sha256 of the bundle's manifest.json, in hex; the manifest in turn names every other file's.
        run_id: The MLflow run that trained it, if that is known.
    """

    name: str
    number: str
    digest: str
    run_id: str | None

    def __str__(self) -> str:
        return f"'{self.name}' version {self.number}"


Record = Callable[[Version, Version | None], None]
"""Told of a new champion and of the one before; with None for the latter where it was champion already, or the first."""


def _unrecorded(version: Version, before: Version | None) -> None:
    """Keeps no record."""


class Registry:
    """The model registry behind one URI: "sqlite:////var/lib/forecaster/mlflow.db" or "http://host:5000".

    Every method raises RegistryError when the store cannot be reached or refuses.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = connect(uri)

    def register(
        self,
        bundle: Path,
        *,
        name: str,
        digest: str,
        run_id: str,
        input_example: pd.DataFrame,
        output_example: pd.DataFrame,
        tags: Mapping[str, str] | None = None,
    ) -> Version:
        """Stores a bundle as the next version of `name`, tags with it; a bundle that is one already is not stored again.

        The examples give the signature that MLflow shows; the input example is stored with the model.
        Raises BundleDamaged when the bundle's manifest has another digest, NoSuchModel when there is no such run.
        """
        _check_manifest(bundle, digest, where=str(bundle))
        with door(f"run '{run_id}'"):
            experiment_id = self._client.get_run(run_id).info.experiment_id
        with lease(self.uri), door(f"model '{name}'"):
            point("register.leased")
            self._ensure_model(name)
            same = [version for version in self.versions(name) if version.digest == digest]
            if same:
                return same[-1]
            with (
                _logged_model(self._client, experiment_id, name=name, run_id=run_id) as model,
                tempfile.TemporaryDirectory(prefix="forecaster-") as folder,
            ):
                _write_model(Path(folder), bundle, model, digest, input_example, output_example)
                self._client.log_model_artifacts(model.model_id, folder)
            point("register.stored")
            # The location and not "models:/<id>": MLflow's SQL store would look that up in the process-wide store.
            made = self._client.create_model_version(
                name,
                model.artifact_location,
                run_id,
                tags={**(tags or {}), _DIGEST: digest},
                await_creation_for=0,  # the files are there already
                model_id=model.model_id,
            )
            point("register.versioned")
            version = _version(made)
            # The link from the model to its version, which a server sets and MLflow's SQL store forgets.
            link = json.dumps([{"name": name, "version": version.number}])
            self._client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
            return version

    def resolve(self, name: str, alias: str) -> Version:
        """The version that an alias stands for; raises NoSuchModel when there is no such model or alias."""
        with door(f"model '{name}'"):
            aliases = self._client.get_registered_model(name).aliases
        if alias not in aliases:
            known = ", ".join(sorted(aliases)) or "none"
            raise NoSuchModel(
                f"Model '{name}' needs a version with the alias '{alias}'; its aliases are: {known}. "
                f"Promote or register a version first, or name another alias.",
                where=name,
            )
        return self.version(name, str(aliases[alias]))

    def version(self, name: str, number: str) -> Version:
        """One version by its number; raises NoSuchModel when there is none."""
        with door(f"model '{name}' version {number}"):
            return _version(self._client.get_model_version(name, number))

    def versions(self, name: str) -> list[Version]:
        """All versions of a name, oldest first; empty when there is no such model.

        Versions that others put into the same MLflow, without a digest, are left out.
        """
        return [_version(one) for one in self._all(name)]

    def find(self, name: str, *, tag: str, value: str) -> Version | None:
        """The latest version of a name with this tag, if there is one."""
        same = [one for one in self._all(name) if one.tags.get(tag) == value]
        return _version(same[-1]) if same else None

    def tags(self, version: Version) -> dict[str, str]:
        """What is noted with a version."""
        with door(str(version)):
            return dict(self._client.get_model_version(version.name, version.number).tags)

    def fetch(self, version: Version, into: Path) -> Path:
        """Copies a version's bundle to the folder `into`, which must not exist, and returns it.

        The bundle appears under `into` whole and with the digest of its version, or not at all. The digests of the
        files that the manifest names are the loader's to check. Raises BundleDamaged.
        """
        if into.exists():
            raise RegistryError(
                f"A bundle is fetched into a new folder; {into} exists already. Remove it, or name another folder.",
                where=str(into),
            )
        with door(str(into)):
            into.parent.mkdir(parents=True, exist_ok=True)
            # A sibling, so that the rename stays within one file system.
            with tempfile.TemporaryDirectory(prefix=f".{into.name}.", suffix=".partial", dir=into.parent) as folder:
                bundle = self._download(version, _BUNDLE, Path(folder))
                _check_manifest(bundle, version.digest, where=str(version))
                bundle.rename(into)
        return into

    def promote(self, version: Version, *, base: Version | None, record: Record | None = None) -> None:
        """Makes a version the champion, provided that the champion still is `base` (None: that there is none).

        The old champion gets the alias `former`; setting `champion` is the one commit point. Then `record` is told of the
        champion there was, while the lease is still held. A promotion that was cut short is completed by repeating it;
        repeating a finished one only tells `record` once more, with None.

        On one machine (a SQLite URI) promotions take turns by a lease file beside the database, so of several that
        were judged against one base exactly one wins. A server offers neither a lease nor compare-and-set: there the
        champion is checked just before it is set, and promotions should come from one scheduler.

        Raises BaseMoved; BundleDamaged when the stored bundle no longer has its digest.
        """
        with lease(self.uri):
            point("promote.leased")
            champion = self._champion(version.name)
            if champion == version:
                (record or _unrecorded)(version, None)
                return
            if champion != base:
                raise BaseMoved(
                    f"{version} was judged against {_said(base)}, but the champion is now {_said(champion)}. "
                    "Judge it against the present champion, then promote again.",
                    where=version.name,
                )
            self.drop_alias(version.name, _GOING_BACK)  # a rollback that was cut short is overtaken
            self._replace(champion, version, record or _unrecorded, step="promote")

    def roll_back(self, name: str, *, record: Record | None = None) -> Version:
        """Makes the former the champion and the champion the former, by the same steps and with the same lease.

        Where it goes is marked first, by an alias of its own: a rollback that was cut short is completed by repeating it,
        whatever it had done by then. Raises NoSuchModel where there is no former, BundleDamaged when its stored bundle no
        longer has its digest.
        """
        with lease(self.uri):
            point("rollback.leased")
            with door(f"model '{name}'"):
                aliases = {
                    alias: str(number) for alias, number in self._client.get_registered_model(name).aliases.items()
                }
            champion, goal = aliases.get(CHAMPION), aliases.get(_GOING_BACK) or aliases.get(FORMER)
            if goal is None or (goal == champion and _GOING_BACK not in aliases):
                raise NoSuchModel(
                    f"Model '{name}' needs a former to go back to; it has {'none' if goal is None else 'the champion itself'}. "
                    f"Promote a version by its number: forecaster promote {name} --version N --force.",
                    where=name,
                )
            version = self.version(name, goal)
            self.set_alias(version, _GOING_BACK)
            point("rollback.marked")
            if goal == champion:  # it was cut short behind the commit point
                (record or _unrecorded)(version, None)
            else:
                base = None if champion is None else self.version(name, champion)
                self._replace(base, version, record or _unrecorded, step="rollback")
            self.drop_alias(name, _GOING_BACK)
        return version

    def _replace(self, champion: Version | None, version: Version, record: Record, *, step: str) -> None:
        """Puts a version in the champion's place: all that may fail first, then the one commit point, then the record."""
        with tempfile.TemporaryDirectory(prefix="forecaster-") as folder:
            manifest = self._download(version, f"{_BUNDLE}/manifest.json", Path(folder))
            _check_manifest(manifest.parent, version.digest, where=str(version))
        point(f"{step}.verified")
        self.tag(version, _REPLACED, "none" if champion is None else champion.number)
        point(f"{step}.tagged")
        if champion is not None:
            self.set_alias(champion, FORMER)
        point(f"{step}.after_former")
        self.set_alias(version, CHAMPION)
        point(f"{step}.after_champion")
        record(version, champion)
        point(f"{step}.audited")

    def set_alias(self, version: Version, alias: str) -> None:
        """Points an alias at a version, whatever it pointed at before."""
        with door(str(version)):
            self._client.set_registered_model_alias(version.name, alias, version.number)

    def tag(self, version: Version, key: str, value: str) -> None:
        """Notes something with a version, in place of what was noted there before."""
        with door(str(version)):
            self._client.set_model_version_tag(version.name, version.number, key, value)

    def drop_alias(self, name: str, alias: str) -> None:
        """Removes an alias; one that is not there is no error."""
        with door(f"model '{name}'"):
            self._client.delete_registered_model_alias(name, alias)

    def _all(self, name: str) -> list[ModelVersion]:
        """Ours, oldest first."""
        found: list[ModelVersion] = []
        with door(f"model '{name}'"):
            token: str | None = None
            while token != "":
                page = self._client.search_model_versions(f"name='{name}'", page_token=token)
                found += page
                token = page.token or ""
        return [one for one in sorted(found, key=lambda one: int(one.version)) if _DIGEST in one.tags]

    def _champion(self, name: str) -> Version | None:
        with door(f"model '{name}'"):
            number = self._client.get_registered_model(name).aliases.get(CHAMPION)
        return None if number is None else self.version(name, str(number))

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _download(self, version: Version, path: str, into: Path) -> Path:
        from mlflow.artifacts import download_artifacts

        with door(str(version)):
            location = self._client.get_model_version_download_uri(version.name, version.number)
        with door(f"the bundle of {version}", missing=BundleDamaged):
            copied = download_artifacts(
                artifact_uri=f"{location}/{path}", dst_path=str(into), tracking_uri=self.uri, registry_uri=self.uri
            )
        return Path(copied)


def connect(uri: str) -> MlflowClient:
    """A client of one MLflow store, its database made ready; raises RegistryError.

    Two processes that open a fresh SQLite database at once would both migrate it, and one would fail: they take turns.
    """
    for key, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    with lease(uri), door(f"the store '{uri}'"), warnings.catch_warnings():
        # MLflow 3.17 configures its tables, at first use, in a way that SQLAlchemy 2.1 deprecates.
        warnings.filterwarnings("ignore", r"The ``noload`` loader strategy is deprecated", DeprecationWarning)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_registered_models(max_results=1)
    return client


@contextlib.contextmanager
def door(where: str, *, missing: type[RegistryError | BundleError] = NoSuchModel) -> Iterator[None]:
    """Where MLflow's exceptions become ours; `missing` is raised for what the store does not have."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        said = " ".join(str(error.message).removeprefix(f"{error.error_code}: ").split()).rstrip(".")
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise missing(
                f"{where[:1].upper()}{where[1:]} is not in the store: {said}. Check the name, or register it first.",
                where=where,
            ) from error
        if error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
            raise RegistryError(f"The store refuses {where}: {said}. Correct what it names.", where=where) from error
        raise RegistryError(
            f"The store failed on {where}: {said}. Check the store's address and that it is up, then try again.",
            where=where,
        ) from error
    except _database_errors() as error:
        raise RegistryError(
            f"The store failed on {where}: {error}. Check the database and its address.", where=where
        ) from error
    except OSError as error:
        raise RegistryError(
            f"The files of {where} cannot be read or written: {error}. Check the folder and its permissions.",
            where=where,
        ) from error


def _database_errors() -> tuple[type[Exception], ...]:
    """SQLAlchemy's, where it is installed: a server has none, it asks a registry over HTTP."""
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return ()
    return (SQLAlchemyError,)


@contextlib.contextmanager
def _logged_model(client: MlflowClient, experiment_id: str, *, name: str, run_id: str) -> Iterator[LoggedModel]:
    """An MLflow model as an output of its run; READY when the block ends, FAILED when it raises."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    model = client.create_logged_model(experiment_id, name, run_id, model_type="forecaster")
    try:
        yield model
    except BaseException:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def _write_model(
    folder: Path,
    bundle: Path,
    model: LoggedModel,
    digest: str,
    input_example: pd.DataFrame,
    output_example: pd.DataFrame,
) -> None:
    """What `Model.log` would write, without its global state, its guess at requirements and its trial run."""
    from mlflow.models import Model, ModelSignature

    example = input_example.to_json(orient="split", index=False, date_format="iso")
    (folder / "input_example.json").write_text(example)
    (folder / "serving_input_example.json").write_text(f'{{"dataframe_split": {example}}}')
    described = Model(
        artifact_path=model.artifact_location,
        run_id=model.source_run_id,
        model_uuid=model.model_id,
        model_id=model.model_id,
        signature=ModelSignature(_schema(input_example), _schema(output_example)),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "dataframe",
            "pandas_orient": "split",
        },
    )
    described.add_flavor("forecaster", bundle=_BUNDLE, digest=digest)
    described.save(str(folder / "MLmodel"))
    shutil.copytree(bundle, folder / _BUNDLE)


def _schema(frame: pd.DataFrame) -> Schema:
    """By hand: `infer_signature` of MLflow 3.17 takes the text columns of pandas 3 for columns of any type."""
    from mlflow.types import ColSpec, DataType, Schema

    kinds = {
        "M": DataType.datetime,
        "f": DataType.double,
        "i": DataType.long,
        "u": DataType.long,
        "b": DataType.boolean,
    }
    return Schema([ColSpec(kinds.get(dtype.kind, DataType.string), str(name)) for name, dtype in frame.dtypes.items()])


def _version(found: ModelVersion) -> Version:
    if _DIGEST not in found.tags:
        raise RegistryError(
            f"A version needs the tag '{_DIGEST}'; '{found.name}' version {found.version} has none, so it is not one "
            "of ours. Register the bundle with `forecaster register`, or name another version.",
            where=found.name,
        )
    return Version(found.name, str(found.version), found.tags[_DIGEST], found.run_id or None)


def _check_manifest(bundle: Path, digest: str, *, where: str) -> None:
    try:
        found = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    except OSError as error:
        raise BundleDamaged(
            f"The bundle of {where} needs a readable manifest.json: {error.strerror}. "
            "Register it again from an unaltered copy.",
            where=where,
        ) from error
    if found != digest:
        raise BundleDamaged(
            f"The manifest of {where} should have the digest {digest}; it has {found}. "
            "Register the bundle again from an unaltered copy.",
            where=where,
        )


def _said(version: Version | None) -> str:
    return "no champion" if version is None else f"version {version.number}"
