"""Messages of the library name arguments of Python; the command line names its own options."""

from __future__ import annotations

import pytest

from pipelines.commands.console import name_options


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Declare it (for instance `freq`='MS').", "Declare it (for instance --freq 'MS')."),
        (
            "Declare the frequency (`freq`), or the zone (`zone`).",
            "Declare the frequency (--freq), or the zone (--zone).",
        ),
        ("Declare their names (`columns`).", "Declare their names (--id-column, --ds-column, --y-column)."),
        ("Send `y` and `freqs`.", "Send `y` and `freqs`."),
    ],
)
def test_arguments_are_named_as_options(message: str, expected: str) -> None:
    assert name_options(message) == expected
