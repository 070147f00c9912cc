"""Packages a bundle as a Bento: the model in BentoML's store, and a folder that `bentoml build` turns into a Bento.

The folder contains our own packages, because the distribution need not be on an index, and the exact versions of what a server
requires, as they are installed here. The service is named by its import path only, because pipelines does not import serving.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import forecaster
from forecaster.bundle import artifact
from forecaster.errors import InputError, RegistryError
from forecaster.installation import DISTRIBUTION, describe_missing_module, require_package

_PACKAGES = ("forecaster", "serving")
_NOT_PACKAGED = ("__pycache__", "csrc", "*.csv.gz")  # the sources of the compiled kernel, and the data of the demo
_SERVICE = '''"""The BentoML service of this Bento. Edit it, and run `bentoml build` in this folder to build another Bento."""

import bentoml

from serving.services.packaged import PackagedService


@bentoml.service(name={name!r}, service_class=PackagedService)
class Forecasts:
    """Forecasts of the model {name} over HTTP."""

    model = bentoml.models.BentoModel({tag!r})
'''
# In a container the service listens on all addresses, so that its port can be published; it then requires keys.
_BENTOFILE = """service: "service:Forecasts"
name: {name}
description: "file: README.md"
labels: {labels}
include: ["README.md", "service.py", {packages}]
envs:
  - name: BENTOML_HOST
    value: "0.0.0.0"
  - name: BENTOML_DO_NOT_TRACK
    value: "true"
docker:
  python_version: "{python}"
python:
  requirements_txt: requirements.txt
  lock_packages: false # requirements.txt is complete
"""


class ReleasedBundle(NamedTuple):
    """A bundle to package, with the name and the version that the service reports."""

    name: str
    version: str
    digest: str
    bundle: Path

    @property
    def bento_name(self) -> str:
        """The name in BentoML's stores, whose names have lower-case letters, digits, `-`, `.` and `_`."""
        return _to_tag_part(self.name)

    @property
    def model_tag(self) -> str:
        """The tag of the model in BentoML's store; equal for equal releases."""
        return f"{self.bento_name}:{_to_tag_part(f'{self.version[:40]}-{self.digest[:12]}')}"

    @property
    def labels(self) -> dict[str, str]:
        """The labels of model and Bento."""
        return {"name": self.name, "version": self.version, "digest": self.digest}


def _to_tag_part(text: str) -> str:
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-") or "model"


def package_release(release: ReleasedBundle, folder: Path) -> str:
    """Stores the model, writes the folder of the Bento and builds it; returns the tag of the Bento.

    Args:
        release: The bundle; it is loaded first, as a server does it.
        folder: Where to write the folder: new or empty.

    Raises:
        BundleError: The bundle is invalid.
        InputError: The folder has files.
        MissingPackage: BentoML, or a package that a server requires, is not installed.
        RegistryError: BentoML could not build the Bento.
    """
    require_package("bentoml", purpose="packaging")
    blend_weights = artifact.load_predictor(release.bundle).fitted_model.blend_weights
    requirements = pin_requirements(["serve", *(["baselines"] if blend_weights else [])])
    write_bento_folder(release, folder, requirements=requirements)
    store_model(release)
    return _build_bento(release, folder)


def pin_requirements(extras: Sequence[str]) -> list[str]:
    """Returns the requirements of our distribution with these extras, and all of theirs, in the versions installed here.

    Hashes are left out, because BentoML adds a requirement without one.

    Raises:
        MissingPackage: One of them is not installed.
    """
    versions: dict[str, str] = {}
    visited: set[tuple[str, str]] = set()  # names of packages, each with one of its extras or ""
    waiting = _read_own_requirements(extras)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        try:
            package = distribution(name)
        except PackageNotFoundError as error:
            raise describe_missing_module(requirement.name, purpose="packaging") from error
        versions[name] = Version(package.version).public  # without the name of a build, such as +cpu
        for extra in {"", *requirement.extras}:
            if (name, extra) not in visited:
                visited.add((name, extra))
                waiting += _select_requirements(package.requires or [], [extra])
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _read_own_requirements(extras: Sequence[str]) -> list[Requirement]:
    project_file = Path(forecaster.__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(project_file.read_text("utf-8"))["project"] if project_file.exists() else {}
    if project.get("name") == DISTRIBUTION:  # a checkout, whose installed metadata may be older
        optional = [line for extra in extras for line in project["optional-dependencies"][extra]]
        return _select_requirements([*project["dependencies"], *optional], [""])
    return _select_requirements(distribution(DISTRIBUTION).requires or [], ["", *extras])


def _select_requirements(lines: Iterable[str], extras: Sequence[str]) -> list[Requirement]:
    """Returns the requirements that apply on this machine, with any of these extras."""
    return [
        requirement
        for requirement in map(Requirement, lines)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def write_bento_folder(release: ReleasedBundle, folder: Path, *, requirements: Sequence[str]) -> None:
    """Writes service, build file, requirements, model card and our packages; raises InputError for a used folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"Expected a new or empty folder for the Bento; found {folder} with files. Remove it, or name another one.",
            where="folder",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in _PACKAGES:
        source = Path(forecaster.__file__).parents[1] / name
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(*_NOT_PACKAGED))
    texts = {
        "service.py": _SERVICE.format(name=release.bento_name, tag=release.model_tag),
        "bentofile.yaml": _BENTOFILE.format(
            name=release.bento_name,
            labels=json.dumps(release.labels),
            packages=", ".join(f'"{name}/**"' for name in _PACKAGES),
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
        ),
        "requirements.txt": "".join(f"{line}\n" for line in requirements),
        "README.md": artifact.read_card(release.bundle),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def store_model(release: ReleasedBundle) -> None:
    """Stores a release in BentoML's model store, in the layout of a slot, which the service reads; keeps an equal one."""
    import bentoml

    try:
        bentoml.models.get(release.model_tag)
    except bentoml.exceptions.NotFound:
        with bentoml.models.create(release.model_tag, labels=release.labels) as model:
            folder = Path(model.path) / "current"
            shutil.copytree(release.bundle, folder / "bundle")
            (folder / "release.json").write_text(json.dumps(release.labels), encoding="utf-8")


def _build_bento(release: ReleasedBundle, folder: Path) -> str:
    """Runs `bentoml build` in its own process, where the packages of the folder are imported rather than ours."""
    import bentoml

    # The version is chosen here, because BentoML prints the tags of some names, such as hospital, with an emoji.
    tag = bentoml.Tag(release.bento_name, None).make_new_version()
    process = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "bentoml", "build", "--version", str(tag.version)],
        cwd=folder,  # BentoML refuses to read files outside the working folder
        env={**os.environ, "BENTOML_DO_NOT_TRACK": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise RegistryError(
            f"Expected BentoML to build a Bento in {folder}; it failed: {(process.stderr or process.stdout).strip()[-2000:]}. "
            "Correct the cause that it names, then package the model again.",
            where=str(folder),
        )
    return str(tag)
