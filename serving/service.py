"""The BentoML service: BentoML gives processes, supervision and packaging; every request is answered by us.

What surprised us (BentoML 1.4.39, measured with our application mounted at "/"): its own /livez, /readyz (200 without
any model), /healthz, /metrics and /schema.json come before whatever is mounted; a mounted Starlette application is only
asked for paths it knows, so that / is BentoML's page with a third-party tag manager, 404s are plain text, and /livez/
is redirected; its middlewares run around mounted applications too, label metrics by raw path and log what %0A forges.
So nothing of that is used, and it is not even imported, which is a tenth of a start: `to_asgi`, which a worker calls once, gives
our application, with a lifespan of its own.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import bentoml
from starlette.types import ASGIApp

from serving import log_format
from serving.settings import Settings

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")  # "1" would not be understood
# Until a thread that waits for Python's lock is given it, of 5 ms otherwise: the one that answers connections lets go of it
# whenever it reads or writes, and while a large request is computed it would wait so long for each piece of each body.
_SWITCH_INTERVAL_S = 0.0005
_settings = Settings.from_environment(
    os.environ
)  # BentoML imports this module by name, so there is nobody to hand them over


class _AsgiService(bentoml.Service[Any]):  # type: ignore[misc]  # bentoml loads its names lazily
    """A service with an application of ours in place of BentoML's own."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        from serving.routes import (
            app as routes,  # here, because the process that starts the workers has no need of it
        )

        log_format.configure_logging()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        app = routes.build_application(_settings).app
        gc.freeze()  # modules stay, and to look through them for garbage keeps the lock for a tenth of a second
        return app


@bentoml.service(name="forecaster", workers=_settings.workers, service_class=_AsgiService)
class ForecastService:
    """Forecasts by HTTP."""
