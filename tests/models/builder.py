"""The builder with which topologies and transformers are written down, and inputs for what it makes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
Operand = npt.ArrayLike | None  # a tensor's name, a constant, or an omitted input
Dim = int | str  # a size; in `Builder.reshape` also the name of a scalar tensor
INT_MAX = 2**63 - 1
MICROSOFT = "com.microsoft"


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


def contents(model: onnx.ModelProto) -> object:
    """What a graph consists of, however it is stored: its inputs, nodes and initializers."""
    graph = model.graph
    nodes = [
        (n.op_type, n.domain, n.input, n.output, sorted(a.SerializeToString() for a in n.attribute)) for n in graph.node
    ]
    return graph.input, nodes, {t.name: numpy_helper.to_array(t).tobytes() for t in graph.initializer}


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
