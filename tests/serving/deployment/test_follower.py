"""The follower, with a registry that is not MLflow."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from forecaster.errors import BundleDamaged, MissingPackage, NoSuchModel
from forecaster.registry.registry import Version
from serving.deployment import slot as slots
from serving.deployment.follower import Target, follow, main, news, take
from tests.serving.conftest import load_stub, write_stub


class FakeRegistry:
    """Bundles in folders; `champion` names the one that the alias stands for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.champion: Version | None = None
        self.down = False
        self.fetched = 0

    def promote(self, number: str, *, shift: float) -> None:
        digest = write_stub(self.folder / number, shift=shift)
        self.champion = Version("sales", number, digest, None)

    def resolve(self, name: str, alias: str) -> Version:
        if self.down:
            raise ConnectionError("the registry is down")
        if self.champion is None or (name, alias) != ("sales", "champion"):
            raise NoSuchModel(f"There is no {alias} of {name}.", where=name)
        return self.champion

    def fetch(self, version: Version, into: Path) -> Path:
        self.fetched += 1
        return Path(shutil.copytree(self.folder / version.number, into))


class Enough(Exception):
    """Ends `follow`, which never ends."""


@pytest.fixture
def registry(tmp_path: Path) -> FakeRegistry:
    return FakeRegistry(tmp_path / "registry")


@pytest.fixture
def target(slot_folder: Path) -> Target:
    return Target("sales", "champion", slot_folder, keep=2)


def steps(registry: FakeRegistry, target: Target, *moments: object) -> Iterator[str | None]:
    """Runs `follow`; calls each moment between two looks, and gives the published version after each look."""
    seen: list[str | None] = []
    waiting = iter(moments)

    def pause(_: float) -> None:
        release = slots.published(target.slot)
        seen.append(release.version if release else None)
        for moment in waiting:
            assert callable(moment)
            moment()
            return
        raise Enough

    with pytest.raises(Enough):
        follow(lambda: registry, target, poll_s=1, retry_s=1000, verify=load_stub, pause=pause)
    return iter(seen)


def test_a_version_is_taken_once_and_the_next_after_it(registry: FakeRegistry, target: Target) -> None:
    registry.promote("1", shift=1.0)
    version = news(registry, target)
    assert version is not None
    take(registry, version, target, verify=load_stub)
    assert news(registry, target) is None
    registry.promote("2", shift=2.0)
    assert news(registry, target) == registry.champion


def test_the_follower_outlives_whatever_happens_to_the_registry(registry: FakeRegistry, target: Target) -> None:
    def goes_down() -> None:
        registry.down = True

    def comes_back() -> None:
        registry.down = False

    seen = steps(
        registry,
        target,
        lambda: registry.promote("1", shift=1.0),
        goes_down,
        lambda: registry.promote("2", shift=2.0),
        comes_back,
    )
    assert list(seen) == [None, "1", "1", "1", "2"]


def test_a_bad_bundle_is_refused_once_and_a_good_one_is_taken_after_it(
    registry: FakeRegistry, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    def promote_bad() -> None:
        registry.promote("2", shift=2.0)
        (registry.folder / "2" / "manifest.json").write_text('{"bad": 1}')  # its digest is another, too

    registry.promote("1", shift=1.0)
    seen = steps(registry, target, promote_bad, lambda: None, lambda: registry.promote("3", shift=3.0))
    assert list(seen) == ["1", "1", "1", "3"]
    assert registry.fetched == 3
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    assert not [entry for entry in (target.slot / "releases").iterdir() if entry.name.startswith(".")]


def test_a_blend_that_cannot_be_fitted_here_is_refused_once(
    registry: FakeRegistry, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    def verify(_: Path) -> NoReturn:
        raise MissingPackage("Expected the package 'statsforecast'.")

    registry.promote("1", shift=0.0)
    looks = iter(range(3))

    def pause(_: float) -> None:
        if next(looks, None) is None:
            raise Enough

    with pytest.raises(Enough):
        follow(lambda: registry, target, poll_s=1, retry_s=1000, verify=verify, pause=pause)
    assert registry.fetched == 1, "not again at every look"
    assert slots.published(target.slot) is None
    assert "Expected the package 'statsforecast'" in caplog.text


def test_a_kill_between_any_two_steps_leaves_the_old_or_the_new_release(
    registry: FakeRegistry, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote("1", shift=1.0)
    assert registry.champion is not None
    take(registry, registry.champion, target, verify=load_stub)
    before = slots.published(target.slot)
    registry.promote("2", shift=2.0)

    def killed(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    for owner, name in ((Path, "rename"), (Path, "symlink_to"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            with pytest.raises(KeyboardInterrupt):
                take(registry, registry.champion, target, verify=load_stub)
        assert slots.published(target.slot) == before
    take(registry, registry.champion, target, verify=load_stub)
    release = slots.published(target.slot)
    assert release is not None
    assert release.version == "2"


def test_a_store_that_fetches_another_bundle_is_not_believed(registry: FakeRegistry, target: Target) -> None:
    registry.promote("1", shift=1.0)
    assert registry.champion is not None
    wrong = registry.champion._replace(digest="0" * 64)
    with pytest.raises(BundleDamaged):
        take(registry, wrong, target, verify=load_stub)
    assert slots.published(target.slot) is None


def test_the_follower_without_a_registry_says_how_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORECASTER_SERVING_REGISTRY", raising=False)
    assert main([]) == 2
    assert main(["--twice"]) == 2
