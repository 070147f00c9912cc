"""Runs the rollout of an ONNX graph with onnxruntime and numpy, without torch.

Inputs of the graph (rows come first; all but `values` and `horizon` exist only if the network reads them):

    values [row, step]  covariates [row, step, any]  static [row, any]  channels [row, step, any]
    ahead [row or way, step, any]       future covariates
    horizon [1]
    noise [track of a way, step, any]   uniforms to draw paths with; if omitted, point forecasts are returned
    before.*                            the state to continue from; if omitted, the values are a window with a new scale

Outputs: forecast [way, horizon], and after.*, the state after the values. In the names of the graph's axes, a `way` is a path:
a row, or a fork of a single row. A `track` is a target of a row: y or a channel.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

os.environ.setdefault(
    "ORT_DISABLE_TELEMETRY", "1"
)  # otherwise it stores an identifier of the machine in the home directory
import onnxruntime  # type: ignore[import-untyped]

from forecaster.engines.engine import RolloutInput
from forecaster.errors import BundleDamaged, HorizonOutOfRange, InputError
from forecaster.shapes import Bool, Float, Float64

if TYPE_CHECKING:
    from forecaster.spec import Layout
else:
    Layout = Any  # needed only for annotations, and this module needs numpy and onnxruntime only

GRAPH_FORMAT = "1"  # version of the names, dtypes and shapes above
# Over all rows, in one pass of the recurrence; bounds the memory that long histories take.
MAX_SEGMENTS_AT_ONCE = 1 << 18


class RolloutArrays(NamedTuple):
    """Everything a rollout carries from one call to the next: `forecaster.model.rollout.RolloutState` as plain arrays.

    Attributes:
        hidden: Hidden states of the recurrence; one slot for each layer and step of its dilation.
        output: Output of the recurrence's last step.
        begun: Whether the target has been observed yet.
        shift: Level of the scale of each target.
        width: Spread of the scale of each target.
        profile: Seasonal profile of the scale of each target.
        bound: Scaled values beyond it count as diverged.
        time: Steps read since the rows began.
        cell: Cell states (LSTM only).
        recent: The latest scaled values, gaps filled; None if neither lags nor the baseline need them.
        static: Embeddings of the row's static categories; None without categories.
        size: Size of the scale of each target; None without the log transform.
    """

    hidden: Float[np.ndarray, "slot row hidden"]
    output: Float[np.ndarray, "row hidden"]
    begun: Bool[np.ndarray, "row_target"]
    shift: Float64[np.ndarray, "row_target"]
    width: Float64[np.ndarray, "row_target"]
    profile: Float64[np.ndarray, "row_target phase"]
    bound: Float[np.ndarray, "row_target"]
    time: int
    cell: Float[np.ndarray, "slot row hidden"] | None = None
    recent: Float[np.ndarray, "row_target back"] | None = None
    static: Float[np.ndarray, "row group"] | None = None
    size: Float64[np.ndarray, "row_target 1"] | None = None


class OnnxEngine:
    """Runs an exported graph; it keeps no state between calls, so threads may share it.

    Attributes:
        block: Steps that the decoder predicts at once; future covariates and noise reach to the end of a block.
    """

    def __init__(self, onnx_model: bytes, *, threads: int = 1) -> None:
        """Loads a graph.

        Args:
            onnx_model: A file written by `forecaster.engines.onnx.export`.
            threads: Threads that share the work of one call. One is fastest for a small batch and for concurrent calls.
        Raises:
            BundleDamaged: The file cannot be loaded or has another format.
        """
        self._session = _create_session(onnx_model, threads)
        self._run_options: Any = None  # of `time_limit`
        self._required_inputs = {argument.name: argument.shape for argument in self._session.get_inputs()}
        self._optional_inputs = {
            argument.name: argument.shape for argument in self._session.get_overridable_initializers()
        }
        self._state_names = [name for name in RolloutArrays._fields if f"before.{name}" in self._optional_inputs]
        metadata = self._session.get_modelmeta().custom_metadata_map
        if metadata.get("format") != GRAPH_FORMAT:
            raise BundleDamaged(
                f"Expected a rollout graph of format {GRAPH_FORMAT}; found {metadata.get('format')!r}. Export the bundle again "
                "with this version of forecaster, or serve it with the version that wrote it.",
                where="rollout.onnx",
            )
        try:
            self.block, self._segment = int(metadata["block"]), int(metadata["segment"])
            self._pre_context, self._num_targets = int(metadata["lead"]), int(metadata["targets"])
        except (KeyError, ValueError) as error:
            raise BundleDamaged(
                f"Expected the sizes of the network in the metadata of the rollout graph; found {str(metadata)[:200]}. "
                "Fetch the bundle again.",
                where="rollout.onnx",
            ) from error

    def validate_sizes(self, layout: Layout, *, num_covariates: int, num_static: int) -> None:
        """Raises BundleDamaged unless the metadata and the inputs of the graph are those of a network with this layout."""
        found = (self.block, self._segment, self._pre_context, self._num_targets)
        expected = (layout.block, layout.segment, layout.pre_context, layout.num_targets)
        inputs: dict[str, list[str | int]] = {"values": ["row", "step"], "horizon": [1]}
        if num_covariates:
            inputs |= {"covariates": ["row", "step", num_covariates], "ahead": ["row_or_way", "ahead", num_covariates]}
        if num_static:
            inputs["static"] = ["row", num_static]
        if layout.num_targets > 1:
            inputs["channels"] = ["row", "step", layout.num_targets - 1]
        noise = self._optional_inputs.get("noise")
        if (
            found != expected
            or self._required_inputs != inputs
            or noise not in (None, ["track_way", "ahead", layout.uniforms_per_draw])
        ):
            raise BundleDamaged(
                f"Expected a rollout graph with block, segment, lead and targets {expected} and the inputs {inputs}; found "
                f"{found} and {str(self._required_inputs)[:200]}. The graph belongs to another network: fetch the bundle again.",
                where="rollout.onnx",
            )

    @contextmanager
    def time_limit(self, seconds: float) -> Iterator[None]:
        """Makes all runs within the block fail after some seconds, for a graph that is not trusted yet and may loop endlessly.

        Threads must not share the engine until the block has ended.
        """
        self._run_options = options = onnxruntime.RunOptions()
        timer = threading.Timer(seconds, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._run_options = None

    @property
    def can_sample(self) -> bool:
        """Whether the graph can draw paths."""
        return "noise" in self._optional_inputs

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "path_target ahead noise"] | None = None
    ) -> Float64[np.ndarray, "path horizon"]:
        """See `forecaster.engines.engine.Engine.roll_out`."""
        max_rows = max(1, MAX_SEGMENTS_AT_ONCE * self._segment // max(1, inputs.values.shape[1]))
        parts = [
            self._run_session(["forecast"], *batch, horizon, None)[0]
            for batch in self._split_rows(inputs, noise, max_rows)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def roll_out_with_state(
        self,
        inputs: RolloutInput,
        rollout_state: RolloutArrays | None = None,
        *,
        horizon: int,
        noise: Float[np.ndarray, "path_target ahead noise"] | None = None,
    ) -> tuple[Float64[np.ndarray, "path horizon"], RolloutArrays]:
        """Returns the forecast, and the state after the inputs: at the end of the history, not of the forecast.

        Args:
            inputs: With a state, further values: whole segments or none at all. Without a state, a window.
            rollout_state: State after all earlier values.
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
        """Yields batches of at most `max_rows` rows with their noise; a small input is a single batch."""
        rows = len(inputs.values)
        if rows <= max_rows:
            yield inputs, noise
            return
        for first in range(0, rows, max_rows):
            batch_parts = (None if part is None else part[first : first + max_rows] for part in inputs[1:])
            batch = RolloutInput(inputs.values[first : first + max_rows], *batch_parts)
            batch_targets = slice(first * self._num_targets, (first + max_rows) * self._num_targets)
            yield batch, None if noise is None else noise[batch_targets]

    def _run_session(
        self,
        output_names: list[str],
        inputs: RolloutInput,
        noise: np.ndarray | None,
        horizon: int,
        rollout_state: RolloutArrays | None,
    ) -> list[Any]:
        feed: dict[str, np.ndarray] = {"values": inputs.values, "horizon": np.array([horizon], dtype=np.int64)}
        for name, part in (("covariates", inputs.covariates), ("ahead", inputs.future_covariates), ("noise", noise)):
            if part is not None:
                feed[name] = np.asarray(part, dtype=np.float32)
        if inputs.static is not None:
            feed["static"] = np.asarray(inputs.static, dtype=np.int64)
        if inputs.channels is not None:
            feed["channels"] = inputs.channels
        if rollout_state is not None:
            feed |= {f"before.{name}": np.asarray(getattr(rollout_state, name)) for name in self._state_names}
            feed["before.time"] = np.array([rollout_state.time], dtype=np.int64)
        self._validate_feed(feed, horizon)
        return list(self._session.run(output_names, feed, self._run_options))

    def _validate_feed(self, feed: dict[str, np.ndarray], horizon: int) -> None:
        """Checks that all inputs of the network are given, in consistent shapes."""
        if horizon < 1:
            raise HorizonOutOfRange(f"Expected a horizon of at least 1 step; found {horizon}.", where="horizon")
        rows, steps = feed["values"].shape
        pre_context, min_steps = (0, 0) if "before.output" in feed else (self._pre_context, self._segment)
        if rows < 1 or steps < pre_context + min_steps or (steps - pre_context) % self._segment:
            raise InputError(
                f"Expected rows of {pre_context} steps followed by whole segments of {self._segment}, at least {min_steps} "
                f"steps; found {rows} rows of {steps} steps. Pad the rows at the front with NaN.",
                where="values",
            )
        for name in (*self._required_inputs, *(name for name in feed if name not in self._required_inputs)):
            if name not in ("values", "horizon"):
                self._validate_input(name, feed, horizon)

    def _validate_input(self, name: str, feed: dict[str, np.ndarray], horizon: int) -> None:
        rows, steps = feed["values"].shape
        rows_per_path = {"noise": self._num_targets, "ahead": 1}
        num_paths = next(
            (len(feed[name]) // rows_per_path[name] for name in rows_per_path if rows == 1 and name in feed), rows
        )
        sizes: dict[str, Sequence[int]] = {
            "row": (rows,),
            "track": (rows * self._num_targets,),
            "step": (steps,),
            "row_or_way": (rows, num_paths),
            "track_way": (num_paths * self._num_targets,),
            "ahead": range(-(-horizon // self.block) * self.block, sys.maxsize),
        }
        shape, array = self._required_inputs.get(name, self._optional_inputs.get(name, [])), feed.get(name)
        expected = [sizes[axis] if isinstance(axis, str) else (axis,) for axis in shape]
        if not shape or array is None or not _matches_shape(array.shape, expected):
            expected_text = " x ".join(f"{axis[0]}{' or more' if len(axis) > 2 else ''}" for axis in expected) or "none"
            raise InputError(
                f"Expected {name}: {expected_text}; found {'none' if array is None else ' x '.join(map(str, array.shape))}. "
                "Pass exactly the inputs that the network reads.",
                where=name,
            )


def _matches_shape(shape: Sequence[int], expected: Sequence[Sequence[int]]) -> bool:
    return len(shape) == len(expected) and all(size in allowed for size, allowed in zip(shape, expected, strict=True))


def _create_session(onnx_model: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False  # it would cache a memory plan for every shape
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(onnx_model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common class
        raise BundleDamaged(
            f"Expected a rollout graph that onnxruntime can load; loading failed: {error}. Fetch the bundle again.",
            where="rollout.onnx",
        ) from error
