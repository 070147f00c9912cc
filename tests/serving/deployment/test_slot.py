"""The model in use and its replacement: old or new, never neither."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path

import pytest

from forecaster.bundle import artifact
from forecaster.engines.kernel import Plain
from forecaster.engines.onnx.runner import GraphRunner
from forecaster.model.recurrence.compiled import kernel
from forecaster.prediction.predictor import Predictor
from serving.deployment import slot as slots
from serving.deployment.slot import InUse, Slot
from tests.factories import make_forecaster, make_spec
from tests.serving.conftest import LastValue, MakeClient, load_stub, publish_stub, series


def make(folder: Path) -> Slot:
    return Slot(folder, load=load_stub, reload_s=0.005)


def shift(model: InUse | None) -> float:
    assert model is not None
    assert isinstance(model.predictor, LastValue)
    return model.predictor.shift


def test_a_bundle_is_served_on_its_graph_where_the_kernel_does_not_know_its_network(tmp_path: Path) -> None:
    artifact.save(make_forecaster(make_spec(base="seasonal_naive")), tmp_path / "bundle", card="")
    predictor = slots.load_bundle(tmp_path / "bundle")
    assert isinstance(predictor, Predictor)
    assert isinstance(predictor.engine, GraphRunner)


@pytest.mark.skipif(kernel() is None, reason="the kernel was not compiled")
def test_a_bundle_of_a_plain_network_is_served_in_the_kernel(tmp_path: Path) -> None:
    artifact.save(make_forecaster(make_spec()), tmp_path / "bundle", card="")
    predictor = slots.load_bundle(tmp_path / "bundle")
    assert isinstance(predictor, Predictor)
    assert isinstance(predictor.engine, Plain)


def test_an_empty_slot_has_no_model_until_one_is_published(slot_folder: Path) -> None:
    slot = make(slot_folder)
    slot.check()
    assert slot.current is None
    release = publish_stub(slot_folder)
    slot.check()
    assert slot.current is not None
    assert slot.current.release == release == slots.published(slot_folder)


def test_a_published_model_is_swapped_in_under_readers_who_always_see_a_whole_one(slot_folder: Path) -> None:
    publish_stub(slot_folder, version="0", shift=0.0)
    slot = make(slot_folder)
    slot.check()
    slot.start()
    seen: set[tuple[str, float]] = set()
    done = threading.Event()

    def read() -> None:
        last = False
        while not last:
            last = done.is_set()  # once more after that
            model = slot.current
            assert model is not None
            seen.add((model.release.version, shift(model)))
            time.sleep(0.0002)  # spinning readers would keep the interpreter from all others

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for version in range(1, 6):
            publish_stub(slot_folder, version=str(version), shift=float(version))
            deadline = time.monotonic() + 5
            while slot.current is not None and slot.current.release.version != str(version):
                assert time.monotonic() < deadline, "the new model was not taken into use"
                time.sleep(0.002)
    finally:
        done.set()
        for reader in readers:
            reader.join()
        slot.stop()
    assert seen <= {(str(version), float(version)) for version in range(6)}
    assert ("5", 5.0) in seen


def publish_bad(folder: Path, manifest: str) -> None:
    with slots.staging(folder) as draft:
        (draft / "bundle").mkdir()
        (draft / "bundle" / "manifest.json").write_text(manifest)
        (draft / "bundle" / "card.md").write_text("")
        release = slots.Release(name="stub", version="9", digest=artifact.digest(draft / "bundle"))
        slots.publish(folder, draft / "bundle", release)


@pytest.mark.parametrize(
    "manifest",
    ['{"bad": 1}', "not json", '{"shift": 1e999, "freq": "h"}', '{"shift": 0.0, "freq": "no frequency"}'],
)
def test_a_bad_bundle_is_refused_with_a_reason_and_the_old_one_goes_on(
    slot_folder: Path, manifest: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish_stub(slot_folder, shift=7.0)
    slot = make(slot_folder)
    slot.check()
    before = slot.current
    publish_bad(slot_folder, manifest)
    slot.check()
    slot.check()
    assert slot.current is before
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1, "a refused bundle is not loaded again at every look"
    publish_stub(slot_folder, version="2", shift=8.0)
    slot.check()
    assert shift(slot.current) == 8.0


def test_a_bundle_whose_digest_is_another_is_refused(slot_folder: Path) -> None:
    publish_stub(slot_folder)
    (slot_folder / "current" / "bundle" / "manifest.json").write_text(json.dumps({"shift": 1.0, "freq": "h"}))
    slot = make(slot_folder)
    slot.check()
    assert slot.current is None


@pytest.mark.parametrize("damage", ["no release", "broken release", "no folder", "a folder for a link"])
def test_a_damaged_slot_is_no_model_and_no_crash(slot_folder: Path, damage: str) -> None:
    publish_stub(slot_folder)
    release = slot_folder / "current" / "release.json"
    if damage == "no release":
        release.unlink()
    elif damage == "broken release":
        release.write_text('{"name": 1}')
    else:
        (slot_folder / "current").unlink()
        if damage == "a folder for a link":
            (slot_folder / "current").mkdir()
        else:
            (slot_folder / "current").symlink_to("releases/nowhere")
    slot = make(slot_folder)
    slot.check()
    assert slot.current is None
    assert slots.published(slot_folder) is None


def test_going_back_to_a_release_that_is_still_there_takes_its_new_version(slot_folder: Path) -> None:
    publish_stub(slot_folder, version="1", shift=1.0)
    publish_stub(slot_folder, version="2", shift=2.0)
    slot = make(slot_folder)
    slot.check()
    publish_stub(slot_folder, version="3", shift=1.0)
    slot.check()
    assert slot.current is not None
    assert (slot.current.release.version, shift(slot.current)) == ("3", 1.0)
    assert len(list((slot_folder / "releases").iterdir())) == 2


def test_old_releases_are_pruned_and_the_current_one_never(slot_folder: Path) -> None:
    first = publish_stub(slot_folder, version="0", shift=0.0)
    for version in range(1, 5):
        publish_stub(slot_folder, version=str(version), shift=float(version))
    publish_stub(slot_folder, version="0", shift=0.0)
    slots.prune(slot_folder, keep=3)
    assert len(list((slot_folder / "releases").iterdir())) == 3
    assert slots.published(slot_folder) == first


def test_a_server_takes_a_model_into_use_while_it_runs(slot_folder: Path, make_client: MakeClient) -> None:
    client = make_client()
    request = {"series": [series()], "horizon": 1}
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 503
    assert client.get("/v1/model").status_code == 503
    answer = client.post("/v1/forecast", json=request)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    for shifted in (1.0, 2.0):
        release = publish_stub(slot_folder, version=str(shifted), shift=shifted)
        deadline = time.monotonic() + 5
        while client.slot.current is None or client.slot.current.release != release:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        answer = client.post("/v1/forecast", json=request)
        assert answer.json()["model"] == release.model_dump()
        assert answer.json()["forecasts"][0]["mean"] == [2.5 + shifted]
    ready = client.get("/readyz").json()
    assert ready["model"] == release.model_dump()
    assert ready["age_s"] >= 0
