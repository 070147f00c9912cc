"""Hostile content: a re-signed bundle is rejected by the name of the file, at once, whatever it contains."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from forecaster.bundle import artifact
from forecaster.engines.onnx.runner import OnnxEngine
from forecaster.errors import BundleDamaged, BundleError
from forecaster.spec import Layout
from tests.factories import make_fitted_model, make_series, make_spec
from tests.forecaster.bundle.editing import edit_json, edit_manifest, read_json, write_signed

MAX_SECONDS = 5.0
HUGE = 10 << 30
LOADERS: tuple[Callable[[Path], object], ...] = (artifact.load_bundle, artifact.load_predictor)


@pytest.fixture(scope="module")
def saved_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that is served by its graph."""
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    artifact.save_bundle(make_fitted_model(make_spec(base="seasonal_naive")), folder, card="# small\n")
    return folder


@pytest.fixture
def bundle(saved_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_bundle, tmp_path / "bundle"))


@pytest.fixture(autouse=True)
def bounded_time() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < MAX_SECONDS


def edit_golden(bundle: Path, **fields: Any) -> None:
    golden = read_json(bundle, "golden.json")
    for request in golden["requests"]:
        request.update(fields)
    write_signed(bundle, "golden.json", json.dumps(golden))


def edit_graph(bundle: Path, **metadata: str | None) -> None:
    """Sets metadata of the graph; None removes it."""
    graph = onnx.load_from_string((bundle / "rollout.onnx").read_bytes())
    fields = {entry.key: entry.value for entry in graph.metadata_props} | metadata
    del graph.metadata_props[:]
    helper.set_model_props(graph, {key: value for key, value in fields.items() if value is not None})
    write_signed(bundle, "rollout.onnx", graph.SerializeToString())


def repeat_first_key(bundle: Path, name: str) -> None:
    document = read_json(bundle, name)
    key = next(iter(document))
    write_signed(bundle, name, f'{{"{key}": {json.dumps(document[key])}, {json.dumps(document)[1:]}')


NESTED = '{"a":' * 100_000 + "1" + "}" * 100_000
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no golden requests": (lambda bundle: edit_json(bundle, "golden.json", requests=[]), "golden.json"),
    "a golden horizon of 10^9": (lambda bundle: edit_json(bundle, "golden.json", horizon=10**9), "golden.json"),
    "a golden horizon of 0": (lambda bundle: edit_json(bundle, "golden.json", horizon=0), "golden.json"),
    "a short golden forecast": (lambda bundle: edit_golden(bundle, mean=[1.0]), "golden.json"),
    "a golden forecast of a blend": (lambda bundle: edit_golden(bundle, network=[1.0] * 5), "golden.json"),
    "a golden history without values": (lambda bundle: edit_golden(bundle, y=[None] * 16), "golden.json"),
    "a golden history too short": (lambda bundle: edit_golden(bundle, y=[1.0]), "golden.json"),
    "a golden history too long": (lambda bundle: edit_golden(bundle, y=[1.0] * 49), "golden.json"),
    "golden values so large that any forecast matches": (
        lambda bundle: edit_golden(bundle, y=[1e300] * 16),
        "golden.json",
    ),
    "a golden start out of range": (lambda bundle: edit_golden(bundle, start="9" * 5000), "bundle"),
    "golden values that are NaN": (
        lambda bundle: write_signed(
            bundle, "golden.json", '{"horizon": 5, "requests": [{"start": "2001", "y": [NaN]}]}'
        ),
        "golden.json",
    ),
    **{
        f"a key of {name} twice": (lambda bundle, name=name: repeat_first_key(bundle, name), name)
        for name in ("spec.json", "encoding.json", "golden.json")
    },
    "a key of the manifest twice": (
        lambda bundle: (bundle / "manifest.json").write_text(
            '{"season": 4, ' + (bundle / "manifest.json").read_text().lstrip("{ \n")
        ),
        "manifest.json",
    ),
    "a deep manifest": (lambda bundle: (bundle / "manifest.json").write_text(NESTED), "manifest.json"),
    "a deep specification": (lambda bundle: write_signed(bundle, "spec.json", NESTED), "spec.json"),
    "deep facts": (
        lambda bundle: (bundle / "manifest.json").write_text(
            (bundle / "manifest.json")
            .read_text()
            .replace('"facts":{}', f'"facts":{NESTED}')
            .replace('"facts": {}', f'"facts": {NESTED}')
        ),
        "manifest.json",
    ),
    "facts with an integer of 30 digits": (
        lambda bundle: edit_manifest(bundle, facts={"steps": 10**30}),
        "manifest.json",
    ),
    "facts with an infinity": (
        lambda bundle: (bundle / "manifest.json").write_text(
            json.dumps(read_json(bundle, "manifest.json") | {"facts": {"mae": "inf"}}).replace('"inf"', "1e999")
        ),
        "manifest.json",
    ),
    "a card that is not UTF-8": (lambda bundle: write_signed(bundle, "card.md", b"\xff\xfe"), "card.md"),
    "JSON in UTF-16": (
        lambda bundle: write_signed(bundle, "spec.json", (bundle / "spec.json").read_text().encode("utf-16")),
        "spec.json",
    ),
    "season 0": (lambda bundle: edit_manifest(bundle, season=0), "manifest.json"),
    "season 10^9": (lambda bundle: edit_manifest(bundle, season=10**9), "manifest.json"),
    "another season than that of the specification": (lambda bundle: edit_manifest(bundle, season=5), "manifest.json"),
    "another name": (lambda bundle: edit_manifest(bundle, name="other"), "manifest.json"),
    "another context": (lambda bundle: edit_manifest(bundle, context=17), "manifest.json"),
    "another horizon": (lambda bundle: edit_manifest(bundle, horizon=6), "manifest.json"),
    "levels without a calibration": (lambda bundle: edit_manifest(bundle, levels=[0.1, 0.9]), "manifest.json"),
    "a cutoff that is missing": (lambda bundle: edit_manifest(bundle, cutoff="NaT"), "manifest.json"),
    "files that are declared too large": (
        lambda bundle: edit_manifest(
            bundle,
            files=read_json(bundle, "manifest.json")["files"] | {"card.md": {"sha256": "0" * 64, "size": HUGE}},
        ),
        "manifest.json",
    ),
    "a covariate that the specification does not have": (
        lambda bundle: edit_json(bundle, "encoding.json", numeric={"promo": [0.0, 1.0]}),
        "encoding.json",
    ),
    "a covariate without spread": (
        lambda bundle: edit_json(bundle, "encoding.json", numeric={"promo": [0.0, 0.0]}),
        "encoding.json",
    ),
    "a superfluous graph": (
        lambda bundle: write_signed(bundle, "rollout-2.onnx", (bundle / "rollout.onnx").read_bytes()),
        "rollout-2.onnx",
    ),
    "a graph without a block": (lambda bundle: edit_graph(bundle, block=None), "rollout.onnx"),
    "a graph with a block of 0": (lambda bundle: edit_graph(bundle, block="0"), "rollout.onnx"),
    "a graph with a block of 7": (lambda bundle: edit_graph(bundle, block="7"), "rollout.onnx"),
    "a graph with a segment that is text": (lambda bundle: edit_graph(bundle, segment="one"), "rollout.onnx"),
    "a graph with another lead": (lambda bundle: edit_graph(bundle, lead="-1"), "rollout.onnx"),
    "a graph with another number of targets": (lambda bundle: edit_graph(bundle, targets="2"), "rollout.onnx"),
    "a graph of another format": (lambda bundle: edit_graph(bundle, format="2"), "rollout.onnx"),
    "a graph with other inputs": (
        lambda bundle: write_signed(bundle, "rollout.onnx", build_endless_graph(inputs=["values"])),
        "rollout.onnx",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_invalid_content_with_a_matching_digest_is_rejected_by_name(bundle: Path, case: str) -> None:
    damage, where = CASES[case]
    artifact.load_bundle(bundle)
    damage(bundle)
    for load in LOADERS:
        with pytest.raises(BundleError) as error:
            load(bundle)
        assert str(error.value.where).endswith(where), error.value


def test_a_network_larger_than_its_weights_is_rejected_before_it_is_built(bundle: Path) -> None:
    edit_json(bundle, "spec.json", network={"layers": 16, "hidden": 4096})  # 6 GB
    with pytest.raises(BundleDamaged, match=r"of shape \(1, 4096\); found \(1, 6\)") as error:
        artifact.load_bundle(bundle)
    assert error.value.where == "weights.safetensors"


def build_endless_graph(inputs: list[str]) -> bytes:
    """Builds a graph whose loop does not end, with the metadata of the small network."""
    steps = helper.make_tensor_value_info("step", TensorProto.INT64, [])
    go, going = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "going"))
    total, next_total = (helper.make_tensor_value_info(name, TensorProto.DOUBLE, [1]) for name in ("total", "next"))
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["going"]), helper.make_node("Add", ["total", "one"], ["next"])],
        "body",
        [steps, go, total],
        [going, next_total],
        [helper.make_tensor("one", TensorProto.DOUBLE, [1], [1.0])],
    )
    constants = [
        helper.make_tensor("trips", TensorProto.INT64, [], [2**62]),
        helper.make_tensor("always", TensorProto.BOOL, [], [True]),
        helper.make_tensor("zero", TensorProto.DOUBLE, [1], [0.0]),
    ]
    available = {
        "values": helper.make_tensor_value_info("values", TensorProto.DOUBLE, ["row", "step"]),
        "horizon": helper.make_tensor_value_info("horizon", TensorProto.INT64, [1]),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["trips", "always", "zero"], ["sum"], body=body),
            helper.make_node("Add", ["values", "sum"], ["forecast"]),
        ],
        "endless",
        [available[name] for name in inputs],
        [helper.make_tensor_value_info("forecast", TensorProto.DOUBLE, ["row", "step"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"format": "1", "block": "1", "segment": "1", "lead": "4", "targets": "1"})
    return bytes(model.SerializeToString())


def test_a_graph_with_an_endless_loop_is_rejected_after_the_time_limit(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = build_endless_graph(inputs=["values", "horizon"])
    layout = Layout.from_spec(artifact.load_bundle(bundle).spec, season=4)
    OnnxEngine(content).validate_sizes(layout, num_covariates=0, num_static=0)  # nothing but its loop is wrong
    write_signed(bundle, "rollout.onnx", content)
    monkeypatch.setattr(artifact, "MAX_REPLAY_S", 0.2)
    for load in LOADERS:
        with pytest.raises(BundleDamaged, match="terminate"):
            load(bundle)


def test_the_time_limit_ends_with_the_load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "MAX_REPLAY_S", 0.2)
    predictor = artifact.load_predictor(bundle)
    time.sleep(0.3)
    assert np.isfinite(predictor.forecast(make_series(np.arange(16)), 5).mean).all()
