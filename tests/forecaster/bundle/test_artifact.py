"""A bundle is whole and what it says it is, or it is refused."""

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

from forecaster.bundle import artifact
from forecaster.engines.onnx.export import export
from forecaster.engines.onnx.runner import GraphRunner
from forecaster.errors import BundleDamaged, BundleError, GoldenMismatch
from forecaster.prediction import engine_choice
from forecaster.storage import atomic
from tests.factories import make_forecaster, make_spec

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
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    artifact.save(make_forecaster(make_spec(cell="lstm", layers=2)), folder, card="# small\n")
    return folder


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Alters a file and makes the manifest agree with it: what someone does who knows the format."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def alter_weights(bundle: Path, alter: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_weights((bundle / "weights.safetensors").read_bytes())
    alter(weights)
    rewrite(bundle, "weights.safetensors", save_weights(weights))


def alter_manifest(bundle: Path, **fields: Any) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    (bundle / "manifest.json").write_text(json.dumps(manifest | fields))


def test_a_bundle_is_these_files_and_no_others(bundle: Path) -> None:
    assert sorted(path.name for path in bundle.iterdir()) == FILES
    assert (bundle / "card.md").read_text() == "# small\n"
    assert bundle.stat().st_mode & 0o777 == 0o755
    manifest = artifact.read_manifest(bundle)
    assert sorted([*manifest.files, "manifest.json"]) == FILES
    for name, fact in manifest.files.items():
        content = (bundle / name).read_bytes()
        assert (fact.size, fact.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (manifest.name, manifest.freq, manifest.season, manifest.context) == ("small", "h", 4, 16)
    artifact.load(bundle)


def test_two_saves_of_one_forecaster_are_one_bundle(tmp_path: Path) -> None:
    forecaster = make_forecaster(make_spec())
    one, other = (artifact.save(forecaster, tmp_path / name, card="") for name in ("one", "other"))
    assert one == other == artifact.digest(tmp_path / "one")
    assert artifact.save(make_forecaster(make_spec(), seed=2), tmp_path / "third", card="") != one


@pytest.mark.parametrize("place", [0, 0.5, -1])
@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_a_file_of_which_one_byte_is_another_is_refused(bundle: Path, name: str, place: float) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[int(place * len(content)) if place > 0 else int(place)] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleDamaged, match="its digest is another") as error:
        artifact.load(bundle)
    assert error.value.where == name


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_refused(bundle: Path, name: str) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:-1])
    with pytest.raises(BundleDamaged) as error:
        artifact.load(bundle)
    assert error.value.where == name


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleDamaged, match="cannot be read") as error:
        artifact.load(bundle)
    assert error.value.where == name


def test_any_change_of_the_manifest_is_another_digest(bundle: Path) -> None:
    before = artifact.digest(bundle)
    alter_manifest(bundle, name="other")
    assert artifact.digest(bundle) != before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema_version": 2}, "schema 2. Use the version of forecaster that wrote it"),
        ({"freq": "sometimes"}, "'sometimes' is not known"),
        ({"cutoff": "then"}, "bundle written by forecaster"),
        ({"stranger": 1}, "stranger"),
        ({"files": {}}, "digest is another"),
        ({"season": "four"}, "season"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(bundle: Path, fields: dict[str, Any], message: str) -> None:
    alter_manifest(bundle, **fields)
    with pytest.raises(BundleDamaged, match=message):
        artifact.load(bundle)


@pytest.mark.parametrize("content", [b"", b"[]", b"not json", b"\xff\xfe", b'{"schema_version": 1}'])
def test_what_is_no_manifest_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    with pytest.raises(BundleDamaged) as error:
        artifact.load(bundle)
    assert error.value.where == "manifest.json"


@pytest.mark.parametrize("name", ["spec.json", "golden.json", "weights.safetensors", "rollout.onnx"])
@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff" * 64, b"\x80\x04K\x01."])
def test_nonsense_with_a_right_digest_is_refused(bundle: Path, name: str, content: bytes) -> None:
    rewrite(bundle, name, content)
    with pytest.raises(BundleDamaged):
        artifact.load(bundle)


def test_weights_of_another_shape_are_refused_by_name(bundle: Path) -> None:
    alter_weights(bundle, lambda weights: weights.update({"output.weight": torch.zeros(1, 7)}))
    with pytest.raises(BundleDamaged, match=r"'output.weight' of shape \(1, 6\); found \(1, 7\)"):
        artifact.load(bundle)


@pytest.mark.parametrize("change", ["one too many", "one too few"])
def test_weights_too_many_or_too_few_are_refused(bundle: Path, change: str) -> None:
    if change == "one too many":
        alter_weights(bundle, lambda weights: weights.update({"more": torch.zeros(1)}))
    else:
        alter_weights(bundle, lambda weights: weights.pop("output.bias"))
    with pytest.raises(BundleDamaged, match=r"'more'|'output\.bias'"):
        artifact.load(bundle)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_whatever_the_digest(bundle: Path, value: float) -> None:
    alter_weights(bundle, lambda weights: weights["output.bias"].fill_(value))
    with pytest.raises(BundleDamaged, match=r"finite weights; 'output\.bias'"):
        artifact.load(bundle)


@pytest.mark.parametrize("alteration", [0.01, -1.0])
def test_weights_that_no_longer_give_the_golden_answers_are_refused(bundle: Path, alteration: float) -> None:
    alter_weights(bundle, lambda weights: weights["output.bias"].add_(alteration))
    with pytest.raises(GoldenMismatch, match="no longer gets its frozen answer") as error:
        artifact.load(bundle)
    assert error.value.where == "golden.json"


def test_a_graph_of_another_network_is_refused(bundle: Path) -> None:
    rewrite(bundle, "rollout.onnx", export(make_forecaster(make_spec(cell="lstm", layers=2), seed=2).network))
    with pytest.raises(GoldenMismatch, match="no longer gets its frozen answer") as error:
        artifact.load(bundle)
    assert error.value.where == "rollout.onnx"


@pytest.mark.parametrize("alter", ["shape", "finite", "answers"])
def test_a_worker_refuses_weights_that_are_not_those_of_the_spec(tmp_path: Path, alter: str) -> None:
    bundle = tmp_path / "bundle"
    artifact.save(make_forecaster(make_spec()), bundle, card="")
    changes: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
        "shape": lambda weights: weights.update({"output.weight": torch.zeros(1, 7)}),
        "finite": lambda weights: weights["output.bias"].fill_(float("nan")),
        "answers": lambda weights: weights["output.bias"].add_(0.01),
    }
    alter_weights(bundle, changes[alter])
    (bundle / "rollout.onnx").unlink()  # what is read is what is used
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    del manifest["files"]["rollout.onnx"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises((BundleDamaged, GoldenMismatch)):
        artifact.predictor(bundle)


def test_a_worker_refuses_a_graph_of_another_network(tmp_path: Path) -> None:
    bundle, spec = tmp_path / "bundle", make_spec(lags=(4,))
    artifact.save(make_forecaster(spec), bundle, card="")
    rewrite(bundle, "rollout.onnx", export(make_forecaster(spec, seed=2).network))
    with pytest.raises(GoldenMismatch, match="no longer gets its frozen answer") as error:
        artifact.predictor(bundle)
    assert error.value.where == "rollout.onnx"


def lack(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for module in (artifact, engine_choice):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name in packages else name)


def test_a_bundle_written_without_onnx_is_whole_and_served_by_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as bare:
        lack(bare, "onnx", "onnxruntime")
        artifact.save(make_forecaster(make_spec()), tmp_path / "bundle", card="")
    assert not (tmp_path / "bundle" / "rollout.onnx").exists()
    loaded = artifact.load(tmp_path / "bundle")
    assert not loaded.graphs
    assert engine_choice.graph_engine(loaded) is None


def test_a_bundle_with_a_graph_is_read_where_onnxruntime_is_not(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(engine_choice.graph_engine(artifact.load(bundle)), GraphRunner)
    lack(monkeypatch, "onnx", "onnxruntime")
    loaded = artifact.load(bundle)
    assert loaded.graphs == ((bundle / "rollout.onnx").read_bytes(),)
    assert engine_choice.graph_engine(loaded) is None


def test_a_graph_that_answers_otherwise_is_left_out_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = export(make_forecaster(make_spec(), seed=2).network)
    monkeypatch.setattr("forecaster.engines.onnx.export.export", lambda _: other)
    artifact.save(make_forecaster(make_spec()), tmp_path / "bundle", card="")
    assert "rollout.onnx" not in artifact.read_manifest(tmp_path / "bundle").files
    assert "will be served by PyTorch" in caplog.text
    assert not artifact.load(tmp_path / "bundle").graphs


def test_a_network_too_large_for_a_graph_is_saved_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(artifact, "MOST_BYTES", 1000)
    artifact.save(make_forecaster(make_spec()), tmp_path / "bundle", card="")
    assert not (tmp_path / "bundle" / "rollout.onnx").exists()
    assert "too large" in caplog.text


def test_a_golden_request_with_a_gap_and_one_shorter_than_the_context_are_replayed(bundle: Path) -> None:
    whole, short = json.loads((bundle / "golden.json").read_bytes())["requests"]
    assert (len(whole["y"]), len(short["y"])) == (16, 4)
    assert None in short["y"]
    assert None not in whole["y"]


@pytest.mark.parametrize("least", [1, 2, 3])
def test_a_forecaster_of_the_shortest_histories_can_be_saved(tmp_path: Path, least: int) -> None:
    spec = make_spec(context=3, min_history=least)
    artifact.save(make_forecaster(spec), tmp_path / "bundle", card="")
    assert artifact.load(tmp_path / "bundle").spec == spec


def test_a_larger_file_than_a_bundle_has_is_not_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "MOST_BYTES", 100)
    with pytest.raises(BundleDamaged, match="at most 100 bytes"):
        artifact.load(bundle)


def test_what_is_there_already_is_never_overwritten(bundle: Path, tmp_path: Path) -> None:
    before = artifact.digest(bundle)
    (tmp_path / "empty").mkdir()
    for folder in (bundle, tmp_path / "empty"):
        with pytest.raises(BundleError, match="Choose another place"):
            artifact.save(make_forecaster(make_spec()), folder, card="")
    assert artifact.digest(bundle) == before


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(atomic, "_sync", full)
    with pytest.raises(OSError, match="no space left"):
        artifact.save(make_forecaster(make_spec()), tmp_path / "bundle", card="")
    assert list(tmp_path.iterdir()) == []


def test_golden_requests_of_one_that_reads_whole_histories_are_longer_than_its_context(tmp_path: Path) -> None:
    forecaster = make_forecaster(make_spec(reads="history"))
    artifact.save(forecaster, tmp_path / "bundle", card="")
    assert artifact.load(tmp_path / "bundle").network.reads == "history"
    spec = json.loads((tmp_path / "bundle" / "spec.json").read_bytes())
    rewrite(tmp_path / "bundle", "spec.json", json.dumps(spec | {"reads": "window"}).encode())
    with pytest.raises(GoldenMismatch):
        artifact.load(tmp_path / "bundle")
