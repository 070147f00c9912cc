"""Runs a rollout that was written as an ONNX graph: onnxruntime and numpy, no torch.

What goes in (rows first; all but `values` and `horizon` only where the network reads them):

    values [row, step]  covariates [row, step, any]  static [row, any]  channels [row, step, any]
    ahead [row or way, step, any]  horizon [1]
    noise [track of a way, step, any]   uniforms to draw paths with; left out: point forecasts
    before.*                            the memory to go on from; left out: the values are a window, measured afresh

and what comes out: forecast [way, horizon], and after.*, the memory after the values. Ways are rows, or forks of one row;
y and each channel of a row are its tracks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it leaves an identity of the machine in its home
import onnxruntime  # type: ignore[import-untyped]

from forecaster.engines.engine import RolloutInput
from forecaster.errors import BundleDamaged, HorizonOutOfRange, InputError
from forecaster.shapes import Bool, Float, Float64

GRAPH_FORMAT = "1"  # of the names, kinds and shapes above
MAX_SEGMENTS_AT_ONCE = (
    1 << 18
)  # of all rows together, in one pass of the recurrence: bounds the memory of long histories


class RolloutArrays(NamedTuple):
    """All a rollout carries from one call to the next: `forecaster.model.rollout.RolloutArrays` as plain arrays.

    Attributes:
        hidden: The recurrence, a slot for each layer and step of its dilation.
        output: What its last step said.
        begun: Whether the track has seen an observation yet.
        shift: Of the scale of each track.
        width: Likewise.
        profile: Likewise.
        bound: Scaled values beyond it are not believed.
        time: Steps read since the rows began.
        cell: Of an LSTM; None otherwise.
        recent: The latest values, scaled, gaps filled; None where neither lags nor base look at them.
        static: What is known of the row for good; None where it has no categories.
        size: Of the scale of each track, where values are scaled in logarithms; None otherwise.
    """

    hidden: Float[np.ndarray, "slot row hidden"]
    output: Float[np.ndarray, "row hidden"]
    begun: Bool[np.ndarray, "track"]
    shift: Float64[np.ndarray, "track"]
    width: Float64[np.ndarray, "track"]
    profile: Float64[np.ndarray, "track phase"]
    bound: Float[np.ndarray, "track"]
    time: int
    cell: Float[np.ndarray, "slot row hidden"] | None = None
    recent: Float[np.ndarray, "track back"] | None = None
    static: Float[np.ndarray, "row group"] | None = None
    size: Float64[np.ndarray, "track 1"] | None = None


class OnnxEngine:
    """A graph ready to run; it remembers nothing between calls, so threads may share it.

    Attributes:
        block: Time points that the decoder gives in one go; covariates ahead and noise reach to the end of one.
    """

    def __init__(self, onnx_model: bytes, *, threads: int = 1) -> None:
        """Prepares a graph.

        Args:
            graph: As `forecaster.engines.onnx.export` wrote it; raises BundleDamaged if it is not.
            threads: That share the work of one call. A small batch is fastest on one; calls beside each other need no more.
        """
        self._session = _create_session(onnx_model, threads)
        self._required_inputs = {one.name: one.shape for one in self._session.get_inputs()}
        self._optional_inputs = {one.name: one.shape for one in self._session.get_overridable_initializers()}
        self._state_names = [name for name in RolloutArrays._fields if f"before.{name}" in self._optional_inputs]
        facts = self._session.get_modelmeta().custom_metadata_map
        if facts.get("format") != GRAPH_FORMAT:
            raise BundleDamaged(
                f"Expected a rollout graph of format {GRAPH_FORMAT}; found {facts.get('format')!r}. Write the bundle again with this "
                "version of forecaster, or serve it with the one that wrote it.",
                where="rollout.onnx",
            )
        self.block, self._segment = int(facts["block"]), int(facts["segment"])
        self._pre_context, self._num_targets = int(facts["lead"]), int(facts["targets"])

    @property
    def can_sample(self) -> bool:
        """Whether it can draw paths."""
        return "noise" in self._optional_inputs

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "track ahead noise"] | None = None
    ) -> Float64[np.ndarray, "way horizon"]:
        """As `forecaster.engines.engine.Backend.roll_out`."""
        most = max(1, MAX_SEGMENTS_AT_ONCE * self._segment // max(1, inputs.values.shape[1]))
        parts = [
            self._run_session(["forecast"], *some, horizon, None)[0] for some in self._split_rows(inputs, noise, most)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def roll_out_with_state(
        self,
        inputs: RolloutInput,
        rollout_state: RolloutArrays | None = None,
        *,
        horizon: int,
        noise: Float[np.ndarray, "track ahead noise"] | None = None,
    ) -> tuple[Float64[np.ndarray, "way horizon"], RolloutArrays]:
        """The forecast, and the memory after what is known: the end of the history, not of the forecast.

        Args:
            known: Further values after a memory, whole segments or none at all; without a memory, a window.
            memory: After all that came before.
            horizon: As in `roll_out`.
            noise: As in `roll_out`.
        """
        names = [f"after.{name}" for name in self._state_names]
        forecast, *parts = self._run_session(["forecast", *names], inputs, noise, horizon, rollout_state)
        after = dict(zip(self._state_names, parts, strict=True))
        return forecast, RolloutArrays(**after | {"time": int(after["time"][0])})

    def _split_rows(
        self, inputs: RolloutInput, noise: np.ndarray | None, max_rows: int
    ) -> Iterator[tuple[RolloutInput, np.ndarray | None]]:
        """So many rows at once, with what belongs to them; all at once where they are no more."""
        rows = len(inputs.values)
        if rows <= max_rows:
            yield inputs, noise
            return
        for first in range(0, rows, max_rows):
            beside = (None if part is None else part[first : first + max_rows] for part in inputs[1:])
            some = RolloutInput(inputs.values[first : first + max_rows], *beside)
            tracks = slice(first * self._num_targets, (first + max_rows) * self._num_targets)
            yield some, None if noise is None else noise[tracks]

    def _run_session(
        self,
        output_names: list[str],
        inputs: RolloutInput,
        noise: np.ndarray | None,
        horizon: int,
        rollout_state: RolloutArrays | None,
    ) -> list[Any]:
        given: dict[str, np.ndarray] = {"values": inputs.values, "horizon": np.array([horizon], dtype=np.int64)}
        for name, part in (("covariates", inputs.covariates), ("ahead", inputs.future_covariates), ("noise", noise)):
            if part is not None:
                given[name] = np.asarray(part, dtype=np.float32)
        if inputs.static is not None:
            given["static"] = np.asarray(inputs.static, dtype=np.int64)
        if inputs.channels is not None:
            given["channels"] = inputs.channels
        if rollout_state is not None:
            given |= {f"before.{name}": np.asarray(getattr(rollout_state, name)) for name in self._state_names}
            given["before.time"] = np.array([rollout_state.time], dtype=np.int64)
        self._validate_feed(given, horizon)
        return list(self._session.run(output_names, given))

    def _validate_feed(self, feed: dict[str, np.ndarray], horizon: int) -> None:
        """All that the network reads is there, in shapes that belong together."""
        if horizon < 1:
            raise HorizonOutOfRange(f"Expected a horizon of at least 1 step; found {horizon}.", where="horizon")
        rows, steps = feed["values"].shape
        lead, least = (0, 0) if "before.output" in feed else (self._pre_context, self._segment)
        if rows < 1 or steps < lead + least or (steps - lead) % self._segment:
            raise InputError(
                f"Expected rows of {lead} steps and whole segments of {self._segment} after them, {least} steps or more; found "
                f"{rows} rows of {steps} steps. Pad them in front with NaN.",
                where="values",
            )
        for name in (*self._required_inputs, *(name for name in feed if name not in self._required_inputs)):
            if name not in ("values", "horizon"):
                self._validate_input(name, feed, horizon)

    def _validate_input(self, name: str, feed: dict[str, np.ndarray], horizon: int) -> None:
        rows, steps = feed["values"].shape
        each = {"noise": self._num_targets, "ahead": 1}
        ways = next((len(feed[name]) // each[name] for name in each if rows == 1 and name in feed), rows)
        sizes: dict[str, Sequence[int]] = {
            "row": (rows,),
            "track": (rows * self._num_targets,),
            "step": (steps,),
            "row_or_way": (rows, ways),
            "track_way": (ways * self._num_targets,),
            "ahead": range(-(-horizon // self.block) * self.block, sys.maxsize),
        }
        shape, found = self._required_inputs.get(name, self._optional_inputs.get(name, [])), feed.get(name)
        expected = [sizes[axis] if isinstance(axis, str) else (axis,) for axis in shape]
        if not shape or found is None or not _matches_shape(found.shape, expected):
            told = " x ".join(f"{axis[0]}{' or more' if len(axis) > 2 else ''}" for axis in expected) or "none"
            raise InputError(
                f"Expected {name}: {told}; found {'none' if found is None else ' x '.join(map(str, found.shape))}. "
                "Give what the network reads, and nothing else.",
                where=name,
            )


def _matches_shape(shape: Sequence[int], expected: Sequence[Sequence[int]]) -> bool:
    return len(shape) == len(expected) and all(size in allowed for size, allowed in zip(shape, expected, strict=True))


def _create_session(onnx_model: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False  # it keeps a plan for every shape that was ever seen
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(onnx_model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common class
        raise BundleDamaged(
            f"Expected a rollout graph that onnxruntime can load; it says: {error}. Fetch the bundle again.",
            where="rollout.onnx",
        ) from error
