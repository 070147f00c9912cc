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
SMALL_CONSTANT_SIZE = 64  # elements of a constant that may be there several times

DType: TypeAlias = "np.dtype[Any]"
Number: TypeAlias = int | float
F32, F64, I64, BOOL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64), np.dtype(np.bool_)


class Value:
    """A tensor of the graph to be. Numbers beside it become constants of its kind.

    Sizes are int64 Values of shape [1], so that they can stand among the numbers of a shape.
    """

    def __init__(self, builder: GraphBuilder, name: str, dtype: DType) -> None:
        self.builder, self.name, self.dtype = builder, name, dtype

    def __add__(self, other: Value | Number) -> Value:
        return self._binary("Add", other)

    def __sub__(self, other: Value | Number) -> Value:
        return self._binary("Sub", other)

    def __rsub__(self, other: Number) -> Value:
        return self.builder.constant(other, self.dtype) - self

    def __mul__(self, other: Value | Number) -> Value:
        return self._binary("Mul", other)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Value | Number) -> Value:
        return self._binary("Div", other)

    def __rtruediv__(self, other: Number) -> Value:
        return self.builder.constant(other, self.dtype) / self

    def __floordiv__(self, other: int) -> Value:
        assert self.dtype == I64, "Div of whole numbers that are not negative"
        return self._binary("Div", other)

    def __mod__(self, other: Value | int) -> Value:
        return self._binary("Mod", other)

    def __matmul__(self, other: Value) -> Value:
        return self._binary("MatMul", other)

    def __neg__(self) -> Value:
        return self._unary("Neg")

    def __le__(self, other: Value | Number) -> Value:
        return self._binary("LessOrEqual", other, BOOL)

    def __ge__(self, other: Value | Number) -> Value:
        return self._binary("GreaterOrEqual", other, BOOL)

    def __gt__(self, other: Value | Number) -> Value:
        return self._binary("Greater", other, BOOL)

    def equals(self, other: Value | Number) -> Value:
        """Where the two are equal."""
        return self._binary("Equal", other, BOOL)

    def __or__(self, other: Value) -> Value:
        return self._binary("Or", other)

    def __invert__(self) -> Value:
        return self._unary("Not")

    def abs(self) -> Value:
        """|x|."""
        return self._unary("Abs")

    def exp(self) -> Value:
        """The exponential function."""
        return self._unary("Exp")

    def log(self) -> Value:
        """The natural logarithm."""
        return self._unary("Log")

    def sqrt(self) -> Value:
        """The square root."""
        return self._unary("Sqrt")

    def cos(self) -> Value:
        """The cosine."""
        return self._unary("Cos")

    def tanh(self) -> Value:
        """The hyperbolic tangent."""
        return self._unary("Tanh")

    def softplus(self) -> Value:
        """log(1 + e to the x)."""
        return self._unary("Softplus")

    def softmax(self) -> Value:
        """Along the last axis."""
        return self.builder.add_node("Softmax", [self], self.dtype, {"axis": -1})

    def is_nan(self) -> Value:
        """Where nothing is known."""
        return self.builder.add_node("IsNaN", [self], BOOL)

    def clip(self, low: Number | None, high: Number | None) -> Value:
        """Kept between two numbers."""
        ends = [None if end is None else self.builder.constant(end, self.dtype) for end in (low, high)]
        return self.builder.add_node("Clip", [self, *ends], self.dtype)

    def cast(self, dtype: DType) -> Value:
        """As another kind."""
        return self.builder.add_node("Cast", [self], dtype, {"to": _onnx_type(dtype)})

    def sum(self, axis: int, *, keepdims: bool = True) -> Value:
        """Over an axis, which stays with size 1, or goes."""
        return self.builder.add_node(
            "ReduceSum", [self, self.builder.integers([axis])], self.dtype, {"keepdims": int(keepdims)}
        )

    def mean(self, axis: int) -> Value:
        """Over an axis, which stays with size 1."""
        return self.builder.add_node("ReduceMean", [self, self.builder.integers([axis])], self.dtype, {"keepdims": 1})

    def max(self, axis: int, *, keepdims: bool = True) -> Value:
        """Over an axis, which stays with size 1, or goes."""
        return self.builder.add_node(
            "ReduceMax", [self, self.builder.integers([axis])], self.dtype, {"keepdims": int(keepdims)}
        )

    def maximum(self, other: Value) -> Value:
        """The larger of the two."""
        return self._binary("Max", other)

    def minimum(self, other: Value) -> Value:
        """The smaller of the two."""
        return self._binary("Min", other)

    def cumsum(self, axis: int) -> Value:
        """Sums up to each place of an axis."""
        return self.builder.add_node("CumSum", [self, self.builder.constant(axis, I64)], self.dtype)

    def size(self, axis: int) -> Value:
        """How long an axis is."""
        return self.builder.add_node("Shape", [self], I64, {"start": axis, "end": axis + 1})

    def reshape(self, *shape: int | Value) -> Value:
        """In another shape; 0 keeps the size of that axis, -1 takes what is left."""
        return self.builder.add_node("Reshape", [self, self.builder.shape_tensor(shape)], self.dtype)

    def expand(self, *shape: int | Value) -> Value:
        """Repeated along axes of size 1 up to a shape; 1 keeps the size of that axis."""
        return self.builder.add_node("Expand", [self, self.builder.shape_tensor(shape)], self.dtype)

    def transpose(self, *axes: int) -> Value:
        """Its axes in another order."""
        return self.builder.add_node("Transpose", [self], self.dtype, {"perm": list(axes)})

    def squeeze(self, *axes: int) -> Value:
        """Without axes of size 1."""
        return self.builder.add_node("Squeeze", [self, self.builder.integers(axes)], self.dtype)

    def unsqueeze(self, *axes: int) -> Value:
        """With new axes of size 1 at these places of the result."""
        return self.builder.add_node("Unsqueeze", [self, self.builder.integers(axes)], self.dtype)

    def slice_axis(self, axis: int, start: int | Value, stop: int | Value | None = None) -> Value:
        """From `start` up to but without `stop`; None: to the end. Negative numbers count from the end."""
        ends = [self.builder.shape_tensor([np.iinfo(np.int64).max if end is None else end]) for end in (start, stop)]
        return self.builder.add_node("Slice", [self, *ends, self.builder.integers([axis])], self.dtype)

    def pad(self, axis: int, *, before: int | Value = 0, after: int | Value = 0, fill: Number = 0) -> Value:
        """With more places in front of and behind an axis."""
        counts, fills = self.builder.shape_tensor([before, after]), self.builder.constant(fill, self.dtype)
        return self.builder.add_node("Pad", [self, counts, fills, self.builder.integers([axis])], self.dtype)

    def take(self, indices: Value, axis: int) -> Value:
        """The same places of every row."""
        return self.builder.add_node("Gather", [self, indices], self.dtype, {"axis": axis})

    def gather(self, indices: Value, axis: int) -> Value:
        """For each element of `indices`, what lies there along the axis."""
        return self.builder.add_node("GatherElements", [self, indices], self.dtype, {"axis": axis})

    def scatter(self, indices: Value, values: Value, axis: int) -> Value:
        """A copy with the values at their places along the axis; of several for one place, any."""
        return self.builder.add_node("ScatterElements", [self, indices, values], self.dtype, {"axis": axis})

    def _unary(self, operator: str) -> Value:
        return self.builder.add_node(operator, [self], self.dtype)

    def _binary(self, operator: str, other: Value | Number, dtype: DType | None = None) -> Value:
        beside = other if isinstance(other, Value) else self.builder.constant(other, self.dtype)
        return self.builder.add_node(operator, [self, beside], dtype or self.dtype)


class _Subgraph(NamedTuple):
    """A graph inside the graph: a branch, a body, or the outermost."""

    nodes: list[NodeProto]
    initializers: list[TensorProto]
    constants: dict[tuple[str, tuple[int, ...], bytes], Value]

    def to_proto(self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> GraphProto:
        """As ONNX has it."""
        return helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)


class GraphBuilder:
    """A graph that is being written."""

    def __init__(self) -> None:
        self._root_graph = self._subgraph = _Subgraph([], [], {})
        self._inputs: list[ValueInfoProto] = []
        self._value_count = 0

    def add_input(
        self, name: str, dtype: DType, shape: Sequence[str | int], *, default: np.ndarray | None = None
    ) -> Value:
        """What comes from outside; with a default it may be left out."""
        self._inputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), shape))
        if default is not None:
            self._subgraph.initializers.append(numpy_helper.from_array(default.astype(dtype), name))
        return Value(self, name, dtype)

    def constant(self, data: np.ndarray | Number, dtype: DType = F32) -> Value:
        """An array, or a number, of a kind.

        A large one is in the outermost graph, where all parts of it see it. A small one is in every part that uses it:
        onnxruntime hands over what a part takes from outside one by one, each time that the part runs.
        """
        array = np.asarray(data, dtype=dtype)
        part = self._subgraph if array.size <= SMALL_CONSTANT_SIZE else self._root_graph
        key = (dtype.name, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in part.constants:
            part.constants[key] = value = self._new_value(dtype)
            part.initializers.append(numpy_helper.from_array(array.copy(order="C"), value.name))
        return part.constants[key]

    def integers(self, values: Sequence[int]) -> Value:
        """Whole numbers in a row."""
        return self.constant(np.array(values, dtype=np.int64), I64)

    def shape_tensor(self, sizes: Sequence[int | Value]) -> Value:
        """Whole numbers in a row, some of which are known only when the graph runs."""
        if not any(isinstance(number, Value) for number in sizes):
            return self.integers([number for number in sizes if isinstance(number, int)])
        parts = [number if isinstance(number, Value) else self.integers([number]) for number in sizes]
        return parts[0] if len(parts) == 1 else self.concat(parts, axis=0)

    def zeros(self, *shape: int | Value, dtype: DType = F32) -> Value:
        """As many zeros."""
        zero = numpy_helper.from_array(np.zeros(1, dtype=dtype))
        return self.add_node("ConstantOfShape", [self.shape_tensor(shape)], dtype, {"value": zero})

    def arange(self, size: Value) -> Value:
        """0, 1, 2, ... `size` in all."""
        whole = [self.constant(0, I64), size.squeeze(0), self.constant(1, I64)]
        return self.add_node("Range", whole, I64)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """One after another."""
        if len(values) == 1:
            return values[0]
        return self.add_node("Concat", values, values[0].dtype, {"axis": axis})

    def where(self, condition: Value, then: Value | Number, otherwise: Value | Number) -> Value:
        """`then` where the condition holds, else `otherwise`; one of the two at least is a Value."""
        kind = then.dtype if isinstance(then, Value) else otherwise.dtype if isinstance(otherwise, Value) else F32
        sides = [side if isinstance(side, Value) else self.constant(side, kind) for side in (then, otherwise)]
        return self.add_node("Where", [condition, *sides], kind)

    def if_else(
        self, condition: Value, then: Callable[[], Sequence[Value]], otherwise: Callable[[], Sequence[Value]]
    ) -> list[Value]:
        """What `then` gives if the condition (one element) holds, else what `otherwise` gives; the other is not computed."""
        branches, kinds = {}, []
        for name, branch in (("then_branch", then), ("else_branch", otherwise)):
            with self._open_subgraph() as part:
                results = self._copy_values(branch())
            kinds.append([value.dtype for value in results])
            branches[name] = part.to_proto(name, [], [_value_info(value) for value in results])
        assert kinds[0] == kinds[1], f"branches of one kind; found {kinds}"
        return self.add_multi_output_node("If", [condition], kinds[0], branches)

    def loop(self, body: Callable[[list[Value]], tuple[Sequence[Value], Value]], state: Sequence[Value]) -> list[Value]:
        """The state that a body comes to, done once and as long as it asks to go on: one element, true or false."""
        with self._open_subgraph() as part:
            number, going = self._new_value(I64), self._new_value(BOOL)
            before = [self._new_value(value.dtype) for value in state]
            after, go_on = body(before)
            results = self._copy_values([go_on, *after])
        own = [helper.make_tensor_value_info(one.name, _onnx_type(one.dtype), []) for one in (number, going)]
        ends = [*own, *map(_value_info, before)], [_value_info(one) for one in results]
        start = [None, self.constant(np.array(True), BOOL), *state]
        return self.add_multi_output_node(
            "Loop", start, [value.dtype for value in state], {"body": part.to_proto("body", *ends)}
        )

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
        with self._open_subgraph() as part:
            before = [self._new_value(value.dtype) for value in state]
            elements = [self._new_value(value.dtype) for value in sequences]
            after, kept = body(before, elements)
            results = self._copy_values([*after, *kept])
        ends = [_value_info(one) for one in (*before, *elements)], [_value_info(one) for one in results]
        options = {"body": part.to_proto("body", *ends), "num_scan_inputs": len(sequences)}
        found = self.add_multi_output_node("Scan", [*state, *sequences], [value.dtype for value in results], options)
        return found[: len(state)], found[len(state) :]

    def add_node(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        dtype: DType,
        attributes: Mapping[str, Any] | None = None,
    ) -> Value:
        """The result of an operator that has one."""
        return self.add_multi_output_node(operator, inputs, [dtype], attributes)[0]

    def add_multi_output_node(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        dtypes: Sequence[DType | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> list[Value]:
        """The results of an operator; one whose kind is None is not asked for, and left out."""
        results = [None if kind is None else self._new_value(kind) for kind in dtypes]
        ends = [["" if value is None else value.name for value in some] for some in (inputs, results)]
        self._subgraph.nodes.append(helper.make_node(operator, ends[0], ends[1], **(attributes or {})))
        return [value for value in results if value is not None]

    def serialize(self, outputs: Mapping[str, tuple[Value, Sequence[str | int]]], metadata: Mapping[str, str]) -> bytes:
        """The graph as a file: what comes out of it by name, each with its shape; and facts for whoever runs it."""
        for name, (value, _) in outputs.items():
            self._subgraph.nodes.append(helper.make_node("Identity", [value.name], [name]))
        infos = [
            helper.make_tensor_value_info(name, _onnx_type(one.dtype), shape) for name, (one, shape) in outputs.items()
        ]
        graph = self._root_graph.to_proto("rollout", self._inputs, infos)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="forecaster"
        )
        helper.set_model_props(model, dict(metadata))
        content = bytes(model.SerializeToString())
        checker.check_model(content)
        return content

    @contextmanager
    def _open_subgraph(self) -> Iterator[_Subgraph]:
        """What is written meanwhile goes into a part of its own."""
        outer, self._subgraph = self._subgraph, _Subgraph([], [], {})
        try:
            yield self._subgraph
        finally:
            self._subgraph = outer

    def _copy_values(self, values: Sequence[Value]) -> list[Value]:
        """Copies: what a part gives must be made by a node of its own."""
        return [self.add_node("Identity", [value], value.dtype) for value in values]

    def _new_value(self, dtype: DType) -> Value:
        self._value_count += 1
        return Value(self, f"v{self._value_count}", dtype)


def _onnx_type(dtype: DType) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def _value_info(value: Value) -> ValueInfoProto:
    return helper.make_tensor_value_info(value.name, _onnx_type(value.dtype), None)
