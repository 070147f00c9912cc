"""The BentoML service. BentoML provides processes, supervision and packaging; our application handles every request.

What surprised us (BentoML 1.4.39, measured with our application mounted at "/"):

- BentoML's own /livez, /readyz (200 without any model), /healthz, /metrics and /schema.json take precedence over a mounted
  application.
- A mounted Starlette application receives only the paths it knows. So / is BentoML's page with a third-party tag manager,
  404s are plain text, and /livez/ is redirected.
- BentoML's middlewares also run around mounted applications, label metrics by raw path and log lines that %0A forges.

So none of that is used or even imported, which saves a tenth of the start-up time: `to_asgi`, which each worker calls once,
returns our application with its own lifespan.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import bentoml
from starlette.types import ASGIApp

from serving import log_format
from serving.deployment.launcher import end_with_launcher
from serving.settings import Settings

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")  # BentoML does not accept "1"
os.environ["FORWARDED_ALLOW_IPS"] = (
    ""  # uvicorn would believe the headers of any local client; asgi/proxies.py reads them
)
# Time a thread may hold the GIL while another waits for it; Python's default is 5 ms. The event loop releases the GIL at every
# read and write, and with the default it would wait 5 ms for each chunk of each body while a large request is computed.
_SWITCH_INTERVAL_S = 0.0005
_settings = Settings.from_environment(os.environ)  # BentoML imports this module by name, so no caller can pass them


class _AsgiService(bentoml.Service[Any]):  # type: ignore[misc]  # bentoml loads its names lazily
    """A service that runs our application in place of BentoML's own."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        # Imported here because the process that starts the workers does not need it.
        import uvicorn

        from serving.asgi.connections import ConnectionLimits, limit_connections
        from serving.routes.app import build_application

        log_format.configure_logging()
        end_with_launcher(os.environ, grace_s=_settings.grace_s + 5.0)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        application = build_application(_settings)
        # uvicorn looks its protocol up by name; BentoML offers no option for it.
        limits = ConnectionLimits(_settings.max_connections, count_closed=application.metrics.count_closed_connection)
        uvicorn.config.HTTP_PROTOCOLS["auto"] = limit_connections(limits)  # type: ignore[assignment]
        gc.freeze()  # modules stay loaded; scanning them for garbage holds the GIL for a tenth of a second
        return application.app


@bentoml.service(name="forecaster", workers=_settings.workers, service_class=_AsgiService)
class ForecastService:
    """Forecasts over HTTP."""
