# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Streaming and explaining
#
# New values arrive one by one: a client sends the history once, then only what is new, and the service continues from
# a state. Then an explanation of one forecast. It takes a few seconds and needs the extras `train` and `serve`.

# %%
import subprocess
import sys
import time

import httpx
import matplotlib.pyplot as plt
import numpy as np

from forecaster import Forecaster
from forecaster.data.datasets import load_hospital

# %% [markdown]
# A simulated meter: 125 days of hourly values with a daily profile, a working week and noise.

# %%
hours = np.arange(3000)
is_weekend = hours // 24 % 7 >= 5
profile = 10 + 4 * np.sin(2 * np.pi * (hours - 6) / 24) - 3 * is_weekend
values = (profile + np.random.default_rng(0).normal(scale=0.5, size=3000)).round(2).tolist()

# %% [markdown]
# ## A service
#
# `forecaster serve` in a terminal is the usual way. Here it is a process of the notebook, on a port of its own, and
# serves the pretrained network.

# %%
PORT = 3917
ADDRESS = f"http://127.0.0.1:{PORT}"
server = subprocess.Popen([sys.executable, "-m", "pipelines", "serve", "--port", str(PORT), "--root", "streaming"])


def wait_until_ready(seconds: float = 90.0) -> None:
    """Returns when the service is ready; raises TimeoutError if it is not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{ADDRESS}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError("The service did not become ready; its log is above.")


wait_until_ready()

# %% [markdown]
# ## The history once, then one value at a time
#
# `return_state` requests a state: signed text with what a forecast still needs of the history. The next request sends
# it with the new values in place of the history. The state belongs to the model; after a promotion the service
# refuses it with 409, and the client sends the history again.

# %%
known, later = values[:-24], values[-24:]
first = {"id": "meter", "start": "2026-01-05T00:00", "freq": "h"}
body = {"series": [first | {"y": known}], "horizon": 1, "levels": [0.1, 0.9]}
history = list(known)
forecasts, sizes = [], []
with httpx.Client(base_url=ADDRESS, timeout=30) as client:
    for value in later:
        response = client.post("/v1/forecast", json=body | {"return_state": True})
        response.raise_for_status()
        result = response.json()["forecasts"][0]
        forecasts.append((result["mean"][0], result["quantiles"]["0.1"][0], result["quantiles"]["0.9"][0]))
        sizes.append(len(response.request.content))
        body["series"] = [{"id": "meter", "state": result["state"], "y": [value]}]
        history.append(value)
print("bytes of the first request:", sizes[0], "and of the largest later one:", max(sizes[1:]))

# %% [markdown]
# The later requests do not grow with the history; for a short one they are no smaller, because a state holds what the
# network still reads. A forecast from a state is that of the whole history. The last one, requested both ways:

# %%
with httpx.Client(base_url=ADDRESS, timeout=30) as client:
    from_state = client.post("/v1/forecast", json=body).json()["forecasts"][0]["mean"][0]
    whole = body | {"series": [first | {"y": history}]}
    from_history = client.post("/v1/forecast", json=whole).json()["forecasts"][0]["mean"][0]
print("difference:", abs(from_state - from_history))

# %%
server.terminate()
server.wait(timeout=30)

# %%
means, low, high = (list(column) for column in zip(*forecasts, strict=True))
figure, axes = plt.subplots(figsize=(8, 3))
axes.fill_between(range(24), low, high, alpha=0.3, label="80 % interval, one hour ahead")
axes.plot(means, label="forecast")
axes.plot(later, color="0.2", marker="o", linestyle="", label="actuals")
axes.legend()
plt.show()

# %% [markdown]
# ## Why
#
# Another series: monthly patient counts. An explanation splits the mean of the next twelve forecasts into a baseline
# and one contribution of each value that the network read. Faithfulness compares it with a random order: if it is not
# clearly higher, do not trust the contributions.

# %%
df = load_hospital()
explanation = Forecaster.pretrained(horizon=12).explain(df[df["unique_id"] == "T1"])
explanation

# %%
explanation.to_frame().sort_values("attribution", key=abs, ascending=False).head()

# %%
explanation.plot()
