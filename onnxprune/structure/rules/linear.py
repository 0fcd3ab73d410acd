"""Convolutions and matrix products: contractions between activations and weights, or between activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.graph.node import Node
from onnxprune.graph.traits import TRAITS, einsum_labels
from onnxprune.structure.claims import Axis
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.rules.registry import rule

if TYPE_CHECKING:
    from onnxprune.structure.surgeon import Surgeon

SPATIAL = "a spatial axis of a convolution or pooling"


def resize_group(s: Surgeon, n: Node) -> None:
    """Depthwise: `group` follows the input channels."""
    axes = s.coupling.axes(n.input(0))
    x = axes[TRAITS[n.op].channels(n, len(axes))]
    if x is not None and x.size == n.attr("group", 1):
        s.set_attr(n, "group", s.count(x))


def couple_conv(c: Coupling, n: Node) -> None:
    """Conv: weight (O, I/g, k...)."""
    t = TRAITS[n.op]
    x, w = t.source, t.weight
    X, W, Y = c.axes(n.input(x)), c.axes(n.input(w)), c.axes(n.output(0))
    if len(X) < 3 or len(W) != len(X) or len(Y) != len(X):
        c.pin_all(n, "rank is unknown")
        return
    for slot in t.added:
        if n.input(slot):
            for p, q in zip(c.axes(n.input(slot)), Y, strict=True):
                c.tie(p, q)
    channel = t.channels(n, len(X))
    X, Y = ([a[0], a[channel], *a[1:channel], *a[channel + 1 :]] for a in (X, Y))
    c.tie(X[0], Y[0])
    for axis in (*X[2:], *Y[2:], *W[2:]):
        c.pin(axis, SPATIAL)
    if t.bias is not None and n.input(t.bias):
        c.tie(c.axes(n.input(t.bias))[0], Y[1])
    c.tie(W[0], Y[1])
    c.produce(n, n.input(w), 0)
    g = int(n.attr("group", 1))
    if W[1] is not None or g == 1:
        c.consume(n, x, channel, t.zero_of_source(n))
    if g == 1:
        c.tie(X[1], W[1])
    elif W[1] is None:  # depthwise: a channel and the outputs made of it go together
        outputs = (c.shape(n.input(w)) or (0,))[0] or 0
        if X[1] is None or W[0] is None or outputs % g:
            c.pin_all(n, "groups do not divide the channels")
        else:
            c.tie(X[1][:, None], W[0].reshape(g, outputs // g))
    else:
        couple_groups(c, n, n.input(w), X[1], W[0], W[1], g)


def couple_groups(c: Coupling, n: Node, weight: str, x: Axis, out: Axis, inner: Axis, g: int) -> None:
    """Grouped: every group keeps the same number of inputs and of outputs, each its own."""
    if x is None or out is None or inner is None or x.size % g or out.size % g:
        c.pin_all(n, "groups do not divide the channels")
        return
    rows_in, rows_out = x.reshape(g, -1), out.reshape(g, -1)
    alone = weight in c.model.weights and c.readers.get(weight, 0) == 1
    if alone:  # the weight's inner axis means other channels in every group: it holds one row of ids per group
        c.grouped[weight] = rows_in
        c.axes(weight)[1] = None
    else:
        c.tie(rows_in, inner[None, :])
    c.even(n, rows_in)
    c.even(n, rows_out)


@rule("Conv", "com.microsoft::FusedConv", resize=resize_group)
def conv(c: Coupling, n: Node) -> None:
    """weight (O, I/g, k...): O is tied to the output channels, I to the input channels; groups shrink evenly"""
    couple_conv(c, n)


@rule("QLinearConv", "com.microsoft::QLinearConv", resize=resize_group)
def qlinear_conv(c: Coupling, n: Node) -> None:
    """as Conv, channels first or last; scale and zero point of the weight follow its output channels"""
    couple_conv(c, n)
    scales_follow(c, n)


@rule("ConvInteger", resize=resize_group)
def conv_integer(c: Coupling, n: Node) -> None:
    """as Conv; the weight's zero point follows its output channels"""
    couple_conv(c, n)
    scales_follow(c, n)


def scales_follow(c: Coupling, n: Node) -> None:
    """Scale and zero point of the weight are scalars, or vectors over its outputs."""
    t = TRAITS[n.op]
    for i in t.steps:
        tie_per_channel(c, n, i, c.axes(n.input(t.weight))[t.outputs])


def tie_per_channel(c: Coupling, n: Node, i: int, ids: Axis) -> None:
    """A scale or zero point that may be a vector over `ids`."""
    if n.input(i):
        for axis in c.axes(n.input(i)):
            if axis is not None:
                c.tie(axis, ids)


@rule("ConvTranspose", resize=resize_group)
def conv_transpose(c: Coupling, n: Node) -> None:
    """weight (I, O/g, k...); groups shrink evenly"""
    X, W, Y = c.axes(n.input(0)), c.axes(n.input(1)), c.axes(n.output(0))
    if len(X) < 3 or len(W) != len(X) or len(Y) != len(X):
        c.pin_all(n, "rank is unknown")
        return
    c.tie(X[0], Y[0])
    for axis in (*X[2:], *Y[2:], *W[2:]):
        c.pin(axis, SPATIAL)
    if n.input(2):
        c.tie(c.axes(n.input(2))[0], Y[1])
    g = int(n.attr("group", 1))
    c.tie(X[1], W[0])
    if g == 1:
        c.tie(W[1], Y[1])
        c.produce(n, n.input(1), 1)
        c.consume(n, 0, 1)
    elif X[1] is None or Y[1] is None or X[1].size % g or Y[1].size % g:
        c.pin_all(n, "groups do not divide the channels")
    elif X[1].size == g:  # depthwise
        c.tie(X[1][:, None], Y[1].reshape(g, -1))
        c.pin(W[1], "channel multiplier of a depthwise ConvTranspose")
        c.produce(n, n.input(1), 0)
    else:
        c.tie(Y[1].reshape(g, -1), None if W[1] is None else W[1][None, :])
        c.produce(n, n.input(1), 1)
        c.consume(n, 0, 1)
        c.even(n, X[1].reshape(g, -1))


@rule("DeformConv")
def deform_conv(c: Coupling, n: Node) -> None:
    """as Conv for one group; offsets and masks are fixed"""
    if n.attr("group", 1) != 1 or n.attr("offset_group", 1) != 1:
        c.pin_all(n, "grouped deformable convolution")
        return
    X, W, Y = c.axes(n.input(0)), c.axes(n.input(1)), c.axes(n.output(0))
    for name in filter(None, (n.input(2), n.input(4))):
        for axis in c.axes(name):
            c.pin(axis, "offsets of a deformable convolution")
        c.tie(X[0], c.axes(name)[0])
    for axis in (*X[2:], *Y[2:], *W[2:]):
        c.pin(axis, SPATIAL)
    c.tie(X[0], Y[0])
    c.tie(X[1], W[1])
    c.tie(W[0], Y[1])
    if n.input(3):
        c.tie(c.axes(n.input(3))[0], Y[1])
    c.produce(n, n.input(1), 0)
    c.consume(n, 0, 1)


def couple_gemm(c: Coupling, n: Node) -> None:
    """(M, K) x (K, N) + C, either operand transposed."""
    t = TRAITS[n.op]
    i, j, bias = t.source, t.weight, n.input(t.bias or 0)
    a, b, y = c.axes(n.input(i)), c.axes(n.input(j)), c.axes(n.output(0))
    if len(a) != 2 or len(b) != 2 or len(y) != 2:
        c.pin_all(n, "rank is unknown")
        return
    ka = 0 if n.attr("transA", 0) else 1
    kb = 1 if n.attr("transB", 0) else 0
    c.tie(a[ka], b[kb])
    c.tie(a[1 - ka], y[0])
    c.tie(b[1 - kb], y[1])
    for ids, out in zip(c.axes(bias)[::-1] if bias else (), y[::-1], strict=False):
        if ids is not None:
            c.tie(ids, out)
    c.consume(n, i, ka, t.zero_of_source(n))
    c.contract(n, (n.input(i), n.input(j)), (), (a[ka], a[1 - ka], b[1 - kb]))
    if c.is_constant(n.input(j)):
        c.produce(n, n.input(j), 1 - kb)
    if c.is_constant(n.input(i)):
        c.produce(n, n.input(i), 1 - ka)


@rule("Gemm", "com.microsoft::FusedGemm")
def gemm(c: Coupling, n: Node) -> None:
    """(M, K) x (K, N) + C, either operand transposed, C broadcast from scalar, [N], [1,N], [M,1]"""
    couple_gemm(c, n)


@rule("com.microsoft::QGemm")
def qgemm(c: Coupling, n: Node) -> None:
    """as Gemm; scale and zero point of B follow its outputs"""
    couple_gemm(c, n)
    quantized_operand(c, n, 3, TRAITS[n.op].steps, -2 if n.attr("transB", 0) else -1)


def couple_matmul(c: Coupling, n: Node) -> None:
    """(..., M, K) x (..., K, N), with operands of one axis promoted."""
    t = TRAITS[n.op]
    i, j = t.source, t.weight
    a, b, y = list(c.axes(n.input(i))), list(c.axes(n.input(j))), list(c.axes(n.output(0)))
    if not a or not b or c.shape(n.output(0)) is None:
        c.pin_all(n, "rank is unknown")
        return
    k_axis = len(a) - 1
    if n.attr("transA", 0) and len(a) > 1:  # com.microsoft::FusedMatMul
        a[-1], a[-2] = a[-2], a[-1]
        k_axis = len(a) - 2
    if n.attr("transB", 0) and len(b) > 1:
        b[-1], b[-2] = b[-2], b[-1]
    k = a[-1]
    c.tie(k, b[-1] if len(b) == 1 else b[-2])
    if len(b) > 1:
        c.tie(b[-1], y.pop())
    if len(a) > 1:
        c.tie(a[-2], y.pop())
    for operand in (a, b):
        for ids, out in zip(operand[-3::-1], y[::-1], strict=False):
            if ids is not None:
                c.tie(ids, out)
    if len(a) > 1 and len(b) > 1:
        batch = [*a[:-2], *b[:-2]]
        if c.is_constant(n.input(i)) or c.is_constant(n.input(j)):  # learned queries have the axes of what they meet
            pairs = zip(a[-3::-1], b[-3::-1], strict=False)
            batch = [ids for pair in pairs if all(p is not None for p in pair) for ids in pair]
        c.contract(n, (n.input(i), n.input(j)), batch, (a[-1], a[-2], b[-1]))
    c.consume(n, i, k_axis, t.zero_of_source(n))
    if c.is_constant(n.input(j)) and len(b) > 1:
        c.produce(n, n.input(j), -2 if n.attr("transB", 0) else -1)
    if c.is_constant(n.input(i)) and len(a) > 1:
        c.produce(n, n.input(i), -1 if n.attr("transA", 0) else -2)


@rule("MatMul")
def matmul(c: Coupling, n: Node) -> None:
    """contraction of K; in attention (`structure.attends`) the batch axes are heads, K, M and N head_dim"""
    couple_matmul(c, n)


@rule("com.microsoft::FusedMatMul")
def fused_matmul(c: Coupling, n: Node) -> None:
    """as MatMul, with operands transposed"""
    if n.attr("transBatchA", 0) or n.attr("transBatchB", 0):
        c.pin_all(n, "transposed batch axes")
        return
    couple_matmul(c, n)


@rule("MatMulInteger")
def matmul_integer(c: Coupling, n: Node) -> None:
    """as MatMul; zero points follow the rows of A and the columns of B"""
    couple_matmul(c, n)
    quantized_operand(c, n, 0, (2,), -2)
    quantized_operand(c, n, 1, TRAITS[n.op].steps, -1)


@rule("QLinearMatMul")
def qlinear_matmul(c: Coupling, n: Node) -> None:
    """as MatMul; scales and zero points follow the rows of A and the columns of B"""
    couple_matmul(c, n)
    quantized_operand(c, n, 0, (1, 2), -2)
    quantized_operand(c, n, 3, TRAITS[n.op].steps, -1)


@rule("com.microsoft::DynamicQuantizeMatMul")
def dynamic_quantize_matmul(c: Coupling, n: Node) -> None:
    """as MatMul; the range of A includes zero, scale, zero point and bias follow the columns of B"""
    couple_matmul(c, n)
    quantized_operand(c, n, 1, (*TRAITS[n.op].steps, 4), -1)


@rule("com.microsoft::MatMulIntegerToFloat")
def matmul_integer_to_float(c: Coupling, n: Node) -> None:
    """as MatMul; scales and zero points follow the rows of A and the columns of B, the bias those of B"""
    couple_matmul(c, n)
    quantized_operand(c, n, 0, (2, 4), -2)
    quantized_operand(c, n, 1, (*TRAITS[n.op].steps, 6), -1)


def quantized_operand(c: Coupling, n: Node, operand: int, inputs: tuple[int, ...], axis: int) -> None:
    """Scale and zero point of a matrix, or a bias: scalars, or vectors along `axis`."""
    axes = c.axes(n.input(operand))
    if len(axes) >= 2:
        for i in inputs:
            tie_per_channel(c, n, i, axes[axis])


@rule("Einsum")
def einsum(c: Coupling, n: Node) -> None:
    """all axes with one label are tied; labels that are summed over are consumers"""
    terms, right = einsum_labels(n.attr("equation", ""), [len(c.axes(i)) for i in n.inputs])
    axes: dict[str, Axis] = {}
    tensors = [*zip(n.inputs, terms, strict=True), (n.output(0), right)]
    for name, labels in tensors:
        if len(labels) != len(c.axes(name)) or len(set(labels)) != len(labels):
            c.pin_all(n, "Einsum with a diagonal or of unknown rank")
            return
        for label, ids in zip(labels, c.axes(name), strict=True):
            if ids is not None:
                c.tie(ids, axes.setdefault(label, ids))
    for label in axes:
        if label not in right:  # one operand is enough, but not one that is broadcast along the label
            places = ((i, t.index(label)) for i, t in enumerate(terms) if label in t)
            i, k = next((i, k) for i, k in places if c.axes(n.inputs[i])[k] is not None)
            c.consume(n, i, k)
    constant = [c.is_constant(i) for i in n.inputs]
    for i, labels in enumerate(terms):
        for label in labels if constant[i] else ():
            if label in right and not any(label in t for j, t in enumerate(terms) if j != i):
                c.produce(n, n.inputs[i], labels.index(label))
    operands = [t for t, k in zip(terms, constant, strict=True) if not k]
    if len(operands) < 2:  # a layer, or learned queries
        operands = terms
    held = {label: sum(label in t for t in operands) for label in axes}
    batch = [label for label, times in held.items() if times == len(operands) > 1 and label in right]
    inner = [label for label, times in held.items() if label not in batch and (times > 1 or operands == terms)]
    c.contract(n, n.inputs, [axes[label] for label in batch], [axes[label] for label in inner])
