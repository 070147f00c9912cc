"""What is measured: the cases, the data they share, who takes part, and what is aimed at. Needs numpy alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

FIRST_TIMESTAMP = "2020-01-01"  # of the first value; hours follow
SHORT_STEPS = 3  # steps of the training that is taken from a longer one, so that what is done once does not count


@dataclass(frozen=True)
class SpeedCase:
    """One measurement, the same for all who take part.

    Attributes:
        group: What kind it is: classical, process (the same, from the start of the process to its end), large, members,
            rollout or backtest.
        name: Within all cases.
        cell: Of the network, lstm or gru.
        hidden: Units of a layer.
        layers: One on the other.
        context: Steps of a window, and of the history that a forecast starts from.
        batch: Windows of an optimiser step.
        horizon: Steps ahead.
        steps: Optimiser steps; of a rollout or backtest, those that make a network at all.
        series: How many there are; of a rollout, how many are forecast in one call.
        length: Steps of each.
        origins: Of a backtest, one step apart.
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
        """As people say it."""
        return f"{self.cell.upper()} {self.hidden}x{self.layers}"


@dataclass(frozen=True)
class SpeedTarget:
    """How many times faster than an entrant we want to be; below 1, how much slower we may be.

    Attributes:
        than: The entrant.
        times: As many.
        ours: Which of our entrants is meant; the first, if not said.
    """

    entrant: str
    factor: float
    ours: str | None = None


# Entrants by group, as "runner/entrant"; the first is ours, whom the others are compared with.
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
PEERS = ("darts", "neuralforecast", "gluonts")  # runners; `bare` is no peer
FASTEST_PEER = "the fastest peer"

# What a group takes on two quiet cores, roughly: seconds to make its entrants ready, and seconds of a repetition of them all.
GROUP_SECONDS: dict[str, tuple[float, float]] = {
    "classical": (8.0, 65.0),
    "large": (15.0, 25.0),
    "members": (3.0, 3.0),
    "rollout": (10.0, 8.0),
    "backtest": (3.0, 4.0),
    "process": (45.0, 100.0),
}
UNITS = {  # and by what seconds are multiplied
    "classical": ("s for 1000 steps", 1.0),
    "large": ("ms a step", 1000.0),
    "members": ("ms a step", 1000.0),
    "rollout": ("ms a call", 1000.0),
    "backtest": ("ms for all origins", 1000.0),
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
        *(_rollout_case(*size, *ask) for size in ((64, 1), (128, 2)) for ask in ((1, 24), (1, 720), (1024, 24))),
        SpeedCase("backtest", "backtest", length=2000, origins=500),
        SpeedCase("process", "process", context=30, batch=50, steps=1000),
    )
}


def shrink_case(case: SpeedCase) -> SpeedCase:
    """The same case at a size that only shows whether it runs."""
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
    """The values of a case: float64, series by step; the same at every call.

    Classical: f(t) = t sin(t) / 3 + 2 sin(5 t), ten values a second. Otherwise a panel: for each series a level, a daily and
    a weekly wave, and noise, drawn with a fixed seed.
    """
    if case.group in ("classical", "process"):
        t = 0.1 * np.arange(case.length)
        return np.tile(t * np.sin(t) / 3 + 2 * np.sin(5 * t), (case.series, 1))
    draw = np.random.default_rng(2024)
    steps = np.arange(case.length)
    level = draw.uniform(5.0, 15.0, (case.series, 1))
    waves = sum(
        draw.uniform(0.5, 2.0, (case.series, 1))
        * np.sin(2 * np.pi * (steps / period + draw.uniform(size=(case.series, 1))))
        for period in (24, 168)
    )
    return np.asarray(level + waves + 0.3 * draw.standard_normal((case.series, case.length)))


def make_histories(case: SpeedCase) -> np.ndarray:
    """What the forecasts of a rollout start from: the last `context` values of each series."""
    return make_values(case)[:, -case.context :]
