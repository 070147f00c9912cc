"""One server rolled back without the registry: pinned until the registry names another version, whatever breaks meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from forecaster.errors import BundleDamaged, NoSuchModel
from forecaster.registry.registry import Version
from forecaster.storage.failpoints import CHOSEN, POINTS, SWITCH, Broken
from serving.deployment import local_rollback, status
from serving.deployment import slot as slots
from serving.deployment.follower import Target, news, take
from serving.deployment.slot import Slot
from tests.serving.conftest import load_stub
from tests.serving.deployment.test_follower import FakeRegistry, steps


@pytest.fixture
def registry(tmp_path: Path) -> FakeRegistry:
    return FakeRegistry(tmp_path / "registry")


@pytest.fixture
def target(slot_folder: Path, registry: FakeRegistry) -> Target:
    """Followed to version 2, with 1 before it."""
    found = Target("sales", "champion", slot_folder, keep=3)
    for number in ("1", "2"):
        registry.promote(number, shift=float(number))
        assert registry.champion is not None
        take(registry, registry.champion, found, verify=load_stub)
    return found


def served(target: Target) -> str:
    """The version that a worker which starts now takes into use."""
    worker = Slot(target.slot, load=load_stub)
    worker.check()
    assert worker.current is not None
    return worker.current.release.version


def put_back(target: Target) -> local_rollback.Pin:
    return local_rollback.put_back(target.slot, "sales", at="2026-11-21T03:00:00+00:00", load=load_stub)


def undo(target: Target) -> None:
    local_rollback.undo(target.slot, "sales")
    local_rollback.lift(target.slot)


def test_the_release_before_answers_and_the_follower_does_not_undo_it(registry: FakeRegistry, target: Target) -> None:
    found = put_back(target)
    assert (found.release.version, found.instead_of.version) == ("1", "2")
    assert served(target) == "1"
    assert list(steps(registry, target, lambda: None, lambda: None)) == ["1", "1", "1"]
    assert status.tell(target.slot, poll_s=1).behind == "rolled back here, from version 2 to 1"


def test_it_is_the_same_when_it_is_asked_for_again(target: Target) -> None:
    assert put_back(target) == put_back(target)
    assert served(target) == "1"


def test_a_rollback_in_the_registry_ends_it_and_the_next_promotion_is_followed(
    registry: FakeRegistry, target: Target
) -> None:
    left = registry.champion
    assert left is not None
    put_back(target)
    release = slots.published(target.slot)
    assert release is not None

    def name(version: Version) -> None:
        registry.champion = version

    seen = steps(registry, target, lambda: name(Version("sales", "1", release.digest, None)), lambda: name(left))
    assert list(seen) == ["1", "1", "2"], "whoever names it again means it"
    assert local_rollback.read(target.slot) is None


def test_another_version_is_followed_at_once(registry: FakeRegistry, target: Target) -> None:
    put_back(target)
    seen = steps(registry, target, lambda: registry.promote("3", shift=3.0))
    assert list(seen) == ["1", "3"]
    assert local_rollback.read(target.slot) is None
    assert status.tell(target.slot, poll_s=1).behind is None


def test_it_is_undone_in_one_call(registry: FakeRegistry, target: Target) -> None:
    assert put_back(target) == local_rollback.undo(target.slot, "sales")
    assert served(target) == "2"
    local_rollback.lift(target.slot)
    assert served(target) == "2"
    assert news(registry, target) is None
    with pytest.raises(NoSuchModel, match="nothing to undo"):
        local_rollback.undo(target.slot, "sales")


def test_where_nothing_was_before_the_slot_stays_as_it_is(registry: FakeRegistry, slot_folder: Path) -> None:
    target = Target("sales", "champion", slot_folder, keep=3)
    with pytest.raises(NoSuchModel, match="it has nothing"):
        put_back(target)
    registry.promote("1", shift=1.0)
    assert registry.champion is not None
    take(registry, registry.champion, target, verify=load_stub)
    with pytest.raises(NoSuchModel, match="besides the one in use"):
        put_back(target)
    with pytest.raises(NoSuchModel, match="'sales'"):
        local_rollback.put_back(slot_folder, "others", at="", load=load_stub)
    assert served(target) == "1"
    assert local_rollback.read(slot_folder) is None


@pytest.mark.parametrize("manifest", ['{"bad": 1}', '{"shift": 5.0, "freq": "h"}'])
def test_a_release_that_was_damaged_does_not_come_back(target: Target, manifest: str) -> None:
    former = slots.former(target.slot, "sales")
    assert former is not None
    (slots.bundle_of(target.slot, former) / "manifest.json").write_text(manifest)
    with pytest.raises(BundleDamaged):
        put_back(target)
    assert served(target) == "2"
    assert local_rollback.read(target.slot) is None


@pytest.mark.parametrize(
    "name",
    [name for name in POINTS if name in ("local.pinned", "local.linked", "reload.staged", "reload.linked")],
)
def test_one_that_breaks_leaves_old_or_new_and_is_completed_by_repeating_it(
    name: str, registry: FakeRegistry, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setenv(CHOSEN, f"{name}=raise")
    with pytest.raises(Broken):
        put_back(target)
    monkeypatch.delenv(CHOSEN)
    was = "1" if name in ("local.linked", "reload.linked") else "2"
    assert served(target) == was
    assert list(steps(registry, target, lambda: None)) == [was, was], "the follower leaves either alone"
    put_back(target)
    assert served(target) == "1"
    assert news(registry, target) is None


def test_an_undoing_that_breaks_is_completed_by_repeating_it(
    registry: FakeRegistry, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_back(target)
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setenv(CHOSEN, "local.restored=raise")
    with pytest.raises(Broken):
        local_rollback.undo(target.slot, "sales")
    monkeypatch.delenv(CHOSEN)
    assert served(target) == "2"
    undo(target)
    assert served(target) == "2"
    assert local_rollback.read(target.slot) is None
    assert news(registry, target) is None


def test_a_release_that_was_put_back_is_the_last_that_is_pruned(registry: FakeRegistry, target: Target) -> None:
    put_back(target)
    undo(target)
    registry.promote("3", shift=3.0)
    assert registry.champion is not None
    take(registry, registry.champion, target._replace(keep=2), verify=load_stub)
    former = slots.former(target.slot, "sales")
    assert former is not None
    assert former.version == "2"


def test_the_program_says_what_it_is_for(capsys: pytest.CaptureFixture[str], slot_folder: Path) -> None:
    assert local_rollback.main([]) == 2
    assert local_rollback.main(["sales", str(slot_folder), "--other"]) == 2
    assert capsys.readouterr().err.count("usage") == 2
    assert local_rollback.main(["sales", str(slot_folder)]) == 1
    assert "it has nothing" in capsys.readouterr().err
