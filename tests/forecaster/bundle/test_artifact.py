"""Tests that a bundle is loaded only if it is complete and matches its manifest and its golden requests."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from forecaster.bundle import artifact, files
from forecaster.engines.onnx.export import export_onnx
from forecaster.engines.onnx.runner import OnnxEngine
from forecaster.errors import BundleDamaged, BundleError, GoldenMismatch
from forecaster.prediction import engine_choice
from forecaster.storage import atomic
from tests.factories import make_fitted_model, make_spec

FILES = [
    "card.md",
    "conformal.json",
    "encoding.json",
    "golden.json",
    "manifest.json",
    "rollout.onnx",
    "spec.json",
    "weights.safetensors",
]


@pytest.fixture(scope="module")
def saved_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    artifact.save_bundle(make_fitted_model(make_spec(cell="lstm", layers=2)), folder, card="# small\n")
    return folder


@pytest.fixture
def bundle_copy(saved_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_bundle, tmp_path / "bundle"))


def rewrite_file(bundle: Path, name: str, content: bytes) -> None:
    """Rewrites a file and its entry in the manifest, so that the digest matches."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def edit_weights(bundle: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_weights((bundle / "weights.safetensors").read_bytes())
    edit(weights)
    rewrite_file(bundle, "weights.safetensors", save_weights(weights))


def edit_manifest(bundle: Path, **fields: Any) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    (bundle / "manifest.json").write_text(json.dumps(manifest | fields))


def test_a_bundle_contains_exactly_the_expected_files(bundle_copy: Path) -> None:
    assert sorted(path.name for path in bundle_copy.iterdir()) == FILES
    assert (bundle_copy / "card.md").read_text() == "# small\n"
    assert bundle_copy.stat().st_mode & 0o777 == 0o755
    manifest = artifact.read_manifest(bundle_copy)
    assert sorted([*manifest.files, "manifest.json"]) == FILES
    for name, entry in manifest.files.items():
        content = (bundle_copy / name).read_bytes()
        assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (manifest.name, manifest.freq, manifest.season, manifest.context) == ("small", "h", 4, 16)
    artifact.load_bundle(bundle_copy)


def test_saving_the_same_model_twice_gives_identical_bundles(tmp_path: Path) -> None:
    fitted_model = make_fitted_model(make_spec())
    first, second = (artifact.save_bundle(fitted_model, tmp_path / name, card="") for name in ("first", "second"))
    assert first == second == artifact.compute_bundle_digest(tmp_path / "first")
    assert artifact.save_bundle(make_fitted_model(make_spec(), seed=2), tmp_path / "third", card="") != first


@pytest.mark.parametrize("position", [0, 0.5, -1])
@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_a_file_with_one_changed_byte_is_rejected(bundle_copy: Path, name: str, position: float) -> None:
    content = bytearray((bundle_copy / name).read_bytes())
    content[int(position * len(content)) if position > 0 else int(position)] ^= 1
    (bundle_copy / name).write_bytes(content)
    with pytest.raises(BundleDamaged, match="its digest differs") as error:
        artifact.load_bundle(bundle_copy)
    assert error.value.where == name


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_rejected(bundle_copy: Path, name: str) -> None:
    content = (bundle_copy / name).read_bytes()
    (bundle_copy / name).write_bytes(content[:-1])
    with pytest.raises(BundleDamaged) as error:
        artifact.load_bundle(bundle_copy)
    assert error.value.where == name


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_in_the_error(bundle_copy: Path, name: str) -> None:
    (bundle_copy / name).unlink()
    with pytest.raises(BundleDamaged, match="cannot be read") as error:
        artifact.load_bundle(bundle_copy)
    assert error.value.where == name


def test_any_change_to_the_manifest_changes_the_digest(bundle_copy: Path) -> None:
    digest = artifact.compute_bundle_digest(bundle_copy)
    edit_manifest(bundle_copy, name="other")
    assert artifact.compute_bundle_digest(bundle_copy) != digest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema_version": 2}, "schema 2. Use the version of forecaster that wrote it"),
        ({"freq": "sometimes"}, "'sometimes' is not known"),
        ({"cutoff": "then"}, "Expected the manifest of a bundle in .*: then"),
        ({"unknown": 1}, "unknown"),
        ({"files": {}}, "expected an entry for spec.json"),
        ({"season": "four"}, "season"),
    ],
)
def test_a_manifest_with_invalid_fields_is_rejected(bundle_copy: Path, fields: dict[str, Any], message: str) -> None:
    edit_manifest(bundle_copy, **fields)
    with pytest.raises(BundleDamaged, match=message):
        artifact.load_bundle(bundle_copy)


@pytest.mark.parametrize("content", [b"", b"[]", b"not json", b"\xff\xfe", b'{"schema_version": 1}'])
def test_content_that_is_not_a_manifest_is_rejected(bundle_copy: Path, content: bytes) -> None:
    (bundle_copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleDamaged) as error:
        artifact.load_bundle(bundle_copy)
    assert error.value.where == "manifest.json"


@pytest.mark.parametrize("name", ["spec.json", "golden.json", "weights.safetensors", "rollout.onnx"])
@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff" * 64, b"\x80\x04K\x01."])
def test_invalid_content_with_a_matching_digest_is_rejected(bundle_copy: Path, name: str, content: bytes) -> None:
    rewrite_file(bundle_copy, name, content)
    with pytest.raises(BundleDamaged):
        artifact.load_bundle(bundle_copy)


def test_weights_with_a_wrong_shape_are_rejected_by_name(bundle_copy: Path) -> None:
    edit_weights(bundle_copy, lambda weights: weights.update({"output.weight": torch.zeros(1, 7)}))
    with pytest.raises(BundleDamaged, match=r"'output.weight' of shape \(1, 6\); found \(1, 7\)"):
        artifact.load_bundle(bundle_copy)


@pytest.mark.parametrize("change", ["extra", "missing"])
def test_extra_or_missing_weights_are_rejected(bundle_copy: Path, change: str) -> None:
    if change == "extra":
        edit_weights(bundle_copy, lambda weights: weights.update({"more": torch.zeros(1)}))
    else:
        edit_weights(bundle_copy, lambda weights: weights.pop("output.bias"))
    with pytest.raises(BundleDamaged, match=r"'more'|'output\.bias'"):
        artifact.load_bundle(bundle_copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_rejected_even_with_a_matching_digest(bundle_copy: Path, value: float) -> None:
    edit_weights(bundle_copy, lambda weights: weights["output.bias"].fill_(value))
    with pytest.raises(BundleDamaged, match=r"finite weights; 'output\.bias'"):
        artifact.load_bundle(bundle_copy)


@pytest.mark.parametrize("change", [0.01, -1.0])
def test_weights_that_do_not_reproduce_the_golden_forecasts_are_rejected(bundle_copy: Path, change: float) -> None:
    edit_weights(bundle_copy, lambda weights: weights["output.bias"].add_(change))
    with pytest.raises(GoldenMismatch, match="Expected the stored forecast of golden request") as error:
        artifact.load_bundle(bundle_copy)
    assert error.value.where == "golden.json"


def test_an_onnx_graph_of_a_different_network_is_rejected(bundle_copy: Path) -> None:
    rewrite_file(
        bundle_copy, "rollout.onnx", export_onnx(make_fitted_model(make_spec(cell="lstm", layers=2), seed=2).network)
    )
    with pytest.raises(GoldenMismatch, match="Expected the stored forecast of golden request") as error:
        artifact.load_bundle(bundle_copy)
    assert error.value.where == "rollout.onnx"


@pytest.mark.parametrize("edit", ["shape", "finite", "forecasts"])
def test_a_serving_worker_rejects_weights_that_do_not_match_the_spec(tmp_path: Path, edit: str) -> None:
    bundle = tmp_path / "bundle"
    artifact.save_bundle(make_fitted_model(make_spec()), bundle, card="")
    changes: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
        "shape": lambda weights: weights.update({"output.weight": torch.zeros(1, 7)}),
        "finite": lambda weights: weights["output.bias"].fill_(float("nan")),
        "forecasts": lambda weights: weights["output.bias"].add_(0.01),
    }
    edit_weights(bundle, changes[edit])
    (bundle / "rollout.onnx").unlink()  # so that the kernel engine must verify the weights
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    del manifest["files"]["rollout.onnx"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises((BundleDamaged, GoldenMismatch)):
        artifact.load_predictor(bundle)


def test_a_serving_worker_rejects_an_onnx_graph_of_a_different_network(tmp_path: Path) -> None:
    bundle, spec = tmp_path / "bundle", make_spec(lags=(4,))
    artifact.save_bundle(make_fitted_model(spec), bundle, card="")
    rewrite_file(bundle, "rollout.onnx", export_onnx(make_fitted_model(spec, seed=2).network))
    with pytest.raises(GoldenMismatch, match="Expected the stored forecast of golden request") as error:
        artifact.load_predictor(bundle)
    assert error.value.where == "rollout.onnx"


def hide_packages(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for module in (artifact, engine_choice):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name in packages else name)


def test_a_bundle_saved_without_onnx_is_complete_and_served_by_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        hide_packages(patch, "onnx", "onnxruntime")
        artifact.save_bundle(make_fitted_model(make_spec()), tmp_path / "bundle", card="")
    assert not (tmp_path / "bundle" / "rollout.onnx").exists()
    loaded = artifact.load_bundle(tmp_path / "bundle")
    assert not loaded.onnx_models
    assert engine_choice.build_onnx_engine(loaded) is None


def test_a_bundle_with_an_onnx_graph_loads_without_onnxruntime(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(engine_choice.build_onnx_engine(artifact.load_bundle(bundle_copy)), OnnxEngine)
    hide_packages(monkeypatch, "onnx", "onnxruntime")
    loaded = artifact.load_bundle(bundle_copy)
    assert loaded.onnx_models == ((bundle_copy / "rollout.onnx").read_bytes(),)
    assert engine_choice.build_onnx_engine(loaded) is None


def test_an_onnx_graph_with_different_forecasts_is_omitted_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    onnx_model = export_onnx(make_fitted_model(make_spec(), seed=2).network)
    monkeypatch.setattr("forecaster.engines.onnx.export.export_onnx", lambda _: onnx_model)
    artifact.save_bundle(make_fitted_model(make_spec()), tmp_path / "bundle", card="")
    assert "rollout.onnx" not in artifact.read_manifest(tmp_path / "bundle").files
    assert "will be served by PyTorch" in caplog.text
    assert not artifact.load_bundle(tmp_path / "bundle").onnx_models


def test_a_network_too_large_for_onnx_is_saved_without_a_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2000)
    artifact.save_bundle(make_fitted_model(make_spec()), tmp_path / "bundle", card="")
    assert not (tmp_path / "bundle" / "rollout.onnx").exists()
    assert "too large" in caplog.text


def test_a_bundle_that_could_not_be_loaded_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1200)
    with pytest.raises(BundleError, match=r"expected at most 1200 bytes for weights\.safetensors"):
        artifact.save_bundle(make_fitted_model(make_spec()), tmp_path / "bundle", card="")
    assert list(tmp_path.iterdir()) == []


def test_golden_requests_with_a_gap_or_a_short_history_are_replayed(bundle_copy: Path) -> None:
    full, short = json.loads((bundle_copy / "golden.json").read_bytes())["requests"]
    assert (len(full["y"]), len(short["y"])) == (16, 4)
    assert None in short["y"]
    assert None not in full["y"]


@pytest.mark.parametrize("min_history", [1, 2, 3])
def test_a_model_with_the_shortest_min_history_can_be_saved(tmp_path: Path, min_history: int) -> None:
    spec = make_spec(context=3, min_history=min_history)
    artifact.save_bundle(make_fitted_model(spec), tmp_path / "bundle", card="")
    assert artifact.load_bundle(tmp_path / "bundle").spec == spec


def test_a_file_above_the_size_limit_is_not_read(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
    with pytest.raises(BundleDamaged, match="at most 100 bytes"):
        artifact.load_bundle(bundle_copy)


def test_an_existing_folder_is_never_overwritten(bundle_copy: Path, tmp_path: Path) -> None:
    digest = artifact.compute_bundle_digest(bundle_copy)
    (tmp_path / "empty").mkdir()
    for folder in (bundle_copy, tmp_path / "empty"):
        with pytest.raises(BundleError, match="Choose another path"):
            artifact.save_bundle(make_fitted_model(make_spec()), folder, card="")
    assert artifact.compute_bundle_digest(bundle_copy) == digest


def test_a_failed_save_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(_path: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(atomic, "_fsync", raise_disk_full)
    with pytest.raises(OSError, match="no space left"):
        artifact.save_bundle(make_fitted_model(make_spec()), tmp_path / "bundle", card="")
    assert list(tmp_path.iterdir()) == []


def test_golden_requests_of_a_full_history_model_exceed_its_context(tmp_path: Path) -> None:
    fitted_model = make_fitted_model(make_spec(reads="history"))
    artifact.save_bundle(fitted_model, tmp_path / "bundle", card="")
    assert artifact.load_bundle(tmp_path / "bundle").network.reads == "history"
    spec = json.loads((tmp_path / "bundle" / "spec.json").read_bytes())
    rewrite_file(tmp_path / "bundle", "spec.json", json.dumps(spec | {"reads": "window"}).encode())
    with pytest.raises(GoldenMismatch):
        artifact.load_bundle(tmp_path / "bundle")
