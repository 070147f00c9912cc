"""Examples of requests and responses, by route, for the OpenAPI document.

They describe monthly data, as the model of the demo is trained on, and the pretrained network takes them. A trained model of
another frequency rejects them with a message that names its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRETRAINED_TITLE = "Pretrained network"  # of examples that only the pretrained network forecasts completely
_HISTORY = {
    "id": "ward 7",
    "start": "2005-01-01",
    "freq": "MS",
    "y": [21, 18, 25, 23, None, 19, 22, 24, 20, 26, 23, 21, 25, 22, 24, 23, 26, 22, 25, 27, 24, 26, 28, 25],
}
_MODEL = {
    "name": "hospital",
    "version": "3",
    "digest": "4278597176b4d4b0f1a1e3c5d7e9fb0d2f4a6c8e0b2d4f6a8c0e2f4a6b8d0c2e",
    "reliable_horizon": 12,
}
_DS = ["2007-01-01", "2007-02-01", "2007-03-01"]
_FORECAST = {
    "id": "ward 7",
    "ds": _DS,
    "mean": [25.2, 24.8, 25.9],
    "quantiles": {"0.1": [21.9, 21.3, 22.2], "0.9": [28.6, 28.4, 29.7]},
    "warnings": [],
}
_TOO_SHORT = {
    "code": "history_too_short",
    "message": "Series 'ward 8' has 2 steps; this forecaster needs at least 12. Send a longer history, or use a forecaster "
    "with a shorter context.",
    "where": "ward 8",
}
_SCORES = {
    "mase": 0.82,
    "mae": 2.1,
    "smape": 9.4,
    "mase_by_step": [0.79, 0.81, 0.86],
    "mae_by_step": [2.0, 2.1, 2.2],
    "wql": 0.064,
    "msis_95": 5.2,
}
_NAIVE_SCORES = {
    "mase": 0.97,
    "mae": 2.5,
    "smape": 11.2,
    "mase_by_step": [0.95, 0.97, 0.99],
    "mae_by_step": [2.4, 2.5, 2.6],
    "wql": None,
    "msis_95": None,
}
_ZERO_SHOT_SCORES = {
    "mase": 0.84,
    "mae": 2.2,
    "smape": 9.6,
    "mase_by_step": [0.8, 0.84, 0.88],
    "mae_by_step": [2.1, 2.2, 2.3],
    "wql": None,
    "msis_95": None,
}
_COMPARISON = {
    "model": _SCORES,
    "seasonal_naive": _NAIVE_SCORES,
    "zero_shot": _ZERO_SHOT_SCORES,
    "reliable_horizon": 3,
    "coverage": {"0.9": 0.89},
}
_ACCURACY = {
    "n": 36,
    "mae": 2.2,
    "bias": -0.3,
    "mase": 0.85,
    "coverage": {"0.8": 0.81, "0.95": 0.94},
    "width": {"0.8": 6.7, "0.95": 10.9},
    "wql_recorded": 0.05,
    "msis_95": 5.4,
}
_READINESS = {"ready": True, "model": _MODEL, "age_s": 812.4, "slot": {"checked_s": 0.4, "error": None}}

REQUEST_EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "/v1/forecast": {
        "One series": {"series": [_HISTORY], "horizon": 3, "levels": [0.1, 0.9]},
        "Timestamps for every value": {
            "series": [
                {"id": "ward 7", "ds": [f"2006-{month:02}-01" for month in range(1, 13)], "y": list(range(20, 32))}
            ],
            "horizon": 3,
        },
        f"{PRETRAINED_TITLE}: several frequencies, and a season": {
            "series": [
                _HISTORY,
                {
                    "id": "visits",
                    "start": "2026-03-02",
                    "freq": "D",
                    "season": 7,
                    "y": [210, 198, 205, 221, 260, 310, 295, 214],
                },
            ],
            "horizon": 3,
        },
        "A state instead of the history next time": {"series": [_HISTORY], "horizon": 3, "return_state": True},
    },
    "/v1/scenarios": {
        "Two futures": {
            "series": {
                "id": "store 1",
                "start": "2025-01-01",
                "freq": "MS",
                "y": [31, 28, 40, 44, 30, 29, 41, 43, 32, 30, 42, 45],
                "covariates": {"promo": [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1]},
            },
            "scenarios": [
                {"name": "no promotion", "covariates": {"promo": [0, 0, 0]}},
                {"name": "one promotion", "covariates": {"promo": [1, 0, 0]}},
            ],
            "horizon": 3,
        }
    },
    "/invocations": {
        "MLflow: a long frame": {
            "dataframe_split": {
                "columns": ["unique_id", "ds", "y"],
                "data": [["ward 7", f"2006-{month:02}-01", 20 + month] for month in range(1, 13)],
            },
            "params": {"horizon": 3, "levels": [0.1, 0.9]},
        },
        "SageMaker: DeepAR": {
            "instances": [
                {"start": "2005-01-01 00:00:00", "target": [21, 18, 25, 23, "NaN", 19, 22, 24, 20, 26, 23, 21]}
            ],
            "configuration": {"output_types": ["mean", "quantiles"], "quantiles": ["0.1", "0.9"]},
        },
    },
    "/v1/backtest": {"Two origins": {"series": [_HISTORY], "horizon": 3, "windows": 2, "levels": [0.9]}},
    "/v1/explain": {
        "One series": {"series": _HISTORY, "horizon": 3},
        "With faithfulness": {"series": _HISTORY, "horizon": 3, "faithfulness": True},
    },
    "/v1/actuals": {
        "Three months": {"series": [{"id": "ward 7", "start": "2007-01-01", "freq": "MS", "y": [26, 24, 27]}]}
    },
}

RESPONSE_EXAMPLES: Mapping[str, Any] = {
    "/v1/forecast": {"model": _MODEL, "forecasts": [_FORECAST, {"id": "ward 8", "error": _TOO_SHORT}]},
    "/v1/scenarios": {
        "model": _MODEL,
        "scenarios": [
            {
                "name": "no promotion",
                "id": "store 1",
                "ds": _DS,
                "mean": [33, 31, 34],
                "warnings": [],
                "difference": [0, 0, 0],
            },
            {
                "name": "one promotion",
                "id": "store 1",
                "ds": _DS,
                "mean": [42, 32, 34],
                "warnings": [],
                "difference": [9, 1, 0],
            },
        ],
    },
    "/invocations": {
        "predictions": [{"unique_id": "ward 7", "ds": "2007-01-01", "mean": 25.2, "0.1": 21.9, "0.9": 28.6}]
    },
    "/v1/backtest": {
        "model": _MODEL,
        "horizon": 3,
        "windows": 2,
        "stride": 3,
        "overall": _COMPARISON,
        "series": [{"id": "ward 7", **_COMPARISON, "warnings": []}],
    },
    "/v1/explain": {
        "model": _MODEL,
        "id": "ward 7",
        "horizon": 3,
        "ds": ["2006-10-01", "2006-11-01", "2006-12-01"],
        "y": [26, 28, 25],
        "half_life": 5.5,
        "influence": [0.2, 0.3, 0.5],
        "layers": [{"gates": {"update": [0.31, 0.36, 0.33]}, "norm": [1.2, 1.3, 1.1], "half_life": 1.7}],
        "attribution": [0.4, 0.9, 1.6],
        "channels": {},
        "forecast": 25.3,
        "baseline": 22.4,
        "gap": 0.0,
        "covariates": {},
        "future_ds": ["2007-01-01", "2007-02-01", "2007-03-01"],
        "reference": 22.4,
        "completeness_error": 0.0,
        "integration_points": 106,
        "faithfulness": None,
        "methods": {"attribution": "integrated gradients (Sundararajan et al. 2017)"},
        "notes": [],
    },
    "/v1/actuals": {
        "outcomes": [{"id": "ward 7", "stored": 3, "corrected": 0, "scored": 3, "by_horizon": {"1": 1, "2": 1, "3": 1}}]
    },
    "/v1/accuracy": {
        "model": _MODEL,
        "since": "2007-01-02T08:15:00Z",
        "until": "2007-04-02T08:15:00Z",
        "forecasts": 12,
        "scored": 12,
        "overall": _ACCURACY,
        "by_horizon": [{"step": 1, **_ACCURACY}],
    },
    "/ping": _READINESS,
    "/v1/model": {
        "model": _MODEL,
        "spec": {"name": "hospital", "context": 24, "horizon": 12},
        "freq": "MS",
        "season": 12,
        "cutoff": "2006-12-01T00:00:00",
        "text_covariates": [],
        "min_history": 12,
        "calibration": {"basis": "ranks", "windows": 4},
        "intervals": "calibrated",
        "bounds": {"lower": 0, "upper": None, "zero": "training_data"},
        "facts": {"scores": {"mase": 0.82}},
        "card": "# hospital\n...",
        "age_s": 812.4,
        "slot": {"checked_s": 0.4, "error": None},
    },
    "/livez": {"live": True},
    "/readyz": _READINESS,
    "/metrics": 'forecaster_requests_total{route="/v1/forecast",status="200"} 12.0\n',
    "/docs.json": {"openapi": "3.1.0", "info": {"title": "forecaster"}, "paths": {}},
    "/openapi.json": {"openapi": "3.1.0", "info": {"title": "forecaster"}, "paths": {}},
    "/schema.json": {
        "name": "forecaster",
        "type": "service",
        "routes": [{"name": "forecast", "route": "/v1/forecast"}],
    },
}
NDJSON_REQUEST_EXAMPLE = (
    '{"horizon": 3, "levels": [0.1, 0.9]}\n'
    '{"id": "ward 7", "start": "2005-01-01", "freq": "MS", "y": [21, 18, 25, 23, null, 19, 22, 24, 20, 26, 23, 21]}\n'
)
