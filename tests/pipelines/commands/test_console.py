"""Tables that fit the terminal."""

from __future__ import annotations

from pipelines.commands.console import format_table

ROWS = [("hospital", ["0.8165", "0.81"]), ("naive", ["0.93", "-"])]


def test_a_table_without_a_limit_has_one_line_per_row() -> None:
    assert format_table(["MASE", "RMSSE"], ROWS, width=None) == [
        "            MASE  RMSSE",
        "hospital  0.8165   0.81",
        "naive       0.93      -",
    ]


def test_columns_that_do_not_fit_continue_below_with_the_names_repeated() -> None:
    assert format_table(["MASE", "RMSSE"], ROWS, width=20) == [
        "            MASE",
        "hospital  0.8165",
        "naive       0.93",
        "",
        "          RMSSE",
        "hospital   0.81",
        "naive         -",
    ]


def test_no_line_is_wider_than_the_terminal_and_no_value_is_lost() -> None:
    headings = [f"run {number}" for number in range(12)]
    rows = [(name, [f"{number}.5" for number in range(12)]) for name in ("bt/mase", "bt/coverage_80")]
    lines = format_table(headings, rows, width=60)
    assert max(map(len, lines)) <= 60
    assert sorted(word for line in lines if line.startswith("bt/mase") for word in line.split()[1:]) == sorted(
        rows[0][1]
    )
