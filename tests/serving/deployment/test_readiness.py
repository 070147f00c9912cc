"""Readiness and reload under fire: whatever becomes of the registry or of a bundle, the old model answers, and says why."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load as load_weights
from safetensors.numpy import save as save_weights

from forecaster.bundle import artifact
from forecaster.errors import BundleDamaged, BundleError
from forecaster.registry.registry import Registry, Version
from forecaster.storage.failpoints import CHOSEN, SWITCH, Broken
from serving.deployment import slot as slots
from serving.deployment import status
from serving.deployment.follower import Target, follow, take
from serving.deployment.slot import Release, Slot, load_bundle, publish, staging
from tests.factories import make_forecaster, make_spec
from tests.serving.conftest import Client, MakeClient, load_stub, publish_stub, series, write_stub
from tests.serving.deployment.test_follower import Enough, FakeRegistry
from tests.sweep import points_of

GOOD = {"series": [series()], "horizon": 2}
FOLLOWING = {"registry": "http://127.0.0.1:9", "model": "sales", "poll_s": 1.0}


@pytest.fixture
def target(slot_folder: Path) -> Target:
    return Target("sales", "champion", slot_folder, keep=2)


def looks(connect: Callable[[], Any], target: Target, count: int = 1) -> None:
    """The follower's first looks."""
    left = iter(range(count - 1))

    def pause(_: float) -> None:
        if next(left, None) is None:
            raise Enough

    with pytest.raises(Enough):
        follow(connect, target, poll_s=0, retry_s=1000, verify=load_stub, pause=pause)


def told(client: Client, path: str = "/readyz") -> dict[str, Any]:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_follower_that_is_up_to_date_has_ages_and_no_reason(
    tmp_path: Path, target: Target, make_client: MakeClient
) -> None:
    registry = FakeRegistry(tmp_path / "registry")
    registry.promote("1", shift=1.0)
    looks(lambda: registry, target)
    client = make_client(**FOLLOWING)
    for path in ("/readyz", "/ping", "/v1/model"):
        found = told(client, path)
        assert found["follower"]["behind"] is None
        assert 0 <= found["follower"]["looked_s"] < 60
        assert 0 <= found["follower"]["reached_s"] < 60
        assert "refused" not in found
    assert "follower" not in told(make_client()), "where nothing is followed there is nothing to tell"


def test_a_registry_that_is_down_changes_nothing_but_the_age_and_the_reason(
    tmp_path: Path, target: Target, make_client: MakeClient
) -> None:
    registry = FakeRegistry(tmp_path / "registry")
    registry.promote("1", shift=1.0)
    looks(lambda: registry, target)
    client = make_client(**FOLLOWING)
    before = client.post("/v1/forecast", json=GOOD).json()
    reached = status.read(target.slot).reached_at
    registry.down = True
    looks(lambda: registry, target)
    found = told(client)["follower"]
    assert found["behind"] == "the registry could not be followed (ConnectionError)"
    assert status.read(target.slot).reached_at == reached, "as a follower that was started anew found it"
    assert client.post("/v1/forecast", json=GOOD).json() == before
    registry.down = False
    looks(lambda: registry, target)
    assert told(client)["follower"]["behind"] is None


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        yield f"http://127.0.0.1:{door.getsockname()[1]}"


class Hole:
    """A registry behind such an address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def resolve(self, name: str, alias: str) -> Version:
        raise AssertionError(httpx.get(self.url, timeout=1.0))

    def fetch(self, version: Version, into: Path) -> Path:
        raise AssertionError("nothing was resolved")


@pytest.mark.parametrize("make", [Hole, pytest.param(Registry, marks=pytest.mark.slow)])
def test_a_registry_that_never_answers_keeps_nobody_waiting(
    target: Target, make_client: MakeClient, black_hole: str, make: Callable[[str], Any]
) -> None:
    publish_stub(target.slot)
    client = make_client(**FOLLOWING)
    before = client.post("/v1/forecast", json=GOOD).json()
    following = threading.Thread(target=looks, args=(lambda: make(black_hole), target))
    following.start()
    waited = []
    while following.is_alive():
        began = time.monotonic()
        assert told(client)["follower"]["reached_s"] is None
        assert client.post("/v1/forecast", json=GOOD).json() == before
        waited.append(time.monotonic() - began)
        time.sleep(0.05)
    assert len(waited) >= 3, "the follower waited, and we did not"
    assert float(np.median(waited)) < 0.5
    assert told(client)["follower"]["behind"].startswith("the registry could not be followed")


def test_a_follower_that_fell_silent_is_told(target: Target, make_client: MakeClient) -> None:
    publish_stub(target.slot)
    client = make_client(**FOLLOWING)
    assert told(client)["follower"] == {
        "looked_s": None,
        "reached_s": None,
        "behind": "the follower has not looked yet",
    }
    status.write(target.slot, status.Standing(looked_at=time.time() - 500, reached_at=time.time() - 500))
    assert told(client)["follower"]["behind"] == "the follower has not looked for 500 s"
    (target.slot / "follower.json").write_text("{")
    assert told(client)["follower"]["looked_s"] is None


def test_a_server_starts_with_what_was_last_verified_though_the_registry_is_down(
    tmp_path: Path, target: Target, make_client: MakeClient
) -> None:
    registry = FakeRegistry(tmp_path / "registry")
    registry.promote("1", shift=1.0)
    looks(lambda: registry, target)
    registry.down = True
    looks(lambda: registry, target)
    assert told(make_client(**FOLLOWING))["model"]["version"] == "1"


def test_a_server_without_a_model_says_why(tmp_path: Path, target: Target, make_client: MakeClient) -> None:
    client = make_client(**FOLLOWING)

    def why() -> str:
        answer = client.get("/readyz")
        assert answer.status_code == 503
        return str(answer.json()["error"]["message"])

    assert "the follower has not looked yet" in why()
    registry = FakeRegistry(tmp_path / "registry")
    looks(lambda: registry, target)
    assert "no_such_model" in why()
    registry.promote("1", shift=0.0)
    (registry.folder / "1" / "manifest.json").write_text('{"bad": 1}')
    looks(lambda: registry, target, 2)
    assert "bundle_damaged: This bundle is bad" in why(), "at the second look too, which does not try again"
    assert str(tmp_path) not in why()


def real(folder: Path, *, seed: int = 1) -> Path:
    artifact.save(make_forecaster(make_spec(), seed=seed), folder, card="")
    return folder


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Another file in a bundle, and a manifest that knows of it: as one who wants to deceive would, or a faulty trainer."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": sha256(content).hexdigest(), "size": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def damaged_byte(bundle: Path) -> None:
    content = bytearray((bundle / "weights.safetensors").read_bytes())
    content[-3] ^= 0xFF
    (bundle / "weights.safetensors").write_bytes(content)


def other_weights(bundle: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    weights = load_weights((bundle / "weights.safetensors").read_bytes())
    name = next(iter(sorted(weights)))
    rewrite(bundle, "weights.safetensors", save_weights({**weights, name: change(weights[name])}))


def other_golden(bundle: Path) -> None:
    golden = json.loads((bundle / "golden.json").read_text())
    golden["requests"][0]["mean"] = [value + 1000 for value in golden["requests"][0]["mean"]]
    rewrite(bundle, "golden.json", json.dumps(golden).encode())


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a damaged byte": (damaged_byte, "bundle_damaged: Expected weights.safetensors"),
    "another shape": (lambda bundle: other_weights(bundle, lambda one: one[:-1]), "bundle_damaged"),
    "weights that are no numbers": (
        lambda bundle: other_weights(bundle, lambda one: np.full_like(one, np.nan)),
        "bundle_damaged: Expected finite weights",
    ),
    "other weights": (lambda bundle: other_weights(bundle, lambda one: one + 1), "golden_mismatch"),
    "other golden answers": (other_golden, "golden_mismatch"),
    "no graph": (lambda bundle: (bundle / "rollout.onnx").unlink(), "bundle_damaged"),
    "a card cut short": (lambda bundle: (bundle / "manifest.json").write_text("{"), "bundle_damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_bundle_is_refused_with_its_reason_by_worker_and_follower_and_the_old_one_goes_on(
    target: Target, make_client: MakeClient, tmp_path: Path, damage: str
) -> None:
    with staging(target.slot) as draft:
        bundle = real(draft / "bundle")
        publish(target.slot, bundle, Release(name="small", version="1", digest=artifact.digest(bundle)))
    client = make_client(load=load_bundle)
    request = {"series": [series(y=[float(value) for value in range(20)])], "horizon": 2}
    before = client.post("/v1/forecast", json=request).json()
    spoil, reason = DAMAGES[damage]
    bad = real(tmp_path / "bad", seed=2)
    spoil(bad)
    version = Version("small", "2", artifact.digest(bad), None)

    class Store(FakeRegistry):
        def fetch(self, version: Version, into: Path) -> Path:
            return bad.rename(into)

    with staging(target.slot) as draft:  # a follower that did not look
        copy = draft / "bundle"
        copy.mkdir()
        for file in bad.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        publish(target.slot, copy, Release(name="small", version="2", digest=version.digest))
    client.slot.check()
    found = told(client)
    assert found["model"]["version"] == "1"
    assert found["refused"]["reason"].startswith(reason), found["refused"]["reason"]
    assert str(tmp_path) not in found["refused"]["reason"]
    assert client.post("/v1/forecast", json=request).json() == before
    held = slots.published(target.slot)
    with pytest.raises(BundleError):
        take(Store(tmp_path), version, target)
    assert slots.published(target.slot) == held


def reload(folder: Path, version: str) -> None:
    """What follower and worker do when a version was promoted."""
    bundle = folder / "registry" / version

    class Store:
        def resolve(self, name: str, alias: str) -> Version:
            return Version("sales", version, artifact.digest(bundle), None)

        def fetch(self, wanted: Version, into: Path) -> Path:
            into.mkdir()
            for file in bundle.iterdir():
                (into / file.name).write_bytes(file.read_bytes())
            return into

    store = Store()
    take(store, store.resolve("", ""), Target("sales", "champion", folder / "slot", keep=2), verify=load_stub)
    slot = Slot(folder / "slot", load=load_stub)
    slot.check()
    if slot.current is None or slot.current.release.version != version:
        raise Broken(str(slot.refusal))


def reload_broken(folder: Path, version: str, chosen: str) -> None:
    os.environ |= {SWITCH: "1", CHOSEN: chosen}
    try:
        reload(folder, version)
    except Broken:
        os._exit(9)


@pytest.fixture(scope="module")
def forking() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.mark.parametrize("what", ["kill", "raise"])
@pytest.mark.parametrize("name", points_of("reload"))
def test_a_reload_that_is_killed_or_broken_leaves_the_old_or_the_new_model(
    tmp_path: Path, forking: Any, name: str, what: str
) -> None:
    for version in ("1", "2"):
        write_stub(tmp_path / "registry" / version, shift=float(version))
    reload(tmp_path, "1")
    child = forking.Process(target=reload_broken, args=(tmp_path, "2", f"{name}={what}"))
    child.start()
    child.join(60)
    assert child.exitcode == (-signal.SIGKILL if what == "kill" else 9)
    release = slots.published(tmp_path / "slot")
    assert release is not None
    behind = name in ("reload.linked", "reload.before_swap")
    assert release.version == ("2" if behind else "1")
    worker = Slot(tmp_path / "slot", load=load_stub)
    worker.check()
    assert worker.current is not None
    assert worker.current.release == release, "a worker that starts now has it"
    reload(tmp_path, "2")
    worker.check()
    assert worker.current.release.version == "2"


def test_a_worker_broken_before_the_swap_goes_on_with_the_old_model(
    slot_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = publish_stub(slot_folder, version="1")
    worker = Slot(slot_folder, load=load_stub, retry_s=0.0)
    worker.check()
    new = publish_stub(slot_folder, version="2", shift=1.0)
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setenv(CHOSEN, "reload.before_swap=raise")
    worker.check()
    assert worker.current is not None
    assert worker.current.release == old
    assert worker.refusal is not None
    monkeypatch.delenv(CHOSEN)
    worker.check()
    assert worker.current.release == new
    assert worker.refusal is None


def test_a_bundle_that_is_no_bundle_of_ours_is_told_by_its_own_word() -> None:
    assert status.reason(BundleDamaged("Expected a in /srv/slot/x."), Path("/srv/slot")) == (
        "bundle_damaged: Expected a in slot/x."
    )
    assert status.reason(ValueError("postgresql://me:secret@host"), Path("/srv")) == "ValueError"
