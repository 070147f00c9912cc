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
from forecaster.registry.connection import create_client as create_client
from forecaster.registry.connection import translate_store_errors as translate_store_errors
from forecaster.registry.lock import LockCheck, lock_registry
from forecaster.registry.logged_model import BUNDLE_FOLDER, logged_model, write_model
from forecaster.storage.failpoints import fail_point

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS_CHAMPION = "former"

_DIGEST_TAG = "digest"  # the tag of a version: sha256 of its bundle's manifest
_REPLACED_TAG = "replaced"  # the tag of a version: the number of the champion whose place it took
_ROLLBACK_ALIAS = "going-back"  # the alias of the version that a rollback under way goes to


class BundleVersion(NamedTuple):
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


PromotionCallback = Callable[[BundleVersion, BundleVersion | None], None]
"""Told of a new champion and of the one before; with None for the latter where it was champion already, or the first."""


def _ignore_promotion(version: BundleVersion, previous: BundleVersion | None) -> None:
    """Keeps no record."""


class Registry:
    """The model registry behind one URI: "sqlite:////var/lib/forecaster/mlflow.db" or "http://host:5000".

    Every method raises RegistryError when the store cannot be reached or refuses.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = create_client(uri)

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
    ) -> BundleVersion:
        """Stores a bundle as the next version of `name`, tags with it; a bundle that is one already is not stored again.

        The examples give the signature that MLflow shows; the input example is stored with the model.
        Raises BundleDamaged when the bundle's manifest has another digest, NoSuchModel when there is no such run.
        """
        _check_manifest(bundle, digest, where=str(bundle))
        with translate_store_errors(f"run '{run_id}'"):
            experiment_id = self._client.get_run(run_id).info.experiment_id
        with translate_store_errors(f"model '{name}'"):
            self._ensure_model(name)
        with self._lock(name), translate_store_errors(f"model '{name}'"):
            fail_point("register.leased")
            same = [version for version in self.list_versions(name) if version.digest == digest]
            if same:
                return same[-1]
            with (
                logged_model(self._client, experiment_id, name=name, run_id=run_id) as model,
                tempfile.TemporaryDirectory(prefix="forecaster-") as folder,
            ):
                write_model(Path(folder), bundle, model, digest, input_example, output_example)
                self._client.log_model_artifacts(model.model_id, folder)
            fail_point("register.stored")
            # The location and not "models:/<id>": MLflow's SQL store would look that up in the process-wide store.
            made = self._client.create_model_version(
                name,
                model.artifact_location,
                run_id,
                tags={**(tags or {}), _DIGEST_TAG: digest},
                await_creation_for=0,  # the files are there already
                model_id=model.model_id,
            )
            fail_point("register.versioned")
            version = _to_bundle_version(made)
            # The link from the model to its version, which a server sets and MLflow's SQL store forgets.
            link = json.dumps([{"name": name, "version": version.number}])
            self._client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
            return version

    def resolve(self, name: str, alias: str) -> BundleVersion:
        """The version that an alias stands for; raises NoSuchModel when there is no such model or alias."""
        with translate_store_errors(f"model '{name}'"):
            aliases = self._client.get_registered_model(name).aliases
        if alias not in aliases:
            known = ", ".join(sorted(aliases)) or "none"
            raise NoSuchModel(
                f"Model '{name}' needs a version with the alias '{alias}'; its aliases are: {known}. "
                f"Promote or register a version first, or name another alias.",
                where=name,
            )
        return self.get_version(name, str(aliases[alias]))

    def get_version(self, name: str, number: str) -> BundleVersion:
        """One version by its number; raises NoSuchModel when there is none."""
        with translate_store_errors(f"model '{name}' version {number}"):
            return _to_bundle_version(self._client.get_model_version(name, number))

    def list_versions(self, name: str) -> list[BundleVersion]:
        """All versions of a name, oldest first; empty when there is no such model.

        Versions that others put into the same MLflow, without a digest, are left out.
        """
        return [_to_bundle_version(one) for one in self._search_versions(name)]

    def find_version(self, name: str, *, tag: str, value: str) -> BundleVersion | None:
        """The latest version of a name with this tag, if there is one."""
        same = [one for one in self._search_versions(name) if one.tags.get(tag) == value]
        return _to_bundle_version(same[-1]) if same else None

    def get_tags(self, version: BundleVersion) -> dict[str, str]:
        """What is noted with a version."""
        with translate_store_errors(str(version)):
            return dict(self._client.get_model_version(version.name, version.number).tags)

    def fetch(self, version: BundleVersion, into: Path) -> Path:
        """Copies a version's bundle to the folder `destination`, which must not exist, and returns it.

        The bundle appears under `destination` whole and with the digest of its version, or not at all. The digests of the
        files that the manifest names are the loader's to check. Raises BundleDamaged.
        """
        if into.exists():
            raise RegistryError(
                f"A bundle is fetched into a new folder; {into} exists already. Remove it, or name another folder.",
                where=str(into),
            )
        with translate_store_errors(str(into)):
            into.parent.mkdir(parents=True, exist_ok=True)
            # A sibling, so that the rename stays within one file system.
            with tempfile.TemporaryDirectory(prefix=f".{into.name}.", suffix=".partial", dir=into.parent) as folder:
                bundle = self._download_artifact(version, BUNDLE_FOLDER, Path(folder))
                _check_manifest(bundle, version.digest, where=str(version))
                bundle.rename(into)
        return into

    def promote(
        self,
        version: BundleVersion,
        *,
        expected_champion: BundleVersion | None,
        on_promoted: PromotionCallback | None = None,
    ) -> None:
        """Makes a version the champion, provided that the champion still is `expected_champion` (None: that there is none).

        The old champion gets the alias `former`; setting `champion` is the one commit point. Then `on_promoted` is told of the
        champion there was, while the lease is still held. A promotion that was cut short is completed by repeating it;
        repeating a finished one only tells `on_promoted` once more, with None.

        Promotions take turns, so of several that were judged against one base exactly one wins: on one machine (a SQLite URI)
        by a lock file beside the database, on a server or another database by a queue of tags of the model.

        Raises BaseMoved; BundleDamaged when the stored bundle no longer has its digest.
        """
        with self._lock(version.name) as confirm:
            fail_point("promote.leased")
            champion = self._get_champion(version.name)
            if champion == version:
                (on_promoted or _ignore_promotion)(version, None)
                return
            if champion != expected_champion:
                raise BaseMoved(
                    f"{version} was judged against {_describe_version(expected_champion)}, but the champion is now {_describe_version(champion)}. "
                    "Judge it against the present champion, then promote again.",
                    where=version.name,
                )
            self.delete_alias(version.name, _ROLLBACK_ALIAS)  # a rollback that was cut short is overtaken
            self._replace_champion(champion, version, on_promoted or _ignore_promotion, confirm, step="promote")

    def roll_back(self, name: str, *, on_promoted: PromotionCallback | None = None) -> BundleVersion:
        """Makes the former the champion and the champion the former, by the same steps and with the same lease.

        Where it goes is marked first, by an alias of its own: a rollback that was cut short is completed by repeating it,
        whatever it had done by then. Raises NoSuchModel where there is no former, BundleDamaged when its stored bundle no
        longer has its digest.
        """
        with self._lock(name) as confirm:
            fail_point("rollback.leased")
            with translate_store_errors(f"model '{name}'"):
                aliases = {
                    alias: str(number) for alias, number in self._client.get_registered_model(name).aliases.items()
                }
            champion, goal = aliases.get(CHAMPION), aliases.get(_ROLLBACK_ALIAS) or aliases.get(PREVIOUS_CHAMPION)
            if goal is None or (goal == champion and _ROLLBACK_ALIAS not in aliases):
                raise NoSuchModel(
                    f"Model '{name}' needs a former to go back to; it has {'none' if goal is None else 'the champion itself'}. "
                    f"Promote a version by its number: forecaster promote {name} --version N --force.",
                    where=name,
                )
            version = self.get_version(name, goal)
            self.set_alias(version, _ROLLBACK_ALIAS)
            fail_point("rollback.marked")
            if goal == champion:  # it was cut short behind the commit point
                (on_promoted or _ignore_promotion)(version, None)
            else:
                base = None if champion is None else self.get_version(name, champion)
                self._replace_champion(base, version, on_promoted or _ignore_promotion, confirm, step="rollback")
            self.delete_alias(name, _ROLLBACK_ALIAS)
        return version

    def _replace_champion(
        self,
        champion: BundleVersion | None,
        version: BundleVersion,
        on_promoted: PromotionCallback,
        check_lock: LockCheck,
        *,
        step: str,
    ) -> None:
        """Puts a version in the champion's place: all that may fail first, then the one commit point, then the record."""
        with tempfile.TemporaryDirectory(prefix="forecaster-") as folder:
            manifest = self._download_artifact(version, f"{BUNDLE_FOLDER}/manifest.json", Path(folder))
            _check_manifest(manifest.parent, version.digest, where=str(version))
        fail_point(f"{step}.verified")
        check_lock()
        self.set_tag(version, _REPLACED_TAG, "none" if champion is None else champion.number)
        fail_point(f"{step}.tagged")
        if champion is not None:
            self.set_alias(champion, PREVIOUS_CHAMPION)
        fail_point(f"{step}.after_former")
        check_lock()
        self.set_alias(version, CHAMPION)
        fail_point(f"{step}.after_champion")
        on_promoted(version, champion)
        fail_point(f"{step}.audited")

    def set_alias(self, version: BundleVersion, alias: str) -> None:
        """Points an alias at a version, whatever it pointed at before."""
        with translate_store_errors(str(version)):
            self._client.set_registered_model_alias(version.name, alias, version.number)

    def set_tag(self, version: BundleVersion, key: str, value: str) -> None:
        """Notes something with a version, in place of what was noted there before."""
        with translate_store_errors(str(version)):
            self._client.set_model_version_tag(version.name, version.number, key, value)

    def delete_alias(self, name: str, alias: str) -> None:
        """Removes an alias; one that is not there is no error."""
        with translate_store_errors(f"model '{name}'"):
            self._client.delete_registered_model_alias(name, alias)

    def _lock(self, name: str) -> AbstractContextManager[LockCheck]:
        return lock_registry(self.uri, _TagStore(self._client, name), where=f"model '{name}'")

    def _search_versions(self, name: str) -> list[ModelVersion]:
        """Ours, oldest first."""
        found: list[ModelVersion] = []
        with translate_store_errors(f"model '{name}'"):
            token: str | None = None
            while token != "":
                page = self._client.search_model_versions(f"name='{name}'", page_token=token)
                found += page
                token = page.token or ""
        return [one for one in sorted(found, key=lambda one: int(one.version)) if _DIGEST_TAG in one.tags]

    def _get_champion(self, name: str) -> BundleVersion | None:
        with translate_store_errors(f"model '{name}'"):
            number = self._client.get_registered_model(name).aliases.get(CHAMPION)
        return None if number is None else self.get_version(name, str(number))

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _download_artifact(self, version: BundleVersion, path: str, destination: Path) -> Path:
        from mlflow.artifacts import download_artifacts

        with translate_store_errors(str(version)):
            location = self._client.get_model_version_download_uri(version.name, version.number)
        with translate_store_errors(f"the bundle of {version}", not_found=BundleDamaged):
            copied = download_artifacts(
                artifact_uri=f"{location}/{path}",
                dst_path=str(destination),
                tracking_uri=self.uri,
                registry_uri=self.uri,
            )
        return Path(copied)


class _TagStore:
    """The tags of a registered model, as the notes of a queue."""

    def __init__(self, client: MlflowClient, name: str) -> None:
        self._client, self._name = client, name

    def read_notes(self) -> Mapping[str, str]:
        with translate_store_errors(f"model '{self._name}'"):
            return dict(self._client.get_registered_model(self._name).tags)

    def write_note(self, key: str, value: str) -> None:
        with translate_store_errors(f"model '{self._name}'"):
            self._client.set_registered_model_tag(self._name, key, value)

    def delete_note(self, key: str) -> None:
        with translate_store_errors(f"model '{self._name}'"):
            self._client.delete_registered_model_tag(self._name, key)


def _to_bundle_version(model_version: ModelVersion) -> BundleVersion:
    if _DIGEST_TAG not in model_version.tags:
        raise RegistryError(
            f"A version needs the tag '{_DIGEST_TAG}'; '{model_version.name}' version {model_version.version} has none, so it is not one "
            "of ours. Register the bundle with `forecaster register`, or name another version.",
            where=model_version.name,
        )
    return BundleVersion(
        model_version.name, str(model_version.version), model_version.tags[_DIGEST_TAG], model_version.run_id or None
    )


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


def _describe_version(version: BundleVersion | None) -> str:
    return "no champion" if version is None else f"version {version.number}"
