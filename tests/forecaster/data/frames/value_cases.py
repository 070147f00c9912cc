"""What frames of values and stamps may be like, and what becomes of each: the first rows of docs/data.md, in their order."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd

from forecaster.data.frames.panel import Columns
from forecaster.data.summary import summarise
from forecaster.errors import (
    BadId,
    BadStamp,
    DuplicateColumn,
    DuplicateStamp,
    FrequencyUnknown,
    GridTooLarge,
    IrregularStamps,
    MissingColumn,
    NoData,
    NotANumber,
    ValueOutOfRange,
    ZoneUnknown,
)
from tests.forecaster.data.frames.long_frames import (
    AUTUMN,
    BERLIN,
    SAO_PAULO,
    WEEKDAYS_OFF,
    Case,
    days,
    freq,
    goes_on,
    hours_without_one,
    ids,
    objects,
    regular,
    series,
    stamps,
    values,
    with_covariates,
    without,
)

OF_VALUES_AND_STAMPS: dict[str, Case] = {
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
}
