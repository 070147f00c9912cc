# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A probabilistic backtest
#
# How often do 80 % intervals hold the actual, how wide are they, and what is the quantile loss? Measured at several
# origins, beside an interval that needs no model. It takes a few seconds and needs the extra `train`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from forecaster import Forecaster
from forecaster.data.datasets import load_hospital
from forecaster.metrics import coverage, interval_width, pinball

# %%
df = load_hospital()
df = df[df["unique_id"].isin(df["unique_id"].unique()[::16])]
HORIZON, ORIGINS, SEASON = 12, 4, 12

# %% [markdown]
# ## Forecasts at rolling origins
#
# `cross_validation` forecasts from the last origins of every series. The pretrained network has seen none of these
# series, so every origin may be scored; a fitted model would be fitted again on the data before the first one.

# %%
model = Forecaster.pretrained(horizon=HORIZON)
table = model.cross_validation(df, n_windows=ORIGINS, level=[50, 80, 95], progress=False)
table.head()

# %% [markdown]
# ## The interval without a model
#
# Seasonal naive repeats the value of a year ago. Its errors on the history before an origin give an interval: their
# quantiles around the forecast.


# %%
def naive_interval(history: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bounds over a season, from the quantiles of the errors on the history."""
    errors = history[SEASON:] - history[:-SEASON]
    low, high = np.quantile(errors, [(1 - level) / 2, (1 + level) / 2])
    return history[-SEASON:] + low, history[-SEASON:] + high


rows = []
for (unique_id, cutoff), window in table.groupby(["unique_id", "cutoff"]):
    history = df[(df["unique_id"] == unique_id) & (df["ds"] <= cutoff)]["y"].to_numpy(dtype=float)
    actual = window["y"].to_numpy(dtype=float)
    scale = np.abs(history[SEASON:] - history[:-SEASON]).mean()
    bounds = {
        "pretrained": (window["forecaster-lo-80"].to_numpy(), window["forecaster-hi-80"].to_numpy()),
        "seasonal naive": naive_interval(history, 0.8),
    }
    for name, (low, high) in bounds.items():
        loss = pinball(actual, np.stack([low, high], axis=-1), np.array([0.1, 0.9])).mean()
        rows.append((name, coverage(actual, low, high), interval_width(low, high) / scale, 2 * loss / scale))
scores = pd.DataFrame(rows, columns=["interval", "coverage", "width", "loss"]).groupby("interval").mean()
scores

# %% [markdown]
# `coverage` should be 0.8; `width` and `loss` (twice the mean quantile loss of the two bounds) are in units of the
# seasonal naive error, and lower is better. A narrow interval with a low coverage is not good: only the loss weighs
# both.
#
# ## Coverage by level

# %%
nominal = [50, 80, 95]
observed = [
    table["y"].between(table[f"forecaster-lo-{level}"], table[f"forecaster-hi-{level}"]).mean() for level in nominal
]
figure, axes = plt.subplots(figsize=(4, 4))
axes.plot([0, 100], [0, 100], color="0.6", linewidth=1, label="nominal")
axes.plot(nominal, [100 * share for share in observed], marker="o", label="observed")
axes.set(xlabel="level, %", ylabel="actuals within the interval, %")
axes.legend()
plt.show()

# %% [markdown]
# Points above the line mean intervals that are too wide. Windows of neighbouring origins share their values, and
# series of one hospital share their months: 4 origins of 48 series are fewer than 192 independent ones. `forecaster
# backtest` reports these scores with a significance test.
