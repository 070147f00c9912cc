"""Real processes killed at every fail point, and many that promote at once: the champion is old or new, never neither."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from forecaster.bundle import artifact
from forecaster.errors import BaseMoved
from forecaster.prediction.predictor import Forecaster
from forecaster.registry.registry import CHAMPION, FORMER, Registry, Version
from forecaster.storage.failpoints import POINTS
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.promote import audited, champion_of, fetch, promote, register
from pipelines.settings import Root
from pipelines.sources import Data
from pipelines.training.train import train
from tests.pipelines.conftest import noise, small
from tests.sweep import points_of, some
from tests.system.fork_server import Nursery, opened
from tests.system.processes import write_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning's
]
BEHIND = ("after_champion", "audited")  # the commit point


class World(NamedTuple):
    """A folder with a root, in which versions 1 to 3 take turns as champion."""

    folder: Path
    root: Root
    forecaster: Forecaster

    def alias(self, name: str) -> str:
        return Registry(self.root.store).resolve("small", name).number

    def whole(self) -> str:
        """The number of the champion, whose bundle is good."""
        champion = champion_of(Registry(self.root.store), "small")
        assert champion is not None
        artifact.load(fetch(champion, self.root))
        return champion.number

    def another(self, what: str) -> Path:
        bundle = self.folder / what
        artifact.save(replace(self.forecaster, facts={**self.forecaster.facts, "copy": what}), bundle, card="# small\n")
        return bundle


@pytest.fixture(scope="module")
def world(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    root = Root(folder / "root")
    root.path.mkdir()
    shutil.copy(migrated / "mlflow.db", root.path)
    noise().to_csv(folder / "meters.csv", index=False)
    write_config(folder / "small.yaml", small(steps=8, epoch_steps=2))
    made = World(folder, root, train(Data(str(folder / "meters.csv")), small(), root).forecaster)
    for number in ("1", "2", "3"):
        register(made.another(f"copy-{number}"), root)
    for number in ("1", "2"):
        promote("small", root, number=number, force=True)
    return made


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with opened() as found:
        yield found


def killed(nursery: Nursery, command: Sequence[str], world: World, name: str) -> None:
    code = nursery.run([*command, "--root", "root"], world.folder, failpoints=f"{name}=kill")
    assert code == -signal.SIGKILL, (world.folder / "process.log").read_text()[-2000:]


def again(nursery: Nursery, command: Sequence[str], world: World) -> int:
    return nursery.run([*command, "--root", "root"], world.folder)


def sound(nursery: Nursery, world: World) -> None:
    assert again(nursery, ["verify", "small"], world) == 0
    assert audited(world.root, None).faults == ()


@pytest.mark.parametrize("name", some(points_of("promote")))
def test_a_promotion_is_killed(name: str, world: World, nursery: Nursery) -> None:
    before = world.alias(CHAMPION)
    goal = next(number for number in ("1", "2", "3") if number not in (before, world.alias(FORMER)))
    command = ["promote", "small", "--version", goal, "--force"]
    killed(nursery, command, world, name)
    assert world.whole() == (goal if name.endswith(BEHIND) else before)
    assert again(nursery, command, world) == 0
    assert (world.alias(CHAMPION), world.alias(FORMER)) == (goal, before)
    sound(nursery, world)


@pytest.mark.parametrize("name", some(points_of("rollback")))
def test_a_rollback_is_killed(name: str, world: World, nursery: Nursery) -> None:
    before, goal = world.alias(CHAMPION), world.alias(FORMER)
    killed(nursery, ["rollback", "small"], world, name)
    assert world.whole() == (goal if name.endswith(BEHIND) else before)
    assert again(nursery, ["rollback", "small"], world) == 0
    assert (world.alias(CHAMPION), world.alias(FORMER)) == (goal, before)
    sound(nursery, world)


@pytest.mark.parametrize("name", some(points_of("register")))
def test_a_registration_is_killed(name: str, world: World, nursery: Nursery) -> None:
    before, bundle = world.alias(CHAMPION), world.another(name)
    killed(nursery, ["register", str(bundle)], world, name)
    assert world.whole() == before
    assert again(nursery, ["register", str(bundle)], world) == 0
    digest = artifact.digest(bundle)
    assert [one.digest for one in Registry(world.root.store).versions("small")].count(digest) == 1
    sound(nursery, world)


@pytest.mark.sweep
@pytest.mark.parametrize("what", ["kill", "raise"])
@pytest.mark.parametrize("name", points_of("checkpoint", "export", "judge"))
def test_a_retraining_is_killed_or_broken(name: str, what: str, world: World, nursery: Nursery) -> None:
    before, seed = world.alias(CHAMPION), str(1 + 2 * POINTS.index(name) + (what == "kill"))  # the same is done once
    command = ["retrain", "meters.csv", "--config", "small.yaml", "--seed", seed, "--root", "root"]
    code = nursery.run(command, world.folder, failpoints=f"{name}={what}")
    assert code == (-signal.SIGKILL if what == "kill" else 1)
    assert world.whole() == before
    assert nursery.run(command, world.folder) in (0, 3), (world.folder / "process.log").read_text()[-2000:]
    for bundle in world.root.bundles.iterdir():
        artifact.load(bundle)
    assert list(world.root.checkpoints.glob("*/*.ckpt")) == []
    sound(nursery, world)


PROCESSES, CHALLENGERS = 6, 5


def contend(root: Path, numbers: Sequence[str]) -> list[tuple[str, str]]:
    """Judges each against the champion there is, then promotes it; answers base and outcome of each."""
    store, log, outcomes = Root(root), AuditLog(Root(root).audit), []
    registry = Registry(store.store)
    for number in numbers:
        version, base = registry.version("small", number), champion_of(registry, "small")
        assert base is not None
        time.sleep(0.3)  # others judge meanwhile
        try:
            registry.promote(version, base=base, record=log.promoted(version, f"process {os.getpid()}"))
            outcomes.append((base.number, number))
        except BaseMoved:
            outcomes.append((base.number, "base moved"))
    return outcomes


def test_of_many_that_promote_at_once_one_wins_on_each_base(world: World) -> None:
    first, known = world.alias(CHAMPION), len(audited(world.root, None).lines)
    made: list[Version] = [register(world.another(f"rival-{n}"), world.root) for n in range(PROCESSES * CHALLENGERS)]
    numbers = [one.number for one in made]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store", "pipelines.promotion.promote"])
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        shares = [numbers[place::PROCESSES] for place in range(PROCESSES)]
        found = [one for some in pool.map(contend, [world.root.path] * PROCESSES, shares) for one in some]
    assert len(found) == PROCESSES * CHALLENGERS
    winners = {base: number for base, number in found if number != "base moved"}
    assert len(winners) == sum(number != "base moved" for _, number in found), "one winner to a base"
    assert {base for base, number in found if number == "base moved"} <= set(winners), "a loser's base had a winner"
    assert 0 < len(winners) < len(found), "some lost"
    line, champion = [], first
    while champion in winners:
        line.append((champion, winners[champion]))
        champion = winners[champion]
    assert len(line) == len(winners), "each winner was the next one's base"
    assert world.whole() == champion
    log = audited(world.root, None)
    assert [(one.before, one.version) for one in log.lines[known:]] == line
    assert log.faults == ()
