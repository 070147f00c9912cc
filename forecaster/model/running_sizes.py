"""Sizes and constants of the running scale, which PyTorch and the engines share; nothing here needs torch."""

from __future__ import annotations

from forecaster.spec import RUNNING_LAGS

NUM_FORECASTS = 8  # simple forecasts that the base `mixture` combines
NUM_STATISTICS = 12
NUM_SCALARS = 24  # features that describe the past
LONG_CHANGE = 4  # seasons of the longest change in the statistics
LONG_DECAY = 0.7  # weight of a long season, relative to the next one
INDEX_DECAY = 0.9  # weight of a season in the index, relative to the next one
SEASONAL_FORECASTS = 3  # the first simple forecasts repeat the season
# An untrained network combines the simple forecasts with these weights.
PRIOR_WEIGHTS = (0.4, 0.6, 0.0, 0.5, 0.2, 0.0, 0.3, 0.1)
MAX_FEATURE, MAX_UNITS = 8.0, 2000.0
TINY = 1e-8
TINY_SQUARE = 1e-12
MIN_TIED_SIZE = 0.01  # units of a season below which the weights of the seasonal forecasts are left alone


def num_features(*, block: int) -> int:
    """Returns the number of features of a step."""
    return RUNNING_LAGS + SEASONAL_FORECASTS * block + NUM_SCALARS
