"""Asks a service over HTTP, with data frames in and out: `AppClient` and, for those who wait for many things, `AsyncClient`.

    from forecaster.client import Client

    with Client("http://127.0.0.1:3000") as client:
        client.forecast(frame, horizon=24, levels=(0.1, 0.9))

Needs httpx (the extra `client`) and neither torch nor a network of its own. What was refused because the service is busy or not
ready, and what a broken connection lost, is asked again after a pause; nothing else is.
"""

from forecaster.client.batches import FrameForecast, ServiceOutcomes
from forecaster.client.client import AsyncClient, Client
from forecaster.client.transport import RetryPolicy

__all__ = ["AsyncClient", "Client", "FrameForecast", "RetryPolicy", "ServiceOutcomes"]
