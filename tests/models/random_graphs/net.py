"""The net that a random graph grows into, where choices come from, and the registry of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Operand = str | Array | float | Sequence[int] | None  # a tensor's name, a constant, or an omitted input
T = TypeVar("T")

WIDTHS = (8, 4, 6, 12, 2, 16, 3, 5, 24)
LARGEST = 2048  # elements per sample
LONGEST = 48  # indices of one axis
INT_MAX = 2**63 - 1


class Draws:
    """Where the choices come from: `integer(low, high)`, both included."""

    def __init__(self, integer: Callable[[int, int], int]) -> None:
        self.integer = integer

    def pick(self, options: Sequence[T]) -> T:
        """One of the options; the first is the simplest."""
        return options[self.integer(0, len(options) - 1)]

    def chance(self, n: int) -> bool:
        """True once in `n` times."""
        return self.integer(0, n - 1) == n - 1

    def permutation(self, n: int) -> list[int]:
        """A permutation of range(n)."""
        left = list(range(n))
        return [left.pop(self.integer(0, len(left) - 1)) for _ in range(n)]


class Net:
    """A graph under construction; `shapes` are those for a batch of `batch` samples."""

    def __init__(self, draw: Draws) -> None:
        self.draw = draw
        self.opset = draw.pick((17, 21, 13, 18, 11, 21))
        self.dynamic = draw.chance(2)
        self.batch = 1 if self.dynamic else draw.pick((1, 2))
        self.widths = draw.pick((WIDTHS, WIDTHS, (8,), (4, 8), (6, 12)))
        self.inline = draw.chance(4)  # weights in Constant nodes
        self.rng = np.random.default_rng(draw.integer(0, 999))
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.types: dict[str, onnx.TypeProto] = {}
        self.values: dict[str, onnx.TensorProto] = {}
        self.pool: list[str] = []  # float tensors whose first axis is the batch
        self.stored: dict[Shape, list[str]] = {}  # weights that can be used again
        self.aside: list[str] = []  # constants that become outputs
        self.counts: dict[str, int] = {}
        self.imports = [helper.make_opsetid("", self.opset)]

    # tensors

    def shape(self, x: str) -> Shape:
        return tuple(d.dim_value for d in self.types[x].tensor_type.shape.dim)

    def fresh(self, stem: str) -> str:
        self.counts[stem] = self.counts.get(stem, 0) + 1
        return f"{stem}_{self.counts[stem]}"

    def input(self, shape: Shape, dtype: int = TensorProto.FLOAT) -> str:
        name = self.fresh("input")
        self.types[name] = helper.make_tensor_type_proto(dtype, (self.batch, *shape))
        batch = "batch" if self.dynamic else self.batch
        self.inputs.append(helper.make_tensor_value_info(name, dtype, (batch, *shape)))
        return name

    def const(self, value: npt.ArrayLike) -> str:
        """A Constant node; Python floats become float32, integers int64."""
        array = np.asarray(value)
        if not isinstance(value, np.ndarray | np.generic):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        name = self.fresh("const")
        tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        self._store(name, array, tensor)
        return name

    def param(self, array: Array) -> str:
        """A stored weight; floats become float32."""
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        if self.inline:
            return self.const(array)
        name = self.fresh("weight")
        tensor = numpy_helper.from_array(array, name)
        self.weights.append(tensor)
        self._store(name, array, tensor)
        return name

    def _store(self, name: str, array: Array, tensor: onnx.TensorProto) -> None:
        self.types[name] = helper.make_tensor_type_proto(tensor.data_type, array.shape)
        if array.dtype.kind in "iu" or array.size < 16:
            self.values[name] = tensor

    def normal(self, *shape: int, scale: float = 0.3) -> Array:
        return self.rng.normal(0.0, scale, shape)

    def positive(self, *shape: int) -> Array:
        return self.rng.uniform(0.5, 1.5, shape)

    # nodes

    def ops(
        self, kind: str, *operands: Operand, n: int = 1, shape: Shape | None = None, **attributes: Any
    ) -> list[str]:
        """Append a node with `n` outputs; onnx infers their types, or they are floats of `shape`."""
        inputs = ["" if x is None else x if isinstance(x, str) else self.const(x) for x in operands]
        while inputs and not inputs[-1]:
            inputs.pop()
        outputs = [self.fresh(kind) for _ in range(n)]
        node = helper.make_node(kind, inputs, outputs, name=f"{outputs[0]}_node", **attributes)
        self.nodes.append(node)
        if shape is not None:
            self.types.update({o: helper.make_tensor_type_proto(TensorProto.FLOAT, shape) for o in outputs})
            return outputs
        used = {i for i in inputs if i}
        self.types |= onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(kind, self.opset, ""),
            node,
            {i: self.types[i] for i in used},
            input_data={i: self.values[i] for i in used if i in self.values},
            opset_imports=self.imports,
            ir_version=10,
        )
        return outputs

    def add_domain(self, domain: str) -> None:
        """Let the model import a domain of other operators."""
        if all(o.domain != domain for o in self.imports):
            self.imports.append(helper.make_opsetid(domain, 1))

    def op(self, kind: str, *operands: Operand, shape: Shape | None = None, **attributes: Any) -> str:
        return self.ops(kind, *operands, shape=shape, **attributes)[0]

    def with_axes(self, kind: str, x: str, axes: Sequence[int], since: int, **attributes: Any) -> str:
        """`axes` is an attribute in older opsets and an input from opset `since` on."""
        if self.opset < since:
            return self.op(kind, x, axes=list(axes), **attributes)
        return self.op(kind, x, list(axes), **attributes)

    def squeeze(self, x: str, *axes: int) -> str:
        return self.with_axes("Squeeze", x, axes, 13)

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self.with_axes("Unsqueeze", x, axes, 13)

    def reduce(self, kind: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        return self.with_axes(f"Reduce{kind}", x, axes, 13 if kind == "Sum" else 18, keepdims=keepdims)

    def transpose(self, x: str, *perm: int) -> str:
        return self.op("Transpose", x, perm=perm)

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        if self.opset < 13:
            return self.ops("Split", x, n=len(sizes), split=list(sizes), axis=axis)
        if len(set(sizes)) == 1 and self.draw.chance(2):
            more: dict[str, Any] = {"num_outputs": len(sizes)} if self.opset >= 18 else {}
            return self.ops("Split", x, n=len(sizes), axis=axis, **more)
        return self.ops("Split", x, list(sizes), n=len(sizes), axis=axis)

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        return self.op("Slice", x, [start], [end], [axis], [step])

    def size(self, x: str, axis: int) -> str:
        """The scalar x.size(axis), as PyTorch exports it."""
        return self.op("Gather", self.op("Shape", x), axis, axis=0)

    def reshape(self, x: str, *target: int, batch: bool = True) -> str:
        """Reshape to `target`, stated in one of the ways that exporters have.

        batch: the first axis of x and of the target is the batch; otherwise it is computed from the others.
        """
        old = self.shape(x)
        dims: list[int | str] = list(target)
        style = self.draw.pick(("plain", "minus", "zero", "chain", "full_chain", "computed"))
        if not batch:
            dims[0] = -1
        elif style in ("chain", "full_chain", "computed"):
            dims[0] = self.size(x, 0)
        elif style == "zero" or self.dynamic:
            dims[0] = 0
        if style == "zero" and batch:
            dims = [0 if i < len(old) and old[i] == d else d for i, d in enumerate(dims)]
        if style == "minus" and batch and all(d != 0 for d in target):
            dims[self.draw.integer(1, len(dims) - 1)] = -1
        if style == "full_chain":
            for i in range(1, len(target)):
                if target[i] in old[1:]:
                    dims[i] = self.size(x, old.index(target[i], 1))
        if style == "computed":
            for i in range(1, len(target)):
                dims[i] = self.computed_size(x, target[i])
        if all(isinstance(d, int) for d in dims):
            return self.op("Reshape", x, self.const(np.array(dims, np.int64)), shape=target)
        return self.op("Reshape", x, self.dims(*dims), shape=target)

    def dims(self, *sizes: int | str) -> str:
        """A shape from constants and scalar tensors: Unsqueeze each, then Concat."""
        parts = [self.const([d]) if isinstance(d, int) else self.unsqueeze(d, 0) for d in sizes]
        return self.op("Concat", *parts, axis=0)

    def computed_size(self, x: str, size: int) -> str | int:
        """`size` as a quotient or a product of x's sizes, where it is one: C // groups, H * W."""
        old = self.shape(x)
        for k in range(1, len(old)):
            if old[k] % size == 0 and 1 < size < old[k]:
                return self.op("Div", self.size(x, k), old[k] // size)
            if k + 1 < len(old) and old[k] * old[k + 1] == size:
                return self.op("Mul", self.size(x, k), self.size(x, k + 1))
        return size

    # weights

    def weight(self, *shape: int, fan_in: int) -> str:
        """A weight, stored as it is, used before, also read elsewhere, or computed by constant nodes."""
        value = self.normal(*shape, scale=math.sqrt(1.5 / fan_in))
        draw = self.draw
        form = draw.pick(("plain",) * 8 + WEIGHT_FORMS)
        if form == "reused" and shape in self.stored:
            return draw.pick(self.stored[shape])
        if form == "transposed":
            perm = draw.permutation(len(shape))
            w = self.transpose(self.param(np.transpose(value, np.argsort(perm))), *perm)
        elif form == "reshaped":
            w = self.op("Reshape", self.param(value.reshape(shape[0], -1)), np.array(shape, np.int64))
        elif form == "flattened":
            w = self.op("Reshape", self.param(value.reshape(-1)), np.array([-1, *shape[1:]], np.int64))
        elif form == "cast":
            w = self.op("Cast", self.param(value.astype(np.float16)), to=TensorProto.FLOAT)
        elif form == "quantized" and self.opset >= 13:
            q = self.param(self.rng.integers(-127, 128, shape).astype(np.int8))
            axis = draw.integer(0, len(shape) - 1)
            sizes = shape[axis : axis + 1] if draw.chance(2) else ()
            size = draw.pick((2, 3, 4)) if self.opset >= 21 and draw.chance(2) else 0  # of a block
            if size:
                sizes = (*shape[:axis], -(-shape[axis] // size), *shape[axis + 1 :])
            scale = self.param(np.asarray(self.positive(*sizes) / 60 / fan_in**0.5))
            zero = self.param(self.rng.integers(-3, 4, self.shape(scale)).astype(np.int8)) if draw.chance(2) else None
            blocks: dict[str, Any] = {"block_size": size} if size else {}
            w = self.op("DequantizeLinear", q, scale, zero, axis=axis, **blocks)
        elif form == "scaled":
            w = self.op("Mul", self.param(value), self.param(self.positive(shape[0], *[1] * (len(shape) - 1))))
        elif form == "normalised":
            stored = self.param(value)
            norm = self.reduce("L2", stored, range(1, len(shape)))
            w = self.op("Div", stored, norm)
        elif form == "joined" and shape[0] > 1:
            at = draw.integer(1, shape[0] - 1)
            w = self.op("Concat", self.param(value[:at]), self.param(value[at:]), axis=0)
        elif form == "split" and self.opset >= 13:
            w, other = self.split(self.param(np.concatenate([value, value[::-1]])), [shape[0]] * 2, 0)
            self.stored.setdefault(shape, []).append(other)
        elif form == "sliced":
            w = self.slice(self.param(np.concatenate([value, value])), 1, 1 + shape[0], 0)
        elif form == "identity":
            w = self.op("Identity", self.param(value))
        else:
            w = self.param(value)
            if form == "output":
                self.aside.append(self.op("Identity", w))
            elif form == "summed":
                self.aside.append(self.reduce("Sum", w, [draw.integer(0, len(shape) - 1)], draw.integer(0, 1)))
        self.stored.setdefault(shape, []).append(w)
        return w

    def bias(self, n: int) -> str | None:
        """A vector, at times one that is used elsewhere too, or none."""
        if self.draw.chance(4):
            return None
        if (n,) in self.stored and self.draw.chance(3):
            return self.draw.pick(self.stored[(n,)])
        b = self.param(self.normal(n))
        self.stored.setdefault((n,), []).append(b)
        return b

    def width(self, multiple: int = 1) -> int:
        """Number of channels, a multiple of `multiple`."""
        return max(self.draw.pick(self.widths) // multiple, 1) * multiple

    # what several blocks share

    def conv(self, x: str, cout: int, k: int = 1, *, group: int = 1, stride: int = 1, pad: int = -1) -> str:
        _, cin, *space = self.shape(x)
        rank = len(space)
        pad = (k - 1) // 2 if pad < 0 or min(space) < k else pad
        w = self.weight(cout, cin // group, *[k] * rank, fan_in=cin // group * k**rank)
        sizes: dict[str, Any] = {"pads": [pad] * 2 * rank, "strides": [stride] * rank}
        return self.op("Conv", x, w, self.bias(cout), group=group, **sizes)

    def dense(self, x: str, n: int) -> str:
        """A linear layer over the last axis."""
        shape = self.shape(x)
        k = shape[-1]
        form = self.draw.pick(("matmul", "gemm", "transposed", "batched", "einsum"))
        if form == "gemm" and len(shape) == 2:
            trans = self.draw.integer(0, 1)
            w = self.weight(*((n, k) if trans else (k, n)), fan_in=k)
            bias: Operand = self.bias(n)
            if bias and self.draw.chance(4):
                bias = self.draw.pick((self.normal(1, n), self.normal(1), self.normal(1, 1))).astype(np.float32)
            scales: dict[str, Any] = {"alpha": 0.5, "beta": 2.0} if self.draw.chance(4) else {}
            return self.op("Gemm", x, w, bias, transB=trans, **scales)
        if form == "transposed":
            y = self.op("MatMul", x, self.transpose(self.weight(n, k, fan_in=k), 1, 0))
        elif form == "batched" and len(shape) > 2:
            y = self.op("MatMul", x, self.weight(*[1] * (len(shape) - 2), k, n, fan_in=k))
        elif form == "einsum" and self.opset >= 12:
            letters = "..." if self.draw.chance(2) else "abefg"[: len(shape) - 1]
            y = self.op("Einsum", x, self.weight(k, n, fan_in=k), equation=f"{letters}c,cd->{letters}d")
        else:
            y = self.op("MatMul", x, self.weight(k, n, fan_in=k))
        bias = self.bias(n)
        return y if bias is None else self.op("Add", *((bias, y) if self.draw.chance(2) else (y, bias)))

    def act(self, x: str) -> str:
        kind = self.draw.pick(ACTIVATIONS)
        if kind == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        if kind == "gelu":
            erf = self.op("Erf", self.op("Div", x, 1.4142135))
            return self.op("Mul", self.op("Mul", x, 0.5), self.op("Add", erf, 1.0))
        if kind == "Clip":
            return self.op("Clip", x, *self.draw.pick(((0.0, 6.0), (-1.0, None), (None, 2.0))))
        if kind == "prelu":
            shape = self.shape(x)
            slope = self.positive(*self.draw.pick(((1,), shape[-1:], along(shape, 1)))) / 4
            return self.op("PRelu", x, self.param(slope))
        if (kind == "HardSwish" and self.opset < 14) or (kind == "Mish" and self.opset < 18):
            kind = "Relu"
        return self.op(kind, x)

    def like(self, x: str) -> str:
        """Another tensor of x's shape: an older one, or one computed from x or from an older one."""
        shape = self.shape(x)
        older = [t for t in self.pool if t != x and self.shape(t) == shape]
        if older and not self.draw.chance(3):
            return self.draw.pick(older[::-1])
        if self.draw.chance(8) and len(self.inputs) < 3:
            return self.input(shape[1:])
        return self.axis_layer(x, len(shape) - 1, shape[-1]) if self.draw.chance(3) else self.axis_layer(x, 1, shape[1])

    def axis_layer(self, x: str, axis: int, n: int) -> str:
        """A linear layer over one axis that makes it `n` long, and an activation."""
        rank = len(self.shape(x))
        if axis == 1 and rank in (3, 4):
            y = self.conv(x, n, self.draw.pick((1, 3)))
        elif axis == rank - 1:
            y = self.dense(x, n)
        elif axis == rank - 2:
            y = self.op("MatMul", self.weight(n, self.shape(x)[axis], fan_in=self.shape(x)[axis]), x)
        else:
            perm = [k for k in range(rank) if k != axis] + [axis]
            y = self.transpose(self.dense(self.transpose(x, *perm), n), *np.argsort(perm).tolist())
        return self.act(y) if self.draw.chance(2) else y

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The finished model; the first axis of the outputs is the batch."""
        first = "batch" if self.dynamic else self.batch
        shapes = {o: (first, *self.shape(o)[1:]) for o in outputs} | {o: self.shape(o) for o in self.aside}
        infos = [helper.make_tensor_value_info(o, self.types[o].tensor_type.elem_type, d) for o, d in shapes.items()]
        listed = []
        if self.draw.chance(12):  # initializers that are inputs too, as before IR version 4
            listed = [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in self.weights]
        graph = helper.make_graph(self.nodes, "random", [*self.inputs, *listed], infos, self.weights)
        return helper.make_model(graph, opset_imports=self.imports, ir_version=10)

    def fits(self, *shape: int) -> bool:
        return math.prod(shape) <= LARGEST and max(shape) <= LONGEST


WEIGHT_FORMS = tuple(
    """reused reused reused transposed transposed reshaped flattened cast quantized scaled normalised joined split
    sliced identity output summed""".split()
)
ACTIVATIONS = tuple(
    """Relu Sigmoid Tanh silu LeakyRelu HardSwish Clip prelu gelu Elu Softplus Mish Neg Abs HardSigmoid Identity Sin
    Selu""".split()
)


def along(shape: Shape, axis: int) -> Shape:
    """A shape that broadcasts along all axes but one, without leading ones: (2, 3, 4, 4), 1 -> (3, 1, 1)."""
    return (shape[axis], *[1] * (len(shape) - axis - 1))


Block = Callable[[Net, str], str]
BLOCKS: dict[str, list[tuple[range, Block]]] = {}  # by module


def block(low: int, high: int, *, weight: int = 1) -> Callable[[Block], Block]:
    """Register a block for tensors of rank `low` to `high`; where its tensor does not fit, it returns it as it is."""

    def register(f: Block) -> Block:
        BLOCKS.setdefault(f.__module__, []).extend([(range(low, high + 1), f)] * weight)
        return f

    return register
