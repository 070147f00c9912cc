"""The ledger's database: SQLite, and a PostgreSQL server that the test starts where it is installed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.errors import LedgerError
from forecaster.ledger.accuracy import compute_accuracy, forecast_actual_pairs
from forecaster.ledger.records import (
    ForecastFilter,
    ForecastRecord,
    ObservedSeries,
    encode_timestamp,
    encode_timestamps,
    series_key,
)
from forecaster.ledger.store import Ledger

DIGEST = "d" * 64


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def open_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    address = f"sqlite:///{tmp_path}/ledger.db"
    if request.param == "postgresql":
        address = request.getfixturevalue("postgres")
    ledger = Ledger(address)
    yield ledger
    ledger.prune(before=float("inf"))
    ledger.close()


def make_forecast_record(
    key: str = "k",
    origin: int = 10,
    *,
    horizon: int = 2,
    made_at: float = 100.0,
    group: str | None = None,
    **fields: object,
) -> ForecastRecord:
    timestamps = [origin + step for step in range(1, horizon + 1)]
    record = ForecastRecord(
        made_at,
        "m",
        "1",
        DIGEST,
        key,
        None,
        group,
        origin,
        2.0,
        timestamps,
        [5.0] * horizon,
        {0.1: [4.0] * horizon, 0.9: [6.0] * horizon},
    )
    return record._replace(**fields)


def test_each_forecast_and_each_actual_is_stored_once(open_ledger: Ledger) -> None:
    assert (
        open_ledger.record([make_forecast_record(), make_forecast_record(origin=11), make_forecast_record("other")])
        == 3
    )
    assert open_ledger.record([make_forecast_record(made_at=200.0), make_forecast_record(horizon=1)]) == 0
    assert open_ledger.record([make_forecast_record(horizon=3)]) == 1
    observations = [ObservedSeries("k", [11, 12, 13], [5.0, 6.0, 9.0])]
    first, repeated = open_ledger.observe(observations, now=1.0), open_ledger.observe(observations, now=2.0)
    assert (first[0].stored, repeated[0].stored, repeated[0].corrected) == (3, 0, 0)
    assert first[0].by_step == repeated[0].by_step == {1: 2, 2: 2, 3: 1}
    assert (first[0].scored, open_ledger.span(ForecastFilter()).forecasts) == (2, 3)
    accuracy = compute_accuracy(open_ledger, ForecastFilter())
    assert (accuracy.scored, accuracy.overall.n, accuracy.overall.mae) == (2, 5, pytest.approx((0 + 1 + 4 + 1 + 4) / 5))
    assert open_ledger.observe([ObservedSeries("k", [13], [5.0])], now=3.0)[0].corrected == 1
    assert compute_accuracy(open_ledger, ForecastFilter()).overall.mae == pytest.approx(2 / 5)


def test_of_two_actuals_for_one_timestamp_in_a_batch_the_later_wins(open_ledger: Ledger) -> None:
    open_ledger.record([make_forecast_record()])
    results = open_ledger.observe(
        [ObservedSeries("k", [11, 11], [1.0, 2.0]), ObservedSeries("k", [11], [5.0])], now=1.0
    )
    assert [(result.stored, result.corrected) for result in results] == [(1, 1), (0, 1)]
    assert compute_accuracy(open_ledger, ForecastFilter()).overall.mae == 0.0


def test_accuracy_equals_a_slow_loop(open_ledger: Ledger) -> None:
    rng = np.random.default_rng(0)
    keys = [f"series {index}" for index in range(30)]
    actuals = {key: dict(zip(range(60), rng.normal(5, 2, 60).tolist(), strict=True)) for key in keys}
    records = [
        make_forecast_record(
            key,
            origin,
            horizon=4,
            group=f"group {series_index % 3}",
            mean=rng.normal(5, 1, 4).tolist(),
            scale=1.0 + series_index % 2,
        )
        for series_index, key in enumerate(keys)
        for origin in range(0, 58, 3)
    ]
    open_ledger.record(records)
    open_ledger.observe(
        [ObservedSeries(key, list(values), list(values.values())) for key, values in actuals.items()], now=1.0
    )
    rows = [
        (
            record.group,
            step,
            mean - actuals[record.key][timestamp],
            record.scale,
            4.0 <= actuals[record.key][timestamp] <= 6.0,
        )
        for record in records
        for step, (timestamp, mean) in enumerate(zip(record.timestamps, record.mean, strict=True), 1)
        if timestamp in actuals[record.key]
    ]

    def check(score: object, expected_rows: list[tuple[str, int, float, float, bool]]) -> None:
        n, mae, bias, mase, coverage, width, wql, msis = score
        assert (wql, msis) == (None, None), "only two of the recorded levels"
        assert n == len(expected_rows)
        assert mae == pytest.approx(np.mean([abs(error) for _, _, error, _, _ in expected_rows]))
        assert bias == pytest.approx(np.mean([error for _, _, error, _, _ in expected_rows]))
        assert mase == pytest.approx(np.mean([abs(error) / scale for _, _, error, scale, _ in expected_rows]))
        assert coverage == {0.8: pytest.approx(np.mean([is_inside for *_, is_inside in expected_rows]))}
        assert width == {0.8: 2.0}

    accuracy = compute_accuracy(open_ledger, ForecastFilter(digest=DIGEST))
    check(accuracy.overall, rows)
    assert sorted(accuracy.by_step) == [1, 2, 3, 4]
    assert sorted(accuracy.by_group) == ["group 0", "group 1", "group 2"]
    for step, score in accuracy.by_step.items():
        check(score, [row for row in rows if row[1] == step])
    for group, score in accuracy.by_group.items():
        check(score, [row for row in rows if row[0] == group])
    assert compute_accuracy(open_ledger, ForecastFilter(digest="e" * 64)).overall.n == 0


def test_interval_scores_equal_a_slow_loop_over_the_pairs_with_all_recorded_levels(open_ledger: Ledger) -> None:
    rng = np.random.default_rng(1)
    levels = (0.025, 0.1, 0.5, 0.9, 0.975)
    actuals = dict(zip(range(60), rng.normal(5, 2, 60).tolist(), strict=True))
    records = []
    for number, origin in enumerate(range(0, 50, 3)):
        offsets = np.sort(rng.normal(0, 2, (5, 2)), axis=0)
        quantiles = {level: (5 + offsets[index]).tolist() for index, level in enumerate(levels)}
        if number == 3:
            del quantiles[0.5]  # as of a forecast that an earlier model recorded
        scale = None if number == 5 else 1.0 + number
        records.append(make_forecast_record(origin=origin, quantiles=quantiles, scale=scale))
    open_ledger.record(records)
    open_ledger.observe([ObservedSeries("k", list(actuals), list(actuals.values()))], now=1.0)
    losses, sizes, scores = [], [], []
    for record in records:
        for step, timestamp in enumerate(record.timestamps):
            y = actuals[timestamp]
            if len(record.quantiles) == 5:
                errors = {level: y - values[step] for level, values in record.quantiles.items()}
                loss = [level * error if error > 0 else (level - 1) * error for level, error in errors.items()]
                losses.append(2 * np.mean(loss))
                sizes.append(abs(y))
            if record.scale is not None:
                low, high = record.quantiles[0.025][step], record.quantiles[0.975][step]
                scores.append((high - low + 40 * (max(low - y, 0) + max(y - high, 0))) / record.scale)
    overall = compute_accuracy(open_ledger, ForecastFilter()).overall
    assert overall.wql_recorded == pytest.approx(sum(losses) / sum(sizes))
    assert overall.msis_95 == pytest.approx(np.mean(scores))


def test_many_forecasts_are_read_in_chunks(open_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forecaster.ledger.store.BATCH_ROWS", 7)
    open_ledger.record([make_forecast_record(f"{index % 10}", 10 + index // 10) for index in range(50)])
    open_ledger.observe([ObservedSeries(f"{index}", list(range(30)), [5.0] * 30) for index in range(10)], now=1.0)
    frames = list(forecast_actual_pairs(open_ledger, ForecastFilter()))
    assert len(frames) == 8
    assert sum(map(len, frames)) == 100
    assert sorted(set(pd.concat(frames)["forecast"])) == list(range(50))


def test_concurrent_writers_do_not_lose_records(open_ledger: Ledger) -> None:
    failures: list[Exception] = []

    def write(worker: int) -> None:
        try:
            for index in range(10):
                open_ledger.record([make_forecast_record(f"{worker}", index), make_forecast_record("shared", index)])
                open_ledger.observe([ObservedSeries("shared", [index], [float(worker)])], now=float(index))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert open_ledger.span(ForecastFilter()).forecasts == 50


def test_a_reopened_ledger_keeps_its_salt(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/ledger.db"
    salts = []
    for _ in range(2):
        ledger = Ledger(address)
        salts.append(ledger.salt)
        ledger.close()
    other = Ledger(f"sqlite:///{tmp_path}/other.db")
    other.close()
    assert salts[0] == salts[1] != other.salt
    assert series_key(salts[0], "a", 1) == series_key(salts[1], "a", 2)
    assert (
        len(
            {
                series_key(salts[0], "a", 1),
                series_key(salts[0], "a", pd.Timestamp("2026-01-01")),
                series_key(other.salt, "a", 1),
            }
        )
        == 3
    )


@pytest.mark.parametrize(
    "address", ["", "nonsense", "mysql://me:fck_secret@host/name", "sqlite:////proc/none/ledger.db"]
)
def test_an_invalid_address_is_rejected_without_repeating_the_password(address: str) -> None:
    with pytest.raises(LedgerError) as raised:
        Ledger(address)
    assert "fck_secret" not in str(raised.value)


def test_equal_timestamps_match_in_any_zone_and_unit() -> None:
    utc_timestamp = pd.Timestamp("2026-01-01T03:00:00Z")
    equal_timestamps = [
        utc_timestamp,
        utc_timestamp.tz_convert("Europe/Berlin"),
        utc_timestamp.tz_localize(None),
        utc_timestamp.as_unit("s"),
        utc_timestamp.as_unit("ns"),
    ]
    assert {encode_timestamp(timestamp) for timestamp in equal_timestamps} == {1_767_236_400_000_000}
    assert encode_timestamps(pd.Index([3, 4])) == [3, 4]


@pytest.mark.integration
def test_the_forecaster_works_without_sqlalchemy() -> None:
    script = """
import sys
sys.modules["sqlalchemy"] = None
import forecaster.prediction.predictor, forecaster.ledger.recording, forecaster.ledger.accuracy
from forecaster.errors import MissingPackage
from forecaster.ledger.store import Ledger
try:
    Ledger("sqlite://")
except MissingPackage as error:
    print(error.message)
"""
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install" in completed.stdout
