"""The follower, with a fake registry instead of MLflow."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from forecaster.errors import BundleDamaged, MissingPackage, NoSuchModel
from forecaster.registry.registry import BundleVersion
from serving.deployment import releases
from serving.deployment.follower import FollowTarget, find_update, follow, install_version, main
from tests.serving.conftest import load_stub, write_stub


class FakeRegistry:
    """A registry of bundles in folders; `champion` is the version of the alias."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.champion: BundleVersion | None = None
        self.down = False
        self.fetch_count = 0

    def promote(self, number: str, *, shift: float) -> None:
        digest = write_stub(self.folder / number, shift=shift)
        self.champion = BundleVersion("sales", number, digest, None)

    def resolve(self, name: str, alias: str) -> BundleVersion:
        if self.down:
            raise ConnectionError("the registry is down")
        if self.champion is None or (name, alias) != ("sales", "champion"):
            raise NoSuchModel(f"There is no {alias} of {name}.", where=name)
        return self.champion

    def fetch(self, version: BundleVersion, into: Path) -> Path:
        self.fetch_count += 1
        return Path(shutil.copytree(self.folder / version.number, into))


class StopFollowing(Exception):
    """Ends `follow`, which otherwise runs forever."""


@pytest.fixture
def fake_registry(tmp_path: Path) -> FakeRegistry:
    return FakeRegistry(tmp_path / "registry")


@pytest.fixture
def followed_model(slot_folder: Path) -> FollowTarget:
    return FollowTarget("sales", "champion", slot_folder, keep=2)


def run_follower(registry: FakeRegistry, target: FollowTarget, *actions: object) -> Iterator[str | None]:
    """Runs `follow` with one action between two polls, and returns the deployed version after each poll."""
    versions: list[str | None] = []
    remaining_actions = iter(actions)

    def pause(_: float) -> None:
        release = releases.current_release(target.slot)
        versions.append(release.version if release else None)
        for action in remaining_actions:
            assert callable(action)
            action()
            return
        raise StopFollowing

    with pytest.raises(StopFollowing):
        follow(lambda: registry, target, poll_s=1, retry_s=1000, verify=load_stub, sleep=pause)
    return iter(versions)


def test_each_version_is_deployed_once(fake_registry: FakeRegistry, followed_model: FollowTarget) -> None:
    fake_registry.promote("1", shift=1.0)
    version = find_update(fake_registry, followed_model)
    assert version is not None
    install_version(fake_registry, version, followed_model, verify=load_stub)
    assert find_update(fake_registry, followed_model) is None
    fake_registry.promote("2", shift=2.0)
    assert find_update(fake_registry, followed_model) == fake_registry.champion


def test_the_follower_survives_any_registry_failure(fake_registry: FakeRegistry, followed_model: FollowTarget) -> None:
    def stop_registry() -> None:
        fake_registry.down = True

    def restart_registry() -> None:
        fake_registry.down = False

    versions = run_follower(
        fake_registry,
        followed_model,
        lambda: fake_registry.promote("1", shift=1.0),
        stop_registry,
        lambda: fake_registry.promote("2", shift=2.0),
        restart_registry,
    )
    assert list(versions) == [None, "1", "1", "1", "2"]


def test_a_bad_bundle_is_rejected_once_and_the_next_good_one_is_deployed(
    fake_registry: FakeRegistry, followed_model: FollowTarget, caplog: pytest.LogCaptureFixture
) -> None:
    def promote_bad() -> None:
        fake_registry.promote("2", shift=2.0)
        (fake_registry.folder / "2" / "manifest.json").write_text('{"bad": 1}')  # which changes its digest, too

    fake_registry.promote("1", shift=1.0)
    versions = run_follower(
        fake_registry, followed_model, promote_bad, lambda: None, lambda: fake_registry.promote("3", shift=3.0)
    )
    assert list(versions) == ["1", "1", "1", "3"]
    assert fake_registry.fetch_count == 3
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    assert not [entry for entry in (followed_model.slot / "releases").iterdir() if entry.name.startswith(".")]


def test_a_blend_without_its_package_is_rejected_once(
    fake_registry: FakeRegistry, followed_model: FollowTarget, caplog: pytest.LogCaptureFixture
) -> None:
    def verify(_: Path) -> NoReturn:
        raise MissingPackage("Expected the package 'statsforecast'.")

    fake_registry.promote("1", shift=0.0)
    polls = iter(range(3))

    def pause(_: float) -> None:
        if next(polls, None) is None:
            raise StopFollowing

    with pytest.raises(StopFollowing):
        follow(lambda: fake_registry, followed_model, poll_s=1, retry_s=1000, verify=verify, sleep=pause)
    assert fake_registry.fetch_count == 1, "it is not fetched again at every poll"
    assert releases.current_release(followed_model.slot) is None
    assert "Expected the package 'statsforecast'" in caplog.text


def test_a_kill_between_any_two_steps_leaves_the_old_or_the_new_release(
    fake_registry: FakeRegistry, followed_model: FollowTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_registry.promote("1", shift=1.0)
    assert fake_registry.champion is not None
    install_version(fake_registry, fake_registry.champion, followed_model, verify=load_stub)
    before = releases.current_release(followed_model.slot)
    fake_registry.promote("2", shift=2.0)

    def kill(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    for owner, name in ((Path, "rename"), (Path, "symlink_to"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, kill)
            with pytest.raises(KeyboardInterrupt):
                install_version(fake_registry, fake_registry.champion, followed_model, verify=load_stub)
        assert releases.current_release(followed_model.slot) == before
    install_version(fake_registry, fake_registry.champion, followed_model, verify=load_stub)
    release = releases.current_release(followed_model.slot)
    assert release is not None
    assert release.version == "2"


def test_a_store_that_returns_a_different_bundle_is_rejected(
    fake_registry: FakeRegistry, followed_model: FollowTarget
) -> None:
    fake_registry.promote("1", shift=1.0)
    assert fake_registry.champion is not None
    version = fake_registry.champion._replace(digest="0" * 64)
    with pytest.raises(BundleDamaged):
        install_version(fake_registry, version, followed_model, verify=load_stub)
    assert releases.current_release(followed_model.slot) is None


def test_the_follower_without_a_registry_explains_its_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORECASTER_SERVING_REGISTRY", raising=False)
    assert main([]) == 2
    assert main(["--twice"]) == 2
