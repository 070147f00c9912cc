"""Versions and aliases of the registry, on real SQLite stores."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from forecaster.errors import BaseMoved, BundleDamaged, MissingPackage, NoSuchModel, RegistryError
from forecaster.registry import connection
from forecaster.registry.download import BundleDownload
from forecaster.registry.registry import CHAMPION, PREVIOUS_CHAMPION, BundleVersion, Registry, create_client
from tests.slow_servers import dripping_server, silent_server

pytestmark = pytest.mark.integration

INPUT_EXAMPLE = pd.DataFrame(
    {
        "unique_id": ["a"] * 4,
        "ds": pd.date_range("2026-01-01", periods=4, freq="h", tz="UTC"),
        "y": [1.0, 2.0, float("nan"), 3.0],
        "promo": [0, 1, 0, 1],
    }
)
OUTPUT_EXAMPLE = pd.DataFrame(
    {"unique_id": ["a"] * 2, "ds": pd.date_range("2026-01-01T04:00", periods=2, freq="h", tz="UTC"), "mean": [2.0, 2.5]}
)


@pytest.fixture(scope="module")
def process_pool() -> Iterator[ProcessPoolExecutor]:
    """Four processes, forked from one that has imported MLflow and has no open connection."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store", "pytest"])
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        yield pool


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is migrated once; tests copy the file, which is fast."""
    database = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    create_client(f"sqlite:///{database}")
    return database


@pytest.fixture
def store_uri(migrated_database: Path, tmp_path: Path) -> str:
    folder = tmp_path / "a store"
    folder.mkdir()
    shutil.copy(migrated_database, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def registry(store_uri: str) -> Registry:
    return Registry(store_uri)


@pytest.fixture
def run_id(store_uri: str, tmp_path: Path) -> str:
    client = create_client(store_uri)
    location = (tmp_path / "a store" / "mlruns").as_uri()
    run = client.create_run(client.create_experiment("sine", location))
    return str(run.info.run_id)


def write_bundle(folder: Path, *, weights: bytes = b"weights") -> str:
    """Writes the files of a bundle that the registry reads, and returns its digest."""
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "card.md").write_text("# sine\n")
    entries = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in (("weights.safetensors", weights), ("card.md", b"# sine\n"))
    }
    manifest = json.dumps({"files": entries}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    return hashlib.sha256(manifest).hexdigest()


def register(registry: Registry, run_id: str, bundle: Path, *, weights: bytes = b"weights") -> BundleVersion:
    digest = write_bundle(bundle, weights=weights)
    return registry.register(
        bundle, name="sine", digest=digest, run_id=run_id, input_example=INPUT_EXAMPLE, output_example=OUTPUT_EXAMPLE
    )


def read_contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def list_stored_files(uri: str) -> list[Path]:
    return [path for path in Path(uri.removeprefix("sqlite:///")).parent.rglob("mlruns/**/*") if path.is_file()]


def test_a_registered_bundle_is_fetched_unchanged(registry: Registry, run_id: str, tmp_path: Path) -> None:
    version = register(registry, run_id, tmp_path / "bundle")
    assert version == BundleVersion("sine", "1", version.digest, run_id)
    registry.set_alias(version, "challenger")

    fetched = registry.fetch(registry.resolve("sine", "challenger"), tmp_path / "deep" / "er" / "served")

    assert fetched == tmp_path / "deep" / "er" / "served"
    assert read_contents(fetched) == read_contents(tmp_path / "bundle")
    assert list(fetched.parent.iterdir()) == [fetched]


def test_registering_and_fetching_are_fast_and_print_nothing(
    registry: Registry, run_id: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    register(registry, run_id, tmp_path / "warm", weights=b"imports happen here")
    capfd.readouterr()
    started = time.perf_counter()
    registry.fetch(register(registry, run_id, tmp_path / "bundle"), tmp_path / "fetched")
    assert time.perf_counter() - started < 2.0
    assert capfd.readouterr() == ("", "")


def test_mlflow_shows_the_signature_and_the_input_example(
    registry: Registry, store_uri: str, run_id: str, tmp_path: Path
) -> None:
    from mlflow.models import Model

    version = register(registry, run_id, tmp_path / "bundle")

    [location] = [str(path.parent) for path in list_stored_files(store_uri) if path.name == "MLmodel"]
    logged = Model.load(location)
    assert logged.signature.inputs.input_names() == ["unique_id", "ds", "y", "promo"]
    assert logged.signature.outputs.input_names() == ["unique_id", "ds", "mean"]
    example: Any = logged.load_input_example(location)
    assert example["y"].tolist()[:2] == [1.0, 2.0]
    assert logged.flavors["forecaster"]["digest"] == version.digest
    outputs = create_client(store_uri).get_run(run_id).outputs
    assert outputs is not None
    [output] = outputs.model_outputs
    assert create_client(store_uri).get_logged_model(output.model_id).status == "READY"


def test_no_pickle_and_no_code_is_stored(registry: Registry, store_uri: str, run_id: str, tmp_path: Path) -> None:
    register(registry, run_id, tmp_path / "bundle")
    assert sorted({path.name for path in list_stored_files(store_uri)}) == [
        "MLmodel",
        "card.md",
        "input_example.json",
        "manifest.json",
        "serving_input_example.json",
        "weights.safetensors",
    ]


def test_registering_a_bundle_twice_gives_one_version(
    registry: Registry, store_uri: str, run_id: str, tmp_path: Path
) -> None:
    first = register(registry, run_id, tmp_path / "one")
    files = list_stored_files(store_uri)
    repeated = register(registry, run_id, tmp_path / "two")
    other = register(registry, run_id, tmp_path / "three", weights=b"others")
    assert repeated == first
    assert len(list_stored_files(store_uri)) == 2 * len(files)
    assert registry.list_versions("sine") == [first, other]


def test_a_bundle_that_does_not_match_its_digest_is_not_registered(
    registry: Registry, run_id: str, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "bundle")
    with pytest.raises(BundleDamaged, match="should have the digest"):
        registry.register(
            tmp_path / "bundle",
            name="sine",
            digest="0" * 64,
            run_id=run_id,
            input_example=INPUT_EXAMPLE,
            output_example=OUTPUT_EXAMPLE,
        )
    assert registry.list_versions("sine") == []


@pytest.mark.parametrize("damage", ["altered", "manifest gone", "all gone"])
def test_a_damaged_store_is_detected_before_a_version_is_visible(
    damage: str, registry: Registry, store_uri: str, run_id: str, tmp_path: Path
) -> None:
    version = register(registry, run_id, tmp_path / "bundle")
    [manifest] = [path for path in list_stored_files(store_uri) if path.name == "manifest.json"]
    if damage == "altered":
        manifest.write_text("{}")
    elif damage == "manifest gone":
        manifest.unlink()
    else:
        shutil.rmtree(manifest.parent)

    with pytest.raises(BundleDamaged):
        registry.fetch(version, tmp_path / "fetched" / "served")
    assert list((tmp_path / "fetched").iterdir()) == []
    with pytest.raises(BundleDamaged):
        registry.promote(version, expected_champion=None)


def hide_weights(bundle: Path, link_target: Path | None) -> None:
    (bundle / "weights.safetensors").unlink()
    if link_target is None:
        os.mkfifo(bundle / "weights.safetensors")
    else:
        (bundle / "weights.safetensors").symlink_to(link_target)


STORE_DAMAGES: dict[str, Callable[[Path], object]] = {
    "a larger file": lambda bundle: os.truncate(bundle / "weights.safetensors", 10 << 30),  # sparse
    "a manifest of 10 GB": lambda bundle: os.truncate(bundle / "manifest.json", 10 << 30),
    "an extra file": lambda bundle: (bundle / "more").write_text(""),
    "a FIFO": lambda bundle: hide_weights(bundle, None),
    "a link to an endless device": lambda bundle: hide_weights(bundle, Path("/dev/zero")),
}


@pytest.mark.parametrize("damage", STORE_DAMAGES)
def test_sizes_and_kinds_of_files_are_checked_before_they_are_copied(
    damage: str, registry: Registry, store_uri: str, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(registry, run_id, tmp_path / "bundle")
    [manifest] = [path for path in list_stored_files(store_uri) if path.name == "manifest.json"]
    STORE_DAMAGES[damage](manifest.parent)
    copied: list[str] = []
    monkeypatch.setattr(
        "forecaster.storage.regular_files.copy_regular_file",
        lambda folder, name, destination, **_: copied.append(shutil.copy(folder / name, destination)),
    )
    with pytest.raises(BundleDamaged, match="should consist of the files of its manifest"):
        registry.fetch(version, tmp_path / "fetched" / "served")
    assert {Path(path).name for path in copied} <= {"manifest.json"}
    assert list((tmp_path / "fetched").iterdir()) == []


def test_a_fetch_does_not_overwrite_another_bundle(registry: Registry, run_id: str, tmp_path: Path) -> None:
    version = register(registry, run_id, tmp_path / "bundle")
    with pytest.raises(RegistryError, match="exists already"):
        registry.fetch(version, tmp_path / "bundle")


def test_a_missing_version_is_reported_with_a_fix(registry: Registry, run_id: str, tmp_path: Path) -> None:
    assert registry.list_versions("sine") == []
    with pytest.raises(NoSuchModel, match=r"Model 'sine' is not in the store: .* register it"):
        registry.resolve("sine", CHAMPION)
    version = register(registry, run_id, tmp_path / "bundle")
    registry.set_alias(version, "challenger")
    with pytest.raises(NoSuchModel, match=r"'champion'; its aliases are: challenger\. Promote"):
        registry.resolve("sine", CHAMPION)
    with pytest.raises(NoSuchModel):
        registry.get_version("sine", "7")
    with pytest.raises(NoSuchModel):
        registry.set_alias(version._replace(number="7"), CHAMPION)
    registry.delete_alias("sine", "challenger")
    registry.delete_alias("sine", "challenger")
    with pytest.raises(NoSuchModel, match="its aliases are: none"):
        registry.resolve("sine", "challenger")


def test_a_version_registered_by_other_tools_is_ignored(
    registry: Registry, store_uri: str, run_id: str, tmp_path: Path
) -> None:
    version = register(registry, run_id, tmp_path / "bundle")
    create_client(store_uri).create_model_version("sine", (tmp_path / "bundle").as_uri(), run_id)
    assert registry.list_versions("sine") == [version]
    with pytest.raises(RegistryError, match="has none, so it was not registered by forecaster"):
        registry.get_version("sine", "2")


def test_promotion_moves_the_champion_alias_and_keeps_the_previous_champion(
    registry: Registry, run_id: str, tmp_path: Path
) -> None:
    first = register(registry, run_id, tmp_path / "one", weights=b"1")
    second = register(registry, run_id, tmp_path / "two", weights=b"2")

    registry.promote(first, expected_champion=None)
    assert registry.resolve("sine", CHAMPION) == first
    with pytest.raises(NoSuchModel):
        registry.resolve("sine", PREVIOUS_CHAMPION)

    registry.promote(second, expected_champion=first)
    registry.promote(second, expected_champion=first)  # already finished: nothing to do
    assert registry.resolve("sine", CHAMPION) == second
    assert registry.resolve("sine", PREVIOUS_CHAMPION) == first

    registry.promote(first, expected_champion=second)  # a rollback is a promotion
    assert registry.resolve("sine", CHAMPION) == first
    assert registry.resolve("sine", PREVIOUS_CHAMPION) == second


def test_a_champion_judged_against_another_baseline_version_is_rejected(
    registry: Registry, run_id: str, tmp_path: Path
) -> None:
    first, second, third = (register(registry, run_id, tmp_path / str(n), weights=bytes([n])) for n in range(3))
    registry.promote(first, expected_champion=None)
    with pytest.raises(BaseMoved, match=r"judged against no champion, but the champion is now version 1\. Judge"):
        registry.promote(second, expected_champion=None)
    registry.promote(second, expected_champion=first)
    with pytest.raises(BaseMoved):
        registry.promote(third, expected_champion=first)
    assert registry.resolve("sine", CHAMPION) == second


@pytest.mark.parametrize("moment", ["digest", "replaced", PREVIOUS_CHAMPION])
def test_a_champion_that_another_machine_moves_during_a_promotion_is_kept(
    moment: str, registry: Registry, store_uri: str, run_id: str, tmp_path: Path
) -> None:
    first, second, third = (register(registry, run_id, tmp_path / str(n), weights=bytes([n])) for n in range(3))
    registry.promote(first, expected_champion=None)

    class InterleavedRegistry(Registry):
        """A registry that another machine changes right after one step of a promotion."""

        def set_tag(self, version: BundleVersion, key: str, value: str) -> None:
            super().set_tag(version, key, value)
            self._interleave(key)

        def set_alias(self, version: BundleVersion, alias: str) -> None:
            super().set_alias(version, alias)
            self._interleave(alias)

        def _open_download(self, version: BundleVersion) -> AbstractContextManager[BundleDownload]:
            self._interleave("digest")
            return super()._open_download(version)

        def _interleave(self, step: str) -> None:
            if step == moment:
                registry.set_alias(third, CHAMPION)

    for _ in range(2):
        with pytest.raises(BaseMoved, match=r"version 2 .* the champion is now version 3"):
            InterleavedRegistry(store_uri).promote(second, expected_champion=first)
        assert registry.resolve("sine", CHAMPION) == third


def test_an_interrupted_promotion_keeps_the_old_champion_and_can_be_repeated(
    registry: Registry, store_uri: str, run_id: str, tmp_path: Path
) -> None:
    class InterruptedRegistry(Registry):
        def set_alias(self, version: BundleVersion, alias: str) -> None:
            if alias == CHAMPION:
                raise KeyboardInterrupt
            super().set_alias(version, alias)

    first = register(registry, run_id, tmp_path / "one", weights=b"1")
    second = register(registry, run_id, tmp_path / "two", weights=b"2")
    registry.promote(first, expected_champion=None)
    with pytest.raises(KeyboardInterrupt):
        InterruptedRegistry(store_uri).promote(second, expected_champion=first)
    assert registry.resolve("sine", CHAMPION) == first
    registry.promote(second, expected_champion=first)
    assert registry.resolve("sine", CHAMPION) == second
    assert registry.resolve("sine", PREVIOUS_CHAMPION) == first


def promote_version(uri: str, version_number: str) -> str:
    registry = Registry(uri)
    version, base = registry.get_version("sine", version_number), registry.get_version("sine", "1")
    time.sleep(0.5)  # so that all are ready and run concurrently
    try:
        registry.promote(version, expected_champion=base)
    except BaseMoved:
        return "moved"
    return version_number


def test_exactly_one_of_four_concurrent_promotions_on_one_base_succeeds(
    registry: Registry, store_uri: str, run_id: str, tmp_path: Path, process_pool: ProcessPoolExecutor
) -> None:
    versions = [register(registry, run_id, tmp_path / str(n), weights=bytes([n])) for n in range(5)]
    registry.promote(versions[0], expected_champion=None)
    outcomes = list(process_pool.map(promote_version, [store_uri] * 4, ["2", "3", "4", "5"]))
    [winner] = [outcome for outcome in outcomes if outcome != "moved"]
    assert registry.resolve("sine", CHAMPION).number == winner
    assert registry.resolve("sine", PREVIOUS_CHAMPION) == versions[0]


def open_new_database(uri: str) -> int:
    return len(Registry(uri).list_versions("sine"))


def test_four_processes_can_create_a_database_concurrently(tmp_path: Path, process_pool: ProcessPoolExecutor) -> None:
    new_uri = f"sqlite:///{tmp_path}/new folder/mlflow.db"
    assert list(process_pool.map(open_new_database, [new_uri] * 4)) == [0, 0, 0, 0]


def test_an_unreachable_database_fails_immediately(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database, but long enough to differ from an empty file" * 20)
    with pytest.raises(RegistryError, match=r"cannot be opened: file is not a database\. Check"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.parametrize("uri", ["sqlite:///{}/mlflow.db", "postgresql+psycopg://me:secret@127.0.0.1:1/mlflow"])
def test_a_database_needs_more_than_the_client_of_tracking_servers(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "find_spec", lambda name: None)  # the extra `serve` brings mlflow-skinny
    with pytest.raises(MissingPackage, match=r"'mlflow' for the store.*recurrent-forecaster\[track\]") as caught:
        create_client(uri.format(tmp_path))
    assert "secret" not in caught.value.message
    assert not (tmp_path / "mlflow.db").exists()


def test_an_unreachable_server_fails_within_seconds() -> None:
    started = time.perf_counter()
    with pytest.raises(RegistryError, match=r"the connection was refused\. Check the address of the store"):
        Registry("http://127.0.0.1:9")
    assert time.perf_counter() - started < 15.0


def test_a_server_that_sends_single_bytes_fails_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forecaster.registry.time_limit.measure_call_limit", lambda: 1.0)
    with dripping_server() as address, pytest.raises(RegistryError, match="did not complete its response"):
        Registry(address)


def test_a_database_server_that_refuses_or_hangs_fails_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    started = time.perf_counter()
    with pytest.raises(RegistryError, match=r"The store failed on the store '.*refused") as refused:
        Registry("postgresql+psycopg://test:planted-secret@127.0.0.1:9/mlflow")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    with silent_server() as port, pytest.raises(RegistryError, match="timeout") as hanging:
        Registry(f"postgresql+psycopg://test:planted-secret@127.0.0.1:{port}/mlflow")
    assert time.perf_counter() - started < 15.0
    for message in (str(refused.value), str(hanging.value)):
        assert "\n" not in message
        assert "planted" not in message
    assert not caplog.messages
    assert not capfd.readouterr().err


def test_a_store_address_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:9") as raised:
        Registry("http://somebody:planted-secret@127.0.0.1:9")
    assert "planted" not in f"{raised.value} {raised.value.where}"
