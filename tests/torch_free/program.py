"""Loads the bundles of a folder in a process that cannot import torch, and prints what it forecasts as JSON.

    python program.py FOLDER [no-kernel]

It imports the installed package, and nothing of the tests.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

HORIZON = 7
PATHS = 4


def main(folder: Path, *, with_kernel: bool) -> dict[str, Any]:
    """Forecasts with each bundle; returns the results by name, times and modules."""
    for name in ("torch", "pytorch_lightning"):
        sys.modules[name] = None  # type: ignore[assignment]  # an import of it raises ModuleNotFoundError
    start = time.perf_counter()
    import forecaster

    imported = time.perf_counter()
    if not with_kernel:
        from forecaster.model.recurrence import library

        library.find_library = lambda: None
    expected = json.loads((folder / "expected.json").read_text())
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("forecaster").addHandler(handler)
    import numpy as np
    import pandas as pd

    from forecaster import ForecasterError, Series, load_predictor
    from forecaster.bundle.artifact import verify_bundle

    series = Series("a", pd.Timestamp("2026-01-01"), "h", np.array(expected["y"]))
    models: dict[str, Any] = {}
    loading: list[float] = []
    for name in expected["models"]:
        begin = time.perf_counter()
        predictor = load_predictor(folder / name)
        result: dict[str, Any] = {
            "mean": predictor.forecast(series, HORIZON).mean.tolist(),
            "engine": type(getattr(predictor.engine, "members", [predictor.engine])[0]).__name__,
        }
        loading.append(time.perf_counter() - begin)
        if predictor.layout.uniforms_per_draw:
            try:
                result["samples"] = predictor.sample_batch([series], HORIZON, paths=PATHS, seed=1)[0].tolist()
            except ForecasterError as error:
                result["samples_error"] = [error.code, error.message]
        result["kept_steps"] = len(predictor.truncate_history(series).y)
        verify_bundle(folder / name)
        models[name] = result
    from forecaster.bundle.pretrained.base import base_predictor

    pretrained = base_predictor("h", horizon=HORIZON).forecast(series, HORIZON).mean.tolist()
    return {
        "version": forecaster.__version__,
        "package": forecaster.__file__,
        "import_s": imported - start,
        "first_forecast_s": loading[0],
        "all_s": time.perf_counter() - start,
        "torch": any(name.partition(".")[0] == "torch" and module for name, module in sys.modules.items()),
        "warnings": warnings,
        "models": models,
        "pretrained": pretrained,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), with_kernel="no-kernel" not in sys.argv)))
