"""Tests that columns are encoded with statistics of the histories of a panel only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.data.calendar import compute_calendar_features, list_calendar_columns
from forecaster.data.encoding import EMPTY_ENCODING, Encoding, find_category, fit_encoding
from forecaster.data.frames.panel import to_panel
from forecaster.errors import CovariateUnknown, NotANumber
from forecaster.series import Panel, Series
from tests.factories import START, make_series, make_wave

CALENDAR = ("hour", "weekday:2")
HEAT = np.array([1.0, 2.0, 3.0, 6.0, 100.0, -100.0])
SKY = np.array(["sun", "rain", "sun", "rain", "hail", "hail"], dtype=object)


def make_observed_series(
    *,
    heat: np.ndarray = HEAT,
    sky: np.ndarray = SKY,
    name: str = "a",
    static: Mapping[str, str] | None = None,
    start: pd.Timestamp = START,
) -> Series:
    """Returns a series of four steps, with covariates for two more steps."""
    return Series(name, start, "h", make_wave(4), {"heat": heat, "sky": sky}, static or {})


def fit_from_series(*series: Series, calendar: Sequence[str] = (), static: Sequence[str] = ()) -> Encoding:
    return fit_encoding(Panel(series, "h"), calendar=calendar, covariates=("heat", "sky"), static=static)


def test_means_spreads_and_categories_come_from_the_histories() -> None:
    encoding = fit_from_series(
        make_observed_series(), make_observed_series(heat=HEAT + 4, sky=np.array(["fog"] * 6, dtype=object), name="b")
    )
    heat_values = np.array([1.0, 2.0, 3.0, 6.0, 5.0, 6.0, 7.0, 10.0])
    assert encoding.numeric == {"heat": (pytest.approx(heat_values.mean()), pytest.approx(heat_values.std()))}
    assert encoding.categories == {"sky": ("fog", "rain", "sun")}


@pytest.mark.parametrize(
    "changed", [{"heat": np.append(HEAT[:4], [1e9, np.nan])}, {"sky": np.append(SKY[:4], ["snow", "x"])}]
)
def test_values_after_the_history_are_not_used(changed: dict[str, Any]) -> None:
    assert fit_from_series(make_observed_series(**changed)) == fit_from_series(make_observed_series())


def test_held_out_values_are_not_used() -> None:
    series = make_observed_series()
    changed = replace(
        series, covariates={"heat": np.append(HEAT[:2], HEAT[2:] * 9), "sky": np.append(SKY[:2], SKY[:4])}
    )
    assert fit_from_series(series.take_first(2)) == fit_from_series(changed.take_first(2)) != fit_from_series(series)


def test_a_numeric_column_is_standardised() -> None:
    [mean, spread], series = fit_from_series(make_observed_series()).numeric["heat"], make_observed_series()
    columns = fit_from_series(series).encode_covariates(series, future_steps=2)
    assert np.allclose(columns[:, 0], (HEAT - mean) / spread)
    assert columns[:4, 0].mean() == pytest.approx(0)
    assert columns[:4, 0].std() == pytest.approx(1)


def test_a_constant_column_becomes_zeros_and_later_changes_show() -> None:
    encoding = fit_from_series(make_observed_series(heat=np.array([5.0, 5.0, 5.0, 5.0, 7.0, 5.0])))
    assert encoding.numeric["heat"] == (5.0, 1.0)
    series = make_observed_series(heat=np.array([5.0, 5.0, 5.0, 5.0, 7.0, 5.0]))
    assert encoding.encode_covariates(series, future_steps=2)[:, 0].tolist() == [0, 0, 0, 0, 2, 0]


def test_a_known_category_is_one_hot_and_an_unknown_one_is_all_zeros() -> None:
    columns = fit_from_series(make_observed_series()).encode_covariates(make_observed_series(), future_steps=2)[:, 1:]
    rain, sun = [1.0, 0.0], [0.0, 1.0]
    assert columns.tolist() == [sun, rain, sun, rain, [0.0, 0.0], [0.0, 0.0]]


def test_steps_beyond_the_known_covariates_are_zeros_and_calendar_features_continue() -> None:
    encoding, series = fit_from_series(make_observed_series(), calendar=("hour",)), make_observed_series()
    columns = encoding.encode_covariates(series, future_steps=5)
    assert columns.shape == (9, encoding.num_covariates)
    assert np.array_equal(columns[:6], encoding.encode_covariates(series, future_steps=2))
    assert not columns[6:, 2:].any()
    assert np.array_equal(
        columns[:, :2], compute_calendar_features(pd.date_range(START, periods=9, freq="h"), ("hour",))
    )


@pytest.mark.parametrize("ahead", [0, 1, 4])
@pytest.mark.parametrize("calendar", [(), CALENDAR])
@pytest.mark.parametrize("covariates", [(), ("heat",), ("sky",), ("sky", "heat")])
def test_the_width_is_the_sum_over_columns(calendar: tuple[str, ...], covariates: tuple[str, ...], ahead: int) -> None:
    encoding = fit_encoding(Panel([make_observed_series()], "h"), calendar=calendar, covariates=covariates, static=())
    width = len(list_calendar_columns(calendar)) + ("heat" in covariates) + 2 * ("sky" in covariates)
    assert encoding.encode_covariates(make_observed_series(), future_steps=ahead).shape == (4 + ahead, width)
    assert encoding.num_covariates == width


def test_the_order_of_the_columns_does_not_matter() -> None:
    reordered = replace(make_observed_series(), covariates={"sky": SKY, "heat": HEAT, "more": HEAT})
    encoding = fit_from_series(make_observed_series())
    assert np.array_equal(
        encoding.encode_covariates(reordered, future_steps=2),
        encoding.encode_covariates(make_observed_series(), future_steps=2),
    )


def test_a_column_with_text_in_any_series_is_categorical() -> None:
    encoding = fit_from_series(make_observed_series(), make_observed_series(sky=HEAT.copy(), name="b"))
    assert set(encoding.categories["sky"]) >= {"rain", "sun"}
    assert "sky" not in encoding.numeric


@pytest.mark.parametrize("missing", ["heat", "sky"])
def test_a_missing_column_is_reported_with_its_series(missing: str) -> None:
    remaining = {name: values for name, values in make_observed_series().covariates.items() if name != missing}
    incomplete = replace(make_observed_series(name="meter 7"), covariates=remaining)
    encoding = fit_from_series(make_observed_series())
    for call in (
        lambda: fit_from_series(make_observed_series(), incomplete),
        lambda: encoding.encode_covariates(incomplete, future_steps=0),
    ):
        with pytest.raises(
            CovariateUnknown, match=f"'meter 7' needs the covariate '{missing}'; it has: {next(iter(remaining))}"
        ) as error:
            call()
        assert error.value.where == "meter 7"
    with pytest.raises(CovariateUnknown, match="it has: none"):
        encoding.encode_covariates(make_series(make_wave(4)), future_steps=0)


def test_static_categories_are_numbered_from_one_and_unknown_or_missing_is_zero() -> None:
    series = [
        make_observed_series(static={"region": region, "kind": kind})
        for region, kind in (("s", "x"), ("n", "x"), ("s", "x"))
    ]
    encoding = fit_from_series(*series, static=("region", "kind"))
    assert encoding.static == {"region": ("n", "s"), "kind": ("x",)}
    assert encoding.static_cardinalities == (2, 1)
    expected = {("n", "x"): [1, 1], ("s", "x"): [2, 1], ("w", "x"): [0, 1], ("s", ""): [2, 0]}
    for (region, kind), indices in expected.items():
        assert encoding.encode_static(make_observed_series(static={"region": region, "kind": kind})).tolist() == indices
    assert encoding.encode_static(make_observed_series(static={"kind": "x"})).tolist() == [0, 1]
    assert encoding.encode_static(make_observed_series()).tolist() == [0, 0]


def test_an_encoding_round_trip_through_json_is_bitwise_equal() -> None:
    series = make_observed_series(heat=np.array([1 / 3, 1e-17, np.pi, -7e88, 0, 0]), static={"region": "Köln, 'n'"})
    encoding = fit_from_series(series, calendar=CALENDAR, static=("region",))
    loaded = Encoding.model_validate_json(encoding.model_dump_json())
    assert loaded == encoding
    assert np.array_equal(
        loaded.encode_covariates(series, future_steps=5), encoding.encode_covariates(series, future_steps=5)
    )
    assert Encoding.model_validate_json(EMPTY_ENCODING.model_dump_json()) == EMPTY_ENCODING


def test_the_same_instants_have_different_features_in_another_zone() -> None:
    instants = pd.date_range("2026-03-28 20:00", periods=30, freq="h", tz="UTC")  # Berlin's clocks change here
    frame = pd.DataFrame({"unique_id": "a", "ds": instants, "y": make_wave(30)})
    encoding = Encoding(calendar=CALENDAR)
    features_by_zone = {}
    for zone in ("UTC", "Europe/Berlin", "Australia/Melbourne"):
        [series] = to_panel(frame, zone=zone).series
        features_by_zone[zone] = encoding.encode_covariates(series, future_steps=6)
        local_times = pd.date_range(instants[0], periods=36, freq="h").tz_convert(zone)
        assert np.array_equal(features_by_zone[zone], compute_calendar_features(local_times, CALENDAR))
    assert not np.isclose(features_by_zone["UTC"][:, :2], features_by_zone["Europe/Berlin"][:, :2]).all(axis=1).any()
    assert (
        not np.isclose(features_by_zone["UTC"][:, :2], features_by_zone["Australia/Melbourne"][:, :2]).all(axis=1).any()
    )
    hours = (
        np.arctan2(features_by_zone["Europe/Berlin"][:, 0], features_by_zone["Europe/Berlin"][:, 1])
        % (2 * np.pi)
        * 24
        / (2 * np.pi)
    )
    assert np.round(hours)[:8].tolist() == [21, 22, 23, 0, 1, 3, 4, 5]  # the clock change skips two o'clock


def test_static_categories_are_looked_up_and_not_searched() -> None:
    """With 30,000 categories, a search through them for each series took a minute."""

    class CountingText(str):
        __slots__ = ()
        comparisons = 0

        def __eq__(self, other: object) -> bool:
            CountingText.comparisons += 1
            return super().__eq__(other)

        __hash__ = str.__hash__

    categories = tuple(f"shop {number:05d}" for number in range(1000))
    encoding = Encoding(static={"shop": categories})
    indices = []
    for name in categories:
        series = Series("a", pd.Timestamp("2026-01-01"), "D", np.zeros(1), static={"shop": CountingText(name)})
        indices.append(int(encoding.encode_static(series)[0]))
    assert indices == list(range(1, 1001))
    assert CountingText.comparisons <= 2 * len(categories)
    other = Series("a", pd.Timestamp("2026-01-01"), "D", np.zeros(1), static={"shop": "another"})
    assert encoding.encode_static(other).tolist() == [0]
    assert encoding == Encoding(static={"shop": categories})


@pytest.mark.parametrize(
    ("categories", "label", "index"),
    [
        (("1", "2"), "1.0", 0),
        (("1", "2"), 2.0, 1),
        (("1.0", "2.0"), "1", 0),
        (("1.0", "2.0"), 1, 0),
        (("-1", "007"), "-1.00", 0),
        (("-1", "007"), "7", -1),
        (("1", "1.0"), "1.0", 1),
        (("1", "1.0"), "1", 0),
        (("1", "1.0"), "1.00", -1),
        (("1", "2"), "1.5", -1),
        (("False", "True"), True, 1),
        ((), "1", -1),
    ],
)
def test_whole_numbers_are_one_category_in_any_text_unless_training_has_several(
    categories: tuple[str, ...], label: object, index: int
) -> None:
    assert find_category(categories, label) == index


def test_equal_categories_are_encoded_equally() -> None:
    encoding = Encoding(categories={"sky": ("1", "2", "x")}, static={"region": ("1", "2")})
    texts = [
        make_observed_series(sky=np.array(labels, dtype=object), static={"region": region})
        for labels, region in ((["1", "2", "x", "1", "2", "7"], "2"), (["1.0", "2.0", "x", "1", 2, "7"], "2.0"))
    ]
    first, second = (encoding.encode_covariates(series, future_steps=2) for series in texts)
    np.testing.assert_array_equal(first, second)
    assert first.sum() == 5
    assert [encoding.encode_static(series).tolist() for series in texts] == [[2], [2]]


@pytest.mark.parametrize(
    ("columns", "kind", "message"),
    [
        ({"sky": HEAT}, CovariateUnknown, "Expected text in the covariate 'sky'; series 'a' has numbers"),
        ({"heat": SKY}, NotANumber, "Expected numbers in the covariate 'heat'; series 'a' has text"),
    ],
)
def test_a_covariate_of_another_type_than_in_training_is_refused(
    columns: dict[str, Any], kind: type[Exception], message: str
) -> None:
    encoding = fit_from_series(make_observed_series())
    with pytest.raises(kind, match=message):
        encoding.encode_covariates(make_observed_series(**columns), future_steps=2)
