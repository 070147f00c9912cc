"""Real processes that retrain: killed at every fail point, or two at once, they end in one version, one verdict, one champion."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from forecaster.bundle import artifact
from forecaster.registry.registry import CHAMPION, Registry
from pipelines.promotion.promote import audited
from pipelines.settings import Root
from pipelines.training.retrain_key import TAG
from tests.pipelines.conftest import noise, small
from tests.sweep import points_of, some
from tests.system.fork_server import Nursery, opened
from tests.system.processes import write_config

pytestmark = pytest.mark.slow
MADE = some(points_of("checkpoint", "export", "register", "judge", "promote", "retrain"), every=9)


class World(NamedTuple):
    """A folder with data and a root; every test retrains a model of its own name."""

    folder: Path
    root: Root

    def command(self, name: str) -> list[str]:
        config = write_config(self.folder / f"{name}.yaml", small(name=name, steps=8, epoch_steps=2))
        return ["retrain", "meters.csv", "--config", config.name, "--root", "root"]

    def told(self) -> str:
        return (self.folder / "process.log").read_text()[-3000:]

    def check(self, name: str, *, champion: bool) -> None:
        registry = Registry(self.root.store)
        [version] = registry.versions(name)
        assert len(registry.tags(version)[TAG]) == 64
        if champion:
            assert registry.resolve(name, CHAMPION) == version
        for bundle in self.root.bundles.iterdir():
            artifact.load(bundle)
        assert list(self.root.checkpoints.glob("*/*.ckpt")) == []
        assert not list((self.root.path / "retrainings").glob("*.lock"))
        assert audited(self.root, name).faults == ()


@pytest.fixture(scope="module")
def world(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    root = Root(folder / "root")
    root.path.mkdir()
    shutil.copy(migrated / "mlflow.db", root.path)
    noise().to_csv(folder / "meters.csv", index=False)
    return World(folder, root)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with opened() as found:
        yield found


@pytest.mark.parametrize("point", MADE)
def test_a_retraining_that_was_killed_anywhere_converges(point: str, world: World, nursery: Nursery) -> None:
    name = point.replace(".", "-")
    command = world.command(name)
    assert nursery.run(command, world.folder, failpoints=f"{point}=kill") == -signal.SIGKILL, world.told()
    for _ in range(2):  # the second finds all done
        assert nursery.run(command, world.folder) == 0, world.told()
        world.check(name, champion=True)
    assert len(audited(world.root, name).lines) == 1


def test_one_that_was_refused_and_killed_is_refused_again(world: World, nursery: Nursery) -> None:
    (world.folder / "policy.yaml").write_text("megabytes: 1.0e-6")
    command = [*world.command("refused"), "--policy", "policy.yaml"]
    assert nursery.run(command, world.folder, failpoints="judge.recorded=kill") == -signal.SIGKILL, world.told()
    assert nursery.run(command, world.folder) == 3, world.told()
    world.check("refused", champion=False)


def test_two_that_start_at_once_make_one_version_and_hear_one_verdict(world: World, nursery: Nursery) -> None:
    command = world.command("twins")
    with nursery.started(command, world.folder) as one, nursery.started(command, world.folder) as other:
        assert (one.wait(), other.wait()) == (0, 0), world.told()
    world.check("twins", champion=True)
    assert len(audited(world.root, "twins").lines) == 1


def test_who_waits_takes_over_from_one_that_is_killed(world: World, nursery: Nursery) -> None:
    command = world.command("heirs")
    with (
        nursery.started(command, world.folder, failpoints="judge.before=kill") as one,
        nursery.started(command, world.folder) as other,
    ):
        assert {one.wait(), other.wait()} <= {-signal.SIGKILL, 0}, world.told()
    assert nursery.run(command, world.folder) == 0, world.told()
    world.check("heirs", champion=True)
