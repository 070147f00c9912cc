"""The BentoML service class that runs our application. BentoML provides processes, supervision and packaging.

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


class ApplicationService(bentoml.Service[Any]):  # type: ignore[misc]  # bentoml loads its names lazily
    """A service that describes our routes to BentoML; a subclass says in `to_asgi` with which settings they are served."""

    def schema(self) -> dict[str, Any]:
        """Describes the endpoints for BentoML's clients; `bentoml build` writes it into the Bento."""
        from serving.routes.bentoml_schema import build_schema

        return build_schema(self.name)

    @property
    def openapi_spec(self) -> dict[str, Any]:
        """The OpenAPI document, which `bentoml build` writes into the Bento."""
        from serving.routes.openapi import build_document

        return build_document()


def start_application(settings: Settings) -> ASGIApp:
    """Prepares this worker process, and returns its application."""
    # Imported here because the process that starts the workers does not need it.
    import uvicorn

    from serving.asgi.connections import ConnectionLimits, limit_connections
    from serving.routes.app import build_application

    log_format.configure_logging()
    end_with_launcher(os.environ, grace_s=settings.grace_s + 5.0)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    application = build_application(settings)
    # uvicorn looks its protocol up by name; BentoML offers no option for it.
    limits = ConnectionLimits(settings.max_connections, count_closed=application.metrics.count_closed_connection)
    uvicorn.config.HTTP_PROTOCOLS["auto"] = limit_connections(limits)  # type: ignore[assignment]
    gc.freeze()  # modules stay loaded; scanning them for garbage holds the GIL for a tenth of a second
    return application.app
