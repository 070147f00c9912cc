"""CSV files as people write them: their dialect is detected, or the message names the fault and its line."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.data.encoding import Encoding
from forecaster.errors import DuplicateColumn, InputError, NoData, NotANumber
from forecaster.spec import Spec
from pipelines.sources import DataSource, read_panel

CASE = Path(__file__).parents[4] / "shared" / "cases" / "03_csv_column_twice"
DAYS = [f"2026-01-{day:02d}" for day in range(1, 7)]
LINES = ["unique_id,ds,y", *(f"a,{day},{number}.5" for number, day in enumerate(DAYS))]
TEXT = "\n".join(LINES) + "\n"


def read_text(folder: Path, text: str | bytes, name: str = "a.csv", **options: tuple[str, ...]) -> pd.DataFrame:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    panel = read_panel(DataSource(str(path), freq="D", **options))  # type: ignore[arg-type]
    series = panel.series[0]
    return pd.DataFrame(
        {"y": series.y, **series.covariates, **{name: [value] * len(series) for name, value in series.static.items()}}
    ).assign(repairs="\n".join(panel.repairs))


@pytest.mark.parametrize(
    ("delimiter", "decimal", "repair"),
    [
        (";", ",", "separated by semicolons\ndecimal commas in column 'y'"),
        (";", ".", "separated by semicolons"),
        ("\t", ".", "separated by tabs"),
        ("\t", ",", "separated by tabs\ndecimal commas in column 'y'"),
        ("|", ".", "separated by vertical bars"),
    ],
)
def test_the_delimiter_and_decimal_commas_are_detected_and_reported(
    delimiter: str, decimal: str, repair: str, tmp_path: Path
) -> None:
    text = TEXT.replace(",", delimiter).replace(".5", f"{decimal}5")
    frame = read_text(tmp_path, text)
    np.testing.assert_array_equal(frame["y"], np.arange(6) + 0.5)
    assert all(part in frame["repairs"][0] for part in repair.split("\n"))


@pytest.mark.parametrize("name", ["a.CSV", "a.Csv.GZ", "a.csv.gz"])
def test_the_suffix_may_be_in_capitals(name: str, tmp_path: Path) -> None:
    content = gzip.compress(TEXT.encode()) if name.lower().endswith("gz") else TEXT.encode()
    assert read_text(tmp_path, content, name)["y"].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]


@pytest.mark.parametrize("text", [TEXT.replace("unique_id,ds,y", "unique_id, ds , y"), "\ufeff" + TEXT, "\n\n" + TEXT])
def test_blanks_around_column_names_a_byte_order_mark_and_empty_lines_are_accepted(text: str, tmp_path: Path) -> None:
    frame = read_text(tmp_path, text)
    assert len(frame) == 6
    assert ("blanks around column names" in frame["repairs"][0]) == (" ds " in text)


def test_a_number_that_may_be_a_thousand_or_a_fraction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotANumber, match=r"row 0 holds '1,234'.*decimal point"):
        read_text(tmp_path, "unique_id;ds;y\na;2026-01-01;1,234\na;2026-01-02;5,678\n")
    assert read_text(tmp_path, "unique_id;ds;y\na;2026-01-01;1,234\na;2026-01-02;0,5\n")["y"].tolist() == [1.234, 0.5]


FAULTS: Mapping[str, tuple[str | bytes, str, type[InputError], str]] = {
    "a row with too many fields": (TEXT + "a,2026-01-07,1,2\n", "a.csv", InputError, "line 8 has 4 fields and the header 3"),
    "the first row with too many fields": (
        TEXT.replace("a,2026-01-01,0.5", "a,2026-01-01,0.5,7"), "a.csv", InputError, "line 2 has 4 fields and the header 3",
    ),
    "every row with too many fields": (
        TEXT.replace(".5\n", ".5,\n"), "a.csv", InputError, "line 2 has 4 fields and the header 3",
    ),
    "a row with too few fields": (TEXT + "a,2026-01-07\n", "a.csv", InputError, "line 8 has 2 fields and the header 3"),
    "an unclosed quote": (TEXT + '"a,2026-01-07,1\n', "a.csv", InputError, "line 8 a quote is not closed"),
    "an unclosed quote that another row closes": (
        TEXT.replace("a,2026-01-03", '"a,2026-01-03') + '"a",2026-01-07,1\n', "a.csv", InputError, "line 4",
    ),
    "an empty file": ("", "a.csv", NoData, "the file is empty"),
    "a file of empty lines": ("\n\n", "a.csv", NoData, "the file is empty"),
    "only a header": ("unique_id,ds,y\n", "a.csv", NoData, "at least one row"),
    "an empty archive": (gzip.compress(b""), "a.csv.gz", NoData, "the file is empty"),
    "a truncated archive": (gzip.compress(TEXT.encode())[:-12], "a.csv.gz", InputError, "not a complete gzip file"),
    "a damaged archive": (
        gzip.compress(TEXT.encode())[:-8] + b"12345678", "a.csv.gz", InputError, "not a complete gzip file",
    ),
    "text named as an archive": (TEXT, "a.csv.gz", InputError, "name it .csv"),
    "an archive named as text": (gzip.compress(TEXT.encode()), "a.csv", InputError, "UTF-8"),
    "another encoding": (TEXT.replace("a,", "ä,").encode("latin-1"), "a.csv", InputError, "Save the file as UTF-8"),
    "a column twice": (TEXT.replace("\n", ",7\n").replace("y,7", "y,y"), "a.csv", DuplicateColumn, "one column 'y'"),
    "a column twice, once with a blank": (
        TEXT.replace("\n", ",7\n").replace("y,7", "y, y"), "a.csv", DuplicateColumn, "one column 'y'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_csv_file_is_named_with_the_file_and_the_line(fault: str, tmp_path: Path) -> None:
    text, name, kind, message = FAULTS[fault]
    with pytest.raises(kind, match=message) as error:
        read_text(tmp_path, text, name)
    assert type(error.value) is kind
    assert len(error.value.message) < 600
    if kind is InputError:
        assert f"Expected a readable table in {tmp_path / name}; " in error.value.message


def test_none_and_na_are_categories_in_text_columns_and_missing_among_numbers(tmp_path: Path) -> None:
    rows = [
        f"a,{day},1,{promo},{size},NA"
        for day, promo, size in zip(DAYS, ["None", "NA", "sale"] * 2, "123123", strict=True)
    ]
    frame = read_text(
        tmp_path,
        "\n".join(["unique_id,ds,y,promo,size,region", *rows]),
        covariates=("promo", "size"),
        static=("region",),
    )
    assert frame["promo"].tolist() == ["None", "NA", "sale"] * 2
    assert frame["region"].tolist() == ["NA"] * 6
    assert frame["size"].tolist() == [1.0, 2.0, 3.0] * 2
    with pytest.raises(InputError, match="'size' in every row"):
        read_text(
            tmp_path, "\n".join(["unique_id,ds,y,size", "a,2026-01-01,1,NA", "a,2026-01-02,1,2"]), covariates=("size",)
        )
    with pytest.raises(InputError, match="'region' in every row"):
        read_text(tmp_path, "\n".join(["unique_id,ds,y,region", "a,2026-01-01,1,"]), static=("region",))


@pytest.mark.skipif(not CASE.is_dir(), reason="the folder of shared cases is absent")
@pytest.mark.parametrize(("column", "covariates"), [("y", ()), ("ds", ()), ("unique_id", ()), ("promo", ("promo",))])
def test_the_shared_case_with_a_column_twice_is_refused(column: str, covariates: tuple[str, ...]) -> None:
    with pytest.raises(DuplicateColumn, match=f"one column '{column}'"):
        read_panel(DataSource(str(CASE / f"dup_{column}.csv"), covariates=covariates))


@pytest.mark.parametrize(("cells", "as_numbers"), [(["10", "007"], [10.0, 7.0]), (["True", "False"], [1.0, 0.0])])
def test_a_covariate_is_read_as_the_model_has_learned_it_whatever_the_cells_of_this_file_are(
    cells: list[str], as_numbers: list[float], tmp_path: Path
) -> None:
    rows = [f"a,{day},{number}.5,{cells[number % 2]}" for number, day in enumerate(DAYS)]
    path = tmp_path / "later.csv"
    path.write_text("\n".join(["unique_id,ds,y,promo", *rows]) + "\n")
    source = DataSource(str(path), freq="D", covariates=("promo",))
    spec = Spec(name="shop", context=4, horizon=2, covariates=("promo",))
    text_encoding, numeric_encoding = (
        Encoding(categories={"promo": ("10", "x")}),
        Encoding(numeric={"promo": (0.0, 1.0)}),
    )
    for data, expected in (
        (source, as_numbers),  # as for training: by the cells
        (source.for_model(spec, numeric_encoding), as_numbers),
        (source.for_model(spec, text_encoding), cells),
    ):
        assert read_panel(data).series[0].covariates["promo"].tolist() == expected * 3
