"""The bundle: a fitted model as a folder of JSON and safetensors.

Files are verified by digest before they are parsed, and the loaded model by a replay of its golden requests. Whatever a bundle
contains, it is loaded or rejected with a BundleError.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from forecaster import __version__
from forecaster.bundle import files
from forecaster.bundle.files import (
    BLEND_FILE,
    CARD_FILE,
    MANIFEST_FILE,
    ONNX_FILE,
    SCHEMA_VERSION,
    FileEntry,
    Manifest,
)
from forecaster.bundle.files import compute_bundle_digest as compute_bundle_digest
from forecaster.bundle.files import read_card as read_card
from forecaster.bundle.files import read_manifest as read_manifest
from forecaster.bundle.files import verify_files as verify_files
from forecaster.bundle.golden import (
    FittedModelT,
    GoldenFile,
    build_golden_file,
    replay_golden_file,
    strip_blend,
    validate_golden_file,
)
from forecaster.bundle.histories import HISTORIES_FILE, parse_histories, serialize_histories
from forecaster.data.encoding import Encoding
from forecaster.engines.onnx.support import find_missing_part
from forecaster.engines.statistical import blend
from forecaster.errors import BundleDamaged, BundleError, ForecasterError, MissingPackage
from forecaster.frequency.timestamps import format_timestamp, parse_bounded_timestamp, parse_frequency
from forecaster.installation import is_installed
from forecaster.intervals.calibration import Calibration
from forecaster.prediction.engine_choice import (
    build_onnx_engine,
    can_run_onnx,
    choose_engine,
    find_kernel_members,
    limit_run_time,
)
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.head_quantiles import can_recalibrate
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.storage.atomic import create_folder
from forecaster.storage.failpoints import fail_point

MAX_REPLAY_S = 120.0  # of the golden requests on ONNX models, which may loop endlessly

log = logging.getLogger(__name__)


def save_bundle(fitted_model: FittedModel, folder: Path, *, card: str, histories: Panel | None = None) -> str:
    """Writes the bundle atomically to a new folder, and returns its digest. `histories` become a part of it if given.

    Raises BundleError if the folder exists, or if the bundle would exceed a limit of the format.
    """
    if folder.exists():
        raise BundleError(f"Expected no folder at {folder}; found one. Choose another path.", where=str(folder))
    from forecaster.model.weights import serialize_weights

    spec, calibration, golden = fitted_model.spec, fitted_model.calibration, build_golden_file(fitted_model)
    contents = {
        "spec.json": spec.model_dump_json(indent=1).encode(),
        "encoding.json": fitted_model.encoding.model_dump_json().encode(),
        "conformal.json": b"null" if calibration is None else calibration.model_dump_json().encode(),
        "weights.safetensors": serialize_weights(fitted_model.networks),
        "golden.json": golden.model_dump_json(exclude_defaults=True).encode(),
        CARD_FILE: card.encode(),
    }
    if fitted_model.blend_weights:
        contents[BLEND_FILE] = blend.serialize_blend_weights(fitted_model.blend_weights)
    if histories is not None:
        contents[HISTORIES_FILE] = serialize_histories(histories)
    contents |= dict(zip(_onnx_file_names(spec), _export_onnx_models(fitted_model, golden), strict=False))
    manifest = _build_manifest(fitted_model, contents)
    contents[MANIFEST_FILE] = manifest.model_dump_json(indent=1).encode()
    with create_folder(folder) as draft:
        for name, content in contents.items():
            (draft / name).write_bytes(content)
        fail_point("export.filled")
    fail_point("export.written")
    return compute_bundle_digest(folder)


def _build_manifest(fitted_model: FittedModel, contents: Mapping[str, bytes]) -> Manifest:
    import torch  # only for its version

    spec, calibration = fitted_model.spec, fitted_model.calibration
    try:
        return Manifest(
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
            files={
                name: FileEntry(sha256=files.compute_sha256(content), size=len(content))
                for name, content in contents.items()
            },
        )
    except ValidationError as error:
        raise BundleError(
            f"Expected a model within the limits of a bundle; {files.format_first_error(error)}. Train a smaller model.",
            where=spec.name,
        ) from error


def read_spec(folder: Path, manifest: Manifest) -> Spec:
    """Reads the specification of a bundle without loading its model; raises BundleDamaged."""
    with _reject_any_failure(folder):
        content = files.read_verified_file(folder, "spec.json", manifest)
        return Spec.parse(files.parse_json(content), where="spec.json")


def load_bundle(folder: Path) -> FittedModel:
    """Loads a bundle and verifies it: digests, shapes and finiteness, then the golden requests on all available engines.

    A bundle that loads may be served.

    Raises:
        BundleDamaged: A file is missing, altered or invalid; `where` is the file.
        GoldenMismatch: An engine does not reproduce the golden forecasts.
        MissingPackage: The package that fits the statistical models of a blend is not installed.
    """
    with _reject_any_failure(folder):
        stored, golden = _read_bundle(folder)
        fitted_model = stored.to_fitted_model()
        replay_golden_file(fitted_model, golden)
        if fitted_model.blend_weights:
            replay_golden_file(*strip_blend(fitted_model, golden))
        _replay_onnx_models(fitted_model, golden)
    return fitted_model


def load_predictor(folder: Path, *, clock: Callable[[], datetime] | None = None) -> Predictor:
    """Loads a bundle as a predictor on its fastest engine (`choose_engine`); imports PyTorch only if there is no other.

    With a clock, the predictor warns about last periods that contain the present. It can be pickled if the clock can, by the
    path and the digest of the bundle.

    Verifies the bundle and raises errors as `load_bundle` does, but replays the golden requests on that engine only.
    """
    with _reject_any_failure(folder):
        stored, golden = _read_bundle(folder)
        engine = choose_engine(stored)
        where = ONNX_FILE if can_run_onnx(stored) and not find_kernel_members(engine) else "golden.json"
        with limit_run_time(engine, seconds=MAX_REPLAY_S):
            replay_golden_file(*strip_blend(stored, golden), engine, where=where)
            if stored.blend_weights:
                replay_golden_file(stored, golden, engine, where=where)
        origin = BundleOrigin(folder.resolve(), compute_bundle_digest(folder), clock)
        return Predictor(stored, engine=engine, clock=clock, origin=origin)


class BundleOrigin(NamedTuple):
    """The bundle of a predictor, as pickles of it hold it.

    Attributes:
        folder: The absolute path.
        digest: The digest that the bundle had.
        clock: The clock of the predictor.
    """

    folder: Path
    digest: str
    clock: Callable[[], datetime] | None

    def load(self) -> Predictor:
        """Loads the predictor; raises BundleError if the bundle has changed, and otherwise as `load_predictor` does."""
        require_digest(self.folder, self.digest)
        return load_predictor(self.folder, clock=self.clock)


def require_digest(folder: Path, digest: str) -> None:
    """Raises BundleError if a bundle is not the one with this digest, and BundleDamaged if there is none."""
    found = compute_bundle_digest(folder)
    if found != digest:
        raise BundleError(
            f"Expected the bundle with the digest {digest[:12]} in {folder}, from which the predictor was loaded; found "
            f"{found[:12]}. Load the predictor again.",
            where=str(folder),
        )


def verify_bundle(folder: Path) -> StoredModel:
    """Verifies a bundle on all engines that are installed, and returns what it stores. A bundle that passes may be served.

    Raises errors as `load_bundle` does, and MissingPackage if no installed engine supports the network.
    """
    predictor = load_predictor(folder)
    stored = predictor.fitted_model
    assert isinstance(stored, StoredModel)
    if is_installed("torch"):
        load_bundle(folder)
    elif find_kernel_members(predictor.engine):
        with _reject_any_failure(folder):
            stored, golden = _read_bundle(folder)
            _replay_onnx_models(stored, golden)
    return stored


def load_histories(folder: Path) -> Panel | None:
    """Loads the training histories of a bundle, None if it has none; raises BundleDamaged."""
    manifest = read_manifest(folder)
    if HISTORIES_FILE not in manifest.files:
        return None
    with _reject_any_failure(folder):
        return parse_histories(files.read_verified_file(folder, HISTORIES_FILE, manifest))


@contextmanager
def _reject_any_failure(folder: Path) -> Iterator[None]:
    """Translates whatever loading raises to BundleDamaged: damaged content can make any library fail.

    What is not the fault of the bundle stays as it is: a package that is missing.
    """
    try:
        yield
    except (BundleError, MissingPackage, ImportError):
        raise
    except Exception as error:
        cause = error.message if isinstance(error, ForecasterError) else f"{type(error).__name__}: {error}"
        raise BundleDamaged(
            f"Expected a bundle written by forecaster in {folder}; fetch it again. Cause: {cause[:500]}",
            where=str(folder),
        ) from error


def _replay_onnx_models(fitted_model: FittedModelT, golden: GoldenFile) -> None:
    """Replays the golden requests on the ONNX models, if the bundle has any."""
    engine = build_onnx_engine(fitted_model)
    if engine is not None:
        with limit_run_time(engine, seconds=MAX_REPLAY_S):
            replay_golden_file(*strip_blend(fitted_model, golden), engine, where=ONNX_FILE)


def _read_bundle(folder: Path) -> tuple[StoredModel, GoldenFile]:
    """Reads a bundle and its golden requests, and verifies the files against the manifest and each other."""
    manifest = read_manifest(folder)
    contents = files.read_verified_files(folder, manifest)
    for name in contents:
        if name.endswith(".json"):
            with files.reject_invalid_content(folder, name):
                files.parse_json(contents[name])
    files.decode_card(folder, contents[CARD_FILE])
    with files.reject_invalid_content(folder, "golden.json"):
        golden = GoldenFile.model_validate_json(contents["golden.json"])
    with files.reject_invalid_content(folder, "encoding.json"):
        encoding = Encoding.model_validate_json(contents["encoding.json"])
    parse_frequency(manifest.freq, where=MANIFEST_FILE)
    with files.reject_invalid_content(folder, MANIFEST_FILE):
        cutoff = parse_bounded_timestamp(manifest.cutoff, freq=manifest.freq)
    spec = Spec.parse(files.parse_json(contents["spec.json"]), where="spec.json")
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
        onnx_models=_select_onnx_models(spec, contents),
        blend_weights=blend.parse_blend_weights(contents[BLEND_FILE]) if BLEND_FILE in contents else {},
    )
    _check_consistency(stored, manifest)
    validate_golden_file(golden, stored)
    return stored, golden


def _select_onnx_models(spec: Spec, contents: Mapping[str, bytes]) -> tuple[bytes, ...]:
    """Returns the graph of every member, or none; raises BundleDamaged if a graph is missing or superfluous."""
    expected = _onnx_file_names(spec) if ONNX_FILE in contents else ()
    found = [name for name in contents if name.endswith(".onnx")]
    if set(found) != set(expected):
        name = min(set(found) ^ set(expected))
        raise BundleDamaged(
            f"Expected one graph for each of {spec.members} networks, or none; {name} is "
            f"{'superfluous' if name in found else 'missing'}. Fetch the bundle again.",
            where=name,
        )
    return tuple(contents[name] for name in expected)


def _check_consistency(stored: StoredModel, manifest: Manifest) -> None:
    """Raises BundleDamaged where the files of a bundle contradict each other."""
    spec, encoding, calibration = stored.spec, stored.encoding, stored.calibration
    facts: list[tuple[str, str, object, object]] = [
        (MANIFEST_FILE, "name", spec.name, manifest.name),
        (MANIFEST_FILE, "context", spec.context, manifest.context),
        (MANIFEST_FILE, "horizon", spec.horizon, manifest.horizon),
        (MANIFEST_FILE, "season", spec.season or manifest.season, manifest.season),
        (MANIFEST_FILE, "levels", () if calibration is None else calibration.levels, manifest.levels),
        ("encoding.json", "calendar", spec.calendar, encoding.calendar),
        ("encoding.json", "covariates", set(spec.covariates), {*encoding.numeric, *encoding.categories}),
        ("encoding.json", "static", spec.static, tuple(encoding.static)),
        (BLEND_FILE, "weights", set(), {*blend.list_statistical_components(stored.blend_weights)} - {*spec.blend}),
    ]
    for where, field, expected, found in facts:
        if expected != found:
            raise BundleDamaged(
                f"Expected {field} {str(expected)[:200]} in {where}, as the other files of the bundle say; found "
                f"{str(found)[:200]}. Fetch the bundle again.",
                where=where,
            )
    if calibration is not None:
        if calibration.unit == "head" and not can_recalibrate(stored):
            raise BundleDamaged(
                "Expected a block decoder with a quantile head, whose quantiles the calibration changes; found another network. "
                "Fetch the bundle again.",
                where="conformal.json",
            )
        offsets = calibration.compute_offsets(calibration.levels, horizon=1, scales=np.ones(1))
        if not np.isfinite(offsets).all():
            raise BundleDamaged(
                "Expected finite offsets of all quantiles; found NaN or infinity. Train the model again.",
                where="conformal.json",
            )


def _onnx_file_names(spec: Spec) -> tuple[str, ...]:
    return (ONNX_FILE, *(f"rollout-{number}.onnx" for number in range(2, spec.members + 1)))


def _export_onnx_models(fitted_model: FittedModel, golden: GoldenFile) -> tuple[bytes, ...]:
    """Exports the rollout of each member as an ONNX model.

    Returns none if onnx is not installed, if the weights are too large, if the graph lacks a part of the network, or if the
    models do not reproduce the golden forecasts.
    """
    if find_spec("onnx") is None:
        return ()
    size = max(sum(parameter.nbytes for parameter in network.parameters()) for network in fitted_model.networks)
    if size > files.max_bytes(ONNX_FILE) // 4:  # an ONNX model contains some weights several times
        log.warning("the bundle is written without %s: with %d bytes of weights it would be too large", ONNX_FILE, size)
        return ()
    missing_part = find_missing_part(fitted_model.spec)
    if missing_part is not None:
        log.info("the bundle is written without %s: the graph has no part for %s", ONNX_FILE, missing_part)
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
