"""Bundles of untrained networks, and what PyTorch forecasts with them: `python -m tests.torch_free.bundles FOLDER`.

Writing them needs torch; the tests of this folder read them without it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

HORIZON = 7
PATHS = 4
SPECS: dict[str, dict[str, Any]] = {
    "plain": {},  # for the kernel
    "direct": {"decoder": "direct", "transform": "log", "scaling": "last", "base": "last"},  # for its ONNX model
    "gaussian": {"head": {"kind": "gaussian"}},  # the kernel forecasts, the ONNX model draws samples
    "members": {"members": 2},
    "whole_history": {"reads": "history", "context": 8},
    "running": {
        "scaling": "running",
        "features": "seasonal",
        "base": "mixture",
        "decoder": "block",
        "block_steps": 4,
        "head": {"kind": "quantile"},
    },  # in the kernel or in numpy, samples too
    "neg_binomial": {"head": {"kind": "neg_binomial"}, "scaling": "none"},  # only PyTorch draws samples
}


def write_bundles(folder: Path) -> None:
    """Writes one bundle for each of SPECS, and expected.json with the forecasts of PyTorch, also of the pretrained network."""
    from forecaster.bundle import artifact
    from forecaster.bundle.pretrained.base import specialize_base
    from forecaster.prediction.engine_choice import build_pytorch_engine
    from forecaster.prediction.predictor import Predictor
    from tests.factories import make_fitted_model, make_network, make_series, make_spec, make_wave

    series, expected = make_series(make_wave(40)), {}
    for name, fields in SPECS.items():
        spec = make_spec(name=name, **fields)
        others = tuple(make_network(spec, seed=seed) for seed in range(2, spec.members + 1))
        fitted_model = replace(make_fitted_model(spec), other_networks=others)
        artifact.save_bundle(fitted_model, folder / name, card=f"# {name}")
        predictor = Predictor(fitted_model, engine=build_pytorch_engine(fitted_model, device="cpu"))
        expected[name] = {"mean": predictor.forecast(series, HORIZON).mean.tolist()}
        if name in ("gaussian", "running"):
            expected[name]["samples"] = predictor.sample_batch([series], HORIZON, paths=PATHS, seed=1)[0].tolist()
    base = specialize_base("h", horizon=HORIZON).to_fitted_model()
    pretrained = Predictor(base, engine=build_pytorch_engine(base, device="cpu")).forecast(series, HORIZON)
    content = {"y": series.y.tolist(), "models": expected, "pretrained": pretrained.mean.tolist()}
    (folder / "expected.json").write_text(json.dumps(content))


if __name__ == "__main__":
    destination = Path(sys.argv[1])
    destination.mkdir(parents=True)
    write_bundles(destination)
