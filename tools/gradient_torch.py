"""An ONNX model as a PyTorch network, for the operators of bench_gradient.py; needs torch and onnx alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, numpy_helper
from torch import Tensor
from torch.nn import functional as f

Op = Callable[..., Any]
GATES = (0, 2, 3, 1)  # PyTorch's order of the gates of an LSTM, input forget cell output, in ONNX's iofc


def attributes(node: NodeProto) -> dict[str, Any]:
    """By name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def ints(x: Tensor) -> list[int]:
    """What a tensor of sizes holds."""
    return [int(v) for v in x.reshape(-1)]


def pairs(pads: Sequence[int]) -> list[int]:
    """ONNX's pads as `torch.nn.functional.pad` has them: last axis first."""
    half = len(pads) // 2
    return [p for k in reversed(range(half)) for p in (pads[k], pads[k + half])]


def padded(x: Tensor, a: Mapping[str, Any], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """The input of a window operator, and the padding that is left to it: none where both sides differ."""
    pads = list(a.get("pads") or [0] * 4)
    half = len(pads) // 2
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise NotImplementedError("auto_pad")
    if pads[:half] == pads[half:]:
        return x, pads[:half]
    return f.pad(x, pairs(pads), value=value), [0] * half


def conv(a: Mapping[str, Any]) -> Op:
    """Two spatial axes."""

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        x, pads = padded(x, a)
        return f.conv2d(x, w, b, a.get("strides", 1), pads, a.get("dilations", 1), a.get("group", 1))

    return run


def max_pool(a: Mapping[str, Any]) -> Op:
    """The first output."""

    def run(x: Tensor) -> Tensor:
        x, pads = padded(x, a, -math.inf)
        return f.max_pool2d(x, a["kernel_shape"], a.get("strides", 1), pads, ceil_mode=bool(a.get("ceil_mode", 0)))

    return run


def average_pool(a: Mapping[str, Any]) -> Op:
    """Zeros around count only where they are said to."""
    return lambda x: f.avg_pool2d(
        x, a["kernel_shape"], a.get("strides", 1), list(a.get("pads") or [0, 0])[:2],
        count_include_pad=bool(a.get("count_include_pad", 0)),
    )  # fmt: skip


def gemm(a: Mapping[str, Any]) -> Op:
    """alpha and beta of one."""

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return f.linear(x.T if a.get("transA") else x, w if a.get("transB") else w.T, b)

    return run


def sliced(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    """Steps of one or more."""
    at = [slice(None)] * x.ndim
    every = ints(axes) if axes is not None else list(range(len(ints(starts))))
    for start, end, axis, step in zip(
        ints(starts), ints(ends), every, ints(steps) if steps is not None else [1] * len(every), strict=True
    ):
        at[axis] = slice(start, min(end, x.shape[axis]), step)
    return x[tuple(at)]


def reshaped(x: Tensor, shape: Tensor) -> Tensor:
    """0 is the size that was."""
    return x.reshape([x.shape[k] if s == 0 else s for k, s in enumerate(ints(shape))])


def squeezed(x: Tensor, axes: Tensor) -> Tensor:
    return x.squeeze(tuple(ints(axes)))


def unsqueezed(x: Tensor, axes: Tensor) -> Tensor:
    axes_ = ints(axes)
    for k in sorted(k % (x.ndim + len(axes_)) for k in axes_):
        x = x.unsqueeze(k)
    return x


def filled(a: Mapping[str, Any]) -> Op:
    """ConstantOfShape."""
    value = torch.from_numpy(numpy_helper.to_array(a["value"]).copy()) if "value" in a else torch.zeros(1)
    return lambda shape: value.reshape([1] * len(shape)).expand(ints(shape)).clone()


def gather(a: Mapping[str, Any]) -> Op:
    """Rows of a table are an embedding."""
    axis = a.get("axis", 0)

    def run(x: Tensor, at: Tensor) -> Tensor:
        if axis == 0 and x.ndim == 2 and at.ndim:
            return f.embedding(at, x)
        if at.ndim == 0:
            return x.select(axis, int(at))
        at = at % x.shape[axis] if x.ndim == 1 else at  # of sizes, from the end
        return x.index_select(axis, at.reshape(-1)).reshape([*x.shape[:axis], *at.shape, *x.shape[axis + 1 :]])

    return run


def mean(a: Mapping[str, Any]) -> Op:
    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        return x.mean(ints(axes) if axes is not None else list(a["axes"]), bool(a.get("keepdims", 1)))

    return run


def clip(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return f.hardtanh(x, float(low), float(high))


def trilu(a: Mapping[str, Any]) -> Op:
    return lambda x, k=None: (torch.triu if a.get("upper", 1) else torch.tril)(x, int(k) if k is not None else 0)


def norm(a: Mapping[str, Any]) -> Op:
    return lambda x, w, b, m, v: f.batch_norm(x, m, v, w, b, False, eps=a.get("epsilon", 1e-5))


def layer_norm(a: Mapping[str, Any]) -> Op:
    return lambda x, w, b=None: f.layer_norm(x, w.shape, w, b, a.get("epsilon", 1e-5))


def plain(function: Op) -> Callable[[Mapping[str, Any]], Op]:
    """An operator without attributes."""
    return lambda a: function


OPS: dict[str, Callable[[Mapping[str, Any]], Op]] = {
    "Add": plain(torch.add), "Sub": plain(torch.sub), "Mul": plain(torch.mul), "Div": plain(torch.div),
    "Pow": plain(torch.pow), "Sqrt": plain(torch.sqrt), "Neg": plain(torch.neg), "Erf": plain(torch.erf),
    "Relu": plain(torch.relu), "Sigmoid": plain(torch.sigmoid), "Tanh": plain(torch.tanh), "Gelu": plain(f.gelu),
    "MatMul": plain(torch.matmul), "Equal": plain(torch.eq), "Where": plain(torch.where), "Clip": plain(clip),
    "Reshape": plain(reshaped), "Slice": plain(sliced), "Squeeze": plain(squeezed), "Unsqueeze": plain(unsqueezed),
    "Shape": lambda a: lambda x: torch.tensor(x.shape[a.get("start", 0) : a.get("end")]),
    "Expand": plain(lambda x, s: x * torch.ones(ints(s), dtype=x.dtype)),
    "Pad": plain(lambda x, p, v=None: f.pad(x, pairs(ints(p)))),
    "GlobalAveragePool": plain(lambda x: x.mean((2, 3), True)),
    "Flatten": lambda a: lambda x: x.flatten(a.get("axis", 1)),
    "Softmax": lambda a: lambda x: x.softmax(a.get("axis", -1)),
    "Transpose": lambda a: lambda x: x.permute(a["perm"]), "Concat": lambda a: lambda *x: torch.cat(x, a["axis"]),
    "Conv": conv, "MaxPool": max_pool, "AveragePool": average_pool, "Gemm": gemm, "ConstantOfShape": filled,
    "Gather": gather, "ReduceMean": mean, "Trilu": trilu, "BatchNormalization": norm, "LayerNormalization": layer_norm,
}  # fmt: skip


def ordered(x: Tensor, gates: Sequence[int]) -> Tensor:
    """The gates of an LSTM, along the first axis, in this order."""
    return torch.cat([x.chunk(4)[k] for k in gates])


class Network:
    """Nodes as calls; what depends on constants and sizes alone is computed when it is made."""

    def __init__(
        self, path: Path, feeds: Mapping[str, Tensor], weights: Sequence[str], dtype: torch.dtype = torch.float32
    ) -> None:
        model = onnx.load(path)
        graph = model.graph
        self.fixed: dict[str, Any] = {"": None}
        for t in graph.initializer:
            value = torch.from_numpy(numpy_helper.to_array(t).copy())
            self.fixed[t.name] = value.to(dtype) if value.is_floating_point() else value
        for node in graph.node:
            if node.op_type == "Constant":
                value = torch.from_numpy(numpy_helper.to_array(node.attribute[0].t).copy())
                self.fixed[node.output[0]] = value.to(dtype) if value.is_floating_point() else value
        self.weights = {n: self.fixed.pop(n).requires_grad_() for n in weights}
        self.outputs = [o.name for o in graph.output]
        self.of_lstm: dict[str, list[str]] = {}
        nodes = [n for n in without_erf(list(graph.node), self.fixed) if n.op_type != "Constant"]
        self.calls: list[tuple[Op, list[str], str]] = []
        values = {**self.fixed, **self.weights, **feeds}
        with torch.no_grad():
            for node in nodes:
                name = node.output[0] or node.output[1]
                call = self.lstm(node, name) if node.op_type == "LSTM" else OPS[node.op_type](attributes(node))
                values[name] = call(*(values[i] for i in node.input))
                if all(i in self.fixed for i in node.input) or node.op_type == "Shape":
                    self.fixed[name] = values[name]
                else:
                    self.calls.append((call, list(node.input), name))

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name."""
        values = {**self.fixed, **self.weights, **feeds}
        for call, inputs, name in self.calls:
            values[name] = call(*(values[i] for i in inputs))
        return {name: values[name] for name in self.outputs}

    def lstm(self, node: NodeProto, name: str) -> Op:
        """One direction, from states of zero: all outputs, or the last one."""
        w, r, bias = (self.weights[i] for i in node.input[1:4])
        hidden, inner = r.shape[-1], w.shape[-1]
        module = torch.nn.LSTM(inner, hidden, dtype=w.dtype)

        parts = {"weight_ih_l0": w[0], "weight_hh_l0": r[0], "bias_ih_l0": bias[0, : 4 * hidden]}
        parts["bias_hh_l0"] = bias[0, 4 * hidden :]
        for key, value in parts.items():
            getattr(module, key).copy_(ordered(value.detach(), GATES))
        self.modules = {tuple(node.input[1:4]): module}
        last = not node.output[0]

        def run(x: Tensor, *_: Tensor) -> Tensor:
            y, (h, _c) = module(x)
            return h if last else y.unsqueeze(1)

        return run

    def zero_grad(self) -> None:
        """As the optimizers of PyTorch do it."""
        for w in [*self.weights.values(), *(p for m in getattr(self, "modules", {}).values() for p in m.parameters())]:
            w.grad = None

    def gradients(self) -> dict[str, np.ndarray]:
        """By the names of the weights, in ONNX's form."""
        for (w, r, bias), module in getattr(self, "modules", {}).items():
            back = np.argsort(GATES).tolist()
            self.weights[w].grad = ordered(module.weight_ih_l0.grad, back)[None]
            self.weights[r].grad = ordered(module.weight_hh_l0.grad, back)[None]
            both = [ordered(module.bias_ih_l0.grad, back), ordered(module.bias_hh_l0.grad, back)]
            self.weights[bias].grad = torch.cat(both)[None]
        return {n: np.zeros(w.shape) if w.grad is None else w.grad.numpy() for n, w in self.weights.items()}


def without_erf(nodes: list[NodeProto], fixed: Mapping[str, Any]) -> list[NodeProto]:
    """x / sqrt(2) -> Erf -> + 1 -> x * -> * 1 / 2 is one Gelu."""
    maker = {o: n for n in nodes for o in n.output}
    readers: dict[str, list[NodeProto]] = {}
    for n in nodes:
        for i in n.input:
            readers.setdefault(i, []).append(n)
    gone: list[int] = []
    out = list(nodes)
    for erf in nodes:
        if erf.op_type != "Erf":
            continue
        chain = [maker[erf.input[0]], erf]
        while len(chain) < 5:
            chain.append(readers[chain[-1].output[0]][0])
        if [n.op_type for n in chain] != ["Div", "Erf", "Add", "Mul", "Mul"]:
            continue
        x = chain[0].input[0]
        if x not in chain[3].input:
            continue
        gone += [id(n) for n in chain]
        out[[id(n) for n in nodes].index(id(chain[4]))] = onnx.helper.make_node("Gelu", [x], list(chain[4].output))
    return [n for n in out if id(n) not in gone]
