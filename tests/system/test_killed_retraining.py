"""Real retraining processes, killed at every fail point or run concurrently, end with one version, verdict and champion."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from forecaster.bundle import artifact
from forecaster.registry.registry import CHAMPION, Registry
from pipelines.promotion.promote import verify_audit_log
from pipelines.settings import Root
from pipelines.training.retrain_key import RETRAIN_KEY_TAG
from tests.case_selection import fail_points_of, sample_cases
from tests.pipelines.conftest import make_noise_frame, make_small_spec
from tests.system.fork_server import ForkServer
from tests.system.processes import write_config

pytestmark = pytest.mark.integration
FAIL_POINTS = sample_cases(fail_points_of("checkpoint", "export", "register", "judge", "promote", "retrain"), stride=9)


class RetrainingFolder(NamedTuple):
    """A folder with data and a root; every test retrains its own model."""

    folder: Path
    root: Root

    def command(self, name: str) -> list[str]:
        config = write_config(self.folder / f"{name}.yaml", make_small_spec(name=name, steps=8, epoch_steps=2))
        return ["retrain", "meters.csv", "--config", config.name, "--root", "root"]

    def read_logs(self) -> str:
        return (self.folder / "process.log").read_text()[-3000:]

    def check(self, name: str, *, champion: bool) -> None:
        registry = Registry(self.root.store_uri)
        [version] = registry.list_versions(name)
        assert len(registry.get_tags(version)[RETRAIN_KEY_TAG]) == 64
        if champion:
            assert registry.resolve(name, CHAMPION) == version
        for bundle in self.root.bundles.iterdir():
            artifact.load_bundle(bundle)
        assert list(self.root.checkpoints.glob("*/*.ckpt")) == []
        assert not list((self.root.path / "retrainings").glob("*.lock"))
        assert verify_audit_log(self.root, name).faults == ()


@pytest.fixture(scope="module")
def retraining_folder(migrated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RetrainingFolder:
    folder = tmp_path_factory.mktemp("retraining")
    root = Root(folder / "root")
    root.path.mkdir()
    shutil.copy(migrated_root / "mlflow.db", root.path)
    make_noise_frame().to_csv(folder / "meters.csv", index=False)
    return RetrainingFolder(folder, root)


@pytest.mark.parametrize("point", FAIL_POINTS)
def test_a_retraining_killed_at_any_point_converges(
    point: str, retraining_folder: RetrainingFolder, fork_server: ForkServer
) -> None:
    name = point.replace(".", "-")
    command = retraining_folder.command(name)
    assert fork_server.run(command, retraining_folder.folder, failpoints=f"{point}=kill") == -signal.SIGKILL, (
        retraining_folder.read_logs()
    )
    for _ in range(2):  # the second has nothing left to do
        assert fork_server.run(command, retraining_folder.folder) == 0, retraining_folder.read_logs()
        retraining_folder.check(name, champion=True)
    assert len(verify_audit_log(retraining_folder.root, name).entries) == 1


def test_a_rejected_and_killed_retraining_is_rejected_again(
    retraining_folder: RetrainingFolder, fork_server: ForkServer
) -> None:
    (retraining_folder.folder / "policy.yaml").write_text("megabytes: 1.0e-6")
    command = [*retraining_folder.command("rejected"), "--policy", "policy.yaml"]
    assert fork_server.run(command, retraining_folder.folder, failpoints="judge.recorded=kill") == -signal.SIGKILL, (
        retraining_folder.read_logs()
    )
    assert fork_server.run(command, retraining_folder.folder) == 3, retraining_folder.read_logs()
    retraining_folder.check("rejected", champion=False)


def test_two_concurrent_retrainings_give_one_version_and_one_verdict(
    retraining_folder: RetrainingFolder, fork_server: ForkServer
) -> None:
    command = retraining_folder.command("concurrent")
    with (
        fork_server.start(command, retraining_folder.folder) as first,
        fork_server.start(command, retraining_folder.folder) as second,
    ):
        assert (first.wait(), second.wait()) == (0, 0), retraining_folder.read_logs()
    retraining_folder.check("concurrent", champion=True)
    assert len(verify_audit_log(retraining_folder.root, "concurrent").entries) == 1


def test_a_waiting_retraining_takes_over_from_a_killed_one(
    retraining_folder: RetrainingFolder, fork_server: ForkServer
) -> None:
    command = retraining_folder.command("takeover")
    with (
        fork_server.start(command, retraining_folder.folder, failpoints="judge.before=kill") as first,
        fork_server.start(command, retraining_folder.folder) as second,
    ):
        assert {first.wait(), second.wait()} <= {-signal.SIGKILL, 0}, retraining_folder.read_logs()
    assert fork_server.run(command, retraining_folder.folder) == 0, retraining_folder.read_logs()
    retraining_folder.check("takeover", champion=True)
