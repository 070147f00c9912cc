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

from forecaster.engines.engine import Known
from forecaster.errors import BundleDamaged, HorizonOutOfRange, InputError
from forecaster.shapes import Bool, Float, Float64

FORMAT = "1"  # of the names, kinds and shapes above
SEGMENTS_AT_ONCE = 1 << 18  # of all rows together, in one pass of the recurrence: bounds the memory of long histories


class Memory(NamedTuple):
    """All a rollout carries from one call to the next: `forecaster.model.rollout.Memory` as plain arrays.

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


class GraphRunner:
    """A graph ready to run; it remembers nothing between calls, so threads may share it.

    Attributes:
        block: Time points that the decoder gives in one go; covariates ahead and noise reach to the end of one.
    """

    def __init__(self, graph: bytes, *, threads: int = 1) -> None:
        """Prepares a graph.

        Args:
            graph: As `forecaster.engines.onnx.export` wrote it; raises BundleDamaged if it is not.
            threads: That share the work of one call. A small batch is fastest on one; calls beside each other need no more.
        """
        self._session = _session(graph, threads)
        self._needed = {one.name: one.shape for one in self._session.get_inputs()}
        self._optional = {one.name: one.shape for one in self._session.get_overridable_initializers()}
        self._parts = [name for name in Memory._fields if f"before.{name}" in self._optional]
        facts = self._session.get_modelmeta().custom_metadata_map
        if facts.get("format") != FORMAT:
            raise BundleDamaged(
                f"Expected a rollout graph of format {FORMAT}; found {facts.get('format')!r}. Write the bundle again with this "
                "version of forecaster, or serve it with the one that wrote it.",
                where="rollout.onnx",
            )
        self.block, self._segment = int(facts["block"]), int(facts["segment"])
        self._lead, self._targets = int(facts["lead"]), int(facts["targets"])

    @property
    def draws(self) -> bool:
        """Whether it can draw paths."""
        return "noise" in self._optional

    def roll(
        self, known: Known, *, horizon: int, noise: Float[np.ndarray, "track ahead noise"] | None = None
    ) -> Float64[np.ndarray, "way horizon"]:
        """As `forecaster.engines.engine.Engine.roll`."""
        most = max(1, SEGMENTS_AT_ONCE * self._segment // max(1, known.values.shape[1]))
        parts = [self._run(["forecast"], *some, horizon, None)[0] for some in self._split(known, noise, most)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def go_on(
        self,
        known: Known,
        memory: Memory | None = None,
        *,
        horizon: int,
        noise: Float[np.ndarray, "track ahead noise"] | None = None,
    ) -> tuple[Float64[np.ndarray, "way horizon"], Memory]:
        """The forecast, and the memory after what is known: the end of the history, not of the forecast.

        Args:
            known: Further values after a memory, whole segments or none at all; without a memory, a window.
            memory: After all that came before.
            horizon: As in `roll`.
            noise: As in `roll`.
        """
        names = [f"after.{name}" for name in self._parts]
        forecast, *parts = self._run(["forecast", *names], known, noise, horizon, memory)
        after = dict(zip(self._parts, parts, strict=True))
        return forecast, Memory(**after | {"time": int(after["time"][0])})

    def _split(self, known: Known, noise: np.ndarray | None, most: int) -> Iterator[tuple[Known, np.ndarray | None]]:
        """So many rows at once, with what belongs to them; all at once where they are no more."""
        rows = len(known.values)
        if rows <= most:
            yield known, noise
            return
        for first in range(0, rows, most):
            beside = (None if part is None else part[first : first + most] for part in known[1:])
            some = Known(known.values[first : first + most], *beside)
            tracks = slice(first * self._targets, (first + most) * self._targets)
            yield some, None if noise is None else noise[tracks]

    def _run(
        self, wanted: list[str], known: Known, noise: np.ndarray | None, horizon: int, memory: Memory | None
    ) -> list[Any]:
        given: dict[str, np.ndarray] = {"values": known.values, "horizon": np.array([horizon], dtype=np.int64)}
        for name, part in (("covariates", known.covariates), ("ahead", known.ahead), ("noise", noise)):
            if part is not None:
                given[name] = np.asarray(part, dtype=np.float32)
        if known.static is not None:
            given["static"] = np.asarray(known.static, dtype=np.int64)
        if known.channels is not None:
            given["channels"] = known.channels
        if memory is not None:
            given |= {f"before.{name}": np.asarray(getattr(memory, name)) for name in self._parts}
            given["before.time"] = np.array([memory.time], dtype=np.int64)
        self._check(given, horizon)
        return list(self._session.run(wanted, given))

    def _check(self, given: dict[str, np.ndarray], horizon: int) -> None:
        """All that the network reads is there, in shapes that belong together."""
        if horizon < 1:
            raise HorizonOutOfRange(f"Expected a horizon of at least 1 step; found {horizon}.", where="horizon")
        rows, steps = given["values"].shape
        lead, least = (0, 0) if "before.output" in given else (self._lead, self._segment)
        if rows < 1 or steps < lead + least or (steps - lead) % self._segment:
            raise InputError(
                f"Expected rows of {lead} steps and whole segments of {self._segment} after them, {least} steps or more; found "
                f"{rows} rows of {steps} steps. Pad them in front with NaN.",
                where="values",
            )
        for name in (*self._needed, *(name for name in given if name not in self._needed)):
            if name not in ("values", "horizon"):
                self._check_one(name, given, horizon)

    def _check_one(self, name: str, given: dict[str, np.ndarray], horizon: int) -> None:
        rows, steps = given["values"].shape
        each = {"noise": self._targets, "ahead": 1}
        ways = next((len(given[name]) // each[name] for name in each if rows == 1 and name in given), rows)
        sizes: dict[str, Sequence[int]] = {
            "row": (rows,),
            "track": (rows * self._targets,),
            "step": (steps,),
            "row_or_way": (rows, ways),
            "track_way": (ways * self._targets,),
            "ahead": range(-(-horizon // self.block) * self.block, sys.maxsize),
        }
        shape, found = self._needed.get(name, self._optional.get(name, [])), given.get(name)
        expected = [sizes[axis] if isinstance(axis, str) else (axis,) for axis in shape]
        if not shape or found is None or not _fits(found.shape, expected):
            told = " x ".join(f"{axis[0]}{' or more' if len(axis) > 2 else ''}" for axis in expected) or "none"
            raise InputError(
                f"Expected {name}: {told}; found {'none' if found is None else ' x '.join(map(str, found.shape))}. "
                "Give what the network reads, and nothing else.",
                where=name,
            )


def _fits(found: Sequence[int], expected: Sequence[Sequence[int]]) -> bool:
    return len(found) == len(expected) and all(size in allowed for size, allowed in zip(found, expected, strict=True))


def _session(graph: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False  # it keeps a plan for every shape that was ever seen
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common class
        raise BundleDamaged(
            f"Expected a rollout graph that onnxruntime can load; it says: {error}. Fetch the bundle again.",
            where="rollout.onnx",
        ) from error
