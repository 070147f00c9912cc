"""Columns become numbers by what was learned from the history of a panel, and by nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.data.calendar import feature_columns, features
from forecaster.data.encoding import PLAIN, Encoding, learn
from forecaster.data.frames.panel import to_panel
from forecaster.errors import CovariateUnknown
from forecaster.series import Panel, Series
from tests.factories import START, one_series, wave

CALENDAR = ("hour", "weekday:2")
HEAT = np.array([1.0, 2.0, 3.0, 6.0, 100.0, -100.0])
SKY = np.array(["sun", "rain", "sun", "rain", "hail", "hail"], dtype=object)


def told(
    *,
    heat: np.ndarray = HEAT,
    sky: np.ndarray = SKY,
    name: str = "a",
    static: Mapping[str, str] | None = None,
    start: pd.Timestamp = START,
) -> Series:
    """Four steps of history and two more for which the covariates are known."""
    return Series(name, start, "h", wave(4), {"heat": heat, "sky": sky}, static or {})


def learned(*series: Series, calendar: Sequence[str] = (), static: Sequence[str] = ()) -> Encoding:
    return learn(Panel(series, "h"), calendar=calendar, covariates=("heat", "sky"), static=static)


def test_means_spreads_and_categories_are_those_of_the_histories() -> None:
    encoding = learned(told(), told(heat=HEAT + 4, sky=np.array(["fog"] * 6, dtype=object), name="b"))
    both = np.array([1.0, 2.0, 3.0, 6.0, 5.0, 6.0, 7.0, 10.0])
    assert encoding.numeric == {"heat": (pytest.approx(both.mean()), pytest.approx(both.std()))}
    assert encoding.categories == {"sky": ("fog", "rain", "sun")}


@pytest.mark.parametrize(
    "after", [{"heat": np.append(HEAT[:4], [1e9, np.nan])}, {"sky": np.append(SKY[:4], ["snow", "x"])}]
)
def test_what_lies_after_a_history_teaches_nothing(after: dict[str, Any]) -> None:
    assert learned(told(**after)) == learned(told())


def test_what_was_held_out_teaches_nothing() -> None:
    whole = told()
    later = replace(whole, covariates={"heat": np.append(HEAT[:2], HEAT[2:] * 9), "sky": np.append(SKY[:2], SKY[:4])})
    assert learned(whole.until(2)) == learned(later.until(2)) != learned(whole)


def test_a_learned_number_is_the_distance_from_the_mean_in_spreads() -> None:
    [mean, spread], series = learned(told()).numeric["heat"], told()
    columns = learned(series).covariates(series, ahead=2)
    assert np.allclose(columns[:, 0], (HEAT - mean) / spread)
    assert columns[:4, 0].mean() == pytest.approx(0)
    assert columns[:4, 0].std() == pytest.approx(1)


def test_a_column_that_never_changed_becomes_zeros_and_later_changes_show() -> None:
    encoding = learned(told(heat=np.array([5.0, 5.0, 5.0, 5.0, 7.0, 5.0])))
    assert encoding.numeric["heat"] == (5.0, 1.0)
    series = told(heat=np.array([5.0, 5.0, 5.0, 5.0, 7.0, 5.0]))
    assert encoding.covariates(series, ahead=2)[:, 0].tolist() == [0, 0, 0, 0, 2, 0]


def test_a_known_category_is_a_one_in_its_column_and_an_unknown_one_is_all_zeros() -> None:
    columns = learned(told()).covariates(told(), ahead=2)[:, 1:]
    rain, sun = [1.0, 0.0], [0.0, 1.0]
    assert columns.tolist() == [sun, rain, sun, rain, [0.0, 0.0], [0.0, 0.0]]


def test_steps_for_which_nothing_is_known_any_more_are_zeros_but_the_calendar_goes_on() -> None:
    encoding, series = learned(told(), calendar=("hour",)), told()
    columns = encoding.covariates(series, ahead=5)
    assert columns.shape == (9, encoding.width)
    assert np.array_equal(columns[:6], encoding.covariates(series, ahead=2))
    assert not columns[6:, 2:].any()
    assert np.array_equal(columns[:, :2], features(pd.date_range(START, periods=9, freq="h"), ("hour",)))


@pytest.mark.parametrize("ahead", [0, 1, 4])
@pytest.mark.parametrize("calendar", [(), CALENDAR])
@pytest.mark.parametrize("covariates", [(), ("heat",), ("sky",), ("sky", "heat")])
def test_the_width_is_that_of_the_columns(calendar: tuple[str, ...], covariates: tuple[str, ...], ahead: int) -> None:
    encoding = learn(Panel([told()], "h"), calendar=calendar, covariates=covariates, static=())
    width = len(feature_columns(calendar)) + ("heat" in covariates) + 2 * ("sky" in covariates)
    assert encoding.covariates(told(), ahead=ahead).shape == (4 + ahead, width)
    assert encoding.width == width


def test_the_order_in_which_a_series_names_its_columns_does_not_matter() -> None:
    turned = replace(told(), covariates={"sky": SKY, "heat": HEAT, "more": HEAT})
    encoding = learned(told())
    assert np.array_equal(encoding.covariates(turned, ahead=2), encoding.covariates(told(), ahead=2))


def test_a_column_of_text_somewhere_is_a_category_everywhere() -> None:
    encoding = learned(told(), told(sky=HEAT.copy(), name="b"))
    assert set(encoding.categories["sky"]) >= {"rain", "sun"}
    assert "sky" not in encoding.numeric


@pytest.mark.parametrize("gone", ["heat", "sky"])
def test_a_missing_column_is_named_with_its_series(gone: str) -> None:
    left = {name: values for name, values in told().covariates.items() if name != gone}
    poor = replace(told(name="meter 7"), covariates=left)
    encoding = learned(told())
    for ask in (lambda: learned(told(), poor), lambda: encoding.covariates(poor, ahead=0)):
        with pytest.raises(
            CovariateUnknown, match=f"'meter 7' needs the covariate '{gone}'; it has: {next(iter(left))}"
        ) as error:
            ask()
        assert error.value.where == "meter 7"
    with pytest.raises(CovariateUnknown, match="it has: none"):
        encoding.covariates(one_series(wave(4)), ahead=0)


def test_static_categories_are_numbered_from_one_and_what_is_unknown_or_not_given_is_zero() -> None:
    series = [told(static={"region": region, "kind": kind}) for region, kind in (("s", "x"), ("n", "x"), ("s", "x"))]
    encoding = learned(*series, static=("region", "kind"))
    assert encoding.static == {"region": ("n", "s"), "kind": ("x",)}
    assert encoding.sizes == (2, 1)
    expected = {("n", "x"): [1, 1], ("s", "x"): [2, 1], ("w", "x"): [0, 1], ("s", ""): [2, 0]}
    for (region, kind), numbers in expected.items():
        assert encoding.groups(told(static={"region": region, "kind": kind})).tolist() == numbers
    assert encoding.groups(told(static={"kind": "x"})).tolist() == [0, 1]
    assert encoding.groups(told()).tolist() == [0, 0]


def test_an_encoding_comes_back_from_json_bitwise() -> None:
    thirds = told(heat=np.array([1 / 3, 1e-17, np.pi, -7e88, 0, 0]), static={"region": "Köln, 'n'"})
    encoding = learned(thirds, calendar=CALENDAR, static=("region",))
    again = Encoding.model_validate_json(encoding.model_dump_json())
    assert again == encoding
    assert np.array_equal(again.covariates(thirds, ahead=5), encoding.covariates(thirds, ahead=5))
    assert Encoding.model_validate_json(PLAIN.model_dump_json()) == PLAIN


def test_the_same_moments_have_other_features_in_another_zone() -> None:
    moments = pd.date_range("2026-03-28 20:00", periods=30, freq="h", tz="UTC")  # Berlin's clocks change here
    frame = pd.DataFrame({"unique_id": "a", "ds": moments, "y": wave(30)})
    encoding = Encoding(calendar=CALENDAR)
    found = {}
    for zone in ("UTC", "Europe/Berlin", "Australia/Melbourne"):
        [series] = to_panel(frame, zone=zone).series
        found[zone] = encoding.covariates(series, ahead=6)
        on_the_wall = pd.date_range(moments[0], periods=36, freq="h").tz_convert(zone)
        assert np.array_equal(found[zone], features(on_the_wall, CALENDAR))
    assert not np.isclose(found["UTC"][:, :2], found["Europe/Berlin"][:, :2]).all(axis=1).any()
    assert not np.isclose(found["UTC"][:, :2], found["Australia/Melbourne"][:, :2]).all(axis=1).any()
    hours = np.arctan2(found["Europe/Berlin"][:, 0], found["Europe/Berlin"][:, 1]) % (2 * np.pi) * 24 / (2 * np.pi)
    assert np.round(hours)[:8].tolist() == [21, 22, 23, 0, 1, 3, 4, 5]  # two o'clock never was
