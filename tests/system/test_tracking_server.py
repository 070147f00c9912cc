"""A registry on a server: the life of a model through it, and many machines that promote at once."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest

from forecaster.errors import BaseMoved
from forecaster.registry.lock import NOTE
from forecaster.registry.registry import CHAMPION, FORMER, Registry, Version, connect
from pipelines.promotion.promote import champion_of
from tests.pipelines.commands.test_channels import run
from tests.pipelines.conftest import BAD, noise, small
from tests.system.processes import write_config
from tests.system.tracking_servers import Server, postgres, tracking, why_no_postgres

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning's
]
PROCESSES, CHALLENGERS = 6, 5


@pytest.fixture(scope="module", params=["postgres", pytest.param("sqlite", marks=pytest.mark.sweep)])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on PostgreSQL that asks for name and password, and an open one on SQLite."""
    reason = why_no_postgres() if request.param == "postgres" else None
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as held:
        database = held.enter_context(postgres()) if request.param == "postgres" else None
        yield held.enter_context(tracking(tmp_path_factory.mktemp("server"), database))


@pytest.fixture
def server(served: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in served.environment.items():
        monkeypatch.setenv(name, value)
    return served


def test_the_life_of_a_model_goes_through_the_server(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    noise().to_csv(tmp_path / "meters.csv", index=False)
    good = write_config(tmp_path / "good.yaml", small(valid_windows=1))
    bad = write_config(tmp_path / "bad.yaml", small(learning_rate=BAD, valid_windows=0))
    said, runs, bundles = "", [], []
    for config in (good, bad):
        assert run("train", tmp_path / "meters.csv", "--config", config, "--root", tmp_path / "root") == 0
        lines = capsys.readouterr().out
        runs += [line.split()[1] for line in lines.splitlines() if line.startswith("run")]
        bundles += [line.split(maxsplit=1)[1] for line in lines.splitlines() if line.startswith("bundle")]
        said += lines
    where = ["--root", tmp_path / "root"]
    for bundle in bundles:
        assert run("register", bundle, *where) == 0
    assert run("promote", "small", "--version", 1, *where) == 0
    assert run("promote", "small", "--version", 2, *where) == 3, "it is worse than seasonal naive"
    assert run("promote", "small", "--version", 2, "--force", "--reason", "to go back", *where) == 0
    assert run("rollback", "small", *where) == 0
    assert run("verify", "small@champion", "--root", tmp_path / "elsewhere") == 0, "fetched from the server"
    assert run("audit", "small", *where) == 0
    page = tmp_path / "page.html"
    assert run("compare", "small@champion", "small@2", runs[1][:8], "--html", page, *where) == 0
    captured = capsys.readouterr()
    said += captured.out + captured.err + caplog.text + page.read_text()
    assert "paired t over 20 series" in captured.out
    client = connect(server.uri)
    assert client.get_run(runs[0]).data.metrics["bt/mase"] > 0
    assert not [key for key in client.get_registered_model("small").tags if key.startswith(NOTE)], "given back"
    assert not (tmp_path / "root" / "mlflow.db").exists(), "nothing was kept apart from the server"

    secret = server.credentials.get("MLFLOW_TRACKING_PASSWORD")
    if secret is not None:
        kept = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert secret not in said
        assert not [path for path in kept if secret.encode() in path.read_bytes()]
        assert secret not in json.dumps(client.get_run(runs[0]).to_dictionary(), default=str)
        assert secret not in server.log.read_text()


def test_a_password_is_not_taken_from_an_address_nor_told(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = server.uri.replace("http://", "http://me:s3cret@")
    assert run("promote", "small", "--tracking-uri", address, "--root", tmp_path) == 2
    told = capsys.readouterr().err
    assert "MLFLOW_TRACKING_PASSWORD" in told
    assert "s3cret" not in told
    if server.credentials:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wr0ng")
        assert run("promote", "small", "--root", tmp_path) == 1
        told = capsys.readouterr().err
        assert "The store" in told
        assert "wr0ng" not in told


def registered(registry: Registry, run_id: str, folder: Path, number: int) -> Version:
    """A version as far as a registry looks into a bundle."""
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(bytes([number]))
    manifest = json.dumps({"number": number}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    digest, table = hashlib.sha256(manifest).hexdigest(), pd.DataFrame({"y": [1.0]})
    return registry.register(
        folder, name="raced", digest=digest, run_id=run_id, input_example=table, output_example=table
    )


def contend(uri: str, numbers: Sequence[str]) -> list[tuple[str, str]]:
    """Judges each against the champion there is, then promotes it; answers base and outcome of each."""
    registry, outcomes = Registry(uri), []
    for number in numbers:
        version, base = registry.version("raced", number), champion_of(registry, "raced")
        assert base is not None
        time.sleep(0.3)  # others judge meanwhile
        try:
            registry.promote(version, base=base)
            outcomes.append((base.number, number))
        except BaseMoved:
            outcomes.append((base.number, "base moved"))
    return outcomes


@pytest.mark.sweep
def test_of_many_that_promote_at_once_through_a_server_one_wins_on_each_base(server: Server, tmp_path: Path) -> None:
    registry, client = Registry(server.uri), connect(server.uri)
    run_id = client.create_run(client.create_experiment("raced")).info.run_id
    versions = [registered(registry, run_id, tmp_path / str(n), n) for n in range(1 + PROCESSES * CHALLENGERS)]
    registry.promote(versions[0], base=None)
    numbers = [one.number for one in versions[1:]]
    context = multiprocessing.get_context("spawn")  # with the environment of this test
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        shares = [numbers[place::PROCESSES] for place in range(PROCESSES)]
        found = [one for some in pool.map(contend, [server.uri] * PROCESSES, shares) for one in some]
    assert len(found) == PROCESSES * CHALLENGERS
    winners = {base: number for base, number in found if number != "base moved"}
    assert len(winners) == sum(number != "base moved" for _, number in found), "one winner to a base"
    assert {base for base, number in found if number == "base moved"} <= set(winners), "a loser's base had a winner"
    assert 0 < len(winners) < len(found), "some lost"
    champion, before = "1", None
    while champion in winners:
        champion, before = winners[champion], champion
    assert registry.resolve("raced", CHAMPION).number == champion
    assert registry.resolve("raced", FORMER).number == before
    assert not [key for key in client.get_registered_model("raced").tags if key.startswith(NOTE)]
