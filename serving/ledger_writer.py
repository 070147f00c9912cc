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
from serving.deployment.slot import InUse
from serving.errors import Problem
from serving.settings import Settings

if TYPE_CHECKING:
    from forecaster.intervals.adaptive import Drift
    from forecaster.ledger.records import Made
    from forecaster.ledger.store import Ledger

T = TypeVar("T")
Counted = Callable[[str, int], None]  # "stored", "dropped" or "failed", and how many

MOST_NUMBERS = 4_000_000  # in histories and forecasts that wait: 32 MB
TRIES = 30  # before forecasts that the database does not take are given up
_AT_ONCE = 64  # forecasts of one transaction
_MOST_PAUSE_S = 0.05
_GATHER_S = 0.25  # between looks at what waits
_SLICE = 8  # forecasts that are made ready before requests are let pass for as long as that took
_PAUSE_S = 1.0  # after a failure
_LOOK_S = 5.0  # between looks at what late actuals have taught
_TIDY_S = 3600.0  # between the times at which old records are forgotten
_LAST_S = 2.0  # that the end of a worker waits for what is not kept yet

log = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    """Forecasts of one request, as they were made."""

    model: InUse
    series: Sequence[Series]
    forecasts: Sequence[Forecast]
    at: float


class _Each(NamedTuple):
    """One forecast, as it was made."""

    model: InUse
    series: Series
    forecast: Forecast
    at: float


def _alike(some: Sequence[_Waiting]) -> list[list[_Each]]:
    """The forecasts of some requests, those together that can be made ready together: of one model, drift and horizon."""
    parts: dict[tuple[str, Drift | None, int], list[_Each]] = {}
    for one in some:
        for series, forecast in zip(one.series, one.forecasts, strict=True):
            key = (one.model.release.digest, one.model.drift, len(forecast.mean))
            parts.setdefault(key, []).append(_Each(one.model, series, forecast, one.at))
    return list(parts.values())


def _numbers(series: Sequence[Series], forecasts: Sequence[Forecast]) -> int:
    """How many are held."""
    return sum(map(len, series)) + sum(len(one.mean) for one in forecasts)


class Scribe:
    """Keeps what is served. Without a ledger it does nothing, and says so to who asks for one."""

    def __init__(
        self,
        settings: Settings,
        *,
        counted: Counted = lambda *_: None,
        shadow: Callable[[], InUse | None] = lambda: None,
        clock: Callable[[], float] = time.time,
        pause_s: float = _PAUSE_S,
        look_s: float | None = None,
    ) -> None:
        self._settings = settings
        self._url = settings.ledger_url
        self._counted = counted
        self._shadow = shadow
        self._clock = clock
        self._pause_s = pause_s
        self._look_s = _LOOK_S if look_s is None else look_s
        self._ledger: Ledger | None = None
        self._opening = threading.Lock()
        self._lock = threading.Lock()  # of what waits
        self._ended = threading.Event()
        self._waiting: deque[_Waiting] = deque()
        self._forecasts = self._numbers = 0  # of those that wait
        self._failing = False
        self._drifts: dict[str, Drift] = {}
        self._in_use: str | None = None  # digest of the model that was asked last
        self._stale = False  # actuals have come since the drift was worked out
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Keeps what is noted from now on, in a thread of its own, until `stop`."""
        if self._url is not None:
            self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Keeps what still waits, if that takes no more than a moment."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_LAST_S)

    def on(self, model: InUse | None) -> InUse | None:
        """The model, with a note taken of what it forecasts, and with what late actuals have taught about it."""
        if model is None or self._url is None:
            return model
        self._in_use = model.release.digest
        drift = self._drifts.get(model.release.digest) if self._settings.adaptive else None
        return replace(model, note=self.note, drift=drift)

    def note(self, model: InUse, series: Sequence[Series], found: Sequence[Forecast | ForecasterError]) -> None:
        """Puts forecasts where they wait to be kept, or counts them as dropped where too many wait. Never fails, never waits."""
        pairs = [(one, told) for one, told in zip(series, found, strict=True) if isinstance(told, Forecast)]
        if not pairs:
            return
        one = _Waiting(model, [one for one, _ in pairs], [told for _, told in pairs], self._clock())
        numbers = _numbers(one.series, one.forecasts)
        with self._lock:  # and nobody is woken: the thread would get in the way of the answer
            full = self._forecasts + len(pairs) > self._settings.ledger_waiting
            if not (full or self._numbers + numbers > MOST_NUMBERS or self._ended.is_set()):
                self._waiting.append(one)
                self._forecasts, self._numbers = self._forecasts + len(pairs), self._numbers + numbers
                return
        self._counted("dropped", len(pairs))

    def ledger(self) -> Ledger:
        """The ledger; raises Problem where there is none (404), or it cannot be opened (503)."""
        if self._url is None:
            raise Problem(
                "ledger_off",
                "Expected a ledger of served forecasts; this server keeps none. Start it with FORECASTER_SERVING_LEDGER=on.",
            )
        try:
            return self._open()
        except (LedgerError, MissingPackage) as error:
            log.error("%s", error.message)
            raise unavailable() from error

    def learn(self) -> None:
        """Actuals have come: what they teach about the model in use is worked out in the background."""
        self._stale = self._settings.adaptive

    @property
    def clock(self) -> Callable[[], float]:
        """What tells the time, in seconds since 1970."""
        return self._clock

    def _open(self) -> Ledger:
        from forecaster.ledger.store import Ledger

        with self._opening:
            if self._ledger is None:
                assert self._url is not None, "there is one"
                self._ledger = Ledger(self._url)
            return self._ledger

    def _run(self) -> None:
        tidied = looked = float("-inf")
        while True:
            some = self._take()
            try:
                if some:
                    self._keep(some)
                if time.monotonic() - tidied > _TIDY_S:
                    tidied = time.monotonic()
                    self._open().prune(before=self._clock() - self._settings.ledger_days * 86400)
                if self._settings.adaptive and (self._stale or time.monotonic() - looked > self._look_s):
                    looked = time.monotonic()
                    self._look()
            except Exception as error:  # of any kind: this thread must live
                self._tell(error)
            if self._ended.is_set() and not self._waiting:
                break
        if self._ledger is not None:
            self._ledger.close()

    def _take(self) -> list[_Waiting]:
        """What has come to wait in a while, all of it; perhaps nothing."""
        self._ended.wait(_GATHER_S)
        with self._lock:
            some = list(self._waiting)
            self._waiting.clear()
            return some

    def _keep(self, some: Sequence[_Waiting]) -> None:
        try:
            both = [*some, *(beside for one in some if (beside := self._beside(one)) is not None)]
            records: list[Made] = []
            for alike in _alike(both):
                for first in range(0, len(alike), _SLICE):
                    began = time.monotonic()
                    records += self._records(alike[first : first + _SLICE])
                    self._ended.wait(min(_MOST_PAUSE_S, time.monotonic() - began))
            for first in range(0, len(records), _AT_ONCE):
                began = time.monotonic()
                self._store(records[first : first + _AT_ONCE])
                self._ended.wait(min(_MOST_PAUSE_S, time.monotonic() - began))
        finally:
            with self._lock:
                self._forecasts -= sum(len(one.forecasts) for one in some)
                self._numbers -= sum(_numbers(one.series, one.forecasts) for one in some)

    def _beside(self, one: _Waiting) -> _Waiting | None:
        """What the shadow forecasts of a share of the same histories; None where there is no other model, or it cannot."""
        from forecaster.ledger.records import key_of, tick

        shadow, ledger = self._shadow(), self._patiently(self._open)
        if shadow is None or ledger is None or shadow.release.digest == one.model.release.digest:
            return None
        share = self._settings.shadow_share
        asked = [
            each
            for each in one.series
            if self._chosen(key_of(ledger.salt, each.id, each.start), tick(each.end), share=share)
        ]
        try:
            found = shadow.predictor.forecast_each(asked, len(one.forecasts[0].mean)) if asked else []
        except Exception as error:  # of any kind: those who ask are answered by another
            log.warning("the model beside the one in use does not forecast: %r", error)
            return None
        good = [(each, told) for each, told in zip(asked, found, strict=True) if isinstance(told, Forecast)]
        return _Waiting(shadow, [each for each, _ in good], [told for _, told in good], one.at) if good else None

    def _records(self, some: Sequence[_Each]) -> list[Made]:
        """What is to be kept of forecasts that one model made; nothing, and the reason in the log, where that cannot be told."""
        from forecaster.ledger.recording import Keeping, made
        from forecaster.ledger.records import Told

        ledger, model = self._patiently(self._open), some[0].model
        try:
            if ledger is None:
                raise LedgerError("it does not open")
            told = made(
                model.predictor,
                Told(model.release.name, model.release.version, model.release.digest),
                [one.series for one in some],
                [one.forecast for one in some],
                keeping=Keeping(ledger.salt, clear=self._settings.ledger_clear_ids),
                drift=model.drift,
                at=[one.at for one in some],
            )
        except Exception as error:  # of any kind: those that come after it may be good
            self._tell(error)
            self._counted("failed", len(some))
            return []
        return [each for each in told if self._chosen(each.key, each.origin)]

    def _store(self, records: Sequence[Made]) -> None:
        """Keeps some forecasts together; what the database does not take after some tries is given up."""
        stored = self._patiently(lambda: self._open().record(records))
        self._counted("failed" if stored is None else "stored", len(records) if stored is None else stored)

    def _patiently(self, work: Callable[[], T]) -> T | None:
        """The answer of some work with the database, which is tried again and again; None when that is given up."""
        for _ in range(TRIES):
            try:
                done = work()
            except Exception as error:  # of any kind: this thread must live
                self._tell(error)
                if self._ended.wait(self._pause_s):
                    return None
            else:
                if self._failing:
                    log.warning("the ledger takes forecasts again")
                self._failing = False
                return done
        return None

    def _chosen(self, key: str, origin: int, *, share: float = 1.0) -> bool:
        """Whether a forecast is among those that are kept: by chance, but the same for every worker and every repetition.

        A share of them is chosen by the same chance.
        """
        share *= self._settings.ledger_share
        if share >= 1:
            return True
        drawn = int.from_bytes(hashlib.sha256(f"{key} {origin}".encode()).digest()[:8], "big")
        return drawn < share * 2**64

    def _look(self) -> None:
        """Works out what late actuals teach about the model in use, and takes what this or another worker has worked out."""
        from forecaster.ledger.adaptive import adapt, read

        stale, self._stale, digest = self._stale, False, self._in_use
        if digest is None:
            return
        ledger = self._open()
        if stale:
            adapt(ledger, digest, at=self._clock())
        drift = read(ledger, digest)
        self._drifts = {} if drift is None else {digest: drift}

    def _tell(self, error: Exception) -> None:
        """Once for a row of failures."""
        if not self._failing:
            log.warning("the ledger does not take forecasts, which are served all the same: %r", error)
        self._failing = True


def unavailable() -> Problem:
    """What is told of a database that does not answer; its own words are for the log."""
    return Problem(
        "ledger_unavailable",
        "Expected the ledger's database to answer; it does not. Try again later; the server's log says more.",
        headers={"retry-after": "5"},
    )
