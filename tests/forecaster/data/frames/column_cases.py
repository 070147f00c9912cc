"""What frames with further columns may be like, and what becomes of each: the last rows of docs/data.md, in their order."""

from __future__ import annotations

import numpy as np
import pandas as pd

from forecaster.data.summary import summarise
from forecaster.errors import (
    CovariateUnknown,
    DuplicateColumn,
    DuplicateStamp,
    NotANumber,
    StaticChanges,
)
from tests.forecaster.data.frames.long_frames import (
    Case,
    channel,
    series,
    values,
    with_channel,
    with_covariates,
    without,
)

OF_FURTHER_COLUMNS: dict[str, Case] = {
    # covariates and static columns
    "covariates, and rows without `y` after the last observed one": Case(
        lambda: with_covariates([1.0, 2.0, 3.0, 4.0], [1.0, np.nan, 3.0, np.nan]),
        options={"covariates": ("heat",), "freq": "D"},
        holds=lambda panel: values(1, None, 3)(panel) and panel.series[0].ahead == 1,
    ),
    "covariates that are text": Case(
        lambda: with_covariates(["sun", "rain"] * 10, np.arange(20.0)),
        options={"covariates": ("heat",)},
        holds=lambda panel: panel.series[0].covariates["heat"].dtype == object,
    ),
    "covariates that are bools": Case(
        lambda: with_covariates([True, False] * 10, np.arange(20.0)),
        options={"covariates": ("heat",)},
        holds=lambda panel: panel.series[0].covariates["heat"].tolist() == [1.0, 0.0] * 10,
    ),
    "a covariate that is missing somewhere": Case(
        lambda: with_covariates([1.0, np.nan, 3.0], [1.0, 2.0, 3.0]),
        CovariateUnknown,
        "'heat' .* at 2026-01-02",
        {"covariates": ("heat",), "freq": "D"},
    ),
    "a covariate that is infinite": Case(
        lambda: with_covariates([1.0, np.inf, 3.0], [1.0, 2.0, 3.0]), NotANumber, "'heat'", {"covariates": ("heat",)}
    ),
    "absent rows with covariates": Case(
        lambda: without(with_covariates(1.0, np.arange(5.0)), 2),
        CovariateUnknown,
        "no row after 2026-01-02",
        {"covariates": ("heat",), "freq": "D"},
    ),
    "a static column": Case(
        lambda: series(region=5),
        options={"static": ("region",)},
        holds=lambda panel: panel.series[0].static == {"region": "5"},
    ),
    "a static column that changes within a series": Case(
        lambda: series(y=[1.0, 2.0], region=["n", "s"]),
        StaticChanges,
        "from 'n' to 's' at 2026-01-02",
        {"static": ("region",), "freq": "D"},
    ),
    "a static column that is missing somewhere": Case(
        lambda: series(y=[1.0, 2.0], region=["n", None]), CovariateUnknown, "'region'", {"static": ("region",)}
    ),
    # channels
    "a channel": Case(
        lambda: with_channel(["5", " 6.5 ", "7"], [1.0, 2.0, 3.0]),
        options={"channels": ("rain",), "freq": "D"},
        holds=channel(5, 6.5, 7),
    ),
    "a channel that is missing somewhere": Case(
        lambda: with_channel([np.nan, 6.0, np.nan], [1.0, 2.0, 3.0]),
        options={"channels": ("rain",), "freq": "D"},
        holds=lambda panel: channel(None, 6, None)(panel) and summarise(panel).channels == {"rain": 2},
    ),
    "a channel that is never observed in a series": Case(
        lambda: with_channel([np.nan] * 3, [1.0, 2.0, 3.0]),
        options={"channels": ("rain",), "freq": "D"},
        holds=channel(None, None, None),
    ),
    "a channel that goes on where `y` is not observed": Case(
        lambda: with_channel([4.0, 5.0, 6.0], [1.0, 2.0, np.nan]),
        options={"channels": ("rain",), "freq": "D"},
        holds=lambda panel: channel(4, 5, 6)(panel) and values(1, 2, None)(panel),
    ),
    "a channel that goes on after the last `y`, beside covariates": Case(
        lambda: with_channel([4.0, 5.0, 6.0, np.nan], [1.0, 2.0, np.nan, np.nan], heat=1.0),
        says="1 values of channel 'rain' after the last observed `y`",
        options={"channels": ("rain",), "covariates": ("heat",), "freq": "D"},
        holds=lambda panel: channel(4, 5)(panel) and panel.series[0].ahead == 2,
    ),
    "absent rows with channels": Case(
        lambda: without(with_channel([4.0, 5.0, 6.0, 7.0], [1.0, 2.0, 3.0, 4.0]), 1),
        None,
        "1 absent rows",
        {"channels": ("rain",), "freq": "D"},
        lambda panel: channel(4, None, 6, 7)(panel) and values(1, None, 3, 4)(panel),
    ),
    "a stamp twice, with different channels": Case(
        lambda: pd.concat([with_channel(1.0, [1.0, 2.0]), with_channel(2.0, [1.0, 2.0])]),
        DuplicateStamp,
        "another column",
        {"channels": ("rain",), "freq": "D"},
    ),
    "a channel that is text or bools": Case(
        lambda: with_channel([True, False], [1.0, 2.0]), NotANumber, "'rain'", {"channels": ("rain",)}
    ),
    "a channel that is infinite": Case(
        lambda: with_channel([1.0, -np.inf], [1.0, 2.0]), NotANumber, "'rain'", {"channels": ("rain",)}
    ),
    "a channel that is a covariate too": Case(
        lambda: with_channel(1.0, [1.0, 2.0]),
        DuplicateColumn,
        "'rain'",
        {"channels": ("rain",), "covariates": ("rain",)},
    ),
}
