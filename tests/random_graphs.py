"""Random ONNX graphs that compose what the rules know, for Hypothesis (`models`) and for `tools/fuzz.py` (`build`).

A graph is a chain of blocks. A block takes one tensor, whose first axis is always the batch, appends nodes and returns
another one; which blocks fit depends on the rank alone, so convolutions meet transposed tokens, attention runs over
rows of an image and heads are split out of channel shuffles. All choices are whole numbers from one source (`Draws`),
where the smallest is the simplest: a failing graph shrinks by making its numbers smaller and their list shorter.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from hypothesis import strategies as st
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
            more = {"num_outputs": len(sizes)} if self.opset >= 18 else {}
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
        if style == "minus" and batch and math.prod(target):
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
            scale = self.param(np.asarray(self.positive(*sizes) / 60 / fan_in**0.5))
            zero = self.param(self.rng.integers(-3, 4, self.shape(scale)).astype(np.int8)) if draw.chance(2) else None
            w = self.op("DequantizeLinear", q, scale, zero, axis=axis)
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
            scales = {"alpha": 0.5, "beta": 2.0} if self.draw.chance(4) else {}
            return self.op("Gemm", x, w, bias, transB=trans, **scales)
        if form == "transposed":
            y = self.op("MatMul", x, self.transpose(self.weight(n, k, fan_in=k), 1, 0))
        elif form == "batched" and len(shape) > 2:
            y = self.op("MatMul", x, self.weight(*[1] * (len(shape) - 2), k, n, fan_in=k))
        elif form == "einsum" and self.opset >= 12:
            letters = "abefg"[: len(shape) - 1]
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
            slope = self.positive(*self.draw.pick(((1,), shape[-1:], _along(shape, 1)))) / 4
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


def _along(shape: Shape, axis: int) -> Shape:
    """A shape that broadcasts along all axes but one, without leading ones: (2, 3, 4, 4), 1 -> (3, 1, 1)."""
    return (shape[axis], *[1] * (len(shape) - axis - 1))


Block = Callable[[Net, str], str]
BLOCKS: list[tuple[range, Block]] = []


def block(low: int, high: int, *, weight: int = 1) -> Callable[[Block], Block]:
    """Register a block for tensors of rank `low` to `high`; where its tensor does not fit, it returns it as it is."""

    def register(f: Block) -> Block:
        BLOCKS.extend([(range(low, high + 1), f)] * weight)
        return f

    return register


# convolutional blocks: (N, C, L) and (N, C, H, W)


@block(3, 4, weight=4)
def conv(b: Net, x: str) -> str:
    c = b.shape(x)[1]
    k, stride = b.draw.pick((3, 1)), b.draw.pick((1, 1, 1, 2))
    g = b.draw.pick([1, 1, 1] + [d for d in range(2, c + 1) if c % d == 0])
    y = b.conv(x, b.width(g), k, group=g, stride=stride, pad=b.draw.pick((-1, -1, 0)))
    return b.act(y) if b.draw.chance(2) else y


@block(3, 4, weight=2)
def depthwise(b: Net, x: str) -> str:
    c = b.shape(x)[1]
    times = b.draw.pick((1, 1, 2, 3))
    return b.conv(x, c * times, 3, group=c) if b.fits(*b.shape(x)[1:2], times, *b.shape(x)[2:]) else x


@block(3, 4, weight=2)
def bottleneck(b: Net, x: str) -> str:
    """Inverted residual: expand, depthwise, project, add."""
    c = b.shape(x)[1]
    h = b.act(b.conv(x, b.width()))
    if b.draw.chance(2):
        h = b.act(b.conv(h, b.shape(h)[1], 3, group=b.shape(h)[1]))
    return b.op("Add", x, b.conv(h, c))


@block(3, 4)
def deconv(b: Net, x: str) -> str:
    _, c, *space = b.shape(x)
    if not b.fits(24, *[2 * s for s in space]):
        return x
    g = b.draw.pick([1, 1] + [d for d in range(2, c + 1) if c % d == 0])
    cout = b.width(g)
    w = b.weight(c, cout // g, *[2] * len(space), fan_in=c // g)
    return b.op("ConvTranspose", x, w, b.bias(cout), group=g, strides=[2] * len(space))


@block(2, 4, weight=2)
def batch_norm(b: Net, x: str) -> str:
    c = b.shape(x)[1]
    stats = [b.param(v) for v in (b.positive(c), b.normal(c), b.normal(c), b.positive(c))]
    return b.op("BatchNormalization", x, *stats)


@block(3, 4)
def instance_norm(b: Net, x: str) -> str:
    c = b.shape(x)[1]
    if math.prod(b.shape(x)[2:]) < 4:
        return x
    return b.op("InstanceNormalization", x, b.param(b.positive(c)), b.param(b.normal(c)))


@block(3, 4, weight=2)
def group_norm(b: Net, x: str) -> str:
    """As one operator, or as PyTorch exports it: Reshape, InstanceNormalization, Reshape, Mul, Add."""
    n, c, *space = b.shape(x)
    g = b.draw.pick([d for d in range(1, c + 1) if c % d == 0])
    if math.prod(space) * c // g < 4:
        return x
    scale, bias = b.positive(c), b.normal(c)
    if b.opset >= 21 and not b.draw.chance(3):
        return b.op("GroupNormalization", x, b.param(scale), b.param(bias), num_groups=g, shape=b.shape(x))
    y = b.reshape(x, n, g, c // g * math.prod(space))
    y = b.op("InstanceNormalization", y, b.param(np.ones(g)), b.param(np.zeros(g)))
    y = b.reshape(y, n, c, *space)
    tail = (c, *[1] * len(space))
    return b.op("Add", b.op("Mul", y, b.param(scale.reshape(tail))), b.param(bias.reshape(tail)))


@block(3, 4, weight=2)
def pool(b: Net, x: str) -> str:
    _, _, *space = b.shape(x)
    kind = b.draw.pick(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"))
    if kind.startswith("Global"):
        return b.op(kind, x)
    if min(space) < 2:
        return x
    more = {"count_include_pad": 1, "pads": [1] * 2 * len(space)} if kind == "AveragePool" and b.draw.chance(2) else {}
    return b.op(kind, x, kernel_shape=[2] * len(space), strides=[b.draw.pick((2, 1))] * len(space), **more)


@block(4, 4)
def resize(b: Net, x: str) -> str:
    n, c, h, w = b.shape(x)
    if not b.fits(c, 2 * h, 2 * w):
        return x
    mode = {"mode": b.draw.pick(("nearest", "linear")), "coordinate_transformation_mode": "asymmetric"}
    if b.dynamic or b.draw.chance(2):
        scales = np.array([1, 1, 2, b.draw.pick((2, 1))], np.float32)
        return b.op("Resize", x, np.zeros(0, np.float32) if b.opset < 13 else None, scales, **mode)
    return b.op("Resize", x, np.zeros(0, np.float32) if b.opset < 13 else None,
                np.zeros(0, np.float32) if b.opset < 13 else None, np.array([n, c, 2 * h, w]), **mode)  # fmt: skip


@block(3, 4, weight=2)
def channel_shuffle(b: Net, x: str) -> str:
    n, c, *space = b.shape(x)
    factors = [d for d in range(2, c) if c % d == 0]
    if not factors:
        return x
    g = b.draw.pick(factors)
    y = b.transpose(b.reshape(x, n, g, c // g, *space), 0, 2, 1, *range(3, 3 + len(space)))
    y = b.reshape(y, n, c, *space)
    if b.draw.chance(2):
        h = b.draw.pick([d for d in factors if c % d == 0])
        y = b.conv(y, b.width(h), group=h)
    return y


@block(4, 4, weight=2)
def pixel_shuffle(b: Net, x: str) -> str:
    n, c, h, w = b.shape(x)
    form = b.draw.pick(("DCR", "CRD", "reshape", "space", "unshuffle"))
    if form in ("space", "unshuffle"):
        if h % 2 or w % 2 or 4 * c > LONGEST:
            return x
        if form == "space":
            return b.op("SpaceToDepth", x, blocksize=2)
        y = b.transpose(b.reshape(x, n, c, h // 2, 2, w // 2, 2), 0, 1, 3, 5, 2, 4)
        return b.reshape(y, n, 4 * c, h // 2, w // 2)
    if c % 4 or not b.fits(c // 4, 2 * h, 2 * w):
        return x
    if form == "reshape":
        y = b.transpose(b.reshape(x, n, c // 4, 2, 2, h, w), 0, 1, 4, 2, 5, 3)
        return b.reshape(y, n, c // 4, 2 * h, 2 * w)
    return b.op("DepthToSpace", x, blocksize=2, mode=form)


@block(3, 4, weight=2)
def squeeze_excite(b: Net, x: str) -> str:
    n, c, *space = b.shape(x)
    form = b.draw.pick(("conv", "gemm", "hard", "channels"))
    if form == "channels":  # spatial attention
        parts = [b.reduce(k, x, [1]) for k in b.draw.pick((("Mean", "Max"), ("Mean",), ("Sum", "L2")))]
        y = parts[0] if len(parts) == 1 else b.op("Concat", *parts, axis=1)
        return b.op("Mul", x, b.op("Sigmoid", b.conv(y, 1, 3)))
    s = b.reduce("Mean", x, range(2, 2 + len(space))) if b.draw.chance(2) else b.op("GlobalAveragePool", x)
    if form == "gemm":
        h = b.dense(b.act(b.dense(b.op("Flatten", s, axis=1), b.width())), c)
        h = b.reshape(h, n, c, *[1] * len(space)) if b.draw.chance(2) else b.unsqueeze(h, *range(2, 2 + len(space)))
    else:
        h = b.conv(b.act(b.conv(s, b.width())), c)
    return b.op("Mul", x, b.op("HardSigmoid" if form == "hard" else "Sigmoid", h))


@block(3, 4)
def channels_last(b: Net, x: str) -> str:
    """Through NHWC: a dense layer or a normalisation there, and back."""
    rank = len(b.shape(x))
    y = b.transpose(x, 0, *range(2, rank), 1)
    y = b.draw.pick((dense, layer_norm, constant, ffn))(b, y)
    return b.transpose(y, 0, rank - 1, *range(1, rank - 1)) if b.draw.chance(2) else y


@block(3, 4, weight=2)
def tied(b: Net, x: str) -> str:
    """One convolution used twice or more: on its own output, on another tensor, at another size."""
    _, c, *space = b.shape(x)
    g = b.draw.pick([1, 1] + [d for d in range(2, c + 1) if c % d == 0])
    w, bias = b.weight(c, c // g, *[1] * len(space), fan_in=c // g), b.bias(c)
    y = b.op("Conv", x, w, bias, group=g)
    form = b.draw.pick(("again", "siblings", "pyramid", "two_biases"))
    if form == "again":
        return b.op("Conv", b.act(y), w, bias, group=g)
    if form == "siblings":
        return b.op("Add", y, b.op("Conv", b.act(x), w, bias, group=g))
    if form == "two_biases":
        return b.op("Sub", b.act(y), b.op("Conv", b.act(x), w, b.param(b.normal(c)), group=g))
    z = b.op("Conv", b.op("GlobalAveragePool", x), w, bias, group=g)
    return b.op("Mul", y, b.op("Sigmoid", z))


@block(3, 4, weight=2)
def shuffle_unit(b: Net, x: str) -> str:
    """ShuffleNet: grouped, shuffled, depthwise, grouped, added."""
    n, c, *space = b.shape(x)
    factors = [d for d in range(2, c) if c % d == 0]
    if not factors:
        return x
    g = b.draw.pick(factors)
    h = b.act(b.conv(x, c, group=g))
    h = b.transpose(b.reshape(h, n, g, c // g, *space), 0, 2, 1, *range(3, 3 + len(space)))
    h = b.conv(b.reshape(h, n, c, *space), c, 3, group=c)
    return b.op("Add", x, b.conv(h, c, group=b.draw.pick(factors)))


@block(3, 4)
def res2net(b: Net, x: str) -> str:
    """Parts of the channels through a chain of convolutions, joined and added."""
    c = b.shape(x)[1]
    if c % 4:
        return x
    parts = b.split(x, [c // 4] * 4, 1)
    outs, carry = [parts[0]], parts[1]
    for part in parts[2:]:
        outs.append(b.act(b.conv(carry, c // 4, 3)))
        carry = b.op("Add", part, outs[-1])
    y = b.op("Concat", *outs, b.conv(carry, c // 4), axis=1)
    return b.op("Add", b.conv(y, c), x) if b.draw.chance(2) else y


@block(3, 4)
def option_a(b: Net, x: str) -> str:
    """A shortcut that pads the channels with zeros."""
    _, c, *space = b.shape(x)
    before, after = b.draw.integer(0, 2), b.draw.integer(1, 4)
    pads = np.zeros((2, 2 + len(space)), np.int64)
    pads[:, 1] = before, after
    if b.opset >= 18 and b.draw.chance(2):
        short = b.op("Pad", x, [before, after], None, [b.draw.pick((1, 1 - 2 - len(space)))])
    else:
        short = b.op("Pad", x, pads.ravel())
    return b.op("Add", b.conv(x, before + c + after, b.draw.pick((3, 1))), short)


@block(4, 4)
def focus(b: Net, x: str) -> str:
    """Patch merging: every second row and column, joined along the channels."""
    _, c, h, w = b.shape(x)
    if h % 2 or w % 2 or 4 * c > LONGEST:
        return x
    rows = [b.slice(x, k, INT_MAX, 2, 2) for k in (0, 1)]
    return b.op("Concat", *[b.slice(r, k, INT_MAX, 3, 2) for k in (0, 1) for r in rows], axis=1)


@block(4, 4)
def windows(b: Net, x: str) -> str:
    """Attention or a dense layer inside windows of two by two, as Swin cuts them."""
    n, c, h, w = b.shape(x)
    if h % 2 or w % 2:
        return x
    y = b.transpose(b.reshape(x, n, c, h // 2, 2, w // 2, 2), 0, 2, 4, 3, 5, 1)
    y = b.reshape(y, n * h * w // 4, 4, c, batch=False)
    y = b.draw.pick((attention, ffn, layer_norm))(b, y)
    y = b.reshape(y, n, h // 2, w // 2, 2, 2, c, batch=False)
    return b.reshape(b.transpose(y, 0, 5, 1, 3, 2, 4), n, c, h, w)


@block(3, 4)
def channel_attention(b: Net, x: str) -> str:
    """Attention of channels over channels, in one head or in several."""
    n, c, *space = b.shape(x)
    size = math.prod(space)
    heads = b.draw.pick([d for d in (1, 2, 4) if c % d == 0])
    q, k, v = (b.reshape(b.conv(x, c), n, heads, c // heads, size) for _ in range(3))
    if b.draw.chance(2):
        q, k = (b.op("LpNormalization", t, axis=-1, p=2) for t in (q, k))
    y = b.op("MatMul", b.op("Softmax", b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2)), axis=-1), v)
    return b.conv(b.reshape(y, n, c, *space), c)


@block(3, 4)
def computed_weight(b: Net, x: str) -> str:
    """A convolution whose weight is computed from another tensor."""
    _, c, *space = b.shape(x)
    if b.dynamic or b.batch > 1:
        return x
    o = b.draw.pick((4, 3))
    v = b.dense(b.op("Flatten", b.op("GlobalAveragePool", x), axis=1), o * c)
    return b.op("Conv", x, b.op("Reshape", v, np.array([o, c, *[1] * len(space)]), shape=(o, c, *[1] * len(space))))


@block(3, 5)
def maxout(b: Net, x: str) -> str:
    """An axis in two factors, one of them reduced."""
    n, *rest = b.shape(x)
    k = b.draw.integer(0, len(rest) - 1)
    factors = [f for f in range(2, rest[k]) if rest[k] % f == 0]
    if not factors:
        return x
    f = b.draw.pick(factors)
    y = b.reshape(x, n, *rest[:k], f, rest[k] // f, *rest[k + 1 :])
    return b.reduce(b.draw.pick(("Max", "Sum", "Mean", "L2")), y, [k + b.draw.pick((1, 2))], 0)


@block(4, 4)
def to_tokens(b: Net, x: str) -> str:
    n, c, h, w = b.shape(x)
    return b.transpose(b.reshape(x, n, c, h * w), 0, 2, 1) if h * w <= LONGEST else x


@block(3, 4)
def mixes_channels(b: Net, x: str) -> str:
    kind = b.draw.pick(("LRN", "LpNormalization", "MeanVarianceNormalization"))
    if kind == "LRN":
        return b.op("LRN", x, size=3, alpha=0.1) if len(b.shape(x)) == 4 else x
    if kind == "LpNormalization":
        return b.op(kind, x, axis=b.draw.pick((1, -1)), p=2)
    fits = b.opset < 13 and len(b.shape(x)) == 4 and math.prod(b.shape(x)[2:]) > 3
    return b.op(kind, x, shape=b.shape(x)) if fits else x


# blocks over the last axis, and for tokens (N, L, C)


@block(2, 4, weight=3)
def dense(b: Net, x: str) -> str:
    y = b.dense(x, b.width())
    return b.act(y) if b.draw.chance(2) else y


@block(2, 4, weight=2)
def layer_norm(b: Net, x: str) -> str:
    """LayerNormalization or RMSNormalization, as one operator or as many."""
    c = b.shape(x)[-1]
    if c < 3:
        return x
    form = b.draw.pick(("whole", "decomposed", "rms", "plain"))
    scale = b.param(b.positive(c))
    if form == "whole" and b.opset >= 17:
        return b.op("LayerNormalization", x, scale, b.bias(c), epsilon=1e-2)
    centred = x if form == "rms" else b.op("Sub", x, b.reduce("Mean", x, [-1]))
    variance = b.reduce("Mean", b.op("Pow", centred, 2.0) if b.draw.chance(2) else b.op("Mul", centred, centred), [-1])
    y = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, 1e-2)))
    return y if form == "plain" else b.op("Mul", y, scale)


@block(2, 4, weight=2)
def ffn(b: Net, x: str) -> str:
    """A feed-forward block, plain or gated, with the gate in a layer of its own or in the same one."""
    c, h = b.shape(x)[-1], b.width()
    form = b.draw.pick(("plain", "gated", "split", "slice", "chunk"))
    if form == "plain":
        y = b.act(b.dense(x, h))
    elif form == "gated":
        y = b.op("Mul", b.act(b.dense(x, h)), b.dense(x, h))
    else:
        axis = len(b.shape(x)) - 1
        both = b.dense(x, 2 * h)
        if form == "slice":
            parts = [b.slice(both, 0, h, axis), b.slice(both, h, INT_MAX, axis)]
        elif form == "split":
            parts = b.split(both, [h, h], axis)
        else:
            parts = [b.op("Gather", both, np.arange(i * h, i * h + h), axis=axis) for i in (0, 1)]
        y = b.op("Mul", b.act(parts[0]), parts[1])
    y = b.dense(y, c)
    return b.op("Add", *((x, y) if b.draw.chance(2) else (y, x)))


@block(3, 3, weight=3)
def attention(b: Net, x: str) -> str:
    """Multi-head attention; where query, key and value come from is a choice."""
    n, t, c = b.shape(x)
    h, d = b.draw.pick((2, 3, 4)), b.draw.pick((4, 2, 3))
    inner = h * d
    form = b.draw.pick(("separate", "gather", "split", "grouped", "einsum", "cross", "linear", "single", "split_heads"))
    source = x
    if form == "cross":
        others = [p for p in b.pool if len(b.shape(p)) == 3]
        source = b.draw.pick(others) if others else x
    u = b.shape(source)[1]

    def heads(y: str, length: int, count: int = h) -> str:
        return b.transpose(b.reshape(y, n, length, count, d), 0, 2, 1, 3)

    if form in ("gather", "split"):
        y = b.transpose(b.reshape(b.dense(x, 3 * inner), n, t, 3, h, d), 2, 0, 3, 1, 4)
        if form == "gather":
            q, k, v = (b.op("Gather", y, i, axis=0) for i in range(3))
        else:
            q, k, v = (b.squeeze(part, 0) for part in b.split(y, [1, 1, 1], 0))
    elif form == "split_heads":
        q, k, v = (heads(part, t) for part in b.split(b.dense(x, 3 * inner), [inner] * 3, 2))
    elif form == "grouped":  # one key and value for all heads, or for two
        q = heads(b.dense(x, inner), t)
        kv = h // 2 if h % 2 == 0 else 1
        k, v = (heads(b.dense(x, kv * d), t, kv) for _ in range(2))
        if kv > 1:
            k, v = (b.reshape(b.op("Concat", *[b.unsqueeze(z, 2)] * 2, axis=2), n, h, t, d) for z in (k, v))
    elif form == "single":
        q, k, v = (b.dense(y, inner) for y in (x, source, source))
    else:
        q, k, v = (heads(b.dense(y, inner), m) for y, m in ((x, t), (source, u), (source, u)))
    rank = len(b.shape(q))
    swap = (0, 2, 1) if rank == 3 else (0, 1, 3, 2)
    if form == "linear":
        y = b.op("MatMul", b.op("Softmax", q, axis=-1), b.op("MatMul", b.transpose(k, *swap), v))
    elif form == "einsum" and b.opset >= 12:
        y = b.op("Softmax", b.op("Einsum", q, k, equation="bhqd,bhkd->bhqk"), axis=-1)
        y = b.op("Einsum", y, v, equation=b.draw.pick(("bhqk,bhkd->bhqd", "bhqk,bhkd->bqhd")))
    else:
        scores = b.op("MatMul", q, b.transpose(k, *swap))
        scale = b.draw.pick(("constant", "none", "computed"))
        if scale == "constant":
            scores = b.op("Div", scores, float(math.sqrt(d)))
        elif scale == "computed":
            width = b.op("Cast", b.size(q, rank - 1), to=TensorProto.FLOAT)
            scores = b.op("Div", scores, b.op("Sqrt", width))
        if b.draw.chance(4):
            scores = b.op("Add", scores, b.normal(*b.shape(scores)[-2:]).astype(np.float32))
        y = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    if b.shape(y) == (n, h, t, d) and rank == 4 and not (form == "einsum" and h == t):
        y = b.transpose(y, 0, 2, 1, 3)
    if rank == 4:
        y = b.reshape(y, n, t, inner)
    y = b.dense(y, c)
    return b.op("Add", x, y) if b.draw.chance(2) else y


@block(3, 3, weight=2)
def recurrent(b: Net, x: str) -> str:
    """LSTM, GRU or RNN over the middle axis; all steps or the last state."""
    n, t, c = b.shape(x)
    cell = b.draw.pick(("LSTM", "GRU", "RNN"))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[cell]
    hidden, ways = b.draw.pick((4, 6, 3, 8)), b.draw.pick((1, 2))
    w = b.param(b.normal(ways, gates * hidden, c))
    r = b.param(b.normal(ways, gates * hidden, hidden))
    bias = None if b.draw.chance(3) else b.param(b.normal(ways, 2 * gates * hidden))
    more: dict[str, Any] = {"direction": "bidirectional" if ways == 2 else b.draw.pick(("forward", "reverse"))}
    if cell == "GRU" and b.draw.chance(2):
        more["linear_before_reset"] = 1
    steps = b.transpose(x, 1, 0, 2)
    state = peepholes = None
    if b.draw.chance(3):
        if b.draw.chance(2):
            sizes = b.dims(ways, b.size(x, 0), hidden)
            state = b.op("Expand", b.param(b.normal(ways, 1, hidden)), sizes, shape=(ways, n, hidden))
        else:
            state = b.op("ConstantOfShape", b.dims(ways, b.size(steps, 1), hidden), shape=(ways, n, hidden))
    if cell == "LSTM" and b.draw.chance(4):
        peepholes = b.param(b.normal(ways, 3 * hidden))
    extra = (None, state, state, peepholes) if cell == "LSTM" else (None, state)
    out = b.ops(cell, steps, w, r, bias, *extra, n=2, hidden_size=hidden, **more)
    if b.draw.chance(3):
        return b.reshape(b.transpose(out[1], 1, 0, 2), n, ways * hidden)
    if ways == 1 and b.draw.chance(2):
        return b.transpose(b.squeeze(out[0], 1), 1, 0, 2)
    return b.reshape(b.transpose(out[0], 2, 0, 1, 3), n, t, ways * hidden)


@block(3, 3)
def class_token(b: Net, x: str) -> str:
    """A learned token in front, and at times only this one afterwards."""
    n, t, c = b.shape(x)
    sizes: Operand = b.dims(b.size(x, 0), 1, c)
    if b.draw.chance(3):
        sizes = b.op("Where", b.op("Equal", sizes, [-1, -1, -1]), [1, 1, 1], sizes)
    token = b.op("Expand", b.param(b.normal(1, 1, c)), sizes, shape=(n, 1, c))
    y = b.op("Add", b.op("Concat", token, x, axis=1), b.param(b.normal(1, t + 1, c)))
    y = b.draw.pick((attention, ffn, dense))(b, y)
    return b.op("Gather", y, 0, axis=1) if b.draw.chance(2) else y


@block(3, 3)
def gemm_over_tokens(b: Net, x: str) -> str:
    """(N, L, C) as a matrix (N * L, C), through Gemm and back."""
    n, t, c = b.shape(x)
    y = b.dense(b.reshape(x, n * t, c, batch=False), b.width())
    return b.reshape(y, n, t, b.shape(y)[-1], batch=False)


@block(3, 4)
def mixer(b: Net, x: str) -> str:
    """A layer over some axis, with the length that it had or another."""
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    n = b.draw.pick((shape[axis], b.width()))
    return b.axis_layer(x, axis, n) if b.fits(*shape[1:axis], n, *shape[axis + 1 :]) else x


@block(3, 3)
def products(b: Net, x: str) -> str:
    """Products of activations: Gram matrices, bilinear forms, outer products."""
    _, t, c = b.shape(x)
    form = b.draw.pick(("gram", "einsum", "outer", "mix"))
    if form == "gram":
        return b.op("MatMul", b.op("Mul", x, 0.3), b.transpose(b.like(x), 0, 2, 1))
    if form == "mix":
        return b.op("MatMul", b.op("Softmax", b.axis_layer(x, 2, t), axis=-1), x)
    if b.opset < 12 or c * c > LONGEST * 4:
        return x
    if form == "einsum":
        return b.op("Einsum", b.op("Mul", x, 0.3), b.like(x), equation=b.draw.pick(("ntc,nuc->ntu", "ntc,ntd->ncd")))
    return b.op("Einsum", x, b.weight(c, 3, fan_in=1), equation="ntc,cd->ntcd") if b.fits(t, c, 3) else x


@block(2, 2, weight=2)
def from_vector(b: Net, x: str) -> str:
    """(N, C) through Gemm to an image or to tokens."""
    n = b.shape(x)[0]
    c, h, w = b.draw.pick(((4, 2, 2), (3, 4, 2), (6, 3, 1)))
    y = b.dense(x, c * h * w)
    return b.reshape(y, n, *b.draw.pick(((c, h, w), (c, h * w), (h * w, c))))


@block(2, 2)
def odd_gemm(b: Net, x: str) -> str:
    """Gemm with the weight as its first matrix, or with the activation transposed."""
    c = b.shape(x)[1]
    o = b.width()
    if b.draw.chance(2):
        return b.op("Gemm", b.transpose(x, 1, 0), b.weight(c, o, fan_in=c), b.bias(o), transA=1)
    return b.transpose(b.op("Gemm", b.weight(o, c, fan_in=c), x, transB=1), 1, 0)


@block(2, 4)
def autoencoder(b: Net, x: str) -> str:
    """A layer and its transpose, with the same weight."""
    c, h = b.shape(x)[-1], b.width()
    w = b.weight(c, h, fan_in=c)
    y = b.op("MatMul", b.act(b.op("MatMul", x, w)), b.transpose(w, 1, 0))
    return b.op("Add", x, y) if b.draw.chance(2) else y


@block(3, 4)
def with_vector(b: Net, x: str) -> str:
    """A product with a vector, which takes an axis away."""
    shape = b.shape(x)
    if b.draw.chance(2):
        return b.op("MatMul", x, b.param(b.normal(shape[-1])))
    return b.op("MatMul", b.param(b.normal(shape[-2])), x)


@block(4, 4, weight=2)
def per_head(b: Net, x: str) -> str:
    """A weight of its own for every index of an axis: batched MatMul, or Einsum in several ways."""
    _, h, t, c = b.shape(x)
    o = b.width()
    if not b.fits(h, t, o) or max(h, t) * c * o > 4 * LARGEST:
        return x
    form = b.draw.pick(("matmul", "bhtc,hco->bhto", "bhtc,hco->btho", "bhtc,hco->bto", "bhtc,tco->bho", "bhtc,hc->bht"))
    if form == "matmul" or b.opset < 12:
        return b.op("MatMul", x, b.weight(h, c, o, fan_in=c))
    sizes = {"h": h, "t": t, "c": c, "o": o}
    w = b.weight(*[sizes[label] for label in form[5:].split("-")[0]], fan_in=c)
    return b.op("Einsum", x, w, equation=form)


# blocks for any rank


@block(2, 5, weight=2)
def unary(b: Net, x: str) -> str:
    return b.act(x)


@block(2, 5, weight=2)
def constant(b: Net, x: str) -> str:
    """Arithmetic with a constant of some broadcast shape."""
    shape = b.shape(x)
    many = [d if b.draw.chance(2) else 1 for d in shape[1:]]
    full = b.draw.pick((tuple(many), (), (1, *many), _along(shape, 1), shape[-1:]))
    if b.draw.chance(3):
        while full and full[0] == 1:
            full = full[1:]
    value = b.param(np.asarray(b.positive(*full)))
    kind = b.draw.pick(("Mul", "Add", "Sub", "Div", "Max", "Min", "Where", "Mean"))
    if kind == "Where":
        mask = np.asarray(b.rng.random(full) < 0.5)
        mask.flat[0] = True
        return b.op("Where", b.param(mask), *((x, value) if b.draw.chance(2) else (x, b.op("Neg", x))))
    swap = kind != "Div" and b.draw.chance(3)
    return b.op(kind, *((value, x) if swap else (x, value)))


@block(2, 5, weight=3)
def meet(b: Net, x: str) -> str:
    """A residual: with an older tensor, or with one computed from this one."""
    kind = b.draw.pick(("Add", "Add", "Mul", "Sub", "Max", "Sum", "greater"))
    y = b.like(x)
    if kind == "Mul":
        return b.op("Mul", x, b.op("Sigmoid", y))
    if kind == "Sum":
        return b.op("Sum", x, y, b.like(x))
    if kind == "greater":
        return b.op("Where", b.op("Greater", x, b.op("Add", y, 0.123)), x, y)
    return b.op(kind, *((y, x) if b.draw.chance(2) else (x, y)))


@block(2, 5, weight=3)
def concat(b: Net, x: str) -> str:
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    rest = (*shape[:axis], *shape[axis + 1 :])
    older = [p for p in b.pool if len(b.shape(p)) == len(shape)]
    fitting = [p for p in older if (*b.shape(p)[:axis], *b.shape(p)[axis + 1 :]) == rest]
    parts = [x]
    for _ in range(b.draw.integer(1, 2)):
        form = b.draw.pick(("older", "computed", "itself", "constant"))
        if form == "older" and fitting:
            parts.append(b.draw.pick(fitting[::-1]))
        elif form == "itself":
            parts.append(x)
        elif form == "constant" and not b.dynamic:
            parts.append(b.param(b.normal(*shape)))
        else:
            parts.append(b.axis_layer(x, axis, b.draw.pick((shape[axis], b.width()))))
    if sum(b.shape(p)[axis] for p in parts) > LONGEST:
        return x
    axis -= len(shape) if b.draw.chance(4) else 0
    y = b.op("Concat", *(parts[::-1] if b.draw.chance(2) else parts), axis=axis)
    return y if b.fits(*b.shape(y)[1:]) else x


@block(2, 5, weight=2)
def split(b: Net, x: str) -> str:
    """Cut an axis, change a part, join or combine the parts."""
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    if shape[axis] < 2:
        return x
    if shape[axis] % 2 == 0 and b.draw.chance(2):
        one, two = b.split(x, [shape[axis] // 2] * 2, axis)
        return b.op("Mul", one, b.op("Sigmoid", two)) if b.draw.chance(2) else b.op("Add", one, two)
    at = b.draw.integer(1, shape[axis] - 1)
    parts = b.split(x, [at, shape[axis] - at], axis)
    if b.draw.chance(4):
        return parts[0]
    parts[0] = b.axis_layer(parts[0], axis, b.draw.pick((at, b.width()))) if b.draw.chance(2) else b.act(parts[0])
    y = b.op("Concat", *(parts[::-1] if b.draw.chance(2) else parts), axis=axis)
    return y if b.fits(*b.shape(y)[1:]) else x


@block(2, 5, weight=2)
def cut(b: Net, x: str) -> str:
    """Slice: some range, written with negative or huge bounds, at times with a stride or backwards."""
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    d = shape[axis]
    start = b.draw.integer(0, d - 1)
    end = b.draw.integer(start + 1, d)
    form = b.draw.pick(("plain", "negative", "open", "stride", "backwards", "two", "chunk"))
    if form == "negative":
        return b.slice(x, start - d, end - d if end < d else INT_MAX, axis - len(shape))
    if form == "open":
        return b.slice(x, start, INT_MAX, axis)
    if form == "stride":
        return b.slice(x, start, INT_MAX, axis, 2)
    if form == "chunk" and d % 2 == 0:  # torch.chunk, with the half computed from the shape
        half = b.op("Unsqueeze", b.op("Div", b.size(x, axis), 2), [0]) if b.opset >= 13 else [d // 2]
        part = (*shape[:axis], d // 2, *shape[axis + 1 :])
        one = b.op("Slice", x, [0], half, [axis], shape=part)
        two = b.op("Slice", x, half, [INT_MAX], [axis], shape=part)
        return b.op("Mul", one, b.op("Tanh", two)) if b.draw.chance(2) else two
    if form == "backwards":
        return b.slice(x, -1, -INT_MAX, axis, -1)
    if form == "two" and len(shape) > 2:
        other = 1 + axis % (len(shape) - 1)
        return b.op("Slice", x, [start, 0], [end, shape[other] // 2 + 1], [axis, other])
    return b.slice(x, start, end, axis)


@block(2, 5, weight=2)
def gather(b: Net, x: str) -> str:
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    d = shape[axis]
    form = b.draw.pick(("permutation", "subset", "repeated", "single", "scalar", "table", "negative"))
    if form in ("permutation", "negative"):
        indices = np.array(b.draw.permutation(d)) - (d if form == "negative" else 0)
    elif form == "subset":
        indices = np.array(b.draw.permutation(d)[: b.draw.integer(1, d)])
    elif form == "repeated":
        indices = np.array([b.draw.integer(0, d - 1) for _ in range(b.draw.integer(2, 8))])
    elif form == "single":
        indices = np.array([b.draw.integer(0, d - 1)])
    elif form == "scalar":
        if len(shape) < 3:
            return x
        indices = np.array(b.draw.integer(0, d - 1))
    else:
        if len(shape) > 4:
            return x
        indices = b.rng.integers(0, d, (2, 3))
    y = b.op("Gather", x, indices.astype(np.int64), axis=axis)
    return y if b.fits(*b.shape(y)[1:]) else x


@block(2, 5)
def pad(b: Net, x: str) -> str:
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    before, after = b.draw.integer(0, 2), b.draw.integer(0, 3)
    mode = b.draw.pick(("constant", "constant", "reflect", "edge"))
    if not b.fits(*shape[1:axis], shape[axis] + 5, *shape[axis + 1 :]) or (mode == "reflect" and shape[axis] <= 3):
        return x
    value = b.draw.pick((None, 0.7)) if mode == "constant" else None
    if mode == "constant" and shape[axis] > 2 and b.draw.chance(4):
        before, after = -1, b.draw.integer(-1, 1)
    if b.opset >= 18 and b.draw.chance(2):
        return b.op("Pad", x, [before, after], value, [axis], mode=mode)
    pads = np.zeros((2, len(shape)), np.int64)
    pads[:, axis] = before, after
    return b.op("Pad", x, pads.ravel(), value, mode=mode)


@block(2, 5, weight=2)
def transpose(b: Net, x: str) -> str:
    return b.transpose(x, 0, *[1 + k for k in b.draw.permutation(len(b.shape(x)) - 1)[::-1]])


@block(2, 5, weight=3)
def refactor(b: Net, x: str) -> str:
    """Split an axis in two, merge neighbours, or add and drop axes of size one."""
    n, *rest = b.shape(x)
    form = b.draw.pick(("merge", "split", "flatten", "unsqueeze", "squeeze", "regroup"))
    if form == "flatten":
        flat = math.prod(rest)
        if flat > 4 * LONGEST:
            return x
        return b.op("Flatten", x, axis=1) if b.draw.chance(2) else b.reshape(x, n, flat)
    if form == "unsqueeze":
        return b.unsqueeze(x, b.draw.integer(1, len(rest) + 1)) if len(rest) < 4 else x
    if form == "squeeze":
        ones = [k + 1 for k, d in enumerate(rest) if d == 1]
        return b.squeeze(x, b.draw.pick(ones)) if ones and len(rest) > 1 else x
    k = b.draw.integer(0, len(rest) - 1)
    if form == "split":
        factors = [f for f in range(2, rest[k]) if rest[k] % f == 0]
        if not factors or len(rest) > 3:
            return x
        f = b.draw.pick(factors)
        return b.reshape(x, n, *rest[:k], f, rest[k] // f, *rest[k + 1 :])
    if len(rest) < 2:
        return x
    k = min(k, len(rest) - 2)
    product = rest[k] * rest[k + 1]
    if form == "merge":
        return b.reshape(x, n, *rest[:k], product, *rest[k + 2 :]) if product <= LONGEST else x
    f = b.draw.pick([f for f in range(1, product + 1) if product % f == 0])
    return b.reshape(x, n, *rest[:k], f, product // f, *rest[k + 2 :]) if max(f, product // f) <= LONGEST else x


@block(2, 5, weight=2)
def reduce(b: Net, x: str) -> str:
    """Reduce some axes, with or without keeping them, and combine with what was reduced."""
    shape = b.shape(x)
    axes = sorted({b.draw.integer(1, len(shape) - 1) for _ in range(b.draw.integer(1, 2))})
    kind = b.draw.pick(("Mean", "Sum", "Max", "L2", "Min", "L1", "SumSquare", "LogSumExp"))
    keep = b.draw.chance(2)
    if not keep and len(shape) - len(axes) < 2:
        axes = axes[:1]
        keep = len(shape) < 3
    if b.draw.chance(4):
        axes = [a - len(shape) for a in axes]
    y = b.reduce(kind, x, axes, int(keep))
    if keep and b.draw.chance(2):
        form = b.draw.pick(("Sub", "Mul", "Div", "Add"))
        if form == "Div":
            return b.op("Div", x, b.op("Add", b.op("Abs", y), 1.0))
        return b.op("Mul", x, b.op("Sigmoid", y)) if form == "Mul" else b.op(form, x, y)
    return y


@block(2, 5)
def softmax(b: Net, x: str) -> str:
    axis = b.draw.pick((-1, 1, len(b.shape(x)) - 1))
    kind = b.draw.pick(("Softmax", "LogSoftmax", "CumSum", "TopK", "Trilu"))
    if kind == "CumSum":
        return b.op("CumSum", b.op("Mul", x, 0.3), axis)
    if kind == "TopK":
        k = (b.shape(x)[axis] + 1) // 2
        return b.ops("TopK", x, [k], n=2, axis=axis)[0]
    if kind == "Trilu" and b.opset >= 14:
        return b.op("Trilu", x)
    return b.op("Softmax" if kind == "Trilu" else kind, x, axis=axis)


@block(2, 5)
def repeat(b: Net, x: str) -> str:
    """Tile and Expand, by constants or by the shape of a tensor."""
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    form = b.draw.pick(("tile", "expand", "fill", "expand_like", "gate", "filled", "tile_one"))
    if form == "tile" and b.fits(*shape[1:], 2) and 2 * shape[axis] <= LONGEST:
        repeats = np.ones(len(shape), np.int64)
        repeats[axis] = 2
        return b.op("Tile", x, repeats)
    if form == "fill":
        ones = b.op("ConstantOfShape", b.op("Shape", x), shape=shape,
                    value=helper.make_tensor("value", TensorProto.FLOAT, [1], [0.5]))  # fmt: skip
        return b.op("Add", x, ones)
    if form == "gate":  # what was reduced, expanded again, to a constant shape or to that of x
        y = b.reduce("Mean", x, [axis])
        sizes = b.op("Shape", x) if b.draw.chance(2) else b.const([1, *shape[1:]])
        return b.op("Mul", x, b.op("Sigmoid", b.op("Expand", y, sizes, shape=shape)))
    if form == "tile_one":
        repeats = np.ones(len(shape), np.int64)
        repeats[axis] = shape[axis]
        return b.op("Add", x, b.op("Tile", b.reduce("Sum", b.op("Mul", x, 0.3), [axis]), repeats))
    if form == "filled":
        ones = [1] * len(shape)
        ones[axis] = shape[axis]
        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.5])
        return b.op("Mul", x, b.op("ConstantOfShape", ones, value=value))
    if form == "expand_like":
        value = b.param(b.normal(*_along(shape, axis)))
        return b.op("Mul", x, b.op("Expand", value, b.op("Shape", x), shape=shape))
    if form == "expand" and shape[axis] == 1 and b.fits(*shape[1:], 3):
        target = np.ones(len(shape), np.int64)
        target[axis] = 3
        return b.op("Expand", x, target)
    return x


@block(2, 4)
def logic(b: Net, x: str) -> str:
    """Comparisons and booleans that choose between tensors."""
    low, high = b.op("Greater", x, -0.217), b.op("Less", b.like(x), 1.317)
    mask = b.op("Not", b.op(b.draw.pick(("And", "Or", "Xor")), low, high))
    return b.op("Where", mask, *((x, b.op("Neg", x)) if b.draw.chance(2) else (0.25, x)))


@block(2, 4)
def addressed(b: Net, x: str) -> str:
    """Operators that pick elements by index: they pin what they touch."""
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    form = b.draw.pick(("GatherElements", "OneHot", "ScatterND"))
    if form == "GatherElements" and not b.dynamic:
        return b.op(form, x, b.rng.integers(0, shape[axis], shape), axis=axis)
    if form == "ScatterND" and not b.dynamic:
        return b.op(form, x, np.zeros((1, 1), np.int64), np.ones((1, *shape[1:]), np.float32))
    if form == "OneHot" and len(shape) < 4:
        return b.op("OneHot", b.op("ArgMax", x, axis=axis, keepdims=0), 4, np.array([0, 1], np.float32), axis=1)
    return x


@block(2, 4)
def branches(b: Net, x: str) -> str:
    """If, whose branches capture the tensor and hold a layer of their own."""
    shape = b.shape(x)
    condition = b.op("Greater", b.op("ReduceMax", x, keepdims=0), 0.5)
    bodies = []
    for _ in range(2):
        around = b.nodes, b.stored, b.aside, b.pool
        b.nodes, b.stored, b.aside = [], {}, []
        y = b.axis_layer(b.axis_layer(x, 1, b.width()), 1, shape[1])
        info = helper.make_tensor_value_info(y, TensorProto.FLOAT, [None] * len(shape))
        bodies.append(helper.make_graph(b.nodes, b.fresh("body"), [], [info]))
        b.nodes, b.stored, b.aside, b.pool = around
    return b.op("If", condition, shape=shape, then_branch=bodies[0], else_branch=bodies[1])


@block(2, 4)
def second_input(b: Net, x: str) -> str:
    """Another input: a vector that scales the channels, or more channels."""
    _, c, *rest = b.shape(x)
    if len(b.inputs) > 2:
        return x
    if b.draw.chance(2):
        v = b.dense(b.input((3,)), c)
        return b.op("Mul", x, b.unsqueeze(v, *range(2, 2 + len(rest))) if rest else v)
    return b.op("Concat", x, b.input((2, *rest)), axis=1) if c + 2 <= LONGEST else x


@block(2, 5)
def same(b: Net, x: str) -> str:
    """Operators that change nothing: Identity, Dropout, Cast, double negation."""
    form = b.draw.pick(("Identity", "Dropout", "Cast", "double"))
    if form == "double":
        y = b.op("Relu" if b.opset >= 14 else "Neg", b.op("Cast", x, to=TensorProto.DOUBLE))
        return b.op("Cast", y, to=TensorProto.FLOAT)
    return b.op("Cast", x, to=TensorProto.FLOAT) if form == "Cast" else b.op(form, x)


@block(2, 5)
def by_size(b: Net, x: str) -> str:
    """A mean written as a sum over a size that is read from the shape."""
    axis = b.draw.integer(1, len(b.shape(x)) - 1)
    size = b.op("Cast", b.size(x, axis), to=TensorProto.FLOAT)
    if b.draw.chance(2):
        return b.op("Div", x, b.op("Sqrt", size))
    return b.op("Sub", x, b.op("Div", b.reduce("Sum", x, [axis]), size))


LAYOUT = [  # blocks that move indices about
    refactor, transpose, channel_shuffle, pixel_shuffle, split, cut, gather, concat, meet, maxout, mixer, pad, repeat,
]  # fmt: skip


# whole graphs


def start(b: Net) -> str:
    """An input and a first layer on it."""
    form = b.draw.pick(("image", "image", "tokens", "image", "vector", "signal", "ids", "tokens"))
    if form == "image":
        side = b.draw.pick((4, 6, 3))
        return b.conv(b.input((b.draw.pick((3, 2, 1)), side, side)), b.width(), 3)
    if form == "signal":
        return b.conv(b.input((3, b.draw.pick((6, 5)))), b.width(), 3)
    if form == "vector":
        return b.dense(b.input((5,)), b.width())
    if form == "tokens":
        return b.dense(b.input((b.draw.pick((4, 3, 6)), 5)), b.width())
    table = b.param(b.normal(7, b.width(), scale=1.0))
    return b.op("Gather", table, b.input((4,), TensorProto.INT64), axis=0)


def head(b: Net, x: str) -> str:
    """What turns the last tensor into an output; most forms leave its axes free."""
    rank = len(b.shape(x))
    form = b.draw.pick(("layer", "flatten", "pool", "reduce", "layer", "flatten", "raw"))
    if form == "raw":
        return x
    if form == "flatten" and math.prod(b.shape(x)[1:]) <= 4 * LONGEST:
        return b.dense(b.op("Flatten", x, axis=1), 3)
    if form == "pool" and rank in (3, 4):
        return b.dense(b.op("Flatten", b.op("GlobalAveragePool", x), axis=1), 3)
    if form == "reduce" and rank > 2:
        y = b.reduce(b.draw.pick(("Mean", "Sum", "L2")), x, [b.draw.integer(1, rank - 1)], 0)
        return b.dense(y, 3) if b.draw.chance(2) else y
    return b.axis_layer(x, b.draw.pick((1, rank - 1)), 3)


def build(draw: Draws) -> onnx.ModelProto:
    """A model from the choices of `draw`."""
    b = Net(draw)
    b.pool.append(start(b))
    blocks = [(ranks, f) for ranks, f in BLOCKS if f in LAYOUT] if draw.chance(4) else BLOCKS
    for _ in range(draw.integer(1, 10)):
        x = draw.pick(b.pool) if draw.chance(6) else b.pool[-1]
        rank = len(b.shape(x))
        y = draw.pick([f for ranks, f in blocks if rank in ranks])(b, x)
        if y != x:
            b.pool.append(y)
            if draw.chance(3):
                axis = draw.pick((len(b.shape(y)) - 1, 1))
                b.pool.append(b.axis_layer(y, axis, draw.pick((b.shape(y)[axis], b.width()))))
    outputs = dict.fromkeys([head(b, b.pool[-1])])
    if draw.chance(3):
        x = draw.pick(b.pool)
        outputs[x if draw.chance(4) else head(b, x)] = None
    if draw.chance(10):
        outputs[b.op("ArgMax", b.pool[-1], axis=1)] = None
    model = b.model(*outputs)
    form = draw.pick(("plain",) * 6 + ("described", "basic", "extended"))
    if form == "described":  # with the types of inner tensors stored, as many exporters do
        return onnx.shape_inference.infer_shapes(model)
    return model if form == "plain" else optimised(model, form)


def optimised(model: onnx.ModelProto, level: str) -> onnx.ModelProto:
    """What onnxruntime saves after its graph optimisations: constants folded, operators fused."""
    level_of = ort.GraphOptimizationLevel
    levels = {"basic": level_of.ORT_ENABLE_BASIC, "extended": level_of.ORT_ENABLE_EXTENDED}
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = levels[level]
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # its fusion of quantized weights that are shared fails
            return model
        return onnx.load(options.optimized_model_filepath)


def from_seed(seed: int) -> onnx.ModelProto:
    """The model that `tools/fuzz.py` draws from this seed."""
    return build(Draws(random.Random(seed).randint))


def simplest(opset: int = 17) -> Net:
    """A net whose every choice is the first, to write a graph down by hand."""
    b = Net(Draws(lambda low, high: low))
    b.opset, b.imports = opset, [helper.make_opsetid("", opset)]
    return b


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """Any model that `build` can make."""
    return build(Draws(lambda low, high: draw(st.integers(low, high))))
