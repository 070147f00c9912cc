"""Versions of bundles and their aliases, stored in MLflow.

The registry uses its own clients only: MLflow's process-wide tracking URI and active run are neither read nor set, so two
registries in one process do not interfere.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from forecaster.errors import BaseMoved, BundleDamaged, NoSuchModel, RegistryError
from forecaster.registry.connection import create_client as create_client
from forecaster.registry.connection import translate_store_errors as translate_store_errors
from forecaster.registry.download import BundleDownload, check_manifest
from forecaster.registry.lock import lock_registry
from forecaster.registry.logged_model import logged_model, write_model
from forecaster.registry.version import DIGEST_TAG
from forecaster.registry.version import BundleVersion as BundleVersion
from forecaster.storage.failpoints import fail_point

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS_CHAMPION = "former"

_REPLACED_TAG = "replaced"  # the tag of a version: the number of the champion it replaced
_ROLLBACK_ALIAS = "going-back"  # the alias of the target version of an unfinished rollback


class RegisteredModelInfo(NamedTuple):
    """What the registry stores with a model, as opposed to one of its versions.

    Attributes:
        name: Name of the model.
        aliases: The version number of each alias.
        tags: The tags of the model.
    """

    name: str
    aliases: Mapping[str, str]
    tags: Mapping[str, str]


PromotionCallback = Callable[[BundleVersion, BundleVersion | None], None]
"""Called with the new champion and the previous one; None where it was champion already, or is the first."""


def _ignore_promotion(version: BundleVersion, previous: BundleVersion | None) -> None:
    """Does nothing."""


class Registry:
    """The model registry at one URI: "sqlite:////var/lib/forecaster/mlflow.db" or "http://host:5000".

    Every method raises RegistryError when the store cannot be reached or rejects the request.
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
        """Stores a bundle as the next version of `name`, with tags; a bundle that is registered already is not stored again.

        The examples give the signature that MLflow shows; the input example is stored with the model.
        Raises BundleDamaged when the bundle's manifest has another digest, NoSuchModel when there is no such run.
        """
        check_manifest(bundle, digest, where=str(bundle))
        with translate_store_errors(f"run '{run_id}'"):
            experiment_id = self._client.get_run(run_id).info.experiment_id
        with translate_store_errors(f"model '{name}'"):
            self._ensure_model(name)
        with lock_registry(self.uri), translate_store_errors(f"model '{name}'"):
            fail_point("register.leased")
            existing = [version for version in self.list_versions(name) if version.digest == digest]
            if existing:
                return existing[-1]
            with (
                logged_model(self._client, experiment_id, name=name, run_id=run_id) as model,
                tempfile.TemporaryDirectory(prefix="forecaster-") as folder,
            ):
                write_model(Path(folder), bundle, model, digest, input_example, output_example)
                self._client.log_model_artifacts(model.model_id, folder)
            fail_point("register.stored")
            # The location is passed, not "models:/<id>": MLflow's SQL store would resolve that in the process-wide store.
            model_version = self._client.create_model_version(
                name,
                model.artifact_location,
                run_id,
                tags={**(tags or {}), DIGEST_TAG: digest},
                await_creation_for=0,  # the files exist already
                model_id=model.model_id,
            )
            fail_point("register.versioned")
            version = _to_bundle_version(model_version)
            # The link from the model to its version, which a server sets and MLflow's SQL store does not.
            link = json.dumps([{"name": name, "version": version.number}])
            self._client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
            return version

    def resolve(self, name: str, alias: str) -> BundleVersion:
        """Returns the version of an alias; raises NoSuchModel when there is no such model or alias."""
        with translate_store_errors(f"model '{name}'"):
            aliases = self._client.get_registered_model(name).aliases
        if alias not in aliases:
            existing = ", ".join(sorted(aliases)) or "none"
            raise NoSuchModel(
                f"Model '{name}' needs a version with the alias '{alias}'; its aliases are: {existing}. "
                f"Promote or register a version first, or use another alias.",
                where=name,
            )
        return self.get_version(name, str(aliases[alias]))

    def get_version(self, name: str, number: str) -> BundleVersion:
        """Returns one version by its number; raises NoSuchModel when there is none."""
        with translate_store_errors(f"model '{name}' version {number}"):
            return _to_bundle_version(self._client.get_model_version(name, number))

    def list_versions(self, name: str) -> list[BundleVersion]:
        """Returns all versions of a name, oldest first; empty when there is no such model.

        Versions without a digest, which other programs put into the same MLflow, are left out.
        """
        return [_to_bundle_version(version) for version in self._search_versions(name)]

    def find_version(self, name: str, *, tag: str, value: str) -> BundleVersion | None:
        """Returns the latest version of a name with this tag, if there is one."""
        matching = [version for version in self._search_versions(name) if version.tags.get(tag) == value]
        return _to_bundle_version(matching[-1]) if matching else None

    def get_tags(self, version: BundleVersion) -> dict[str, str]:
        """Returns the tags of a version."""
        with translate_store_errors(str(version)):
            return dict(self._client.get_model_version(version.name, version.number).tags)

    def fetch(self, version: BundleVersion, into: Path) -> Path:
        """Copies a version's bundle to the folder `into`, which must not exist, and returns it.

        The bundle appears there completely and with the digest of its version, or not at all. Sizes are compared with the
        manifest before files are copied; the digests of the files are checked by the loader. Raises BundleDamaged.
        """
        if into.exists():
            raise RegistryError(
                f"A bundle is fetched into a new folder; {into} exists already. Remove it, or use another folder.",
                where=str(into),
            )
        with translate_store_errors(str(into)):
            into.parent.mkdir(parents=True, exist_ok=True)
            # A sibling, so that the rename stays within one file system.
            with tempfile.TemporaryDirectory(prefix=f".{into.name}.", suffix=".partial", dir=into.parent) as folder:
                with self._open_download(version) as download:
                    bundle = download.fetch(Path(folder), digest=version.digest)
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

        The old champion gets the alias `former`; setting `champion` is the one commit point. Then `on_promoted` is called with
        the previous champion, while the lock is still held. An interrupted promotion is completed by repeating it; repeating a
        finished one only calls `on_promoted` once more, with None.

        A lock file serialises the promotions of one machine, so of several that were judged against one base exactly one
        succeeds. One machine should promote per registry. Where several do, each reads the champion again right before it moves
        the alias; two that do so within the same moment both succeed, and the audit log names the lost update.

        Raises BaseMoved; BundleDamaged when the stored bundle no longer has its digest.
        """
        with lock_registry(self.uri):
            fail_point("promote.leased")
            champion = self._get_champion(version.name)
            if champion == version:
                (on_promoted or _ignore_promotion)(version, None)
                return
            if champion != expected_champion:
                raise BaseMoved(
                    f"{version} was judged against {_describe_version(expected_champion)}, "
                    f"but the champion is now {_describe_version(champion)}. "
                    "Judge it against the current champion, then promote again.",
                    where=version.name,
                )
            self.delete_alias(version.name, _ROLLBACK_ALIAS)  # an interrupted rollback is superseded
            self._replace_champion(champion, version, on_promoted or _ignore_promotion, step="promote")

    def roll_back(self, name: str, *, on_promoted: PromotionCallback | None = None) -> BundleVersion:
        """Swaps the champion and the previous champion, by the steps of a promotion and under the same lock.

        The target is marked first, by its own alias: an interrupted rollback is completed by repeating it, whatever it had done
        by then. Raises NoSuchModel where there is no previous champion, BaseMoved when another machine moves the champion
        meanwhile, BundleDamaged when the stored bundle of the target no longer has its digest.
        """
        with lock_registry(self.uri):
            fail_point("rollback.leased")
            with translate_store_errors(f"model '{name}'"):
                aliases = {
                    alias: str(number) for alias, number in self._client.get_registered_model(name).aliases.items()
                }
            champion, target = aliases.get(CHAMPION), aliases.get(_ROLLBACK_ALIAS) or aliases.get(PREVIOUS_CHAMPION)
            if target is None or (target == champion and _ROLLBACK_ALIAS not in aliases):
                raise NoSuchModel(
                    f"Model '{name}' needs a previous champion (alias '{PREVIOUS_CHAMPION}') to roll back to; "
                    f"it has {'none' if target is None else 'the champion itself'}. "
                    f"Promote a version by its number: forecaster promote {name} --version N --force.",
                    where=name,
                )
            version = self.get_version(name, target)
            self.set_alias(version, _ROLLBACK_ALIAS)
            fail_point("rollback.marked")
            if target == champion:  # it was interrupted after the commit point
                (on_promoted or _ignore_promotion)(version, None)
            else:
                base = None if champion is None else self.get_version(name, champion)
                self._replace_champion(base, version, on_promoted or _ignore_promotion, step="rollback")
            self.delete_alias(name, _ROLLBACK_ALIAS)
        return version

    def _replace_champion(
        self,
        champion: BundleVersion | None,
        version: BundleVersion,
        on_promoted: PromotionCallback,
        *,
        step: str,
    ) -> None:
        """Replaces the champion: everything that may fail first, then the one commit point, then the callback."""
        with tempfile.TemporaryDirectory(prefix="forecaster-") as folder, self._open_download(version) as download:
            download.fetch_manifest(Path(folder), digest=version.digest)
        fail_point(f"{step}.verified")
        self._check_unmoved(champion, version)
        self.set_tag(version, _REPLACED_TAG, "none" if champion is None else champion.number)
        fail_point(f"{step}.tagged")
        if champion is not None:
            self.set_alias(champion, PREVIOUS_CHAMPION)
        fail_point(f"{step}.after_former")
        self._check_unmoved(champion, version)
        self.set_alias(version, CHAMPION)
        fail_point(f"{step}.after_champion")
        on_promoted(version, champion)
        fail_point(f"{step}.audited")

    def set_alias(self, version: BundleVersion, alias: str) -> None:
        """Points an alias at a version, whatever it pointed at before."""
        with translate_store_errors(str(version)):
            self._client.set_registered_model_alias(version.name, alias, version.number)

    def set_tag(self, version: BundleVersion, key: str, value: str) -> None:
        """Sets a tag of a version, and replaces its previous value."""
        with translate_store_errors(str(version)):
            self._client.set_model_version_tag(version.name, version.number, key, value)

    def list_models(self) -> list[RegisteredModelInfo]:
        """Returns all registered models, also those of other programs, sorted by name."""
        models: list[RegisteredModelInfo] = []
        with translate_store_errors("the list of models"):
            token: str | None = None
            while token != "":
                page = self._client.search_registered_models(page_token=token)
                models += [RegisteredModelInfo(model.name, _to_text(model.aliases), dict(model.tags)) for model in page]
                token = page.token or ""
        return sorted(models)

    def get_model_tag(self, name: str, key: str) -> str | None:
        """Returns a tag of a model; None if it has no such tag. Raises NoSuchModel."""
        with translate_store_errors(f"model '{name}'"):
            tags: Mapping[str, str] = self._client.get_registered_model(name).tags
        return tags.get(key)

    def set_model_tag(self, name: str, key: str, value: str) -> None:
        """Sets a tag of a model, and replaces its previous value."""
        with translate_store_errors(f"model '{name}'"):
            self._client.set_registered_model_tag(name, key, value)

    def delete_alias(self, name: str, alias: str) -> None:
        """Removes an alias; a missing one is no error."""
        with translate_store_errors(f"model '{name}'"):
            self._client.delete_registered_model_alias(name, alias)

    def _check_unmoved(self, champion: BundleVersion | None, version: BundleVersion) -> None:
        """Reads the champion again; raises BaseMoved if a process that this machine's lock does not exclude has moved it."""
        current = self._get_champion(version.name)
        if current != champion:
            raise BaseMoved(
                f"{version} should become the champion after {_describe_version(champion)}, but the champion is now "
                f"{_describe_version(current)}: another process changed it meanwhile. Promote from one machine, and repeat "
                "this command.",
                where=version.name,
            )

    def _search_versions(self, name: str) -> list[ModelVersion]:
        """Returns the versions that have a digest, oldest first."""
        versions: list[ModelVersion] = []
        with translate_store_errors(f"model '{name}'"):
            token: str | None = None
            while token != "":
                page = self._client.search_model_versions(f"name='{name}'", page_token=token)
                versions += page
                token = page.token or ""
        return [
            version
            for version in sorted(versions, key=lambda version: int(version.version))
            if DIGEST_TAG in version.tags
        ]

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

    @contextmanager
    def _open_download(self, version: BundleVersion) -> Iterator[BundleDownload]:
        """Yields the bundle of a version in the store; within the block, errors of the store are translated."""
        with translate_store_errors(str(version)):
            location = self._client.get_model_version_download_uri(version.name, version.number)
        with translate_store_errors(f"the bundle of {version}", not_found=BundleDamaged):
            yield BundleDownload(location, uri=self.uri, where=str(version))


def _to_bundle_version(model_version: ModelVersion) -> BundleVersion:
    return BundleVersion.from_tags(
        model_version.name, str(model_version.version), model_version.tags, run_id=model_version.run_id
    )


def _to_text(aliases: Mapping[str, object]) -> dict[str, str]:
    return {alias: str(number) for alias, number in aliases.items()}


def _describe_version(version: BundleVersion | None) -> str:
    return "no champion" if version is None else f"version {version.number}"
