"""What Prometheus sees. Label values come from short lists, so that no request can make the server remember more."""

from __future__ import annotations

import os
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SERIES_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The counters of one worker; where several workers run, `render` adds them up."""

    def __init__(self, routes: Collection[str]) -> None:
        self._routes = frozenset(routes)
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "forecaster_requests", "Requests by route and status", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "forecaster_request_seconds",
            "Seconds from request to answer",
            ["route"],
            buckets=_SECONDS_BUCKETS,
            registry=self._registry,
        )
        self._series = Counter("forecaster_series", "Series by outcome", ["outcome"], registry=self._registry)
        self._changes = Counter(
            "forecaster_model_changes", "New models by outcome", ["outcome"], registry=self._registry
        )
        self._batches = Histogram(
            "forecaster_batch_series", "Series rolled together", buckets=_SERIES_BUCKETS, registry=self._registry
        )
        self._engine = Histogram(
            "forecaster_engine_seconds", "Seconds of rolling them", buckets=_SECONDS_BUCKETS, registry=self._registry
        )
        self._fallbacks = Counter(
            "forecaster_stand_ins",
            "Forecasts in which something stood in for the network, or for a part of a blend",
            registry=self._registry,
        )
        # Moments and not ages: what is added up, and what is kept in files, does not grow older by itself.
        self._model_loaded = Gauge(
            "forecaster_model_taken_timestamp_seconds",
            "When the model in use was taken into use; time() less this is its age",
            registry=self._registry,
            multiprocess_mode="mostrecent",
        )
        self._registry_reached = Gauge(
            "forecaster_registry_reached_timestamp_seconds",
            "When the registry last answered the follower; 0: never, or none is followed",
            registry=self._registry,
            multiprocess_mode="mostrecent",
        )
        self._ledger = Counter(
            "forecaster_ledger_forecasts",
            "Served forecasts on their way into the ledger",
            ["outcome"],
            registry=self._registry,
        )
        for outcome in ("stored", "dropped", "failed"):
            self._ledger.labels(outcome)
        for outcome in ("forecast", "refused"):
            self._series.labels(outcome)
        for outcome in ("swapped", "refused"):
            self._changes.labels(outcome)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        route = path if path in self._routes else "other"
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_series(self, *, forecast: int, refused: int) -> None:
        """Counts the outcomes of a request."""
        for outcome, count in (("forecast", forecast), ("refused", refused)):
            if count:  # or a file is written to no end
                self._series.labels(outcome).inc(count)

    def count_model_change(self, outcome: str) -> None:
        """Counts a new model: swapped or refused."""
        self._changes.labels(outcome).inc()
        if outcome == "swapped":
            self._model_loaded.set_to_current_time()

    def observe_rollout(self, series_count: int, seconds: float, fallback_count: int) -> None:
        """Measures one call of the engine."""
        if series_count:
            self._batches.observe(series_count)
            self._engine.observe(seconds)
            if fallback_count:
                self._fallbacks.inc(fallback_count)

    def set_registry_reached(self, epoch_s: float | None) -> None:
        """When the registry last answered."""
        self._registry_reached.set(epoch_s or 0.0)

    def count_ledger_forecasts(self, outcome: str, count: int) -> None:
        """Counts forecasts for the ledger: stored, dropped (too many waited) or failed."""
        self._ledger.labels(outcome).inc(count)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        # BentoML sets this folder for its workers, and prometheus_client then keeps all values in files there.
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)
