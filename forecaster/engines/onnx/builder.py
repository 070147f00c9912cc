"""Writes an ONNX graph as arithmetic: every operation on a Value adds a node."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

OPSET = 18  # the first in which all reductions take their axes as inputs
IR_VERSION = 9
SMALL_CONSTANT_SIZE = 64  # largest number of elements of a constant that is duplicated in subgraphs

DType: TypeAlias = "np.dtype[Any]"
Number: TypeAlias = int | float
F32, F64, I64, BOOL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64), np.dtype(np.bool_)


class Value:
    """A tensor of the graph under construction. Numbers in operations with it become constants of its dtype.

    Sizes are int64 Values of shape [1], so that they can be used in shapes together with integers.
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
        """log(1 + exp(x))."""
        return self._unary("Softplus")

    def softmax(self) -> Value:
        """The softmax over the last axis."""
        return self.builder.add_node("Softmax", [self], self.dtype, {"axis": -1})

    def is_nan(self) -> Value:
        """Where the value is NaN."""
        return self.builder.add_node("IsNaN", [self], BOOL)

    def clip(self, low: Number | None, high: Number | None) -> Value:
        """Limits values to an interval."""
        bounds = [None if bound is None else self.builder.constant(bound, self.dtype) for bound in (low, high)]
        return self.builder.add_node("Clip", [self, *bounds], self.dtype)

    def cast(self, dtype: DType) -> Value:
        """Converts to another dtype."""
        return self.builder.add_node("Cast", [self], dtype, {"to": _onnx_type(dtype)})

    def sum(self, axis: int, *, keepdims: bool = True) -> Value:
        """Sums over an axis, which is kept with size 1 or dropped."""
        return self.builder.add_node(
            "ReduceSum", [self, self.builder.integers([axis])], self.dtype, {"keepdims": int(keepdims)}
        )

    def mean(self, axis: int) -> Value:
        """Averages over an axis, which is kept with size 1."""
        return self.builder.add_node("ReduceMean", [self, self.builder.integers([axis])], self.dtype, {"keepdims": 1})

    def max(self, axis: int, *, keepdims: bool = True) -> Value:
        """Takes the maximum over an axis, which is kept with size 1 or dropped."""
        return self.builder.add_node(
            "ReduceMax", [self, self.builder.integers([axis])], self.dtype, {"keepdims": int(keepdims)}
        )

    def maximum(self, other: Value) -> Value:
        """The elementwise maximum."""
        return self._binary("Max", other)

    def minimum(self, other: Value) -> Value:
        """The elementwise minimum."""
        return self._binary("Min", other)

    def cumsum(self, axis: int) -> Value:
        """Cumulative sums along an axis."""
        return self.builder.add_node("CumSum", [self, self.builder.constant(axis, I64)], self.dtype)

    def size(self, axis: int) -> Value:
        """The size of an axis."""
        return self.builder.add_node("Shape", [self], I64, {"start": axis, "end": axis + 1})

    def reshape(self, *shape: int | Value) -> Value:
        """Changes the shape; 0 keeps the size of that axis, -1 infers it."""
        return self.builder.add_node("Reshape", [self, self.builder.shape_tensor(shape)], self.dtype)

    def expand(self, *shape: int | Value) -> Value:
        """Repeats axes of size 1 up to a shape; 1 keeps the size of that axis."""
        return self.builder.add_node("Expand", [self, self.builder.shape_tensor(shape)], self.dtype)

    def transpose(self, *axes: int) -> Value:
        """Permutes the axes."""
        return self.builder.add_node("Transpose", [self], self.dtype, {"perm": list(axes)})

    def squeeze(self, *axes: int) -> Value:
        """Drops axes of size 1."""
        return self.builder.add_node("Squeeze", [self, self.builder.integers(axes)], self.dtype)

    def unsqueeze(self, *axes: int) -> Value:
        """Inserts axes of size 1 at these positions of the result."""
        return self.builder.add_node("Unsqueeze", [self, self.builder.integers(axes)], self.dtype)

    def slice_axis(self, axis: int, start: int | Value, stop: int | Value | None = None) -> Value:
        """Slices from `start` to `stop`, exclusive; None means the end. Negative numbers count from the end."""
        bounds = [
            self.builder.shape_tensor([np.iinfo(np.int64).max if bound is None else bound]) for bound in (start, stop)
        ]
        return self.builder.add_node("Slice", [self, *bounds, self.builder.integers([axis])], self.dtype)

    def pad(self, axis: int, *, before: int | Value = 0, after: int | Value = 0, fill: Number = 0) -> Value:
        """Pads an axis at its start and its end."""
        counts, fills = self.builder.shape_tensor([before, after]), self.builder.constant(fill, self.dtype)
        return self.builder.add_node("Pad", [self, counts, fills, self.builder.integers([axis])], self.dtype)

    def take(self, indices: Value, axis: int) -> Value:
        """Takes the same indices of every row."""
        return self.builder.add_node("Gather", [self, indices], self.dtype, {"axis": axis})

    def gather(self, indices: Value, axis: int) -> Value:
        """For each element of `indices`, takes the value at that index of the axis."""
        return self.builder.add_node("GatherElements", [self, indices], self.dtype, {"axis": axis})

    def scatter(self, indices: Value, values: Value, axis: int) -> Value:
        """Copies the tensor with values written at indices of the axis; of duplicates, any one wins."""
        return self.builder.add_node("ScatterElements", [self, indices, values], self.dtype, {"axis": axis})

    def _unary(self, operator: str) -> Value:
        return self.builder.add_node(operator, [self], self.dtype)

    def _binary(self, operator: str, other: Value | Number, dtype: DType | None = None) -> Value:
        operand = other if isinstance(other, Value) else self.builder.constant(other, self.dtype)
        return self.builder.add_node(operator, [self, operand], dtype or self.dtype)


class _Subgraph(NamedTuple):
    """A graph under construction: the outermost one, a branch, or a loop body."""

    nodes: list[NodeProto]
    initializers: list[TensorProto]
    constants: dict[tuple[str, tuple[int, ...], bytes], Value]

    def to_proto(self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> GraphProto:
        """Converts to an ONNX graph."""
        return helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)


class GraphBuilder:
    """Builds an ONNX graph."""

    def __init__(self) -> None:
        self._root_graph = self._subgraph = _Subgraph([], [], {})
        self._inputs: list[ValueInfoProto] = []
        self._value_count = 0

    def add_input(
        self, name: str, dtype: DType, shape: Sequence[str | int], *, default: np.ndarray | None = None
    ) -> Value:
        """Adds an input of the graph; one with a default is optional."""
        self._inputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), shape))
        if default is not None:
            self._subgraph.initializers.append(numpy_helper.from_array(default.astype(dtype), name))
        return Value(self, name, dtype)

    def constant(self, data: np.ndarray | Number, dtype: DType = F32) -> Value:
        """Returns a constant array or number.

        A large constant is stored in the outermost graph, where all subgraphs see it. A small one is stored in every
        subgraph that uses it, because onnxruntime passes outer values to a subgraph one by one on each run of it.
        """
        array = np.asarray(data, dtype=dtype)
        subgraph = self._subgraph if array.size <= SMALL_CONSTANT_SIZE else self._root_graph
        key = (dtype.name, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in subgraph.constants:
            subgraph.constants[key] = value = self._new_value(dtype)
            subgraph.initializers.append(numpy_helper.from_array(array.copy(order="C"), value.name))
        return subgraph.constants[key]

    def integers(self, values: Sequence[int]) -> Value:
        """Returns a one-dimensional integer constant."""
        return self.constant(np.array(values, dtype=np.int64), I64)

    def shape_tensor(self, sizes: Sequence[int | Value]) -> Value:
        """Returns integers as one tensor; some of them may be known only when the graph runs."""
        if not any(isinstance(size, Value) for size in sizes):
            return self.integers([size for size in sizes if isinstance(size, int)])
        parts = [size if isinstance(size, Value) else self.integers([size]) for size in sizes]
        return parts[0] if len(parts) == 1 else self.concat(parts, axis=0)

    def zeros(self, *shape: int | Value, dtype: DType = F32) -> Value:
        """Returns zeros of a shape."""
        zero = numpy_helper.from_array(np.zeros(1, dtype=dtype))
        return self.add_node("ConstantOfShape", [self.shape_tensor(shape)], dtype, {"value": zero})

    def arange(self, size: Value) -> Value:
        """Returns 0, 1, 2, ... with `size` elements."""
        arguments = [self.constant(0, I64), size.squeeze(0), self.constant(1, I64)]
        return self.add_node("Range", arguments, I64)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Concatenates along an axis."""
        if len(values) == 1:
            return values[0]
        return self.add_node("Concat", values, values[0].dtype, {"axis": axis})

    def where(self, condition: Value, then: Value | Number, otherwise: Value | Number) -> Value:
        """Selects `then` where the condition holds, else `otherwise`; at least one of the two is a Value."""
        dtype = then.dtype if isinstance(then, Value) else otherwise.dtype if isinstance(otherwise, Value) else F32
        operands = [
            operand if isinstance(operand, Value) else self.constant(operand, dtype) for operand in (then, otherwise)
        ]
        return self.add_node("Where", [condition, *operands], dtype)

    def if_else(
        self, condition: Value, then: Callable[[], Sequence[Value]], otherwise: Callable[[], Sequence[Value]]
    ) -> list[Value]:
        """Runs only one branch: `then` if the condition (one element) holds, else `otherwise`; returns its results."""
        branches, dtypes = {}, []
        for name, branch in (("then_branch", then), ("else_branch", otherwise)):
            with self._open_subgraph() as subgraph:
                results = self._copy_values(branch())
            dtypes.append([value.dtype for value in results])
            branches[name] = subgraph.to_proto(name, [], [_value_info(value) for value in results])
        assert dtypes[0] == dtypes[1], f"both branches return the same dtypes; found {dtypes}"
        return self.add_multi_output_node("If", [condition], dtypes[0], branches)

    def loop(self, body: Callable[[list[Value]], tuple[Sequence[Value], Value]], state: Sequence[Value]) -> list[Value]:
        """Runs a body once and then as long as it returns true (one element); returns the final state."""
        with self._open_subgraph() as subgraph:
            iteration, condition = self._new_value(I64), self._new_value(BOOL)
            previous_state = [self._new_value(value.dtype) for value in state]
            next_state, repeat = body(previous_state)
            results = self._copy_values([repeat, *next_state])
        loop_inputs = [
            helper.make_tensor_value_info(value.name, _onnx_type(value.dtype), []) for value in (iteration, condition)
        ]
        signature = [*loop_inputs, *map(_value_info, previous_state)], [_value_info(value) for value in results]
        loop_arguments = [None, self.constant(np.array(True), BOOL), *state]
        return self.add_multi_output_node(
            "Loop", loop_arguments, [value.dtype for value in state], {"body": subgraph.to_proto("body", *signature)}
        )

    def scan(
        self,
        body: Callable[[list[Value], list[Value]], tuple[Sequence[Value], Sequence[Value]]],
        state: Sequence[Value],
        sequences: Sequence[Value],
    ) -> tuple[list[Value], list[Value]]:
        """Runs a body for each element of the first axis of sequences, which must not be empty.

        Args:
            body: Maps the state and one element of each sequence to the next state and the values to collect.
            state: Initial state.
            sequences: At least one; all of the same length.
        Returns:
            The final state, and the collected values stacked along a new first axis.
        """
        with self._open_subgraph() as subgraph:
            previous_state = [self._new_value(value.dtype) for value in state]
            elements = [self._new_value(value.dtype) for value in sequences]
            next_state, collected = body(previous_state, elements)
            results = self._copy_values([*next_state, *collected])
        signature = (
            [_value_info(value) for value in (*previous_state, *elements)],
            [_value_info(value) for value in results],
        )
        options = {"body": subgraph.to_proto("body", *signature), "num_scan_inputs": len(sequences)}
        outputs = self.add_multi_output_node("Scan", [*state, *sequences], [value.dtype for value in results], options)
        return outputs[: len(state)], outputs[len(state) :]

    def add_node(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        dtype: DType,
        attributes: Mapping[str, Any] | None = None,
    ) -> Value:
        """Adds an operator with one output and returns it."""
        return self.add_multi_output_node(operator, inputs, [dtype], attributes)[0]

    def add_multi_output_node(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        dtypes: Sequence[DType | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> list[Value]:
        """Adds an operator and returns its outputs; an output whose dtype is None is omitted."""
        results = [None if dtype is None else self._new_value(dtype) for dtype in dtypes]
        names = [["" if value is None else value.name for value in values] for values in (inputs, results)]
        self._subgraph.nodes.append(helper.make_node(operator, names[0], names[1], **(attributes or {})))
        return [value for value in results if value is not None]

    def serialize(self, outputs: Mapping[str, tuple[Value, Sequence[str | int]]], metadata: Mapping[str, str]) -> bytes:
        """Serializes the graph with its named outputs (each with its shape) and metadata for the runner."""
        for name, (value, _) in outputs.items():
            self._subgraph.nodes.append(helper.make_node("Identity", [value.name], [name]))
        infos = [
            helper.make_tensor_value_info(name, _onnx_type(value.dtype), shape)
            for name, (value, shape) in outputs.items()
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
        """Collects the nodes that are added within the context in a subgraph."""
        outer_subgraph, self._subgraph = self._subgraph, _Subgraph([], [], {})
        try:
            yield self._subgraph
        finally:
            self._subgraph = outer_subgraph

    def _copy_values(self, values: Sequence[Value]) -> list[Value]:
        """Copies values, because a subgraph can only return outputs of its own nodes."""
        return [self.add_node("Identity", [value], value.dtype) for value in values]

    def _new_value(self, dtype: DType) -> Value:
        self._value_count += 1
        return Value(self, f"v{self._value_count}", dtype)


def _onnx_type(dtype: DType) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def _value_info(value: Value) -> ValueInfoProto:
    return helper.make_tensor_value_info(value.name, _onnx_type(value.dtype), None)
