"""Promotion and rollback, interrupted at each of their fail points, and the audit log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from forecaster.bundle import artifact
from forecaster.errors import BundleDamaged, NoSuchModel, RegistryError
from forecaster.prediction.predictor import FittedModel
from forecaster.registry.registry import CHAMPION, PREVIOUS_CHAMPION, BundleVersion, Registry, create_client
from forecaster.storage.failpoints import ENABLED_VARIABLE, FAIL_POINTS, POINTS_VARIABLE, FailPointError, fail_point
from pipelines.promotion.audit_log import SEAL_TAG, AuditLog, RegistrySeal, find_seal_fault
from pipelines.promotion.promote import (
    adopt_champions,
    fetch_bundle,
    find_champion,
    promote_version,
    register_bundle,
    verify_audit_log,
)
from pipelines.promotion.rollback import roll_back
from pipelines.settings import Root
from pipelines.sources import DataSource
from pipelines.training.train import train
from tests.pipelines.conftest import copy_root, make_noise_frame, make_small_spec

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


@pytest.fixture(scope="module")
def promoted_template(migrated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> PromotedRoot:
    """The root that each test copies."""
    folder = tmp_path_factory.mktemp("promoted")
    make_noise_frame().to_csv(folder / "meters.csv", index=False)
    root = copy_root(Root(migrated_root), folder / "root")
    model = train(DataSource(str(folder / "meters.csv")), make_small_spec(), root).model
    promoted = PromotedRoot(root, model, [])
    promoted.versions.extend(register_bundle(promoted.make_variant_bundle(number), root) for number in range(3))
    for number in ("1", "2"):
        promote_version("small", root, version_number=number, force=True)
    return promoted


@pytest.fixture
def promoted_root(promoted_template: PromotedRoot, tmp_path: Path) -> PromotedRoot:
    return promoted_template._replace(root=copy_root(promoted_template.root, tmp_path / "root"))


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


POINTS_AFTER_CHAMPION = ("after_champion", "logged", "audited")  # fail points after the commit point


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


class FakeSeals:
    """The tags of registered models."""

    def __init__(self) -> None:
        self.tags: dict[tuple[str, str], str] = {}

    def get_model_tag(self, name: str, key: str) -> str | None:
        return self.tags.get((name, key))

    def set_model_tag(self, name: str, key: str, value: str) -> None:
        self.tags[name, key] = value


def seal_fault(log: AuditLog, seals: FakeSeals) -> str | None:
    entries = log.read_entries().entries
    return find_seal_fault(entries, "sales", RegistrySeal.parse(seals.get_model_tag("sales", SEAL_TAG)))


@pytest.fixture
def seals() -> FakeSeals:
    return FakeSeals()


@pytest.fixture
def sealed_log(tmp_path: Path, seals: FakeSeals) -> AuditLog:
    """A log of three promotions and a rollback to the second version."""
    log = AuditLog(tmp_path / "audit.jsonl", seals)
    for number in (1, 2, 3):
        previous = make_version(number - 1) if number > 1 else None
        log.make_promotion_recorder(make_version(number), "better")(make_version(number), previous)
    log.record_rollback(make_version(2), make_version(3))
    assert (log.read_entries().faults, seal_fault(log, seals)) == ((), None)
    return log


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_lines_missing_at_the_end_are_detected_before_and_after_the_next_promotion(
    kept: int, sealed_log: AuditLog, seals: FakeSeals
) -> None:
    """With two lines, the log ends with the same champion as the registry."""
    lines = sealed_log.path.read_text().splitlines(keepends=True)
    sealed_log.path.write_text("".join(lines[:kept]))
    assert seal_fault(sealed_log, seals) == (
        "the registry has the seal of line 4 of 'sales', which is missing or altered in the log"
    )
    sealed_log.make_promotion_recorder(make_version(4), "better")(make_version(4), make_version(2))
    sealed_log.make_promotion_recorder(make_version(5), "better")(make_version(5), make_version(4))
    [fault] = sealed_log.read_entries().faults
    assert fault == f"lines before line {kept + 1} (entry number 5) are missing or altered"


def test_a_repeated_promotion_does_not_hide_a_missing_line(sealed_log: AuditLog, seals: FakeSeals) -> None:
    lines = sealed_log.path.read_text().splitlines(keepends=True)
    sealed_log.path.write_text("".join(lines[:2]))
    sealed_log.make_promotion_recorder(make_version(2), "again")(make_version(2), None)
    assert "the seal of line 4" in str(seal_fault(sealed_log, seals))


def test_lines_added_at_the_end_are_detected(sealed_log: AuditLog, seals: FakeSeals) -> None:
    AuditLog(sealed_log.path).record_rollback(make_version(3), make_version(2))
    assert sealed_log.read_entries().faults == ()
    assert "the log has 1 lines of 'sales' after the last one" in str(seal_fault(sealed_log, seals))
    sealed_log.record_rollback(make_version(3), None)  # an interrupted command is repeated
    assert (sealed_log.read_entries().faults, seal_fault(sealed_log, seals)) == ((), None)


@pytest.mark.parametrize("tag", [None, "", "4 ", "x", "1" * 5000])
def test_an_altered_or_removed_seal_is_detected(tag: str | None, sealed_log: AuditLog, seals: FakeSeals) -> None:
    seals.tags.clear()
    if tag is not None:
        seals.set_model_tag("sales", SEAL_TAG, tag)
    assert seal_fault(sealed_log, seals) is not None


def test_a_log_that_starts_with_a_champion_it_did_not_record_has_to_adopt_it(tmp_path: Path, seals: FakeSeals) -> None:
    promoted, adopted = AuditLog(tmp_path / "a.jsonl", FakeSeals()), AuditLog(tmp_path / "b.jsonl", seals)
    promoted.make_promotion_recorder(make_version(8), "better")(make_version(8), make_version(7))
    assert promoted.read_entries().faults == (
        "'sales' version 8 (line 1) replaced version 7, but according to the lines before there was no champion: this log lacks "
        "a change",
    )
    adopted.adopt(make_version(7))
    adopted.make_promotion_recorder(make_version(8), "better")(make_version(8), make_version(7))
    assert (adopted.read_entries().faults, seal_fault(adopted, seals)) == ((), None)
    assert [entry.event for entry in adopted.read_entries().entries] == ["adopt", "promote"]


def remove_champion(promoted: PromotedRoot) -> None:
    Registry(promoted.root.store_uri).delete_alias("small", CHAMPION)


def change_digest(promoted: PromotedRoot) -> None:
    Registry(promoted.root.store_uri).set_tag(promoted.versions[1], "digest", "0" * 64)


def remove_log(promoted: PromotedRoot) -> None:
    promoted.root.audit_log.unlink()


def remove_last_line(promoted: PromotedRoot) -> None:
    lines = promoted.root.audit_log.read_text().splitlines(keepends=True)
    promoted.root.audit_log.write_text("".join(lines[:-1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_champion, "'small' has no champion in the registry; the log has version 2"),
        (change_digest, "version 2 with the digest 000000000000; the log has"),
        (remove_log, "the registry has the seal of line 2 of 'small'"),
        (remove_last_line, "the registry has the seal of line 2 of 'small'"),
    ],
)
@pytest.mark.parametrize("name", ["small", None])
def test_a_log_that_does_not_agree_with_the_registry_is_reported(
    promoted_root: PromotedRoot, damage: Callable[[PromotedRoot], None], message: str, name: str | None
) -> None:
    assert verify_audit_log(promoted_root.root, name).faults == ()
    damage(promoted_root)
    assert message in "; ".join(verify_audit_log(promoted_root.root, name).faults)


def test_a_champion_without_a_log_is_adopted_once_and_a_lost_log_is_not_replaced(promoted_root: PromotedRoot) -> None:
    root = promoted_root.root
    assert adopt_champions(root, None) == []
    root.audit_log.unlink()
    with pytest.raises(RegistryError, match="Restore the file from a backup"):
        adopt_champions(root, "small")
    create_client(root.store_uri).delete_registered_model_tag("small", SEAL_TAG)
    assert verify_audit_log(root, "small").faults == ("the champion of 'small' is version 2; the log has no champion",)
    assert adopt_champions(root, None) == [promoted_root.versions[1]]
    promote_version("small", root, version_number="3", force=True)
    report = verify_audit_log(root, None)
    assert (report.faults, report.notes) == ((), ())
    assert [(entry.event, entry.version, entry.before) for entry in report.entries] == [
        ("adopt", "2", None),
        ("promote", "3", "2"),
    ]


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


@pytest.mark.parametrize("fields", [{"name": []}, {"number": "5"}, {"format": "x"}, {"before": 4}, {"more": 1}])
def test_a_sealed_line_with_fields_of_another_type_is_reported(audit_log: AuditLog, fields: dict[str, object]) -> None:
    lines = audit_log.path.read_text().splitlines(keepends=True)
    changed = {key: value for key, value in (json.loads(lines[4]) | fields).items() if key != "seal"}
    seal = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
    audit_log.path.write_text("".join([*lines[:4], json.dumps(changed | {"seal": seal}), "\n"]))
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


def test_a_line_that_does_not_follow_the_champion_before_it_is_named(audit_log: AuditLog) -> None:
    """No earlier line replaced version 7: nothing was overwritten, but lines of another log are missing here."""
    assert record_promotions(audit_log, (8, 7), (9, 8)) == (
        "'sales' version 8 (line 6) replaced version 7, but according to the lines before there was version 5: this log lacks "
        "a change",
    )


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
