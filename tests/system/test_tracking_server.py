"""A registry on a tracking server: the life cycle of a model, and many concurrent promotions of one machine."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import psutil
import pytest

from forecaster.errors import BaseMoved, NoSuchModel
from forecaster.registry.registry import CHAMPION, PREVIOUS_CHAMPION, BundleVersion, Registry, create_client
from forecaster.registry.rest_client import RestClient
from pipelines.promotion.promote import find_champion
from serving.deployment import releases
from serving.settings import Settings
from tests.pipelines.commands.test_channels import run_command
from tests.pipelines.conftest import BAD_LEARNING_RATE, make_noise_frame, make_small_spec
from tests.serving.test_service import save_random_model
from tests.system.processes import start_process, wait_until, write_config
from tests.system.tracking_servers import (
    TrackingServer,
    postgres_skip_reason,
    running_postgres,
    running_tracking_server,
)

pytestmark = pytest.mark.integration
PROCESS_COUNT, CHALLENGER_COUNT = 6, 5


@pytest.fixture(scope="module", params=["postgres", pytest.param("sqlite", marks=pytest.mark.nightly)])
def tracking_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrackingServer]:
    """A server on PostgreSQL with user name and password, and an open one on SQLite."""
    reason = postgres_skip_reason() if request.param == "postgres" else None
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        database = stack.enter_context(running_postgres()) if request.param == "postgres" else None
        yield stack.enter_context(running_tracking_server(tmp_path_factory.mktemp("server"), database))


@pytest.fixture
def server_environment(tracking_server: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> TrackingServer:
    for name, value in tracking_server.environment.items():
        monkeypatch.setenv(name, value)
    return tracking_server


def test_the_model_life_cycle_works_through_a_tracking_server(
    server_environment: TrackingServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_noise_frame().to_csv(tmp_path / "meters.csv", index=False)
    good = write_config(tmp_path / "good.yaml", make_small_spec(valid_windows=1))
    bad = write_config(tmp_path / "bad.yaml", make_small_spec(learning_rate=BAD_LEARNING_RATE, valid_windows=0))
    output, runs, bundles = "", [], []
    for config in (good, bad):
        assert run_command("train", tmp_path / "meters.csv", "--config", config, "--root", tmp_path / "root") == 0
        lines = capsys.readouterr().out
        runs += [line.split()[1] for line in lines.splitlines() if line.startswith("run")]
        bundles += [line.split(maxsplit=1)[1] for line in lines.splitlines() if line.startswith("bundle")]
        output += lines
    root_option = ["--root", tmp_path / "root"]
    for bundle in bundles:
        assert run_command("register", bundle, *root_option) == 0
    assert run_command("promote", "small", "--version", 1, *root_option) == 0
    assert run_command("promote", "small", "--version", 2, *root_option) == 3, "worse than seasonal naive"
    assert run_command("promote", "small", "--version", 2, "--force", "--reason", "to go back", *root_option) == 0
    assert run_command("rollback", "small", *root_option) == 0
    assert run_command("verify", "small@champion", "--root", tmp_path / "elsewhere") == 0, "fetched from the server"
    assert run_command("audit", "small", *root_option) == 0
    page = tmp_path / "page.html"
    assert run_command("compare", "small@champion", "small@2", runs[1][:8], "--html", page, *root_option) == 0
    captured = capsys.readouterr()
    output += captured.out + captured.err + caplog.text + page.read_text()
    assert "paired t over 20 series" in captured.out
    rest_client = RestClient.from_environment(server_environment.uri, os.environ)
    assert rest_client.resolve("small", CHAMPION) == Registry(server_environment.uri).resolve("small", CHAMPION)
    for name, alias in (("small", "no-alias"), ("no-model", CHAMPION)):
        with pytest.raises(NoSuchModel):
            rest_client.resolve(name, alias)
    client = create_client(server_environment.uri)
    assert client.get_run(runs[0]).data.metrics["bt/mase"] > 0
    assert set(client.get_registered_model("small").tags) == {"audit_seal"}, "no lock is left in the store"
    assert not (tmp_path / "root" / "mlflow.db").exists(), "everything is stored on the server"

    secret = server_environment.credentials.get("MLFLOW_TRACKING_PASSWORD")
    if secret is not None:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert secret not in output
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        assert secret not in json.dumps(client.get_run(runs[0]).to_dictionary(), default=str)
        assert secret not in server_environment.log.read_text()


def test_a_password_in_a_url_is_rejected_and_never_shown(
    server_environment: TrackingServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = server_environment.uri.replace("http://", "http://me:s3cret@")
    assert run_command("promote", "small", "--tracking-uri", address, "--root", tmp_path) == 2
    stderr = capsys.readouterr().err
    assert "MLFLOW_TRACKING_PASSWORD" in stderr
    assert "s3cret" not in stderr
    if server_environment.credentials:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wr0ng")
        assert run_command("promote", "small", "--root", tmp_path) == 1
        stderr = capsys.readouterr().err
        assert "The store" in stderr
        assert "wr0ng" not in stderr


def register_stub_version(registry: Registry, run_id: str, folder: Path, number: int) -> BundleVersion:
    """Registers a version with the minimal bundle that a registry reads."""
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(bytes([number]))
    manifest = json.dumps({"number": number}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    digest, table = hashlib.sha256(manifest).hexdigest(), pd.DataFrame({"y": [1.0]})
    return registry.register(
        folder, name="raced", digest=digest, run_id=run_id, input_example=table, output_example=table
    )


@pytest.mark.nightly
def test_a_follower_deploys_what_a_server_names_and_restores_it_after_a_rollback(
    server_environment: TrackingServer, tmp_path: Path
) -> None:
    registry, client = Registry(server_environment.uri), create_client(server_environment.uri)
    run_id = client.create_run(client.create_experiment("followed")).info.run_id
    table, versions = pd.DataFrame({"y": [1.0]}), []
    for seed in (1, 2):
        digest = save_random_model(tmp_path / str(seed), seed=seed)
        versions.append(
            registry.register(
                tmp_path / str(seed),
                name="followed",
                digest=digest,
                run_id=run_id,
                input_example=table,
                output_example=table,
            )
        )
    settings = Settings(slot=tmp_path / "slot", registry=server_environment.uri, model="followed", poll_s=0.2)

    def wait_for(version: BundleVersion) -> None:
        def is_deployed() -> bool:
            release = releases.current_release(settings.slot)
            return release is not None and release.version == version.number

        wait_until(is_deployed, seconds=60)

    environment = {**server_environment.environment, **settings.to_environment()}
    with start_process(["-m", "serving.deployment.follower"], tmp_path, **environment) as process:
        champion = None
        for version in versions:
            registry.promote(version, expected_champion=champion)
            champion = version
            wait_for(version)
        registry.roll_back("followed")
        wait_for(versions[0])
        assert psutil.Process(process.pid).memory_info().rss < 60e6
        assert (tmp_path / "process.log").read_text().count("deploying version") == 2


def promote_repeatedly(uri: str, versions: Sequence[str]) -> list[tuple[str, str]]:
    """Judges each version against the current champion, then promotes it; returns base and outcome of each."""
    registry, outcomes = Registry(uri), []
    for number in versions:
        version, base = registry.get_version("raced", number), find_champion(registry, "raced")
        assert base is not None
        time.sleep(0.3)  # the other processes judge at the same time
        try:
            registry.promote(version, expected_champion=base)
            outcomes.append((base.number, number))
        except BaseMoved:
            outcomes.append((base.number, "base moved"))
    return outcomes


@pytest.mark.nightly
def test_exactly_one_of_many_concurrent_promotions_of_one_machine_through_a_server_succeeds(
    server_environment: TrackingServer, tmp_path: Path
) -> None:
    registry, client = Registry(server_environment.uri), create_client(server_environment.uri)
    run_id = client.create_run(client.create_experiment("raced")).info.run_id
    versions = [
        register_stub_version(registry, run_id, tmp_path / str(n), n)
        for n in range(1 + PROCESS_COUNT * CHALLENGER_COUNT)
    ]
    registry.promote(versions[0], expected_champion=None)
    numbers = [version.number for version in versions[1:]]
    context = multiprocessing.get_context("spawn")  # with the environment of this test
    with ProcessPoolExecutor(PROCESS_COUNT, mp_context=context) as pool:
        shares = [numbers[index::PROCESS_COUNT] for index in range(PROCESS_COUNT)]
        outcomes = [
            outcome
            for share in pool.map(promote_repeatedly, [server_environment.uri] * PROCESS_COUNT, shares)
            for outcome in share
        ]
    assert len(outcomes) == PROCESS_COUNT * CHALLENGER_COUNT
    winners = {base: number for base, number in outcomes if number != "base moved"}
    assert len(winners) == sum(number != "base moved" for _, number in outcomes), "one winner per base"
    assert {base for base, number in outcomes if number == "base moved"} <= set(winners), (
        "the base of each loser had a winner"
    )
    assert 0 < len(winners) < len(outcomes), "some promotions lost"
    champion, previous = "1", None
    while champion in winners:
        champion, previous = winners[champion], champion
    assert registry.resolve("raced", CHAMPION).number == champion
    assert registry.resolve("raced", PREVIOUS_CHAMPION).number == previous
