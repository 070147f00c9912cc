"""A registered version of a model, as every client of the registry returns it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from forecaster.errors import RegistryError

DIGEST_TAG = "digest"  # the tag of a version: sha256 of its bundle's manifest


class BundleVersion(NamedTuple):
    """One registered bundle.

    Attributes:
        name: Of the model it is a version of.
        number: Counts up from "1" within a name.
        digest: sha256 of the bundle's manifest.json, in hex; the manifest in turn names that of every other file.
        run_id: The MLflow run that trained it, if known.
    """

    name: str
    number: str
    digest: str
    run_id: str | None

    def __str__(self) -> str:
        return f"'{self.name}' version {self.number}"

    @classmethod
    def from_tags(cls, name: str, number: str, tags: Mapping[str, str], *, run_id: str | None) -> BundleVersion:
        """Returns the version that MLflow describes so; raises RegistryError if no forecaster registered it."""
        if DIGEST_TAG not in tags:
            raise RegistryError(
                f"A version needs the tag '{DIGEST_TAG}'; '{name}' version {number} has none, so it "
                "was not registered by forecaster. Register the bundle with `forecaster register`, or use another version.",
                where=name,
            )
        return cls(name, number, tags[DIGEST_TAG], run_id or None)
