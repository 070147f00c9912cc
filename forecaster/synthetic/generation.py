"""Generates series of a family by its name, as arrays or as a panel. The same arguments give the same series."""

from __future__ import annotations

import zlib

import numpy as np

from forecaster.errors import InputError
from forecaster.frequency.names import canonical_frequency
from forecaster.frequency.timestamps import build_timestamps, synthetic_start, timestamp_at
from forecaster.series import Panel, Series
from forecaster.synthetic.families import PURE_FAMILIES, SeriesFamily, SyntheticBatch
from forecaster.synthetic.mixtures import draw_mixture
from forecaster.synthetic.sampling import MIN_LENGTH, SeriesShape

_MIXTURE_DESCRIPTION = " ".join((draw_mixture.__doc__ or "").split())
FAMILIES = {
    **PURE_FAMILIES,
    "mixture": SeriesFamily(
        "mixture", _MIXTURE_DESCRIPTION, lambda shape, rng: SyntheticBatch(draw_mixture(shape, rng))
    ),
}
"""Every family by its name, with the mixture of them as the last one."""


def find_family(name: str) -> SeriesFamily:
    """Returns the family of a name; raises InputError if there is none."""
    if name not in FAMILIES:
        raise InputError(
            f"Expected a family of series: {', '.join(FAMILIES)}; found {name!r}. Use one of these names.",
            where="families",
        )
    return FAMILIES[name]


def generate(family: str, *, num_series: int, length: int, season: int = 1, seed: int = 0) -> SyntheticBatch:
    """Generates series of a family.

    Args:
        family: A name in `FAMILIES`.
        num_series: Number of series. Another number gives other series.
        length: Steps per series, at least 2.
        season: Season in steps; 1 for none.
        seed: The same seed gives different series in every family.
    Raises:
        InputError: No family has this name, a number is too small, or the season belongs to no calendar and the family needs one.
    """
    chosen = find_family(family)
    minima = {"num_series": 1, "length": MIN_LENGTH, "season": 1, "seed": 0}
    numbers = {"num_series": num_series, "length": length, "season": season, "seed": seed}
    for name, number in numbers.items():
        if number < minima[name]:
            raise InputError(
                f"Expected `{name}` of at least {minima[name]}; found {number}. Use a larger number.", where=name
            )
    rng = np.random.default_rng([seed, zlib.crc32(family.encode())])
    return chosen.draw(SeriesShape(num_series, length, season), rng)


def generate_panel(family: str, *, num_series: int, length: int, season: int = 1, seed: int = 0) -> Panel:
    """Generates a panel of a family, whose frequency is the one that usually has this season; arguments as for `generate`.

    The series are named after their family. Seasons that belong to no calendar frequency have integer steps.
    """
    batch = generate(family, num_series=num_series, length=length, season=season, seed=seed)
    shape = SeriesShape(num_series, length, season)
    starts = build_timestamps(synthetic_start(shape.freq), freq=shape.freq, steps=1)
    start, freq = timestamp_at(starts, 0), canonical_frequency(shape.freq, starts)
    series = [
        Series(
            f"{family}_{index:0{len(str(num_series - 1))}}",
            start,
            freq,
            values,
            covariates={name: columns[index] for name, columns in batch.covariates.items()},
            channels={name: columns[index] for name, columns in batch.channels.items()},
        )
        for index, values in enumerate(batch.values)
    ]
    return Panel(series, freq)
