"""Prometheus metrics. Label values come from short fixed lists, so that no request can add time series."""

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
    """The metrics of one worker; with several workers, `render` aggregates them."""

    def __init__(self, routes: Collection[str]) -> None:
        self._routes = frozenset(routes)
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "forecaster_requests", "Requests by route and status", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "forecaster_request_seconds",
            "Seconds from request to response",
            ["route"],
            buckets=_SECONDS_BUCKETS,
            registry=self._registry,
        )
        self._series = Counter("forecaster_series", "Series by outcome", ["outcome"], registry=self._registry)
        self._changes = Counter(
            "forecaster_model_changes", "New models by outcome", ["outcome"], registry=self._registry
        )
        self._batches = Histogram(
            "forecaster_batch_series", "Series in one rollout", buckets=_SERIES_BUCKETS, registry=self._registry
        )
        self._engine = Histogram(
            "forecaster_engine_seconds", "Seconds of one rollout", buckets=_SECONDS_BUCKETS, registry=self._registry
        )
        self._fallbacks = Counter(
            "forecaster_stand_ins",
            "Forecasts in which a fallback replaced the network or a part of a blend",
            registry=self._registry,
        )
        # Timestamps rather than ages: a value that is aggregated or stored in a file does not advance by itself.
        self._model_loaded = Gauge(
            "forecaster_model_taken_timestamp_seconds",
            "When the model in use was loaded; time() minus this is its age",
            registry=self._registry,
            multiprocess_mode="mostrecent",
        )
        self._registry_reached = Gauge(
            "forecaster_registry_reached_timestamp_seconds",
            "When the registry last responded to the follower; 0: never, or no registry is followed",
            registry=self._registry,
            multiprocess_mode="mostrecent",
        )
        self._ledger = Counter(
            "forecaster_ledger_forecasts",
            "Served forecasts by outcome of recording them in the ledger",
            ["outcome"],
            registry=self._registry,
        )
        self._closed = Counter(
            "forecaster_connections_closed",
            "Connections closed by a limit, by reason",
            ["reason"],
            registry=self._registry,
        )
        for outcome in ("stored", "dropped", "failed"):
            self._ledger.labels(outcome)
        for outcome in ("forecast", "refused"):
            self._series.labels(outcome)
        for outcome in ("swapped", "refused"):
            self._changes.labels(outcome)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request by route and status, and observes its duration."""
        route = path if path in self._routes else "other"
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_series(self, *, forecast: int, refused: int) -> None:
        """Counts the series of a request by outcome."""
        for outcome, count in (("forecast", forecast), ("refused", refused)):
            if count:  # an increment of 0 would write a file for nothing
                self._series.labels(outcome).inc(count)

    def count_model_change(self, outcome: str) -> None:
        """Counts a new model by outcome: swapped or refused."""
        self._changes.labels(outcome).inc()
        if outcome == "swapped":
            self._model_loaded.set_to_current_time()

    def observe_rollout(self, series_count: int, seconds: float, fallback_count: int) -> None:
        """Observes one call of the engine."""
        if series_count:
            self._batches.observe(series_count)
            self._engine.observe(seconds)
            if fallback_count:
                self._fallbacks.inc(fallback_count)

    def count_closed_connection(self, reason: str) -> None:
        """Counts a connection that was closed by a limit; the reasons are those of `serving.asgi.connections`."""
        self._closed.labels(reason).inc()

    def set_registry_reached(self, epoch_s: float | None) -> None:
        """Sets when the registry last responded, in seconds since 1970; None if never."""
        self._registry_reached.set(epoch_s or 0.0)

    def count_ledger_forecasts(self, outcome: str, count: int) -> None:
        """Counts forecasts for the ledger by outcome: stored, dropped (the queue was full) or failed."""
        self._ledger.labels(outcome).inc(count)

    def render(self) -> bytes:
        """Returns the metrics in the Prometheus text format."""
        # BentoML sets this folder for its workers; prometheus_client then keeps all values in files there.
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        combined_registry = CollectorRegistry()
        MultiProcessCollector(combined_registry)  # type: ignore[no-untyped-call]
        return generate_latest(combined_registry)
