"""Frames of values and timestamps, and the outcome of each: the first rows of docs/data.md, in their order."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd

from forecaster.data.frames.rows import ColumnNames
from forecaster.data.summary import summarize_panel
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
    BERLIN,
    CLOCK_CHANGE_TIMES,
    SAO_PAULO,
    WEEKDAYS_WITH_GAPS,
    FrameCase,
    continues_with,
    covariates_frame,
    drop_rows,
    has_freq,
    has_ids,
    has_values,
    hours_with_gap,
    is_regular,
    make_days,
    make_timestamps,
    object_series,
    series_frame,
)

VALUE_AND_TIMESTAMP_CASES: dict[str, FrameCase] = {
    # columns
    "an empty frame": FrameCase(lambda: series_frame().iloc[:0], NoData, "at least one row"),
    "a column is missing": FrameCase(lambda: series_frame().drop(columns="y"), MissingColumn, "y not found"),
    "no id column": FrameCase(
        lambda: series_frame().drop(columns="unique_id"), message="no column 'unique_id'", check=has_ids("y")
    ),
    "no id column, and a timestamp twice": FrameCase(
        lambda: pd.concat([series_frame(), series_frame()]).drop(columns="unique_id"),
        MissingColumn,
        "of several series",
    ),
    "a column is in the index": FrameCase(lambda: series_frame().set_index("unique_id"), MissingColumn, "reset_index"),
    "other column names, declared": FrameCase(
        lambda: series_frame().rename(columns={"y": "sold"}), options={"columns": ColumnNames(y="sold")}
    ),
    "a duplicate column": FrameCase(
        lambda: pd.concat([series_frame(), series_frame()[["y"]]], axis=1),
        DuplicateColumn,
        "'y'",
        options={"freq": "D"},
    ),
    "one column with two meanings": FrameCase(series_frame, DuplicateColumn, "'y'", options={"covariates": ("y",)}),
    "undeclared extra columns": FrameCase(
        lambda: series_frame(note="x"), check=lambda panel: not panel.series[0].static
    ),
    # ids
    "integer ids": FrameCase(lambda: series_frame(unique_id=7), check=has_ids("7")),
    "float ids": FrameCase(lambda: series_frame(unique_id=1.5), check=has_ids("1.5")),
    "categorical ids": FrameCase(
        lambda: series_frame(unique_id=pd.Categorical(["b"] * 20, categories=["a", "b"])), check=has_ids("b")
    ),
    "ids in any script, with spaces": FrameCase(
        lambda: series_frame(unique_id=" Zürich 北 🚲 "), check=has_ids(" Zürich 北 🚲 ")
    ),
    "ids that differ only by blanks or Unicode form": FrameCase(
        lambda: pd.concat([series_frame(unique_id=one) for one in ("a", "Caf\u00e9", "Cafe\u0301", "a ")]),
        message="2 ids differ .*'Caf.xe9' and 'Cafe.u0301', 'a' and 'a '",
        check=has_ids("Cafe\u0301", "Caf\u00e9", "a", "a "),
    ),
    "ids of several types": FrameCase(
        lambda: pd.concat([series_frame(unique_id=1), series_frame(unique_id="b")]).astype({"unique_id": object}),
        check=has_ids("1", "b"),
    ),
    "two ids with the same text": FrameCase(
        lambda: pd.concat([series_frame(unique_id=1), series_frame(unique_id="1")]).astype({"unique_id": object}),
        BadId,
        "'1'",
    ),
    "a missing id": FrameCase(
        lambda: series_frame(unique_id=object_series("a", None, "a"), ds=make_days(3)), BadId, "row 1"
    ),
    "an empty or blank id": FrameCase(lambda: series_frame(unique_id="  "), BadId, "row 0"),
    "an id of more than 200 characters": FrameCase(lambda: series_frame(unique_id="x" * 201), BadId, "201"),
    "ids that are bytes, lists, dicts": FrameCase(
        lambda: series_frame(unique_id=object_series([1], [1]), ds=make_days(2)), BadId, "row 0"
    ),
    "an id with control characters": FrameCase(lambda: series_frame(unique_id="a\nb"), BadId, "printable"),
    # values
    "integers": FrameCase(lambda: series_frame(y=[1, 2, 3]), check=has_values(1, 2, 3), options={"freq": "D"}),
    "decimal.Decimal": FrameCase(
        lambda: series_frame(y=object_series(Decimal("1.5"), None, Decimal(2))),
        check=has_values(1.5, None, 2),
        options={"freq": "D"},
    ),
    "nullable integers and floats": FrameCase(
        lambda: series_frame(y=pd.array([1, None, 3], dtype="Int64")),
        check=has_values(1, None, 3),
        options={"freq": "D"},
    ),
    "numbers as text, with a point": FrameCase(
        lambda: series_frame(y=["1.5", None, " 2e3 "]), check=has_values(1.5, None, 2000), options={"freq": "D"}
    ),
    "numbers as text, with a comma": FrameCase(
        lambda: series_frame(y=["1.5", "2,5", "3"]), NotANumber, "row 1 .* decimal point"
    ),
    "text that is not a number": FrameCase(
        lambda: series_frame(y=["1", "many", "3"]), NotANumber, "row 1 holds 'many'"
    ),
    "an empty text": FrameCase(lambda: series_frame(y=["1", "", "3"]), NotANumber, "row 1"),
    "bools": FrameCase(lambda: series_frame(y=[True, False, True]), NotANumber, "0 and 1"),
    "bools mixed with numbers": FrameCase(
        lambda: series_frame(y=object_series(1.5, True, 2)), NotANumber, "row 1 holds True"
    ),
    "complex numbers": FrameCase(lambda: series_frame(y=[1 + 0j, 2j, 3]), NotANumber, "row 0"),
    "an infinity": FrameCase(lambda: series_frame(y=[1, np.inf, 3]), NotANumber, "row 1 is infinite"),
    "a number above 1e100": FrameCase(lambda: series_frame(y=[1, -1e200, 3]), ValueOutOfRange, "row 1 holds -1e\\+200"),
    "a number as large as 1e100, or as small as 1e-300": FrameCase(
        lambda: series_frame(y=[1e100, 1e-300, 0]), check=has_values(1e100, 1e-300, 0), options={"freq": "D"}
    ),
    "a constant series, or all zero": FrameCase(
        lambda: pd.concat([series_frame(y=[3.0] * 20), series_frame(y=[0.0] * 20, unique_id="b")]),
        check=lambda panel: summarize_panel(panel).constant_ids == ("a", "b"),
    ),
    "missing values (NaN, None, pd.NA)": FrameCase(
        lambda: series_frame(y=object_series(1, np.nan, None, pd.NA, 5)),
        check=has_values(1, None, None, None, 5),
        options={"freq": "D"},
    ),
    "rows without `y` at the end, no covariates": FrameCase(
        lambda: series_frame(y=[1.0, 2.0, None, None]),
        message="2 rows without `y` at the end of 1 of 1 series .*'a': 2",
        options={"freq": "D"},
        check=continues_with("2026-01-05 00:00:00"),
    ),
    "a series without any observed value": FrameCase(
        lambda: pd.concat([series_frame(), series_frame(y=[np.nan] * 20, unique_id="blank")]),
        message="1 series .* 'blank'",
        check=has_ids("a"),
    ),
    "no series with any observed value": FrameCase(lambda: series_frame(y=[np.nan] * 20), NoData, "observed"),
    "a series of one step": FrameCase(lambda: series_frame(y=[1.0]), options={"freq": "D"}, check=has_values(1)),
    # order, duplicates
    "series in another order than their ids": FrameCase(
        lambda: pd.concat([series_frame(unique_id="b"), series_frame(unique_id="a")]), check=has_ids("a", "b")
    ),
    "rows out of order": FrameCase(
        lambda: series_frame().sample(frac=1, random_state=0), message="not in order", check=has_values(*range(20))
    ),
    "a duplicate row with the same values": FrameCase(
        lambda: pd.concat([series_frame(), series_frame().iloc[[3, 5]]]),
        message="2 repeated rows",
        check=has_values(*range(20)),
    ),
    "a duplicate timestamp with different values": FrameCase(
        lambda: pd.concat([series_frame(), series_frame(ds=make_days(1), y=[9.0])]),
        DuplicateStamp,
        r"\[0.0, 9.0\] at 2026-01-01",
    ),
    "a duplicate timestamp with different covariates": FrameCase(
        lambda: pd.concat([covariates_frame(1.0, [1.0, 2.0]), covariates_frame(2.0, [1.0, 2.0])]),
        DuplicateStamp,
        "another column",
        options={"freq": "D", "covariates": ("heat",)},
    ),
    # timestamps
    "ISO 8601 text": FrameCase(
        lambda: series_frame(ds=["2026-01-01", "2026-01-02", "2026-01-03"]), check=has_freq("D")
    ),
    "dates, datetimes": FrameCase(
        lambda: series_frame(ds=object_series(*[one.date() for one in make_days(5)])), check=has_freq("D")
    ),
    "periods": FrameCase(
        lambda: series_frame(ds=pd.period_range("2026-01", periods=12, freq="M")), check=has_freq("MS")
    ),
    "timestamps from the year 1 to 9999": FrameCase(
        lambda: pd.concat(
            [series_frame(ds=["0001-01-01"], y=[1.0]), series_frame(ds=["9999-12-01"], y=[1.0], unique_id="b")]
        ),
        options={"freq": "MS"},
        check=is_regular,
    ),
    "timestamps after the present": FrameCase(
        lambda: series_frame(ds=pd.date_range("2226-01-01", periods=12, freq="D")),
        check=lambda panel: panel.cutoff == pd.Timestamp("2226-01-12"),
    ),
    "a year 0, or above 9999": FrameCase(
        lambda: series_frame(ds=np.array(["2026-01-01", "12000-01-01"], "M8[s]")),
        BadStamp,
        "row 1 is of the year 12000",
    ),
    "timestamps finer than a microsecond": FrameCase(
        lambda: series_frame(ds=["2026-01-01T00:00:00.123456789"]), BadStamp, "row 0 is finer", options={"freq": "D"}
    ),
    "a missing timestamp": FrameCase(
        lambda: series_frame(ds=object_series("2026-01-01", None)), BadStamp, "empty in row 1"
    ),
    "invalid days or months, other text": FrameCase(
        lambda: series_frame(ds=["2026-01-01", "2026-02-30"]), BadStamp, "row 1"
    ),
    "two-digit years, day and month in any order": FrameCase(
        lambda: series_frame(ds=["01/02/03"]), BadStamp, "year first"
    ),
    "relative timestamps (now, today)": FrameCase(lambda: series_frame(ds=["today"]), BadStamp, "row 0 holds 'today'"),
    "integer timestamps": FrameCase(
        lambda: pd.concat([series_frame(ds=np.arange(20)), series_frame(ds=np.arange(2015, 2026), unique_id="years")]),
        check=continues_with("20", "21"),
    ),
    "integers as text, integer frequency declared": FrameCase(
        lambda: series_frame(ds=["8", "9", "10"]), options={"freq": "1"}, check=continues_with("11")
    ),
    "integers as text, no frequency declared": FrameCase(
        lambda: series_frame(ds=["8", "9", "10"]), BadStamp, "row 0 holds '8'.* whole number for the frequency"
    ),
    "integers that look like dates, no frequency declared": FrameCase(
        lambda: series_frame(ds=np.arange(20260101, 20260121)), BadStamp, "such as 20260101, may be either"
    ),
    "integers that look like dates, integer frequency declared": FrameCase(
        lambda: series_frame(ds=np.arange(202601, 202613)), options={"freq": 1}, check=continues_with("202613")
    ),
    "an integer beyond 2**62 - 1": FrameCase(
        lambda: series_frame(ds=np.array([0, 2**63], dtype=np.uint64)), BadStamp, f"row 1 holds {2**63}"
    ),
    "float timestamps": FrameCase(
        lambda: series_frame(ds=np.arange(20.0)), BadStamp, r"such as 0\.0 .*astype\('int64'\)"
    ),
    "numbers mixed with timestamps": FrameCase(
        lambda: series_frame(ds=object_series("2026-01-01", 20260102)), BadStamp, "20260102"
    ),
    # frequency
    "a frequency that is certain": FrameCase(
        lambda: series_frame(make_timestamps("2026-01-31", "ME")), check=has_freq("ME")
    ),
    "a frequency that is ambiguous": FrameCase(
        lambda: series_frame(ds=["2026-07-01", "2026-08-01", "2026-09-01"]), FrequencyUnknown, "31D and MS all fit"
    ),
    "a frequency that cannot be inferred": FrameCase(
        lambda: series_frame(ds=["2026-07-01"]), FrequencyUnknown, "1 timestamps"
    ),
    "business days": FrameCase(lambda: series_frame(make_timestamps("2026-01-01", "B")), check=has_freq("B")),
    "weeks with any anchor": FrameCase(
        lambda: series_frame(make_timestamps("2026-01-01", "W-WED")), options={"freq": "W-WED"}, check=has_freq("7D")
    ),
    "one grid under several names": FrameCase(
        lambda: series_frame(make_timestamps("2026-04-01", "3MS")), options={"freq": "QS-OCT"}, check=has_freq("QS-JAN")
    ),
    "business months, half months, weeks of a month": FrameCase(
        lambda: series_frame(make_timestamps("2026-01-01", "BME")), check=has_freq("BME")
    ),
    "multiples of months": FrameCase(lambda: series_frame(make_timestamps("2026-01-01", "2MS")), check=has_freq("2MS")),
    "one day of each month": FrameCase(
        lambda: series_frame(make_timestamps("2026-01-15", "MS").map(lambda day: day.replace(day=15))),
        FrequencyUnknown,
        "day 15 of the month.* first of the month",
    ),
    "custom business days": FrameCase(
        lambda: series_frame(make_timestamps("2026-01-02", "C-1111110")),
        options={"freq": "C-1111110"},
        check=continues_with("2026-01-26 00:00:00", "2026-01-27 00:00:00"),
    ),
    "custom business days, not declared": FrameCase(
        lambda: series_frame(make_timestamps("2026-01-02", "C-1111110")), IrregularStamps, "`freq`='C-1111110'"
    ),
    "an offset with hours or holidays that its name loses": FrameCase(
        series_frame,
        FrequencyUnknown,
        "BusinessHour is written 'bh'",
        {"freq": pd.offsets.BusinessHour(start="10:00", end="18:00")},
    ),
    "quarters and years with any anchor": FrameCase(
        lambda: series_frame(make_timestamps("2026-01-01", "2QE-FEB")), options={"freq": "2QE-FEB"}, check=is_regular
    ),
    "multiples of a step, each series with its own phase": FrameCase(
        lambda: pd.concat(
            [
                series_frame(make_timestamps("2026-01-01", "2MS")),
                series_frame(make_timestamps("2026-02-01", "2MS"), unique_id="b"),
            ]
        ),
        options={"freq": "2MS"},
        check=is_regular,
    ),
    "business hours": FrameCase(
        lambda: series_frame(make_timestamps("2026-01-05 09:00", "bh")), options={"freq": "bh"}, check=is_regular
    ),
    "an unknown or outdated alias": FrameCase(
        series_frame, FrequencyUnknown, "'w'.*Did you mean 'W'", options={"freq": "w"}
    ),
    "a step that is not positive": FrameCase(series_frame, FrequencyUnknown, "forward", options={"freq": "-1D"}),
    "a step finer than a microsecond": FrameCase(
        series_frame, FrequencyUnknown, "microsecond", options={"freq": "500ns"}
    ),
    "an integer frequency": FrameCase(
        lambda: pd.concat(
            [series_frame(ds=np.arange(0, 200, 10)), series_frame(ds=np.arange(7, 207, 10), unique_id="b")]
        ),
        options={"freq": 10},
        check=lambda panel: panel.freq == "10" and continues_with("200")(panel) and is_regular(panel),
    ),
    "integers with a constant difference": FrameCase(lambda: series_frame(ds=[-30, -20, -10]), check=has_freq("10")),
    "integer timestamps, calendar frequency declared": FrameCase(
        lambda: series_frame(ds=np.arange(20)),
        BadStamp,
        "frequency is 'D'; column 'ds' has the whole number 0",
        {"freq": "D"},
    ),
    "dates, integer frequency declared": FrameCase(
        series_frame, BadStamp, "frequency is '1'; row 0 holds '2026-01-01", {"freq": 1}
    ),
    "an integer frequency below one": FrameCase(
        lambda: series_frame(ds=np.arange(20)), FrequencyUnknown, "'0' does not step forward", {"freq": 0}
    ),
    "series of different frequencies": FrameCase(
        lambda: pd.concat([series_frame(make_timestamps("2026-01-01", "h", 400)), series_frame(unique_id="b")]),
        IrregularStamps,
        "'b' has gaps between most",
    ),
    # the grid
    "absent rows, frequency declared": FrameCase(
        lambda: drop_rows(series_frame(y=[1.0, 2.0, 3.0, 4.0]), 1),
        None,
        "1 absent rows",
        {"freq": "D"},
        has_values(1, None, 3, 4),
    ),
    "absent rows, frequency proven by a long run": FrameCase(
        hours_with_gap, None, "1 absent rows", check=has_freq("h")
    ),
    "absent holidays of business days": FrameCase(
        lambda: WEEKDAYS_WITH_GAPS, message="2 absent rows", check=has_freq("B")
    ),
    "absent rows, frequency not proven": FrameCase(
        lambda: drop_rows(series_frame(y=np.arange(8.0)), 4), IrregularStamps, "from 2026-01-04T00:00:00 to 2026-01-06"
    ),
    "absent rows in a short file, another series regular": FrameCase(
        lambda: pd.concat(
            [series_frame(y=np.arange(8.0)), drop_rows(series_frame(y=np.arange(6.0), unique_id="b"), 3)]
        ),
        IrregularStamps,
        "'b' goes from 2026-01-03T00:00:00 to 2026-01-05",
    ),
    "absent integers, frequency declared": FrameCase(
        lambda: series_frame(ds=[10, 30, 40], y=[1.0, 3.0, 4.0]),
        None,
        "1 absent rows",
        {"freq": 10},
        has_values(1, None, 3, 4),
    ),
    "absent integers, frequency proven by a long run": FrameCase(
        lambda: drop_rows(series_frame(ds=np.arange(0, 400, 10)), 20), None, "1 absent rows", check=has_freq("10")
    ),
    "absent integers, frequency not proven": FrameCase(
        lambda: drop_rows(series_frame(ds=np.arange(8)), 4), IrregularStamps, "'a' goes from 3 to 5"
    ),
    "a timestamp off the grid": FrameCase(
        lambda: series_frame(ds=["2026-01-01", "2026-01-02", "2026-01-03T06:00"]),
        IrregularStamps,
        "stamp at 2026-01-03T06:00:00",
        {"freq": "D"},
    ),
    "a first timestamp off the calendar": FrameCase(
        lambda: series_frame(make_timestamps("2026-01-15", "D", 2)), IrregularStamps, "2026-01-15", {"freq": "MS"}
    ),
    "a grid with more than 90 % missing steps": FrameCase(
        lambda: series_frame(ds=["2026-01-01", "2027-01-01"]), IrregularStamps, "coarser", {"freq": "D"}
    ),
    "a grid of 1e15 integers": FrameCase(
        lambda: series_frame(ds=[0, 10**15]), GridTooLarge, "1e\\+15", options={"freq": 1}
    ),
    "a grid of more than 1e8 steps": FrameCase(
        lambda: series_frame(ds=["0001-01-01", "9999-12-31"]), GridTooLarge, "declare a coarser", {"freq": "s"}
    ),
    # time zones
    "timestamps with one offset": FrameCase(
        lambda: series_frame(ds=["2026-01-01T00:00+05:30", "2026-01-01T01:00+05:30"]),
        check=continues_with("2026-01-01 02:00:00+05:30"),
    ),
    "timestamps with a time zone": FrameCase(
        lambda: series_frame(make_timestamps("2026-03-28 22:00", "h", 4, BERLIN)),
        check=continues_with("2026-03-29 03:00:00+02:00", "2026-03-29 04:00:00+02:00"),
    ),
    "days of 23 and 25 hours": FrameCase(
        lambda: series_frame(make_timestamps("2026-03-27", "D", 300, BERLIN)),
        check=continues_with("2027-01-21 00:00:00+01:00"),
    ),
    "weeks and months across a clock change": FrameCase(
        lambda: series_frame(make_timestamps("2026-03-01", "MS", 12, BERLIN)),
        check=continues_with("2027-03-01 00:00:00+01:00"),
    ),
    "absent hours across a clock change": FrameCase(
        lambda: drop_rows(series_frame(make_timestamps("2026-03-28", "h", 60, BERLIN)), 20, 30),
        None,
        "2 absent",
        check=has_freq("h"),
    ),
    "days whose midnight a clock change skips": FrameCase(
        lambda: series_frame(["2018-11-01", "2018-11-02", "2018-11-03"]),
        options={"zone": SAO_PAULO},
        check=continues_with("2018-11-04 01:00:00-02:00", "2018-11-05 00:00:00-02:00"),
    ),
    "days across a skipped midnight, frequency not declared": FrameCase(
        lambda: series_frame([str(day.date()) for day in make_timestamps("2023-08-28", "D", 40)]),
        options={"zone": "America/Santiago"},
        check=has_freq("D"),
    ),
    "weeks across a skipped midnight, frequency not declared": FrameCase(
        lambda: series_frame([str(day.date()) for day in make_timestamps("2023-08-20", "W-SUN", 20)]),
        options={"zone": "America/Santiago"},
        check=has_freq("7D"),
    ),
    "a first day without midnight": FrameCase(
        lambda: series_frame([str(day.date()) for day in make_timestamps("2023-09-03", "D", 8)]),
        options={"zone": "America/Santiago"},
        check=continues_with("2023-09-11 00:00:00-03:00"),
    ),
    "days in one series and hours in another, zone declared": FrameCase(
        lambda: pd.concat(
            [
                series_frame([str(day.date()) for day in make_timestamps("2023-08-28", "D", 20)]),
                series_frame(make_timestamps("2023-08-28 12:00", "D", 20), unique_id="b"),
            ]
        ),
        options={"zone": "America/Santiago", "freq": "D"},
        check=is_regular,
    ),
    "days around one that the zone skipped": FrameCase(
        lambda: series_frame([f"2011-12-{day}" for day in (27, 28, 29, 31)]),
        options={"zone": "Pacific/Apia", "freq": "D"},
        check=has_values(0, 1, 2, 3),
    ),
    "a day that the zone skipped": FrameCase(
        lambda: series_frame(make_timestamps("2011-12-28", "D", 5)),
        BadStamp,
        "2011-12-30T00:00:00",
        {"zone": "Pacific/Apia"},
    ),
    "different offsets in one file": FrameCase(
        lambda: series_frame(["2026-03-29T00:00+01:00", "2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00"]),
        message="several offsets",
        check=continues_with("2026-03-29 02:00:00+00:00"),
    ),
    "different offsets in one file, zone declared": FrameCase(
        lambda: series_frame(["2026-03-28T00:00+01:00", "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00"]),
        options={"zone": BERLIN},
        check=continues_with("2026-03-31 00:00:00+02:00"),
    ),
    "days with different offsets, no zone declared": FrameCase(
        lambda: series_frame([str(one) for one in make_timestamps("2026-03-27", "D", 20, BERLIN)]),
        FrequencyUnknown,
        "declare the zone",
    ),
    "timestamps with and without offset": FrameCase(
        lambda: series_frame(["2026-01-01T00:00", "2026-01-01T01:00Z"]), BadStamp, "row 0 has none"
    ),
    "local times, zone declared": FrameCase(
        lambda: series_frame(make_timestamps("2026-03-29 03:00", "h", 3)),
        None,
        "",
        {"zone": BERLIN},
        continues_with("2026-03-29 06:00:00+02:00"),
    ),
    "an hour that occurs twice, zone declared": FrameCase(
        lambda: series_frame(CLOCK_CHANGE_TIMES),
        None,
        "",
        {"zone": BERLIN},
        continues_with("2026-10-25 04:30:00+01:00"),
    ),
    "an hour that occurs twice, with one row": FrameCase(
        lambda: drop_rows(series_frame(CLOCK_CHANGE_TIMES), 2), BadStamp, "2026-10-25T02:30:00", {"zone": BERLIN}
    ),
    "an hour that occurs twice, no zone declared": FrameCase(
        lambda: series_frame(CLOCK_CHANGE_TIMES), DuplicateStamp, "declare the zone"
    ),
    "an hour that does not exist": FrameCase(
        lambda: series_frame(make_timestamps("2026-03-29", "h", 5)), BadStamp, "2026-03-29T02:00:00", {"zone": BERLIN}
    ),
    "an unknown zone": FrameCase(series_frame, ZoneUnknown, "'Mars'", {"zone": "Mars"}),
    "integer timestamps, zone declared": FrameCase(
        lambda: series_frame(ds=np.arange(20)), BadStamp, "numbers have no time zone", {"zone": BERLIN}
    ),
}
