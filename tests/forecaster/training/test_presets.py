"""Presets: a valid specification for every frequency, and selection of the best variant on the last validation windows."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

from forecaster.errors import BadSpec, HistoryTooShort
from forecaster.metrics import mae, seasonal_error
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel, Series
from forecaster.training.fit import fit
from forecaster.training.presets import (
    Preset,
    build_candidate_specs,
    build_validation_fields,
    choose_validation_fields,
    with_validation_windows,
)
from forecaster.training.selection import _build_candidates, select_on_validation, select_spec
from tests.factories import make_panel, make_spec, make_wave

FREQUENCIES = {
    "YS": "yearly",
    "QS-JAN": "quarterly",
    "MS": "monthly",
    "7D": "weekly",
    "D": "daily",
    "B": "daily",
    "h": "hourly",
    "15min": "hourly",
    "min": "hourly",
}


def make_frequency_panel(freq: str, *lengths: int) -> Panel:
    start: Any = pd.Timestamp("2020-01-01") if freq != "B" else pd.Timestamp("2020-01-02")
    start = 0 if freq == "1" else start
    return Panel(
        [Series(str(n), start, freq, 50 + make_wave(length, seed=n)) for n, length in enumerate(lengths)], freq
    )


@pytest.mark.parametrize("freq", FREQUENCIES)
@pytest.mark.parametrize("lengths", [(7, 6), (40, 30, 20), (300,), (3000, 200, 9)])
@pytest.mark.parametrize("horizon", [1, 3, 18, 60])
def test_every_frequency_length_and_horizon_has_a_valid_preset(
    freq: str, lengths: tuple[int, ...], horizon: int
) -> None:
    for spec in build_candidate_specs(make_frequency_panel(freq, *lengths), horizon=horizon, name="any"):
        assert (spec.horizon, spec.name) == (horizon, "any")
        assert spec.context % spec.segment == 0
        available_steps = max(2, max(lengths) - 2 * horizon)
        assert spec.context <= max(available_steps, spec.segment)
        assert spec.validation_steps <= max(horizon, np.median(lengths) / 3)
        assert spec.min_steps <= spec.context


def test_the_preset_follows_the_frequency_unless_named() -> None:
    monthly = build_candidate_specs(make_frequency_panel("MS", 120, 110), horizon=18, name="any")
    assert len(monthly) > 1
    assert all(spec.head.loss == "mae" and spec.training.refit for spec in monthly)
    [classic] = build_candidate_specs(make_frequency_panel("MS", 120, 110), horizon=18, name="any", preset="classic")
    assert (classic.head.loss, classic.decoder, classic.segment) == ("mse", "rollout", 1)
    assert build_candidate_specs(make_frequency_panel("h", 120), horizon=50, name="a", preset="yearly") == [
        spec.model_copy(update={"name": "a"})
        for spec in build_candidate_specs(make_frequency_panel("YS", 120), horizon=50, name="b")
    ]
    for preset in get_args(Preset):
        assert build_candidate_specs(make_frequency_panel("D", 400), horizon=7, name="any", preset=preset)
    with pytest.raises(BadSpec, match="monthly") as raised:
        build_candidate_specs(make_frequency_panel("D", 400), horizon=7, name="any", preset="lunar")
    assert "lunar" in str(raised.value)


@pytest.mark.parametrize(
    ("windows", "horizon", "season", "expected"),
    [
        (1, 336, 24, {"valid_windows": 1}),  # a single window cannot overlap
        (20, 336, 24, {"valid_windows": 20}),  # already the maximum
        (5, 12, 12, {"valid_windows": 5}),  # no season shorter than the horizon
        (8, 336, 24, {"valid_windows": 99, "valid_stride": 24}),
        (4, 720, 24, {"valid_windows": 91, "valid_stride": 24}),
        (19, 720, 24, {"valid_windows": 109, "valid_stride": 120}),  # at most 128 overlapping windows
        (3, 6, 1, {"valid_windows": 13, "valid_stride": 1}),
    ],
)
def test_windows_overlap_when_too_few_fit(windows: int, horizon: int, season: int, expected: dict[str, int]) -> None:
    fields = build_validation_fields(windows, horizon=horizon, season=season)
    assert fields == expected
    separate, overlapping = (
        make_spec(horizon=horizon, training=training) for training in ({"valid_windows": windows}, fields)
    )
    assert (
        windows * horizon - season * 10 < overlapping.validation_steps <= separate.validation_steps == windows * horizon
    )


def test_an_hourly_panel_with_a_long_horizon_uses_overlapping_windows() -> None:
    for spec in build_candidate_specs(make_frequency_panel("h", 10_000), horizon=240, name="any"):
        assert (spec.training.valid_windows, spec.training.valid_stride) == (41, 24)
    assert make_spec(training={"valid_windows": 0, "valid_stride": 3}).validation_steps == 0


@pytest.mark.parametrize(
    ("steps", "training", "expected"),
    [
        (300, {"valid_windows": 1}, (5, None)),
        (300, {"valid_windows": 2, "valid_stride": 1}, (5, None)),
        (72, {"valid_windows": 2}, (5, 3)),
        (42, {"valid_windows": 2}, (3, 1)),
        (20, {"valid_windows": 1}, (1, None)),
        (40, {"valid_windows": 2}, (2, None)),  # one is not more
        (72, {"valid_windows": 6, "valid_stride": 2}, (6, 2)),
        (300, {"valid_windows": 7}, (7, None)),
    ],
)
def test_a_specification_gets_five_validation_windows_and_not_fewer_than_its_own(
    steps: int, training: dict[str, int], expected: tuple[int, int | None]
) -> None:
    spec = make_spec(horizon=12, training=training)
    result = with_validation_windows(spec, make_frequency_panel("MS", steps))
    assert (result.training.valid_windows, result.training.valid_stride) == expected
    windows = {"valid_windows": 0, "valid_stride": None}
    assert result.model_copy(update={"training": result.training.model_copy(update=windows)}) == spec.model_copy(
        update={"training": spec.training.model_copy(update=windows)}
    ), "nothing else changes"


@pytest.mark.parametrize(
    ("length", "desired", "horizon", "season", "expected"),
    [
        (720, 5, 12, 12, {"valid_windows": 5}),  # five side by side
        (300, 1, 12, 12, {"valid_windows": 5}),  # five rather than one, where a third of the history has room
        (72, 0, 12, 12, {"valid_windows": 5, "valid_stride": 3}),  # five that overlap, in a third of the history
        (42, 0, 12, 12, {"valid_windows": 3, "valid_stride": 1}),  # a third has three origins
        (20, 0, 12, 12, {"valid_windows": 1}),
        (97, 0, 18, 12, {"valid_windows": 5, "valid_stride": 3}),
        (400, 2, 14, 7, {"valid_windows": 9, "valid_stride": 7}),  # whole seasons apart, as many as fit
        (2000, 0, 336, 24, {"valid_windows": 14, "valid_stride": 24}),
        (10_000, 30, 24, 24, {"valid_windows": 20}),
    ],
)
def test_there_are_five_validation_windows_where_a_third_of_the_history_allows_them(
    length: int, desired: int, horizon: int, season: int, expected: dict[str, int]
) -> None:
    fields = choose_validation_fields(length, desired, horizon=horizon, season=season)
    assert fields == expected
    assert make_spec(horizon=horizon, training=fields).validation_steps <= max(horizon, length / 3)


def test_variants_are_listed_from_the_last_value_to_the_calendar_of_the_year() -> None:
    def list_variants(freq: str, length: int, **options: Any) -> list[tuple[str, bool]]:
        specs = build_candidate_specs(make_frequency_panel(freq, length), horizon=7, name="any", **options)
        return [(spec.base, bool(spec.calendar)) for spec in specs]

    plain = [("last", False), ("seasonal_naive", False)]
    assert list_variants("D", 400) == [*plain, ("zero", False)]
    assert list_variants("D", 800) == [*plain, ("zero", False), ("seasonal_naive", True)]
    assert list_variants("D", 2000) == [("last", False), ("zero", True), ("seasonal_naive", True)]
    assert list_variants("7D", 110) == [("last", False), *plain]
    assert list_variants("7D", 150) == [("last", False), *plain, ("last", True)]
    assert not any(has_calendar for _, has_calendar in list_variants("1", 2000, preset="daily", season=7)), (
        "integer steps have no calendar"
    )


def test_a_season_changes_the_errors_and_not_the_preset() -> None:
    panel = make_frequency_panel("D", 400)
    for season in (1, 5, 30):
        given = build_candidate_specs(panel, horizon=7, name="any", season=season)
        assert given == [
            spec.model_copy(update={"season": season}) for spec in build_candidate_specs(panel, horizon=7, name="any")
        ]
    [first, *_] = build_candidate_specs(make_frequency_panel("1", 400), horizon=7, name="any", season=24)
    assert (first.season, first.segment) == (24, 12), "a frequency without a season follows the given one"


def test_the_best_candidate_on_the_validation_windows_is_selected_without_later_data() -> None:
    panel = make_panel(*(make_wave(90, seed=n) for n in range(12)))
    training = {"steps": 30, "epoch_steps": 10, "batch": 16, "learning_rate": 0.02, "valid_windows": 1}
    good = make_spec(training=training, scaling="standard", base="seasonal_naive", season=24)
    bad = make_spec(training=training | {"learning_rate": 1e-9}, scaling="none", base="linear", season=24)
    selection = select_on_validation(panel, [bad, good], accelerator="cpu")
    assert selection.spec == good
    assert selection.errors[1] < selection.errors[0]
    model = fit(panel, good, accelerator="cpu").model
    histories = [series.take_first(len(series) - 5) for series in panel.series]
    forecasts = [Predictor(model).forecast(series, 5).mean for series in histories]
    errors = [
        mae(series.y[-5:], mean) / seasonal_error(history.y, season=24)
        for series, history, mean in zip(panel.series, histories, forecasts, strict=True)
    ]
    assert selection.errors[1] == pytest.approx(float(np.mean(errors)), rel=1e-4)
    assert select_on_validation(panel, [bad], accelerator="cpu").spec == bad


def test_a_horizon_that_the_data_do_not_allow_names_the_longest_that_they_do() -> None:
    panel = make_panel(make_wave(40), freq="MS")
    with pytest.raises(HistoryTooShort) as raised:
        select_spec(panel, name="monthly", horizon=30)
    found = re.search(
        r"The longest horizon that these data allow is (\d+), or (\d+) without test windows", str(raised.value)
    )
    assert found is not None
    longest, longest_untested = map(int, found.groups())
    assert 1 < longest < longest_untested < 40
    build = partial(
        _build_candidates,
        panel,
        name="monthly",
        preset=None,
        season=None,
        columns={},
        test_windows=1,
        with_pretrained=True,
    )
    build(horizon=longest)
    with pytest.raises(HistoryTooShort):
        build(horizon=longest + 1)


@pytest.mark.parametrize("with_pretrained", [True, False])
def test_the_pretrained_network_is_among_the_variants_unless_it_is_left_out(*, with_pretrained: bool) -> None:
    panel = make_panel(make_wave(80), freq="MS")
    specs = _build_candidates(
        panel,
        name="monthly",
        horizon=6,
        preset=None,
        season=None,
        columns={},
        test_windows=1,
        with_pretrained=with_pretrained,
    )[1]
    assert [spec.training.initial == "base" for spec in specs] == [
        with_pretrained and index == 0 for index in range(len(specs))
    ]


def test_a_diverging_candidate_is_not_selected() -> None:
    panel = make_panel(*(make_wave(90, seed=n) for n in range(3)))
    training = {"steps": 20, "epoch_steps": 10, "batch": 16, "valid_windows": 1}
    diverging = make_spec(training=training | {"learning_rate": 1e30}, scaling="none")
    stable = make_spec(training=training | {"learning_rate": 1e-3})
    assert select_on_validation(panel, [diverging, stable], accelerator="cpu").spec == stable
