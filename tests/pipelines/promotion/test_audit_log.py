"""Promotion and rollback, interrupted at each of their fail points, and the audit log."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from forecaster.bundle import artifact
from forecaster.errors import BundleDamaged, NoSuchModel
from forecaster.prediction.predictor import FittedModel
from forecaster.registry.registry import CHAMPION, PREVIOUS_CHAMPION, BundleVersion, Registry
from forecaster.storage.failpoints import ENABLED_VARIABLE, FAIL_POINTS, POINTS_VARIABLE, FailPointError, fail_point
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.promote import fetch_bundle, find_champion, promote_version, register_bundle, verify_audit_log
from pipelines.promotion.rollback import roll_back
from pipelines.settings import Root
from pipelines.sources import DataSource
from pipelines.training.train import train
from tests.pipelines.conftest import make_small_spec

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def failpoints_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENABLED_VARIABLE, "1")


class PromotedRoot(NamedTuple):
    """A root with three versions: the second is the champion, the first the previous champion."""

    root: Root
    model: FittedModel
    versions: list[BundleVersion]

    def alias_numbers(self) -> tuple[str, str]:
        """Returns the version numbers of the champion and the previous champion."""
        registry = Registry(self.root.store_uri)
        return registry.resolve("small", CHAMPION).number, registry.resolve("small", PREVIOUS_CHAMPION).number

    def make_variant_bundle(self, number: int) -> Path:
        """Saves a bundle of the model that differs in its facts."""
        bundle = self.root.path / f"another-{number}"
        artifact.save_bundle(replace(self.model, facts={**self.model.facts, "copy": number}), bundle, card="# small\n")
        return bundle


@pytest.fixture
def promoted_root(fresh_root: Root, noise_data: DataSource) -> PromotedRoot:
    model = train(noise_data, make_small_spec(), fresh_root).model
    promoted = PromotedRoot(fresh_root, model, [])
    promoted.versions.extend(register_bundle(promoted.make_variant_bundle(number), fresh_root) for number in range(3))
    for number in ("1", "2"):
        promote_version("small", fresh_root, version_number=number, force=True)
    return promoted


def test_rollback_restores_the_previous_champion_and_a_second_one_undoes_it(promoted_root: PromotedRoot) -> None:
    assert roll_back("small", promoted_root.root) == promoted_root.versions[0]
    assert promoted_root.alias_numbers() == ("1", "2")
    assert roll_back("small", promoted_root.root) == promoted_root.versions[1]
    assert promoted_root.alias_numbers() == ("2", "1")
    entries = verify_audit_log(promoted_root.root, "small").entries
    assert [(entry.event, entry.version, entry.before) for entry in entries] == [
        ("promote", "1", None),
        ("promote", "2", "1"),
        ("rollback", "1", "2"),
        ("rollback", "2", "1"),
    ]
    assert verify_audit_log(promoted_root.root, None).faults == ()


def test_a_local_rollback_is_logged_once_and_does_not_affect_the_champion(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    old, new = BundleVersion("small", "1", "a" * 64, None), BundleVersion("small", "2", "b" * 64, None)
    log.make_promotion_recorder(old, "first")(old, None)
    log.make_promotion_recorder(new, "better")(new, old)
    for _ in range(2):
        log.record_local_rollback(old, new, since="noon")
    log.make_promotion_recorder(new, "better")(new, None)  # repeated: it is still the champion
    for _ in range(2):
        log.record_local_rollback(new, old, since="noon", is_undo=True)
    log.record_local_rollback(old, new, since="one o'clock")
    log.record_rollback(old, new)
    report = log.read_entries()
    assert [(entry.event, entry.version) for entry in report.entries] == [
        ("promote", "1"),
        ("promote", "2"),
        ("rollback-local", "1"),
        ("rollback-local-undone", "2"),
        ("rollback-local", "1"),
        ("rollback", "1"),
    ]
    assert [entry.is_local for entry in report.entries] == [False, False, True, True, True, False]
    assert report.faults == ()


def test_without_a_previous_champion_rollback_is_rejected(promoted_root: PromotedRoot) -> None:
    Registry(promoted_root.root.store_uri).delete_alias("small", PREVIOUS_CHAMPION)
    with pytest.raises(NoSuchModel, match="--version N --force"):
        roll_back("small", promoted_root.root)
    with pytest.raises(NoSuchModel):
        roll_back("unknown", promoted_root.root)


def test_a_previous_champion_with_a_damaged_bundle_is_not_restored(promoted_root: PromotedRoot) -> None:
    for manifest in (promoted_root.root.path / "mlruns").rglob("bundle/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(BundleDamaged):
        roll_back("small", promoted_root.root)
    assert promoted_root.alias_numbers() == ("2", "1")


POINTS_AFTER_CHAMPION = ("after_champion", "audited")  # fail points after the commit point


@pytest.mark.parametrize("name", [name for name in FAIL_POINTS if name.startswith("promote.")])
def test_an_interrupted_promotion_leaves_old_or_new_and_completes_on_retry(
    name: str, promoted_root: PromotedRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POINTS_VARIABLE, f"{name}=raise")
    with pytest.raises(FailPointError):
        promote_version("small", promoted_root.root, version_number="3", force=True)
    champion = find_champion(Registry(promoted_root.root.store_uri), "small")
    assert champion == promoted_root.versions[2 if name.endswith(POINTS_AFTER_CHAMPION) else 1]
    artifact.load_bundle(fetch_bundle(champion, promoted_root.root))
    monkeypatch.delenv(POINTS_VARIABLE)
    for _ in range(2):
        promote_version("small", promoted_root.root, version_number="3", force=True)
        assert promoted_root.alias_numbers() == ("3", "2")
    report = verify_audit_log(promoted_root.root, None)
    assert [entry.version for entry in report.entries] == ["1", "2", "3"]
    assert report.faults == ()


@pytest.mark.parametrize("name", [name for name in FAIL_POINTS if name.startswith("rollback.")])
def test_an_interrupted_rollback_leaves_old_or_new_and_completes_on_retry(
    name: str, promoted_root: PromotedRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POINTS_VARIABLE, f"{name}=raise")
    with pytest.raises(FailPointError):
        roll_back("small", promoted_root.root)
    champion = find_champion(Registry(promoted_root.root.store_uri), "small")
    assert champion == promoted_root.versions[0 if name.endswith(POINTS_AFTER_CHAMPION) else 1]
    artifact.load_bundle(fetch_bundle(champion, promoted_root.root))
    monkeypatch.delenv(POINTS_VARIABLE)
    assert roll_back("small", promoted_root.root) == promoted_root.versions[0]
    assert promoted_root.alias_numbers() == ("1", "2")
    report = verify_audit_log(promoted_root.root, None)
    assert [entry.version for entry in report.entries] == ["1", "2", "1"]
    assert report.faults == ()


def test_a_promotion_supersedes_an_interrupted_rollback(
    promoted_root: PromotedRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POINTS_VARIABLE, "rollback.after_former=raise")
    with pytest.raises(FailPointError):
        roll_back("small", promoted_root.root)
    monkeypatch.delenv(POINTS_VARIABLE)
    promote_version("small", promoted_root.root, version_number="3", force=True)
    assert promoted_root.alias_numbers() == ("3", "2")
    assert roll_back("small", promoted_root.root) == promoted_root.versions[1]


@pytest.mark.parametrize("name", [name for name in FAIL_POINTS if name.startswith("register.")])
def test_an_interrupted_registration_completes_on_retry(
    name: str, promoted_root: PromotedRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = promoted_root.make_variant_bundle(9)
    monkeypatch.setenv(POINTS_VARIABLE, f"{name}=raise")
    with pytest.raises(FailPointError):
        register_bundle(bundle, promoted_root.root)
    monkeypatch.delenv(POINTS_VARIABLE)
    assert promoted_root.alias_numbers() == ("2", "1")
    version = register_bundle(bundle, promoted_root.root)
    digest = artifact.compute_bundle_digest(bundle)
    versions = Registry(promoted_root.root.store_uri).list_versions("small")
    assert [registered for registered in versions if registered.digest == digest] == [version]
    artifact.load_bundle(fetch_bundle(version, promoted_root.root))


def test_a_fail_point_is_inactive_unless_enabled_by_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POINTS_VARIABLE, "judge.before=raise; promote.leased=kill")
    fail_point("judge.decided")
    with pytest.raises(FailPointError):
        fail_point("judge.before")
    monkeypatch.setenv(POINTS_VARIABLE, "judge.before=explode")
    with pytest.raises(ValueError, match="explode"):
        fail_point("judge.before")
    monkeypatch.setenv(ENABLED_VARIABLE, "0")
    fail_point("judge.before")
    monkeypatch.delenv(ENABLED_VARIABLE)
    fail_point("judge.before")


def make_version(number: int) -> BundleVersion:
    return BundleVersion("sales", str(number), f"{number:064x}", None)


@pytest.fixture
def audit_log(tmp_path: Path) -> AuditLog:
    log = AuditLog(tmp_path / "below" / "audit.jsonl", now=lambda: datetime(2026, 1, 31, 4, 5, tzinfo=UTC))
    for number in range(1, 6):
        log.make_promotion_recorder(make_version(number), f"gain {number}")(
            make_version(number), make_version(number - 1) if number > 1 else None
        )
    return log


def test_entries_are_appended_once(audit_log: AuditLog) -> None:
    audit_log.make_promotion_recorder(make_version(5), "again")(make_version(5), None)
    report = audit_log.read_entries()
    assert report.faults == ()
    assert [entry.number for entry in report.entries] == [1, 2, 3, 4, 5]
    assert report.entries[1].before == "1"
    assert str(report.entries[1]) == (
        "2  2026-01-31T04:05:00+00:00  promote sales version 2 (000000000000), before 1: gain 2"
    )


@pytest.mark.parametrize("missing", [0, 2, 3])
def test_a_removed_entry_is_detected(missing: int, audit_log: AuditLog) -> None:
    lines = audit_log.path.read_text().splitlines(keepends=True)
    audit_log.path.write_text("".join(lines[:missing] + lines[missing + 1 :]))
    [fault] = audit_log.read_entries().faults
    assert f"lines before line {missing + 1} " in fault


def test_a_modified_entry_is_detected_even_if_it_is_the_last(audit_log: AuditLog) -> None:
    lines = audit_log.path.read_text().splitlines(keepends=True)
    lines[4] = json.dumps(json.loads(lines[4]) | {"version": "7"}) + "\n"
    audit_log.path.write_text("".join(lines))
    assert audit_log.read_entries().faults == ("line 5 is altered: its content does not match its seal",)


def test_swapped_entries_are_detected(audit_log: AuditLog) -> None:
    lines = audit_log.path.read_text().splitlines(keepends=True)
    audit_log.path.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert audit_log.read_entries().faults


def record_promotions(log: AuditLog, *promotions: tuple[int, int]) -> tuple[str, ...]:
    """Records promotions, each a version and the one it replaced, and returns the faults of the log."""
    for number, base in promotions:
        log.make_promotion_recorder(make_version(number), "gain")(make_version(number), make_version(base))
    return log.read_entries().faults


def test_a_lost_update_is_named_with_both_versions(audit_log: AuditLog) -> None:
    [fault] = record_promotions(audit_log, (6, 5), (8, 6), (7, 5), (9, 7))
    assert fault.startswith(
        "'sales' version 7 (line 8) replaced version 5, which version 6 (line 6) had replaced already: two processes promoted"
    )
    assert fault.endswith("The champion before line 8 was version 8; compare it with version 7")


def test_a_version_that_is_champion_again_can_be_replaced_again(audit_log: AuditLog) -> None:
    assert record_promotions(audit_log, (6, 5)) == ()
    audit_log.record_rollback(make_version(5), make_version(6))
    assert record_promotions(audit_log, (7, 5)) == ()
    audit_log.record_rollback(make_version(5), None)  # completed after an interruption
    assert record_promotions(audit_log, (8, 5)) == ()


def test_an_entry_truncated_by_a_kill_is_reported_and_rewritten(audit_log: AuditLog) -> None:
    content = audit_log.path.read_bytes()
    audit_log.path.write_bytes(content[:-20])
    assert audit_log.read_entries().faults == ("the last line is truncated; the next promotion overwrites it",)
    audit_log.make_promotion_recorder(make_version(5), "gain 5")(make_version(5), None)
    assert audit_log.read_entries().faults == ()
    assert [entry.version for entry in audit_log.read_entries().entries] == ["1", "2", "3", "4", "5"]


def test_a_champion_missing_from_the_audit_log_is_reported(promoted_root: PromotedRoot) -> None:
    Registry(promoted_root.root.store_uri).set_alias(promoted_root.versions[2], CHAMPION)
    assert verify_audit_log(promoted_root.root, "small").faults == (
        "the champion of 'small' is version 3; the log has version 2",
    )
