"""Readiness and reload under failures of the registry or of bundles: the old model stays in use, and the reason is reported."""

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
from forecaster.registry.registry import BundleVersion, Registry
from forecaster.storage.failpoints import ENABLED_VARIABLE, POINTS_VARIABLE, FailPointError
from serving.deployment import releases, status
from serving.deployment.follower import FollowTarget, follow, install_or_reject, install_version
from serving.deployment.releases import Release, publish, staging
from serving.deployment.slot import Slot, load_bundle
from tests.case_selection import fail_points_of
from tests.factories import make_fitted_model, make_spec
from tests.serving.conftest import AppClient, MakeClient, load_stub, publish_stub, series_payload, write_stub
from tests.serving.deployment.test_follower import FakeRegistry, StopFollowing

pytestmark = pytest.mark.integration

GOOD_REQUEST = {"series": [series_payload()], "horizon": 2}
FOLLOWING_SETTINGS = {"registry": "http://127.0.0.1:9", "model": "sales", "poll_s": 1.0}


@pytest.fixture
def followed_model(slot_folder: Path) -> FollowTarget:
    return FollowTarget("sales", "champion", slot_folder, keep=2)


def poll_registry(connect: Callable[[], Any], target: FollowTarget, count: int = 1) -> None:
    """Runs the first polls of a follower."""
    remaining = iter(range(count - 1))

    def pause(_: float) -> None:
        if next(remaining, None) is None:
            raise StopFollowing

    with pytest.raises(StopFollowing):
        follow(
            connect,
            target,
            install=lambda version: install_or_reject(connect(), version, target, verify=load_stub),
            poll_s=0,
            retry_s=1000,
            sleep=pause,
        )


def get_json(client: AppClient, path: str = "/readyz") -> dict[str, Any]:
    response = client.get(path)
    assert response.status_code == 200, response.text
    payload: dict[str, Any] = response.json()
    return payload


def test_a_current_follower_reports_ages_and_no_reason(
    tmp_path: Path, followed_model: FollowTarget, make_client: MakeClient
) -> None:
    registry = FakeRegistry(tmp_path / "registry")
    registry.promote("1", shift=1.0)
    poll_registry(lambda: registry, followed_model)
    client = make_client(**FOLLOWING_SETTINGS)
    for path in ("/readyz", "/ping", "/v1/model"):
        payload = get_json(client, path)
        assert payload["follower"]["behind"] is None
        assert 0 <= payload["follower"]["looked_s"] < 60
        assert 0 <= payload["follower"]["reached_s"] < 60
        assert "refused" not in payload
    assert "follower" not in get_json(make_client()), "a server without a registry has no follower"


def test_an_unavailable_registry_changes_only_the_age_and_the_reason(
    tmp_path: Path, followed_model: FollowTarget, make_client: MakeClient
) -> None:
    registry = FakeRegistry(tmp_path / "registry")
    registry.promote("1", shift=1.0)
    poll_registry(lambda: registry, followed_model)
    client = make_client(**FOLLOWING_SETTINGS)
    before = client.post("/v1/forecast", json=GOOD_REQUEST).json()
    reached_at = status.read_follower_state(followed_model.slot).reached_at
    registry.down = True
    poll_registry(lambda: registry, followed_model)
    follower = get_json(client)["follower"]
    assert follower["behind"] == "the registry could not be followed (ConnectionError)"
    assert status.read_follower_state(followed_model.slot).reached_at == reached_at, (
        "a restarted follower keeps the time"
    )
    assert client.post("/v1/forecast", json=GOOD_REQUEST).json() == before
    registry.down = False
    poll_registry(lambda: registry, followed_model)
    assert get_json(client)["follower"]["behind"] is None


@pytest.fixture
def unresponsive_address() -> Iterator[str]:
    """An address that accepts connections and never responds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class UnresponsiveRegistry:
    """A registry behind an address that never responds."""

    def __init__(self, url: str) -> None:
        self.url = url

    def resolve(self, name: str, alias: str) -> BundleVersion:
        raise AssertionError(httpx.get(self.url, timeout=1.0))

    def fetch(self, version: BundleVersion, into: Path) -> Path:
        raise AssertionError("nothing was resolved")


@pytest.mark.parametrize("make", [UnresponsiveRegistry, pytest.param(Registry, marks=pytest.mark.integration)])
def test_an_unresponsive_registry_blocks_nobody(
    followed_model: FollowTarget,
    make_client: MakeClient,
    unresponsive_address: str,
    make: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")  # seconds; by default the follower waits for ten
    publish_stub(followed_model.slot)
    client = make_client(**FOLLOWING_SETTINGS)
    before = client.post("/v1/forecast", json=GOOD_REQUEST).json()
    thread = threading.Thread(target=poll_registry, args=(lambda: make(unresponsive_address), followed_model))
    thread.start()
    durations = []
    while thread.is_alive():
        started_at = time.monotonic()
        assert get_json(client)["follower"]["reached_s"] is None
        assert client.post("/v1/forecast", json=GOOD_REQUEST).json() == before
        durations.append(time.monotonic() - started_at)
        time.sleep(0.05)
    assert len(durations) >= 3, "the follower waited, and requests did not"
    assert float(np.median(durations)) < 0.5
    assert get_json(client)["follower"]["behind"].startswith("the registry could not be followed")


def test_a_silent_follower_is_reported(followed_model: FollowTarget, make_client: MakeClient) -> None:
    publish_stub(followed_model.slot)
    client = make_client(**FOLLOWING_SETTINGS)
    assert get_json(client)["follower"] == {
        "looked_s": None,
        "reached_s": None,
        "behind": "the follower has not polled the registry yet",
    }
    status.write_follower_state(
        followed_model.slot, status.FollowerState(looked_at=time.time() - 500, reached_at=time.time() - 500)
    )
    assert get_json(client)["follower"]["behind"] == "the follower has not polled the registry for 500 s"
    (followed_model.slot / "follower.json").write_text("{")
    assert get_json(client)["follower"]["looked_s"] is None


def test_a_server_starts_with_the_last_verified_model_without_the_registry(
    tmp_path: Path, followed_model: FollowTarget, make_client: MakeClient
) -> None:
    registry = FakeRegistry(tmp_path / "registry")
    registry.promote("1", shift=1.0)
    poll_registry(lambda: registry, followed_model)
    registry.down = True
    poll_registry(lambda: registry, followed_model)
    assert get_json(make_client(**FOLLOWING_SETTINGS))["model"]["version"] == "1"


def test_a_server_without_a_model_reports_the_reason(
    tmp_path: Path, followed_model: FollowTarget, make_client: MakeClient
) -> None:
    client = make_client(**FOLLOWING_SETTINGS)

    def read_reason() -> str:
        response = client.get("/readyz")
        assert response.status_code == 503
        return str(response.json()["error"]["message"])

    assert "the follower has not polled the registry yet" in read_reason()
    registry = FakeRegistry(tmp_path / "registry")
    poll_registry(lambda: registry, followed_model)
    assert "no_such_model" in read_reason()
    registry.promote("1", shift=0.0)
    (registry.folder / "1" / "manifest.json").write_text('{"bad": 1}')
    poll_registry(lambda: registry, followed_model, 2)
    assert "bundle_damaged: This bundle is bad" in read_reason(), "also after the second poll, which does not retry"
    assert str(tmp_path) not in read_reason()


def save_random_model(folder: Path, *, seed: int = 1) -> Path:
    artifact.save_bundle(make_fitted_model(make_spec(), seed=seed), folder, card="")
    return folder


def rewrite_file(bundle: Path, name: str, content: bytes) -> None:
    """Replaces a file in a bundle and its manifest entry consistently, like an attacker or a faulty trainer."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": sha256(content).hexdigest(), "size": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def damage_byte(bundle: Path) -> None:
    content = bytearray((bundle / "weights.safetensors").read_bytes())
    content[-3] ^= 0xFF
    (bundle / "weights.safetensors").write_bytes(content)


def change_weights(bundle: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    weights = load_weights((bundle / "weights.safetensors").read_bytes())
    name = next(iter(sorted(weights)))
    rewrite_file(bundle, "weights.safetensors", save_weights({**weights, name: change(weights[name])}))


def change_golden(bundle: Path) -> None:
    golden = json.loads((bundle / "golden.json").read_text())
    golden["requests"][0]["mean"] = [value + 1000 for value in golden["requests"][0]["mean"]]
    rewrite_file(bundle, "golden.json", json.dumps(golden).encode())


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a damaged byte": (damage_byte, "bundle_damaged: Expected weights.safetensors"),
    "another shape": (lambda bundle: change_weights(bundle, lambda weight: weight[:-1]), "bundle_damaged"),
    "weights that are no numbers": (
        lambda bundle: change_weights(bundle, lambda weight: np.full_like(weight, np.nan)),
        "bundle_damaged: Expected finite weights",
    ),
    "other weights": (lambda bundle: change_weights(bundle, lambda weight: weight + 1), "golden_mismatch"),
    "other golden answers": (change_golden, "golden_mismatch"),
    "no graph": (lambda bundle: (bundle / "rollout.onnx").unlink(), "bundle_damaged"),
    "a card cut short": (lambda bundle: (bundle / "manifest.json").write_text("{"), "bundle_damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_worker_and_follower_reject_a_bad_bundle_with_a_reason_and_keep_the_old_model(
    followed_model: FollowTarget, make_client: MakeClient, tmp_path: Path, damage: str
) -> None:
    with staging(followed_model.slot) as draft:
        bundle = save_random_model(draft / "bundle")
        publish(
            followed_model.slot,
            bundle,
            Release(name="small", version="1", digest=artifact.compute_bundle_digest(bundle)),
        )
    client = make_client(load=load_bundle)
    request = {"series": [series_payload(y=[float(value) for value in range(20)])], "horizon": 2}
    before = client.post("/v1/forecast", json=request).json()
    damage_bundle, reason = DAMAGES[damage]
    bad_bundle = save_random_model(tmp_path / "bad", seed=2)
    damage_bundle(bad_bundle)
    version = BundleVersion("small", "2", artifact.compute_bundle_digest(bad_bundle), None)

    class BadBundleRegistry(FakeRegistry):
        def fetch(self, version: BundleVersion, into: Path) -> Path:
            return bad_bundle.rename(into)

    with staging(followed_model.slot) as draft:  # deployed by a follower that did not verify
        draft_bundle = draft / "bundle"
        draft_bundle.mkdir()
        for file in bad_bundle.iterdir():
            (draft_bundle / file.name).write_bytes(file.read_bytes())
        publish(followed_model.slot, draft_bundle, Release(name="small", version="2", digest=version.digest))
    client.slot.reload_if_changed()
    payload = get_json(client)
    assert payload["model"]["version"] == "1"
    assert payload["refused"]["reason"].startswith(reason), payload["refused"]["reason"]
    assert str(tmp_path) not in payload["refused"]["reason"]
    assert client.post("/v1/forecast", json=request).json() == before
    release = releases.current_release(followed_model.slot)
    with pytest.raises(BundleError):
        install_version(BadBundleRegistry(tmp_path), version, followed_model)
    assert releases.current_release(followed_model.slot) == release


def reload_model(folder: Path, version: str) -> None:
    """Does what follower and worker do after a promotion."""
    bundle = folder / "registry" / version

    class SingleVersionRegistry:
        def resolve(self, name: str, alias: str) -> BundleVersion:
            return BundleVersion("sales", version, artifact.compute_bundle_digest(bundle), None)

        def fetch(self, version: BundleVersion, into: Path) -> Path:
            into.mkdir()
            for file in bundle.iterdir():
                (into / file.name).write_bytes(file.read_bytes())
            return into

    registry = SingleVersionRegistry()
    target = FollowTarget("sales", "champion", folder / "slot", keep=2)
    install_version(registry, registry.resolve("", ""), target, verify=load_stub)
    slot = Slot(folder / "slot", load=load_stub)
    slot.reload_if_changed()
    if slot.current is None or slot.current.release.version != version:
        raise FailPointError(str(slot.rejection))


def reload_with_fault(folder: Path, version: str, fault: str) -> None:
    os.environ |= {ENABLED_VARIABLE: "1", POINTS_VARIABLE: fault}
    try:
        reload_model(folder, version)
    except FailPointError:
        os._exit(9)


@pytest.fixture(scope="module")
def fork_context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.mark.parametrize("fault", ["kill", "raise"])
@pytest.mark.parametrize("name", fail_points_of("reload"))
def test_a_killed_or_failed_reload_leaves_the_old_or_the_new_model(
    tmp_path: Path, fork_context: Any, name: str, fault: str
) -> None:
    for version in ("1", "2"):
        write_stub(tmp_path / "registry" / version, shift=float(version))
    reload_model(tmp_path, "1")
    child = fork_context.Process(target=reload_with_fault, args=(tmp_path, "2", f"{name}={fault}"))
    child.start()
    child.join(60)
    assert child.exitcode == (-signal.SIGKILL if fault == "kill" else 9)
    release = releases.current_release(tmp_path / "slot")
    assert release is not None
    is_published = name in ("reload.linked", "reload.before_swap")
    assert release.version == ("2" if is_published else "1")
    worker = Slot(tmp_path / "slot", load=load_stub)
    worker.reload_if_changed()
    assert worker.current is not None
    assert worker.current.release == release, "a new worker loads it"
    reload_model(tmp_path, "2")
    worker.reload_if_changed()
    assert worker.current.release.version == "2"


def test_a_worker_that_fails_before_the_swap_keeps_the_old_model(
    slot_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = publish_stub(slot_folder, version="1")
    worker = Slot(slot_folder, load=load_stub, retry_s=0.0)
    worker.reload_if_changed()
    new = publish_stub(slot_folder, version="2", shift=1.0)
    monkeypatch.setenv(ENABLED_VARIABLE, "1")
    monkeypatch.setenv(POINTS_VARIABLE, "reload.before_swap=raise")
    worker.reload_if_changed()
    assert worker.current is not None
    assert worker.current.release == old
    assert worker.rejection is not None
    monkeypatch.delenv(POINTS_VARIABLE)
    worker.reload_if_changed()
    assert worker.current.release == new
    assert worker.rejection is None


def test_a_foreign_bundle_has_its_own_error_code() -> None:
    assert status.describe_error(BundleDamaged("Expected a in /srv/slot/x."), Path("/srv/slot")) == (
        "bundle_damaged: Expected a in slot/x."
    )
    assert status.describe_error(ValueError("postgresql://me:secret@host"), Path("/srv")) == "ValueError"
