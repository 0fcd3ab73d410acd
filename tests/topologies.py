"""Small ONNX models, one per topology that a structural pruner has to survive.

`TOPOLOGIES` maps a name to a builder without arguments. Every model passes the checker's full check and runs in
onnxruntime on `random_feeds(model)`. Those of `UNRUNNABLE` only pass the check: onnxruntime has no kernel for them.
Those of `UNCHECKED` only run: the full check refuses them or their folded form, although such files exist.
`PRUNES[name]` says whether some group of plain channels (filters, FFN neurons, recurrent hidden units; not attention
heads, not the width of a residual stream behind a normalisation) is removable in that model.

The graphs mimic what exporters write: PyTorch's Shape - Gather - Unsqueeze - Concat - Reshape with a dynamic batch,
Constant nodes for small constants and initializers for weights; tf2onnx's NHWC with Transposes. `folded(model)` gives
the second form in which such models circulate: constants folded, BatchNormalization fused.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
Operand = npt.ArrayLike | None  # a tensor's name, a constant, or an omitted input
Dim = int | str  # a size; in `Builder.reshape` also the name of a scalar tensor
BuildFn = TypeVar("BuildFn", bound=Callable[..., onnx.ModelProto])

TOPOLOGIES: dict[str, Callable[[], onnx.ModelProto]] = {}
UNRUNNABLE: dict[str, Callable[[], onnx.ModelProto]] = {}
UNCHECKED: dict[str, Callable[[], onnx.ModelProto]] = {}
PRUNES: dict[str, bool] = {}

INT_MAX = 2**63 - 1
MICROSOFT = "com.microsoft"


def topology(
    name: str = "", *, prunes: bool = True, into: dict[str, Callable[[], onnx.ModelProto]] = TOPOLOGIES, **fixed: Any
) -> Callable[[BuildFn], BuildFn]:
    """Register a builder under its own name, or under `name` with the keyword arguments `fixed`."""

    def register(build: BuildFn) -> BuildFn:
        key = name or build.__name__
        assert key not in PRUNES, f"topology {key!r} is registered twice"
        into[key] = partial(build, **fixed)
        PRUNES[key] = prunes
        return build

    return register


class Builder:
    """One graph under construction: every method appends nodes and returns the name of the tensor it made.

    Operands are tensor names; anything else becomes a Constant node, as in PyTorch's exports. `weights` chooses how
    parameters are stored: as initializers, as Constant nodes, or as initializers that are also graph inputs.
    """

    def __init__(
        self,
        opset: int = 17,
        *,
        dtype: npt.DTypeLike = np.float32,
        seed: int = 0,
        weights: Literal["initializer", "constant", "input"] = "initializer",
        outer: Builder | None = None,
    ) -> None:
        self.opset, self.dtype, self.weights, self.outer = opset, np.dtype(dtype), weights, outer
        self.rng: np.random.Generator = outer.rng if outer else np.random.default_rng(seed)
        self.counts: dict[str, int] = outer.counts if outer else {}
        self.domains: dict[str, int] = outer.domains if outer else {"": opset}
        self.sizes: dict[str, Dim] = outer.sizes if outer else {}
        self.functions: list[onnx.FunctionProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.declared: dict[str, onnx.ValueInfoProto] = {}
        self._inferred: dict[str, onnx.ValueInfoProto] = {}

    # Tensors and their shapes

    def fresh(self, stem: str) -> str:
        """A name that no other tensor or node has, in this graph or in the graphs around it."""
        self.counts[stem] = self.counts.get(stem, 0) + 1
        return f"{stem}_{self.counts[stem]}"

    def input(self, name: str, shape: Sequence[Dim | None], dtype: npt.DTypeLike | None = None) -> str:
        self.inputs.append(_value_info(name, self.dtype if dtype is None else dtype, shape))
        return name

    def declare(self, name: str, shape: Sequence[Dim | None], dtype: npt.DTypeLike | None = None) -> str:
        """State the type of a tensor that shape inference cannot know."""
        self.declared[name] = _value_info(name, self.dtype if dtype is None else dtype, shape)
        return name

    def info(self, name: str) -> onnx.ValueInfoProto:
        if name not in self._inferred:
            self._inferred = self._infer()
        if name in self._inferred:
            return self._inferred[name]
        assert self.outer, f"no type is known for tensor {name!r}: use declare()"
        return self.outer.info(name)

    def shape(self, name: str) -> list[Dim]:
        return [d.dim_param or d.dim_value for d in self.info(name).type.tensor_type.shape.dim]

    def channels(self, name: str, axis: int = 1) -> int:
        size = self.shape(name)[axis]
        assert isinstance(size, int) and size > 0, f"axis {axis} of {name!r} has no known size: {self.shape(name)}"
        return size

    def _infer(self) -> dict[str, onnx.ValueInfoProto]:
        constants = [_value_info(t.name, _np_dtype(t.data_type), t.dims) for t in self.initializers]
        known = {v.name: v for v in [*self.inputs, *constants, *self.declared.values()]}
        made = {name for node in self.nodes for name in node.output}
        captured = {name for node in self.nodes for name in node.input if name and name not in made | known.keys()}
        known |= {name: self.outer.info(name) for name in sorted(captured)} if self.outer else {}
        inputs = [v for v in known.values() if v.name not in made and v not in constants]
        graph = helper.make_graph(
            self.nodes, "infer", inputs, [], self.initializers, value_info=list(self.declared.values())
        )
        inferred = onnx.shape_inference.infer_shapes(self._wrap(graph, ir_version=10), data_prop=True)
        for value in inferred.graph.value_info:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param.startswith("unk__"):
                    dim.Clear()
        return {v.name: v for v in inferred.graph.value_info} | known

    # Constants and parameters

    def const(self, value: npt.ArrayLike) -> str:
        """A Constant node; Python floats take the model's dtype, integers int64."""
        array = np.asarray(value)
        if self.opset < 9 and array.dtype.kind in "ib" and self.weights != "constant":
            return self.param(array, "constant")  # Constant held floats alone
        if not isinstance(value, np.ndarray | np.generic):
            array = array.astype(self.dtype if array.dtype.kind == "f" else array.dtype)
        name = self.fresh("Constant_output")
        self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name)))
        return name

    def param(self, array: Array, stem: str = "param") -> str:
        """A stored weight; floats take the model's dtype."""
        array = array.astype(self.dtype) if array.dtype == np.float64 else array
        if self.weights == "constant":
            return self.const(array)
        name = self.fresh(stem)
        self.initializers.append(numpy_helper.from_array(array, name))
        if self.weights == "input":
            self.inputs.append(_value_info(name, array.dtype, array.shape))
        return name

    def he(self, *shape: int, fan_in: int = 0) -> Array:
        """Normal random weights of variance 2 / fan_in; fan_in is by default that of an `(out, in, ...)` weight."""
        return self.rng.normal(0.0, math.sqrt(2.0 / (fan_in or math.prod(shape[1:]))), shape)

    def normal(self, *shape: int, scale: float = 0.1) -> Array:
        return self.rng.normal(0.0, scale, shape)

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        return self.rng.uniform(low, high, shape)

    # Nodes

    def ops(self, kind: str, *operands: Operand, n: int, domain: str = "", **attributes: Any) -> list[str]:
        """Append one node with `n` outputs; attributes that are None are left out."""
        inputs = ["" if x is None else x if isinstance(x, str) else self.const(x) for x in operands]
        while inputs and not inputs[-1]:
            inputs.pop()
        self.domains.setdefault(domain, 1)
        name = self.fresh(kind)
        outputs = [f"{name}_output_{i}" for i in range(n)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs

    def op(self, kind: str, *operands: Operand, domain: str = "", **attributes: Any) -> str:
        return self.ops(kind, *operands, n=1, domain=domain, **attributes)[0]

    def conv(
        self,
        x: str,
        cout: int,
        k: int = 3,
        *,
        group: int = 1,
        stride: int = 1,
        pad: int | None = None,
        dilation: int = 1,
        weight: str = "",
        bias: str | bool = True,
        **attributes: Any,
    ) -> str:
        """Convolution of any rank; padding keeps the spatial size at stride 1 unless `pad` or `auto_pad` is given."""
        rank = len(self.shape(x)) - 2
        weight = weight or self.param(self.he(cout, self.channels(x) // group, *[k] * rank), "conv.weight")
        bias = self.param(self.normal(cout), "conv.bias") if bias is True else bias
        if "auto_pad" not in attributes:
            attributes["pads"] = [dilation * (k - 1) // 2 if pad is None else pad] * (2 * rank)
        sizes: dict[str, Any] = {"kernel_shape": [k] * rank, "strides": [stride] * rank, "dilations": [dilation] * rank}
        return self.op("Conv", x, weight, bias or None, group=group, **sizes, **attributes)

    def deconv(self, x: str, cout: int, k: int = 2, *, stride: int = 2, group: int = 1, **attributes: Any) -> str:
        cin = self.channels(x)
        fan_in = cin * k * k // group // stride**2
        weight = self.param(self.he(cin, cout // group, k, k, fan_in=fan_in), "deconv.weight")
        bias = self.param(self.normal(cout), "deconv.bias")
        sizes: dict[str, Any] = {"kernel_shape": [k, k], "strides": [stride, stride]}
        return self.op("ConvTranspose", x, weight, bias, group=group, **sizes, **attributes)

    def bn(self, x: str) -> str:
        c = self.channels(x)
        scale, var = self.uniform(0.5, 1.5, c), self.uniform(0.5, 1.5, c)
        bias, mean = self.normal(c, scale=0.2), self.normal(c, scale=0.3)
        stats = [self.param(v, f"bn.{s}") for s, v in zip("wbmv", (scale, bias, mean, var), strict=True)]
        return self.op("BatchNormalization", x, *stats, epsilon=1e-5)

    def linear(self, x: str, n: int, *, trans_b: int = 1, bias: bool = True, **attributes: Any) -> str:
        """A Gemm, as PyTorch exports nn.Linear on a matrix."""
        k = self.channels(x, 0 if attributes.get("transA") else 1)
        w = self.he(n, k)
        weight = self.param(w if trans_b else w.T, "fc.weight")
        return self.op("Gemm", x, weight, self.vec(n) if bias else None, transB=trans_b, **attributes)

    def dense(self, x: str, n: int, *, bias: bool = True) -> str:
        """A MatMul and an Add, as PyTorch exports nn.Linear on a tensor of rank three or more."""
        k = self.channels(x, -1)
        y = self.op("MatMul", x, self.param(self.he(k, n, fan_in=k), "linear.weight"))
        return self.add(self.vec(n), y) if bias else y

    def vec(self, *shape: int, scale: float = 0.1) -> str:
        return self.param(self.normal(*shape, scale=scale), "bias")

    def add(self, x: Operand, y: Operand) -> str:
        return self.op("Add", x, y)

    def mul(self, x: Operand, y: Operand) -> str:
        return self.op("Mul", x, y)

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def sigmoid(self, x: str) -> str:
        return self.op("Sigmoid", x)

    def silu(self, x: str) -> str:
        return self.mul(x, self.sigmoid(x))

    def gelu(self, x: str) -> str:
        """GELU by Erf, as PyTorch exported it before opset 20."""
        erf = self.op("Erf", self.op("Div", x, math.sqrt(2.0)))
        return self.mul(self.mul(x, self.add(erf, 1.0)), 0.5)

    def softmax(self, x: str, axis: int = -1) -> str:
        return self.op("Softmax", x, axis=axis)

    def concat(self, *xs: str, axis: int = 1) -> str:
        return self.op("Concat", *xs, axis=axis)

    def transpose(self, x: str, *perm: int) -> str:
        return self.op("Transpose", x, perm=perm)

    def matmul(self, x: str, y: str) -> str:
        return self.op("MatMul", x, y)

    def _axes(self, kind: str, x: str, axes: Sequence[int], since: int, **attributes: Any) -> str:
        """`axes` is an attribute in older opsets and an input from opset `since` on."""
        if self.opset < since:
            return self.op(kind, x, axes=axes, **attributes)
        return self.op(kind, x, list(axes), **attributes)

    def squeeze(self, x: str, *axes: int) -> str:
        return self._axes("Squeeze", x, axes, 13)

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self._axes("Unsqueeze", x, axes, 13)

    def reduce(self, kind: str, x: str, *axes: int, keepdims: int = 1) -> str:
        return self._axes(f"Reduce{kind}", x, axes, 13 if kind == "Sum" else 18, keepdims=keepdims)

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        if self.opset < 10:
            return self.op("Slice", x, starts=[start], ends=[end], axes=[axis])
        return self.op("Slice", x, [start], [end], [axis], [step])

    def split(self, x: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
        if self.opset < 13:
            return self.ops("Split", x, n=len(sizes), split=sizes, axis=axis)
        return self.ops("Split", x, list(sizes), n=len(sizes), axis=axis)

    def size(self, x: str, axis: int) -> str:
        """The scalar `x.size(axis)`, as PyTorch exports it."""
        name = self.op("Gather", self.op("Shape", x), axis, axis=0)
        self.sizes[name] = self.shape(x)[axis]
        return name

    def dims(self, *sizes: Dim) -> str:
        """A shape vector from constants and scalar tensors: Unsqueeze each, then Concat."""
        if all(isinstance(d, int) for d in sizes):
            return self.const(list(sizes))
        return self.concat(*[self.const([d]) if isinstance(d, int) else self.unsqueeze(d, 0) for d in sizes], axis=0)

    def reshape(self, x: str, *sizes: Dim, **attributes: Any) -> str:
        """Reshape to constants (0 and -1 included) and scalar tensors, as x.view(batch, -1, 4) in PyTorch."""
        y = self.op("Reshape", x, self.dims(*sizes), **attributes)
        return self.declare(y, [d or None for d in self._reshaped(self.shape(x), sizes)])

    def _reshaped(self, old: Sequence[Dim], sizes: Sequence[Dim]) -> list[Dim]:
        """The new shape; onnx's inference loses the symbolic sizes on the way through Shape and Gather."""
        new = [self.sizes.get(d, "") if isinstance(d, str) else old[i] if d == 0 else d for i, d in enumerate(sizes)]
        if -1 not in new:
            return new
        rest: Dim = ""
        symbols = [d for d in old if isinstance(d, str)]
        taken = [d for d in new if isinstance(d, str)]
        if "" not in symbols + taken and set(taken) <= set(symbols):
            free = [d for d in symbols if d not in taken]
            ints = math.prod(d for d in old if isinstance(d, int))
            factor = ints // math.prod(d for d in new if isinstance(d, int) and d > 0)
            rest = factor if not free else free[0] if factor == 1 and len(free) == 1 else ""
        return [rest if d == -1 else d for d in new]

    def gap(self, x: str) -> str:
        return self.op("GlobalAveragePool", x)

    def flatten(self, x: str) -> str:
        return self.op("Flatten", x, axis=1)

    def head(self, x: str, classes: int = 10) -> str:
        """Global average pool, flatten, Gemm."""
        return self.linear(self.flatten(self.gap(x)), classes)

    def layernorm(self, x: str) -> str:
        c = self.channels(x, -1)
        gamma, beta = self.param(self.uniform(0.5, 1.5, c), "ln.weight"), self.vec(c)
        return self.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=1e-5)

    def layernorm_decomposed(self, x: str) -> str:
        """PyTorch's LayerNorm before opset 17: ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add."""
        centred = self.op("Sub", x, self.reduce("Mean", x, -1))
        variance = self.reduce("Mean", self.op("Pow", centred, 2.0), -1)
        normal = self.op("Div", centred, self.op("Sqrt", self.add(variance, 1e-5)))
        c = self.channels(x, -1)
        return self.add(self.mul(normal, self.param(self.uniform(0.5, 1.5, c), "ln.weight")), self.vec(c))

    def rmsnorm(self, x: str) -> str:
        """Llama's RMSNorm: x * rsqrt(mean(x^2) + eps) * weight."""
        mean = self.reduce("Mean", self.op("Pow", x, 2.0), -1)
        inverse = self.op("Div", 1.0, self.op("Sqrt", self.add(mean, 1e-6)))
        return self.mul(self.param(self.uniform(0.5, 1.5, self.channels(x, -1)), "rms.weight"), self.mul(x, inverse))

    def heads(self, x: str, heads: int, *, perm: Sequence[int] = (0, 2, 1, 3)) -> str:
        """(batch, time, heads * d) to (batch, heads, time, d), sizes read from Shape."""
        d = self.channels(x, -1) // heads
        return self.transpose(self.reshape(x, self.size(x, 0), self.size(x, 1), heads, d), *perm)

    def unheads(self, x: str, width: int) -> str:
        """(batch, heads, time, d) back to (batch, time, heads * d)."""
        y = self.transpose(x, 0, 2, 1, 3)
        return self.reshape(y, self.size(y, 0), self.size(y, 1), width)

    def attend(self, q: str, k: str, v: str, *, mask: Operand = None) -> str:
        """Softmax(q k^T / sqrt(d)) v over (batch, heads, time, d)."""
        scores = self.op("Div", self.matmul(q, self.transpose(k, 0, 1, 3, 2)), math.sqrt(self.channels(q, -1)))
        scores = scores if mask is None else self.add(scores, mask)
        return self.matmul(self.softmax(scores), v)

    def attention(self, x: str, heads: int, *, context: str = "") -> str:
        """Multi-head attention with separate q, k and v; cross attention when `context` is given."""
        width, source = self.channels(x, -1), context or x
        q, k, v = (self.heads(self.dense(t, width), heads) for t in (x, source, source))
        return self.dense(self.unheads(self.attend(q, k, v), width), width)

    def ffn(self, x: str, hidden: int) -> str:
        return self.dense(self.gelu(self.dense(x, hidden)), self.channels(x, -1))

    # Finished graphs

    def child(self) -> Builder:
        """A builder for a body of this graph, which may use this graph's tensors."""
        return Builder(self.opset, dtype=self.dtype, weights=self.weights, outer=self)

    def graph(self, name: str, *outputs: str) -> onnx.GraphProto:
        return helper.make_graph(self.nodes, name, self.inputs, [self.info(o) for o in outputs], self.initializers)

    def model(self, *outputs: str, value_info: bool = False) -> onnx.ModelProto:
        """The model; `value_info` stores the inferred types of its inner tensors too, as many exporters do."""
        graph = self.graph("main_graph", *outputs)
        if value_info:
            inferred = self._infer()
            graph.value_info.extend(inferred[o] for node in self.nodes for o in node.output if o not in outputs)
        return self._wrap(graph)

    def _wrap(self, graph: onnx.GraphProto, ir_version: int | None = None) -> onnx.ModelProto:
        imports = [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        oldest = helper.find_min_ir_version_for(imports, ignore_unknown=True)
        return helper.make_model(
            graph,
            opset_imports=imports,
            functions=self.functions,
            ir_version=ir_version or max(oldest, 4 if self.weights == "initializer" else 3),
            producer_name="onnxprune.tests",
        )


def _np_dtype(elem_type: int) -> np.dtype[Any]:
    return helper.tensor_dtype_to_np_dtype(elem_type)


def _value_info(name: str, dtype: npt.DTypeLike, shape: Iterable[Dim | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after onnxruntime's offline basic optimisation: constants folded, BatchNormalization fused.

    The result has IR version 4 at least, because the new initializers are not graph inputs.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result = onnx.load(options.optimized_model_filepath)
    result.ir_version = max(result.ir_version, 4)
    return result


BATCH_NAMES = frozenset({"batch", "batch_size", "n", "b"})
TOKENS = 8  # integer inputs lie in [1, TOKENS), inside every vocabulary and sequence length used here
FREE_SIZE = 8


def random_feeds(model: onnx.ModelProto, seed: int = 0, batch: int = 2) -> dict[str, Array]:
    """Random inputs: batch-like symbolic sizes become `batch`, others 8; integers stay in a small range."""
    rng = np.random.default_rng(seed)
    stored = {t.name for t in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        tensor = value.type.tensor_type
        shape = [_concrete(d, axis, batch) for axis, d in enumerate(tensor.shape.dim)]
        feeds[value.name] = _random(rng, shape, _np_dtype(tensor.elem_type))
    return feeds


def _concrete(dim: onnx.TensorShapeProto.Dimension, axis: int, batch: int) -> int:
    if dim.HasField("dim_value"):
        return dim.dim_value
    return batch if dim.dim_param.lower() in BATCH_NAMES or (axis == 0 and not dim.dim_param) else FREE_SIZE


def _random(rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if dtype in (np.uint8, np.int8):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    if dtype.kind in "iu":
        return np.asarray(rng.integers(1, TOKENS, shape)).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def image(b: Builder, channels: int = 3, size: int = 8) -> str:
    return b.input("input", ("batch", channels, size, size))


def stem(b: Builder, channels: int = 16, *, hidden: int = 12, size: int = 8) -> str:
    """Two plain convolutions on an image: whatever follows, the `hidden` channels between them are removable."""
    return b.relu(b.conv(b.relu(b.conv(image(b, size=size), hidden)), channels))


def tail(b: Builder, x: str) -> str:
    """A plain convolution with ReLU, then the classifier head."""
    return b.head(b.relu(b.conv(x, 16)))


def tokens(b: Builder, vocab: int = 20, width: int = 16) -> str:
    """Token ids through an embedding to (batch, time, width)."""
    ids = b.input("input_ids", ("batch", "time"), np.int64)
    return b.op("Gather", b.param(b.normal(vocab, width, scale=0.5), "embedding.weight"), ids, axis=0)


def pooled(b: Builder, x: str, classes: int = 10) -> str:
    """Mean over the time axis of (batch, time, width), then a Gemm."""
    return b.linear(b.reduce("Mean", x, 1, keepdims=0), classes)


# Chains of convolutions


@topology()
@topology("conv_chain_value_info", value_info=True)
@topology("conv_chain_valid_padding", pad=0)
@topology("conv_chain_stride2", stride=2)
@topology("conv_chain_dilated", dilation=2)
@topology("conv_chain_no_bias", bias=False)
@topology("conv_chain_opset7", opset=7)
@topology("conv_chain_opset8", opset=8)
@topology("conv_chain_opset21", opset=21)
@topology("conv_chain_inputs_ir3", opset=7, weights="input")
@topology("conv_chain_inputs_ir8", weights="input")
@topology("conv_chain_constant_nodes", weights="constant")
@topology("conv_chain_float16", dtype=np.float16)
def conv_chain(
    *,
    opset: int = 17,
    dtype: npt.DTypeLike = np.float32,
    weights: Literal["initializer", "constant", "input"] = "initializer",
    value_info: bool = False,
    **conv: Any,
) -> onnx.ModelProto:
    b = Builder(opset, dtype=dtype, weights=weights)
    h = image(b, size=12)
    for width in (16, 24, 32):
        h = b.relu(b.bn(b.conv(h, width, **conv)))
    return b.model(b.head(h), value_info=value_info)


@topology("conv1d_chain", rank=1)
@topology("conv3d_chain", rank=3)
def conv_rank(*, rank: int) -> onnx.ModelProto:
    b = Builder()
    h = b.input("input", ("batch", 3, *[6] * rank))
    for width in (16, 24):
        h = b.relu(b.bn(b.conv(h, width)))
    return b.model(b.head(h))


@topology("conv_auto_pad_same_upper", auto_pad="SAME_UPPER")
@topology("conv_auto_pad_same_lower", auto_pad="SAME_LOWER")
@topology("conv_auto_pad_valid", auto_pad="VALID")
def conv_auto_pad(*, auto_pad: str) -> onnx.ModelProto:
    b = Builder()
    h = b.relu(b.conv(image(b, size=9), 16, auto_pad=auto_pad))
    return b.model(b.head(b.relu(b.conv(h, 24, stride=2, auto_pad=auto_pad))))


@topology()
def conv_output() -> onnx.ModelProto:
    """Fully convolutional: the last Conv is the graph output, its filters are not to be touched."""
    b = Builder()
    return b.model(b.conv(stem(b), 3))


@topology()
def conv_bn_affine_after_relu() -> onnx.ModelProto:
    """ReLU before BatchNormalization: what a removed channel contributed is a constant, and nothing fuses it."""
    b = Builder()
    h = image(b)
    for width in (16, 24):
        h = b.bn(b.relu(b.conv(h, width, pad=0)))
    return b.model(b.head(h))


@topology()
def conv_dynamic_spatial() -> onnx.ModelProto:
    b = Builder()
    h = b.input("input", ("batch", 3, "height", "width"))
    for width in (16, 24):
        h = b.relu(b.bn(b.conv(h, width, stride=2)))
    return b.model(b.head(h))


@topology()
def vgg_flatten() -> onnx.ModelProto:
    """Conv, MaxPool, Flatten with spatial extent, Gemm."""
    b = Builder()
    h = b.relu(b.conv(image(b), 16))
    h = b.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    h = b.op("MaxPool", b.relu(b.conv(h, 24)), kernel_shape=[2, 2], strides=[2, 2])
    h = b.op("Dropout", b.relu(b.linear(b.flatten(h), 32)), 0.5)
    return b.model(b.linear(h, 10))


# Dense layers: Gemm and MatMul in every form


@topology()
@topology("mlp_gemm_trans_b0", trans_b=0)
@topology("mlp_gemm_alpha_beta", alpha=0.5, beta=2.0)
@topology("mlp_gemm_no_bias", bias=False)
@topology("mlp_float64", dtype=np.float64)
@topology("mlp_float16", dtype=np.float16)
@topology("mlp_opset7", opset=7)
@topology("mlp_opset13", opset=13)
@topology("mlp_opset21", opset=21)
def mlp(*, opset: int = 17, dtype: npt.DTypeLike = np.float32, **linear: Any) -> onnx.ModelProto:
    b = Builder(opset, dtype=dtype)
    h = b.input("input", ("batch", 16))
    for width in (32, 24):
        h = b.relu(b.linear(h, width, **linear))
    return b.model(b.linear(h, 10, **linear))


@topology("mlp_gemm_bias_row", shape=(1, -1))
@topology("mlp_gemm_bias_scalar", shape=())
@topology("mlp_gemm_bias_one", shape=(1,))
@topology("mlp_gemm_bias_full", shape=(2, -1), batch=2)
def mlp_gemm_bias(*, shape: tuple[int, ...], batch: Dim = "batch") -> onnx.ModelProto:
    """Gemm's C in each shape that broadcasts to (batch, N); -1 stands for N."""
    b = Builder()
    h = b.input("input", (batch, 16))
    for width in (32, 24, 10):
        bias = b.param(b.normal(*[width if d == -1 else d for d in shape]) + 0.1, "fc.bias")
        weight = b.param(b.he(width, b.channels(h)), "fc.weight")
        h = b.op("Gemm", h, weight, bias, transB=1, beta=1.5)
        h = h if width == 10 else b.relu(h)
    return b.model(h)


@topology()
def mlp_gemm_trans_a() -> onnx.ModelProto:
    """The features come first: Gemm reads its input transposed."""
    b = Builder()
    h = b.relu(b.linear(b.input("input", (16, "batch")), 32, transA=1))
    return b.model(b.linear(b.relu(b.linear(h, 24)), 10))


@topology()
def gemm_weight_left() -> onnx.ModelProto:
    """Gemm with the weight as A and C of shape (M, 1): the channels are the rows of every activation."""
    b = Builder()
    x = b.input("input", ("batch", 16))
    h = b.relu(b.op("Gemm", b.param(b.he(24, 16)), x, b.vec(24, 1), transB=1))
    h = b.relu(b.op("Gemm", b.param(b.he(20, 24).T), h, b.vec(20, 1), transA=1))
    y = b.op("Gemm", b.param(b.he(10, 20)), h, b.vec(10, 1))
    return b.model(b.transpose(y, 1, 0))


@topology()
@topology("mlp_matmul_add_rank2", shape=("batch", 16))
@topology("mlp_matmul_rank4", shape=("batch", 4, 6, 16))
def mlp_matmul_add(*, shape: tuple[Dim, ...] = ("batch", 6, 16)) -> onnx.ModelProto:
    b = Builder()
    h = b.relu(b.dense(b.input("input", shape), 32))
    h = b.op("Tanh", b.dense(h, 24, bias=False))
    return b.model(b.dense(h, 10))


@topology()
def matmul_weight_left() -> onnx.ModelProto:
    """W @ x on (batch, channels, time), bias (channels, 1)."""
    b = Builder()
    h = b.input("input", ("batch", 16, 10))
    for width in (24, 32):
        h = b.relu(b.add(b.matmul(b.param(b.he(width, b.channels(h))), h), b.vec(width, 1)))
    return b.model(b.matmul(b.param(b.he(8, 32)), h))


@topology()
def matmul_vector_right() -> onnx.ModelProto:
    """The last weight is a vector: MatMul promotes it to a column and drops the axis again."""
    b = Builder()
    h = b.relu(b.dense(b.input("input", ("batch", 6, 16)), 24))
    return b.model(b.matmul(h, b.param(b.he(24, fan_in=24))))


@topology()
def matmul_vector_left() -> onnx.ModelProto:
    b = Builder()
    h = b.relu(b.matmul(b.param(b.he(24, 16)), b.input("input", (16, 10))))
    return b.model(b.matmul(b.param(b.he(24, fan_in=24)), h))


@topology()
def matmul_vector_input() -> onnx.ModelProto:
    """No batch axis at all: the activations are vectors."""
    b = Builder()
    h = b.relu(b.add(b.matmul(b.input("input", (16,)), b.param(b.he(16, 24, fan_in=16))), b.vec(24)))
    return b.model(b.matmul(h, b.param(b.he(24, 10, fan_in=24))))


@topology()
def matmul_batched_weight() -> onnx.ModelProto:
    """One weight per ensemble member: (members, in, out); a hidden unit is removed from all members or from none."""
    b = Builder()
    x = b.input("input", (4, "batch", 16))
    h = b.relu(b.add(b.matmul(x, b.param(b.he(4, 16, 24, fan_in=16))), b.vec(4, 1, 24)))
    return b.model(b.add(b.matmul(h, b.param(b.he(4, 24, 10, fan_in=24))), b.vec(4, 1, 10)))


@topology()
def mlp_mixer() -> onnx.ModelProto:
    """Token mixing on the transposed tensor, then channel mixing."""
    b = Builder()
    x = b.dense(b.input("input", ("batch", 9, 12)), 16)
    mixed = b.dense(b.gelu(b.dense(b.transpose(b.layernorm(x), 0, 2, 1), 20)), 9)
    x = b.add(x, b.transpose(mixed, 0, 2, 1))
    return b.model(pooled(b, b.layernorm(b.add(x, b.ffn(b.layernorm(x), 32)))))


@topology()
def mlp_input_skip() -> onnx.ModelProto:
    """NeRF: the input is concatenated to a hidden layer."""
    b = Builder()
    x = b.input("input", ("batch", 12))
    h = b.relu(b.linear(b.relu(b.linear(x, 32)), 24))
    return b.model(b.linear(b.relu(b.linear(b.concat(x, h), 24)), 4))


@topology()
def recommender_dot() -> onnx.ModelProto:
    """DLRM: embeddings interact by a dot product among themselves; the lower triangle is picked with Gather."""
    b = Builder()
    dense = b.relu(b.linear(b.relu(b.linear(b.input("dense", ("batch", 13)), 24)), 8))
    ids = b.input("ids", ("batch", 3), np.int64)
    looked_up = b.op("Gather", b.param(b.normal(20, 8, scale=0.5), "embedding.weight"), ids, axis=0)
    t = b.concat(b.unsqueeze(dense, 1), looked_up, axis=1)
    pairs = b.reshape(b.matmul(t, b.transpose(t, 0, 2, 1)), -1, 16)
    lower = b.op("Gather", pairs, [4, 8, 9, 12, 13, 14], axis=1)
    return b.model(b.sigmoid(b.linear(b.relu(b.linear(b.concat(dense, lower), 24)), 1)))


@topology()
def graph_convolution() -> onnx.ModelProto:
    """Adjacency @ features @ weight."""
    b = Builder()
    adjacency = b.param(np.eye(6) * 0.5 + b.uniform(0, 0.2, 6, 6), "adjacency")
    h = b.input("nodes", ("batch", 6, 12))
    for width in (24, 16):
        h = b.relu(b.dense(b.matmul(adjacency, h), width))
    return b.model(pooled(b, h))


# Recurrent networks

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
Cell = Literal["LSTM", "GRU", "RNN"]


def recurrent(
    b: Builder,
    cell: Cell,
    x: str,
    hidden: int,
    *states: str,
    lengths: str = "",
    peepholes: bool = False,
    direction: str = "forward",
    **attributes: Any,
) -> list[str]:
    """One recurrent layer on (time, batch, features): Y, Y_h and, for LSTM, Y_c."""
    gates, d = GATES[cell] * hidden, 2 if direction == "bidirectional" else 1
    x_size = b.channels(x, 2)
    w = b.param(b.normal(d, gates, x_size, scale=1 / math.sqrt(x_size)), f"{cell.lower()}.W")
    r = b.param(b.normal(d, gates, hidden, scale=1 / math.sqrt(hidden)), f"{cell.lower()}.R")
    state = [*states, "", ""][:2] if cell == "LSTM" else list(states)
    state += [b.param(b.normal(d, 3 * hidden), "lstm.P")] if peepholes else []
    extra = [b.vec(d, 2 * gates), lengths, *state]
    return b.ops(
        cell, x, w, r, *extra, n=3 if cell == "LSTM" else 2, hidden_size=hidden, direction=direction, **attributes
    )


def last_step(b: Builder, y: str) -> str:
    """PyTorch's way from Y (time, 1, batch, hidden) to the last step's (batch, hidden)."""
    return b.op("Gather", b.transpose(b.squeeze(y, 1), 1, 0, 2), -1, axis=1)


def joined_directions(b: Builder, y: str) -> str:
    """PyTorch's way from Y (time, 2, batch, hidden) to (time, batch, 2 * hidden)."""
    return b.reshape(b.transpose(y, 0, 2, 1, 3), 0, 0, -1)


@topology("lstm", cell="LSTM")
@topology("gru", cell="GRU")
@topology("rnn", cell="RNN")
@topology("lstm_reverse", cell="LSTM", direction="reverse")
@topology("lstm_bidirectional", cell="LSTM", direction="bidirectional")
@topology("gru_bidirectional", cell="GRU", direction="bidirectional")
@topology("rnn_bidirectional", cell="RNN", direction="bidirectional")
@topology("gru_linear_before_reset", cell="GRU", linear_before_reset=1)
@topology("lstm_activations_clip", cell="LSTM", activations=["Sigmoid", "Tanh", "Relu"], clip=3.0)
@topology("rnn_relu", cell="RNN", activations=["Relu"])
@topology("lstm_peepholes", cell="LSTM", peepholes=True)
@topology("lstm_peepholes_bidirectional", cell="LSTM", peepholes=True, direction="bidirectional")
def recurrent_classifier(*, cell: Cell, direction: str = "forward", **attributes: Any) -> onnx.ModelProto:
    """batch_first recurrent layer, then a Gemm on the last time step, or on the mean where a direction is reversed."""
    b = Builder()
    x = b.transpose(b.input("input", ("batch", "time", 12)), 1, 0, 2)
    y = recurrent(b, cell, x, 16, direction=direction, **attributes)[0]
    if direction == "forward":
        return b.model(b.linear(last_step(b, y), 10))
    y = joined_directions(b, y) if direction == "bidirectional" else b.squeeze(y, 1)
    return b.model(pooled(b, b.transpose(y, 1, 0, 2)))


@topology("lstm_stacked", cell="LSTM")
@topology("gru_stacked", cell="GRU")
@topology("lstm_stacked_bidirectional", cell="LSTM", bidirectional=True)
def recurrent_stacked(*, cell: Cell, bidirectional: bool = False) -> onnx.ModelProto:
    """Two layers on top of a Gemm-like projection; the second reads all steps of the first."""
    b = Builder()
    h = b.relu(b.dense(b.input("input", ("time", "batch", 12)), 20))
    for hidden in (16, 24):
        y = recurrent(b, cell, h, hidden, direction="bidirectional" if bidirectional else "forward")[0]
        h = joined_directions(b, y) if bidirectional else b.squeeze(y, 1)
    return b.model(b.dense(h, 10))


@topology("lstm_last_hidden", cell="LSTM")
@topology("gru_last_hidden", cell="GRU")
@topology("lstm_opset7", cell="LSTM", opset=7)
def recurrent_last_hidden(*, cell: Cell, opset: int = 17) -> onnx.ModelProto:
    """The classifier reads Y_h; Y is not used."""
    b = Builder(opset)
    y_h = recurrent(b, cell, b.input("input", ("time", "batch", 12)), 16)[1]
    return b.model(b.linear(b.squeeze(y_h, 0), 10))


@topology("lstm_zero_state_shape", cell="LSTM")
@topology("gru_zero_state_shape", cell="GRU")
def recurrent_zero_state(*, cell: Cell) -> onnx.ModelProto:
    """PyTorch's zero initial states: ConstantOfShape on Concat(directions, batch, hidden)."""
    b = Builder()
    x = b.transpose(b.input("input", ("batch", "time", 12)), 1, 0, 2)
    shape = b.dims(1, b.size(x, 1), 16)
    zero = b.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, np.float32)))
    y = recurrent(b, cell, x, 16, *[zero] * (2 if cell == "LSTM" else 1))[0]
    return b.model(b.linear(last_step(b, y), 10))


@topology("lstm_constant_state", cell="LSTM")
@topology("gru_constant_state", cell="GRU")
def recurrent_constant_state(*, cell: Cell) -> onnx.ModelProto:
    """Initial states are stored weights (1, 2, hidden): the batch is baked in."""
    b = Builder()
    states = [b.param(b.normal(1, 2, 16, scale=0.5), "state") for _ in range(2 if cell == "LSTM" else 1)]
    y_h = recurrent(b, cell, b.input("input", ("time", 2, 12)), 16, *states)[1]
    return b.model(b.linear(b.squeeze(y_h, 0), 10))


@topology()
def lstm_expanded_state() -> onnx.ModelProto:
    """A learned initial state (1, 1, hidden), expanded over the batch."""
    b = Builder()
    x = b.input("input", ("time", "batch", 12))
    shape = b.dims(1, b.size(x, 1), 16)
    states = [b.op("Expand", b.param(b.normal(1, 1, 16, scale=0.5), "state"), shape) for _ in range(2)]
    return b.model(b.dense(b.squeeze(recurrent(b, "LSTM", x, 16, *states)[0], 1), 10))


@topology()
def lstm_states_as_inputs_outputs() -> onnx.ModelProto:
    """Streaming: the states come in and go out, so the hidden width is fixed; the projection before it is not."""
    b = Builder()
    x = b.dense(b.relu(b.dense(b.input("input", ("time", "batch", 12)), 24)), 12)
    h0, c0 = (b.input(name, (1, "batch", 16)) for name in ("h0", "c0"))
    y, y_h, y_c = recurrent(b, "LSTM", x, 16, h0, c0)
    return b.model(b.dense(b.squeeze(y, 1), 10), y_h, y_c)


@topology()
def lstm_sequence_lengths() -> onnx.ModelProto:
    b = Builder()
    x = b.input("input", ("time", "batch", 12))
    lengths = b.input("lengths", ("batch",), np.int32)
    y = recurrent(b, "LSTM", x, 16, lengths=lengths, direction="bidirectional")[0]
    return b.model(b.dense(joined_directions(b, y), 10))


@topology(into=UNRUNNABLE)
def lstm_layout1() -> onnx.ModelProto:
    """layout = 1 puts the batch first, in the states too."""
    b = Builder()
    y_h = recurrent(b, "LSTM", b.input("input", ("batch", "time", 12)), 16, layout=1)[1]
    return b.model(b.linear(b.squeeze(y_h, 1), 10))


@topology()
def encoder_decoder_lstm() -> onnx.ModelProto:
    """The encoder's last states start the decoder: both hidden widths are one."""
    b = Builder()
    source, target = (b.input(name, ("time", "batch", 12)) for name in ("source", "target"))
    _, h, c = recurrent(b, "LSTM", source, 16)
    return b.model(b.dense(b.squeeze(recurrent(b, "LSTM", target, 16, h, c)[0], 1), 10))


@topology()
def crnn() -> onnx.ModelProto:
    """Text recognition: channels and height merge into the features of an LSTM."""
    b = Builder()
    h = b.relu(b.bn(b.conv(b.input("input", ("batch", 1, 8, 16)), 12)))
    h = b.op("MaxPool", b.relu(b.conv(h, 16)), kernel_shape=[2, 1], strides=[2, 1])
    h = b.reshape(b.transpose(h, 3, 0, 1, 2), 16, b.size(h, 0), 64)
    return b.model(b.dense(b.squeeze(recurrent(b, "LSTM", h, 20)[0], 1), 10))


# Einsum


@topology()
def einsum_dense() -> onnx.ModelProto:
    """Keras EinsumDense."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    h = b.add(b.op("Einsum", x, b.param(b.he(16, 32, fan_in=16)), equation="abc,cd->abd"), b.vec(32))
    return b.model(b.op("Einsum", b.relu(h), b.param(b.he(10, 32)), equation="btk,nk->btn"))


@topology()
def einsum_attention() -> onnx.ModelProto:
    """Heads and head_dim are labels; the projections are three-dimensional weights."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    q, k, v = (
        b.add(b.op("Einsum", x, b.param(b.he(16, 4, 8, fan_in=16)), equation="bsd,dhk->bshk"), b.vec(4, 8))
        for _ in range(3)
    )
    scores = b.softmax(b.mul(b.op("Einsum", q, k, equation="bshk,bthk->bhst"), 1 / math.sqrt(8)))
    mixed = b.op("Einsum", scores, v, equation="bhst,bthk->bshk")
    y = b.add(b.op("Einsum", mixed, b.param(b.he(4, 8, 16, fan_in=32)), equation="bshk,hkd->bsd"), b.vec(16))
    return b.model(pooled(b, b.ffn(b.add(x, y), 32)))


@topology()
def einsum_bilinear() -> onnx.ModelProto:
    """A bilinear form: two hidden layers meet in a three-dimensional weight."""
    b = Builder()
    left = b.relu(b.linear(b.input("left", ("batch", 12)), 16))
    right = b.relu(b.linear(b.input("right", ("batch", 12)), 20))
    weight = b.param(b.he(10, 16, 20), "bilinear.weight")
    return b.model(b.op("Einsum", left, weight, right, equation="bi,oij,bj->bo"))


# Dense and residual streams


@topology()
@topology("densenet_small_growth", growth=8, layers=4)
def densenet(*, growth: int = 12, layers: int = 3) -> onnx.ModelProto:
    """Pre-activation BatchNormalization on a growing concatenation: it cannot fuse, and each layer has its own."""
    b = Builder()
    h = b.conv(image(b), 16, bias=False)
    for _ in range(2):
        for _ in range(layers):
            bottleneck = b.conv(b.relu(b.bn(h)), 4 * growth, 1, bias=False)
            h = b.concat(h, b.conv(b.relu(b.bn(bottleneck)), growth, bias=False))
        h = b.conv(b.relu(b.bn(h)), b.channels(h) // 2, 1, bias=False)
        h = b.op("AveragePool", h, kernel_shape=[2, 2], strides=[2, 2])
    return b.model(b.head(b.relu(b.bn(h))))


@topology()
@topology("resnet_opset9", opset=9)
def resnet(*, opset: int = 17) -> onnx.ModelProto:
    """Basic blocks; the second stage has a 1x1 downsample; pooling, flatten and Gemm end the stream."""
    b = Builder(opset)
    h = b.relu(b.bn(b.conv(image(b), 16, bias=False)))
    for width, stride in ((16, 1), (24, 2), (24, 1)):
        y = b.relu(b.bn(b.conv(h, width, stride=stride, bias=False)))
        y = b.bn(b.conv(y, width, bias=False))
        skip = h if stride == 1 else b.bn(b.conv(h, width, 1, stride=2, pad=0, bias=False))
        h = b.relu(b.add(y, skip))
    return b.model(b.head(h))


@topology()
def resnet_bottleneck() -> onnx.ModelProto:
    b = Builder()
    h = b.relu(b.bn(b.conv(image(b), 16, bias=False)))
    for stride in (1, 2):
        y = b.relu(b.bn(b.conv(h, 8, 1, bias=False)))
        y = b.relu(b.bn(b.conv(y, 8, stride=stride, bias=False)))
        y = b.bn(b.conv(y, 32, 1, bias=False))
        h = b.relu(b.add(y, b.bn(b.conv(h, 32, 1, stride=stride, pad=0, bias=False))))
    return b.model(b.head(h))


@topology()
def resnet_preactivation() -> onnx.ModelProto:
    b = Builder()
    h = b.conv(image(b), 16, bias=False)
    for _ in range(2):
        y = b.conv(b.relu(b.bn(h)), 12, bias=False)
        h = b.add(h, b.conv(b.relu(b.bn(y)), 16, bias=False))
    return b.model(b.head(b.relu(b.bn(h))))


@topology()
def resnet_option_a() -> onnx.ModelProto:
    """CIFAR ResNet: the shortcut takes every second pixel and pads zero channels on both sides."""
    b = Builder()
    h = b.relu(b.bn(b.conv(image(b), 16, bias=False)))
    for width, stride in ((16, 1), (32, 2), (32, 1)):
        y = b.relu(b.bn(b.conv(h, width, stride=stride, bias=False)))
        y = b.bn(b.conv(y, width, bias=False))
        if stride == 2:
            h = b.op("Slice", h, [0, 0], [INT_MAX, INT_MAX], [2, 3], [2, 2])
            h = b.op("Pad", h, [0, 8, 0, 0, 0, 8, 0, 0], 0.0, mode="constant")
        h = b.relu(b.add(y, h))
    return b.model(b.head(h))


@topology()
def mobilenet_v2() -> onnx.ModelProto:
    """Inverted residuals: expand, depthwise, linear projection; ReLU6 as Clip."""
    b = Builder()
    h = b.op("Clip", b.bn(b.conv(image(b), 12, bias=False)), 0.0, 6.0)
    for width, stride in ((12, 1), (16, 2), (16, 1)):
        y = b.op("Clip", b.bn(b.conv(h, 24, 1, bias=False)), 0.0, 6.0)
        y = b.op("Clip", b.bn(b.conv(y, 24, group=24, stride=stride, bias=False)), 0.0, 6.0)
        y = b.bn(b.conv(y, width, 1, bias=False))
        h = b.add(h, y) if stride == 1 else y
    return b.model(b.head(b.op("Clip", b.bn(b.conv(h, 32, 1, bias=False)), 0.0, 6.0)))


@topology()
def repvgg_training() -> onnx.ModelProto:
    """Three parallel branches before re-parametrisation: 3x3, 1x1 and a BatchNormalization alone."""
    b = Builder()
    h = b.relu(b.conv(image(b), 16))
    for _ in range(2):
        branches = [b.bn(b.conv(h, 16, bias=False)), b.bn(b.conv(h, 16, 1, bias=False)), b.bn(h)]
        h = b.relu(b.op("Sum", *branches))
    return b.model(b.head(h))


@topology()
def res2net() -> onnx.ModelProto:
    """A chunked hierarchy inside a block: each quarter adds the one before it."""
    b = Builder()
    x = b.relu(b.conv(image(b), 24))
    parts = b.split(b.relu(b.bn(b.conv(x, 32, 1))), [8, 8, 8, 8])
    done = [parts[0], b.relu(b.conv(parts[1], 8))]
    for part in parts[2:]:
        done.append(b.relu(b.conv(b.add(part, done[-1]), 8)))
    y = b.bn(b.conv(b.concat(*done), 24, 1))
    return b.model(b.head(b.relu(b.add(x, y))))


@topology()
def ghostnet() -> onnx.ModelProto:
    """Half of the channels are made by a depthwise convolution of the other half; a Slice takes off the surplus."""
    b = Builder()
    x = b.relu(b.conv(image(b), 16))
    primary = b.relu(b.bn(b.conv(x, 12, 1)))
    cheap = b.relu(b.bn(b.conv(primary, 12, group=12)))
    return b.model(tail(b, b.slice(b.concat(primary, cheap), 0, 20, 1)))


@topology()
def layer_scale_residual() -> onnx.ModelProto:
    b = Builder()
    x = stem(b)
    scale = b.param(b.uniform(0.05, 0.2, 16, 1, 1), "layer_scale")
    y = b.mul(scale, b.conv(b.gelu(b.conv(x, 32, 1)), 16, 1))
    return b.model(tail(b, b.add(x, y)))


# Attention and transformers


@topology()
def attention_separate_qkv() -> onnx.ModelProto:
    b = Builder()
    x = b.input("input", ("batch", "time", 16))
    x = b.layernorm(b.add(x, b.attention(x, 4)))
    return b.model(pooled(b, b.add(x, b.ffn(x, 32))))


@topology()
def attention_constant_reshape() -> onnx.ModelProto:
    """The folded form: head splits are constants with 0 and -1; the scale is a Mul on q."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    q, k, v = (b.reshape(b.dense(x, 32), 0, 6, 4, 8) for _ in range(3))
    scores = b.softmax(b.matmul(b.transpose(b.mul(q, 1 / math.sqrt(8)), 0, 2, 1, 3), b.transpose(k, 0, 2, 3, 1)))
    mixed = b.transpose(b.matmul(scores, b.transpose(v, 0, 2, 1, 3)), 0, 2, 1, 3)
    y = b.dense(b.reshape(mixed, -1, 6, 32), 16)
    return b.model(pooled(b, b.ffn(b.add(x, y), 32)))


@topology("attention_fused_qkv_gather", form="gather")
@topology("attention_fused_qkv_split", form="split")
@topology("attention_fused_qkv_split_first", form="split_first")
@topology("attention_fused_qkv_slice", form="slice")
@topology("attention_fused_qkv_interleaved", form="interleaved")
def attention_fused_qkv(*, form: str) -> onnx.ModelProto:
    """One projection to 3 * width; q, k and v are told apart in one of the ways that models use."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    qkv = b.dense(b.layernorm(x), 48)
    if form in ("gather", "split"):  # timm: (batch, time, 3, heads, d) to (3, batch, heads, time, d)
        split = b.transpose(b.reshape(qkv, b.size(x, 0), b.size(x, 1), 3, 4, 4), 2, 0, 3, 1, 4)
        if form == "gather":
            q, k, v = (b.op("Gather", split, i, axis=0) for i in range(3))
        else:
            q, k, v = (b.squeeze(part, 0) for part in b.split(split, [1, 1, 1], axis=0))
    elif form == "interleaved":  # GPT-NeoX: every head holds its own q, k, v
        split = b.transpose(b.reshape(qkv, b.size(x, 0), b.size(x, 1), 4, 12), 0, 2, 1, 3)
        q, k, v = b.split(split, [4, 4, 4], axis=3)
    elif form == "split_first":  # GPT-2
        q, k, v = (b.heads(part, 4) for part in b.split(qkv, [16, 16, 16], axis=2))
    else:
        q, k, v = (b.heads(b.slice(qkv, 16 * i, 16 * (i + 1), -1), 4) for i in range(3))
    x = b.add(x, b.dense(b.unheads(b.attend(q, k, v), 16), 16))
    return b.model(pooled(b, b.add(x, b.ffn(b.layernorm(x), 32))))


@topology()
def nonlocal_attention() -> onnx.ModelProto:
    """1x1 convolutions, flattened space, MatMul, Softmax, MatMul, back to an image, 1x1 convolution, residual."""
    b = Builder()
    x = stem(b)
    theta, phi, g = (b.reshape(b.conv(x, 8, 1), b.size(x, 0), 8, -1) for _ in range(3))
    weights = b.softmax(b.matmul(b.transpose(theta, 0, 2, 1), phi))
    y = b.transpose(b.matmul(weights, b.transpose(g, 0, 2, 1)), 0, 2, 1)
    y = b.reshape(y, b.size(x, 0), 8, b.size(x, 2), b.size(x, 3))
    b.declare(y, ("batch", 8, 8, 8))
    return b.model(tail(b, b.add(b.conv(y, 16, 1), x)))


@topology()
def linear_attention() -> onnx.ModelProto:
    """EfficientViT: k^T v first, channels against channels, then q; the heads are channel groups."""
    b = Builder()
    x = stem(b)
    qkv = b.reshape(b.conv(x, 48, 1, bias=False), b.size(x, 0), 2, 24, -1)
    q, k, v = b.split(qkv, [8, 8, 8], axis=2)
    mixed = b.matmul(b.matmul(v, b.transpose(b.relu(k), 0, 1, 3, 2)), b.relu(q))
    y = b.reshape(mixed, b.size(x, 0), -1, 8, 8)
    return b.model(tail(b, b.add(x, b.bn(b.conv(b.mul(y, 1 / 64), 16, 1)))))


@topology()
def cross_attention() -> onnx.ModelProto:
    b = Builder()
    x, context = b.input("query", ("batch", "time", 16)), b.input("context", ("batch", "source", 16))
    x = b.layernorm(b.add(x, b.attention(x, 4, context=b.dense(context, 24))))
    return b.model(pooled(b, b.add(x, b.ffn(x, 32))))


@topology("transformer_layernorm", decomposed=False)
@topology("transformer_layernorm_decomposed", decomposed=True)
@topology("transformer_opset11", decomposed=True, opset=11)
def transformer(*, decomposed: bool, opset: int = 17) -> onnx.ModelProto:
    """BERT-like: embeddings of tokens and positions, one post-norm block, head tied to the embedding."""
    b = Builder(opset)
    norm = b.layernorm_decomposed if decomposed else b.layernorm
    ids = b.input("input_ids", ("batch", 6), np.int64)
    table = b.param(b.normal(20, 16, scale=0.5), "embedding.weight")
    x = b.add(b.op("Gather", table, ids, axis=0), b.param(b.normal(1, 6, 16), "position"))
    x = norm(b.add(x, b.attention(norm(x), 4)))
    x = norm(b.add(x, b.ffn(x, 32)))
    return b.model(b.add(b.matmul(x, b.transpose(table, 1, 0)), b.vec(20)))


@topology()
def gpt2_causal() -> onnx.ModelProto:
    """Causal mask by Where on a sliced triangle; Conv1D layers as Gemm between Reshapes; tanh GELU."""
    b = Builder()

    def conv1d(x: str, n: int) -> str:
        flat = b.reshape(x, -1, b.channels(x, 2))
        y = b.linear(flat, n, trans_b=0)
        return b.reshape(y, b.size(x, 0), b.size(x, 1), n)

    x = tokens(b)
    q, k, v = (b.heads(part, 4) for part in b.split(conv1d(b.layernorm(x), 48), [16, 16, 16], axis=2))
    scores = b.op("Div", b.matmul(q, b.transpose(k, 0, 1, 3, 2)), 2.0)
    triangle = b.param(np.tril(np.ones((1, 1, 16, 16), np.bool_)), "mask")
    length = b.unsqueeze(b.size(x, 1), 0)
    mask = b.op("Slice", b.op("Slice", triangle, [0], length, [2]), [0], length, [3])
    scores = b.op("Where", mask, scores, float(np.finfo(np.float32).min))
    x = b.add(x, conv1d(b.unheads(b.matmul(b.softmax(scores), v), 16), 16))
    h = conv1d(b.layernorm(x), 32)
    inner = b.mul(b.add(h, b.mul(b.op("Pow", h, 3.0), 0.044715)), math.sqrt(2 / math.pi))
    x = b.add(x, conv1d(b.mul(b.mul(h, 0.5), b.add(b.op("Tanh", inner), 1.0)), 16))
    return b.model(b.dense(b.layernorm(x), 20, bias=False))


@topology()
def rmsnorm_swiglu() -> onnx.ModelProto:
    b = Builder()
    x = tokens(b)
    y = b.rmsnorm(x)
    gated = b.mul(b.silu(b.dense(y, 32, bias=False)), b.dense(y, 32, bias=False))
    x = b.add(x, b.dense(gated, 16, bias=False))
    return b.model(b.dense(b.rmsnorm(x), 20, bias=False))


@topology()
def swiglu_fused_gate_up() -> onnx.ModelProto:
    """gate and up in one projection, told apart by a Split."""
    b = Builder()
    x = tokens(b)
    gate, up = b.split(b.dense(b.rmsnorm(x), 64, bias=False), [32, 32], axis=-1)
    x = b.add(x, b.dense(b.mul(b.silu(gate), up), 16, bias=False))
    return b.model(b.dense(b.rmsnorm(x), 20, bias=False))


@topology()
@topology("llama_kv_cache", cache=True)
def llama(*, cache: bool = False) -> onnx.ModelProto:
    """Rotary halves, grouped queries (four query heads on two kv heads by Expand), SwiGLU, optional kv cache."""
    b = Builder()
    ids = b.input("input_ids", ("batch", 6), np.int64)
    x = b.op("Gather", b.param(b.normal(20, 32, scale=0.5), "embedding.weight"), ids, axis=0)
    angles = np.outer(np.arange(6), 1.0 / 100 ** (np.arange(0, 8, 2) / 8)).astype(np.float32)
    cos, sin = (b.param(np.concatenate([f(angles)] * 2, -1), "rope") for f in (np.cos, np.sin))

    def rotate(t: str) -> str:
        half = b.concat(b.op("Neg", b.slice(t, 4, INT_MAX, 3)), b.slice(t, 0, 4, 3), axis=-1)
        return b.add(b.mul(t, cos), b.mul(half, sin))

    y, outputs = b.rmsnorm(x), []
    q = rotate(b.heads(b.dense(y, 32, bias=False), 4))
    k = rotate(b.heads(b.dense(y, 16, bias=False), 2))
    v = b.heads(b.dense(y, 16, bias=False), 2)
    if cache:
        k = b.concat(b.input("past_key", ("batch", 2, "past", 8)), k, axis=2)
        v = b.concat(b.input("past_value", ("batch", 2, "past", 8)), v, axis=2)
        outputs = [k, v]

    def repeat(t: str) -> str:
        batch, time = b.size(t, 0), b.size(t, 2)
        wide = b.op("Expand", b.unsqueeze(t, 2), b.dims(batch, 2, 2, time, 8))
        return b.reshape(wide, batch, 4, time, 8)

    x = b.add(x, b.dense(b.unheads(b.attend(q, repeat(k), repeat(v)), 32), 32, bias=False))
    y = b.rmsnorm(x)
    gated = b.mul(b.silu(b.dense(y, 48, bias=False)), b.dense(y, 48, bias=False))
    x = b.rmsnorm(b.add(x, b.dense(gated, 32, bias=False)))
    return b.model(b.dense(x, 20, bias=False), *outputs)


@topology()
def relative_position_bias() -> onnx.ModelProto:
    """Swin and T5: a table (distances, heads) is gathered, reshaped and added to the scores."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    index = np.arange(6)[:, None] - np.arange(6)[None, :] + 5
    bias = b.op("Gather", b.param(b.normal(11, 4), "relative"), index.reshape(-1), axis=0)
    bias = b.unsqueeze(b.transpose(b.reshape(bias, 6, 6, 4), 2, 0, 1), 0)
    q, k, v = (b.heads(b.dense(x, 16), 4) for _ in range(3))
    x = b.add(x, b.dense(b.unheads(b.attend(q, k, v, mask=bias), 16), 16))
    return b.model(pooled(b, b.add(x, b.ffn(x, 32))))


@topology()
def vit() -> onnx.ModelProto:
    """Patch embedding, class token by Expand and Concat, position embedding, the class token picked by Gather."""
    b = Builder()
    patches = b.conv(image(b, size=16), 16, 4, stride=4, pad=0)
    x = b.transpose(b.reshape(patches, b.size(patches, 0), 16, -1), 0, 2, 1)
    b.declare(x, ("batch", 16, 16))
    cls = b.op("Expand", b.param(b.normal(1, 1, 16), "cls_token"), b.dims(b.size(x, 0), 1, 16))
    x = b.add(b.concat(cls, x), b.param(b.normal(1, 17, 16), "pos_embed"))
    x = b.add(x, b.attention(b.layernorm(x), 4))
    x = b.add(x, b.ffn(b.layernorm(x), 32))
    return b.model(b.linear(b.op("Gather", b.layernorm(x), 0, axis=1), 10))


@topology()
def weight_shared_layers() -> onnx.ModelProto:
    """ALBERT: the same feed-forward weights at two depths."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    up, down = b.param(b.he(16, 32, fan_in=16)), b.param(b.he(32, 16, fan_in=32))
    bias = b.vec(32)
    for _ in range(2):
        x = b.layernorm(b.add(x, b.matmul(b.relu(b.add(b.matmul(x, up), bias)), down)))
    return b.model(pooled(b, x))


@topology()
def mixture_of_experts() -> onnx.ModelProto:
    """Soft routing: every expert runs, batched over a leading axis; a Softmax over experts weighs them."""
    b = Builder()
    x = b.input("input", ("batch", 16))
    gate = b.unsqueeze(b.transpose(b.softmax(b.linear(x, 4)), 1, 0), 2)
    h = b.relu(b.add(b.matmul(x, b.param(b.he(4, 16, 24, fan_in=16))), b.vec(4, 1, 24)))
    experts = b.add(b.matmul(h, b.param(b.he(4, 24, 12, fan_in=24))), b.vec(4, 1, 12))
    return b.model(b.linear(b.relu(b.reduce("Sum", b.mul(experts, gate), 0, keepdims=0)), 10))


@topology()
def onnx_attention() -> onnx.ModelProto:
    """The operators of opset 23: Attention on rank 3 with head counts as attributes, RMSNormalization."""
    b = Builder(23)
    x = b.input("input", ("batch", 6, 16))
    y = b.op("RMSNormalization", x, b.param(b.uniform(0.5, 1.5, 16)), axis=-1, epsilon=1e-5)
    q, k, v = b.dense(y, 32), b.dense(y, 16), b.dense(y, 16)
    mixed = b.declare(b.op("Attention", q, k, v, q_num_heads=4, kv_num_heads=2), ("batch", 6, 32))
    x = b.add(x, b.dense(mixed, 16))
    return b.model(pooled(b, b.add(x, b.ffn(x, 32))))


@topology()
def onnx_attention_rank4() -> onnx.ModelProto:
    """Attention on (batch, heads, time, d), RotaryEmbedding and Gelu as operators."""
    b = Builder(23)
    x = b.input("input", ("batch", 6, 16))
    q, k, v = (b.heads(b.dense(x, 16), 2) for _ in range(3))
    positions = np.outer(np.arange(6), 1.0 / 100 ** (np.arange(4) / 4))
    caches = [b.unsqueeze(b.param(f(positions)), 0) for f in (np.cos, np.sin)]
    batch = b.unsqueeze(b.size(x, 0), 0)
    caches = [b.op("Expand", c, b.concat(batch, b.const([1, 1]), axis=0)) for c in caches]
    q, k = (b.declare(b.op("RotaryEmbedding", t, *caches), ("batch", 2, 6, 8)) for t in (q, k))
    mixed = b.declare(b.op("Attention", q, k, v, is_causal=1), ("batch", 2, 6, 8))
    x = b.add(x, b.dense(b.unheads(mixed, 16), 16))
    return b.model(pooled(b, b.dense(b.op("Gelu", b.dense(x, 32)), 16)))


@topology()
def microsoft_attention() -> onnx.ModelProto:
    """com.microsoft Attention: one (in, 3 * width) weight and bias, the number of heads is an attribute."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    weight = b.param(b.he(16, 48, fan_in=16))
    y = b.declare(b.op("Attention", x, weight, b.vec(48), num_heads=4, domain=MICROSOFT), ("batch", 6, 16))
    return b.model(pooled(b, b.ffn(b.add(x, b.dense(y, 16)), 32)))


@topology()
def microsoft_attention_qkv_sizes() -> onnx.ModelProto:
    """com.microsoft Attention whose v is narrower than q and k."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    sizes = {"num_heads": 4, "qkv_hidden_sizes": [16, 16, 8]}
    y = b.op("Attention", x, b.param(b.he(16, 40, fan_in=16)), b.vec(40), domain=MICROSOFT, **sizes)
    y = b.dense(b.declare(y, ("batch", 6, 8)), 16)
    return b.model(pooled(b, b.ffn(b.add(x, y), 32)))


@topology()
def microsoft_multi_head_attention() -> onnx.ModelProto:
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    q, k, v = (b.dense(x, 16, bias=False) for _ in range(3))
    y = b.op("MultiHeadAttention", q, k, v, b.vec(48), num_heads=4, domain=MICROSOFT)
    y = b.dense(b.declare(y, ("batch", 6, 16)), 16)
    return b.model(pooled(b, b.ffn(b.add(x, y), 32)))


@topology()
def microsoft_group_query_attention() -> onnx.ModelProto:
    """com.microsoft GroupQueryAttention: head counts as attributes, present keys and values as outputs."""
    b = Builder()
    x = b.input("input", (2, 6, 16))
    q, k, v = b.dense(x, 32), b.dense(x, 16), b.dense(x, 16)
    last, total = b.param(np.full(2, 5, np.int32)), b.param(np.array(6, np.int32))
    inputs = [q, k, v, "", "", last, total]
    y, *_ = b.ops("GroupQueryAttention", *inputs, n=3, num_heads=4, kv_num_heads=2, domain=MICROSOFT)
    y = b.dense(b.declare(y, (2, 6, 32)), 16)
    return b.model(pooled(b, b.ffn(b.add(x, y), 32)))


@topology()
def microsoft_bert() -> onnx.ModelProto:
    """EmbedLayerNormalization, Attention, SkipLayerNormalization, BiasGelu, FastGelu: BERT after fusion."""
    b = Builder()
    ids = b.input("input_ids", ("batch", 6), np.int32)
    tables = [b.param(b.normal(n, 16, scale=0.5), "embedding") for n in (20, 6)]
    norm = [b.param(b.uniform(0.5, 1.5, 16)), b.vec(16)]
    x, _ = b.ops("EmbedLayerNormalization", ids, "", *tables, "", *norm, n=2, domain=MICROSOFT)
    b.declare(x, ("batch", 6, 16))
    y = b.op("Attention", x, b.param(b.he(16, 48, fan_in=16)), b.vec(48), num_heads=4, domain=MICROSOFT)
    y = b.dense(b.declare(y, ("batch", 6, 16)), 16, bias=False)
    skip = [b.param(b.uniform(0.5, 1.5, 16)), b.vec(16), b.vec(16)]
    x = b.declare(b.op("SkipLayerNormalization", x, y, *skip, domain=MICROSOFT), ("batch", 6, 16))
    for kind in ("BiasGelu", "FastGelu"):
        h = b.op(kind, b.dense(x, 32, bias=False), b.vec(32), domain=MICROSOFT)
        x = b.add(x, b.dense(b.declare(h, ("batch", 6, 32)), 16))
    return b.model(pooled(b, x))


# Shapes: Reshape, Flatten, Slice, Gather, Split, Concat, Squeeze


@topology()
def channel_slice() -> onnx.ModelProto:
    """Two overlapping channel ranges of one convolution, one with a negative start and INT_MAX as its end."""
    b = Builder()
    h = stem(b, 24)
    first, last = b.slice(h, 0, 16, 1), b.slice(h, -12, INT_MAX, 1)
    return b.model(tail(b, b.concat(b.relu(b.conv(first, 8)), last)))


@topology()
def channel_slice_steps() -> onnx.ModelProto:
    """Even and odd channels, and all of them backwards."""
    b = Builder()
    h = stem(b)
    even, odd = b.slice(h, 0, INT_MAX, 1, 2), b.slice(h, 1, INT_MAX, 1, 2)
    backwards = b.slice(h, -1, -INT_MAX, 1, -1)
    return b.model(tail(b, b.concat(b.mul(even, b.sigmoid(odd)), backwards)))


@topology()
def channel_slice_opset9() -> onnx.ModelProto:
    """starts, ends and axes are attributes."""
    b = Builder(9)
    h = stem(b)
    return b.model(tail(b, b.add(b.slice(h, 0, 8, 1), b.slice(h, -8, INT_MAX, 1))))


@topology()
def shape_gather_channels() -> onnx.ModelProto:
    """The channel count itself is computed: Shape, Gather(1), Mul, Reshape."""
    b = Builder()
    h = b.relu(b.conv(stem(b), 24))
    features = b.mul(b.mul(b.size(h, 1), b.size(h, 2)), b.size(h, 3))
    flat = b.declare(b.reshape(h, b.size(h, 0), features), ("batch", 24 * 64))
    return b.model(b.linear(flat, 10))


@topology("flatten_reshape_constant", shape=(-1, 16 * 64))
@topology("flatten_reshape_zero", shape=(0, -1))
@topology("flatten_reshape_baked_batch", shape=(1, 16 * 64), batch=1)
@topology("flatten_reshape_baked_batch_minus_one", shape=(1, -1), batch=1)
@topology("flatten_allowzero", shape=(-1, 16 * 64), allowzero=1)
def flatten_reshape(*, shape: tuple[int, int], batch: Dim = "batch", allowzero: int | None = None) -> onnx.ModelProto:
    """A constant Reshape flattens C*H*W into the features of a Gemm."""
    b = Builder()
    h = b.relu(b.conv(b.input("input", (batch, 3, 8, 8)), 12))
    h = b.relu(b.conv(h, 16))
    flat = b.declare(b.op("Reshape", h, list(shape), allowzero=allowzero), (batch, 1024))
    return b.model(b.linear(b.relu(b.linear(flat, 24)), 10))


@topology("flatten_spatial_constant", shape=(-1, 16, 64))
@topology("flatten_spatial_zero", shape=(0, 0, -1))
@topology("flatten_spatial_baked_batch", shape=(1, 16, -1), batch=1)
def flatten_spatial(*, shape: tuple[int, int, int], batch: Dim = "batch") -> onnx.ModelProto:
    """(N, C, H, W) to (N, C, H*W) to (N, H*W, C), then dense layers on the channels."""
    b = Builder()
    h = b.relu(b.conv(b.relu(b.conv(b.input("input", (batch, 3, 8, 8)), 12)), 16))
    flat = b.declare(b.op("Reshape", h, list(shape)), (batch, 16, 64))
    return b.model(pooled(b, b.relu(b.dense(b.transpose(flat, 0, 2, 1), 24))))


@topology()
def flatten_axis2() -> onnx.ModelProto:
    """Flatten(axis=2) merges batch and channels into the rows; the dense layer works on space."""
    b = Builder()
    h = b.relu(b.conv(stem(b), 16))
    rows = b.linear(b.declare(b.op("Flatten", h, axis=2), (None, 64)), 12)
    back = b.reshape(rows, -1, 16, 12)
    return b.model(b.linear(b.declare(b.flatten(back), ("batch", 192)), 10))


@topology()
def flatten_nhwc() -> onnx.ModelProto:
    """Transposed to channels-last before flattening: the channels are the fast axis of the features."""
    b = Builder()
    h = b.transpose(b.relu(b.conv(stem(b), 16)), 0, 2, 3, 1)
    return b.model(b.linear(b.flatten(h), 10))


@topology()
def bn_after_flatten() -> onnx.ModelProto:
    b = Builder()
    h = b.flatten(b.op("MaxPool", stem(b), kernel_shape=[4, 4], strides=[4, 4]))
    return b.model(b.linear(b.relu(b.bn(b.linear(b.bn(h), 24))), 10))


@topology()
def bn_after_concat() -> onnx.ModelProto:
    b = Builder()
    x = stem(b)
    h = b.concat(b.conv(x, 12), b.conv(x, 16, 1), x)
    return b.model(tail(b, b.relu(b.bn(h))))


@topology()
def channels_equal_space() -> onnx.ModelProto:
    """C = H = W = 8: only the axes say which is which, and a constant (8,) is along W, not along C."""
    b = Builder()
    h = b.relu(b.conv(image(b), 8))
    h = b.add(h, b.vec(8))
    h = b.add(b.mul(h, b.param(b.uniform(0.5, 1.5, 8, 1, 1))), b.vec(8, 1))
    h = b.transpose(b.relu(b.conv(h, 8)), 0, 1, 3, 2)
    return b.model(tail(b, b.dense(h, 8)))


@topology()
def broadcast_constants() -> onnx.ModelProto:
    """Constants in every shape: scalar, (1,), (C, 1, 1), (1, C, 1, 1), (C, H, W), (1, C, H, W), (1, 1, H, W)."""
    b = Builder()
    h = stem(b)
    for shape in ((), (1,), (16, 1, 1), (1, 16, 1, 1), (16, 8, 8), (1, 16, 8, 8), (1, 1, 8, 8)):
        h = b.relu(b.add(h, b.param(b.normal(*shape) + 0.05)))
    return b.model(tail(b, h))


@topology()
def squeeze_unsqueeze() -> onnx.ModelProto:
    """GlobalAveragePool, Squeeze, Unsqueeze to a sequence, 1-D convolution over it, and back."""
    b = Builder()
    h = b.squeeze(b.gap(b.relu(b.conv(stem(b), 24))), 2, 3)
    h = b.relu(b.conv(b.unsqueeze(h, -1), 16, 1))
    return b.model(b.linear(b.squeeze(h, 2), 10))


@topology()
def identity_cast_dropout() -> onnx.ModelProto:
    """Nodes that do nothing to the channels, and an initializer read through Identity."""
    b = Builder()
    h = b.op("Identity", stem(b))
    h = b.op("Cast", b.op("Cast", h, to=onnx.TensorProto.DOUBLE), to=onnx.TensorProto.FLOAT)
    weight = b.op("Identity", b.param(b.he(20, 16, 3, 3)))
    h = b.op("Dropout", b.relu(b.conv(h, 20, weight=weight)))
    return b.model(b.head(h))


@topology()
def concat_with_itself() -> onnx.ModelProto:
    """Concat(x, x), x + x and x * x."""
    b = Builder()
    h = stem(b)
    return b.model(tail(b, b.concat(b.add(h, h), b.mul(h, h), h)))


@topology()
def gram_matrix() -> onnx.ModelProto:
    """Style loss: features times their own transpose, both axes are the channels."""
    b = Builder()
    f = b.reshape(stem(b, 12), -1, 12, 64)
    gram = b.mul(b.matmul(f, b.transpose(f, 0, 2, 1)), 1 / 64)
    return b.model(b.linear(b.reshape(gram, -1, 144), 10))


@topology("split_uneven_opset11", opset=11)
@topology("split_uneven_opset13", opset=13)
@topology("split_num_outputs_opset18", opset=18)
def split_uneven(*, opset: int) -> onnx.ModelProto:
    """Sizes as attribute, sizes as input, and `num_outputs`, whose last part is smaller."""
    b = Builder(opset)
    h = stem(b, 20)
    parts = b.split(h, [4, 10, 6]) if opset < 18 else b.ops("Split", h, n=3, axis=1, num_outputs=3)
    parts = [b.relu(b.conv(part, 8)) for part in parts]
    return b.model(tail(b, b.concat(*parts)))


@topology("split_equal_opset11", opset=11)
@topology("split_equal_opset17", opset=17)
def split_equal(*, opset: int) -> onnx.ModelProto:
    """Neither sizes nor num_outputs: as many equal parts as there are outputs."""
    b = Builder(opset)
    first, second = b.ops("Split", stem(b), n=2, axis=1)
    return b.model(tail(b, b.add(first, b.sigmoid(second))))


@topology()
def gather_permutation() -> onnx.ModelProto:
    """Gather along the channels as a permutation, and one that repeats and drops channels."""
    b = Builder()
    order = b.rng.permutation(16)
    h = b.op("Gather", stem(b), b.param(order), axis=1)
    h = b.relu(b.conv(h, 12))
    return b.model(tail(b, b.op("Gather", h, [0, 3, 3, -1, 7, 5], axis=1)))


@topology()
def gather_single_channel() -> onnx.ModelProto:
    """x[:, 0] and x[:, 3] with scalar indices, stacked again (mean and RGB2BGR code in exported models)."""
    b = Builder()
    h = stem(b)
    picked = [b.unsqueeze(b.op("Gather", h, i, axis=1), 1) for i in (3, 0, 2)]
    return b.model(tail(b, b.concat(*picked, h)))


@topology()
def pad_channels() -> onnx.ModelProto:
    """Pads along channels and space; the padded channels are constants of value 0.5."""
    b = Builder()
    h = b.op("Pad", stem(b), [0, 3, 1, 1, 0, 5, 1, 1], 0.5, mode="constant")
    return b.model(tail(b, h))


@topology("pad_opset10", opset=10)
@topology("pad_reflect", mode="reflect")
@topology("pad_edge", mode="edge")
def pad_spatial(*, opset: int = 17, mode: str = "constant") -> onnx.ModelProto:
    b = Builder(opset)
    h, pads = stem(b), [0, 0, 1, 1, 0, 0, 1, 1]
    h = b.op("Pad", h, pads=pads, mode=mode) if opset < 11 else b.op("Pad", h, pads, mode=mode)
    return b.model(b.head(b.relu(b.conv(h, 16, pad=0))))


@topology()
def expand_channel_vector() -> onnx.ModelProto:
    """A (1, C, 1, 1) constant and a pooled activation are expanded to the whole map before they are added."""
    b = Builder()
    h = stem(b)
    shape = b.op("Shape", h)
    bias = b.op("Expand", b.vec(1, 16, 1, 1), shape)
    h = b.concat(b.add(h, bias), b.op("Expand", b.conv(b.gap(h), 8, 1), b.const([1, 1, 8, 8])))
    return b.model(tail(b, h))


@topology()
def tile_space_and_channels() -> onnx.ModelProto:
    b = Builder()
    h = stem(b, 8)
    wide = b.op("Tile", h, [1, 2, 1, 1])
    context = b.op("Tile", b.gap(h), [1, 1, 8, 8])
    return b.model(tail(b, b.concat(wide, context)))


@topology()
def where_mask() -> onnx.ModelProto:
    """Where with a spatial mask, and one with a constant channel mask."""
    b = Builder()
    mask = b.input("mask", ("batch", 1, 8, 8), np.bool_)
    h = b.op("Where", mask, stem(b), b.vec(16, 1, 1))
    keep = b.param((np.arange(16) % 3 > 0).reshape(1, 16, 1, 1))
    return b.model(tail(b, b.op("Where", keep, h, 0.25)))


@topology()
def greater_mask() -> onnx.ModelProto:
    """Greater, Cast, Mul: a hand-written ReLU, and a learned threshold per channel."""
    b = Builder()
    h = b.conv(stem(b), 16)
    mask = b.op("Cast", b.op("Greater", h, b.vec(16, 1, 1)), to=onnx.TensorProto.FLOAT)
    return b.model(tail(b, b.mul(h, mask)))


@topology()
def yolo_head() -> onnx.ModelProto:
    """(N, anchors * (5 + classes), H, W) to (N, anchors, H, W, 5 + classes), grid constants, Concat."""
    b = Builder()
    x = stem(b)
    outputs = []
    for h in (x, b.relu(b.conv(x, 24, stride=2))):
        size = b.channels(h, 2)
        y = b.reshape(b.conv(b.relu(b.conv(h, 16)), 3 * 7, 1), b.size(h, 0), 3, 7, size, size)
        y = b.sigmoid(b.declare(b.transpose(y, 0, 1, 3, 4, 2), ("batch", 3, size, size, 7)))
        xy, wh, rest = b.split(y, [2, 2, 3], axis=4)
        xy = b.add(b.mul(xy, 2.0), b.param(b.uniform(0, size, 1, 3, size, size, 2)))
        wh = b.mul(b.op("Pow", b.mul(wh, 2.0), 2.0), b.param(b.uniform(1, 4, 1, 3, 1, 1, 2)))
        outputs.append(b.reshape(b.concat(xy, wh, rest, axis=4), b.size(h, 0), 3 * size * size, 7))
    return b.model(b.concat(*outputs))


@topology()
def ssd_head() -> onnx.ModelProto:
    """Per level: convolution to anchors * classes, NHWC, Reshape to (N, -1, classes), Concat, Softmax."""
    b = Builder()
    levels = [stem(b)]
    levels.append(b.relu(b.conv(levels[0], 24, stride=2)))

    def collect(per_anchor: int) -> str:
        maps = [b.transpose(b.conv(h, 4 * per_anchor), 0, 2, 3, 1) for h in levels]
        return b.concat(*[b.reshape(m, b.size(m, 0), -1, per_anchor) for m in maps])

    return b.model(collect(4), b.softmax(collect(6)))


@topology()
def dfl_head() -> onnx.ModelProto:
    """YOLOv8: boxes as distributions, (N, 4 * bins, A) to (N, 4, bins, A), Softmax, a fixed 1x1 convolution."""
    b = Builder()
    x = stem(b)
    box = b.conv(b.silu(b.conv(x, 16)), 4 * 8, 1)
    scores = b.conv(b.silu(b.conv(x, 12)), 5, 1)
    flat = b.reshape(b.concat(box, scores), -1, 37, 64)
    box, scores = b.split(flat, [32, 5])
    bins = b.softmax(b.transpose(b.reshape(box, -1, 4, 8, 64), 0, 2, 1, 3), axis=1)
    weight = b.param(np.arange(8.0).reshape(1, 8, 1, 1), "dfl.weight")
    distance = b.reshape(b.conv(bins, 1, 1, weight=weight, bias=False), -1, 4, 64)
    return b.model(b.concat(distance, b.sigmoid(scores)))


# Channels last


def nhwc_conv(b: Builder, x: str, cout: int, **conv: Any) -> str:
    """tf2onnx before its transpose optimiser: every Conv between two Transposes, the bias added channels-last."""
    y = b.conv(b.transpose(x, 0, 3, 1, 2), cout, bias=False, **conv)
    return b.add(b.transpose(y, 0, 2, 3, 1), b.vec(cout))


@topology()
def nhwc_transposes() -> onnx.ModelProto:
    b = Builder()
    x = b.relu(nhwc_conv(b, b.input("input", ("batch", 8, 8, 3)), 16))
    y = b.relu(nhwc_conv(b, x, 24))
    y = b.concat(x, y, axis=3)
    y = b.relu(nhwc_conv(b, y, 20, stride=2))
    return b.model(b.dense(b.reduce("Mean", y, 1, 2, keepdims=0), 10))


@topology()
def nhwc_flatten_dense() -> onnx.ModelProto:
    """Keras CNN: pooling, Reshape to (-1, H * W * C) in channels-last order, MatMul and Add."""
    b = Builder(13)
    x = b.relu(nhwc_conv(b, b.input("input", ("batch", 8, 8, 3)), 16))
    x = b.op("MaxPool", b.transpose(x, 0, 3, 1, 2), kernel_shape=[2, 2], strides=[2, 2])
    x = b.reshape(b.transpose(x, 0, 2, 3, 1), -1, 256)
    return b.model(b.softmax(b.dense(b.relu(b.dense(x, 24)), 10)))


@topology()
def nhwc_separable() -> onnx.ModelProto:
    """Keras SeparableConv: depthwise with a weight that a Reshape makes, pointwise, BatchNormalization, ReLU6."""
    b = Builder()
    x = b.transpose(b.input("input", ("batch", 8, 8, 3)), 0, 3, 1, 2)
    x = b.relu(b.conv(x, 12))
    weight = b.reshape(b.transpose(b.param(b.he(3, 3, 12, 1, fan_in=9)), 3, 2, 0, 1), 12, 1, 3, 3)
    x = b.op("Clip", b.bn(b.conv(x, 12, group=12, weight=weight, bias=False)), 0.0, 6.0)
    x = b.op("Clip", b.bn(b.conv(x, 24, 1, bias=False)), 0.0, 6.0)
    return b.model(b.dense(b.squeeze(b.gap(x), 2, 3), 10))


@topology()
def nhwc_depth_to_space() -> onnx.ModelProto:
    b = Builder()
    x = b.relu(nhwc_conv(b, b.input("input", ("batch", 8, 8, 3)), 16))
    y = b.op("DepthToSpace", b.transpose(nhwc_conv(b, x, 12), 0, 3, 1, 2), blocksize=2)
    return b.model(b.transpose(y, 0, 2, 3, 1))


# Control flow


@topology()
def if_captures() -> onnx.ModelProto:
    """Both branches read an outer activation; one adds an outer weight."""
    b = Builder()
    h, scale = stem(b), b.param(b.uniform(0.5, 1.5, 16, 1, 1))
    flag = b.input("flag", (), np.bool_)
    then, other = b.child(), b.child()
    bodies = {"then_branch": then.graph("then", then.mul(h, scale)), "else_branch": other.graph("else", other.relu(h))}
    y = b.declare(b.op("If", flag, **bodies), ("batch", 16, 8, 8))
    return b.model(tail(b, y))


@topology()
def if_weights_inside() -> onnx.ModelProto:
    """Each branch has its own weights, and hidden channels of its own."""
    b = Builder()
    h, flag = stem(b), b.input("flag", (), np.bool_)
    then, other = b.child(), b.child()
    wide = then.conv(then.relu(then.conv(h, 24)), 16)
    bodies = {"then_branch": then.graph("then", wide), "else_branch": other.graph("else", other.conv(h, 16))}
    y = b.declare(b.op("If", flag, **bodies), ("batch", 16, 8, 8))
    return b.model(tail(b, b.relu(y)))


@topology()
def if_nested_computed() -> onnx.ModelProto:
    """The condition is computed from data; a branch holds another If, whose body captures from two levels up."""
    b = Builder()
    h = stem(b)
    mean = b.reduce("Mean", h, 0, 1, 2, 3, keepdims=0)
    outer_then, outer_else = b.child(), b.child()
    inner_then, inner_else = outer_then.child(), outer_then.child()
    inner = {
        "then_branch": inner_then.graph("inner_then", inner_then.relu(h)),
        "else_branch": inner_else.graph("inner_else", inner_else.op("Neg", h)),
    }
    y = outer_then.declare(outer_then.op("If", outer_then.op("Less", mean, 0.2), **inner), ("batch", 16, 8, 8))
    outer = {
        "then_branch": outer_then.graph("then", outer_then.conv(y, 16)),
        "else_branch": outer_else.graph("else", outer_else.op("Identity", h)),
    }
    y = b.declare(b.op("If", b.op("Greater", mean, 0.0), **outer), ("batch", 16, 8, 8))
    return b.model(tail(b, y))


def loop_body(b: Builder, shape: Sequence[Dim], step: Callable[[Builder, str], str]) -> onnx.GraphProto:
    """A Loop body with one carried state of `shape`, updated by `step`."""
    body = b.child()
    for name, dtype in (("iteration", np.int64), ("condition", np.bool_)):
        body.input(f"{name}_in", (), dtype)
    state = step(body, body.input("state_in", shape))
    return body.graph("body", body.op("Identity", "condition_in"), state)


@topology("loop_conv", inside=True)
@topology("loop_conv_captured_weights", inside=False)
def loop_conv(*, inside: bool) -> onnx.ModelProto:
    """A residual block applied three times, its weights in the body or captured from outside."""
    b = Builder()
    h = stem(b)
    w1, w2 = b.he(24, 16, 3, 3), b.he(16, 24, 3, 3) * 0.3

    def step(body: Builder, x: str) -> str:
        up, down = names if names else (body.param(w1), body.param(w2))
        y = body.relu(body.conv(x, 24, weight=up, bias=False))
        return body.add(x, body.conv(y, 16, weight=down, bias=False))

    names = () if inside else (b.param(w1), b.param(w2))
    body = loop_body(b, ("batch", 16, 8, 8), step)
    y = b.declare(b.op("Loop", 3, True, h, body=body), ("batch", 16, 8, 8))
    return b.model(tail(b, y))


@topology()
def loop_gemm() -> onnx.ModelProto:
    """A recurrent net by hand: the body gathers step i from a captured tensor; the width is loop-carried."""
    b = Builder()
    x = b.relu(b.dense(b.input("input", (5, "batch", 12)), 20))
    body = b.child()
    i, _ = body.input("i", (), np.int64), body.input("condition_in", (), np.bool_)
    state = body.input("state_in", ("batch", 16))
    step = body.op("Gather", x, i, axis=0)
    new = body.op("Tanh", body.add(body.dense(step, 16), body.dense(state, 16)))
    graph = body.graph("body", body.op("Identity", "condition_in"), new, body.op("Identity", new))
    start = b.op("ConstantOfShape", b.dims(b.size(x, 1), 16), value=numpy_helper.from_array(np.zeros(1, np.float32)))
    last, steps = b.ops("Loop", 5, None, start, n=2, body=graph)
    b.declare(last, ("batch", 16))
    b.declare(steps, (5, "batch", 16))
    return b.model(b.linear(b.relu(b.linear(last, 24)), 10), b.dense(steps, 4))


@topology()
def scan_gemm() -> onnx.ModelProto:
    """Scan over time: state and step meet in the body."""
    b = Builder()
    x = b.relu(b.dense(b.input("input", (5, 2, 12)), 20))
    body = b.child()
    state, step = body.input("state_in", (2, 16)), body.input("step_in", (2, 20))
    new = body.op("Tanh", body.add(body.linear(step, 16), body.linear(state, 16, bias=False)))
    graph = body.graph("body", new, body.op("Identity", new))
    last, steps = b.ops("Scan", b.const(np.zeros((2, 16), np.float32)), x, n=2, body=graph, num_scan_inputs=1)
    b.declare(last, (2, 16))
    b.declare(steps, (5, 2, 16))
    return b.model(b.linear(last, 10), b.dense(b.relu(b.dense(steps, 24)), 4))


# Reductions


@topology("conv_reducemean_gemm_opset13", opset=13)
@topology("conv_reducemean_gemm_opset18", opset=18)
@topology("conv_reducemean_keepdims", opset=13, keepdims=1)
def conv_reducemean_gemm(*, opset: int, keepdims: int = 0) -> onnx.ModelProto:
    """Spatial ReduceMean in place of the pooling; its axes are an attribute before opset 18."""
    b = Builder(opset)
    h = b.reduce("Mean", b.relu(b.conv(stem(b), 24)), 2, 3, keepdims=keepdims)
    return b.model(b.linear(b.flatten(h) if keepdims else h, 10))


@topology("reduce_sum_channels", kind="Sum")
@topology("reduce_sum_channels_opset11", kind="Sum", opset=11)
@topology("reduce_mean_channels", kind="Mean")
@topology("reduce_mean_channels_opset18", kind="Mean", opset=18)
@topology("reduce_l1_channels", kind="L1")
@topology("reduce_l2_channels", kind="L2")
@topology("reduce_sum_square_channels", kind="SumSquare")
@topology("reduce_max_channels", kind="Max")
@topology("reduce_min_channels", kind="Min")
@topology("reduce_prod_channels", kind="Prod")
@topology("reduce_log_sum_exp_channels", kind="LogSumExp")
def reduce_channels(*, kind: str, opset: int = 17) -> onnx.ModelProto:
    """A reduction over the channels, kept as an axis of size one, and one without it next to it."""
    b = Builder(opset)
    h = stem(b)
    y = b.relu(b.conv(h, 16))
    kept = b.reduce(kind, y, 1)
    dropped = b.unsqueeze(b.reduce(kind, b.conv(h, 12), 1, keepdims=0), 1)
    return b.model(b.concat(kept, dropped), b.head(b.mul(y, b.sigmoid(kept))))


@topology()
def argmax_channels() -> onnx.ModelProto:
    """Segmentation: ArgMax over the classes, next to an auxiliary ArgMax over hidden channels."""
    b = Builder()
    h = stem(b)
    y = b.relu(b.conv(h, 20))
    classes = b.op("ArgMax", b.conv(y, 5, 1), axis=1, keepdims=0)
    return b.model(classes, b.op("ArgMax", b.conv(h, 12), axis=1))


@topology()
def mean_over_everything() -> onnx.ModelProto:
    """A reduction over all axes, with `axes` left out."""
    b = Builder()
    h = b.conv(stem(b), 16)
    centred = b.op("Sub", h, b.op("ReduceMean", h, keepdims=1))
    return b.model(tail(b, centred))


# Sharing


@topology()
def shared_detection_heads() -> onnx.ModelProto:
    """One head, applied to two levels of the pyramid; the levels have one width because of it."""
    b = Builder()
    c3 = stem(b)
    c4 = b.relu(b.conv(c3, 24, stride=2))
    levels = [b.conv(c3, 16, 1), b.conv(c4, 16, 1)]
    w1, b1 = b.param(b.he(20, 16, 3, 3), "head.0.weight"), b.vec(20)
    w2, b2 = b.param(b.he(6, 20, 3, 3), "head.1.weight"), b.vec(6)
    outputs = []
    for level in levels:
        h = b.relu(b.conv(level, 20, weight=w1, bias=b1))
        outputs.append(b.reshape(b.conv(h, 6, weight=w2, bias=b2), b.size(h, 0), 6, -1))
    return b.model(b.concat(*outputs, axis=2))


@topology()
def shared_heads_two_depths() -> onnx.ModelProto:
    """The same convolution inside the backbone, before and after a downsampling stage."""
    b = Builder()
    weight = b.param(b.he(16, 16, 3, 3), "shared.weight")
    h = b.relu(b.conv(stem(b), 16, weight=weight))
    h = b.relu(b.conv(h, 16, stride=2))
    return b.model(tail(b, b.relu(b.conv(h, 16, weight=weight))))


@topology()
def groupnorm_detector() -> onnx.ModelProto:
    """FCOS: towers of Conv, decomposed GroupNorm, ReLU, shared by two levels; a learned scale per level."""
    b = Builder()
    c3 = stem(b)
    levels = [b.conv(c3, 16, 1), b.conv(b.relu(b.conv(c3, 24, stride=2)), 16, 1)]
    tower = [(b.param(b.he(16, 16, 3, 3)), b.vec(16), b.vec(16, 1, 1), b.vec(16, 1, 1)) for _ in range(2)]
    box, classes = b.param(b.he(4, 16, 3, 3)), b.param(b.he(5, 16, 3, 3))
    outputs = []
    for level in levels:
        h = level
        for weight, bias, gamma, beta in tower:
            h = b.conv(h, 16, weight=weight, bias=bias)
            h = b.relu(groupnorm_decomposed(b, h, 4, gamma=gamma, beta=beta))
        outputs.append(b.op("Exp", b.mul(b.conv(h, 4, weight=box, bias=False), b.param(np.array([0.1])))))
        outputs.append(b.sigmoid(b.conv(h, 5, weight=classes, bias=False)))
    return b.model(*outputs)


@topology()
def weight_two_producers() -> onnx.ModelProto:
    """One weight, two convolutions on different inputs: both lose the same filters."""
    b = Builder()
    x = stem(b)
    weight = b.param(b.he(20, 16, 3, 3), "shared.weight")
    left = b.relu(b.conv(x, 20, weight=weight))
    right = b.relu(b.conv(b.relu(b.conv(x, 16)), 20, weight=weight))
    return b.model(b.head(b.conv(left, 12)), b.head(b.conv(right, 8)))


@topology()
def shared_bias() -> onnx.ModelProto:
    b = Builder()
    x, bias = stem(b), b.vec(20)
    left, right = (b.relu(b.conv(x, 20, bias=bias)) for _ in range(2))
    return b.model(b.head(b.conv(left, 12)), b.head(right))


@topology()
def shared_bn_parameters() -> onnx.ModelProto:
    """Exporters deduplicate equal tensors: four BatchNormalization vectors of two layers, one shared all-ones scale."""
    b = Builder()
    ones, zeros = b.param(np.ones(16)), b.param(np.zeros(16))
    h = stem(b)
    for _ in range(2):
        h = b.relu(b.op("BatchNormalization", b.conv(h, 16, bias=False), ones, zeros, zeros, ones))
    return b.model(b.head(h))


@topology()
def weight_also_reduced() -> onnx.ModelProto:
    """A regulariser as an output: the weight is also read by ReduceSum and by Mul."""
    b = Builder()
    x = stem(b)
    weight = b.param(b.he(20, 16, 3, 3), "conv.weight")
    y = b.head(b.relu(b.conv(x, 20, weight=weight)))
    return b.model(y, b.op("ReduceSum", b.mul(weight, weight), keepdims=0))


@topology()
def weight_is_output() -> onnx.ModelProto:
    b = Builder()
    weight = b.param(b.he(24, 16), "fc.weight")
    x = b.relu(b.linear(b.input("input", ("batch", 12)), 16))
    h = b.relu(b.op("Gemm", x, weight, b.vec(24), transB=1))
    return b.model(b.linear(b.relu(b.linear(h, 20)), 10), b.op("Identity", weight))


@topology()
def shared_producer_output() -> onnx.ModelProto:
    """The same tensor feeds the next convolution and is a graph output."""
    b = Builder()
    x = stem(b)
    features = b.relu(b.conv(x, 16))
    return b.model(tail(b, features), features)


@topology()
def two_inputs_two_outputs() -> onnx.ModelProto:
    b = Builder()
    left = b.relu(b.conv(b.input("left", ("batch", 3, 8, 8)), 16))
    right = b.relu(b.conv(b.input("right", ("batch", 1, 8, 8)), 16))
    h = b.relu(b.conv(b.add(left, right), 24))
    return b.model(b.head(h), b.conv(h, 2, 1))


@topology()
def auxiliary_vector_input() -> onnx.ModelProto:
    """FiLM: a conditioning vector makes a scale and a shift per channel."""
    b = Builder()
    h = b.conv(stem(b), 16)
    film = b.linear(b.relu(b.linear(b.input("condition", ("batch", 6)), 20)), 32)
    gamma, beta = (b.unsqueeze(part, 2, 3) for part in b.split(film, [16, 16]))
    return b.model(tail(b, b.relu(b.add(b.mul(h, b.add(gamma, 1.0)), beta))))


@topology()
def dead_branch() -> onnx.ModelProto:
    """A convolution whose result nobody reads, and an initializer without any reader."""
    b = Builder()
    h = stem(b)
    b.conv(h, 8)
    b.vec(5)
    return b.model(tail(b, h))


# Channel rearrangement


def shuffle(b: Builder, x: str, groups: int) -> str:
    """ShuffleNet's channel shuffle: (g, C/g) to (C/g, g)."""
    c, h, w = (b.channels(x, axis) for axis in (1, 2, 3))
    y = b.transpose(b.reshape(x, b.size(x, 0), groups, c // groups, h, w), 0, 2, 1, 3, 4)
    return b.reshape(y, b.size(x, 0), c, h, w)


@topology()
def shufflenet_v1() -> onnx.ModelProto:
    """Grouped 1x1, shuffle, depthwise, grouped 1x1, residual."""
    b = Builder()
    x = stem(b, 24)
    y = shuffle(b, b.relu(b.bn(b.conv(x, 12, 1, group=3))), 3)
    y = b.bn(b.conv(y, 12, group=12, bias=False))
    y = b.bn(b.conv(y, 24, 1, group=3, bias=False))
    return b.model(b.head(b.relu(b.add(x, y))))


@topology()
def shufflenet_v2() -> onnx.ModelProto:
    """Split in halves, transform one, Concat, shuffle."""
    b = Builder()
    h = stem(b)
    for _ in range(2):
        left, right = b.split(h, [8, 8])
        right = b.relu(b.bn(b.conv(right, 8, 1, bias=False)))
        right = b.bn(b.conv(right, 8, group=8, bias=False))
        right = b.relu(b.bn(b.conv(right, 8, 1, bias=False)))
        h = shuffle(b, b.concat(left, right), 2)
    return b.model(tail(b, h))


@topology()
def swin_patch_merging() -> onnx.ModelProto:
    """Four strided slices, Concat along the channels, LayerNormalization, bias-free linear."""
    b = Builder()
    x = b.dense(b.relu(b.dense(b.input("input", ("batch", 8, 8, 3)), 20)), 12)
    parts = []
    for column in (0, 1):
        for row in (0, 1):
            parts.append(b.slice(b.slice(x, row, INT_MAX, 1, 2), column, INT_MAX, 2, 2))
    x = b.layernorm(b.concat(*parts, axis=-1))
    x = b.reduce("Mean", b.ffn(b.dense(x, 24, bias=False), 32), 1, 2, keepdims=0)
    return b.model(b.linear(x, 10))


@topology()
def swin_windows() -> onnx.ModelProto:
    """Cyclic shift by Slice and Concat, window partition, attention inside the windows, window reverse."""
    b = Builder()
    x = b.dense(b.input("input", ("batch", 8, 8, 3)), 16)
    y = b.layernorm(x)
    for axis in (1, 2):
        y = b.concat(b.slice(y, 2, INT_MAX, axis), b.slice(y, 0, 2, axis), axis=axis)
    y = b.transpose(b.reshape(y, b.size(y, 0), 2, 4, 2, 4, 16), 0, 1, 3, 2, 4, 5)
    windows = b.reshape(y, -1, 16, 16)
    qkv = b.reshape(b.dense(windows, 48), -1, 16, 3, 4, 4)
    q, k, v = (b.op("Gather", b.transpose(qkv, 2, 0, 3, 1, 4), i, axis=0) for i in range(3))
    windows = b.dense(b.declare(b.unheads(b.attend(q, k, v), 16), (None, 16, 16)), 16)
    y = b.transpose(b.reshape(windows, -1, 2, 2, 4, 4, 16), 0, 1, 3, 2, 4, 5)
    y = b.reshape(y, -1, 8, 8, 16)
    for axis in (1, 2):
        y = b.concat(b.slice(y, -2, INT_MAX, axis), b.slice(y, 0, -2, axis), axis=axis)
    x = b.add(x, y)
    x = b.add(x, b.ffn(b.layernorm(x), 32))
    return b.model(b.linear(b.reduce("Mean", x, 1, 2, keepdims=0), 10))


@topology()
@topology("c2f_slice", sliced=True)
def c2f(*, sliced: bool = False) -> onnx.ModelProto:
    """YOLOv8: split in halves, bottlenecks on the last part, all parts concatenated."""
    b = Builder()
    h = b.silu(b.conv(stem(b), 24, 1))
    parts = [b.slice(h, 0, 12, 1), b.slice(h, 12, 24, 1)] if sliced else b.split(h, [12, 12])
    for _ in range(2):
        y = b.silu(b.conv(b.silu(b.conv(parts[-1], 8)), 12))
        parts.append(b.add(parts[-1], y))
    return b.model(b.head(b.silu(b.conv(b.concat(*parts), 20, 1))))


@topology()
def elan_spp() -> onnx.ModelProto:
    """YOLOv7 layer aggregation and the SPPF chain of max pools."""
    b = Builder()
    x = stem(b)
    parts = [b.silu(b.conv(x, 12, 1)), b.silu(b.conv(x, 12, 1))]
    for _ in range(2):
        parts.append(b.silu(b.conv(parts[-1], 12)))
    pools = [b.silu(b.conv(b.concat(*reversed(parts)), 16, 1))]
    for _ in range(3):
        pools.append(b.op("MaxPool", pools[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2, 2, 2, 2]))
    return b.model(b.head(b.silu(b.conv(b.concat(*pools), 20, 1))))


@topology()
def depthwise_chunk_gate() -> onnx.ModelProto:
    """NAFNet: 1x1 to twice the width, depthwise, SimpleGate (Split and Mul), channel attention, 1x1."""
    b = Builder()
    x = stem(b)
    y = b.conv(b.conv(x, 32, 1), 32, group=32)
    first, second = b.split(y, [16, 16])
    y = b.mul(first, second)
    y = b.conv(b.mul(y, b.conv(b.gap(y), 16, 1)), 16, 1)
    x = b.add(x, b.mul(y, b.param(b.uniform(0.1, 0.5, 1, 16, 1, 1), "beta")))
    return b.model(tail(b, x))


@topology()
def gated_conv_glu() -> onnx.ModelProto:
    """GLU along the channels: Split, Sigmoid, Mul, then a depthwise 1-D convolution (Conformer)."""
    b = Builder()
    h = b.relu(b.conv(b.input("input", ("batch", 8, 16)), 12))
    value, gate = b.split(b.conv(h, 32, 1), [16, 16])
    h = b.mul(value, b.sigmoid(gate))
    h = b.silu(b.bn(b.conv(h, 16, 5, group=16)))
    return b.model(b.linear(b.flatten(b.gap(b.conv(h, 20, 1))), 10))


@topology()
def maxout() -> onnx.ModelProto:
    """LightCNN's max-feature-map: the elementwise maximum of two halves."""
    b = Builder()
    h = stem(b)
    for width in (24, 16):
        h = b.op("Max", *b.split(b.conv(h, 2 * width), [width, width]))
    return b.model(b.head(h))


@topology()
def grouped_max_reshape() -> onnx.ModelProto:
    """Maxout by Reshape: (N, C * k, H, W) to (N, C, k, H, W), ReduceMax over k."""
    b = Builder()
    h = b.reshape(b.conv(stem(b), 36), -1, 12, 3, 8, 8)
    return b.model(tail(b, b.declare(b.reduce("Max", h, 2, keepdims=0), ("batch", 12, 8, 8))))


# Channel attention and selection


@topology("squeeze_excite_conv", form="conv")
@topology("squeeze_excite_gemm", form="gemm")
@topology("squeeze_excite_hard", form="hard")
@topology("squeeze_excite_nhwc", form="nhwc")
def squeeze_excite(*, form: str) -> onnx.ModelProto:
    """GAP, two small layers, a gate per channel; as 1x1 convolutions, as Gemms with Reshape back, as Keras does."""
    b = Builder()
    x = b.relu(b.bn(b.conv(stem(b), 24)))
    if form == "gemm":
        s = b.reshape(b.gap(x), b.size(x, 0), 24)
        s = b.sigmoid(b.linear(b.relu(b.linear(s, 8)), 24))
        gate = b.reshape(s, b.size(x, 0), 24, 1, 1)
    elif form == "nhwc":
        s = b.reshape(b.reduce("Mean", x, 2, 3, keepdims=0), -1, 1, 1, 24)
        gate = b.transpose(b.sigmoid(b.dense(b.silu(b.dense(s, 8)), 24)), 0, 3, 1, 2)
    else:
        s = b.conv(b.relu(b.conv(b.gap(x), 8, 1)), 24, 1)
        gate = b.op("HardSigmoid", s, alpha=1 / 6, beta=0.5) if form == "hard" else b.sigmoid(s)
    return b.model(b.head(b.relu(b.conv(b.mul(x, gate), 16, 1))))


@topology()
def efficient_channel_attention() -> onnx.ModelProto:
    """ECA: a 1-D convolution slides along the channels, so their order and number matter."""
    b = Builder()
    x = stem(b)
    s = b.transpose(b.squeeze(b.gap(x), -1), 0, 2, 1)
    s = b.unsqueeze(b.transpose(b.conv(s, 1, 3, bias=False), 0, 2, 1), -1)
    return b.model(tail(b, b.mul(x, b.sigmoid(s))))


@topology()
def cbam() -> onnx.ModelProto:
    """Channel gate from average and maximum through one shared MLP; spatial gate from ReduceMean and ReduceMax."""
    b = Builder()
    x = b.relu(b.conv(stem(b), 24))
    w1, w2 = b.param(b.he(6, 24, 1, 1)), b.param(b.he(24, 6, 1, 1))

    def excite(s: str) -> str:
        return b.conv(b.relu(b.conv(s, 6, 1, weight=w1, bias=False)), 24, 1, weight=w2, bias=False)

    x = b.mul(x, b.sigmoid(b.add(excite(b.gap(x)), excite(b.op("GlobalMaxPool", x)))))
    space = b.concat(b.reduce("Mean", x, 1), b.reduce("Max", x, 1))
    return b.model(tail(b, b.mul(x, b.sigmoid(b.conv(space, 1, 7, bias=False)))))


@topology()
def selective_kernel() -> onnx.ModelProto:
    """SKNet: branches are stacked on a new axis, weighed by a Softmax over the branches, and summed."""
    b = Builder()
    x = stem(b)
    branches = [b.relu(b.bn(b.conv(x, 16, dilation=d, bias=False))) for d in (1, 2)]
    z = b.relu(b.conv(b.gap(b.add(*branches)), 8, 1))
    weights = b.softmax(b.concat(*[b.unsqueeze(b.conv(z, 16, 1), 1) for _ in branches]), axis=1)
    stacked = b.concat(*[b.unsqueeze(y, 1) for y in branches])
    return b.model(tail(b, b.reduce("Sum", b.mul(stacked, weights), 1, keepdims=0)))


@topology()
def split_attention() -> onnx.ModelProto:
    """ResNeSt: the radix lies in the channels; Reshape, ReduceSum, grouped 1x1, Softmax over the radix."""
    b = Builder()
    u = b.relu(b.bn(b.conv(stem(b), 32, group=2, bias=False)))
    parts = b.reshape(u, -1, 2, 16, 8, 8)
    z = b.gap(b.declare(b.reduce("Sum", parts, 1, keepdims=0), ("batch", 16, 8, 8)))
    scores = b.reshape(b.conv(b.relu(b.conv(z, 8, 1)), 32, 1), -1, 1, 2, 16)
    gate = b.reshape(b.softmax(b.transpose(scores, 0, 2, 1, 3), axis=1), -1, 2, 16, 1, 1)
    y = b.declare(b.reduce("Sum", b.mul(parts, gate), 1, keepdims=0), ("batch", 16, 8, 8))
    return b.model(tail(b, y))


@topology()
def coordinate_attention() -> onnx.ModelProto:
    """Pools along each spatial axis, joined, one 1x1 convolution, split again into two gates."""
    b = Builder()
    x = stem(b)
    rows = b.reduce("Mean", x, 3)
    columns = b.transpose(b.reduce("Mean", x, 2), 0, 1, 3, 2)
    y = b.op("HardSwish", b.bn(b.conv(b.concat(rows, columns, axis=2), 8, 1)))
    rows, columns = b.split(y, [8, 8], axis=2)
    gates = [b.sigmoid(b.conv(t, 16, 1)) for t in (rows, b.transpose(columns, 0, 1, 3, 2))]
    return b.model(tail(b, b.mul(b.mul(x, gates[0]), gates[1])))


@topology()
def channel_cross_attention() -> onnx.ModelProto:
    """XCiT, Restormer: channels attend to channels, with L2-normalised queries and keys."""
    b = Builder()
    x = stem(b)
    qkv = b.conv(b.conv(x, 48, 1), 48, group=48)
    q, k, v = (b.reshape(part, -1, 2, 8, 64) for part in b.split(qkv, [16, 16, 16]))
    q, k = (b.op("Div", t, b.op("Clip", b.reduce("L2", t, -1), 1e-6)) for t in (q, k))
    scores = b.softmax(b.mul(b.matmul(q, b.transpose(k, 0, 1, 3, 2)), b.param(b.uniform(0.5, 1.5, 2, 1, 1))))
    y = b.reshape(b.matmul(scores, v), -1, 16, 8, 8)
    return b.model(tail(b, b.add(x, b.conv(y, 16, 1))))


@topology()
def aspp() -> onnx.ModelProto:
    """DeepLab: dilated branches, image pooling resized to the map's size as read from Shape, Concat."""
    b = Builder()
    x = b.relu(b.conv(stem(b), 16))
    branches = [b.relu(b.bn(b.conv(x, 12, 1)))]
    branches += [b.relu(b.bn(b.conv(x, 12, dilation=d))) for d in (2, 3)]
    pool = b.relu(b.bn(b.conv(b.gap(x), 12, 1)))
    space = b.op("Slice", b.op("Shape", x), [2], [4], [0])
    sizes = b.concat(b.op("Slice", b.op("Shape", pool), [0], [2], [0]), space, axis=0)
    pool = b.op("Resize", pool, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    branches.append(b.declare(pool, ("batch", 12, 8, 8)))
    y = b.relu(b.bn(b.conv(b.concat(*branches), 20, 1)))
    return b.model(b.op("Resize", b.conv(y, 5, 1), "", [1.0, 1.0, 2.0, 2.0], mode="linear"))


@topology()
def convnext() -> onnx.ModelProto:
    """Depthwise 7x7, NHWC LayerNormalization, two linears, layer scale, back to NCHW; a 2x2 downsampling in between."""
    b = Builder()
    x = b.conv(image(b, size=16), 16, 2, stride=2, pad=0)
    for width in (16, 24):
        if width != b.channels(x):
            x = b.transpose(b.layernorm(b.transpose(x, 0, 2, 3, 1)), 0, 3, 1, 2)
            x = b.conv(x, width, 2, stride=2, pad=0)
        y = b.layernorm(b.transpose(b.conv(x, width, 7, group=width), 0, 2, 3, 1))
        y = b.mul(b.param(b.uniform(0.1, 0.5, width), "gamma"), b.ffn(y, 2 * width))
        x = b.add(x, b.transpose(y, 0, 3, 1, 2))
    return b.model(b.linear(b.layernorm(b.flatten(b.gap(x))), 10))


@topology()
def convnext_v2_grn() -> onnx.ModelProto:
    """Global response normalisation: each hidden channel is divided by the mean norm over all of them."""
    b = Builder()
    x = stem(b)
    y = b.layernorm(b.transpose(b.conv(x, 16, 7, group=16), 0, 2, 3, 1))
    y = b.gelu(b.dense(y, 32))
    norm = b.reduce("L2", y, 1, 2)
    norm = b.op("Div", norm, b.add(b.reduce("Mean", norm, -1), 1e-6))
    y = b.add(b.add(b.mul(b.vec(1, 1, 1, 32), b.mul(y, norm)), b.vec(1, 1, 1, 32)), y)
    return b.model(tail(b, b.add(x, b.transpose(b.dense(y, 16), 0, 3, 1, 2))))


@topology()
def mobilevit() -> onnx.ModelProto:
    """Unfold into 2x2 patches, a transformer over the patches, fold; Concat with the input."""
    b = Builder()
    x = stem(b)
    y = b.conv(b.silu(b.conv(x, 16)), 12, 1, bias=False)
    y = b.transpose(b.reshape(y, -1, 2, 4, 2), 0, 2, 1, 3)
    y = b.reshape(y, -1, 12, 16, 4)
    y = b.reshape(b.transpose(y, 0, 3, 2, 1), -1, 16, 12)
    y = b.declare(y, (None, 16, 12))
    y = b.add(y, b.attention(b.layernorm(y), 2))
    y = b.layernorm(b.add(y, b.ffn(b.layernorm(y), 24)))
    y = b.transpose(b.reshape(y, -1, 4, 16, 12), 0, 3, 2, 1)
    y = b.transpose(b.reshape(y, -1, 4, 2, 2), 0, 2, 1, 3)
    y = b.reshape(y, -1, 12, 8, 8)
    return b.model(tail(b, b.concat(x, b.silu(b.conv(y, 16, 1)))))


@topology()
def pointnet() -> onnx.ModelProto:
    """Shared MLP on points, a predicted 8x8 feature transform, maximum over the points."""
    b = Builder()
    h = b.relu(b.bn(b.conv(b.input("points", ("batch", 3, 32)), 8, 1)))
    t = b.reduce("Max", b.relu(b.conv(h, 16, 1)), 2, keepdims=0)
    t = b.reshape(b.add(b.linear(b.relu(b.linear(t, 12)), 64), b.param(np.eye(8).reshape(-1))), -1, 8, 8)
    h = b.transpose(b.matmul(b.transpose(h, 0, 2, 1), t), 0, 2, 1)
    h = b.reduce("Max", b.bn(b.conv(b.declare(h, ("batch", 8, 32)), 24, 1)), 2, keepdims=0)
    return b.model(b.linear(b.relu(b.linear(h, 16)), 10))


@topology()
def siamese_correlation() -> onnx.ModelProto:
    """SiamFC: the template's features are the Conv weight for the search's features; one backbone for both."""
    b = Builder()
    template, search = b.input("template", (1, 3, 6, 6)), b.input("search", (1, 3, 12, 12))
    w1, w2 = b.param(b.he(16, 3, 3, 3)), b.param(b.he(12, 16, 3, 3))

    def embed(x: str) -> str:
        return b.conv(b.relu(b.conv(x, 16, weight=w1)), 12, weight=w2, bias=False)

    return b.model(b.op("Conv", embed(search), embed(template), kernel_shape=[6, 6]))


# Normalisation


def groupnorm_decomposed(b: Builder, x: str, groups: int, *, gamma: str = "", beta: str = "") -> str:
    """PyTorch before opset 18: Reshape, InstanceNormalization with ones and zeros, Reshape, Mul, Add."""
    c = b.channels(x)
    shape = b.op("Shape", x)
    y = b.reshape(x, 0, groups, -1)
    y = b.op("InstanceNormalization", y, b.const([1.0] * groups), b.const([0.0] * groups), epsilon=1e-5)
    y = b.declare(b.op("Reshape", y, shape), b.shape(x))
    gamma = gamma or b.param(b.uniform(0.5, 1.5, c, 1, 1), "gn.weight")
    return b.add(b.mul(y, gamma), beta or b.vec(c, 1, 1))


@topology()
def groupnorm_decomposed_block() -> onnx.ModelProto:
    b = Builder()
    x = stem(b)
    y = b.silu(groupnorm_decomposed(b, b.conv(x, 24), 6))
    y = b.silu(groupnorm_decomposed(b, b.conv(y, 16), 4))
    return b.model(tail(b, b.add(x, y)))


@topology("groupnorm_opset18", opset=18, into=UNCHECKED)
@topology("groupnorm_opset21", opset=21)
def groupnorm(*, opset: int) -> onnx.ModelProto:
    """scale and bias have one entry per group at opset 18 (deprecated since) and one per channel at opset 21."""
    b = Builder(opset)
    h = stem(b)
    for width, groups in ((24, 4), (16, 8)):
        h = b.conv(h, width)
        n = groups if opset < 21 else width
        vectors = [b.param(b.uniform(0.5, 1.5, n)), b.vec(n)]
        h = b.op("GroupNormalization", h, *vectors, num_groups=groups, epsilon=1e-5)
        h = b.relu(b.declare(h, ("batch", width, 8, 8)))
    return b.model(tail(b, h))


@topology()
def instance_norm() -> onnx.ModelProto:
    b = Builder()
    h = image(b)
    for width in (16, 24):
        vectors = [b.param(b.uniform(0.5, 1.5, width)), b.vec(width)]
        h = b.relu(b.op("InstanceNormalization", b.conv(h, width), *vectors))
    return b.model(tail(b, h))


@topology("lrn", kind="LRN", size=5, alpha=0.01, beta=0.75)
@topology("softmax_over_channels", kind="Softmax", axis=1)
@topology("log_softmax_over_channels", kind="LogSoftmax", axis=1)
@topology("lp_normalization_over_channels", kind="LpNormalization", axis=1, p=2)
@topology("mean_variance_normalization", kind="MeanVarianceNormalization", axes=[0, 2, 3])
@topology("mean_variance_normalization_channels", kind="MeanVarianceNormalization", axes=[1, 2, 3])
def channel_mixer(*, kind: str, **attributes: Any) -> onnx.ModelProto:
    """An operator that mixes channels without a weight (or, over batch and space, one that does not)."""
    b = Builder()
    return b.model(tail(b, b.op(kind, stem(b), **attributes)))


@topology()
def softmax_opset11_flattens() -> onnx.ModelProto:
    """Before opset 13 Softmax(axis=1) normalises over everything from axis 1 on."""
    b = Builder(11)
    return b.model(tail(b, b.op("Softmax", stem(b), axis=1)))


@topology()
def layernorm_channels_first() -> onnx.ModelProto:
    """LayerNorm2d by hand: mean and variance over the channels of NCHW, affine (C, 1, 1)."""
    b = Builder()
    x = stem(b)
    centred = b.op("Sub", x, b.reduce("Mean", x, 1))
    variance = b.reduce("Mean", b.mul(centred, centred), 1)
    y = b.op("Div", centred, b.op("Sqrt", b.add(variance, 1e-6)))
    y = b.add(b.mul(b.param(b.uniform(0.5, 1.5, 16, 1, 1)), y), b.vec(16, 1, 1))
    return b.model(tail(b, b.conv(b.gelu(b.conv(y, 32, 1)), 16, 1)))


@topology()
def layernorm_over_image() -> onnx.ModelProto:
    """LayerNormalization(axis=1): scale and bias of shape (C, H, W)."""
    b = Builder()
    h = b.conv(stem(b), 16)
    affine = [b.param(b.uniform(0.5, 1.5, 16, 8, 8)), b.vec(16, 8, 8)]
    return b.model(tail(b, b.op("LayerNormalization", h, *affine, axis=1)))


@topology()
def batchnorm_by_hand() -> onnx.ModelProto:
    """Frozen BatchNorm (detectron): Mul and Add with (1, C, 1, 1), computed from four vectors in the graph."""
    b = Builder()
    h = b.conv(stem(b), 20, bias=False)
    gamma, var = b.param(b.uniform(0.5, 1.5, 20)), b.param(b.uniform(0.5, 1.5, 20))
    scale = b.mul(gamma, b.op("Reciprocal", b.op("Sqrt", b.add(var, 1e-5))))
    shift = b.op("Sub", b.vec(20), b.mul(b.vec(20), scale))
    h = b.add(b.mul(h, b.reshape(scale, 1, -1, 1, 1)), b.reshape(shift, 1, 20, 1, 1))
    return b.model(tail(b, b.relu(h)))


# Decoders, up- and downsampling


@topology()
def unet() -> onnx.ModelProto:
    """ConvTranspose decoder with skip concatenations."""
    b = Builder()
    x1 = b.relu(b.bn(b.conv(image(b, size=16), 12, bias=False)))
    x2 = b.relu(b.bn(b.conv(b.op("MaxPool", x1, kernel_shape=[2, 2], strides=[2, 2]), 16, bias=False)))
    x3 = b.relu(b.bn(b.conv(b.op("MaxPool", x2, kernel_shape=[2, 2], strides=[2, 2]), 24, bias=False)))
    y = b.relu(b.bn(b.conv(b.concat(x2, b.deconv(x3, 16)), 16, bias=False)))
    y = b.relu(b.bn(b.conv(b.concat(b.deconv(y, 12), x1), 12, bias=False)))
    return b.model(b.conv(y, 2, 1))


@topology()
def deconv_grouped() -> onnx.ModelProto:
    """Grouped ConvTranspose, then one that is depthwise (bilinear upsampling)."""
    b = Builder()
    h = b.relu(b.deconv(stem(b, 16), 24, group=4))
    h = b.deconv(h, 24, 4, group=24, pads=[1, 1, 1, 1])
    return b.model(b.conv(h, 3))


@topology()
def deconv_output_padding() -> onnx.ModelProto:
    b = Builder()
    h = b.relu(b.bn(b.deconv(stem(b), 20, 3, pads=[1, 1, 1, 1], output_padding=[1, 1])))
    h = b.relu(b.deconv(h, 12, 3, stride=1, output_shape=[16, 16], auto_pad="SAME_UPPER"))
    return b.model(b.conv(h, 3))


@topology()
def dcgan_generator() -> onnx.ModelProto:
    """A Gemm's features become channels and space: Reshape to (-1, 24, 4, 4)."""
    b = Builder()
    h = b.relu(b.bn(b.linear(b.relu(b.linear(b.input("noise", ("batch", 8)), 20)), 24 * 16)))
    h = b.reshape(h, -1, 24, 4, 4)
    h = b.relu(b.bn(b.deconv(b.declare(h, ("batch", 24, 4, 4)), 16, 4, pads=[1, 1, 1, 1])))
    return b.model(b.op("Tanh", b.deconv(h, 3, 4, pads=[1, 1, 1, 1])))


@topology("depth_to_space_dcr", mode="DCR")
@topology("depth_to_space_crd", mode="CRD")
def depth_to_space(*, mode: str) -> onnx.ModelProto:
    """PixelShuffle upsampler between two convolutions."""
    b = Builder()
    h = b.op("DepthToSpace", b.conv(stem(b), 32), blocksize=2, mode=mode)
    return b.model(b.conv(b.relu(b.conv(b.relu(h), 12)), 3))


@topology()
def pixel_shuffle_reshape() -> onnx.ModelProto:
    """(N, C * r * r, H, W) by Reshape, Transpose, Reshape, and the same back (PixelUnshuffle)."""
    b = Builder()
    h = b.conv(stem(b), 32)
    h = b.transpose(b.reshape(h, b.size(h, 0), 8, 2, 2, 8, 8), 0, 1, 4, 2, 5, 3)
    h = b.relu(b.conv(b.reshape(h, -1, 8, 16, 16), 12))
    h = b.transpose(b.reshape(h, b.size(h, 0), 12, 8, 2, 8, 2), 0, 1, 3, 5, 2, 4)
    return b.model(b.conv(b.reshape(h, -1, 48, 8, 8), 3))


@topology()
def space_to_depth() -> onnx.ModelProto:
    b = Builder()
    h = b.op("SpaceToDepth", stem(b, 12), blocksize=2)
    return b.model(tail(b, h))


@topology()
def focus_slices() -> onnx.ModelProto:
    """YOLOv5's Focus, on hidden channels: four strided slices, Concat."""
    b = Builder()
    h = stem(b, 12)
    starts = [(0, 0), (1, 0), (0, 1), (1, 1)]
    parts = [b.op("Slice", h, list(s), [INT_MAX, INT_MAX], [2, 3], [2, 2]) for s in starts]
    return b.model(tail(b, b.concat(*parts)))


@topology("resize_sizes", form="sizes")
@topology("resize_sizes_computed", form="computed")
@topology("resize_scales", form="scales")
@topology("resize_opset10", form="scales", opset=10)
@topology("resize_axes_opset18", form="axes", opset=18)
@topology("upsample_opset9", form="upsample", opset=9)
@topology("upsample_opset7", form="upsample", opset=7)
def resize(*, form: str, opset: int = 17) -> onnx.ModelProto:
    """FPN top-down path: a coarse map is resized and added to a fine one; `sizes` holds the channels too."""
    b = Builder(opset)
    fine = stem(b)
    coarse = b.relu(b.conv(fine, 24, stride=2))
    lateral, top = b.conv(fine, 16, 1), b.conv(coarse, 16, 1)
    up = [1.0, 1.0, 2.0, 2.0]
    if form == "sizes":
        batch = b.unsqueeze(b.size(top, 0), 0)
        top = b.op("Resize", top, "", "", b.concat(batch, b.const([16, 8, 8]), axis=0), mode="nearest")
    elif form == "computed":
        sizes = b.dims(b.size(top, 0), b.size(top, 1), b.size(lateral, 2), b.size(lateral, 3))
        top = b.op("Resize", top, "", "", sizes, mode="nearest")
    elif form == "axes":
        top = b.op("Resize", top, "", [2.0, 2.0], mode="nearest", axes=[2, 3])
    elif form == "upsample" and opset < 9:
        top = b.op("Upsample", top, scales=up, mode="nearest")
    else:
        roi = [""] if opset > 10 else []
        top = b.op("Upsample" if form == "upsample" else "Resize", top, *roi, up, mode="nearest")
    return b.model(tail(b, b.add(lateral, b.declare(top, ("batch", 16, 8, 8)))), b.conv(coarse, 4))


@topology()
def resize_sizes_baked() -> onnx.ModelProto:
    """Everything constant: `sizes` is [1, 16, 16, 16]."""
    b = Builder()
    h = b.relu(b.conv(b.relu(b.conv(b.input("input", (1, 3, 8, 8)), 12)), 16))
    h = b.op("Resize", h, "", "", b.param(np.array([1, 16, 16, 16])), mode="linear")
    return b.model(b.conv(b.relu(b.conv(h, 12)), 3))


@topology("average_pool", kind="AveragePool")
@topology("average_pool_ceil_include_pad", kind="AveragePool", count_include_pad=1, ceil_mode=1)
@topology("max_pool", kind="MaxPool")
@topology("lp_pool", kind="LpPool", p=2)
def pool(*, kind: str, **attributes: Any) -> onnx.ModelProto:
    b = Builder()
    h = b.op(kind, stem(b), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], **attributes)
    h = b.op("GlobalMaxPool", b.relu(b.conv(h, 24)))
    return b.model(b.linear(b.flatten(h), 10))


@topology()
def max_unpool() -> onnx.ModelProto:
    """SegNet: the indices of a MaxPool place the values again."""
    b = Builder()
    h = stem(b)
    y, indices = b.ops("MaxPool", h, n=2, kernel_shape=[2, 2], strides=[2, 2])
    y = b.op("MaxUnpool", b.relu(b.conv(y, 16)), indices, kernel_shape=[2, 2], strides=[2, 2])
    return b.model(b.conv(b.relu(b.conv(b.declare(y, ("batch", 16, 8, 8)), 12)), 3))


@topology()
def grid_sample() -> onnx.ModelProto:
    """Spatial transformer: a localisation net predicts two offsets per pixel."""
    b = Builder()
    x = stem(b)
    offsets = b.op("Tanh", b.transpose(b.conv(b.relu(b.conv(x, 8)), 2), 0, 2, 3, 1))
    y = b.declare(b.op("GridSample", x, offsets, align_corners=0), ("batch", 16, 8, 8))
    return b.model(tail(b, y))


@topology()
def roi_align() -> onnx.ModelProto:
    """Two-stage detector: boxes are an input, pooled features are flattened into Gemms."""
    b = Builder(16)
    x = b.relu(b.conv(stem(b), 16))
    boxes, index = b.input("boxes", (5, 4)), b.param(np.zeros(5, np.int64))
    y = b.op("RoiAlign", x, boxes, index, output_height=3, output_width=3, sampling_ratio=2)
    flat = b.declare(b.flatten(b.declare(y, (5, 16, 3, 3))), (5, 144))
    h = b.relu(b.linear(flat, 24))
    return b.model(b.linear(h, 6), b.linear(h, 8))


@topology()
def col2im() -> onnx.ModelProto:
    """nn.Fold: the columns are C * k * k."""
    b = Builder(18)
    h = b.conv(stem(b), 32, 2, stride=2, pad=0)
    columns = b.reshape(h, 0, 32, -1)
    y = b.op("Col2Im", columns, [8, 8], [2, 2], strides=[2, 2])
    return b.model(tail(b, b.declare(y, ("batch", 8, 8, 8))))


@topology("deform_conv_opset19", opset=19)
@topology("deform_conv_opset22", opset=22)
def deform_conv(*, opset: int) -> onnx.ModelProto:
    """The offsets' 2 * 9 channels and the mask's 9 are fixed; input and output channels are not."""
    b = Builder(opset)
    x = stem(b)
    offset, mask = b.conv(x, 18), b.sigmoid(b.conv(x, 9))
    weight, bias = b.param(b.he(20, 16, 3, 3)), b.vec(20)
    sizes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    y = b.op("DeformConv", x, weight, offset, bias, mask, **sizes)
    return b.model(tail(b, b.relu(b.declare(y, ("batch", 20, 8, 8)))))


# Groups


@topology()
def resnext() -> onnx.ModelProto:
    """Four groups of several channels, in a bottleneck."""
    b = Builder()
    x = b.relu(b.bn(b.conv(image(b), 24, bias=False)))
    for _ in range(2):
        y = b.relu(b.bn(b.conv(x, 16, 1, bias=False)))
        y = b.relu(b.bn(b.conv(y, 16, group=4, bias=False)))
        x = b.relu(b.add(x, b.bn(b.conv(y, 24, 1, bias=False))))
    return b.model(b.head(x))


@topology()
def grouped_conv_uneven() -> onnx.ModelProto:
    """Groups with more outputs than inputs, followed by other group counts: 2 groups, then 3."""
    b = Builder()
    h = b.relu(b.conv(stem(b, 12), 24, group=2))
    return b.model(tail(b, b.relu(b.conv(h, 18, group=3))))


@topology("depthwise", multiplier=1)
@topology("depthwise_multiplier2", multiplier=2)
def depthwise(*, multiplier: int) -> onnx.ModelProto:
    b = Builder()
    h = image(b)
    for width in (16, 24):
        h = b.relu(b.bn(b.conv(h, width, 1, bias=False)))
        h = b.relu(b.bn(b.conv(h, width * multiplier, group=width, bias=False)))
    return b.model(b.head(h))


@topology()
def depthwise_on_input() -> onnx.ModelProto:
    """The first layer is depthwise with a multiplier: the three input channels must stay."""
    b = Builder()
    h = b.relu(b.conv(image(b), 12, group=3))
    return b.model(tail(b, b.relu(b.conv(h, 20, 1))))


# Activations


@topology("prelu_per_channel", shape=(16, 1, 1))
@topology("prelu_shared", shape=(1,))
@topology("prelu_full", shape=(16, 8, 8))
def prelu(*, shape: tuple[int, ...]) -> onnx.ModelProto:
    b = Builder()
    h = b.op("PRelu", b.conv(stem(b), 16), b.param(b.uniform(0.1, 0.4, *shape), "prelu.weight"))
    return b.model(tail(b, h))


@topology()
def prelu_gemm() -> onnx.ModelProto:
    b = Builder()
    h = b.linear(b.input("input", ("batch", 16)), 32)
    return b.model(b.linear(b.op("PRelu", h, b.param(b.uniform(0.1, 0.4, 32), "prelu.weight")), 10))


@topology()
def activations() -> onnx.ModelProto:
    """One convolution per activation function, several of which do not map zero to zero."""
    b = Builder(20)
    h = image(b)
    h = b.op("LeakyRelu", b.conv(h, 16), alpha=0.1)
    h = b.op("HardSwish", b.conv(h, 12))
    h = b.op("Elu", b.conv(h, 16), alpha=0.5)
    h = b.op("Clip", b.conv(h, 12), -1.0, 4.0)
    h = b.op("Softplus", b.conv(h, 16))
    h = b.op("Mish", b.conv(h, 12))
    h = b.op("Gelu", b.conv(h, 16), approximate="tanh")
    h = b.op("Cos", b.conv(h, 12))
    h = b.op("HardSigmoid", b.conv(h, 16))
    return b.model(b.head(b.op("Selu", b.conv(h, 12))))


@topology()
def clip_attributes_opset10() -> onnx.ModelProto:
    """Clip with min and max as attributes, one side only in the second."""
    b = Builder(10)
    h = b.op("Clip", b.conv(image(b), 16), min=0.0, max=6.0)
    return b.model(b.head(b.op("Clip", b.conv(h, 24), min=0.1)))


@topology()
def variadic_elementwise() -> onnx.ModelProto:
    """Sum, Max, Min and Mean of several convolutions, Sub and Div among activations."""
    b = Builder()
    x = stem(b)
    a, c, d = (b.conv(x, 16) for _ in range(3))
    h = b.op("Sub", b.op("Sum", a, c, d), b.op("Mean", a, c))
    h = b.op("Div", b.op("Max", h, a, 0.1), b.op("Min", b.add(b.op("Abs", d), 1.0), b.param(b.uniform(2, 3, 16, 1, 1))))
    return b.model(tail(b, h))


# Branches


@topology()
def inception() -> onnx.ModelProto:
    b = Builder()
    x = stem(b)
    pool = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    branches = [
        b.conv(x, 8, 1),
        b.conv(b.relu(b.conv(x, 12, 1)), 16),
        b.conv(b.relu(b.conv(x, 8, 1)), 12, 5),
        b.conv(pool, 8, 1),
    ]
    return b.model(tail(b, b.concat(*[b.relu(b.bn(y)) for y in branches])))


@topology()
def squeezenet_fire() -> onnx.ModelProto:
    """Fire modules; the classifier is a convolution with pooling after it."""
    b = Builder()
    h = b.relu(b.conv(image(b), 16))
    for squeeze, expand in ((8, 12), (10, 16)):
        s = b.relu(b.conv(h, squeeze, 1))
        h = b.concat(b.relu(b.conv(s, expand, 1)), b.relu(b.conv(s, expand)))
    return b.model(b.flatten(b.gap(b.relu(b.conv(h, 10, 1)))))


@topology()
def concat_nested() -> onnx.ModelProto:
    """A Concat of Concats, added to a single convolution of the same width."""
    b = Builder()
    x = stem(b)
    h = b.concat(b.concat(b.conv(x, 8), b.conv(x, 6)), b.conv(x, 10))
    return b.model(tail(b, b.relu(b.add(h, b.conv(x, 24, 1)))))


@topology()
def concat_with_constant() -> onnx.ModelProto:
    """CoordConv: two constant coordinate channels, expanded over the batch, are concatenated to hidden channels."""
    b = Builder()
    h = stem(b)
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 8)))[None]
    coordinates = b.op("Expand", b.param(grid), b.dims(b.size(h, 0), 2, 8, 8))
    return b.model(tail(b, b.concat(h, b.declare(coordinates, ("batch", 2, 8, 8)))))


# Where weights come from


@topology()
def weight_constant_of_shape() -> onnx.ModelProto:
    """A box filter and a bias made by ConstantOfShape."""
    b = Builder()

    def filled(value: float, *shape: int) -> str:
        return b.op("ConstantOfShape", list(shape), value=numpy_helper.from_array(np.full(1, value, np.float32)))

    h = b.conv(stem(b), 16, group=16, weight=filled(1 / 9, 16, 1, 3, 3), bias=filled(0.1, 16))
    h = b.relu(b.conv(h, 12, weight=filled(0.01, 12, 16, 3, 3)))
    return b.model(tail(b, h))


@topology()
def weight_reshaped() -> onnx.ModelProto:
    """CNTK's MNIST: the dense weight is stored (channels, H, W, classes) and reshaped in the graph."""
    b = Builder(8, weights="input")
    h = b.relu(b.add(b.conv(image(b, 1), 12, 5, bias=False), b.vec(12, 1, 1)))
    h = b.relu(b.add(b.conv(h, 16, 5, bias=False), b.vec(16, 1, 1)))
    h = b.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    flat = b.declare(b.op("Reshape", h, b.const([-1, 256])), ("batch", 256))
    weight = b.op("Reshape", b.param(b.he(16, 4, 4, 10, fan_in=256)), b.const([256, 10]))
    return b.model(b.add(b.matmul(flat, weight), b.vec(1, 10)))


@topology()
def weight_transposed() -> onnx.ModelProto:
    """Dense weights stored (out, in) and transposed in the graph; a Conv weight stored HWIO, as TensorFlow does."""
    b = Builder()
    weight = b.transpose(b.param(b.he(3, 3, 3, 16, fan_in=27)), 3, 2, 0, 1)
    h = b.flatten(b.gap(b.relu(b.conv(image(b), 16, weight=weight))))
    for width in (24, 10):
        h = b.add(b.matmul(h, b.transpose(b.param(b.he(width, b.channels(h))), 1, 0)), b.vec(width))
        h = b.relu(h) if width == 24 else h
    return b.model(h)


@topology()
def weight_normalised() -> onnx.ModelProto:
    """Weight norm: g * v / ||v||, the norm per filter by ReduceL2."""
    b = Builder()
    h = stem(b)
    v, g = b.param(b.he(20, 16, 3, 3), "weight_v"), b.param(b.uniform(0.5, 2, 20, 1, 1, 1), "weight_g")
    weight = b.mul(v, b.op("Div", g, b.reduce("L2", v, 1, 2, 3)))
    return b.model(tail(b, b.relu(b.conv(h, 20, weight=weight))))


@topology()
def weight_standardised() -> onnx.ModelProto:
    """BiT: the mean and the deviation of each filter are taken off in the graph; input channels are mixed by it."""
    b = Builder()
    h = stem(b)
    w = b.param(b.he(20, 16, 3, 3))
    centred = b.op("Sub", w, b.reduce("Mean", w, 1, 2, 3))
    deviation = b.op("Sqrt", b.add(b.reduce("Mean", b.mul(centred, centred), 1, 2, 3), 1e-5))
    weight = b.mul(b.op("Div", centred, deviation), 0.1)
    return b.model(tail(b, b.relu(b.conv(h, 20, weight=weight))))


@topology()
def weight_cast_float16() -> onnx.ModelProto:
    """Weights stored in half precision and cast in the graph."""
    b = Builder()
    h = b.input("input", ("batch", 16))
    for width in (32, 10):
        stored = b.param(b.he(width, b.channels(h)).astype(np.float16))
        h = b.op("Gemm", h, b.op("Cast", stored, to=onnx.TensorProto.FLOAT), b.vec(width), transB=1)
        h = b.relu(h) if width == 32 else h
    return b.model(h)


@topology()
def weight_concatenated() -> onnx.ModelProto:
    """A fused projection whose weight is a Concat of two stored halves."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    weight = b.concat(b.param(b.he(16, 12, fan_in=16)), b.param(b.he(16, 20, fan_in=16)), axis=1)
    h = b.relu(b.add(b.matmul(x, weight), b.concat(b.vec(12), b.vec(20), axis=0)))
    return b.model(b.dense(h, 10))


@topology()
def weight_modulated() -> onnx.ModelProto:
    """StyleGAN2 (batch 1): the style scales the weight's input channels, then each filter is demodulated."""
    b = Builder()
    x = b.relu(b.conv(b.relu(b.conv(b.input("input", (1, 3, 8, 8)), 12)), 16))
    style = b.linear(b.relu(b.linear(b.input("style", (1, 8)), 20)), 16)
    w = b.mul(b.param(b.he(20, 16, 3, 3)), b.reshape(style, 1, 16, 1, 1))
    norm = b.op("Sqrt", b.add(b.reduce("Sum", b.mul(w, w), 1, 2, 3), 1e-8))
    return b.model(b.head(b.relu(b.conv(x, 20, weight=b.op("Div", w, norm)))))


@topology("weight_sparse_constant", constant=True, into=UNCHECKED)
@topology("weight_sparse_initializer", constant=False, into=UNCHECKED)
def weight_sparse(*, constant: bool) -> onnx.ModelProto:
    """A dense layer whose weight is stored in coordinate format; onnxruntime saves the indices as int16."""
    b = Builder()
    dense = b.he(24, 20, fan_in=12) * (b.rng.random((24, 20)) < 0.5)
    index = np.flatnonzero(dense)
    values = numpy_helper.from_array(dense.reshape(-1)[index].astype(np.float32), "sparse.weight")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(index, "sparse.index"), dense.shape)
    h = b.relu(b.linear(b.relu(b.linear(b.input("input", ("batch", 16)), 32)), 24))
    weight = b.op("Constant", sparse_value=sparse) if constant else "sparse.weight"
    h = b.relu(b.declare(b.matmul(h, weight), ("batch", 20)))
    model = b.model(b.linear(h, 10))
    if not constant:
        model.graph.sparse_initializer.append(sparse)
    return model


# Quantised networks


def scale_of(array: Array, axis: int | None = None) -> Array:
    """Symmetric int8 scales, over all of the array or per index of `axis`."""
    rest = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
    return np.asarray(np.abs(array).max(rest) / 127.0).astype(np.float32)


def quantised(array: Array, scale: Array, axis: int | None = None) -> Array:
    shape = [-1 if i == axis else 1 for i in range(array.ndim)] if axis is not None else []
    return np.clip(np.rint(array / scale.reshape(shape)), -127, 127).astype(np.int8)


def qdq(b: Builder, x: str, scale: float = 0.05) -> str:
    """QuantizeLinear and DequantizeLinear on an activation: uint8, zero point 128."""
    pair = [b.param(np.array(scale, np.float32), "scale"), b.param(np.array(128, np.uint8), "zero_point")]
    return b.op("DequantizeLinear", b.op("QuantizeLinear", x, *pair), *pair)


def stored_int8(b: Builder, array: Array, axis: int | None) -> tuple[str, Array]:
    """An int8 weight behind DequantizeLinear, per channel when `axis` is given; also its scales."""
    scale = scale_of(array, axis)
    weight = b.param(quantised(array, scale, axis), "weight_int8")
    pair = [b.param(scale, "scale"), b.param(np.zeros(scale.shape, np.int8), "zero_point")]
    return b.op("DequantizeLinear", weight, *pair, axis=axis), scale


@topology("qdq_conv_per_channel", axis=0)
@topology("qdq_conv_per_tensor", axis=None)
def qdq_conv(*, axis: int | None) -> onnx.ModelProto:
    """Activations, int8 weights and int32 biases behind DequantizeLinear, residual add between quantised tensors."""
    b = Builder()

    def layer(x: str, width: int) -> str:
        weight, scale = stored_int8(b, b.he(width, b.channels(x), 3, 3), axis)
        bias_scale = (0.05 * scale).astype(np.float32)
        bias = b.param(np.rint(b.normal(width) / bias_scale).astype(np.int32), "bias_int32")
        zero = b.param(np.zeros(bias_scale.shape, np.int32), "zero_point")
        bias = b.op("DequantizeLinear", bias, b.param(bias_scale, "scale"), zero, axis=axis)
        return qdq(b, b.relu(b.conv(x, width, weight=weight, bias=bias)))

    h = layer(layer(qdq(b, image(b)), 12), 16)
    h = qdq(b, b.add(h, layer(layer(h, 20), 16)))
    return b.model(b.head(h))


@topology("qdq_gemm_per_channel", axis=0)
@topology("qdq_gemm_per_tensor", axis=None)
@topology("qdq_gemm_trans_b0", axis=1, trans_b=0)
def qdq_gemm(*, axis: int | None, trans_b: int = 1) -> onnx.ModelProto:
    b = Builder()
    h = qdq(b, b.input("input", ("batch", 16)))
    for width in (32, 24, 10):
        w = b.he(width, b.channels(h))
        weight, _ = stored_int8(b, w if trans_b else w.T, axis)
        h = b.op("Gemm", h, weight, b.vec(width), transB=trans_b)
        h = qdq(b, b.relu(h)) if width != 10 else h
    return b.model(h)


@topology()
def qdq_float_weights() -> onnx.ModelProto:
    """Fake quantisation: the weights are stored as floats and pass through QuantizeLinear per channel."""
    b = Builder()
    h = image(b)
    for width in (16, 24):
        w = b.he(width, b.channels(h), 3, 3)
        scale = scale_of(w, 0)
        pair = [b.param(scale, "scale"), b.param(np.zeros(width, np.int8), "zero_point")]
        weight = b.op("DequantizeLinear", b.op("QuantizeLinear", b.param(w), *pair, axis=0), *pair, axis=0)
        h = b.relu(b.conv(qdq(b, h), width, weight=weight))
    return b.model(b.head(h))


@topology()
def dequantize_blocked() -> onnx.ModelProto:
    """Weight-only quantisation of opset 21: int8 weights (in, out) with one scale per block of eight inputs."""
    b = Builder(21)
    h = b.dense(b.relu(b.dense(b.input("input", ("batch", 6, 16)), 24)), 16)
    for width in (32, 10):
        w = b.he(b.channels(h, -1), width, fan_in=b.channels(h, -1))
        scale = (np.abs(w.reshape(-1, 8, width)).max(1) / 127.0).astype(np.float32)
        stored = np.rint(w / np.repeat(scale, 8, axis=0)).astype(np.int8)
        weight = b.op("DequantizeLinear", b.param(stored), b.param(scale), axis=0, block_size=8)
        h = b.add(b.matmul(h, weight), b.vec(width))
        h = b.relu(h) if width == 32 else h
    return b.model(h)


@topology()
def qlinear_conv() -> onnx.ModelProto:
    """The operator form: QLinearConv with scales and zero points per channel, QLinearMatMul per column at the end."""
    b = Builder()
    activation = [b.param(np.array(0.05, np.float32)), b.param(np.array(128, np.uint8))]
    h, width = b.op("QuantizeLinear", image(b), *activation), 3
    for cout in (12, 16, 20):
        w = b.he(cout, width, 3, 3)
        scale, width = scale_of(w, 0), cout
        weight = [b.param(quantised(w, scale, 0)), b.param(scale), b.param(np.zeros(cout, np.int8))]
        bias = b.param(np.rint(b.normal(cout) / (0.05 * scale)).astype(np.int32))
        sizes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        h = b.op("QLinearConv", h, *activation, *weight, *activation, bias, **sizes)
    flat = b.flatten(b.gap(b.op("DequantizeLinear", h, *activation)))
    w = b.he(20, 10, fan_in=20)
    scale = scale_of(w, 1)
    weight = [b.param(quantised(w, scale, 1)), b.param(scale), b.param(np.zeros(10, np.int8))]
    y = b.op("QLinearMatMul", b.op("QuantizeLinear", flat, *activation), *activation, *weight, *activation)
    return b.model(b.op("DequantizeLinear", y, *activation))


@topology()
def qlinear_matmul() -> onnx.ModelProto:
    b = Builder()
    activation = [b.param(np.array(0.05, np.float32)), b.param(np.array(128, np.uint8))]
    h, width = b.op("QuantizeLinear", b.input("input", ("batch", 16)), *activation), 16
    for n in (32, 24, 10):
        w = b.he(width, n, fan_in=width)
        scale, width = scale_of(w, 1), n
        weight = [b.param(quantised(w, scale, 1)), b.param(scale), b.param(np.zeros(n, np.int8))]
        h = b.op("QLinearMatMul", h, *activation, *weight, *activation)
    return b.model(b.op("DequantizeLinear", h, *activation))


@topology()
def matmul_integer() -> onnx.ModelProto:
    """Dynamic quantisation: DynamicQuantizeLinear, MatMulInteger, Cast, Mul with the scales, Add."""
    b = Builder()
    h = b.input("input", ("batch", 16))
    for width in (32, 24, 10):
        w = b.he(b.channels(h), width, fan_in=b.channels(h))
        scale = scale_of(w, 1)
        q, s, z = b.ops("DynamicQuantizeLinear", h, n=3)
        y = b.op("MatMulInteger", q, b.param(quantised(w, scale, 1)), z, b.param(np.zeros(width, np.int8)))
        y = b.op("Cast", y, to=onnx.TensorProto.FLOAT)
        y = b.add(b.mul(y, b.mul(s, b.param(scale))), b.vec(width))
        h = b.relu(y) if width != 10 else y
    return b.model(h)


@topology()
def conv_integer() -> onnx.ModelProto:
    """The same with ConvInteger; uint8 weights with one zero point, as onnxruntime's dynamic quantiser writes them."""
    b = Builder()
    h = image(b)
    for width in (16, 24):
        w = b.he(width, b.channels(h), 3, 3)
        scale = scale_of(w)
        stored = b.param((quantised(w, scale).astype(np.int16) + 128).astype(np.uint8))
        q, s, z = b.ops("DynamicQuantizeLinear", h, n=3)
        sizes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        y = b.op("ConvInteger", q, stored, z, b.param(np.array(128, np.uint8)), **sizes)
        y = b.mul(b.op("Cast", y, to=onnx.TensorProto.FLOAT), b.mul(s, b.param(scale)))
        h = b.relu(b.add(y, b.vec(1, width, 1, 1)))
    return b.model(b.head(h))


# Barriers


@topology()
def topk_barrier() -> onnx.ModelProto:
    """TopK over hidden channels: values and indices would change their meaning."""
    b = Builder()
    h = b.flatten(b.gap(b.relu(b.conv(stem(b), 24))))
    values, indices = b.ops("TopK", h, [5], n=2, axis=1)
    return b.model(b.linear(b.declare(values, ("batch", 5)), 10), indices)


@topology()
def onehot_barrier() -> onnx.ModelProto:
    """Hard routing: ArgMax and OneHot of hidden features are the mask of those features."""
    b = Builder()
    h = b.relu(b.linear(b.relu(b.linear(b.input("input", ("batch", 16)), 32)), 8))
    hot = b.op("OneHot", b.op("ArgMax", h, axis=1, keepdims=0), 8, [0.0, 1.0], axis=-1)
    return b.model(b.linear(b.mul(h, b.declare(hot, ("batch", 8))), 10))


@topology()
def scatternd_barrier() -> onnx.ModelProto:
    """x[:, 3] is overwritten by ScatterND on the transposed tensor, as in in-place PyTorch code."""
    b = Builder()
    h = b.transpose(b.relu(b.linear(b.relu(b.linear(b.input("input", (2, 16)), 32)), 12)), 1, 0)
    h = b.op("ScatterND", h, b.param(np.array([[3], [7]])), b.param(b.normal(2, 2)))
    return b.model(b.linear(b.transpose(h, 1, 0), 10))


@topology()
def scatter_gather_elements() -> onnx.ModelProto:
    """GatherElements and ScatterElements with constant indices, CumSum and ReverseSequence over hidden features."""
    b = Builder()
    h = b.relu(b.linear(b.relu(b.linear(b.input("input", (2, 16)), 32)), 12))
    order = b.rng.permutation(12)[None].repeat(2, axis=0)
    h = b.op("GatherElements", h, b.param(order), axis=1)
    h = b.op("ScatterElements", h, b.param(order[:, :5]), b.param(b.normal(2, 5)), axis=1)
    h = b.op("ReverseSequence", b.op("CumSum", h, 1), b.param(np.array([12, 5])), batch_axis=0, time_axis=1)
    return b.model(b.linear(b.declare(h, (2, 12)), 10))


@topology()
def nms_barrier() -> onnx.ModelProto:
    """The end of a detector: NonMaxSuppression and GatherND after prunable convolutions."""
    b = Builder()
    x = b.relu(b.conv(b.relu(b.conv(b.input("input", (1, 3, 8, 8)), 12)), 16))
    boxes = b.transpose(b.reshape(b.sigmoid(b.conv(x, 4)), 1, 4, 64), 0, 2, 1)
    scores = b.reshape(b.sigmoid(b.conv(b.relu(b.conv(x, 20)), 3)), 1, 3, 64)
    picked = b.op("NonMaxSuppression", boxes, scores, 10, [0.5], [0.3])
    return b.model(picked, b.op("GatherND", scores, picked))


@topology()
def sequence_barrier() -> onnx.ModelProto:
    """SplitToSequence, SequenceAt, ConcatFromSequence: tensors pass through a sequence."""
    b = Builder()
    parts = b.op("SplitToSequence", stem(b), 8, axis=1)
    first = b.op("SequenceAt", parts, 0)
    joined = b.op("ConcatFromSequence", b.op("SequenceInsert", parts, first), axis=1)
    return b.model(tail(b, b.declare(joined, ("batch", 24, 8, 8))))


@topology()
def nonzero_barrier() -> onnx.ModelProto:
    """Boolean indexing: NonZero on a hidden mask, GatherND; the output's length depends on the data."""
    b = Builder()
    h = b.relu(b.linear(b.relu(b.linear(b.input("input", ("batch", 16)), 32)), 12))
    where = b.transpose(b.op("NonZero", b.op("Greater", h, 0.1)), 1, 0)
    return b.model(b.linear(h, 10), b.op("GatherND", h, where))


@topology(into=UNRUNNABLE)
def unknown_operator() -> onnx.ModelProto:
    """An operator of a domain that nobody knows, between two prunable convolutions."""
    b = Builder()
    y = b.op("Mystery", stem(b), b.vec(16), domain="com.example", strength=0.5)
    return b.model(tail(b, b.relu(b.conv(b.declare(y, ("batch", 16, 8, 8)), 20))))


# Functions


@topology("function_local", constant=False)
@topology("function_local_weights_inside", constant=True)
def function_local(*, constant: bool) -> onnx.ModelProto:
    """A block as a model-local function, called twice; its weights are arguments or Constants of its body."""
    b = Builder()
    inner = Builder(weights="constant") if constant else Builder()
    weights = {"w1": b.he(24, 16, 3, 3), "b1": b.normal(24), "w2": b.he(16, 24, 3, 3) * 0.3, "b2": b.normal(16)}
    names = {name: inner.param(w) if constant else name for name, w in weights.items()}
    h = inner.relu(inner.op("Conv", "x", names["w1"], names["b1"], pads=[1, 1, 1, 1]))
    y = inner.add("x", inner.op("Conv", h, names["w2"], names["b2"], pads=[1, 1, 1, 1]))
    arguments = ["x"] if constant else ["x", *weights]
    imports = [helper.make_opsetid("", 17)]
    b.functions.append(helper.make_function("local", "Block", arguments, [y], inner.nodes, imports))
    h = stem(b)
    for _ in range(2):
        call = [] if constant else [b.param(w) for w in weights.values()]
        h = b.declare(b.op("Block", h, *call, domain="local"), ("batch", 16, 8, 8))
    return b.model(tail(b, h))


# Nothing to remove


@topology(prunes=False)
def nothing_single_gemm() -> onnx.ModelProto:
    b = Builder()
    return b.model(b.softmax(b.linear(b.input("input", ("batch", 16)), 10)))


@topology(prunes=False)
def nothing_single_conv() -> onnx.ModelProto:
    b = Builder()
    return b.model(b.relu(b.conv(image(b), 8)))


@topology(prunes=False)
def nothing_depthwise() -> onnx.ModelProto:
    """Only depthwise layers, coupled to the input's channels."""
    b = Builder()
    return b.model(b.conv(b.relu(b.bn(b.conv(image(b), 3, group=3))), 3, group=3))


@topology(prunes=False)
def nothing_stored() -> onnx.ModelProto:
    """No weights at all: pre-processing."""
    b = Builder()
    x = b.op("Div", b.op("Sub", image(b), 0.5), 0.25)
    return b.model(b.transpose(x, 0, 2, 3, 1))


@topology(prunes=False)
def nothing_hidden_is_output() -> onnx.ModelProto:
    """Every hidden layer is a graph output."""
    b = Builder()
    first = b.relu(b.linear(b.input("input", ("batch", 16)), 24))
    second = b.relu(b.linear(first, 20))
    return b.model(first, second, b.linear(second, 10))
