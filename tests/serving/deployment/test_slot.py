"""The slot: the model in use is replaced atomically, by the new model or not at all."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forecaster.bundle import artifact
from forecaster.engines.kernel import KernelEngine
from forecaster.engines.onnx.runner import OnnxEngine
from forecaster.model.recurrence.compiled import load_compiled_backend
from forecaster.prediction.predictor import Predictor
from serving.deployment import local_rollback, releases, status
from serving.deployment import slot as slots
from serving.deployment.slot import DeployedModel, Slot
from tests.factories import make_fitted_model, make_spec
from tests.serving.conftest import LastValuePredictor, MakeClient, load_stub, publish_stub, series_payload


def make_bundle(folder: Path) -> Slot:
    return Slot(folder, load=load_stub, reload_s=0.005)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.002)


EXPECTED_CHECK_ERRORS = {
    "a loop of links": "OSError: Too many levels of symbolic links",
    "a link to nowhere": "FileNotFoundError: No such file or directory",
    "no release": "FileNotFoundError: No such file or directory",
    "not UTF-8": "UnicodeDecodeError",
}


def shift_in_use(model: DeployedModel | None) -> float:
    assert model is not None
    assert isinstance(model.predictor, LastValuePredictor)
    return model.predictor.shift


def test_a_bundle_unsupported_by_the_kernel_is_served_by_its_onnx_graph(tmp_path: Path) -> None:
    artifact.save_bundle(make_fitted_model(make_spec(base="seasonal_naive")), tmp_path / "bundle", card="")
    predictor = slots.load_bundle(tmp_path / "bundle")
    assert isinstance(predictor, Predictor)
    assert isinstance(predictor.engine, OnnxEngine)


@pytest.mark.skipif(load_compiled_backend() is None, reason="the kernel was not compiled")
def test_a_bundle_with_a_supported_network_is_served_by_the_kernel(tmp_path: Path) -> None:
    artifact.save_bundle(make_fitted_model(make_spec()), tmp_path / "bundle", card="")
    predictor = slots.load_bundle(tmp_path / "bundle")
    assert isinstance(predictor, Predictor)
    assert isinstance(predictor.engine, KernelEngine)


def test_an_empty_slot_has_no_model_until_one_is_published(slot_folder: Path) -> None:
    slot = make_bundle(slot_folder)
    slot.reload_if_changed()
    assert slot.current is None
    release = publish_stub(slot_folder)
    slot.reload_if_changed()
    assert slot.current is not None
    assert slot.current.release == release == releases.current_release(slot_folder)


def test_a_published_model_is_swapped_atomically_under_concurrent_readers(slot_folder: Path) -> None:
    publish_stub(slot_folder, version="0", shift=0.0)
    slot = make_bundle(slot_folder)
    slot.reload_if_changed()
    slot.start()
    observed: set[tuple[str, float]] = set()
    done = threading.Event()

    def read() -> None:
        is_last = False
        while not is_last:
            is_last = done.is_set()  # reads once more after the last publication
            model = slot.current
            assert model is not None
            observed.add((model.release.version, shift_in_use(model)))
            time.sleep(0.0002)  # busy loops would keep the GIL from the other threads

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for version in range(1, 6):
            publish_stub(slot_folder, version=str(version), shift=float(version))
            deadline = time.monotonic() + 5
            while slot.current is not None and slot.current.release.version != str(version):
                assert time.monotonic() < deadline, "the new model was not loaded"
                time.sleep(0.002)
    finally:
        done.set()
        for reader in readers:
            reader.join()
        slot.stop()
    assert observed <= {(str(version), float(version)) for version in range(6)}
    assert ("5", 5.0) in observed


def publish_damaged(folder: Path, manifest: str) -> None:
    with releases.staging(folder) as draft:
        (draft / "bundle").mkdir()
        (draft / "bundle" / "manifest.json").write_text(manifest)
        (draft / "bundle" / "card.md").write_text("")
        release = releases.Release(name="stub", version="9", digest=artifact.compute_bundle_digest(draft / "bundle"))
        releases.publish(folder, draft / "bundle", release)


@pytest.mark.parametrize(
    "manifest",
    ['{"bad": 1}', "not json", '{"shift": 1e999, "freq": "h"}', '{"shift": 0.0, "freq": "no frequency"}'],
)
def test_a_bad_bundle_is_rejected_with_a_reason_and_the_old_model_is_kept(
    slot_folder: Path, manifest: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish_stub(slot_folder, shift=7.0)
    slot = make_bundle(slot_folder)
    slot.reload_if_changed()
    before = slot.current
    publish_damaged(slot_folder, manifest)
    slot.reload_if_changed()
    slot.reload_if_changed()
    assert slot.current is before
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1, "a rejected bundle is not loaded again at every check"
    publish_stub(slot_folder, version="2", shift=8.0)
    slot.reload_if_changed()
    assert shift_in_use(slot.current) == 8.0


def test_a_bundle_with_a_different_digest_is_rejected(slot_folder: Path) -> None:
    publish_stub(slot_folder)
    (slot_folder / "current" / "bundle" / "manifest.json").write_text(json.dumps({"shift": 1.0, "freq": "h"}))
    slot = make_bundle(slot_folder)
    slot.reload_if_changed()
    assert slot.current is None


SPECIAL_FILES: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a link to an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a huge file": lambda path: (path.touch(), os.truncate(path, 10 << 30)),  # sparse
}


@pytest.mark.parametrize("damage", [*SPECIAL_FILES, "no release", "broken release", "no folder", "a folder for a link"])
def test_a_damaged_slot_is_treated_as_empty(slot_folder: Path, damage: str) -> None:
    publish_stub(slot_folder)
    release = slot_folder / "current" / "release.json"
    if damage == "no release":
        release.unlink()
    elif damage in SPECIAL_FILES:
        release.unlink()
        SPECIAL_FILES[damage](release)
    elif damage == "broken release":
        release.write_text('{"name": 1}')
    else:
        (slot_folder / "current").unlink()
        if damage == "a folder for a link":
            (slot_folder / "current").mkdir()
        else:
            (slot_folder / "current").symlink_to("releases/nowhere")
    slot = make_bundle(slot_folder)
    slot.reload_if_changed()
    assert slot.current is None
    assert releases.current_release(slot_folder) is None


def replace_link(folder: Path, target: str) -> None:
    """Replaces the link of a slot at once, so that no check finds it missing."""
    (folder / "draft").symlink_to(target)
    (folder / "draft").replace(folder / "current")


@pytest.mark.parametrize("damage", ["a loop of links", "a link to nowhere", "no release", "not UTF-8"])
def test_a_failed_check_of_the_slot_is_reported_and_the_next_one_takes_a_new_model(
    slot_folder: Path, make_client: MakeClient, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish_stub(slot_folder, version="1", shift=1.0)
    client = make_client()
    release = slot_folder / "current" / "release.json"
    if damage == "a loop of links":
        replace_link(slot_folder, "current")
    elif damage == "a link to nowhere":
        replace_link(slot_folder, "releases/nowhere")
    elif damage == "no release":
        release.unlink()
    else:
        release.write_bytes(b"\xff\xfe")
    wait_until(lambda: client.slot.last_check.error == EXPECTED_CHECK_ERRORS[damage])
    for path in ("/readyz", "/v1/model"):
        check = client.get(path).json()["slot"]
        assert check["error"] == EXPECTED_CHECK_ERRORS[damage]
        assert 0 <= check["checked_s"] < 5
    time.sleep(0.05)  # five more checks
    errors = [record for record in caplog.records if "the slot cannot be checked" in record.getMessage()]
    assert len(errors) == 1, "it is logged once, not at every check"
    second = publish_stub(slot_folder, version="2", shift=2.0)
    wait_until(lambda: client.slot.current is not None and client.slot.current.release == second)
    wait_until(lambda: client.get("/readyz").json()["slot"]["error"] is None)


def test_a_service_without_a_model_says_why_its_slot_cannot_be_checked(
    slot_folder: Path, make_client: MakeClient
) -> None:
    publish_stub(slot_folder)
    replace_link(slot_folder, "current")
    response = make_client().get("/readyz")
    assert response.status_code == 503
    assert "Too many levels of symbolic links" in response.json()["error"]["message"]
    assert releases.current_release(slot_folder) is None
    releases.prune_releases(slot_folder, keep=2)
    assert str(slot_folder) not in response.text


@pytest.mark.parametrize("error", [SystemExit, MemoryError, BaseException])
def test_no_exception_of_a_bundle_or_a_callback_ends_the_watcher(slot_folder: Path, error: type[BaseException]) -> None:
    failing: list[str] = []

    def load(folder: Path) -> LastValuePredictor:
        if "load" in failing:
            raise error
        return load_stub(folder)

    def on_model_change(_: str) -> None:
        if "callback" in failing:
            raise error

    slot = Slot(slot_folder, load=load, reload_s=0.005, retry_s=0.0, on_model_change=on_model_change)
    slot.start()
    try:
        failing.append("load")
        publish_stub(slot_folder)
        wait_until(lambda: slot.rejection is not None)
        failing[:] = ["callback"]
        wait_until(lambda: slot.last_check.error == error.__name__)
        failing.clear()
        publish_stub(slot_folder, version="2", shift=2.0)
        wait_until(lambda: slot.current is not None and shift_in_use(slot.current) == 2.0)
    finally:
        slot.stop()


def test_an_empty_slot_is_checked_without_an_error(slot_folder: Path) -> None:
    slot = make_bundle(slot_folder)
    assert slot.last_check.to_status() == status.SlotCheckStatus(checked_s=None, error=None)
    slot.reload_if_changed()
    assert slot.last_check.checked_at is not None
    assert slot.last_check.error is None


@pytest.mark.parametrize("damage", [*SPECIAL_FILES, "not UTF-8"])
@pytest.mark.parametrize("name", ["manifest.json", "card.md"])
def test_a_slot_whose_bundle_is_not_made_of_regular_files_keeps_the_old_model(
    slot_folder: Path, name: str, damage: str
) -> None:
    publish_stub(slot_folder, version="1", shift=1.0)
    slot = make_bundle(slot_folder)
    slot.reload_if_changed()
    publish_stub(slot_folder, version="2", shift=2.0)
    path = slot_folder / "current" / "bundle" / name
    path.unlink()
    if damage in SPECIAL_FILES:
        SPECIAL_FILES[damage](path)
    else:
        path.write_bytes(b"\xff\xfe")
    slot.reload_if_changed()
    assert shift_in_use(slot.current) == 1.0
    assert slot.rejection is not None
    assert "bundle_damaged" in slot.rejection.reason


@pytest.mark.parametrize("damage", SPECIAL_FILES)
def test_the_other_files_of_a_slot_are_not_read_unless_they_are_small_regular_files(
    slot_folder: Path, damage: str
) -> None:
    slot_folder.mkdir(exist_ok=True)
    for name in ("follower.json", "pinned.json"):
        SPECIAL_FILES[damage](slot_folder / name)
    assert status.read_follower_state(slot_folder) == status.FollowerState()
    assert local_rollback.read_rollback(slot_folder) is None


def test_publishing_an_existing_release_again_updates_its_version(slot_folder: Path) -> None:
    publish_stub(slot_folder, version="1", shift=1.0)
    publish_stub(slot_folder, version="2", shift=2.0)
    slot = make_bundle(slot_folder)
    slot.reload_if_changed()
    publish_stub(slot_folder, version="3", shift=1.0)
    slot.reload_if_changed()
    assert slot.current is not None
    assert (slot.current.release.version, shift_in_use(slot.current)) == ("3", 1.0)
    assert len(list((slot_folder / "releases").iterdir())) == 2


def test_old_releases_are_pruned_but_never_the_current_one(slot_folder: Path) -> None:
    first = publish_stub(slot_folder, version="0", shift=0.0)
    for version in range(1, 5):
        publish_stub(slot_folder, version=str(version), shift=float(version))
    publish_stub(slot_folder, version="0", shift=0.0)
    releases.prune_releases(slot_folder, keep=3)
    assert len(list((slot_folder / "releases").iterdir())) == 3
    assert releases.current_release(slot_folder) == first


def test_a_running_server_deploys_a_new_model(slot_folder: Path, make_client: MakeClient) -> None:
    client = make_client()
    request = {"series": [series_payload()], "horizon": 1}
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 503
    assert client.get("/v1/model").status_code == 503
    response = client.post("/v1/forecast", json=request)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
    for shift in (1.0, 2.0):
        release = publish_stub(slot_folder, version=str(shift), shift=shift)
        deadline = time.monotonic() + 5
        while client.slot.current is None or client.slot.current.release != release:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        response = client.post("/v1/forecast", json=request)
        assert response.json()["model"] == release.model_dump()
        assert response.json()["forecasts"][0]["mean"] == [2.5 + shift]
    readiness = client.get("/readyz").json()
    assert readiness["model"] == release.model_dump()
    assert readiness["age_s"] >= 0
