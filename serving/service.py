"""The service of `forecaster serve`: it serves the model in a slot, which a follower of the registry replaces."""

from __future__ import annotations

import os

import bentoml
from starlette.types import ASGIApp

from serving.services.application import ApplicationService, start_application
from serving.settings import Settings

_settings = Settings.from_environment(os.environ)  # BentoML imports this module by name, so no caller can pass them


class SlotService(ApplicationService):
    """A service that serves the model in the slot of the settings."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Returns the application of one worker."""
        return start_application(_settings)


@bentoml.service(name="forecaster", workers=_settings.workers, service_class=SlotService)
class ForecastService:
    """Forecasts over HTTP."""
