"""Real processes killed at every fail point, and many concurrent promotions: the champion is always the old or the new one."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from forecaster.bundle import artifact
from forecaster.errors import BaseMoved
from forecaster.prediction.predictor import FittedModel
from forecaster.registry.registry import CHAMPION, PREVIOUS_CHAMPION, BundleVersion, Registry
from forecaster.storage.failpoints import FAIL_POINTS
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.promote import fetch_bundle, find_champion, promote_version, register_bundle, verify_audit_log
from pipelines.settings import Root
from pipelines.sources import DataSource
from pipelines.training.train import train
from tests.case_selection import fail_points_of, sample_cases
from tests.pipelines.conftest import make_noise_frame, make_small_spec
from tests.system.fork_server import ForkServer
from tests.system.processes import write_config

pytestmark = pytest.mark.integration
POINTS_AFTER_CHAMPION = ("after_champion", "logged", "audited")  # the commit point


class PromotionRoot(NamedTuple):
    """A folder with a root in which versions 1 to 3 alternate as champion."""

    folder: Path
    root: Root
    model: FittedModel

    def alias(self, name: str) -> str:
        return Registry(self.root.store_uri).resolve("small", name).number

    def verified_champion(self) -> str:
        """Returns the number of the champion after loading its bundle."""
        champion = find_champion(Registry(self.root.store_uri), "small")
        assert champion is not None
        artifact.load_bundle(fetch_bundle(champion, self.root))
        return champion.number

    def read_log(self) -> str:
        return (self.folder / "process.log").read_text()[-2000:]

    def make_variant(self, label: str) -> Path:
        bundle = self.folder / label
        artifact.save_bundle(replace(self.model, facts={**self.model.facts, "copy": label}), bundle, card="# small\n")
        return bundle


@pytest.fixture(scope="module")
def promotion_root(migrated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> PromotionRoot:
    folder = tmp_path_factory.mktemp("promotions")
    root = Root(folder / "root")
    root.path.mkdir()
    shutil.copy(migrated_root / "mlflow.db", root.path)
    make_noise_frame().to_csv(folder / "meters.csv", index=False)
    write_config(folder / "small.yaml", make_small_spec(steps=8, epoch_steps=2))
    prepared = PromotionRoot(folder, root, train(DataSource(str(folder / "meters.csv")), make_small_spec(), root).model)
    for number in ("1", "2", "3"):
        register_bundle(prepared.make_variant(f"copy-{number}"), root)
    for number in ("1", "2"):
        promote_version("small", root, version_number=number, force=True)
    return prepared


def run_until_killed(fork_server: ForkServer, command: Sequence[str], promotion_root: PromotionRoot, name: str) -> None:
    code = fork_server.run([*command, "--root", "root"], promotion_root.folder, failpoints=f"{name}=kill")
    assert code == -signal.SIGKILL, promotion_root.read_log()


def repeat_command(fork_server: ForkServer, command: Sequence[str], promotion_root: PromotionRoot) -> int:
    return fork_server.run([*command, "--root", "root"], promotion_root.folder)


def assert_consistent(fork_server: ForkServer, promotion_root: PromotionRoot) -> None:
    assert repeat_command(fork_server, ["verify", "small"], promotion_root) == 0
    assert verify_audit_log(promotion_root.root, None).faults == ()


@pytest.mark.parametrize("name", sample_cases(fail_points_of("promote")))
def test_a_killed_promotion_is_recoverable(name: str, promotion_root: PromotionRoot, fork_server: ForkServer) -> None:
    before = promotion_root.alias(CHAMPION)
    goal = next(number for number in ("1", "2", "3") if number not in (before, promotion_root.alias(PREVIOUS_CHAMPION)))
    command = ["promote", "small", "--version", goal, "--force"]
    run_until_killed(fork_server, command, promotion_root, name)
    assert promotion_root.verified_champion() == (goal if name.endswith(POINTS_AFTER_CHAMPION) else before)
    assert repeat_command(fork_server, command, promotion_root) == 0
    assert (promotion_root.alias(CHAMPION), promotion_root.alias(PREVIOUS_CHAMPION)) == (goal, before)
    assert_consistent(fork_server, promotion_root)


@pytest.mark.parametrize("name", sample_cases(fail_points_of("rollback")))
def test_a_killed_rollback_is_recoverable(name: str, promotion_root: PromotionRoot, fork_server: ForkServer) -> None:
    before, goal = promotion_root.alias(CHAMPION), promotion_root.alias(PREVIOUS_CHAMPION)
    run_until_killed(fork_server, ["rollback", "small"], promotion_root, name)
    assert promotion_root.verified_champion() == (goal if name.endswith(POINTS_AFTER_CHAMPION) else before)
    assert repeat_command(fork_server, ["rollback", "small"], promotion_root) == 0
    assert (promotion_root.alias(CHAMPION), promotion_root.alias(PREVIOUS_CHAMPION)) == (goal, before)
    assert_consistent(fork_server, promotion_root)


@pytest.mark.parametrize("name", sample_cases(fail_points_of("register")))
def test_a_killed_registration_is_recoverable(
    name: str, promotion_root: PromotionRoot, fork_server: ForkServer
) -> None:
    before, bundle = promotion_root.alias(CHAMPION), promotion_root.make_variant(name)
    run_until_killed(fork_server, ["register", str(bundle)], promotion_root, name)
    assert promotion_root.verified_champion() == before
    assert repeat_command(fork_server, ["register", str(bundle)], promotion_root) == 0
    digest = artifact.compute_bundle_digest(bundle)
    versions = Registry(promotion_root.root.store_uri).list_versions("small")
    assert [version.digest for version in versions].count(digest) == 1
    assert_consistent(fork_server, promotion_root)


@pytest.mark.nightly
@pytest.mark.parametrize("fault", ["kill", "raise"])
@pytest.mark.parametrize("name", fail_points_of("checkpoint", "export", "judge"))
def test_a_killed_or_failed_retraining_is_recoverable(
    name: str, fault: str, promotion_root: PromotionRoot, fork_server: ForkServer
) -> None:
    before = promotion_root.alias(CHAMPION)
    seed = str(1 + 2 * FAIL_POINTS.index(name) + (fault == "kill"))  # a unique seed: the same retraining runs only once
    command = ["retrain", "meters.csv", "--config", "small.yaml", "--seed", seed, "--root", "root"]
    code = fork_server.run(command, promotion_root.folder, failpoints=f"{name}={fault}")
    assert code == (-signal.SIGKILL if fault == "kill" else 1)
    assert promotion_root.verified_champion() == before
    assert fork_server.run(command, promotion_root.folder) in (0, 3), promotion_root.read_log()
    for bundle in promotion_root.root.bundles.iterdir():
        artifact.load_bundle(bundle)
    assert list(promotion_root.root.checkpoints.glob("*/*.ckpt")) == []
    assert_consistent(fork_server, promotion_root)


PROCESS_COUNT, CHALLENGER_COUNT = 6, 5


def promote_repeatedly(root: Path, versions: Sequence[str]) -> list[tuple[str, str]]:
    """Judges each version against the current champion, then promotes it; returns base and outcome of each."""
    registry, outcomes = Registry(Root(root).store_uri), []
    log = AuditLog(Root(root).audit_log, registry)
    for number in versions:
        version, base = registry.get_version("small", number), find_champion(registry, "small")
        assert base is not None
        time.sleep(0.3)  # the other processes judge at the same time
        try:
            registry.promote(
                version,
                expected_champion=base,
                on_promoted=log.make_promotion_recorder(version, f"process {os.getpid()}"),
            )
            outcomes.append((base.number, number))
        except BaseMoved:
            outcomes.append((base.number, "base moved"))
    return outcomes


@pytest.mark.nightly
def test_exactly_one_of_many_concurrent_promotions_on_each_base_succeeds(promotion_root: PromotionRoot) -> None:
    first, entry_count = promotion_root.alias(CHAMPION), len(verify_audit_log(promotion_root.root, None).entries)
    versions: list[BundleVersion] = [
        register_bundle(promotion_root.make_variant(f"challenger-{n}"), promotion_root.root)
        for n in range(PROCESS_COUNT * CHALLENGER_COUNT)
    ]
    numbers = [version.number for version in versions]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store", "pipelines.promotion.promote"])
    with ProcessPoolExecutor(PROCESS_COUNT, mp_context=context) as pool:
        shares = [numbers[index::PROCESS_COUNT] for index in range(PROCESS_COUNT)]
        outcomes = [
            outcome
            for share in pool.map(promote_repeatedly, [promotion_root.root.path] * PROCESS_COUNT, shares)
            for outcome in share
        ]
    assert len(outcomes) == PROCESS_COUNT * CHALLENGER_COUNT
    winners = {base: number for base, number in outcomes if number != "base moved"}
    assert len(winners) == sum(number != "base moved" for _, number in outcomes), "one winner per base"
    assert {base for base, number in outcomes if number == "base moved"} <= set(winners), (
        "the base of each loser had a winner"
    )
    assert 0 < len(winners) < len(outcomes), "some promotions lost"
    chain, champion = [], first
    while champion in winners:
        chain.append((champion, winners[champion]))
        champion = winners[champion]
    assert len(chain) == len(winners), "each winner was the base of the next"
    assert promotion_root.verified_champion() == champion
    log = verify_audit_log(promotion_root.root, None)
    assert [(entry.before, entry.version) for entry in log.entries[entry_count:]] == chain
    assert log.faults == ()
