"""A forecaster as a folder: JSON and safetensors, checked by digest before it is parsed and by replay after."""

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
from forecaster.bundle.golden import GoldenFile, alone, golden_file, replay
from forecaster.data.encoding import Encoding
from forecaster.errors import BundleDamaged, BundleError, InputError
from forecaster.frequency import offset, tell, untell
from forecaster.intervals.conformal import Calibration
from forecaster.prediction.engine_choice import fastest_engine, graph_engine, runs_graphs
from forecaster.prediction.fitted_model import Forecaster, Stored
from forecaster.prediction.predictor import Predictor
from forecaster.spec import Spec
from forecaster.statistical import blend
from forecaster.storage.atomic import new_folder
from forecaster.storage.failpoints import point

SCHEMA = 1
MOST_BYTES = 1 << 30  # of one file; a larger one is not a bundle of ours


class FileFact(BaseModel):
    """What the manifest says of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str
    size: int


class Manifest(BaseModel):
    """`manifest.json`: what the bundle is, and the digest of every other file."""

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
    files: dict[str, FileFact]


_FILES = ("spec.json", "encoding.json", "conformal.json", "weights.safetensors", "golden.json", "card.md")
GRAPH = "rollout.onnx"  # a bundle may lack it, and its like of further members: it is then served by PyTorch
BLEND = "blend.json"  # of a forecaster that is a blend

log = logging.getLogger(__name__)


def digest(folder: Path) -> str:
    """The identity of a bundle: the sha256 of its manifest, which holds those of all other files."""
    return _sha256(_read(folder / "manifest.json"))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle; raises BundleDamaged if there is none, or it is not one of ours."""
    try:
        manifest = Manifest.model_validate_json(_read(folder / "manifest.json"))
    except ValidationError as error:
        raise BundleDamaged(
            f"Expected the manifest of a forecaster in {folder}; {_first(error)}.", where="manifest.json"
        ) from error
    if manifest.schema_version != SCHEMA:
        raise BundleDamaged(
            f"Expected a bundle of schema {SCHEMA}; {folder} has schema {manifest.schema_version}. "
            "Use the version of forecaster that wrote it, or train again.",
            where="manifest.json",
        )
    return manifest


def save(forecaster: Forecaster, folder: Path, *, card: str) -> str:
    """Writes the bundle, whole or not at all, to a folder that does not exist yet; answers its digest."""
    if folder.exists():
        raise BundleError(f"Expected no folder at {folder}; found one. Choose another place.", where=str(folder))
    import torch  # its version

    from forecaster.model.weights import written

    spec, calibration, golden = forecaster.spec, forecaster.calibration, golden_file(forecaster)
    contents = {
        "spec.json": spec.model_dump_json(indent=1).encode(),
        "encoding.json": forecaster.encoding.model_dump_json().encode(),
        "conformal.json": b"null" if calibration is None else calibration.model_dump_json().encode(),
        "weights.safetensors": written(forecaster.networks),
        "golden.json": golden.model_dump_json(exclude_defaults=True).encode(),
        "card.md": card.encode(),
    }
    if forecaster.blend:
        contents[BLEND] = blend.write(forecaster.blend)
    contents |= dict(zip(_graph_names(spec), _graphs(forecaster, golden), strict=False))
    manifest = Manifest(
        schema_version=SCHEMA,
        name=spec.name,
        freq=forecaster.freq,
        season=forecaster.season,
        context=spec.context,
        horizon=spec.horizon,
        levels=() if calibration is None else calibration.levels,
        cutoff=tell(forecaster.cutoff),
        code_version=__version__,
        torch_version=torch.__version__,
        facts=forecaster.facts,
        files={name: FileFact(sha256=_sha256(content), size=len(content)) for name, content in contents.items()},
    )
    contents["manifest.json"] = manifest.model_dump_json(indent=1).encode()
    with new_folder(folder) as draft:
        for name, content in contents.items():
            (draft / name).write_bytes(content)
        point("export.filled")
    point("export.written")
    return digest(folder)


def load(folder: Path) -> Forecaster:
    """Reads a bundle: digests first, then shapes and finiteness, then the golden requests, on every engine there is.

    Raises BundleDamaged or GoldenMismatch with the file at fault, MissingPackage where a blend has models that cannot be
    fitted here; a bundle that loads may be served.
    """
    stored, golden = _stored(folder)
    forecaster = stored.forecaster()
    replay(forecaster, golden)
    if forecaster.blend:
        replay(*alone(forecaster, golden))
    engine = graph_engine(forecaster)
    if engine is not None:
        replay(*alone(forecaster, golden), engine, where=GRAPH)
    return forecaster


def predictor(folder: Path) -> Predictor:
    """A bundle ready to answer, on the fastest engine for it; PyTorch is loaded only where no other engine will do.

    Checked as by `load`, with the golden requests on that engine alone; raises likewise.
    """
    stored, golden = _stored(folder)
    engine = fastest_engine(stored)
    where = GRAPH if engine is not None and runs_graphs(engine) else "golden.json"
    replay(*alone(stored, golden), engine, where=where)
    if stored.blend:
        replay(stored, golden, engine, where=where)
    return Predictor(stored, engine=engine)


def check_files(folder: Path) -> Manifest:
    """Holds every file against the manifest, and loads nothing; raises BundleDamaged."""
    manifest = read_manifest(folder)
    for name in manifest.files:
        _verified(folder, name, manifest)
    return manifest


def _stored(folder: Path) -> tuple[Stored, GoldenFile]:
    """A bundle whose files are what its manifest says, and what is asked to prove it."""
    manifest = read_manifest(folder)
    contents = {name: _verified(folder, name, manifest) for name in _FILES}
    try:
        spec = Spec.parse(json.loads(contents["spec.json"]), where="spec.json")
        offset(manifest.freq, where="manifest.json")
        cutoff = untell(manifest.cutoff, freq=manifest.freq)
        golden = GoldenFile.model_validate_json(contents["golden.json"])
        encoding = Encoding.model_validate_json(contents["encoding.json"])
        weights = blend.read(_verified(folder, BLEND, manifest)) if BLEND in manifest.files else {}
    except (InputError, ValueError) as error:
        raise BundleDamaged(
            f"Expected a bundle written by forecaster in {folder}; {error}", where=str(folder)
        ) from error
    graphs, calibration = _graph_names(spec) if GRAPH in manifest.files else (), contents["conformal.json"]
    stored = Stored(
        spec,
        manifest.freq,
        manifest.season,
        cutoff,
        encoding,
        contents["weights.safetensors"],
        None if calibration == b"null" else Calibration.read(calibration),
        manifest.facts,
        tuple(_verified(folder, name, manifest) for name in graphs),
        weights,
    )
    return stored, golden


def _verified(folder: Path, name: str, manifest: Manifest) -> bytes:
    fact, content = manifest.files.get(name), _read(folder / name)
    if fact is None or len(content) != fact.size or _sha256(content) != fact.sha256:
        raise BundleDamaged(
            f"Expected {name} of {folder} as its manifest describes it; its digest is another. Fetch the bundle again.",
            where=name,
        )
    return content


def _graph_names(spec: Spec) -> tuple[str, ...]:
    return (GRAPH, *(f"rollout-{number}.onnx" for number in range(2, spec.members + 1)))


def _graphs(forecaster: Forecaster, golden: GoldenFile) -> tuple[bytes, ...]:
    """The rollout of each member as a graph, where onnx is there to write it; where they answer otherwise, none."""
    if find_spec("onnx") is None:
        return ()
    size = max(sum(parameter.nbytes for parameter in network.parameters()) for network in forecaster.networks)
    if size > MOST_BYTES // 4:  # a graph holds some weights several times
        log.warning("the bundle gets no %s: with %d bytes of weights it would be too large", GRAPH, size)
        return ()
    from forecaster.engines.onnx.export import export

    graphs = tuple(export(network) for network in forecaster.networks)
    try:
        engine = graph_engine(replace(forecaster, graphs=graphs))
        if engine is not None:
            replay(*alone(forecaster, golden), engine, where=GRAPH)
    except BundleError as error:
        log.warning("the bundle gets no %s and will be served by PyTorch: %s", GRAPH, error.message)
        return ()
    return graphs


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise BundleDamaged(f"Expected at most {MOST_BYTES} bytes in {path}; found {size}.", where=path.name)
        return path.read_bytes()
    except OSError as error:
        raise BundleDamaged(
            f"Expected the file {path} of a bundle; it cannot be read ({error.strerror}).", where=path.name
        ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}"
