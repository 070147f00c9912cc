"""The bundle: a fitted model as a folder of JSON and safetensors.

Files are verified by digest before they are parsed, and the loaded model by a replay of its golden requests.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from forecaster import __version__
from forecaster.bundle.golden import GoldenFile, build_golden_file, replay_golden_file, strip_blend
from forecaster.data.encoding import Encoding
from forecaster.errors import BundleDamaged, BundleError, InputError
from forecaster.frequency import format_timestamp, parse_frequency, parse_timestamp
from forecaster.intervals.calibration import Calibration
from forecaster.prediction.engine_choice import build_onnx_engine, can_run_onnx, choose_engine, find_kernel_members
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.predictor import Predictor
from forecaster.spec import Spec
from forecaster.statistical import blend
from forecaster.storage.atomic import create_folder
from forecaster.storage.failpoints import fail_point

SCHEMA_VERSION = 1
MAX_FILE_BYTES = 1 << 30  # limit of each file; bundles are much smaller


class FileEntry(BaseModel):
    """The digest and size of one file in the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str
    size: int


class Manifest(BaseModel):
    """`manifest.json`: a description of the bundle, and the digest of every other file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int
    name: str
    freq: str
    season: int
    context: int
    horizon: int
    levels: tuple[float, ...]
    cutoff: str
    code_version: str
    torch_version: str
    facts: dict[str, Any]
    files: dict[str, FileEntry]


_REQUIRED_FILES = ("spec.json", "encoding.json", "conformal.json", "weights.safetensors", "golden.json", "card.md")
ONNX_FILE = "rollout.onnx"  # optional, as are those of further members; without them the bundle is served by PyTorch
BLEND_FILE = "blend.json"  # only in the bundle of a blend

log = logging.getLogger(__name__)


def compute_bundle_digest(folder: Path) -> str:
    """Returns the identity of a bundle: the sha256 of its manifest, which contains the digests of all other files."""
    return _sha256(_read_file(folder / "manifest.json"))


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a bundle; raises BundleDamaged if it is missing, invalid, or has another schema version."""
    try:
        manifest = Manifest.model_validate_json(_read_file(folder / "manifest.json"))
    except ValidationError as error:
        raise BundleDamaged(
            f"Expected the manifest of a bundle in {folder}; {_format_first_error(error)}. Fetch the bundle again.",
            where="manifest.json",
        ) from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise BundleDamaged(
            f"Expected a bundle of schema {SCHEMA_VERSION}; {folder} has schema {manifest.schema_version}. "
            "Use the version of forecaster that wrote it, or train the model again.",
            where="manifest.json",
        )
    return manifest


def save_bundle(fitted_model: FittedModel, folder: Path, *, card: str) -> str:
    """Writes the bundle atomically to a new folder, and returns its digest.

    Raises BundleError if the folder exists.
    """
    if folder.exists():
        raise BundleError(f"Expected no folder at {folder}; found one. Choose another path.", where=str(folder))
    import torch  # only for its version, which the manifest records

    from forecaster.model.weights import serialize_weights

    spec, calibration, golden = fitted_model.spec, fitted_model.calibration, build_golden_file(fitted_model)
    contents = {
        "spec.json": spec.model_dump_json(indent=1).encode(),
        "encoding.json": fitted_model.encoding.model_dump_json().encode(),
        "conformal.json": b"null" if calibration is None else calibration.model_dump_json().encode(),
        "weights.safetensors": serialize_weights(fitted_model.networks),
        "golden.json": golden.model_dump_json(exclude_defaults=True).encode(),
        "card.md": card.encode(),
    }
    if fitted_model.blend_weights:
        contents[BLEND_FILE] = blend.serialize_blend_weights(fitted_model.blend_weights)
    contents |= dict(zip(_onnx_file_names(spec), _export_onnx_models(fitted_model, golden), strict=False))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=spec.name,
        freq=fitted_model.freq,
        season=fitted_model.season,
        context=spec.context,
        horizon=spec.horizon,
        levels=() if calibration is None else calibration.levels,
        cutoff=format_timestamp(fitted_model.cutoff),
        code_version=__version__,
        torch_version=torch.__version__,
        facts=fitted_model.facts,
        files={name: FileEntry(sha256=_sha256(content), size=len(content)) for name, content in contents.items()},
    )
    contents["manifest.json"] = manifest.model_dump_json(indent=1).encode()
    with create_folder(folder) as draft:
        for name, content in contents.items():
            (draft / name).write_bytes(content)
        fail_point("export.filled")
    fail_point("export.written")
    return compute_bundle_digest(folder)


def load_bundle(folder: Path) -> FittedModel:
    """Loads a bundle and verifies it: digests, shapes and finiteness, then the golden requests on all available engines.

    A bundle that loads may be served.

    Raises:
        BundleDamaged: A file is missing, altered or invalid; `where` is the file.
        GoldenMismatch: An engine does not reproduce the golden forecasts.
        MissingPackage: The package that fits the statistical models of a blend is not installed.
    """
    stored, golden = _read_bundle(folder)
    fitted_model = stored.to_fitted_model()
    replay_golden_file(fitted_model, golden)
    if fitted_model.blend_weights:
        replay_golden_file(*strip_blend(fitted_model, golden))
    engine = build_onnx_engine(fitted_model)
    if engine is not None:
        replay_golden_file(*strip_blend(fitted_model, golden), engine, where=ONNX_FILE)
    return fitted_model


def load_predictor(folder: Path) -> Predictor:
    """Loads a bundle as a predictor on its fastest engine (`choose_engine`); imports PyTorch only if there is no other.

    Verifies the bundle and raises errors as `load_bundle` does, but replays the golden requests on that engine only.
    """
    stored, golden = _read_bundle(folder)
    engine = choose_engine(stored)
    where = ONNX_FILE if can_run_onnx(stored) and not find_kernel_members(engine) else "golden.json"
    replay_golden_file(*strip_blend(stored, golden), engine, where=where)
    if stored.blend_weights:
        replay_golden_file(stored, golden, engine, where=where)
    return Predictor(stored, engine=engine)


def verify_files(folder: Path) -> Manifest:
    """Verifies every file against the manifest without loading the model; raises BundleDamaged."""
    manifest = read_manifest(folder)
    for name in manifest.files:
        _read_verified(folder, name, manifest)
    return manifest


def _read_bundle(folder: Path) -> tuple[StoredModel, GoldenFile]:
    """Reads a bundle and its golden requests, and verifies the files against the manifest."""
    manifest = read_manifest(folder)
    contents = {name: _read_verified(folder, name, manifest) for name in _REQUIRED_FILES}
    try:
        spec = Spec.parse(json.loads(contents["spec.json"]), where="spec.json")
        parse_frequency(manifest.freq, where="manifest.json")
        cutoff = parse_timestamp(manifest.cutoff, freq=manifest.freq)
        golden = GoldenFile.model_validate_json(contents["golden.json"])
        encoding = Encoding.model_validate_json(contents["encoding.json"])
        blend_weights = (
            blend.parse_blend_weights(_read_verified(folder, BLEND_FILE, manifest))
            if BLEND_FILE in manifest.files
            else {}
        )
    except (InputError, ValueError) as error:
        raise BundleDamaged(
            f"Expected a bundle written by forecaster in {folder}; fetch it again. Cause: {error}", where=str(folder)
        ) from error
    onnx_files = _onnx_file_names(spec) if ONNX_FILE in manifest.files else ()
    calibration = contents["conformal.json"]
    stored = StoredModel(
        spec=spec,
        freq=manifest.freq,
        season=manifest.season,
        cutoff=cutoff,
        encoding=encoding,
        weights_bytes=contents["weights.safetensors"],
        calibration=None if calibration == b"null" else Calibration.from_json(calibration),
        facts=manifest.facts,
        onnx_models=tuple(_read_verified(folder, name, manifest) for name in onnx_files),
        blend_weights=blend_weights,
    )
    return stored, golden


def _read_verified(folder: Path, name: str, manifest: Manifest) -> bytes:
    entry, content = manifest.files.get(name), _read_file(folder / name)
    if entry is None or len(content) != entry.size or _sha256(content) != entry.sha256:
        raise BundleDamaged(
            f"Expected {name} in {folder} to match the manifest; its digest differs. Fetch the bundle again.",
            where=name,
        )
    return content


def _onnx_file_names(spec: Spec) -> tuple[str, ...]:
    return (ONNX_FILE, *(f"rollout-{number}.onnx" for number in range(2, spec.members + 1)))


def _export_onnx_models(fitted_model: FittedModel, golden: GoldenFile) -> tuple[bytes, ...]:
    """Exports the rollout of each member as an ONNX model.

    Returns none if onnx is not installed, if the weights are too large, or if the models do not reproduce the golden forecasts.
    """
    if find_spec("onnx") is None:
        return ()
    size = max(sum(parameter.nbytes for parameter in network.parameters()) for network in fitted_model.networks)
    if size > MAX_FILE_BYTES // 4:  # an ONNX model contains some weights several times
        log.warning("the bundle is written without %s: with %d bytes of weights it would be too large", ONNX_FILE, size)
        return ()
    from forecaster.engines.onnx.export import export_onnx

    models = tuple(export_onnx(network) for network in fitted_model.networks)
    try:
        engine = build_onnx_engine(replace(fitted_model, onnx_models=models))
        if engine is not None:
            replay_golden_file(*strip_blend(fitted_model, golden), engine, where=ONNX_FILE)
    except BundleError as error:
        log.warning("the bundle is written without %s and will be served by PyTorch: %s", ONNX_FILE, error.message)
        return ()
    return models


def _read_file(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise BundleDamaged(
                f"Expected at most {MAX_FILE_BYTES} bytes in {path}; found {size}. Fetch the bundle again.",
                where=path.name,
            )
        return path.read_bytes()
    except OSError as error:
        raise BundleDamaged(
            f"Expected the file {path} of a bundle; it cannot be read ({error.strerror}). Fetch the bundle again.",
            where=path.name,
        ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _format_first_error(error: ValidationError) -> str:
    detail = error.errors()[0]
    return f"{'.'.join(map(str, detail['loc'])) or 'the file'}: {detail['msg']}"
