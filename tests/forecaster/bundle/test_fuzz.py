"""Whatever a re-signed bundle contains, it is rejected with a BundleError or loads and forecasts, in bounded time and memory."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.data.encoding import Encoding
from forecaster.errors import BundleError, ForecasterError
from forecaster.intervals.calibration import Calibration, QuantileTable
from forecaster.model.regressor import build_network
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Series
from forecaster.spec import Spec
from tests.factories import START, make_fitted_model, make_spec
from tests.forecaster.bundle.editing import write_signed

MAX_SECONDS, MAX_BYTES = 20, 2 << 30
FAST_MUTATIONS, NIGHTLY_MUTATIONS = 12, 500  # of each file
JSON_FILES = ("manifest.json", "spec.json", "encoding.json", "conformal.json", "golden.json")
FILES = (*JSON_FILES, "weights.safetensors", "rollout.onnx", "card.md")
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 3, 7, 100, 4096, 65_536, 10**9, 2**63, 10**30, -0.5, 0.5, 1e-300, 1e308, -1e308),
    *("", "x", "h", "D", "NaT", "9999-12-31", "../card.md", "/etc/passwd", "x" * 1000, "0" * 64, "gru", "lstm", "log"),
    *([], {}, [1], [[]], [1e308], {"": {}}, [0.1, 0.9], ["promo"], ["month"]),
)


class TooSlow(BaseException):
    """Not an Exception, so that no code translates it."""


@contextmanager
def limited_time_and_memory() -> Iterator[None]:
    def interrupt(_: int, __: FrameType | None) -> NoReturn:
        raise TooSlow

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, interrupt)
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, limits[1]))
    signal.alarm(MAX_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def make_calibration() -> Calibration:
    offsets = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0))
    table = QuantileTable(basis="ranks", windows=9, growth=0.5, spreads=(1.0, 2.0), offsets=offsets)
    return Calibration(steps=(1, 5), levels=(0.1, 0.5, 0.9), pool=table, groups={"north": table}, factors={"a": 2.0})


def make_model_with_covariates() -> FittedModel:
    """Returns a model that only the ONNX engine and PyTorch can run."""
    spec = make_spec(base="seasonal_naive", covariates=["promo", "kind"], static=["region"], group="region")
    encoding = Encoding(numeric={"promo": (0.5, 2.0)}, categories={"kind": ("a", "b")}, static={"region": ("n", "s")})
    network = build_network(spec, seed=1, num_covariates=encoding.num_covariates, static_cardinalities=(2,)).eval()
    return FittedModel(spec, "h", 4, START, encoding, network.requires_grad_(False), make_calibration())


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    models = (replace(make_fitted_model(make_spec()), calibration=make_calibration()), make_model_with_covariates())
    for index, model in enumerate(models):
        artifact.save_bundle(model, folder / str(index), card="# small\n")
    return sorted(folder.iterdir())


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Changes one place of a JSON document, or its text."""
    kind = rng.randrange(10)
    text = content.decode()
    if kind == 0:  # a key twice
        start = text.find('"', rng.randrange(len(text)))
        return (text if start < 0 else f'{text[:1]}"facts": {{}}, "horizon": 5, {text[1:]}').encode()
    if kind == 1:
        depth = rng.choice([100, 1000, 100_000])
        return (text[:-1] + f', "deep": {"[" * depth}{"]" * depth}' + text[-1]).encode()
    if kind == 2:
        return mutate_bytes(content, rng)
    document = json.loads(text)
    containers: list[Any] = []
    stack = [document]
    while stack:
        value = stack.pop()
        if isinstance(value, (dict, list)) and value:
            containers.append(value)
            stack.extend(value.values() if isinstance(value, dict) else value)
    if not containers:
        return json.dumps(rng.choice(ODD_VALUES)).encode()
    container = rng.choice(containers)
    key = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    if kind == 3:
        del container[key]
    elif kind == 4 and isinstance(container, list):
        container.extend(container * rng.choice([1, 10]))
    elif kind == 5 and isinstance(container, dict):
        container[rng.choice(["", "more", "../x"])] = rng.choice(ODD_VALUES)
    else:
        container[key] = rng.choice(ODD_VALUES)
    return json.dumps(document).replace('"NaN"', "NaN").encode()


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Changes, removes, repeats or adds some bytes."""
    changed, first = bytearray(content), rng.randrange(max(1, len(content)))
    last = first + rng.choice([1, 1, 1, 2, 8, 64])
    kind = rng.randrange(5)
    if kind == 0:
        del changed[first:last]
    elif kind == 1:
        changed[first:first] = changed[first:last]
    elif kind == 2:
        changed[first:last] = rng.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * (last - first)
    elif kind == 3:
        changed[first:last] = rng.randbytes(last - first)
    else:
        del changed[first:]
    return bytes(changed)


def mutate_weights(content: bytes, rng: random.Random) -> bytes:
    """Changes the header of a safetensors file, or its bytes."""
    if rng.random() < 0.5:
        return mutate_bytes(content, rng)
    size = struct.unpack("<Q", content[:8])[0]
    header = mutate_json(content[8 : 8 + size], rng)
    if rng.random() < 0.2:
        header = header.replace(b'"F32"', rng.choice([b'"F64"', b'"I32"', b'"BF16"', b'"BOOL"', b'"C64"']))
    return struct.pack("<Q", rng.choice([len(header), len(header), 2**62])) + header + content[8 + size :]


def mutate(name: str, content: bytes, rng: random.Random) -> bytes:
    if name in JSON_FILES:
        return mutate_json(content, rng)
    return mutate_weights(content, rng) if name == "weights.safetensors" else mutate_bytes(content, rng)


def check_forecast(predictor: Predictor) -> None:
    """A bundle that loads also forecasts: a finite forecast, or an error for the series."""
    spec: Spec = predictor.fitted_model.spec
    steps = spec.context + 7
    covariates = {name: np.zeros(steps) for name in predictor.fitted_model.encoding.numeric}
    covariates |= {name: np.full(steps, "a", dtype=object) for name in predictor.fitted_model.encoding.categories}
    channels = dict.fromkeys(spec.channels, np.ones(spec.context))
    y = 1 + np.arange(spec.context, dtype=np.float64)
    series = Series("a", START, predictor.fitted_model.freq, y, covariates, {"region": "n"}, channels)
    levels = (0.25, 0.75) if predictor.fitted_model.calibration is not None else ()
    with np.errstate(over="ignore", invalid="ignore"):  # the network's input overflows if a covariate has a tiny spread
        [outcome] = predictor.forecast_batch([series], 7, levels=levels)
    if not isinstance(outcome, ForecasterError):
        assert np.isfinite([outcome.mean, *outcome.quantiles.values()]).all()


def load_or_reject(load: Callable[[Path], Predictor], bundle: Path) -> Predictor | None:
    """Returns None for a rejected bundle. A lack of memory is no rejection."""
    try:
        return load(bundle)
    except BundleError as error:
        if isinstance(error.__cause__, MemoryError) or "not enough memory" in str(error.__cause__):  # numpy, or torch
            raise
        return None


def load_on_all_engines(bundle: Path) -> Predictor:
    return Predictor(artifact.load_bundle(bundle))


def run_mutations(bundle: Path, name: str, rng: random.Random, count: int, folder: Path) -> dict[str, int]:
    outcomes = {"rejected": 0, "loaded": 0}
    for number in range(count):
        copy = Path(shutil.copytree(bundle, folder / f"{number}"))
        content = mutate(name, (copy / name).read_bytes(), rng)
        if name == "manifest.json":
            (copy / name).write_bytes(content)
        else:
            write_signed(copy, name, content)
        with limited_time_and_memory():
            for load in (artifact.load_predictor, load_on_all_engines):
                predictor = load_or_reject(load, copy)
                outcomes["loaded" if predictor else "rejected"] += 1
                if predictor is None:
                    continue
                with suppress(ForecasterError):
                    check_forecast(predictor)
        shutil.rmtree(copy)
    return outcomes


@pytest.mark.parametrize("name", FILES)
def test_a_mutated_file_is_rejected_or_loads(name: str, bundles: list[Path], tmp_path: Path) -> None:
    for index, bundle in enumerate(bundles):
        outcomes = run_mutations(bundle, name, random.Random(f"{name} {index}"), FAST_MUTATIONS, tmp_path)
        assert outcomes["rejected"], outcomes


@pytest.mark.nightly
@pytest.mark.parametrize("name", FILES)
def test_many_mutated_files_are_rejected_or_load(name: str, bundles: list[Path], tmp_path: Path) -> None:
    for index, bundle in enumerate(bundles):
        outcomes = run_mutations(bundle, name, random.Random(f"nightly {name} {index}"), NIGHTLY_MUTATIONS, tmp_path)
        assert outcomes["rejected"], outcomes
