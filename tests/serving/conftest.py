"""Shared fixtures: a predictor that repeats the last value, slots with its bundle, and an in-process client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from forecaster.bundle import artifact
from forecaster.data.encoding import EMPTY_ENCODING, Encoding
from forecaster.errors import BundleDamaged, ForecasterError, FrequencyMismatch, HistoryTooShort
from forecaster.intervals.adaptive import AdaptiveState
from forecaster.intervals.calibration import Calibration
from forecaster.prediction.carry import truncate_series
from forecaster.series import Forecast, Series
from forecaster.spec import Spec
from serving.deployment.releases import Release, publish, staging
from serving.deployment.slot import LoadPredictor
from serving.routes import app
from serving.settings import Settings

MIN_HISTORY = 3


@dataclass(frozen=True)
class StubModel:
    freq: str = "h"
    spec: Spec = field(default_factory=lambda: Spec(name="stub", context=MIN_HISTORY, horizon=24))
    season: int = 24
    cutoff: pd.Timestamp = field(default_factory=lambda: pd.Timestamp("2026-01-01"))
    encoding: Encoding = EMPTY_ENCODING
    facts: dict[str, Any] = field(default_factory=lambda: {"scores": {"mase": 1.0}})
    calibration: Calibration | None = None
    blend_weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LastValuePredictor:
    """Repeats the last value, plus `shift`; rejects other frequencies and short histories."""

    fitted_model: StubModel = field(default_factory=StubModel)
    shift: float = 0.0
    has_quantiles: bool = True

    def forecast_batch(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = (), joint: bool = False
    ) -> list[Forecast | ForecasterError]:
        outcomes = [self._forecast_series(each, horizon) for each in series]
        return [
            result if isinstance(result, ForecasterError) else _with_quantiles(result, levels) for result in outcomes
        ]

    def sample_batch(
        self, series: Sequence[Series], horizon: int, *, paths: int, seed: int, first_path: int = 0
    ) -> list[np.ndarray | ForecasterError]:
        """Returns the last value plus the number of the path; infinite where the last value is 77."""
        outcomes = [self._forecast_series(each, horizon) for each in series]
        noise = np.arange(float(first_path), first_path + paths)[:, None] + seed
        return [
            result if isinstance(result, ForecasterError) else np.where(result.mean == 77, np.inf, result.mean) + noise
            for result in outcomes
        ]

    def forecast_scenarios(
        self,
        scenarios: Sequence[Series],
        horizon: int,
        *,
        levels: Sequence[float] = (),
        joint: bool = False,
        adaptive_state: AdaptiveState | None = None,
    ) -> list[Forecast | ForecasterError]:
        """Returns the last value plus the covariate `promo` of each step ahead."""
        outcomes = self.forecast_batch(scenarios, horizon, levels=levels)
        return [
            result
            if isinstance(result, ForecasterError)
            else replace(result, mean=result.mean + scenario.covariates["promo"][len(scenario) :][:horizon])
            for result, scenario in zip(outcomes, scenarios, strict=True)
        ]

    def sample_scenarios(
        self, scenarios: Sequence[Series], horizon: int, *, paths: int, seed: int, first_path: int = 0
    ) -> list[np.ndarray | ForecasterError]:
        return self.sample_batch(scenarios, horizon, paths=paths, seed=seed, first_path=first_path)

    def truncate_history(self, series: Series) -> Series:
        """Returns the last steps of a history."""
        return truncate_series(series, self.fitted_model.spec, kept_steps=MIN_HISTORY, season=1)

    def _forecast_series(self, series: Series, horizon: int) -> Forecast | ForecasterError:
        if series.freq != self.fitted_model.freq:
            return FrequencyMismatch(f"Series {series.id!r} has another frequency.", where=series.id)
        if len(series) < MIN_HISTORY:
            return HistoryTooShort(f"Series {series.id!r} has {len(series)} steps.", where=series.id)
        return Forecast(
            series.id, series.future_timestamps(horizon), np.full(horizon, np.nan_to_num(series.y[-1]) + self.shift)
        )


def _with_quantiles(forecast: Forecast, levels: Sequence[float]) -> Forecast:
    return replace(forecast, quantiles={level: forecast.mean + level for level in sorted(levels)})


def write_stub(folder: Path, *, shift: float = 0.0, freq: str = "h", **facts: Any) -> str:
    """Writes a bundle that `load_stub` can load, and returns its digest."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"shift": shift, "freq": freq, "facts": facts}))
    (folder / "card.md").write_text("# A stub\n")
    return artifact.compute_bundle_digest(folder)


def load_stub(folder: Path) -> LastValuePredictor:
    fields = json.loads((folder / "manifest.json").read_text())
    if "bad" in fields:
        raise BundleDamaged("This bundle is bad.", where="manifest.json")
    model = StubModel(freq=fields["freq"])
    return LastValuePredictor(replace(model, facts={**model.facts, **fields.get("facts", {})}), fields["shift"])


def load_stub_with_columns(folder: Path) -> LastValuePredictor:
    """Loads the stub as a model that reads a covariate `a`, a static feature `b` and a channel `c`."""
    predictor = load_stub(folder)
    columns = {"covariates": ("a",), "static": ("b",), "channels": ("c",)}
    model = predictor.fitted_model
    return replace(predictor, fitted_model=replace(model, spec=model.spec.model_copy(update=columns)))


def publish_stub(slot: Path, *, version: str = "1", shift: float = 0.0, freq: str = "h", **facts: Any) -> Release:
    with staging(slot) as draft:
        digest = write_stub(draft / "bundle", shift=shift, freq=freq, **facts)
        release = Release(name="stub", version=version, digest=digest)
        publish(slot, draft / "bundle", release)
    return release


@pytest.fixture
def slot_folder(tmp_path: Path) -> Path:
    return tmp_path / "slot"


class AppClient:
    """A synchronous client of an application in this process; requests run in the application's event loop."""

    def __init__(self, application: app.Application, portal: BlockingPortal) -> None:
        self.slot, self.shadow_slot = application.slot, application.shadow_slot
        self._portal = portal
        self._transport = httpx.ASGITransport(app=application.app, raise_app_exceptions=False)

    def get(self, path: str, **request: Any) -> httpx.Response:
        return self.request("GET", path, **request)

    def post(self, path: str, **request: Any) -> httpx.Response:
        return self.request("POST", path, **request)

    def request(self, method: str, path: str, **request: Any) -> httpx.Response:
        response: httpx.Response = self._portal.call(self._send, method, path, request)
        return response

    async def _send(self, method: str, path: str, request: dict[str, Any]) -> httpx.Response:
        async with httpx.AsyncClient(transport=self._transport, base_url="http://localhost") as client:
            return await client.request(method, path, **request)


MakeClient = Callable[..., AppClient]


@contextmanager
def application_clients(slot_folder: Path) -> Iterator[MakeClient]:
    """Yields a factory of clients, each of a new application on the same slot folder; settings are keyword arguments."""
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())

        def make(*, load: LoadPredictor = load_stub, **fields: Any) -> AppClient:
            settings = Settings(slot=slot_folder, reload_s=0.01, **fields)
            application = app.build_application(settings, load=load)
            application.slot.reload_if_changed()
            stack.enter_context(
                portal.wrap_async_context_manager(application.routes.router.lifespan_context(application.routes))
            )
            return AppClient(application, portal)

        yield make


@pytest.fixture
def make_client(slot_folder: Path) -> Iterator[MakeClient]:
    with application_clients(slot_folder) as make:
        yield make


@pytest.fixture
def client(slot_folder: Path, make_client: MakeClient) -> AppClient:
    """A client of an application whose model repeats the last value."""
    publish_stub(slot_folder)
    return make_client(
        max_body=100_000, max_horizon=500, max_series=50, max_history=5000, max_values=6000, max_answer=2000
    )


def series_payload(**fields: Any) -> dict[str, Any]:
    """Returns a valid series; `fields` override its fields."""
    return {"id": "a", "start": "2026-01-01T00:00:00Z", "freq": "h", "y": [1.0, None, 2.5], **fields}
