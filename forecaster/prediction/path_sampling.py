"""Sample paths of series, whose noise depends on nothing but the seed, the id of the series and the number of the path."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from forecaster.prediction.bounds import Bounds
from forecaster.prediction.head_quantiles import recalibrate_paths, split_median, with_median
from forecaster.prediction.interval_units import IntervalUnits
from forecaster.prediction.series_rollout import SeriesRollout
from forecaster.series import Series
from forecaster.shapes import Float, Float64

_MIN_NOISE = np.float32(1e-6)  # float32, so that clipped noise stays float32


class PathSampler:
    """Draws sample paths of one fitted model; where its head is recalibrated, so are they."""

    def __init__(
        self, rollout: SeriesRollout, *, units: IntervalUnits, bounds: Bounds, has_head_quantiles: bool
    ) -> None:
        self._rollout, self._units, self._bounds = rollout, units, bounds
        self._head_calibration = rollout.fitted_model.calibration if has_head_quantiles else None

    def draw(
        self,
        scenarios: Sequence[Series],
        horizon: int,
        path_indices: range,
        *,
        seed: int,
        temperature: float = 1.0,
    ) -> Float64[np.ndarray, "scenario path horizon"]:
        """Draws paths from one warmed-up state, with the same noise in every scenario.

        The distribution of their values at each step is that of the quantiles, where a head is recalibrated. The members of an
        ensemble draw in turn. Whole turns are drawn, so that the member of a path does not depend on the first path.
        """
        members, layout = self._rollout.fitted_model.spec.members, self._rollout.layout
        begin, end = path_indices.start // members * members, -(-path_indices.stop // members) * members
        series_seed = int.from_bytes(hashlib.sha256(f"{seed} {scenarios[0].id}".encode()).digest()[:8], "big") >> 1
        shape = (layout.num_targets, layout.round_up_horizon(horizon), layout.uniforms_per_draw)
        per_path = math.prod(shape)
        noise = _draw_uniforms(series_seed, range(begin * per_path, end * per_path)).reshape(-1, *shape[1:])
        paths = self._rollout.draw_paths(scenarios, horizon, noise, temperature=temperature)
        requested_paths = paths[:, path_indices.start - begin : path_indices.stop - begin]
        if self._head_calibration is not None:
            levels, history = with_median(self._rollout.fitted_model.spec.head.levels), scenarios[0]
            medians, offsets = split_median(self._rollout.predict([history], horizon, levels=levels), levels)
            requested_paths = medians + recalibrate_paths(
                self._head_calibration,
                requested_paths - medians,
                offsets,
                levels,
                changes=self._units.measure_head_changes([history.y], [history.history_summary]),
                group=self._units.interval_group(history),
            )
        bounds = self._bounds
        return bounds.for_series(scenarios[:1]).clip(requested_paths) if bounds.is_active else requested_paths


def _draw_uniforms(seed: int, indices: range) -> Float[np.ndarray, "index"]:
    """Returns the uniforms in (0, 1) at these indices of an infinite sequence. Each step of the generator yields two."""
    bit_generator = np.random.PCG64(seed)
    bit_generator.advance(indices.start // 2)
    odd = indices.start % 2
    uniforms = np.random.Generator(bit_generator).random(len(indices) + odd, dtype=np.float32)[odd:]
    return uniforms.clip(_MIN_NOISE, 1 - _MIN_NOISE)
