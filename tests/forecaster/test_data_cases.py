"""The table of docs/data.md, row by row; and real files, calendar features, speed of refusal, `forecaster data check`."""

from __future__ import annotations

import re
import time
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from forecaster.data import grid
from forecaster.data.calendar import certain_frequency, check_calendar, feature_columns, features, offset, usual_horizon
from forecaster.data.frames import Columns, to_frame, to_panel
from forecaster.data.split import hold_out
from forecaster.data.summary import summarise
from forecaster.errors import (
    BadId,
    BadSpec,
    BadStamp,
    CovariateUnknown,
    DuplicateColumn,
    DuplicateStamp,
    FrequencyUnknown,
    GridTooLarge,
    HistoryTooShort,
    InputError,
    IrregularStamps,
    MissingColumn,
    MissingPackage,
    NoData,
    NotANumber,
    StaticChanges,
    ValueOutOfRange,
    ZoneUnknown,
)
from forecaster.series import Panel, Series
from pipelines import cli

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
BERLIN, SAO_PAULO = "Europe/Berlin", "America/Sao_Paulo"
LADDERS = "us 15min h 36h D 3D B W-SUN MS 2ME SMS QS-FEB BQE YS BYE-MAR WOM-2MON bh".split()  # noqa: SIM905
Check = Callable[[Panel], object]


def series(ds: Any = None, y: Any = None, *, of: Any = "a", **more: Any) -> pd.DataFrame:
    """A long frame of one series: days from 2026-01-01, values 0, 1, 2... unless told otherwise."""
    steps = len(ds) if ds is not None else len(y) if y is not None else 20
    stamps = days(steps) if ds is None else ds
    return pd.DataFrame({"unique_id": of, "ds": stamps, "y": np.arange(float(steps)) if y is None else y, **more})


def days(steps: int, **where: Any) -> pd.DatetimeIndex:
    return pd.date_range("2026-01-01", periods=steps, freq="D", **where)


def stamps(start: str, freq: str, steps: int = 20, tz: str | None = None) -> pd.DatetimeIndex:
    return pd.date_range(start, periods=steps, freq=freq, tz=tz)


def without(frame: pd.DataFrame, *rows: int) -> pd.DataFrame:
    return frame.drop(index=list(rows))


def objects(*values: Any) -> pd.Series:
    return pd.Series(list(values), dtype=object)


class Case(NamedTuple):
    """A row of the table."""

    frame: Callable[[], pd.DataFrame]
    refused: type[InputError] | None = None
    says: str = ""  # in the refusal, or in the repairs
    options: dict[str, Any] = {}  # noqa: RUF012
    holds: Check = lambda panel: True


def values(*expected: float | None) -> Check:
    wanted = [np.nan if value is None else value for value in expected]
    return lambda panel: np.array_equal(panel.series[0].y, wanted, equal_nan=True)


def ids(*expected: str) -> Check:
    return lambda panel: [one.id for one in panel.series] == list(expected)


def freq(expected: str) -> Check:
    return lambda panel: panel.freq == expected


def goes_on(*expected: str) -> Check:
    """The stamps that follow, in the zone of the data."""
    return lambda panel: [str(one) for one in panel.series[0].stamps_ahead(len(expected))] == list(expected)


def regular(panel: Panel) -> bool:
    return all(one.stamps[-1] == one.end and len(one.stamps) == len(one.y) for one in panel.series)


def hours_without_one(tz: str | None = None) -> pd.DataFrame:
    return without(series(stamps("2026-01-01", "h", 40, tz)), 20)


def with_covariates(known: Any, y: Any) -> pd.DataFrame:
    return series(y=y, heat=known)


def with_channel(rain: Any, y: Any, **more: Any) -> pd.DataFrame:
    return series(y=y, rain=rain, **more)


def channel(*expected: float | None) -> Check:
    wanted = [np.nan if value is None else value for value in expected]
    return lambda panel: (
        np.array_equal(panel.series[0].channels["rain"], wanted, equal_nan=True)
        and len(panel.series[0].y) == len(wanted)
    )


AUTUMN = ["2026-10-25T00:30", "2026-10-25T01:30", "2026-10-25T02:30", "2026-10-25T02:30", "2026-10-25T03:30"]
WEEKDAYS_OFF = without(series(stamps("2026-01-01", "B", 60)), 17, 40)

CASES: dict[str, Case] = {
    # columns
    "an empty frame": Case(lambda: series().iloc[:0], NoData, "at least one row"),
    "a column is missing": Case(lambda: series().drop(columns="y"), MissingColumn, "y not found"),
    "a column is in the index": Case(lambda: series().set_index("unique_id"), MissingColumn, "reset_index"),
    "other column names, declared": Case(
        lambda: series().rename(columns={"y": "sold"}), options={"columns": Columns(y="sold")}
    ),
    "a column twice": Case(
        lambda: pd.concat([series(), series()[["y"]]], axis=1), DuplicateColumn, "'y'", options={"freq": "D"}
    ),
    "one column with two meanings": Case(series, DuplicateColumn, "'y'", options={"covariates": ("y",)}),
    "undeclared extra columns": Case(lambda: series(note="x"), holds=lambda panel: not panel.series[0].static),
    # ids
    "ids that are whole numbers": Case(lambda: series(of=7), holds=ids("7")),
    "ids that are fractions": Case(lambda: series(of=1.5), holds=ids("1.5")),
    "ids that are categories": Case(
        lambda: series(of=pd.Categorical(["b"] * 20, categories=["a", "b"])), holds=ids("b")
    ),
    "ids in any script, with spaces": Case(lambda: series(of=" Zürich 北 🚲 "), holds=ids(" Zürich 北 🚲 ")),
    "ids of several types": Case(
        lambda: pd.concat([series(of=1), series(of="b")]).astype({"unique_id": object}), holds=ids("1", "b")
    ),
    "two ids that read the same": Case(
        lambda: pd.concat([series(of=1), series(of="1")]).astype({"unique_id": object}), BadId, "'1'"
    ),
    "an id that is missing": Case(lambda: series(of=objects("a", None, "a"), ds=days(3)), BadId, "row 1"),
    "an empty or blank id": Case(lambda: series(of="  "), BadId, "row 0"),
    "an id of more than 200 characters": Case(lambda: series(of="x" * 201), BadId, "201"),
    "ids that are bytes, lists, dicts": Case(lambda: series(of=objects([1], [1]), ds=days(2)), BadId, "row 0"),
    "an id with control characters": Case(lambda: series(of="a\nb"), BadId, "printable"),
    # values
    "whole numbers": Case(lambda: series(y=[1, 2, 3]), holds=values(1, 2, 3), options={"freq": "D"}),
    "decimal.Decimal": Case(
        lambda: series(y=objects(Decimal("1.5"), None, Decimal(2))), holds=values(1.5, None, 2), options={"freq": "D"}
    ),
    "nullable integers and floats": Case(
        lambda: series(y=pd.array([1, None, 3], dtype="Int64")), holds=values(1, None, 3), options={"freq": "D"}
    ),
    "numbers as text, with a point": Case(
        lambda: series(y=["1.5", None, " 2e3 "]), holds=values(1.5, None, 2000), options={"freq": "D"}
    ),
    "numbers as text, with a comma": Case(lambda: series(y=["1.5", "2,5", "3"]), NotANumber, "row 1 .* decimal point"),
    "other text": Case(lambda: series(y=["1", "many", "3"]), NotANumber, "row 1 holds 'many'"),
    "an empty text": Case(lambda: series(y=["1", "", "3"]), NotANumber, "row 1"),
    "bools": Case(lambda: series(y=[True, False, True]), NotANumber, "0 and 1"),
    "bools among numbers": Case(lambda: series(y=objects(1.5, True, 2)), NotANumber, "row 1 holds True"),
    "complex numbers": Case(lambda: series(y=[1 + 0j, 2j, 3]), NotANumber, "row 0"),
    "an infinity": Case(lambda: series(y=[1, np.inf, 3]), NotANumber, "row 1 is infinite"),
    "a number above 1e100": Case(lambda: series(y=[1, -1e200, 3]), ValueOutOfRange, "row 1 holds -1e\\+200"),
    "a number as large as 1e100, or as small as 1e-300": Case(
        lambda: series(y=[1e100, 1e-300, 0]), holds=values(1e100, 1e-300, 0), options={"freq": "D"}
    ),
    "a constant series, or all zero": Case(
        lambda: pd.concat([series(y=[3.0] * 20), series(y=[0.0] * 20, of="b")]),
        holds=lambda panel: summarise(panel).constant == ("a", "b"),
    ),
    "missing values (NaN, None, pd.NA)": Case(
        lambda: series(y=objects(1, np.nan, None, pd.NA, 5)),
        holds=values(1, None, None, None, 5),
        options={"freq": "D"},
    ),
    "a series without any observed value": Case(
        lambda: pd.concat([series(), series(y=[np.nan] * 20, of="blank")]), says="1 series .* 'blank'", holds=ids("a")
    ),
    "no series with any observed value": Case(lambda: series(y=[np.nan] * 20), NoData, "observed"),
    "a series of one step": Case(lambda: series(y=[1.0]), options={"freq": "D"}, holds=values(1)),
    # order, repeats
    "rows out of order": Case(
        lambda: series().sample(frac=1, random_state=0), says="not in order", holds=values(*range(20))
    ),
    "a row twice, the same": Case(
        lambda: pd.concat([series(), series().iloc[[3, 5]]]), says="2 repeated rows", holds=values(*range(20))
    ),
    "a stamp twice, with different values": Case(
        lambda: pd.concat([series(), series(ds=days(1), y=[9.0])]), DuplicateStamp, r"\[0.0, 9.0\] at 2026-01-01"
    ),
    "a stamp twice, with different covariates": Case(
        lambda: pd.concat([with_covariates(1.0, [1.0, 2.0]), with_covariates(2.0, [1.0, 2.0])]),
        DuplicateStamp,
        "another column",
        options={"freq": "D", "covariates": ("heat",)},
    ),
    # stamps
    "ISO 8601 text": Case(lambda: series(ds=["2026-01-01", "2026-01-02", "2026-01-03"]), holds=freq("D")),
    "dates, datetimes": Case(lambda: series(ds=objects(*[one.date() for one in days(5)])), holds=freq("D")),
    "periods": Case(lambda: series(ds=pd.period_range("2026-01", periods=12, freq="M")), holds=freq("MS")),
    "stamps from the year 1 to 9999": Case(
        lambda: pd.concat([series(ds=["0001-01-01"], y=[1.0]), series(ds=["9999-12-01"], y=[1.0], of="b")]),
        options={"freq": "MS"},
        holds=regular,
    ),
    "a year 0, or above 9999": Case(
        lambda: series(ds=np.array(["2026-01-01", "12000-01-01"], "M8[s]")), BadStamp, "row 1 is of the year 12000"
    ),
    "stamps finer than a microsecond": Case(
        lambda: series(ds=["2026-01-01T00:00:00.123456789"]), BadStamp, "row 0 is finer", options={"freq": "D"}
    ),
    "a stamp that is missing": Case(lambda: series(ds=objects("2026-01-01", None)), BadStamp, "empty in row 1"),
    "days or months that are not, other text": Case(lambda: series(ds=["2026-01-01", "2026-02-30"]), BadStamp, "row 1"),
    "two-digit years, day and month in any order": Case(lambda: series(ds=["01/02/03"]), BadStamp, "year first"),
    "now, today": Case(lambda: series(ds=["today"]), BadStamp, "row 0 holds 'today'"),
    "stamps that are whole numbers": Case(
        lambda: pd.concat([series(ds=np.arange(20)), series(ds=np.arange(2015, 2026), of="years")]),
        holds=goes_on("20", "21"),
    ),
    "whole numbers as text, a whole number declared as frequency": Case(
        lambda: series(ds=["8", "9", "10"]), options={"freq": "1"}, holds=goes_on("11")
    ),
    "whole numbers as text, no frequency declared": Case(
        lambda: series(ds=["8", "9", "10"]), BadStamp, "row 0 holds '8'.* whole number for the frequency"
    ),
    "whole numbers that read as dates, no frequency declared": Case(
        lambda: series(ds=np.arange(20260101, 20260121)), BadStamp, "such as 20260101, may be either"
    ),
    "whole numbers that read as dates, a whole number declared as frequency": Case(
        lambda: series(ds=np.arange(202601, 202613)), options={"freq": 1}, holds=goes_on("202613")
    ),
    "a whole number beyond 2**62 - 1": Case(
        lambda: series(ds=np.array([0, 2**63], dtype=np.uint64)), BadStamp, f"row 1 holds {2**63}"
    ),
    "stamps that are floats": Case(lambda: series(ds=np.arange(20.0)), BadStamp, r"such as 0\.0 .*astype\('int64'\)"),
    "numbers among stamps": Case(lambda: series(ds=objects("2026-01-01", 20260102)), BadStamp, "20260102"),
    # frequency
    "a frequency that is certain": Case(lambda: series(stamps("2026-01-31", "ME")), holds=freq("ME")),
    "a frequency that two rules fit": Case(
        lambda: series(ds=["2026-07-01", "2026-08-01", "2026-09-01"]), FrequencyUnknown, "31D and MS all fit"
    ),
    "a frequency that nothing tells": Case(lambda: series(ds=["2026-07-01"]), FrequencyUnknown, "1 stamps"),
    "business days": Case(lambda: series(stamps("2026-01-01", "B")), holds=freq("B")),
    "weeks with any anchor": Case(
        lambda: series(stamps("2026-01-01", "W-WED")), options={"freq": "W-WED"}, holds=regular
    ),
    "quarters and years with any anchor": Case(
        lambda: series(stamps("2026-01-01", "2QE-FEB")), options={"freq": "2QE-FEB"}, holds=regular
    ),
    "multiples of a step, each series with its own phase": Case(
        lambda: pd.concat([series(stamps("2026-01-01", "2MS")), series(stamps("2026-02-01", "2MS"), of="b")]),
        options={"freq": "2MS"},
        holds=regular,
    ),
    "business hours": Case(lambda: series(stamps("2026-01-05 09:00", "bh")), options={"freq": "bh"}, holds=regular),
    "an unknown or outdated alias": Case(series, FrequencyUnknown, "'w'", options={"freq": "w"}),
    "a step that does not go forward": Case(series, FrequencyUnknown, "forward", options={"freq": "-1D"}),
    "a step finer than a microsecond": Case(series, FrequencyUnknown, "microsecond", options={"freq": "500ns"}),
    "a whole number as frequency": Case(
        lambda: pd.concat([series(ds=np.arange(0, 200, 10)), series(ds=np.arange(7, 207, 10), of="b")]),
        options={"freq": 10},
        holds=lambda panel: panel.freq == "10" and goes_on("200")(panel) and regular(panel),
    ),
    "whole numbers that are all one difference apart": Case(lambda: series(ds=[-30, -20, -10]), holds=freq("10")),
    "whole numbers, a frequency of the calendar": Case(
        lambda: series(ds=np.arange(20)),
        BadStamp,
        "frequency is 'D'; column 'ds' has the whole number 0",
        {"freq": "D"},
    ),
    "dates, a whole number as frequency": Case(
        series, BadStamp, "frequency is '1'; row 0 holds '2026-01-01", {"freq": 1}
    ),
    "a whole number below one as frequency": Case(
        lambda: series(ds=np.arange(20)), FrequencyUnknown, "'0' does not step forward", {"freq": 0}
    ),
    "series of different frequencies": Case(
        lambda: pd.concat([series(stamps("2026-01-01", "h", 400)), series(of="b")]),
        IrregularStamps,
        "'b' has gaps in most",
    ),
    # the grid
    "absent rows, frequency declared": Case(
        lambda: without(series(y=[1.0, 2.0, 3.0, 4.0]), 1), None, "1 absent rows", {"freq": "D"}, values(1, None, 3, 4)
    ),
    "absent rows, frequency proven by a long run": Case(hours_without_one, None, "1 absent rows", holds=freq("h")),
    "absent holidays of business days": Case(lambda: WEEKDAYS_OFF, says="2 absent rows", holds=freq("B")),
    "absent rows, frequency not proven": Case(
        lambda: without(series(y=np.arange(8.0)), 4), IrregularStamps, "from 2026-01-04T00:00:00 to 2026-01-06"
    ),
    "absent rows in a short file, another series regular": Case(
        lambda: pd.concat([series(y=np.arange(8.0)), without(series(y=np.arange(6.0), of="b"), 3)]),
        IrregularStamps,
        "'b' goes from 2026-01-03T00:00:00 to 2026-01-05",
    ),
    "absent whole numbers, frequency declared": Case(
        lambda: series(ds=[10, 30, 40], y=[1.0, 3.0, 4.0]), None, "1 absent rows", {"freq": 10}, values(1, None, 3, 4)
    ),
    "absent whole numbers, frequency proven by a long run": Case(
        lambda: without(series(ds=np.arange(0, 400, 10)), 20), None, "1 absent rows", holds=freq("10")
    ),
    "absent whole numbers, frequency not proven": Case(
        lambda: without(series(ds=np.arange(8)), 4), IrregularStamps, "'a' goes from 3 to 5"
    ),
    "a stamp off the grid": Case(
        lambda: series(ds=["2026-01-01", "2026-01-02", "2026-01-03T06:00"]),
        IrregularStamps,
        "stamp at 2026-01-03T06:00:00",
        {"freq": "D"},
    ),
    "a first stamp off the calendar": Case(
        lambda: series(stamps("2026-01-15", "D", 2)), IrregularStamps, "2026-01-15", {"freq": "MS"}
    ),
    "a grid of more than 90 % holes": Case(
        lambda: series(ds=["2026-01-01", "2027-01-01"]), IrregularStamps, "coarser", {"freq": "D"}
    ),
    "a grid of 1e15 whole numbers": Case(lambda: series(ds=[0, 10**15]), GridTooLarge, "1e\\+15", options={"freq": 1}),
    "a grid of more than 1e8 steps": Case(
        lambda: series(ds=["0001-01-01", "9999-12-31"]), GridTooLarge, "declare a coarser", {"freq": "s"}
    ),
    # time zones
    "stamps with one offset": Case(
        lambda: series(ds=["2026-01-01T00:00+05:30", "2026-01-01T01:00+05:30"]),
        holds=goes_on("2026-01-01 02:00:00+05:30"),
    ),
    "stamps of a zone": Case(
        lambda: series(stamps("2026-03-28 22:00", "h", 4, BERLIN)),
        holds=goes_on("2026-03-29 03:00:00+02:00", "2026-03-29 04:00:00+02:00"),
    ),
    "days of 23 and 25 hours": Case(
        lambda: series(stamps("2026-03-27", "D", 300, BERLIN)), holds=goes_on("2027-01-21 00:00:00+01:00")
    ),
    "weeks and months across a clock change": Case(
        lambda: series(stamps("2026-03-01", "MS", 12, BERLIN)), holds=goes_on("2027-03-01 00:00:00+01:00")
    ),
    "absent hours across a clock change": Case(
        lambda: without(series(stamps("2026-03-28", "h", 60, BERLIN)), 20, 30), None, "2 absent", holds=freq("h")
    ),
    "days whose midnight a clock change skips": Case(
        lambda: series(["2018-11-01", "2018-11-02", "2018-11-03"]),
        options={"zone": SAO_PAULO},
        holds=goes_on("2018-11-04 01:00:00-02:00", "2018-11-05 00:00:00-02:00"),
    ),
    "different offsets in one file": Case(
        lambda: series(["2026-03-29T00:00+01:00", "2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00"]),
        says="several offsets",
        holds=goes_on("2026-03-29 02:00:00+00:00"),
    ),
    "different offsets in one file, zone declared": Case(
        lambda: series(["2026-03-28T00:00+01:00", "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00"]),
        options={"zone": BERLIN},
        holds=goes_on("2026-03-31 00:00:00+02:00"),
    ),
    "days with different offsets, no zone declared": Case(
        lambda: series([str(one) for one in stamps("2026-03-27", "D", 20, BERLIN)]),
        FrequencyUnknown,
        "declare the zone",
    ),
    "stamps with and without offset": Case(
        lambda: series(["2026-01-01T00:00", "2026-01-01T01:00Z"]), BadStamp, "row 0 has none"
    ),
    "local times, zone declared": Case(
        lambda: series(stamps("2026-03-29 03:00", "h", 3)),
        None,
        "",
        {"zone": BERLIN},
        goes_on("2026-03-29 06:00:00+02:00"),
    ),
    "an hour that clocks show twice, zone declared": Case(
        lambda: series(AUTUMN), None, "", {"zone": BERLIN}, goes_on("2026-10-25 04:30:00+01:00")
    ),
    "an hour that clocks show twice, there once": Case(
        lambda: without(series(AUTUMN), 2), BadStamp, "2026-10-25T02:30:00", {"zone": BERLIN}
    ),
    "an hour that clocks show twice, no zone declared": Case(
        lambda: series(AUTUMN), DuplicateStamp, "declare the zone"
    ),
    "an hour that no clock shows": Case(
        lambda: series(stamps("2026-03-29", "h", 5)), BadStamp, "2026-03-29T02:00:00", {"zone": BERLIN}
    ),
    "an unknown zone": Case(series, ZoneUnknown, "'Mars'", {"zone": "Mars"}),
    "whole numbers, zone declared": Case(
        lambda: series(ds=np.arange(20)), BadStamp, "numbers are of no zone", {"zone": BERLIN}
    ),
    # covariates and static columns
    "covariates, and rows without `y` after the last observed one": Case(
        lambda: with_covariates([1.0, 2.0, 3.0, 4.0], [1.0, np.nan, 3.0, np.nan]),
        options={"covariates": ("heat",), "freq": "D"},
        holds=lambda panel: values(1, None, 3)(panel) and panel.series[0].ahead == 1,
    ),
    "covariates that are text": Case(
        lambda: with_covariates(["sun", "rain"] * 10, np.arange(20.0)),
        options={"covariates": ("heat",)},
        holds=lambda panel: panel.series[0].covariates["heat"].dtype == object,
    ),
    "covariates that are bools": Case(
        lambda: with_covariates([True, False] * 10, np.arange(20.0)),
        options={"covariates": ("heat",)},
        holds=lambda panel: panel.series[0].covariates["heat"].tolist() == [1.0, 0.0] * 10,
    ),
    "a covariate that is missing somewhere": Case(
        lambda: with_covariates([1.0, np.nan, 3.0], [1.0, 2.0, 3.0]),
        CovariateUnknown,
        "'heat' .* at 2026-01-02",
        {"covariates": ("heat",), "freq": "D"},
    ),
    "a covariate that is infinite": Case(
        lambda: with_covariates([1.0, np.inf, 3.0], [1.0, 2.0, 3.0]), NotANumber, "'heat'", {"covariates": ("heat",)}
    ),
    "absent rows with covariates": Case(
        lambda: without(with_covariates(1.0, np.arange(5.0)), 2),
        CovariateUnknown,
        "no row after 2026-01-02",
        {"covariates": ("heat",), "freq": "D"},
    ),
    "a static column": Case(
        lambda: series(region=5),
        options={"static": ("region",)},
        holds=lambda panel: panel.series[0].static == {"region": "5"},
    ),
    "a static column that changes within a series": Case(
        lambda: series(y=[1.0, 2.0], region=["n", "s"]),
        StaticChanges,
        "from 'n' to 's' at 2026-01-02",
        {"static": ("region",), "freq": "D"},
    ),
    "a static column that is missing somewhere": Case(
        lambda: series(y=[1.0, 2.0], region=["n", None]), CovariateUnknown, "'region'", {"static": ("region",)}
    ),
    # channels
    "a channel": Case(
        lambda: with_channel(["5", " 6.5 ", "7"], [1.0, 2.0, 3.0]),
        options={"channels": ("rain",), "freq": "D"},
        holds=channel(5, 6.5, 7),
    ),
    "a channel that is missing somewhere": Case(
        lambda: with_channel([np.nan, 6.0, np.nan], [1.0, 2.0, 3.0]),
        options={"channels": ("rain",), "freq": "D"},
        holds=lambda panel: channel(None, 6, None)(panel) and summarise(panel).channels == {"rain": 2},
    ),
    "a channel that is never observed in a series": Case(
        lambda: with_channel([np.nan] * 3, [1.0, 2.0, 3.0]),
        options={"channels": ("rain",), "freq": "D"},
        holds=channel(None, None, None),
    ),
    "a channel that goes on where `y` is not observed": Case(
        lambda: with_channel([4.0, 5.0, 6.0], [1.0, 2.0, np.nan]),
        options={"channels": ("rain",), "freq": "D"},
        holds=lambda panel: channel(4, 5, 6)(panel) and values(1, 2, None)(panel),
    ),
    "a channel that goes on after the last `y`, beside covariates": Case(
        lambda: with_channel([4.0, 5.0, 6.0, np.nan], [1.0, 2.0, np.nan, np.nan], heat=1.0),
        says="1 values of channel 'rain' after the last observed `y`",
        options={"channels": ("rain",), "covariates": ("heat",), "freq": "D"},
        holds=lambda panel: channel(4, 5)(panel) and panel.series[0].ahead == 2,
    ),
    "absent rows with channels": Case(
        lambda: without(with_channel([4.0, 5.0, 6.0, 7.0], [1.0, 2.0, 3.0, 4.0]), 1),
        None,
        "1 absent rows",
        {"channels": ("rain",), "freq": "D"},
        lambda panel: channel(4, None, 6, 7)(panel) and values(1, None, 3, 4)(panel),
    ),
    "a stamp twice, with different channels": Case(
        lambda: pd.concat([with_channel(1.0, [1.0, 2.0]), with_channel(2.0, [1.0, 2.0])]),
        DuplicateStamp,
        "another column",
        {"channels": ("rain",), "freq": "D"},
    ),
    "a channel that is text or bools": Case(
        lambda: with_channel([True, False], [1.0, 2.0]), NotANumber, "'rain'", {"channels": ("rain",)}
    ),
    "a channel that is infinite": Case(
        lambda: with_channel([1.0, -np.inf], [1.0, 2.0]), NotANumber, "'rain'", {"channels": ("rain",)}
    ),
    "a channel that is a covariate too": Case(
        lambda: with_channel(1.0, [1.0, 2.0]),
        DuplicateColumn,
        "'rain'",
        {"channels": ("rain",), "covariates": ("rain",)},
    ),
}


def table() -> dict[str, tuple[str, str]]:
    """The rows of docs/data.md: what happens and the error's name, by case."""
    page = (ROOT / "docs/data.md").read_text().split("## Columns")[1].split("## Where time is")[0]
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [row for row in cells if row[0] != "case"]
    assert len({row[0] for row in rows}) == len(rows), "a case is told twice"
    return {row[0]: (row[1], row[2].strip("`")) for row in rows}


@pytest.mark.parametrize("name", CASES)
def test_a_case_of_the_table(name: str) -> None:
    case = CASES[name]
    frame = case.frame()
    before = frame.copy()
    if case.refused is None:
        panel = to_panel(frame, **case.options)
        assert bool(panel.repairs) == bool(case.says)
        assert re.search(case.says, "\n".join(panel.repairs))
        assert case.holds(panel)
        assert regular(panel)
    else:
        with pytest.raises(case.refused, match=case.says) as caught:
            to_panel(frame, **case.options)
        assert type(caught.value) is case.refused
        assert caught.value.where
        assert len(caught.value.message) < 600
    pd.testing.assert_frame_equal(frame, before)  # what was given is left as it was


def test_the_table_and_its_tests_have_the_same_rows() -> None:
    assert list(table()) == list(CASES)


def test_the_table_tells_what_happens() -> None:
    for name, case in CASES.items():
        happens, error = table()[name]
        verdict = "refused" if case.refused else "repaired and reported" if case.says else "accepted"
        assert happens.startswith(verdict), name
        assert error == (case.refused.__name__ if case.refused else ""), name


def test_every_kind_of_frame_error_is_in_the_table() -> None:
    kinds = {BadId, BadStamp, CovariateUnknown, DuplicateColumn, DuplicateStamp, FrequencyUnknown, GridTooLarge}
    kinds |= {IrregularStamps, MissingColumn, NoData, NotANumber, StaticChanges, ValueOutOfRange, ZoneUnknown}
    assert {case.refused for case in CASES.values() if case.refused} == kinds


@pytest.mark.parametrize("freq", ["s", "us", "bh", "C", "D", "B"])
def test_a_monstrous_grid_is_refused_fast_and_without_memory(freq: str) -> None:
    frame = series(ds=["0001-01-01", "9999-12-30T09:00"] if freq == "bh" else ["0001-01-01", "9999-12-31"])
    to_panel(series(), freq="D")  # imports are not timed
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises((GridTooLarge, IrregularStamps)):
        to_panel(frame, freq=freq)
    assert time.perf_counter() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 300e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("ds", "freq", "refusal"),
    [
        ([0, 10**15], "1", GridTooLarge),
        ([-(2**62) + 1, 2**62 - 1], "1", GridTooLarge),
        ([-(2**62) + 1, 2**62 - 1], None, FrequencyUnknown),
        ([*range(40), 10**15], None, GridTooLarge),
        ([*range(40), 4000], None, IrregularStamps),
    ],
)
def test_a_monstrous_grid_of_numbers_is_refused_fast_and_without_memory(
    ds: list[int], freq: str | None, refusal: type[InputError]
) -> None:
    to_panel(series(), freq="D")  # imports are not timed
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(refusal):
        to_panel(series(ds=ds), freq=freq)
    assert time.perf_counter() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "column",
    [
        *(np.arange(100, 120).astype(kind) for kind in ("int8", "uint8", "int16", "uint32", "int64", "uint64")),
        pd.array(range(100, 120), dtype="Int32"),
        pd.array(range(100, 120), dtype="UInt64"),
        objects(*range(100, 120)),
        objects(*np.arange(100, 120)),
        pd.Categorical(range(100, 120)),
    ],
    ids=lambda column: str(column.dtype),
)
def test_integers_of_any_type_are_the_same_stamps(column: Any) -> None:
    panel = to_panel(series(ds=column))
    assert panel.digest() == to_panel(series(ds=np.arange(100, 120))).digest()
    assert (panel.freq, panel.series[0].start, panel.cutoff) == ("1", 100, 119)
    assert all(type(one) is int for one in (panel.series[0].start, panel.cutoff))


@pytest.mark.parametrize(
    ("column", "freq", "told"),
    [
        (objects(0, None, 2), None, "empty in row 1"),
        (pd.array([0, None, 2], dtype="Int64"), None, "empty in row 1"),
        (pd.Categorical([0, None, 2]), None, "empty in row 1"),
        (["0", None, "2"], "1", "empty in row 1"),
        (objects(None, None, None), "1", "empty in row 0"),
        (objects(0, True, 2), None, "whole numbers, throughout"),
        ([True, False, True], None, "whole numbers, throughout"),
        (objects(0, 1, 2.0), None, "whole numbers, throughout"),
        ([0.0, 1.0, np.nan], "1", "row 0 holds '0.0'"),
        (["0", "1", "2026-01-01"], "1", "row 2 holds '2026-01-01'"),
        (objects(0, True, 2), "1", "row 1 holds 'True'"),
        (["0", "1", "٢"], "1", "row 2 holds"),
        (["0", "1", "9" * 25], "1", f"row 2 holds {'9' * 25}"),
        (objects(0, 1, 10**30), None, f"row 2 holds {10**30}"),
        ([0, 1, -(2**62)], None, "row 2 holds"),
    ],
)
def test_what_is_no_column_of_whole_numbers_is_told_of_its_row(column: Any, freq: str | None, told: str) -> None:
    with pytest.raises(BadStamp, match=told):
        to_panel(series(ds=column), freq=freq)


def test_digits_as_text_and_as_integers_are_the_same_numbers() -> None:
    mixed = objects("-010", -9, "-8", "-7")
    assert to_panel(series(ds=mixed), freq=1).digest() == to_panel(series(ds=[-10, -9, -8, -7])).digest()


@pytest.mark.parametrize("numbers", [[0, 1, 1], [0, 1, 2, 3, 5]])
def test_numbers_repeated_and_out_of_order_are_as_moments_are(numbers: list[int]) -> None:
    shuffled = series(ds=numbers).sample(frac=1, random_state=1)
    dates = shuffled.assign(ds=days(1)[0] + pd.to_timedelta(shuffled["ds"].to_numpy(), unit="D"))
    with pytest.raises(InputError) as found:
        to_panel(shuffled, freq=None if len(numbers) > 3 else "1")
    with pytest.raises(type(found.value)):
        to_panel(dates, freq=None if len(numbers) > 3 else "D")


def test_places_of_numbers_are_those_of_seconds() -> None:
    draw = np.random.default_rng(0)
    numbers = np.sort(draw.choice(10_000, 500, replace=False)) * 7
    numbers[draw.random(500) < 0.05] += 1
    first = np.zeros(500, dtype=np.int64)
    found = grid.places(pd.Index(numbers), "14", first)
    same = grid.places(pd.DatetimeIndex(numbers * 1_000_000, dtype="M8[us]"), "14s", first)
    np.testing.assert_array_equal(found.off, same.off)
    np.testing.assert_array_equal(found.step, same.step)


@pytest.mark.parametrize(
    "numbers",
    [range(20260130, 20260132), [20261201, 20270101], [202601, 202612], [202612, 202701], [19000101, 20991231]],
)
def test_numbers_that_all_read_as_dates_are_not_counted_unless_that_is_said(numbers: Any) -> None:
    frame = series(ds=list(numbers))
    with pytest.raises(BadStamp, match=r"Write dates like 2026-01-31, or declare a whole number"):
        to_panel(frame)
    step = max(numbers) - min(numbers)
    assert to_panel(frame, freq=step).freq == str(step)


@pytest.mark.parametrize(
    "numbers", [[2020, 2021], [20261301, 20261302], [20260131, 20260132], [202600, 202601], [0, 1]]
)
def test_numbers_that_are_no_dates_are_counted(numbers: list[int]) -> None:
    assert to_panel(series(ds=numbers)).freq == "1"


@pytest.mark.parametrize(
    "freq",
    [
        "us",
        "15min",
        "h",
        "36h",
        "D",
        "3D",
        "B",
        "W-SUN",
        "MS",
        "2ME",
        "SMS",
        "QS-FEB",
        "BQE",
        "YS",
        "BYE-MAR",
        "WOM-2MON",
        "bh",
    ],
)
@pytest.mark.parametrize("zone", [None, "UTC", BERLIN])
def test_places_agree_with_the_stamps_that_pandas_counts(freq: str, zone: str | None) -> None:
    ladder = pd.date_range("2019-02-25 10:00", periods=80, freq=freq, tz=zone)
    kept = np.flatnonzero(np.random.default_rng(0).random(80) < 0.5)
    found = grid.places(ladder[kept], freq, np.zeros(len(kept), dtype=np.int64))
    assert not found.off.any()
    np.testing.assert_array_equal(found.step, kept - kept[0])


def test_a_panel_goes_to_a_frame_and_back() -> None:
    y = np.append(np.arange(10.0), [np.nan] * 3)
    rain = np.append([np.nan], np.append(np.arange(9.0), [np.nan] * 3))
    frame = series(
        stamps("2026-03-25", "D", 13, BERLIN), y, heat=np.arange(13.0), sky=["sun"] * 13, region="n", rain=rain
    )
    options: dict[str, Any] = {"covariates": ("heat", "sky"), "static": ("region",), "channels": ("rain",)}
    panel = to_panel(frame, **options)
    again = to_panel(to_frame(panel), **options)
    assert panel.digest() == again.digest()
    pd.testing.assert_frame_equal(to_frame(panel), frame, check_dtype=False, check_freq=False)


def test_covariates_stay_known_when_the_history_is_cut() -> None:
    frame = with_covariates(np.arange(13.0), np.append(np.arange(10.0), [np.nan] * 3))
    split = hold_out(to_panel(frame, covariates=("heat",)), 4)
    assert (len(split.known.series[0]), split.known.series[0].ahead) == (6, 7)


def test_the_digest_tells_covariates_and_static_apart_and_is_what_it_was_without() -> None:
    plain = Series("a", pd.Timestamp("2026-01-01"), "D", np.arange(3.0))
    assert Panel([plain], "D").digest() == "7dae75b2ddb7b39e74047a4326ab1246c5eddfe5fd65401c0dd4d7aed6981196"
    others = [{"covariates": {"x": np.arange(3.0)}}, {"covariates": {"z": np.arange(3.0)}}, {"static": {"x": "1"}}]
    digests = {Panel([Series("a", plain.start, "D", plain.y, **more)], "D").digest() for more in others}  # type: ignore[arg-type]
    assert len(digests | {Panel([plain], "D").digest()}) == 4


def test_a_series_too_short_to_hold_out_from_is_named_and_too_short_a_panel_refused() -> None:
    panel = to_panel(pd.concat([series(), series(y=[1.0, 2.0], of="short")]))
    assert hold_out(panel, 5).left_out == ("short",)
    with pytest.raises(HistoryTooShort, match="'a', has 20"):
        hold_out(panel, 50)


def test_stamps_ahead_that_leave_the_calendar_are_a_bad_stamp() -> None:
    with pytest.raises(BadStamp, match="9999"):
        Series("a", pd.Timestamp("9999-12-30"), "D", np.arange(2.0)).stamps_ahead(1)
    with pytest.raises(BadStamp, match=f"up to {2**62 - 1}; 3 steps of '1'"):
        Series("a", 2**62 - 3, "1", np.arange(2.0)).stamps_ahead(2)
    assert list(Series("a", 2**62 - 3, "1", np.arange(2.0)).stamps_ahead(1)) == [2**62 - 1]


def test_twenty_four_hours_are_not_a_day_where_clocks_change() -> None:
    around = stamps("2026-03-27", "24h", 20, BERLIN)
    assert certain_frequency(around) == "24h"
    assert certain_frequency(stamps("2026-03-27", "D", 20, BERLIN)) == "D"


@pytest.mark.parametrize(
    ("freq", "horizon"),
    [("h", 24), ("30min", 48), ("D", 14), ("B", 10), ("W-MON", 13), ("7D", 13), ("MS", 18), ("QS", 8), ("YS", 6)],
)
def test_the_usual_horizon(freq: str, horizon: int) -> None:
    assert usual_horizon(freq) == horizon


@pytest.mark.parametrize(
    ("freq", "start", "refusal"),
    [
        ("999999999999999h", "2026-01-01", IrregularStamps),
        ("9999999999D", "2026-01-01", IrregularStamps),
        ("999999999MS", "2026-01-01", IrregularStamps),
        ("bh", "0001-01-01", BadStamp),
    ],
)
def test_monstrous_steps_and_stamps_at_the_end_of_the_calendar_are_refused(
    freq: str, start: str, refusal: type[InputError]
) -> None:
    with pytest.raises(refusal):
        to_panel(series(ds=[start, f"{start[:4]}-02-01"]), freq=freq)


def test_an_offset_that_pandas_warns_of_is_refused_every_time() -> None:
    for _ in range(2):
        with pytest.raises(FrequencyUnknown):
            offset("d")


# calendar features


def test_the_page_tells_every_calendar_feature() -> None:
    page = (ROOT / "docs/data.md").read_text().split("## Calendar features")[1]
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", page, flags=re.MULTILINE))
    for name, highest in told.items():
        feature_columns([f"{name}:{highest}"])
        with pytest.raises(BadSpec, match=f"1 to {highest}"):
            feature_columns([f"{name}:{int(highest) + 1}"])
    with pytest.raises(BadSpec, match=f"one of {', '.join(told)}, with"):
        feature_columns(["fortnight"])


def test_features_follow_the_wall_and_not_utc() -> None:
    local = stamps("2026-07-01", "h", 48, BERLIN)
    names = ["minute", "hour:2", "weekday", "monthday", "month", "yearday:3"]
    np.testing.assert_array_equal(features(local, names), features(local.tz_localize(None), names))
    assert not np.allclose(features(local, names), features(local.tz_convert("UTC"), names))
    assert features(local, names).shape == (48, len(feature_columns(names)))


def test_features_are_sines_and_cosines_of_the_place_in_the_cycle() -> None:
    found = features(pd.DatetimeIndex(["2026-01-01 00:00", "2026-01-01 06:00", "2026-01-01 12:00"]), ["hour:2"])
    np.testing.assert_allclose(found, [[0, 1, 0, 1], [1, 0, 0, -1], [0, -1, 0, 1]], atol=1e-12)
    assert feature_columns(["hour:2"]) == ("hour sin 1", "hour cos 1", "hour sin 2", "hour cos 2")


def test_features_of_a_stamp_do_not_depend_on_the_stamps_beside_it() -> None:
    every = stamps("2023-11-05", "D", 500)
    names = ["weekday:3", "monthday", "yearday:4"]
    np.testing.assert_array_equal(features(every, names)[100:110], features(every[100:110], names))
    assert features(every, []).shape == (500, 0)


@pytest.mark.parametrize("names", [["hour"], ["weekday", "yearday:3"], ["holiday:US"]])
def test_numbered_steps_have_no_calendar(names: list[str]) -> None:
    with pytest.raises(BadSpec, match="numbered"):
        features(pd.RangeIndex(3), names)
    with pytest.raises(BadSpec, match=", ".join(names)):
        check_calendar(names, freq="1")
    check_calendar(names, freq="D")
    check_calendar([], freq="1")


@pytest.mark.parametrize(
    "names", [["fortnight"], ["hour:0"], ["hour:99"], ["hour:x"], ["hour", "hour:2"], ["holiday"], ["holiday:"], [""]]
)
def test_unknown_features_are_refused(names: list[str]) -> None:
    with pytest.raises(BadSpec):
        features(days(3), names)


def test_features_refused_for_their_name_list_the_known_ones() -> None:
    with pytest.raises(BadSpec, match=r"minute, hour, weekday, monthday, month, yearday.*holiday:COUNTRY"):
        feature_columns(["fortnight"])


def test_holidays_without_their_package_say_which_extra_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "holidays", None)
    with pytest.raises(MissingPackage, match=r"forecaster\[train\]"):
        features(days(3), ["holiday:US"])


def test_holidays_are_ones_on_the_local_day() -> None:
    pytest.importorskip("holidays", reason="the package holidays is not installed")
    hours = stamps("2026-07-03 00:00", "h", 48, "America/New_York")
    found = features(hours, ["holiday:US"])[:, 0]
    assert found.tolist() == [1.0] * 24 + [1.0] * 24  # the 4th is a Saturday, so the 3rd is observed
    assert features(stamps("2026-07-06", "D", 2), ["holiday:US"]).tolist() == [[0.0], [0.0]]
    with pytest.raises(BadSpec, match="XX"):
        features(hours, ["holiday:XX"])


# real files


def shared(name: str) -> pd.DataFrame:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not in ../shared/data beside the checkout")
    return pd.read_parquet(SHARED / name)


def test_real_gaps_are_found_and_counted() -> None:
    panel = to_panel(shared("pedestrian_with_gaps.parquet"))
    assert panel.freq == "h"
    assert [int(np.isnan(one.y).sum()) for one in panel.series] == [2978, 2, 26, 5]
    (repair,) = panel.repairs
    assert "3011 absent rows in 4 of 4" in repair


def test_real_missing_values_stay_missing() -> None:
    frame = shared("air_quality_with_missing.parquet")
    panel = to_panel(frame)
    missing = frame["y"].isna().groupby(frame["unique_id"], sort=False).sum()
    assert {one.id: int(np.isnan(one.y).sum()) for one in panel.series} == missing.to_dict()
    assert (missing.min(), missing.max()) == (272, 3269)
    assert not panel.repairs


def test_a_real_series_in_utc_is_told_in_its_zone_with_its_covariates() -> None:
    frame = shared("vic_elec.parquet")
    frame["ds"] = frame["ds"].dt.tz_localize("UTC")
    frame.loc[frame.index[-48:], "y"] = np.nan
    panel = to_panel(frame, zone="Australia/Melbourne", covariates=("temperature", "holiday"))
    (one,) = panel.series
    assert (panel.freq, len(one), one.ahead) == ("30min", 52608 - 48, 48)
    assert str(one.start) == "2012-01-01 00:00:00+11:00"
    assert one.stamps_ahead(48)[-1] == frame["ds"].iloc[-1]
    local_days = pd.DatetimeIndex([*one.stamps, *one.stamps_ahead(48)]).date
    assert (pd.Series(one.covariates["holiday"]).groupby(local_days).nunique() == 1).all()  # a holiday is a local day


# the command


def write(path: Path, frame: pd.DataFrame) -> str:
    frame.to_csv(path, index=False)
    return str(path)


def run(*arguments: str) -> int:
    try:
        cli.main(["data", "check", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_data_check_tells_what_data_are_like(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.csv", without(series(y=[1.0, 2.0, 3.0, 3.0], of="007"), 2))
    assert run(path, "--freq", "D") == 0
    told = capsys.readouterr().out
    for line in [
        "can be used, as repaired",
        "frequency   D",
        "missing     1 of 4",
        "season 7",
        "1 absent rows",
        "'007'",
    ]:
        assert line in told


def test_data_check_ends_with_2_where_data_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write(tmp_path / "x.csv", series(y=["1", "many"]))) == 2
    told = capsys.readouterr()
    assert "cannot be used (not_a_number)" in told.out
    assert "row 1 holds 'many'" in told.err


def test_data_check_tells_of_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.csv", with_channel([4.0, np.nan, 6.0], np.arange(3.0), wind=1.0))
    assert run(path, "--freq", "D", "--channel", "rain", "--channel", "wind") == 0
    assert "channels    rain (1 missing), wind (0 missing)" in capsys.readouterr().out
    assert run(path, "--freq", "D", "--channel", "snow") == 2
    assert "snow not found among" in capsys.readouterr().err


def test_ids_in_a_csv_stay_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.concat([series(y=np.ones(3), of="007"), series(y=np.ones(3), of="NA")])
    assert run(write(tmp_path / "x.csv", frame), "--freq", "D") == 0
    assert "2 ('007' first)" in capsys.readouterr().out
