"""The protocol of promotion and rollback, broken at each of its steps, and the log of what was done."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from forecaster.bundle import artifact
from forecaster.errors import BundleDamaged, NoSuchModel
from forecaster.prediction.predictor import Forecaster
from forecaster.registry.registry import CHAMPION, FORMER, Registry, Version
from forecaster.storage.failpoints import CHOSEN, POINTS, SWITCH, Broken, point
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.promote import audited, champion_of, fetch, promote, register
from pipelines.promotion.rollback import roll_back
from pipelines.settings import Root
from pipelines.sources import Data
from pipelines.training.train import train
from tests.pipelines.conftest import small

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's


@pytest.fixture(autouse=True)
def tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")


class World(NamedTuple):
    """A root with three versions: the second is the champion, the first the former."""

    root: Root
    forecaster: Forecaster
    versions: list[Version]

    def names(self) -> tuple[str, str]:
        """The numbers of champion and former."""
        registry = Registry(self.root.store)
        return registry.resolve("small", CHAMPION).number, registry.resolve("small", FORMER).number

    def another(self, number: int) -> Path:
        """The bundle of a forecaster that differs in what is known of it."""
        bundle = self.root.path / f"another-{number}"
        artifact.save(
            replace(self.forecaster, facts={**self.forecaster.facts, "copy": number}), bundle, card="# small\n"
        )
        return bundle


@pytest.fixture
def world(fresh: Root, data: Data) -> World:
    forecaster = train(data, small(), fresh).forecaster
    made = World(fresh, forecaster, [])
    made.versions.extend(register(made.another(number), fresh) for number in range(3))
    for number in ("1", "2"):
        promote("small", fresh, number=number, force=True)
    return made


def test_the_former_answers_again_in_one_call_and_a_second_one_undoes_it(world: World) -> None:
    assert roll_back("small", world.root) == world.versions[0]
    assert world.names() == ("1", "2")
    assert roll_back("small", world.root) == world.versions[1]
    assert world.names() == ("2", "1")
    told = [(line.event, line.version, line.before) for line in audited(world.root, "small").lines]
    assert told == [("promote", "1", None), ("promote", "2", "1"), ("rollback", "1", "2"), ("rollback", "2", "1")]
    assert audited(world.root, None).faults == ()


def test_what_one_server_did_is_in_the_log_once_and_says_nothing_of_the_champion(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    old, new = Version("small", "1", "a" * 64, None), Version("small", "2", "b" * 64, None)
    log.promoted(old, "first")(old, None)
    log.promoted(new, "better")(new, old)
    for _ in range(2):
        log.rolled_back_here(old, new, since="noon")
    log.promoted(new, "better")(new, None)  # repeated: it is champion still
    for _ in range(2):
        log.rolled_back_here(new, old, since="noon", undone=True)
    log.rolled_back_here(old, new, since="one o'clock")
    log.rolled_back(old, new)
    found = log.read()
    assert [(line.event, line.version) for line in found.lines] == [
        ("promote", "1"),
        ("promote", "2"),
        ("rollback-local", "1"),
        ("rollback-local-undone", "2"),
        ("rollback-local", "1"),
        ("rollback", "1"),
    ]
    assert [line.is_local for line in found.lines] == [False, False, True, True, True, False]
    assert found.faults == ()


def test_without_a_former_there_is_nothing_to_go_back_to(world: World) -> None:
    Registry(world.root.store).drop_alias("small", FORMER)
    with pytest.raises(NoSuchModel, match="--version N --force"):
        roll_back("small", world.root)
    with pytest.raises(NoSuchModel):
        roll_back("unknown", world.root)


def test_a_former_whose_bundle_was_damaged_in_the_store_does_not_come_back(world: World) -> None:
    for manifest in (world.root.path / "mlruns").rglob("bundle/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(BundleDamaged):
        roll_back("small", world.root)
    assert world.names() == ("2", "1")


BEHIND = ("after_champion", "audited")  # the commit point


@pytest.mark.parametrize("name", [name for name in POINTS if name.startswith("promote.")])
def test_a_promotion_that_breaks_leaves_old_or_new_and_is_completed_by_repeating_it(
    name: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHOSEN, f"{name}=raise")
    with pytest.raises(Broken):
        promote("small", world.root, number="3", force=True)
    champion = champion_of(Registry(world.root.store), "small")
    assert champion == world.versions[2 if name.endswith(BEHIND) else 1]
    artifact.load(fetch(champion, world.root))
    monkeypatch.delenv(CHOSEN)
    for _ in range(2):
        promote("small", world.root, number="3", force=True)
        assert world.names() == ("3", "2")
    found = audited(world.root, None)
    assert [line.version for line in found.lines] == ["1", "2", "3"]
    assert found.faults == ()


@pytest.mark.parametrize("name", [name for name in POINTS if name.startswith("rollback.")])
def test_a_rollback_that_breaks_leaves_old_or_new_and_is_completed_by_repeating_it(
    name: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHOSEN, f"{name}=raise")
    with pytest.raises(Broken):
        roll_back("small", world.root)
    champion = champion_of(Registry(world.root.store), "small")
    assert champion == world.versions[0 if name.endswith(BEHIND) else 1]
    artifact.load(fetch(champion, world.root))
    monkeypatch.delenv(CHOSEN)
    assert roll_back("small", world.root) == world.versions[0]
    assert world.names() == ("1", "2")
    found = audited(world.root, None)
    assert [line.version for line in found.lines] == ["1", "2", "1"]
    assert found.faults == ()


def test_a_promotion_overtakes_a_rollback_that_broke(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOSEN, "rollback.after_former=raise")
    with pytest.raises(Broken):
        roll_back("small", world.root)
    monkeypatch.delenv(CHOSEN)
    promote("small", world.root, number="3", force=True)
    assert world.names() == ("3", "2")
    assert roll_back("small", world.root) == world.versions[1]


@pytest.mark.parametrize("name", [name for name in POINTS if name.startswith("register.")])
def test_a_registration_that_breaks_is_completed_by_repeating_it(
    name: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = world.another(9)
    monkeypatch.setenv(CHOSEN, f"{name}=raise")
    with pytest.raises(Broken):
        register(bundle, world.root)
    monkeypatch.delenv(CHOSEN)
    assert world.names() == ("2", "1")
    version = register(bundle, world.root)
    same = [one for one in Registry(world.root.store).versions("small") if one.digest == artifact.digest(bundle)]
    assert same == [version]
    artifact.load(fetch(version, world.root))


def test_a_fail_point_does_nothing_unless_a_test_has_switched_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOSEN, "judge.before=raise; promote.leased=kill")
    point("judge.decided")
    with pytest.raises(Broken):
        point("judge.before")
    monkeypatch.setenv(CHOSEN, "judge.before=explode")
    with pytest.raises(ValueError, match="explode"):
        point("judge.before")
    monkeypatch.setenv(SWITCH, "0")
    point("judge.before")
    monkeypatch.delenv(SWITCH)
    point("judge.before")


def version(number: int) -> Version:
    return Version("sales", str(number), f"{number:064x}", None)


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    made = AuditLog(tmp_path / "below" / "audit.jsonl", now=lambda: datetime(2026, 1, 31, 4, 5, tzinfo=UTC))
    for number in range(1, 6):
        made.promoted(version(number), f"gain {number}")(version(number), version(number - 1) if number > 1 else None)
    return made


def test_lines_are_added_and_told_again_are_not_added_twice(log: AuditLog) -> None:
    log.promoted(version(5), "again")(version(5), None)
    found = log.read()
    assert found.faults == ()
    assert [line.number for line in found.lines] == [1, 2, 3, 4, 5]
    assert found.lines[1].before == "1"
    assert str(found.lines[1]) == (
        "2  2026-01-31T04:05:00+00:00  promote sales version 2 (000000000000), before 1: gain 2"
    )


@pytest.mark.parametrize("missing", [0, 2, 3])
def test_a_line_that_was_taken_out_is_missed(missing: int, log: AuditLog) -> None:
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join(lines[:missing] + lines[missing + 1 :]))
    [fault] = log.read().faults
    assert f"before line {missing + 1}" in fault


def test_a_line_that_was_altered_is_seen_even_if_it_is_the_last(log: AuditLog) -> None:
    lines = log.path.read_text().splitlines(keepends=True)
    lines[4] = json.dumps(json.loads(lines[4]) | {"version": "7"}) + "\n"
    log.path.write_text("".join(lines))
    assert log.read().faults == ("line 5 is altered: it is not what was sealed",)


def test_two_lines_that_changed_places_are_seen(log: AuditLog) -> None:
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert log.read().faults


def test_a_line_that_a_kill_cut_short_is_told_and_written_anew(log: AuditLog) -> None:
    content = log.path.read_bytes()
    log.path.write_bytes(content[:-20])
    assert log.read().faults == ("the last line was cut short; the next promotion takes its place",)
    log.promoted(version(5), "gain 5")(version(5), None)
    assert log.read().faults == ()
    assert [line.version for line in log.read().lines] == ["1", "2", "3", "4", "5"]


def test_a_champion_that_the_log_does_not_know_is_a_fault(world: World) -> None:
    Registry(world.root.store).set_alias(world.versions[2], CHAMPION)
    assert audited(world.root, "small").faults == ("the champion of 'small' is version 3; the log says 2",)
