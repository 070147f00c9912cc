"""A forecaster as a folder: JSON and safetensors, checked by digest before it is parsed and by replay after."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from forecaster import __version__, blend
from forecaster.conformal import Calibration
from forecaster.data.encoding import Encoding
from forecaster.durable import new_folder
from forecaster.engine import Engine
from forecaster.errors import BundleDamaged, BundleError, GoldenMismatch, InputError
from forecaster.failpoints import point
from forecaster.frequency import Stamp, offset, origin, tell, untell
from forecaster.model.regressor import build
from forecaster.predict import Forecaster, Predictor, graph_engine
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64
from forecaster.spec import Spec

SCHEMA = 1
MOST_BYTES = 1 << 30  # of one file; a larger one is not a bundle of ours
GOLDEN_TOLERANCE = (
    1e-4  # of the forecast's range: other processors round float32 otherwise, other weights differ by more
)


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


class Golden(BaseModel):
    """One frozen request and its answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    start: str
    y: tuple[float | None, ...]
    mean: tuple[float, ...]
    network: tuple[float, ...] = ()  # of a blend: what its network says alone, which its engines must say too


class GoldenFile(BaseModel):
    """`golden.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    horizon: int
    requests: tuple[Golden, ...]


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
    spec, calibration, golden = forecaster.spec, forecaster.calibration, _golden(forecaster)
    named = _whole(forecaster.networks).state_dict()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    contents = {
        "spec.json": spec.model_dump_json(indent=1).encode(),
        "encoding.json": forecaster.encoding.model_dump_json().encode(),
        "conformal.json": b"null" if calibration is None else calibration.model_dump_json().encode(),
        "weights.safetensors": save_weights(weights),
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
    sizes: dict[str, Any] = {"season": manifest.season, "covariates": encoding.width, "groups": encoding.sizes}
    network, *others = (build(spec, seed=0, **sizes).eval() for _ in range(spec.members))
    _fill(_whole([network, *others]), contents["weights.safetensors"])
    graphs = _graph_names(spec) if GRAPH in manifest.files else ()
    forecaster = Forecaster(
        spec,
        manifest.freq,
        manifest.season,
        cutoff,
        encoding,
        network,
        facts=manifest.facts,
        graphs=tuple(_verified(folder, name, manifest) for name in graphs),
        others=tuple(others),
        blend=weights,
    )
    _replay(forecaster, golden)
    if weights:
        _replay(*_alone(forecaster, golden))
    engine = graph_engine(forecaster)
    if engine is not None:
        _replay(*_alone(forecaster, golden), engine)
    calibration = contents["conformal.json"]
    return forecaster if calibration == b"null" else replace(forecaster, calibration=Calibration.read(calibration))


def _verified(folder: Path, name: str, manifest: Manifest) -> bytes:
    fact, content = manifest.files.get(name), _read(folder / name)
    if fact is None or len(content) != fact.size or _sha256(content) != fact.sha256:
        raise BundleDamaged(
            f"Expected {name} of {folder} as its manifest describes it; its digest is another. Fetch the bundle again.",
            where=name,
        )
    return content


def _fill(network: torch.nn.Module, content: bytes) -> None:
    try:
        weights = load_weights(content)
    except SafetensorError as error:
        raise BundleDamaged(
            f"weights.safetensors cannot be read: {error}. Fetch the bundle again.", where="weights.safetensors"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))[0]
        raise BundleDamaged(
            f"Expected weights {odd!r} of shape {expected.get(odd)}; found {found.get(odd)}. The spec and the weights do not "
            "belong together: train again.",
            where="weights.safetensors",
        )
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BundleDamaged(
                f"Expected finite weights; {name!r} holds NaN or infinity. Train again.", where="weights.safetensors"
            )
    network.load_state_dict(weights)


def _golden(forecaster: Forecaster) -> GoldenFile:
    """Two made-up histories (no user's data): a trend with a season, and a short one with a gap.

    Where a whole history is read, the first is longer than the context: its state is carried, its scale that of its start.
    """
    spec = forecaster.spec
    draw = np.random.default_rng(0)
    clock = np.arange(spec.context if spec.reads == "window" else 3 * spec.context)
    whole = (
        100 + 0.1 * clock + 10 * np.sin(2 * np.pi * clock / max(forecaster.season, 2)) + draw.normal(size=len(clock))
    )
    short = whole[: spec.least].copy()
    short[len(short) // 2 : len(short) // 2 + 1] = np.nan if len(short) > 2 else short[-1]
    start, horizon = origin(forecaster.freq), min(spec.horizon, 32)
    predictor, alone, requests = Predictor(forecaster), Predictor(replace(forecaster, blend={})), []
    for y in (whole, short):
        one = _request(forecaster, start, y, horizon)
        requests.append(
            Golden(
                start=tell(start),
                y=tuple(None if np.isnan(v) else float(v) for v in y),
                mean=tuple(predictor.forecast(one, horizon).mean),
                network=tuple(alone.forecast(one, horizon).mean) if forecaster.blend else (),
            )
        )
    return GoldenFile(horizon=horizon, requests=tuple(requests))


def _alone(forecaster: Forecaster, golden: GoldenFile) -> tuple[Forecaster, GoldenFile]:
    """The network without what it is blended with, and its answers to the golden requests."""
    if not forecaster.blend:
        return forecaster, golden
    own = tuple(request.model_copy(update={"mean": request.network}) for request in golden.requests)
    return replace(forecaster, blend={}), golden.model_copy(update={"requests": own})


def _request(forecaster: Forecaster, start: Stamp, y: Float64[np.ndarray, "_"], horizon: int) -> Series:
    """A golden request as a series; its covariates follow from the encoding alone, its channels (with gaps) from the clock."""
    encoding, clock = forecaster.encoding, np.arange(len(y) + horizon)
    numeric = {name: mean + spread * np.sin(clock) for name, (mean, spread) in encoding.numeric.items()}
    text = {
        name: np.array([known[place % len(known)] if known else "" for place in clock], dtype=object)
        for name, known in encoding.categories.items()
    }
    static = {name: known[0] for name, known in encoding.static.items() if known}
    beside = np.where(clock % 5 == 3, np.nan, 50 + 10 * np.cos(clock))[: len(y)]
    channels = {name: number + beside for number, name in enumerate(forecaster.spec.channels)}
    return Series("golden", start, forecaster.freq, y, {**numeric, **text}, static, channels)


def _whole(networks: Sequence[torch.nn.Module]) -> torch.nn.Module:
    """All members as one module, their weights under the numbers of the members; one alone needs no number."""
    return networks[0] if len(networks) == 1 else torch.nn.ModuleList(networks)


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
    from forecaster.graph.export import export

    graphs = tuple(export(network) for network in forecaster.networks)
    try:
        engine = graph_engine(replace(forecaster, graphs=graphs))
        if engine is not None:
            _replay(*_alone(forecaster, golden), engine)
    except BundleError as error:
        log.warning("the bundle gets no %s and will be served by PyTorch: %s", GRAPH, error.message)
        return ()
    return graphs


def _replay(forecaster: Forecaster, golden: GoldenFile, engine: Engine | None = None) -> None:
    predictor = Predictor(forecaster, engine=engine)
    for number, request in enumerate(golden.requests):
        y = np.array([np.nan if value is None else value for value in request.y], dtype=np.float64)
        one = _request(forecaster, untell(request.start, freq=forecaster.freq), y, golden.horizon)
        outcome = predictor.forecast_each([one], golden.horizon)[0]
        expected = np.array(request.mean)
        room = GOLDEN_TOLERANCE * (np.ptp(np.append(expected, y[~np.isnan(y)])) + 1e-12)
        if not isinstance(outcome, Forecast) or not np.allclose(outcome.mean, expected, rtol=0, atol=room):
            raise GoldenMismatch(
                f"Golden request {number} no longer gets its frozen answer (tolerance {room:.3g}). The code that computes "
                "forecasts has changed since the bundle was written: train again.",
                where="golden.json" if engine is None else GRAPH,
            )


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
