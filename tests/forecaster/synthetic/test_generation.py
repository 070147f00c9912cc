"""Generation by name: panels, mixtures, and invalid arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.data.frames.panel import to_frame, to_panel
from forecaster.errors import InputError
from forecaster.synthetic.generation import FAMILIES, generate, generate_panel
from forecaster.synthetic.mixtures import find_mixture
from forecaster.synthetic.sampling import SeriesShape


@pytest.mark.parametrize(
    ("season", "freq"), [(1, "YS-JAN"), (4, "QS-JAN"), (12, "MS"), (52, "7D"), (7, "D"), (24, "h"), (5, "1")]
)
def test_a_panel_has_the_frequency_of_its_season_and_survives_a_table(season: int, freq: str) -> None:
    panel = generate_panel("components", num_series=3, length=30, season=season, seed=1)
    assert [series.id for series in panel.series] == ["components_0", "components_1", "components_2"]
    again = to_panel(to_frame(panel), freq=panel.freq)
    assert (again.freq, again.digest) == (panel.freq, panel.digest)
    assert to_panel(to_frame(panel)).freq == panel.freq  # also without its declaration
    assert panel.freq == freq


def test_covariates_and_channels_are_part_of_the_panel() -> None:
    promotions, indicator = (
        generate_panel(name, num_series=2, length=40, season=12) for name in ("promotions", "leading_indicator")
    )
    assert set(promotions.series[0].covariates) == {"promotion"}
    assert set(indicator.series[0].channels) == {"indicator"}
    again = to_panel(to_frame(promotions), covariates=["promotion"])
    assert again.digest == promotions.digest


def test_every_family_has_series_of_its_own() -> None:
    first = generate("random_walk", num_series=3, length=50, season=12, seed=0).values
    second = generate("random_walk_with_drift", num_series=3, length=50, season=12, seed=0).values
    assert not np.allclose(np.diff(first, axis=1), np.diff(second, axis=1))


def test_the_documentation_describes_every_family() -> None:
    page = (Path(__file__).parents[3] / "docs" / "synthetic.md").read_text()
    for name, family in FAMILIES.items():
        assert f"| `{name}` | {family.description} |" in page


@pytest.mark.parametrize("season", [1, 4, 5, 7, 12, 24, 48, 52, 96])
def test_the_mixture_of_every_season_consists_of_known_families(season: int) -> None:
    mixture = find_mixture(season)
    assert set(mixture.weights) < set(FAMILIES)
    assert mixture.weights.get("calendar", 0) == 0 or SeriesShape(1, 1, season).freq != "1"
    assert mixture.multiplicative + mixture.counts + mixture.clipped + mixture.rounded < 1


def test_the_mixture_has_every_way_of_observing() -> None:
    values = np.nan_to_num(generate("mixture", num_series=1000, length=120, season=12).values)
    whole = (values == np.round(values)).all(axis=1)
    assert 0.05 < whole.mean() < 0.1
    assert 0.4 < (values >= 0).all(axis=1).mean() < 0.7
    distinct = np.array([len(np.unique(np.round(row, 9))) for row in values])
    assert 0.05 < (distinct < 60).mean() < 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "walk"}, r"Expected a family of series: white_noise, .* mixture; found 'walk'\. Use one"),
        ({"num_series": 0}, r"Expected `num_series` of at least 1; found 0\. Use a larger number"),
        ({"length": 1}, r"Expected `length` of at least 2; found 1"),
        ({"season": 0}, r"Expected `season` of at least 1; found 0"),
        ({"seed": -1}, r"Expected `seed` of at least 0; found -1"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(**{"family": "counts", "num_series": 2, "length": 20, **arguments})
