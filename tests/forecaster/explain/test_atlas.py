"""The atlas: what a unit follows is found, and chance is not reported as insight more often than stated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from forecaster.explain.atlas import RATE, Atlas, build_atlas
from forecaster.explain.signals import list_clocks
from forecaster.explain.state_plots import plot_atlas, plot_followers
from forecaster.explain.states import StateTrace, trace_states
from forecaster.series import Series
from tests.factories import START, make_fitted_model, make_series, make_spec

SEASON = 12
# Of so many runs, more false alarms than this have a probability below 1 % at the stated rate of 5 %.
RUNS, MOST_FALSE_ALARMS = 12, 3
PERMUTATIONS = 499  # enough for a p value of 0.05 / 9


def make_trace(y: np.ndarray, states: np.ndarray, *, name: str = "a", freq: str = "h", segment: int = 1) -> StateTrace:
    indices = np.arange(segment - 1, len(y), segment)
    series = Series(name, START, freq, y)
    return StateTrace(series, 1, segment, indices, np.zeros_like(indices), {"hidden": states[None].astype(np.float32)})


def make_slow_noise(rng: np.random.Generator, steps: int, columns: int, *, memory: float) -> np.ndarray:
    """An autoregression of order one, in which neighbouring values are alike."""
    values = rng.normal(size=(steps + 100, columns))
    for step in range(1, len(values)):
        values[step] += memory * values[step - 1]
    return values[100:]


def find_followed(atlas: Atlas) -> dict[int, str]:
    rows = atlas.table[atlas.table["follows"]]
    return dict(zip(rows["unit"], rows["signal"], strict=True))


@pytest.mark.parametrize("num_series", [1, 9])
def test_units_are_found_to_follow_what_they_were_made_from(num_series: int) -> None:
    rng = np.random.default_rng(0)
    traces = []
    for number in range(num_series):
        steps = np.arange(360)
        y = 50 + np.cumsum(rng.normal(size=360)) + 3 * np.sin(2 * np.pi * steps / SEASON)
        level = pd.Series(y).rolling(SEASON).mean().bfill().to_numpy()
        season = np.sin(2 * np.pi * (steps + 2) / SEASON)
        columns = [season, -y, level, season, np.zeros(360)]
        states = np.stack(columns, axis=1) + 0.3 * rng.normal(size=(360, 5)) * [1, 1, 1, 4, 0]
        traces.append(make_trace(y, np.column_stack([states, rng.normal(size=(360, 3))]), name=f"s{number}"))
    atlas = build_atlas(traces, season=SEASON)
    assert find_followed(atlas) == {1: "season", 2: "value", 3: "level", 4: "season"}
    assert atlas.count_followers()["season"] == 2
    signs = atlas.table.set_index(["unit", "signal"])["sign"]
    assert signs[2, "value"] == -1
    assert signs[3, "level"] == 1
    shares = atlas.table.set_index(["unit", "signal"])["share"]
    assert shares[1, "season"] == pytest.approx(0.5 / (0.5 + 0.3**2), abs=0.03)
    assert any("stretches of a series are exchanged" in note for note in atlas.notes) == (num_series == 1)
    assert len(plot_atlas(atlas).axes) == 2
    figure = plot_followers(atlas, traces, "s0", season=SEASON)
    assert figure is not None
    assert len(figure.axes) == 3


@pytest.mark.parametrize(("num_series", "memory"), [(10, 0.0), (10, 1.0), (1, 0.5)])
def test_states_without_any_relation_are_not_reported_more_often_than_stated(num_series: int, memory: float) -> None:
    false_alarms = 0
    for seed in range(RUNS):
        rng = np.random.default_rng([seed, num_series])
        traces = [
            make_trace(
                make_slow_noise(rng, 144, 1, memory=memory)[:, 0],
                make_slow_noise(rng, 144, 8, memory=memory),
                name=f"s{number}",
            )
            for number in range(num_series)
        ]
        atlas = build_atlas(traces, season=SEASON, permutations=PERMUTATIONS, seed=seed)
        assert atlas.table["p"].notna().any()
        false_alarms += bool(atlas.table["follows"].any())
    assert false_alarms <= MOST_FALSE_ALARMS


def test_networks_with_random_weights_are_not_found_to_follow_the_season_of_white_noise() -> None:
    false_alarms = 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        cell = ("gru", "lstm", "elman")[seed % 3]
        model = make_fitted_model(make_spec(cell=cell, context=96, season=SEASON, reads="history"), seed=seed)
        series = [make_series(10 + rng.normal(size=96), name=f"s{number}") for number in range(8)]
        significant = build_atlas(
            trace_states(model, series), season=SEASON, permutations=PERMUTATIONS
        ).count_significant()
        false_alarms += significant["season"] > 0
        assert significant["value"] > 0, "they do follow what they read"
    assert false_alarms <= MOST_FALSE_ALARMS


def test_what_all_series_have_in_common_counts_once() -> None:
    """Sixteen copies of one noise are one series: the season is not found in it sixteen times as surely."""
    false_alarms = 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        states = make_slow_noise(rng, 144, 6, memory=0.8)
        traces = [make_trace(rng.normal(size=144), states, name=f"s{number}") for number in range(16)]
        false_alarms += (
            build_atlas(traces, season=SEASON, permutations=PERMUTATIONS, seed=seed).count_significant()["season"] > 0
        )
    assert false_alarms <= MOST_FALSE_ALARMS


def test_a_trend_is_not_taken_for_a_season() -> None:
    steps = np.arange(144.0)
    states = np.stack([steps, steps**2, np.exp(-steps / 20)], axis=1)
    rng = np.random.default_rng(0)
    traces = [make_trace(rng.normal(size=144), states, name=f"s{number}") for number in range(10)]
    atlas = build_atlas(traces, season=SEASON)
    assert set(find_followed(atlas).values()) == {"time"}
    assert (atlas.table.query("signal == 'season'")["share"] < 0.01).all()


def test_the_start_of_a_window_is_not_taken_for_a_season() -> None:
    """Windows of four seasons begin at one phase, and with a state that is not yet settled."""
    rng = np.random.default_rng(0)
    settling = np.tile(np.exp(-np.arange(48)[:, None] / [1.0, 3.0, 6.0]), (4, 1))
    traces = []
    for number in range(10):
        trace = make_trace(rng.normal(size=192), settling + 0.05 * rng.normal(size=(192, 3)), name=f"s{number}")
        trace.windows[:] = np.arange(192) // 48
        traces.append(trace)
    atlas = build_atlas(traces, season=SEASON)
    assert atlas.table.query("signal == 'season'")["p"].notna().all()
    assert atlas.count_significant()["season"] == 0
    assert atlas.count_significant()["time"] == 3


def test_what_cannot_be_tested_is_named() -> None:
    rng = np.random.default_rng(0)
    traces = [make_trace(rng.normal(size=30), rng.normal(size=(30, 2)), name=f"s{number}") for number in range(8)]
    atlas = build_atlas(traces, season=SEASON)
    assert atlas.table.query("signal == 'season'")["p"].isna().all()
    assert any("too short" in note and "season" in note for note in atlas.notes)
    assert atlas.count_significant()["season"] == 0
    segments = [
        make_trace(rng.normal(size=480), rng.normal(size=(40, 2)), name=f"s{number}", segment=12) for number in range(8)
    ]
    atlas = build_atlas(segments, season=SEASON)
    assert "season" not in set(atlas.table["signal"])
    assert any("no state moves within a season" in note for note in atlas.notes)
    assert atlas.rate == RATE


@pytest.mark.parametrize(
    ("freq", "season", "segment", "expected"),
    [
        ("MS", 12, 1, {"season": 12}),
        ("MS", 4, 1, {"season": 4, "year": 12}),
        ("h", 24, 12, {"season": 2, "week": 14, "year": 8765.82 / 12}),
        ("D", 7, 1, {"season": 7, "year": 365.2425}),
        ("1", 12, 3, {"season": 4}),
    ],
)
def test_cycles_are_those_of_the_season_and_of_the_calendar(
    freq: str, season: int, segment: int, expected: dict[str, float]
) -> None:
    series = Series("a", 0 if freq == "1" else START, freq, np.arange(4.0))
    found: Sequence[tuple[str, float, tuple[int, ...]]] = list_clocks(series, season=season, segment=segment)
    assert {name: period for name, period, _ in found} == pytest.approx(expected)


def test_a_harmonic_that_is_a_shorter_cycle_belongs_to_that_cycle() -> None:
    series = Series("a", START, "h", np.arange(4.0))
    orders = {clock.name: clock.orders for clock in list_clocks(series, season=12, segment=1)}
    assert orders["season"] == (1, 2, 3)
    assert orders["day"] == (1, 3), "the second is the season of half a day"
