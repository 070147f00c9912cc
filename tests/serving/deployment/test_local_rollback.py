"""A local rollback without the registry lasts until the registry names another version, also across interruptions."""

from __future__ import annotations

from pathlib import Path

import pytest

from forecaster.errors import BundleDamaged, NoSuchModel
from forecaster.registry.registry import BundleVersion
from forecaster.storage.failpoints import ENABLED_VARIABLE, FAIL_POINTS, POINTS_VARIABLE, FailPointError
from serving.deployment import local_rollback, releases, status
from serving.deployment.follower import FollowTarget, find_update, install_version
from serving.deployment.slot import Slot
from tests.serving.conftest import load_stub
from tests.serving.deployment.test_follower import FakeRegistry, run_follower


@pytest.fixture
def fake_registry(tmp_path: Path) -> FakeRegistry:
    return FakeRegistry(tmp_path / "registry")


@pytest.fixture
def followed_model(slot_folder: Path, fake_registry: FakeRegistry) -> FollowTarget:
    """A slot that was followed to version 1 and then 2."""
    target = FollowTarget("sales", "champion", slot_folder, keep=3)
    for number in ("1", "2"):
        fake_registry.promote(number, shift=float(number))
        assert fake_registry.champion is not None
        install_version(fake_registry, fake_registry.champion, target, verify=load_stub)
    return target


def version_in_use(target: FollowTarget) -> str:
    """Returns the version that a new worker loads."""
    worker = Slot(target.slot, load=load_stub)
    worker.reload_if_changed()
    assert worker.current is not None
    return worker.current.release.version


def roll_back_locally(target: FollowTarget) -> local_rollback.LocalRollback:
    return local_rollback.roll_back(target.slot, "sales", at="2026-11-21T03:00:00+00:00", load=load_stub)


def undo_local_rollback(target: FollowTarget) -> None:
    local_rollback.undo_rollback(target.slot, "sales")
    local_rollback.remove_rollback(target.slot)


def test_a_local_rollback_serves_the_previous_release_and_the_follower_keeps_it(
    fake_registry: FakeRegistry, followed_model: FollowTarget
) -> None:
    rollback = roll_back_locally(followed_model)
    assert (rollback.release.version, rollback.instead_of.version) == ("1", "2")
    assert version_in_use(followed_model) == "1"
    assert list(run_follower(fake_registry, followed_model, lambda: None, lambda: None)) == ["1", "1", "1"]
    assert (
        status.compute_follower_status(followed_model.slot, poll_s=1).behind == "rolled back here, from version 2 to 1"
    )


def test_a_local_rollback_is_idempotent(followed_model: FollowTarget) -> None:
    assert roll_back_locally(followed_model) == roll_back_locally(followed_model)
    assert version_in_use(followed_model) == "1"


def test_a_registry_rollback_ends_the_local_one_and_the_next_promotion_is_followed(
    fake_registry: FakeRegistry, followed_model: FollowTarget
) -> None:
    champion = fake_registry.champion
    assert champion is not None
    roll_back_locally(followed_model)
    release = releases.current_release(followed_model.slot)
    assert release is not None

    def set_champion(version: BundleVersion) -> None:
        fake_registry.champion = version

    versions = run_follower(
        fake_registry,
        followed_model,
        lambda: set_champion(BundleVersion("sales", "1", release.digest, None)),
        lambda: set_champion(champion),
    )
    assert list(versions) == ["1", "1", "2"], "naming the version again deploys it"
    assert local_rollback.read_rollback(followed_model.slot) is None


def test_a_new_version_is_followed_immediately(fake_registry: FakeRegistry, followed_model: FollowTarget) -> None:
    roll_back_locally(followed_model)
    versions = run_follower(fake_registry, followed_model, lambda: fake_registry.promote("3", shift=3.0))
    assert list(versions) == ["1", "3"]
    assert local_rollback.read_rollback(followed_model.slot) is None
    assert status.compute_follower_status(followed_model.slot, poll_s=1).behind is None


def test_a_local_rollback_is_undone_in_one_call(fake_registry: FakeRegistry, followed_model: FollowTarget) -> None:
    assert roll_back_locally(followed_model) == local_rollback.undo_rollback(followed_model.slot, "sales")
    assert version_in_use(followed_model) == "2"
    local_rollback.remove_rollback(followed_model.slot)
    assert version_in_use(followed_model) == "2"
    assert find_update(fake_registry, followed_model) is None
    with pytest.raises(NoSuchModel, match="nothing to undo"):
        local_rollback.undo_rollback(followed_model.slot, "sales")


def test_without_a_previous_release_the_slot_is_unchanged(fake_registry: FakeRegistry, slot_folder: Path) -> None:
    target = FollowTarget("sales", "champion", slot_folder, keep=3)
    with pytest.raises(NoSuchModel, match="found an empty slot"):
        roll_back_locally(target)
    fake_registry.promote("1", shift=1.0)
    assert fake_registry.champion is not None
    install_version(fake_registry, fake_registry.champion, target, verify=load_stub)
    with pytest.raises(NoSuchModel, match="besides the one in use"):
        roll_back_locally(target)
    with pytest.raises(NoSuchModel, match="'sales'"):
        local_rollback.roll_back(slot_folder, "others", at="", load=load_stub)
    assert version_in_use(target) == "1"
    assert local_rollback.read_rollback(slot_folder) is None


@pytest.mark.parametrize("manifest", ['{"bad": 1}', '{"shift": 5.0, "freq": "h"}'])
def test_a_damaged_release_is_not_restored(followed_model: FollowTarget, manifest: str) -> None:
    release = releases.previous_release(followed_model.slot, "sales")
    assert release is not None
    (releases.bundle_path(followed_model.slot, release) / "manifest.json").write_text(manifest)
    with pytest.raises(BundleDamaged):
        roll_back_locally(followed_model)
    assert version_in_use(followed_model) == "2"
    assert local_rollback.read_rollback(followed_model.slot) is None


@pytest.mark.parametrize(
    "name",
    [name for name in FAIL_POINTS if name in ("local.pinned", "local.linked", "reload.staged", "reload.linked")],
)
def test_an_interrupted_local_rollback_leaves_old_or_new_and_completes_on_retry(
    name: str, fake_registry: FakeRegistry, followed_model: FollowTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENABLED_VARIABLE, "1")
    monkeypatch.setenv(POINTS_VARIABLE, f"{name}=raise")
    with pytest.raises(FailPointError):
        roll_back_locally(followed_model)
    monkeypatch.delenv(POINTS_VARIABLE)
    expected_version = "1" if name in ("local.linked", "reload.linked") else "2"
    assert version_in_use(followed_model) == expected_version
    assert list(run_follower(fake_registry, followed_model, lambda: None)) == [expected_version, expected_version], (
        "the follower changes neither state"
    )
    roll_back_locally(followed_model)
    assert version_in_use(followed_model) == "1"
    assert find_update(fake_registry, followed_model) is None


def test_an_interrupted_undo_completes_on_retry(
    fake_registry: FakeRegistry, followed_model: FollowTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll_back_locally(followed_model)
    monkeypatch.setenv(ENABLED_VARIABLE, "1")
    monkeypatch.setenv(POINTS_VARIABLE, "local.restored=raise")
    with pytest.raises(FailPointError):
        local_rollback.undo_rollback(followed_model.slot, "sales")
    monkeypatch.delenv(POINTS_VARIABLE)
    assert version_in_use(followed_model) == "2"
    undo_local_rollback(followed_model)
    assert version_in_use(followed_model) == "2"
    assert local_rollback.read_rollback(followed_model.slot) is None
    assert find_update(fake_registry, followed_model) is None


def test_a_restored_release_is_pruned_last(fake_registry: FakeRegistry, followed_model: FollowTarget) -> None:
    roll_back_locally(followed_model)
    undo_local_rollback(followed_model)
    fake_registry.promote("3", shift=3.0)
    assert fake_registry.champion is not None
    install_version(fake_registry, fake_registry.champion, followed_model._replace(keep=2), verify=load_stub)
    release = releases.previous_release(followed_model.slot, "sales")
    assert release is not None
    assert release.version == "2"


def test_the_program_explains_its_purpose(capsys: pytest.CaptureFixture[str], slot_folder: Path) -> None:
    assert local_rollback.main([]) == 2
    assert local_rollback.main(["sales", str(slot_folder), "--other"]) == 2
    assert capsys.readouterr().err.count("usage") == 2
    assert local_rollback.main(["sales", str(slot_folder)]) == 1
    assert "found an empty slot" in capsys.readouterr().err
