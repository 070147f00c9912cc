"""Versions of bundles and their aliases, kept in MLflow.

With `store` and `logged` beside it, the one that knows MLflow. It works through clients of its own alone: MLflow's
process-wide tracking URI and active run are neither read nor set, so two registries in one process do not mix.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from forecaster.errors import BaseMoved, BundleDamaged, NoSuchModel, RegistryError
from forecaster.registry.connection import connect as connect
from forecaster.registry.connection import door as door
from forecaster.registry.lock import Confirm, lease_of
from forecaster.registry.logged_model import BUNDLE, logged_model, write_model
from forecaster.storage.failpoints import point

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
CHALLENGER = "challenger"
FORMER = "former"

_DIGEST = "digest"  # the tag of a version: sha256 of its bundle's manifest
_REPLACED = "replaced"  # the tag of a version: the number of the champion whose place it took
_GOING_BACK = "going-back"  # the alias of the version that a rollback under way goes to


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
        with door(f"model '{name}'"):
            self._ensure_model(name)
        with self._leased(name), door(f"model '{name}'"):
            point("register.leased")
            same = [version for version in self.versions(name) if version.digest == digest]
            if same:
                return same[-1]
            with (
                logged_model(self._client, experiment_id, name=name, run_id=run_id) as model,
                tempfile.TemporaryDirectory(prefix="forecaster-") as folder,
            ):
                write_model(Path(folder), bundle, model, digest, input_example, output_example)
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
                bundle = self._download(version, BUNDLE, Path(folder))
                _check_manifest(bundle, version.digest, where=str(version))
                bundle.rename(into)
        return into

    def promote(self, version: Version, *, base: Version | None, record: Record | None = None) -> None:
        """Makes a version the champion, provided that the champion still is `base` (None: that there is none).

        The old champion gets the alias `former`; setting `champion` is the one commit point. Then `record` is told of the
        champion there was, while the lease is still held. A promotion that was cut short is completed by repeating it;
        repeating a finished one only tells `record` once more, with None.

        Promotions take turns, so of several that were judged against one base exactly one wins: on one machine (a SQLite URI)
        by a lock file beside the database, on a server or another database by a queue of tags of the model.

        Raises BaseMoved; BundleDamaged when the stored bundle no longer has its digest.
        """
        with self._leased(version.name) as confirm:
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
            self._replace(champion, version, record or _unrecorded, confirm, step="promote")

    def roll_back(self, name: str, *, record: Record | None = None) -> Version:
        """Makes the former the champion and the champion the former, by the same steps and with the same lease.

        Where it goes is marked first, by an alias of its own: a rollback that was cut short is completed by repeating it,
        whatever it had done by then. Raises NoSuchModel where there is no former, BundleDamaged when its stored bundle no
        longer has its digest.
        """
        with self._leased(name) as confirm:
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
                self._replace(base, version, record or _unrecorded, confirm, step="rollback")
            self.drop_alias(name, _GOING_BACK)
        return version

    def _replace(
        self, champion: Version | None, version: Version, record: Record, confirm: Confirm, *, step: str
    ) -> None:
        """Puts a version in the champion's place: all that may fail first, then the one commit point, then the record."""
        with tempfile.TemporaryDirectory(prefix="forecaster-") as folder:
            manifest = self._download(version, f"{BUNDLE}/manifest.json", Path(folder))
            _check_manifest(manifest.parent, version.digest, where=str(version))
        point(f"{step}.verified")
        confirm()
        self.tag(version, _REPLACED, "none" if champion is None else champion.number)
        point(f"{step}.tagged")
        if champion is not None:
            self.set_alias(champion, FORMER)
        point(f"{step}.after_former")
        confirm()
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

    def _leased(self, name: str) -> AbstractContextManager[Confirm]:
        return lease_of(self.uri, _Tags(self._client, name), where=f"model '{name}'")

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


class _Tags:
    """The tags of a registered model, as the notes of a queue."""

    def __init__(self, client: MlflowClient, name: str) -> None:
        self._client, self._name = client, name

    def read(self) -> Mapping[str, str]:
        with door(f"model '{self._name}'"):
            return dict(self._client.get_registered_model(self._name).tags)

    def write(self, key: str, value: str) -> None:
        with door(f"model '{self._name}'"):
            self._client.set_registered_model_tag(self._name, key, value)

    def erase(self, key: str) -> None:
        with door(f"model '{self._name}'"):
            self._client.delete_registered_model_tag(self._name, key)


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
