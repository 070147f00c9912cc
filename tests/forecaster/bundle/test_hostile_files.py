"""Hostile folders: only regular files that the manifest names are opened, and no more is read than it declares."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forecaster.bundle import artifact
from forecaster.errors import BundleDamaged
from tests.factories import make_fitted_model, make_spec
from tests.forecaster.bundle.editing import edit_manifest, read_json

MAX_SECONDS = 5.0
HUGE = 10 << 30
LOADERS: tuple[Callable[[Path], object], ...] = (artifact.load_bundle, artifact.load_predictor)


@pytest.fixture(scope="module")
def saved_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that is served by its graph."""
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    artifact.save_bundle(make_fitted_model(make_spec(base="seasonal_naive")), folder, card="# small\n")
    return folder


@pytest.fixture
def bundle(saved_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_bundle, tmp_path / "bundle"))


@pytest.fixture(autouse=True)
def bounded_time() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < MAX_SECONDS


def replace_file(bundle: Path, name: str, create: Callable[[Path], object]) -> None:
    (bundle / name).rename(bundle.parent / f"original-{name}")
    create(bundle / name)


SPECIAL_FILES: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a link to an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to the same content": lambda path: path.symlink_to(path.parent.parent / f"original-{path.name}"),
    "a broken link": lambda path: path.symlink_to("/nowhere"),
    "a folder": os.mkdir,
}


@pytest.mark.parametrize("kind", SPECIAL_FILES)
@pytest.mark.parametrize("name", ["manifest.json", "golden.json", "rollout.onnx", "card.md"])
def test_only_regular_files_are_opened(bundle: Path, name: str, kind: str) -> None:
    replace_file(bundle, name, SPECIAL_FILES[kind])
    readers = [*LOADERS, artifact.verify_files]
    readers += [artifact.compute_bundle_digest] * (name == "manifest.json") + [artifact.read_card] * (name == "card.md")
    for read in readers:
        with pytest.raises(BundleDamaged, match=r"symbolic link|not a regular file") as error:
            read(bundle)
        assert error.value.where == name


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "FIFO", "missing"])
def test_a_bundle_that_is_no_folder_is_rejected(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "FIFO")
    for load in LOADERS:
        with pytest.raises(BundleDamaged, match="cannot be read"):
            load(tmp_path / path)


def test_the_path_of_a_bundle_may_be_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    assert artifact.load_bundle(tmp_path / "link").spec.name == "small"


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors", "card.md"])
def test_a_file_larger_than_declared_is_not_read(bundle: Path, name: str) -> None:
    os.truncate(bundle / name, HUGE)  # sparse
    for read in (*LOADERS, artifact.verify_files):
        with pytest.raises(BundleDamaged, match=f"expected at most .*found {HUGE}") as error:
            read(bundle)
        assert error.value.where == name


@pytest.mark.parametrize("name", ["more", ".hidden", "rollout-2.onnx", "blend.json"])
def test_a_file_that_the_manifest_does_not_name_is_rejected(bundle: Path, name: str) -> None:
    (bundle / name).write_text("{}")
    for read in (*LOADERS, artifact.verify_files):
        with pytest.raises(BundleDamaged, match="exactly the files of the manifest") as error:
            read(bundle)
        assert error.value.where == name


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../outside", "..", ".", "", "./card.md", "a/b", "manifest.json", "more", "rollout-100.onnx"],
)
def test_a_manifest_may_only_name_the_files_of_a_bundle(bundle: Path, name: str) -> None:
    (bundle.parent / "outside").write_text("")
    files = read_json(bundle, "manifest.json")["files"]
    edit_manifest(bundle, files=files | {name: {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0}})
    for read in (*LOADERS, artifact.verify_files):
        with pytest.raises(BundleDamaged, match="names of a bundle's files only"):
            read(bundle)
