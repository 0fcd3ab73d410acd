"""Layers with weights as linear regressions: outputs = rows @ matrix + bias.

    Conv            a row per output position, its columns the patch (im2col): channel, then kernel position
    ConvTranspose   the same after zeros were put between the inputs; the kernel is flipped
    Gemm, MatMul    a row per row of the left operand
    LSTM, GRU, RNN  a row per time step and sample; outputs are the gates' shares of the input

A grouped convolution is one regression per group. `Linear` knows where matrix and bias are kept, and how to put others
there. All positions are counted on the layer's output, so that two models of the same layer can be sampled alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxprune.graph.io import Model
from onnxprune.graph.node import Node, opsets, reads, walk
from onnxprune.graph.shapes import Array, run_node

Float = np.ndarray[Any, np.dtype[np.float64]]
RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}
CONVOLUTIONS = ("Conv", "com.microsoft::FusedConv", "ConvTranspose")
LINEAR = (*CONVOLUTIONS, "Gemm", "MatMul", *RECURRENT)
_OUTPUT = Node(NodeProto(op_type="GraphOutput"), 1)


class Unsuitable(Exception):
    """Why a layer is no regression that we can solve; the text goes into the report."""


@dataclass(frozen=True, eq=False)
class Linear:
    """One layer; see the module's docstring.

    node: in `Model.proto`; index: its position among the nodes of the main graph.
    """

    node: Node
    index: int

    @property
    def key(self) -> str:
        """The same in a model and in its pruned copy."""
        return self.node.key

    @property
    def source(self) -> str:
        """The tensor that rows are made of."""
        return self.node.input(0)

    @property
    def groups(self) -> int:
        return int(self.node.attr("group", 1)) if self.node.op in CONVOLUTIONS else 1


def find_linear(model: Model) -> list[Linear]:
    """Layers with constant weights in the main graph, in order."""
    constant = constants(model)
    return [
        Linear(node, i)
        for i, node in enumerate(walk(model.proto.graph, opsets(model.proto)))
        if node.op in LINEAR and node.input(1) in constant and node.input(0) not in constant
    ]


def constants(model: Model) -> set[str]:
    """Names in the main graph that depend on constants alone."""
    known = set(model.weights)
    for node in walk(model.proto.graph, {}):
        if node.inputs and all(not i or i in known for i in node.inputs) and not list(node.bodies()):
            known.update(o for o in node.outputs if o)
    return known


class Values:
    """Values of constants, also of those that constant nodes compute, as they are in the model now."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.makers = {o: n for n in walk(model.proto.graph, opsets(model.proto)) for o in n.outputs if o}

    def __call__(self, name: str) -> Array:
        """Raises `Unsuitable` where it is none."""
        if name in self.model.weights:
            return np.asarray(self.model.weights[name])
        node = self.makers.get(name)
        if node is None or not node.inputs:
            raise Unsuitable(f"{name} is not constant")
        feeds = {i: self(i) for i in node.inputs if i}
        try:
            return np.asarray(run_node(node, feeds, self.model.proto)[node.outputs.index(name)])
        except RuntimeError as e:  # types that have no numpy counterpart in onnxruntime
            raise Unsuitable(f"{name} cannot be computed ({e})") from e


# ---------------------------------------------------------------------------------------------------------------------
# Matrix and bias
# ---------------------------------------------------------------------------------------------------------------------


def matrix(layer: Linear, values: Values) -> Float:
    """float64 `(groups, in, out)`: columns of a row times outputs."""
    n = layer.node
    w = values(n.input(1)).astype(np.float64)
    g = layer.groups
    if n.op == "ConvTranspose":  # (I, O/g, k...)
        flipped = np.flip(w, tuple(range(2, w.ndim)))
        moved = np.moveaxis(flipped.reshape(g, -1, *w.shape[1:]), 2, -1)  # (g, I/g, k..., O/g)
        return np.ascontiguousarray(moved.reshape(g, -1, w.shape[1]))
    if n.op in CONVOLUTIONS:  # (O, I/g, k...)
        return np.ascontiguousarray(w.reshape(g, w.shape[0] // g, -1).transpose(0, 2, 1))
    if n.op in RECURRENT:  # (D, gates*H, I)
        return np.ascontiguousarray(w.reshape(-1, w.shape[2]).T[None])
    if w.ndim != 2:
        raise Unsuitable("the weight has batch axes")
    if n.op == "Gemm":
        w = (w.T if n.attr("transB", 0) else w) * float(n.attr("alpha", 1.0))
    return np.ascontiguousarray(w[None])


def stored(layer: Linear, m: Float, shape: tuple[int, ...]) -> Float:
    """The inverse of `matrix`: the weight, of the shape that the node's weight has."""
    n, g = layer.node, layer.groups
    if n.op == "ConvTranspose":
        w = np.moveaxis(m.reshape(g, shape[0] // g, *shape[2:], shape[1]), -1, 2).reshape(shape)
        return np.asarray(np.flip(w, tuple(range(2, w.ndim))))
    if n.op in CONVOLUTIONS:
        return np.asarray(m.transpose(0, 2, 1).reshape(shape))
    if n.op in RECURRENT:
        return np.asarray(m[0].T.reshape(shape))
    if n.op == "Gemm":
        w = m[0] / float(n.attr("alpha", 1.0))
        return np.asarray(w.T if n.attr("transB", 0) else w)
    return np.asarray(m[0])


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """How a convolution reads its input, per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    spread: tuple[int, ...]  # zeros are put between inputs, so that neighbours lie so far apart (ConvTranspose)

    def output(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Output positions per axis for inputs of the spatial size `size`."""
        spans = zip(size, self.kernel, self.strides, self.dilations, self.pads, self.spread, strict=True)
        return tuple(((s - 1) * z + 1 + a + b - d * (k - 1) - 1) // t + 1 for s, k, t, d, (a, b), z in spans)


def window(layer: Linear, kernel: tuple[int, ...], size: tuple[int, ...]) -> Window:
    """Attributes of a convolution for inputs of the spatial size `size`, automatic padding resolved."""
    n, rank = layer.node, len(kernel)
    strides = tuple(n.attr("strides", [1] * rank))
    dilations = tuple(n.attr("dilations", [1] * rank))
    pads = list(n.attr("pads", [0] * 2 * rank))
    auto = n.attr("auto_pad", "NOTSET")
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    if n.op == "ConvTranspose":
        extra = list(n.attr("output_padding", [0] * rank))
        wanted = n.attr("output_shape")
        if wanted is not None or auto.startswith("SAME"):
            target = wanted[-rank:] if wanted is not None else [s * t for s, t in zip(size, strides, strict=True)]
            total = [t * (s - 1) + e + k - w for s, t, e, k, w in zip(size, strides, extra, spans, target, strict=True)]
            total = [max(p, 0) for p in total]
            heads = [p // 2 if auto == "SAME_UPPER" else p - p // 2 for p in total]
            pads = heads + [p - h for p, h in zip(total, heads, strict=True)]
        elif auto == "VALID":
            pads = [0] * 2 * rank
        inner = [(k - 1 - a, k - 1 - b + e) for k, a, b, e in zip(spans, pads[:rank], pads[rank:], extra, strict=True)]
        return Window(kernel, (1,) * rank, dilations, tuple(inner), strides)
    if auto.startswith("SAME"):
        total = [max((math.ceil(s / t) - 1) * t + k - s, 0) for s, t, k in zip(size, strides, spans, strict=True)]
        heads = [p - p // 2 if auto == "SAME_LOWER" else p // 2 for p in total]
        pads = heads + [p - h for p, h in zip(total, heads, strict=True)]
    elif auto == "VALID":
        pads = [0] * 2 * rank
    return Window(kernel, strides, dilations, tuple(zip(pads[:rank], pads[rank:], strict=True)), (1,) * rank)


def kernel_shape(layer: Linear, values: Values) -> tuple[int, ...]:
    """Spatial shape of a convolution's kernel; () for the other layers."""
    return tuple(values(layer.node.input(1)).shape[2:]) if layer.node.op in CONVOLUTIONS else ()


def positions(layer: Linear, x: Array, kernel: tuple[int, ...]) -> int:
    """How many rows one batch of inputs has."""
    if layer.node.op in CONVOLUTIONS:
        return int(x.shape[0] * math.prod(window(layer, kernel, x.shape[2:]).output(x.shape[2:])))
    return int(math.prod(x.shape[:-1])) if not layer.node.attr("transA", 0) else int(x.shape[1])


def _float32(x: Array) -> Array:
    """NaN for what is not finite: products of infinities with 0 and their differences are NaN anyhow, but warn."""
    held = np.isfinite(x) if x.dtype.itemsize <= 4 else np.abs(x) <= np.finfo(np.float32).max
    return np.asarray(x if held.all() else np.where(held, x, np.nan), np.float32)


def rows(layer: Linear, x: Array, kernel: tuple[int, ...], picked: Array | None) -> Array:
    """float32 `(groups, n, in)`: the rows at `picked` (all where None), counted over batch and output positions.

    x: the layer's first input, of one batch. What is not finite is NaN.
    """
    n = layer.node
    if n.op not in CONVOLUTIONS:
        flat = x.T if n.attr("transA", 0) else x.reshape(-1, x.shape[-1])
        return _float32(flat if picked is None else flat[picked])[None]
    win = window(layer, kernel, x.shape[2:])
    g = layer.groups
    out = win.output(x.shape[2:])
    if math.prod(kernel) == 1 and set(win.strides) | set(win.spread) == {1} and not np.any(win.pads):
        flat = x.reshape(*x.shape[:2], -1)
        if picked is None:
            chosen = flat.transpose(0, 2, 1).reshape(-1, x.shape[1])
        else:
            chosen = flat[picked // flat.shape[2], :, picked % flat.shape[2]]
        return _float32(chosen).reshape(len(chosen), g, -1).transpose(1, 0, 2)
    if any(z > 1 for z in win.spread):
        wide = np.zeros(
            (*x.shape[:2], *((s - 1) * z + 1 for s, z in zip(x.shape[2:], win.spread, strict=True))), x.dtype
        )
        wide[(slice(None), slice(None), *(slice(None, None, z) for z in win.spread))] = x
        x = wide
    crop = tuple(slice(max(0, -a), x.shape[2 + k] - max(0, -b)) for k, (a, b) in enumerate(win.pads))
    x = x[(slice(None), slice(None), *crop)]
    x = np.pad(x, ((0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in win.pads)))
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, win.dilations, strict=True))
    axes = tuple(range(2, x.ndim))
    view: Array = np.lib.stride_tricks.sliding_window_view(x, spans, axis=axes)
    steps = tuple(slice(None, None, t) for t in win.strides)
    taps = tuple(slice(None, None, d) for d in win.dilations)
    view = view[:, :, *steps, *taps]
    rank = len(kernel)
    if picked is None:
        view = np.moveaxis(view, 1, 1 + rank)  # (N, out..., C, k...)
        chosen = view.reshape(-1, x.shape[1] * math.prod(kernel))
    else:
        which, *place = np.unravel_index(picked, (x.shape[0], *out))
        index: Any = (which, slice(None), *place)
        chosen = view[index].reshape(len(picked), -1)
    return _float32(chosen).reshape(len(chosen), g, -1).transpose(1, 0, 2)


def output_rows(layer: Linear, y: Array, picked: Array | None) -> Array:
    """float32 `(n, channels)`: a tensor of the shape of the layer's output at the same places; NaN as in `rows`."""
    if layer.node.op in CONVOLUTIONS:
        flat = y.reshape(*y.shape[:2], -1)
        if picked is None:
            return _float32(flat.transpose(0, 2, 1).reshape(-1, y.shape[1]))
        return _float32(flat[picked // flat.shape[2], :, picked % flat.shape[2]])
    flat = y.reshape(-1, y.shape[-1])
    return _float32(flat if picked is None else flat[picked])


def like_outputs(
    layer: Linear, other: Array, x: Array, kernel: tuple[int, ...], width: int, picked: Array | None
) -> Array:
    """`output_rows` of a tensor that is added to the layer's outputs for the input x, broadcast to their shape."""
    if layer.node.op in CONVOLUTIONS:
        shape: tuple[int, ...] = (x.shape[0], width, *window(layer, kernel, x.shape[2:]).output(x.shape[2:]))
    elif layer.node.op == "Gemm":
        shape = (x.shape[1 if layer.node.attr("transA", 0) else 0], width)
    else:
        shape = (*x.shape[:-1], width)
    return output_rows(layer, np.broadcast_to(other, shape), picked)


# ---------------------------------------------------------------------------------------------------------------------
# What follows the layer
# ---------------------------------------------------------------------------------------------------------------------


def read_by(model: Model) -> dict[str, list[Node]]:
    """Tensor -> nodes that read it; graph outputs and the bodies of If and Loop count as readers too."""
    out: dict[str, list[Node]] = {}
    for node in walk(model.proto.graph, opsets(model.proto)):
        for name in node.inputs:
            out.setdefault(name, []).append(node)
        for name in reads(node.proto) - set(node.inputs):
            out.setdefault(name, []).extend([node, node])
    for o in model.proto.graph.output:
        out.setdefault(o.name, []).extend([_OUTPUT] * 2)
    return out
