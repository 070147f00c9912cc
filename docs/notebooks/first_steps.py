# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # First steps
#
# Forecasts of monthly patient counts: at once by the pretrained network, then by a model that is fitted to them, and
# a comparison of both on months that neither has seen. It takes half a minute and needs the extra `train`.

# %%
from forecaster import Forecaster
from forecaster.data.datasets import load_hospital

# %% [markdown]
# The data are a long table: one row for each series and month. `load_hospital` is a bundled data set of 767 monthly
# series; every sixteenth is enough here.

# %%
df = load_hospital()
df = df[df["unique_id"].isin(df["unique_id"].unique()[::16])]
print(df["unique_id"].nunique(), "series")
df.head()

# %% [markdown]
# ## At once
#
# The pretrained network was trained on generated series only. It infers frequency and season, and its intervals are
# those of its own quantiles.

# %%
base = Forecaster.pretrained()
forecast = base.predict(df, horizon=12, level=80)
forecast.head()

# %%
base.plot(df, forecast, max_ids=4, history_steps=48)

# %% [markdown]
# ## A model of your own
#
# `Forecaster(horizon=12).fit(df)` tries the variants of a preset, which takes minutes. A specification trains exactly
# one network: here a small one, whose last year is held out for the test.

# %%
spec = {
    "name": "hospital",
    "context": 24,
    "horizon": 12,
    "decoder": "direct",
    "base": "seasonal_naive",
    "network": {"hidden": 16},
    "training": {"steps": 300, "epoch_steps": 100, "valid_windows": 2},
}
model = Forecaster(horizon=12, spec=spec, seed=0)
model.fit(df, progress=False)
model.report

# %% [markdown]
# The report has the errors on the held-out year, beside naive forecasts and the pretrained network (`zero_shot`).
# MASE is the error relative to that of seasonal naive on the history: below 1 is better. One year of 48 series is
# little evidence, and a network this small need not be better than the pretrained one; if it is not, use that.

# %%
best = model.report.set_index("forecaster")["mase"].idxmin()
print("lowest MASE on the held-out year:", best)

# %% [markdown]
# ## Keep it
#
# A bundle is a folder that Python, the command line and the service read.

# %%
model.save("hospital", overwrite=True)
Forecaster.load("hospital").predict(df, level=80).tail(3)

# %% [markdown]
# The next notebook, `probabilistic_backtest`, scores intervals at many origins.
