"""An ONNX graph written as arithmetic: every operation on a Value adds a node."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

OPSET = 18  # the first whose reductions all take their axes as inputs
IR_VERSION = 9
SMALL = 64  # elements of a constant that may be there several times

Kind: TypeAlias = "np.dtype[Any]"
Number: TypeAlias = int | float
F32, F64, I64, BOOL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64), np.dtype(np.bool_)


class Value:
    """A tensor of the graph to be. Numbers beside it become constants of its kind.

    Sizes are int64 Values of shape [1], so that they can stand among the numbers of a shape.
    """

    def __init__(self, draft: Draft, name: str, kind: Kind) -> None:
        self.draft, self.name, self.kind = draft, name, kind

    def __add__(self, other: Value | Number) -> Value:
        return self._with("Add", other)

    def __sub__(self, other: Value | Number) -> Value:
        return self._with("Sub", other)

    def __rsub__(self, other: Number) -> Value:
        return self.draft.constant(other, self.kind) - self

    def __mul__(self, other: Value | Number) -> Value:
        return self._with("Mul", other)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Value | Number) -> Value:
        return self._with("Div", other)

    def __rtruediv__(self, other: Number) -> Value:
        return self.draft.constant(other, self.kind) / self

    def __floordiv__(self, other: int) -> Value:
        assert self.kind == I64, "Div of whole numbers that are not negative"
        return self._with("Div", other)

    def __mod__(self, other: Value | int) -> Value:
        return self._with("Mod", other)

    def __matmul__(self, other: Value) -> Value:
        return self._with("MatMul", other)

    def __neg__(self) -> Value:
        return self._alone("Neg")

    def __le__(self, other: Value | Number) -> Value:
        return self._with("LessOrEqual", other, BOOL)

    def __ge__(self, other: Value | Number) -> Value:
        return self._with("GreaterOrEqual", other, BOOL)

    def __gt__(self, other: Value | Number) -> Value:
        return self._with("Greater", other, BOOL)

    def equals(self, other: Value | Number) -> Value:
        """Where the two are equal."""
        return self._with("Equal", other, BOOL)

    def __or__(self, other: Value) -> Value:
        return self._with("Or", other)

    def __invert__(self) -> Value:
        return self._alone("Not")

    def abs(self) -> Value:
        """|x|."""
        return self._alone("Abs")

    def exp(self) -> Value:
        """The exponential function."""
        return self._alone("Exp")

    def log(self) -> Value:
        """The natural logarithm."""
        return self._alone("Log")

    def sqrt(self) -> Value:
        """The square root."""
        return self._alone("Sqrt")

    def cos(self) -> Value:
        """The cosine."""
        return self._alone("Cos")

    def tanh(self) -> Value:
        """The hyperbolic tangent."""
        return self._alone("Tanh")

    def softplus(self) -> Value:
        """log(1 + e to the x)."""
        return self._alone("Softplus")

    def softmax(self) -> Value:
        """Along the last axis."""
        return self.draft.node("Softmax", [self], self.kind, {"axis": -1})

    def is_nan(self) -> Value:
        """Where nothing is known."""
        return self.draft.node("IsNaN", [self], BOOL)

    def clip(self, low: Number | None, high: Number | None) -> Value:
        """Kept between two numbers."""
        ends = [None if end is None else self.draft.constant(end, self.kind) for end in (low, high)]
        return self.draft.node("Clip", [self, *ends], self.kind)

    def cast(self, kind: Kind) -> Value:
        """As another kind."""
        return self.draft.node("Cast", [self], kind, {"to": _code(kind)})

    def sum(self, axis: int, *, keep: bool = True) -> Value:
        """Over an axis, which stays with size 1, or goes."""
        return self.draft.node("ReduceSum", [self, self.draft.whole([axis])], self.kind, {"keepdims": int(keep)})

    def mean(self, axis: int) -> Value:
        """Over an axis, which stays with size 1."""
        return self.draft.node("ReduceMean", [self, self.draft.whole([axis])], self.kind, {"keepdims": 1})

    def max(self, axis: int, *, keep: bool = True) -> Value:
        """Over an axis, which stays with size 1, or goes."""
        return self.draft.node("ReduceMax", [self, self.draft.whole([axis])], self.kind, {"keepdims": int(keep)})

    def most(self, other: Value) -> Value:
        """The larger of the two."""
        return self._with("Max", other)

    def least(self, other: Value) -> Value:
        """The smaller of the two."""
        return self._with("Min", other)

    def cumsum(self, axis: int) -> Value:
        """Sums up to each place of an axis."""
        return self.draft.node("CumSum", [self, self.draft.constant(axis, I64)], self.kind)

    def size(self, axis: int) -> Value:
        """How long an axis is."""
        return self.draft.node("Shape", [self], I64, {"start": axis, "end": axis + 1})

    def reshape(self, *shape: int | Value) -> Value:
        """In another shape; 0 keeps the size of that axis, -1 takes what is left."""
        return self.draft.node("Reshape", [self, self.draft.shape(shape)], self.kind)

    def expand(self, *shape: int | Value) -> Value:
        """Repeated along axes of size 1 up to a shape; 1 keeps the size of that axis."""
        return self.draft.node("Expand", [self, self.draft.shape(shape)], self.kind)

    def transpose(self, *axes: int) -> Value:
        """Its axes in another order."""
        return self.draft.node("Transpose", [self], self.kind, {"perm": list(axes)})

    def squeeze(self, *axes: int) -> Value:
        """Without axes of size 1."""
        return self.draft.node("Squeeze", [self, self.draft.whole(axes)], self.kind)

    def unsqueeze(self, *axes: int) -> Value:
        """With new axes of size 1 at these places of the result."""
        return self.draft.node("Unsqueeze", [self, self.draft.whole(axes)], self.kind)

    def cut(self, axis: int, first: int | Value, last: int | Value | None = None) -> Value:
        """From `first` up to but without `last`; None: to the end. Negative numbers count from the end."""
        ends = [self.draft.shape([np.iinfo(np.int64).max if end is None else end]) for end in (first, last)]
        return self.draft.node("Slice", [self, *ends, self.draft.whole([axis])], self.kind)

    def pad(self, axis: int, *, before: int | Value = 0, after: int | Value = 0, fill: Number = 0) -> Value:
        """With more places in front of and behind an axis."""
        counts, fills = self.draft.shape([before, after]), self.draft.constant(fill, self.kind)
        return self.draft.node("Pad", [self, counts, fills, self.draft.whole([axis])], self.kind)

    def take(self, places: Value, axis: int) -> Value:
        """The same places of every row."""
        return self.draft.node("Gather", [self, places], self.kind, {"axis": axis})

    def pick(self, places: Value, axis: int) -> Value:
        """For each element of `places`, what lies there along the axis."""
        return self.draft.node("GatherElements", [self, places], self.kind, {"axis": axis})

    def put(self, places: Value, values: Value, axis: int) -> Value:
        """A copy with the values at their places along the axis; of several for one place, any."""
        return self.draft.node("ScatterElements", [self, places, values], self.kind, {"axis": axis})

    def _alone(self, operator: str) -> Value:
        return self.draft.node(operator, [self], self.kind)

    def _with(self, operator: str, other: Value | Number, kind: Kind | None = None) -> Value:
        beside = other if isinstance(other, Value) else self.draft.constant(other, self.kind)
        return self.draft.node(operator, [self, beside], kind or self.kind)


class _Part(NamedTuple):
    """A graph inside the graph: a branch, a body, or the outermost."""

    nodes: list[NodeProto]
    initial: list[TensorProto]
    constants: dict[tuple[str, tuple[int, ...], bytes], Value]

    def graph(self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> GraphProto:
        """As ONNX has it."""
        return helper.make_graph(self.nodes, name, inputs, outputs, self.initial)


class Draft:
    """A graph that is being written."""

    def __init__(self) -> None:
        self._outermost = self._part = _Part([], [], {})
        self._inputs: list[ValueInfoProto] = []
        self._count = 0

    def input(self, name: str, kind: Kind, shape: Sequence[str | int], *, default: np.ndarray | None = None) -> Value:
        """What comes from outside; with a default it may be left out."""
        self._inputs.append(helper.make_tensor_value_info(name, _code(kind), shape))
        if default is not None:
            self._part.initial.append(numpy_helper.from_array(default.astype(kind), name))
        return Value(self, name, kind)

    def constant(self, number: np.ndarray | Number, kind: Kind = F32) -> Value:
        """An array, or a number, of a kind.

        A large one is in the outermost graph, where all parts of it see it. A small one is in every part that uses it:
        onnxruntime hands over what a part takes from outside one by one, each time that the part runs.
        """
        array = np.asarray(number, dtype=kind)
        part = self._part if array.size <= SMALL else self._outermost
        key = (kind.name, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in part.constants:
            part.constants[key] = value = self._new(kind)
            part.initial.append(numpy_helper.from_array(array.copy(order="C"), value.name))
        return part.constants[key]

    def whole(self, numbers: Sequence[int]) -> Value:
        """Whole numbers in a row."""
        return self.constant(np.array(numbers, dtype=np.int64), I64)

    def shape(self, numbers: Sequence[int | Value]) -> Value:
        """Whole numbers in a row, some of which are known only when the graph runs."""
        if not any(isinstance(number, Value) for number in numbers):
            return self.whole([number for number in numbers if isinstance(number, int)])
        parts = [number if isinstance(number, Value) else self.whole([number]) for number in numbers]
        return parts[0] if len(parts) == 1 else self.concat(parts, axis=0)

    def zeros(self, *shape: int | Value, kind: Kind = F32) -> Value:
        """As many zeros."""
        zero = numpy_helper.from_array(np.zeros(1, dtype=kind))
        return self.node("ConstantOfShape", [self.shape(shape)], kind, {"value": zero})

    def count(self, size: Value) -> Value:
        """0, 1, 2, ... `size` in all."""
        whole = [self.constant(0, I64), size.squeeze(0), self.constant(1, I64)]
        return self.node("Range", whole, I64)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """One after another."""
        if len(values) == 1:
            return values[0]
        return self.node("Concat", values, values[0].kind, {"axis": axis})

    def where(self, condition: Value, yes: Value | Number, no: Value | Number) -> Value:
        """`yes` where the condition holds, else `no`; one of the two at least is a Value."""
        kind = yes.kind if isinstance(yes, Value) else no.kind if isinstance(no, Value) else F32
        sides = [side if isinstance(side, Value) else self.constant(side, kind) for side in (yes, no)]
        return self.node("Where", [condition, *sides], kind)

    def choose(
        self, condition: Value, yes: Callable[[], Sequence[Value]], no: Callable[[], Sequence[Value]]
    ) -> list[Value]:
        """What `yes` gives if the condition (one element) holds, else what `no` gives; the other is not computed."""
        branches, kinds = {}, []
        for name, branch in (("then_branch", yes), ("else_branch", no)):
            with self._within() as part:
                results = self._own(branch())
            kinds.append([value.kind for value in results])
            branches[name] = part.graph(name, [], [_unshaped(value) for value in results])
        assert kinds[0] == kinds[1], f"branches of one kind; found {kinds}"
        return self.nodes("If", [condition], kinds[0], branches)

    def repeat(
        self, body: Callable[[list[Value]], tuple[Sequence[Value], Value]], state: Sequence[Value]
    ) -> list[Value]:
        """The state that a body comes to, done once and as long as it asks to go on: one element, true or false."""
        with self._within() as part:
            number, going = self._new(I64), self._new(BOOL)
            before = [self._new(value.kind) for value in state]
            after, go_on = body(before)
            results = self._own([go_on, *after])
        own = [helper.make_tensor_value_info(one.name, _code(one.kind), []) for one in (number, going)]
        ends = [*own, *map(_unshaped, before)], [_unshaped(one) for one in results]
        start = [None, self.constant(np.array(True), BOOL), *state]
        return self.nodes("Loop", start, [value.kind for value in state], {"body": part.graph("body", *ends)})

    def scan(
        self,
        body: Callable[[list[Value], list[Value]], tuple[Sequence[Value], Sequence[Value]]],
        state: Sequence[Value],
        sequences: Sequence[Value],
    ) -> tuple[list[Value], list[Value]]:
        """Repeats a body over the first axis of sequences, which must not be empty.

        Args:
            body: From the state and one element of each sequence, the next state and what is to be kept of it.
            state: Before the first.
            sequences: One at least, of one length.
        Returns:
            The state after the last, and what was kept, stacked along a new first axis.
        """
        with self._within() as part:
            before = [self._new(value.kind) for value in state]
            elements = [self._new(value.kind) for value in sequences]
            after, kept = body(before, elements)
            results = self._own([*after, *kept])
        ends = [_unshaped(one) for one in (*before, *elements)], [_unshaped(one) for one in results]
        options = {"body": part.graph("body", *ends), "num_scan_inputs": len(sequences)}
        found = self.nodes("Scan", [*state, *sequences], [value.kind for value in results], options)
        return found[: len(state)], found[len(state) :]

    def node(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        kind: Kind,
        options: Mapping[str, Any] | None = None,
    ) -> Value:
        """The result of an operator that has one."""
        return self.nodes(operator, inputs, [kind], options)[0]

    def nodes(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        kinds: Sequence[Kind | None],
        options: Mapping[str, Any] | None = None,
    ) -> list[Value]:
        """The results of an operator; one whose kind is None is not asked for, and left out."""
        results = [None if kind is None else self._new(kind) for kind in kinds]
        ends = [["" if value is None else value.name for value in some] for some in (inputs, results)]
        self._part.nodes.append(helper.make_node(operator, ends[0], ends[1], **(options or {})))
        return [value for value in results if value is not None]

    def finish(self, outputs: Mapping[str, tuple[Value, Sequence[str | int]]], facts: Mapping[str, str]) -> bytes:
        """The graph as a file: what comes out of it by name, each with its shape; and facts for whoever runs it."""
        for name, (value, _) in outputs.items():
            self._part.nodes.append(helper.make_node("Identity", [value.name], [name]))
        infos = [helper.make_tensor_value_info(name, _code(one.kind), shape) for name, (one, shape) in outputs.items()]
        graph = self._outermost.graph("rollout", self._inputs, infos)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="forecaster"
        )
        helper.set_model_props(model, dict(facts))
        content = bytes(model.SerializeToString())
        checker.check_model(content)
        return content

    @contextmanager
    def _within(self) -> Iterator[_Part]:
        """What is written meanwhile goes into a part of its own."""
        outer, self._part = self._part, _Part([], [], {})
        try:
            yield self._part
        finally:
            self._part = outer

    def _own(self, values: Sequence[Value]) -> list[Value]:
        """Copies: what a part gives must be made by a node of its own."""
        return [self.node("Identity", [value], value.kind) for value in values]

    def _new(self, kind: Kind) -> Value:
        self._count += 1
        return Value(self, f"v{self._count}", kind)


def _code(kind: Kind) -> int:
    return int(helper.np_dtype_to_tensor_dtype(kind))


def _unshaped(value: Value) -> ValueInfoProto:
    return helper.make_tensor_value_info(value.name, _code(value.kind), None)
