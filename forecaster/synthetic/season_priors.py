"""What is usual at each season: how much series grow beside their noise, how quiet they are, and how large their seasons are."""

from __future__ import annotations

from typing import NamedTuple


class SeasonPrior(NamedTuple):
    """Shares and sizes that differ between yearly and hourly series; the defaults are those of monthly ones.

    Attributes:
        growth: Drift per step in deviations of the changes; a year has more of it than a month.
        drift_share: Share of the drifting series whose drift is not zero.
        upward_share: Share of the drifts that are positive: most measured quantities grow.
        line_weight: How frequent straight lines are among the trends.
        walk_sizes: Smallest and largest deviation of the steps of random walks, in deviations of the noise.
        quiet_share: Share of the series whose noise is small beside their trend and season.
        level_weight: Parameters of the beta distribution of the smoothing weight: near 1, the level is a random walk.
        seasonal_share: Share of the series that have a season, where one is possible.
        season_sizes: Smallest and largest deviation of a season, in deviations of the noise.
    """

    growth: float = 1.2
    drift_share: float = 0.78
    upward_share: float = 0.8
    line_weight: float = 12.0
    walk_sizes: tuple[float, float] = (0.05, 5.0)
    quiet_share: float = 0.15
    level_weight: tuple[float, float] = (1.0, 1.6)
    seasonal_share: float = 0.78
    season_sizes: tuple[float, float] = (0.2, 12.0)


_HOURLY = SeasonPrior(line_weight=30.0, quiet_share=0.5, seasonal_share=0.92, season_sizes=(0.5, 40.0))
_PRIORS = {
    1: SeasonPrior(
        5.0, 0.85, 0.85, line_weight=16.0, walk_sizes=(0.3, 10.0), quiet_share=0.75, level_weight=(2.5, 1.0)
    ),
    4: SeasonPrior(3.0, 0.85, 0.85, walk_sizes=(0.2, 8.0), quiet_share=0.65, level_weight=(2.0, 1.0)),
    7: SeasonPrior(quiet_share=0.25, season_sizes=(0.3, 15.0)),
    24: _HOURLY,
    48: _HOURLY,
    96: _HOURLY,
}


def find_season_prior(season: int) -> SeasonPrior:
    """Returns what is usual at a season; seasons without an entry are like months."""
    return _PRIORS.get(season, SeasonPrior())
