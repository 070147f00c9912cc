"""The ledger of this worker: forecasts are kept by a thread of its own, so that none is slower or fails because of it."""

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
CountForecasts = Callable[[str, int], None]  # "stored", "dropped" or "failed", and how many

MAX_QUEUED_NUMBERS = 4_000_000  # in histories and forecasts that wait: 32 MB
MAX_ATTEMPTS = 30  # before forecasts that the database does not take are given up
_TRANSACTION_SIZE = 64  # forecasts of one transaction
_MAX_PAUSE_S = 0.05
_FLUSH_INTERVAL_S = 0.25  # between looks at what waits
_RECORD_BATCH_SIZE = 8  # forecasts that are made ready before requests are let pass for as long as that took
_RETRY_DELAY_S = 1.0  # after a failure
_ADAPT_INTERVAL_S = 5.0  # between looks at what late actuals have taught
_PRUNE_INTERVAL_S = 3600.0  # between the times at which old records are forgotten
_SHUTDOWN_TIMEOUT_S = 2.0  # that the end of a worker waits for what is not kept yet

log = logging.getLogger(__name__)


class _QueuedRequest(NamedTuple):
    """Forecasts of one request, as they were made."""

    model: DeployedModel
    series: Sequence[Series]
    forecasts: Sequence[Forecast]
    made_at: float


class _QueuedForecast(NamedTuple):
    """One forecast, as it was made."""

    model: DeployedModel
    series: Series
    forecast: Forecast
    made_at: float


def _group_forecasts(queued: Sequence[_QueuedRequest]) -> list[list[_QueuedForecast]]:
    """The forecasts of some requests, those together that can be made ready together: of one model, drift and horizon."""
    parts: dict[tuple[str, AdaptiveState | None, int], list[_QueuedForecast]] = {}
    for one in queued:
        for series, forecast in zip(one.series, one.forecasts, strict=True):
            key = (one.model.release.digest, one.model.adaptive_state, len(forecast.mean))
            parts.setdefault(key, []).append(_QueuedForecast(one.model, series, forecast, one.made_at))
    return list(parts.values())


def _count_numbers(series: Sequence[Series], forecasts: Sequence[Forecast]) -> int:
    """How many are held."""
    return sum(map(len, series)) + sum(len(one.mean) for one in forecasts)


class LedgerWriter:
    """Keeps what is served. Without a ledger it does nothing, and says so to who asks for one."""

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
        self._queue_lock = threading.Lock()  # of what waits
        self._stopped = threading.Event()
        self._queue: deque[_QueuedRequest] = deque()
        self._queued_forecasts = self._queued_numbers = 0  # of those that wait
        self._is_failing = False
        self._adaptive_states: dict[str, AdaptiveState] = {}
        self._model_digest: str | None = None  # digest of the model that was asked last
        self._adaptation_due = False  # actuals have come since the drift was worked out
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Keeps what is noted from now on, in a thread of its own, until `stop`."""
        if self._url is not None:
            self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Keeps what still waits, if that takes no more than a moment."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_SHUTDOWN_TIMEOUT_S)

    def attach(self, model: DeployedModel | None) -> DeployedModel | None:
        """The model, with a note taken of what it forecasts, and with what late actuals have taught about it."""
        if model is None or self._url is None:
            return model
        self._model_digest = model.release.digest
        drift = self._adaptive_states.get(model.release.digest) if self._settings.adaptive else None
        return replace(model, record_forecasts=self.enqueue, adaptive_state=drift)

    def enqueue(
        self, model: DeployedModel, series: Sequence[Series], results: Sequence[Forecast | ForecasterError]
    ) -> None:
        """Puts forecasts where they wait to be kept, or counts them as dropped where too many wait. Never fails, never waits."""
        pairs = [(one, told) for one, told in zip(series, results, strict=True) if isinstance(told, Forecast)]
        if not pairs:
            return
        one = _QueuedRequest(model, [one for one, _ in pairs], [told for _, told in pairs], self._clock())
        numbers = _count_numbers(one.series, one.forecasts)
        with self._queue_lock:  # and nobody is woken: the thread would get in the way of the answer
            full = self._queued_forecasts + len(pairs) > self._settings.ledger_waiting
            if not (full or self._queued_numbers + numbers > MAX_QUEUED_NUMBERS or self._stopped.is_set()):
                self._queue.append(one)
                self._queued_forecasts, self._queued_numbers = (
                    self._queued_forecasts + len(pairs),
                    self._queued_numbers + numbers,
                )
                return
        self._count("dropped", len(pairs))

    def get_ledger(self) -> Ledger:
        """The ledger; raises Problem where there is none (404), or it cannot be opened (503)."""
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
        """Actuals have come: what they teach about the model in use is worked out in the background."""
        self._adaptation_due = self._settings.adaptive

    @property
    def clock(self) -> Callable[[], float]:
        """What tells the time, in seconds since 1970."""
        return self._clock

    def _open_ledger(self) -> Ledger:
        from forecaster.ledger.store import Ledger

        with self._open_lock:
            if self._ledger is None:
                assert self._url is not None, "there is one"
                self._ledger = Ledger(self._url)
            return self._ledger

    def _run(self) -> None:
        tidied = looked = float("-inf")
        while True:
            some = self._drain_queue()
            try:
                if some:
                    self._write_queued(some)
                if time.monotonic() - tidied > _PRUNE_INTERVAL_S:
                    tidied = time.monotonic()
                    self._open_ledger().prune(before=self._clock() - self._settings.ledger_days * 86400)
                if self._settings.adaptive and (
                    self._adaptation_due or time.monotonic() - looked > self._adapt_interval_s
                ):
                    looked = time.monotonic()
                    self._refresh_adaptation()
            except Exception as error:  # of any kind: this thread must live
                self._log_failure(error)
            if self._stopped.is_set() and not self._queue:
                break
        if self._ledger is not None:
            self._ledger.close()

    def _drain_queue(self) -> list[_QueuedRequest]:
        """What has come to wait in a while, all of it; perhaps nothing."""
        self._stopped.wait(_FLUSH_INTERVAL_S)
        with self._queue_lock:
            some = list(self._queue)
            self._queue.clear()
            return some

    def _write_queued(self, queued: Sequence[_QueuedRequest]) -> None:
        try:
            both = [*queued, *(beside for one in queued if (beside := self._forecast_with_shadow(one)) is not None)]
            records: list[ForecastRecord] = []
            for alike in _group_forecasts(both):
                for first in range(0, len(alike), _RECORD_BATCH_SIZE):
                    began = time.monotonic()
                    records += self._build_records(alike[first : first + _RECORD_BATCH_SIZE])
                    self._stopped.wait(min(_MAX_PAUSE_S, time.monotonic() - began))
            for first in range(0, len(records), _TRANSACTION_SIZE):
                began = time.monotonic()
                self._store_records(records[first : first + _TRANSACTION_SIZE])
                self._stopped.wait(min(_MAX_PAUSE_S, time.monotonic() - began))
        finally:
            with self._queue_lock:
                self._queued_forecasts -= sum(len(one.forecasts) for one in queued)
                self._queued_numbers -= sum(_count_numbers(one.series, one.forecasts) for one in queued)

    def _forecast_with_shadow(self, queued: _QueuedRequest) -> _QueuedRequest | None:
        """What the shadow forecasts of a share of the same histories; None where there is no other model, or it cannot."""
        from forecaster.ledger.records import encode_timestamp, series_key

        shadow, ledger = self._get_shadow_model(), self._with_retries(self._open_ledger)
        if shadow is None or ledger is None or shadow.release.digest == queued.model.release.digest:
            return None
        share = self._settings.shadow_share
        asked = [
            each
            for each in queued.series
            if self._is_sampled(series_key(ledger.salt, each.id, each.start), encode_timestamp(each.end), share=share)
        ]
        try:
            found = shadow.predictor.forecast_batch(asked, len(queued.forecasts[0].mean)) if asked else []
        except Exception as error:  # of any kind: those who ask are answered by another
            log.warning("the model beside the one in use does not forecast: %r", error)
            return None
        good = [(each, told) for each, told in zip(asked, found, strict=True) if isinstance(told, Forecast)]
        return (
            _QueuedRequest(shadow, [each for each, _ in good], [told for _, told in good], queued.made_at)
            if good
            else None
        )

    def _build_records(self, queued: Sequence[_QueuedForecast]) -> list[ForecastRecord]:
        """What is to be kept of forecasts that one model made; nothing, and the reason in the log, where that cannot be told."""
        from forecaster.ledger.recording import SeriesNaming, build_records
        from forecaster.ledger.records import ModelIdentity

        ledger, model = self._with_retries(self._open_ledger), queued[0].model
        try:
            if ledger is None:
                raise LedgerError("it does not open")
            told = build_records(
                model.predictor,
                ModelIdentity(model.release.name, model.release.version, model.release.digest),
                [one.series for one in queued],
                [one.forecast for one in queued],
                naming=SeriesNaming(ledger.salt, keep_ids=self._settings.ledger_clear_ids),
                adaptive_state=model.adaptive_state,
                made_at=[one.made_at for one in queued],
            )
        except Exception as error:  # of any kind: those that come after it may be good
            self._log_failure(error)
            self._count("failed", len(queued))
            return []
        return [each for each in told if self._is_sampled(each.key, each.origin)]

    def _store_records(self, records: Sequence[ForecastRecord]) -> None:
        """Keeps some forecasts together; what the database does not take after some tries is given up."""
        stored = self._with_retries(lambda: self._open_ledger().record(records))
        self._count("failed" if stored is None else "stored", len(records) if stored is None else stored)

    def _with_retries(self, work: Callable[[], T]) -> T | None:
        """The answer of some work with the database, which is tried again and again; None when that is given up."""
        for _ in range(MAX_ATTEMPTS):
            try:
                done = work()
            except Exception as error:  # of any kind: this thread must live
                self._log_failure(error)
                if self._stopped.wait(self._retry_delay_s):
                    return None
            else:
                if self._is_failing:
                    log.warning("the ledger takes forecasts again")
                self._is_failing = False
                return done
        return None

    def _is_sampled(self, key: str, origin: int, *, share: float = 1.0) -> bool:
        """Whether a forecast is among those that are kept: by chance, but the same for every worker and every repetition.

        A share of them is chosen by the same chance.
        """
        share *= self._settings.ledger_share
        if share >= 1:
            return True
        drawn = int.from_bytes(hashlib.sha256(f"{key} {origin}".encode()).digest()[:8], "big")
        return drawn < share * 2**64

    def _refresh_adaptation(self) -> None:
        """Works out what late actuals teach about the model in use, and takes what this or another worker has worked out."""
        from forecaster.ledger.adaptive import load_adaptive_state, refresh_adaptive_state

        stale, self._adaptation_due, digest = self._adaptation_due, False, self._model_digest
        if digest is None:
            return
        ledger = self._open_ledger()
        if stale:
            refresh_adaptive_state(ledger, digest, now=self._clock())
        drift = load_adaptive_state(ledger, digest)
        self._adaptive_states = {} if drift is None else {digest: drift}

    def _log_failure(self, error: Exception) -> None:
        """Once for a row of failures."""
        if not self._is_failing:
            log.warning("the ledger does not take forecasts, which are served all the same: %r", error)
        self._is_failing = True


def ledger_unavailable_error() -> ApiError:
    """What is told of a database that does not answer; its own words are for the log."""
    return ApiError(
        "ledger_unavailable",
        "Expected the ledger's database to answer; it does not. Try again later; the server's log says more.",
        headers={"retry-after": "5"},
    )
