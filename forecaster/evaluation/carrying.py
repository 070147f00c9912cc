"""What it costs, or gains, to read a whole history with its state carried instead of a window: both by the same network."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from forecaster.evaluation.backtest import backtest
from forecaster.metrics import nanmean
from forecaster.model.regressor import build
from forecaster.predict import Forecaster, Predictor
from forecaster.series import Panel
from forecaster.spec import Reads, Spec


class CarryGap(NamedTuple):
    """How far the two readings are from each other and from the truth, in errors of the seasonal naive forecast.

    Attributes:
        distance: Mean absolute difference of their forecasts.
        window: MASE of the forecasts from windows.
        history: MASE of those from whole histories.
    """

    distance: float
    window: float
    history: float


def carry_gap(forecaster: Forecaster, panel: Panel, *, windows: int, stride: int | None = None) -> CarryGap:
    """The gap on the last `windows` origins of every series, `stride` apart (a horizon, if not given).

    Every mean is one over the series' own means. Raises HistoryTooShort if no series has so many origins, BadSpec if the
    forecaster's scaling is none for whole histories.
    """
    spec = forecaster.spec
    result = backtest(
        panel,
        {reads: Predictor(read_as(forecaster, reads)) for reads in ("window", "history")},
        horizon=spec.horizon,
        windows=windows,
        season=forecaster.season,
        keep=spec.least,
        stride=stride,
    )
    apart = np.abs(result.forecasts["history"] - result.forecasts["window"]) / result.scale[:, None, None]
    means = {name: result.scores(name)["mase"] for name in result.forecasts}
    return CarryGap(float(nanmean(nanmean(apart, axis=(1, 2)))), means["window"], means["history"])


def read_as(forecaster: Forecaster, reads: Reads, *, context: int | None = None) -> Forecaster:
    """The same weights behind another reading of histories, and another context, if one is given.

    Raises BadSpec where the specification does not allow it.
    """
    spec = forecaster.spec
    fields = {"reads": reads, "context": context or spec.context, "min_history": spec.least}
    where = f"{spec.name!r} that reads {reads}"
    changed = Spec.parse(spec.model_dump() | fields, where=where)
    encoding = forecaster.encoding
    changed_networks = []
    for member in forecaster.networks:
        network = build(changed, seed=0, season=forecaster.season, covariates=encoding.width, groups=encoding.sizes)
        network.load_state_dict(member.state_dict())
        changed_networks.append(network.eval())
    network, *others = changed_networks
    return replace(forecaster, spec=changed, network=network, others=tuple(others), graphs=())
