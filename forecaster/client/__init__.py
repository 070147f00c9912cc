"""Client of the service over HTTP, with data frames in and out: `Client` and, for asynchronous programs, `AsyncClient`.

    from forecaster.client import Client

    with Client("http://127.0.0.1:3000") as client:
        client.forecast(frame, horizon=24, levels=(0.1, 0.9))

Needs httpx (the extra `client`), but neither torch nor a model. A request is retried after a delay where the service is busy or
not ready, or the connection broke; no other failure is retried.
"""

from forecaster.client.async_client import AsyncClient
from forecaster.client.batches import FrameForecast, ServiceOutcomes
from forecaster.client.client import Client
from forecaster.client.transport import RetryPolicy
from forecaster.data.frames.rows import ColumnNames

__all__ = ["AsyncClient", "Client", "ColumnNames", "FrameForecast", "RetryPolicy", "ServiceOutcomes"]
