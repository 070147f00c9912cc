"""Frames with additional columns, and the outcome of each: the last rows of docs/data.md, in their order."""

from __future__ import annotations

import numpy as np
import pandas as pd

from forecaster.data.summary import summarize_panel
from forecaster.errors import (
    CovariateUnknown,
    DuplicateColumn,
    DuplicateStamp,
    NotANumber,
    StaticChanges,
)
from tests.forecaster.data.frames.long_frames import (
    FrameCase,
    channel_frame,
    covariates_frame,
    drop_rows,
    has_channel,
    has_values,
    series_frame,
)

COLUMN_CASES: dict[str, FrameCase] = {
    # covariates and static columns
    "covariates, and rows without `y` after the last observed one": FrameCase(
        lambda: covariates_frame([1.0, 2.0, 3.0, 4.0], [1.0, np.nan, 3.0, np.nan]),
        options={"covariates": ("heat",), "freq": "D"},
        check=lambda panel: has_values(1, None, 3)(panel) and panel.series[0].covariate_horizon == 1,
    ),
    "covariates that are text": FrameCase(
        lambda: covariates_frame(["sun", "rain"] * 10, np.arange(20.0)),
        options={"covariates": ("heat",)},
        check=lambda panel: panel.series[0].covariates["heat"].dtype == object,
    ),
    "covariates that are bools": FrameCase(
        lambda: covariates_frame([True, False] * 10, np.arange(20.0)),
        options={"covariates": ("heat",)},
        check=lambda panel: panel.series[0].covariates["heat"].tolist() == [1.0, 0.0] * 10,
    ),
    "numbers or bools where the model has learned text": FrameCase(
        lambda: covariates_frame([10, 20] * 10, np.arange(20.0)).assign(promo=[True, False] * 10),
        options={"covariates": ("heat", "promo"), "text_covariates": ("heat", "promo")},
        check=lambda panel: (
            panel.series[0].covariates["heat"].tolist() == ["10", "20"] * 10
            and panel.series[0].covariates["promo"].tolist() == ["True", "False"] * 10
        ),
    ),
    "digits as text where the model has learned numbers": FrameCase(
        lambda: covariates_frame(["10", "20"] * 10, np.arange(20.0)),
        options={"covariates": ("heat",), "text_covariates": ()},
        check=lambda panel: panel.series[0].covariates["heat"].tolist() == [10.0, 20.0] * 10,
    ),
    "text where the model has learned numbers": FrameCase(
        lambda: covariates_frame(["10", "none"], [1.0, 2.0]),
        NotANumber,
        "row 1 .*'none'",
        {"covariates": ("heat",), "text_covariates": (), "freq": "D"},
    ),
    "a covariate with missing values": FrameCase(
        lambda: covariates_frame([1.0, np.nan, 3.0], [1.0, 2.0, 3.0]),
        CovariateUnknown,
        "'heat' .* at 2026-01-02",
        {"covariates": ("heat",), "freq": "D"},
    ),
    "a covariate that is infinite": FrameCase(
        lambda: covariates_frame([1.0, np.inf, 3.0], [1.0, 2.0, 3.0]), NotANumber, "'heat'", {"covariates": ("heat",)}
    ),
    "absent rows with covariates": FrameCase(
        lambda: drop_rows(covariates_frame(1.0, np.arange(5.0)), 2),
        CovariateUnknown,
        "no row after 2026-01-02",
        {"covariates": ("heat",), "freq": "D"},
    ),
    "a static column": FrameCase(
        lambda: series_frame(region=5),
        options={"static": ("region",)},
        check=lambda panel: panel.series[0].static == {"region": "5"},
    ),
    "a static column that changes within a series": FrameCase(
        lambda: series_frame(y=[1.0, 2.0], region=["n", "s"]),
        StaticChanges,
        "from 'n' to 's' at 2026-01-02",
        {"static": ("region",), "freq": "D"},
    ),
    "a static column with missing values": FrameCase(
        lambda: series_frame(y=[1.0, 2.0], region=["n", None]), CovariateUnknown, "'region'", {"static": ("region",)}
    ),
    # channels
    "a channel": FrameCase(
        lambda: channel_frame(["5", " 6.5 ", "7"], [1.0, 2.0, 3.0]),
        options={"channels": ("rain",), "freq": "D"},
        check=has_channel(5, 6.5, 7),
    ),
    "a channel with missing values": FrameCase(
        lambda: channel_frame([np.nan, 6.0, np.nan], [1.0, 2.0, 3.0]),
        options={"channels": ("rain",), "freq": "D"},
        check=lambda panel: (
            has_channel(None, 6, None)(panel) and summarize_panel(panel).missing_by_channel == {"rain": 2}
        ),
    ),
    "a channel that is never observed in a series": FrameCase(
        lambda: channel_frame([np.nan] * 3, [1.0, 2.0, 3.0]),
        options={"channels": ("rain",), "freq": "D"},
        check=has_channel(None, None, None),
    ),
    "a channel that continues where `y` is not observed": FrameCase(
        lambda: channel_frame([4.0, 5.0, 6.0], [1.0, 2.0, np.nan]),
        options={"channels": ("rain",), "freq": "D"},
        check=lambda panel: has_channel(4, 5, 6)(panel) and has_values(1, 2, None)(panel),
    ),
    "a channel that continues after the last `y`, with covariates": FrameCase(
        lambda: channel_frame([4.0, 5.0, 6.0, np.nan], [1.0, 2.0, np.nan, np.nan], heat=1.0),
        message="1 values of channel 'rain' after the last observed `y`",
        options={"channels": ("rain",), "covariates": ("heat",), "freq": "D"},
        check=lambda panel: has_channel(4, 5)(panel) and panel.series[0].covariate_horizon == 2,
    ),
    "absent rows with channels": FrameCase(
        lambda: drop_rows(channel_frame([4.0, 5.0, 6.0, 7.0], [1.0, 2.0, 3.0, 4.0]), 1),
        None,
        "1 absent rows",
        {"channels": ("rain",), "freq": "D"},
        lambda panel: has_channel(4, None, 6, 7)(panel) and has_values(1, None, 3, 4)(panel),
    ),
    "a duplicate timestamp with different channels": FrameCase(
        lambda: pd.concat([channel_frame(1.0, [1.0, 2.0]), channel_frame(2.0, [1.0, 2.0])]),
        DuplicateStamp,
        "another column",
        {"channels": ("rain",), "freq": "D"},
    ),
    "a channel that is text or bools": FrameCase(
        lambda: channel_frame([True, False], [1.0, 2.0]), NotANumber, "'rain'", {"channels": ("rain",)}
    ),
    "a channel that is infinite": FrameCase(
        lambda: channel_frame([1.0, -np.inf], [1.0, 2.0]), NotANumber, "'rain'", {"channels": ("rain",)}
    ),
    "a channel that is also a covariate": FrameCase(
        lambda: channel_frame(1.0, [1.0, 2.0]),
        DuplicateColumn,
        "'rain'",
        {"channels": ("rain",), "covariates": ("rain",)},
    ),
}
