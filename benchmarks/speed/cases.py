"""Cases of the speed benchmark: their sizes, shared data, entrants and targets. Needs only numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

FIRST_TIMESTAMP = "2020-01-01"  # timestamp of the first value; the series are hourly
SHORT_STEPS = 3  # steps of the short training that is subtracted from a longer one, to exclude fixed costs


@dataclass(frozen=True)
class SpeedCase:
    """One measurement, the same for all entrants.

    Attributes:
        group: Kind of measurement: classical, process (the same as a whole process), large, members, rollout or backtest.
        name: Unique name of the case.
        cell: Cell of the network, lstm or gru.
        hidden: Units per layer.
        layers: Number of layers.
        context: Steps of a window, and of the history that a forecast starts from.
        batch: Windows per optimiser step.
        horizon: Steps ahead.
        steps: Optimiser steps; for a rollout or backtest, only enough to build a network.
        series: Number of series; for a rollout, the number forecast in one call.
        length: Steps of each series.
        origins: Number of cutoffs of a backtest, one step apart.
    """

    group: str
    name: str
    cell: str = "lstm"
    hidden: int = 64
    layers: int = 1
    context: int = 96
    batch: int = 32
    horizon: int = 24
    steps: int = 1
    series: int = 1
    length: int = 300
    origins: int = 0

    @property
    def network_name(self) -> str:
        """Cell and size of the network, such as LSTM 64x1."""
        return f"{self.cell.upper()} {self.hidden}x{self.layers}"


@dataclass(frozen=True)
class SpeedTarget:
    """Target ratio of an entrant's time to ours; a ratio below 1 says how much slower we may be.

    Attributes:
        entrant: The entrant we compare with.
        factor: The target ratio.
        ours: Name of our entrant; the first of the group if None.
    """

    entrant: str
    factor: float
    ours: str | None = None


# Entrants by group, as "runner/entrant"; the first is ours, the reference of all ratios.
ENTRANTS: dict[str, tuple[str, ...]] = {
    "classical": (
        "ours/forecaster train",
        "ours/fit",
        "bare/PyTorch loop",
        "darts/Darts RNNModel",
        "neuralforecast/NeuralForecast recurrent",
        "neuralforecast/NeuralForecast direct",
        "gluonts/GluonTS DeepAR",
    ),
    "large": (
        "ours/fit",
        "bare/PyTorch loop",
        "darts/Darts RNNModel",
        "neuralforecast/NeuralForecast recurrent",
        "neuralforecast/NeuralForecast direct",
        "gluonts/GluonTS DeepAR",
    ),
    "members": ("ours/fit, 5 members", "ours/fit, 1 member"),
    "rollout": (
        "ours/Predictor.forecast_batch",
        "ours/engine in torch",
        "bare/nn.LSTM, state carried",
        "bare/ONNX Runtime, one Loop",
        "darts/Darts RNNModel",
        "neuralforecast/NeuralForecast recurrent",
        "neuralforecast/NeuralForecast recurrent, model.predict",
        "neuralforecast/NeuralForecast recurrent GRU, model.predict",
        "gluonts/GluonTS DeepAR",
    ),
    "backtest": ("ours/backtest, state carried", "ours/backtest, windows", "darts/Darts RNNModel"),
    "process": (
        "ours/forecaster train",
        "bare/PyTorch loop",
        "darts/Darts RNNModel",
        "neuralforecast/NeuralForecast recurrent",
        "neuralforecast/NeuralForecast direct",
        "gluonts/GluonTS DeepAR",
    ),
}
PEERS = ("darts", "neuralforecast", "gluonts")  # runners of peers; `bare` is not a peer
FASTEST_PEER = "the fastest peer"

# Rough duration of a group on two idle cores: seconds to prepare its entrants, and seconds of one repetition of all of them.
GROUP_SECONDS: dict[str, tuple[float, float]] = {
    "classical": (8.0, 65.0),
    "large": (15.0, 25.0),
    "members": (3.0, 3.0),
    "rollout": (10.0, 8.0),
    "backtest": (3.0, 4.0),
    "process": (45.0, 100.0),
}
UNITS = {  # unit, and the factor that converts seconds to it
    "classical": ("s for 1000 steps", 1.0),
    "large": ("ms per step", 1000.0),
    "members": ("ms per step", 1000.0),
    "rollout": ("ms per call", 1000.0),
    "backtest": ("ms for all cutoffs", 1000.0),
    "process": ("s", 1.0),
}

SPEED_TARGETS = {
    "classical": (
        SpeedTarget("PyTorch loop", 1 / 1.2),
        SpeedTarget("Darts RNNModel", 1.6),
        SpeedTarget("NeuralForecast recurrent", 3.5),
        SpeedTarget("GluonTS DeepAR", 4.0),
    ),
    "large_lstm": (SpeedTarget("PyTorch loop", 1.5), SpeedTarget(FASTEST_PEER, 1.5)),
    "large_gru": (SpeedTarget("PyTorch loop", 1.5), SpeedTarget(FASTEST_PEER, 1.5)),
    "rollout_64x1_1x24": (SpeedTarget(FASTEST_PEER, 25.0),),
    "rollout_64x1_1x720": (SpeedTarget(FASTEST_PEER, 10.0),),
    "rollout_64x1_1024x24": (SpeedTarget(FASTEST_PEER, 2.5),),
    "rollout_128x2_1x24": (SpeedTarget(FASTEST_PEER, 25.0),),
    "rollout_128x2_1x720": (SpeedTarget(FASTEST_PEER, 10.0),),
    "rollout_128x2_1024x24": (SpeedTarget(FASTEST_PEER, 2.5),),
    "backtest": (SpeedTarget("Darts RNNModel", 20.0), SpeedTarget("Darts RNNModel", 20.0, ours="backtest, windows")),
}


def _rollout_case(hidden: int, layers: int, series: int, horizon: int) -> SpeedCase:
    name = f"rollout_{hidden}x{layers}_{series}x{horizon}"
    return SpeedCase("rollout", name, hidden=hidden, layers=layers, series=series, horizon=horizon)


_LARGE_CASE = SpeedCase("large", "large_lstm", hidden=128, layers=2, batch=128, steps=15, series=64, length=500)

CASES = {
    case.name: case
    for case in (
        SpeedCase("classical", "classical", context=30, batch=50, steps=1000),
        _LARGE_CASE,
        replace(_LARGE_CASE, name="large_gru", cell="gru"),
        SpeedCase("members", "members", batch=64, steps=60, series=16, length=500),
        *(_rollout_case(*size, *query) for size in ((64, 1), (128, 2)) for query in ((1, 24), (1, 720), (1024, 24))),
        SpeedCase("backtest", "backtest", length=2000, origins=500),
        SpeedCase("process", "process", context=30, batch=50, steps=1000),
    )
}


def shrink_case(case: SpeedCase) -> SpeedCase:
    """Returns the case at a tiny size, to check that it runs."""
    return replace(
        case,
        hidden=4,
        context=12,
        batch=4,
        horizon=min(case.horizon, 30) // 6,
        steps=min(case.steps, SHORT_STEPS + 2),
        series=min(case.series, 3),
        length=min(case.length, 120),
        origins=min(case.origins, 10),
    )


def make_values(case: SpeedCase) -> np.ndarray:
    """Returns the values of a case: float64, series by step; the same at every call.

    Classical: f(t) = t sin(t) / 3 + 2 sin(5 t), ten values per unit of t. Otherwise a panel: each series has a level, a daily
    and a weekly wave, and noise, drawn with a fixed seed.
    """
    if case.group in ("classical", "process"):
        t = 0.1 * np.arange(case.length)
        return np.tile(t * np.sin(t) / 3 + 2 * np.sin(5 * t), (case.series, 1))
    rng = np.random.default_rng(2024)
    steps = np.arange(case.length)
    level = rng.uniform(5.0, 15.0, (case.series, 1))
    waves = sum(
        rng.uniform(0.5, 2.0, (case.series, 1))
        * np.sin(2 * np.pi * (steps / period + rng.uniform(size=(case.series, 1))))
        for period in (24, 168)
    )
    return np.asarray(level + waves + 0.3 * rng.standard_normal((case.series, case.length)))


def make_histories(case: SpeedCase) -> np.ndarray:
    """Returns the histories of a rollout: the last `context` values of each series."""
    return make_values(case)[:, -case.context :]
