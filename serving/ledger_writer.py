"""Records served forecasts in the ledger, in a background thread, so that no request is slower or fails because of it."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from forecaster.errors import ForecasterError, LedgerError, MissingPackage
from forecaster.series import Forecast, Series
from serving.deployment.slot import DeployedModel
from serving.errors import ApiError
from serving.settings import Settings

if TYPE_CHECKING:
    from forecaster.intervals.adaptive import AdaptiveState
    from forecaster.ledger.records import ForecastRecord
    from forecaster.ledger.store import Ledger

T = TypeVar("T")
CountForecasts = Callable[[str, int], None]  # outcome ("stored", "dropped" or "failed"), number of forecasts

MAX_QUEUED_NUMBERS = 4_000_000  # in queued histories and forecasts: 32 MB
MAX_ATTEMPTS = 30  # before forecasts that the database does not accept are abandoned
_TRANSACTION_SIZE = 64  # forecasts in one transaction
_MAX_PAUSE_S = 0.05
_FLUSH_INTERVAL_S = 0.25  # between reads of the queue
_RECORD_BATCH_SIZE = 8  # forecasts prepared before the thread pauses for as long as that took, to let requests pass
_RETRY_DELAY_S = 1.0  # after a failure
_ADAPT_INTERVAL_S = 5.0  # between reads of the adaptive state
_PRUNE_INTERVAL_S = 3600.0  # between deletions of old records
_SHUTDOWN_TIMEOUT_S = 2.0  # for writing queued forecasts when a worker stops

log = logging.getLogger(__name__)


class _QueuedRequest(NamedTuple):
    """The forecasts of one request, with their histories, their model and their time in seconds since 1970."""

    model: DeployedModel
    series: Sequence[Series]
    forecasts: Sequence[Forecast]
    made_at: float


class _QueuedForecast(NamedTuple):
    """One forecast of a queued request."""

    model: DeployedModel
    series: Series
    forecast: Forecast
    made_at: float


def _group_forecasts(queued: Sequence[_QueuedRequest]) -> list[list[_QueuedForecast]]:
    """Groups the forecasts of several requests by predictor, adaptive state and horizon; a group is prepared in one call."""
    groups: dict[tuple[str, int, AdaptiveState | None, int], list[_QueuedForecast]] = {}
    for request in queued:
        for series, forecast in zip(request.series, request.forecasts, strict=True):
            # The id is unique, because the queue holds references to the predictors.
            model = request.model
            key = (model.release.digest, id(model.predictor), model.adaptive_state, len(forecast.mean))
            groups.setdefault(key, []).append(_QueuedForecast(request.model, series, forecast, request.made_at))
    return list(groups.values())


def _count_numbers(series: Sequence[Series], forecasts: Sequence[Forecast]) -> int:
    """Returns the number of values in histories and mean forecasts."""
    return sum(map(len, series)) + sum(len(forecast.mean) for forecast in forecasts)


class LedgerWriter:
    """Records served forecasts. Without a ledger it records nothing, and `get_ledger` raises ApiError (404)."""

    def __init__(
        self,
        settings: Settings,
        *,
        count: CountForecasts = lambda *_: None,
        get_shadow_model: Callable[[], DeployedModel | None] = lambda: None,
        clock: Callable[[], float] = time.time,
        retry_delay_s: float = _RETRY_DELAY_S,
        adapt_interval_s: float | None = None,
    ) -> None:
        self._settings = settings
        self._url = settings.ledger_url
        self._count = count
        self._get_shadow_model = get_shadow_model
        self._clock = clock
        self._retry_delay_s = retry_delay_s
        self._adapt_interval_s = _ADAPT_INTERVAL_S if adapt_interval_s is None else adapt_interval_s
        self._ledger: Ledger | None = None
        self._open_lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._stopped = threading.Event()
        self._queue: deque[_QueuedRequest] = deque()
        self._queued_forecasts = self._queued_numbers = 0
        self._is_failing = False
        self._adaptive_states: dict[str, AdaptiveState] = {}  # by digest of the model
        self._model_digest: str | None = None  # of the model that was attached last
        self._adaptation_due = False  # actuals have arrived since the adaptive state was computed
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread that records queued forecasts until `stop`."""
        if self._url is not None:
            self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Records the queued forecasts, if that takes at most two seconds, and stops the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_SHUTDOWN_TIMEOUT_S)

    def attach(self, model: DeployedModel | None) -> DeployedModel | None:
        """Returns the model with its forecasts recorded here and, if enabled, with the adaptive state of late actuals."""
        if model is None or self._url is None:
            return model
        self._model_digest = model.release.digest
        # The shifts are those of one calibration, and the pretrained network has none.
        is_adaptive = self._settings.adaptive and not model.is_pretrained
        adaptive_state = self._adaptive_states.get(model.release.digest) if is_adaptive else None
        return replace(model, record_forecasts=self.enqueue, adaptive_state=adaptive_state)

    def enqueue(
        self, model: DeployedModel, series: Sequence[Series], results: Sequence[Forecast | ForecasterError]
    ) -> None:
        """Queues forecasts for recording, or counts them as dropped if the queue is full. Never fails and never blocks."""
        pairs = [(each, result) for each, result in zip(series, results, strict=True) if isinstance(result, Forecast)]
        if not pairs:
            return
        request = _QueuedRequest(model, [each for each, _ in pairs], [forecast for _, forecast in pairs], self._clock())
        numbers = _count_numbers(request.series, request.forecasts)
        with self._queue_lock:  # the thread is not notified: waking up, it would delay the response
            is_full = self._queued_forecasts + len(pairs) > self._settings.ledger_waiting
            if not (is_full or self._queued_numbers + numbers > MAX_QUEUED_NUMBERS or self._stopped.is_set()):
                self._queue.append(request)
                self._queued_forecasts += len(pairs)
                self._queued_numbers += numbers
                return
        self._count("dropped", len(pairs))

    def get_ledger(self) -> Ledger:
        """Returns the ledger; raises ApiError if there is none (404) or it cannot be opened (503)."""
        if self._url is None:
            raise ApiError(
                "ledger_off",
                "Expected a ledger of served forecasts; this server keeps none. Start it with FORECASTER_SERVING_LEDGER=on.",
            )
        try:
            return self._open_ledger()
        except (LedgerError, MissingPackage) as error:
            log.error("%s", error.message)
            raise ledger_unavailable_error() from error

    def request_adaptation(self) -> None:
        """Requests that the background thread recomputes the adaptive state of the model in use, after new actuals."""
        self._adaptation_due = self._settings.adaptive

    @property
    def clock(self) -> Callable[[], float]:
        """The clock, in seconds since 1970."""
        return self._clock

    def _open_ledger(self) -> Ledger:
        from forecaster.ledger.store import Ledger

        with self._open_lock:
            if self._ledger is None:
                assert self._url is not None, "the thread starts only with an address"
                self._ledger = Ledger(self._url)
            return self._ledger

    def _run(self) -> None:
        pruned_at = adapted_at = float("-inf")
        while True:
            queued = self._drain_queue()
            try:
                if queued:
                    self._write_queued(queued)
                if time.monotonic() - pruned_at > _PRUNE_INTERVAL_S:
                    pruned_at = time.monotonic()
                    self._open_ledger().prune(before=self._clock() - self._settings.ledger_days * 86400)
                if self._settings.adaptive and (
                    self._adaptation_due or time.monotonic() - adapted_at > self._adapt_interval_s
                ):
                    adapted_at = time.monotonic()
                    self._refresh_adaptation()
            except Exception as error:  # no exception may end this thread
                self._log_failure(error)
            if self._stopped.is_set() and not self._queue:
                break
        if self._ledger is not None:
            self._ledger.close()

    def _drain_queue(self) -> list[_QueuedRequest]:
        """Waits for one flush interval and empties the queue; the result may be empty."""
        self._stopped.wait(_FLUSH_INTERVAL_S)
        with self._queue_lock:
            queued = list(self._queue)
            self._queue.clear()
            return queued

    def _write_queued(self, queued: Sequence[_QueuedRequest]) -> None:
        try:
            shadow_results = [self._forecast_with_shadow(request) for request in queued]
            requests = [*queued, *(result for result in shadow_results if result is not None)]
            records: list[ForecastRecord] = []
            for group in _group_forecasts(requests):
                for first in range(0, len(group), _RECORD_BATCH_SIZE):
                    started_at = time.monotonic()
                    records += self._build_records(group[first : first + _RECORD_BATCH_SIZE])
                    self._stopped.wait(min(_MAX_PAUSE_S, time.monotonic() - started_at))
            for first in range(0, len(records), _TRANSACTION_SIZE):
                started_at = time.monotonic()
                self._store_records(records[first : first + _TRANSACTION_SIZE])
                self._stopped.wait(min(_MAX_PAUSE_S, time.monotonic() - started_at))
        finally:
            with self._queue_lock:
                self._queued_forecasts -= sum(len(request.forecasts) for request in queued)
                self._queued_numbers -= sum(_count_numbers(request.series, request.forecasts) for request in queued)

    def _forecast_with_shadow(self, queued: _QueuedRequest) -> _QueuedRequest | None:
        """Returns the shadow model's forecasts of a share of the same histories; None without a shadow, or if it fails."""
        from forecaster.ledger.records import encode_timestamp, series_key

        shadow, ledger = self._get_shadow_model(), self._with_retries(self._open_ledger)
        if shadow is None or ledger is None or shadow.release.digest == queued.model.release.digest:
            return None
        share = self._settings.shadow_share
        batch = [
            series
            for series in queued.series
            if self._is_sampled(
                series_key(ledger.salt, series.id, series.start), encode_timestamp(series.end), share=share
            )
        ]
        try:
            results = shadow.predictor.forecast_batch(batch, len(queued.forecasts[0].mean)) if batch else []
        except Exception as error:  # no failure of the shadow may affect the model in use
            log.warning("the shadow model failed to forecast: %r", error)
            return None
        pairs = [
            (series, result) for series, result in zip(batch, results, strict=True) if isinstance(result, Forecast)
        ]
        if not pairs:
            return None
        return _QueuedRequest(
            shadow, [series for series, _ in pairs], [forecast for _, forecast in pairs], queued.made_at
        )

    def _build_records(self, queued: Sequence[_QueuedForecast]) -> list[ForecastRecord]:
        """Builds the records of forecasts of one model; logs the reason and returns no record if that fails."""
        from forecaster.ledger.recording import SeriesNaming, build_records
        from forecaster.ledger.records import ModelIdentity

        ledger, model = self._with_retries(self._open_ledger), queued[0].model
        try:
            if ledger is None:
                raise LedgerError("the ledger cannot be opened")
            records = build_records(
                model.predictor,
                ModelIdentity(model.release.name, model.release.version, model.release.digest),
                [item.series for item in queued],
                [item.forecast for item in queued],
                naming=SeriesNaming(ledger.salt, keep_ids=self._settings.ledger_clear_ids),
                adaptive_state=model.adaptive_state,
                made_at=[item.made_at for item in queued],
            )
        except Exception as error:  # later forecasts may still be recorded
            self._log_failure(error)
            self._count("failed", len(queued))
            return []
        return [record for record in records if self._is_sampled(record.key, record.origin)]

    def _store_records(self, records: Sequence[ForecastRecord]) -> None:
        """Stores records in one transaction; they are abandoned if the database fails at every attempt."""
        stored = self._with_retries(lambda: self._open_ledger().record(records))
        self._count("failed" if stored is None else "stored", len(records) if stored is None else stored)

    def _with_retries(self, work: Callable[[], T]) -> T | None:
        """Returns the result of an operation on the database, or None if it fails at every attempt."""
        for _ in range(MAX_ATTEMPTS):
            try:
                result = work()
            except Exception as error:  # no exception may end this thread
                self._log_failure(error)
                if self._stopped.wait(self._retry_delay_s):
                    return None
            else:
                if self._is_failing:
                    log.warning("the ledger records forecasts again")
                self._is_failing = False
                return result
        return None

    def _is_sampled(self, key: str, origin: int, *, share: float = 1.0) -> bool:
        """Whether a forecast is recorded: pseudorandom by its hash, so the same for every worker and every repetition.

        A smaller `share` selects a subset of the recorded forecasts.
        """
        share *= self._settings.ledger_share
        if share >= 1:
            return True
        draw = int.from_bytes(hashlib.sha256(f"{key} {origin}".encode()).digest()[:8], "big")
        return draw < share * 2**64

    def _refresh_adaptation(self) -> None:
        """Recomputes the adaptive state of the model in use if actuals have arrived, and loads what any worker has stored."""
        from forecaster.ledger.adaptive import load_adaptive_state, refresh_adaptive_state

        is_due, self._adaptation_due, digest = self._adaptation_due, False, self._model_digest
        if digest is None:
            return
        ledger = self._open_ledger()
        if is_due:
            refresh_adaptive_state(ledger, digest, now=self._clock())
        adaptive_state = load_adaptive_state(ledger, digest)
        self._adaptive_states = {} if adaptive_state is None else {digest: adaptive_state}

    def _log_failure(self, error: Exception) -> None:
        """Logs the first of consecutive failures."""
        if not self._is_failing:
            log.warning("the ledger cannot record forecasts; they are still served: %r", error)
        self._is_failing = True


def ledger_unavailable_error() -> ApiError:
    """The error for a database that does not respond; the database's own message is only logged."""
    return ApiError(
        "ledger_unavailable",
        "Expected the ledger's database to respond; it does not. Try again later; the server's log has the details.",
        headers={"retry-after": "5"},
    )
