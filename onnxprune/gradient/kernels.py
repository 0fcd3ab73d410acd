"""What kernels of ours compute as well as nodes do: a rule notes the tensors that its nodes end in, and the nodes with
kernels that make the same (kernels/steps/).

A note changes nothing: gradients are plain ONNX. A session of training may put the kernel in the place of the nodes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnx import NodeProto, helper

from onnxprune.gradient.backward import LAST, Backward, Kernel, NoRule
from onnxprune.gradient.windows import Windows, windows
from onnxprune.graph.node import Node, walk
from onnxprune.kernels.names import DOMAIN
from onnxprune.kernels.steps.tables import (
    BATCH_NORM,
    CLIP,
    CONV,
    CONV_WEIGHT,
    EVERY_STEP,
    GIVEN,
    GRU,
    GRU_BACK,
    LAST_CELL,
    LAST_STATE,
    LSTM,
    LSTM_BACK,
    MAX_POOL,
    RNN,
    RNN_BACK,
    STEP_PARAMS,
)

OPERATOR = "Step"
FLOAT = 1  # as ONNX has it
PLACES = 16  # of an output, least: lanes of the kernels are places
NARROW = 64  # filters of a group up to which a convolution whose weights are inputs is faster here


def step(number: int, inputs: Sequence[str], outputs: Sequence[str], params: Sequence[int]) -> NodeProto:
    """The operator of a kernel."""
    given = [*params, *[0] * (STEP_PARAMS - len(params))]
    return helper.make_node(OPERATOR, inputs, outputs, outputs[0], domain=DOMAIN, kernel=number, params=given)


def _note(b: Backward, made: str, number: int, inputs: Sequence[str], params: Sequence[int]) -> None:
    if all(b.code(i) == FLOAT for i in (made, *inputs)):
        b.kernels.append(Kernel(number, (made,), (step(number, inputs, [made], params),)))


def _bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def _windows(
    at: Windows, group: int, *, heads: Sequence[int], tails: Sequence[int], strides: Sequence[int],
    up: Sequence[int] = (1, 1), turned: bool = False, low: float = -math.inf, high: float = math.inf,
) -> list[int]:  # fmt: skip
    """The parameters of kernels with windows, of one axis or two."""
    one = [1] * (2 - len(at.kernel))
    none = [0] * (2 - len(at.kernel))
    params = [
        *one, *at.kernel, *one, *strides, *none, *heads, *one, *at.dilations, group, *one, *up[-len(at.kernel) :],
        int(turned), _bits(low), _bits(high), *none, *tails,
    ]  # fmt: skip
    assert len(params) == GIVEN
    return params


def _fits(b: Backward, at: Windows, *names: str) -> bool:
    """Whether one or two spatial axes, and all sizes but that of the batch, are known."""
    return len(at.kernel) <= 2 and all(None not in b.shape(n)[1:] for n in names) and min(at.heads + at.tails) >= 0


def _places(b: Backward, name: str) -> int:
    return math.prod(d or 0 for d in b.shape(name)[2:])


def conv_weight(b: Backward, made: str, x: str, w: str, g: str, at: Windows, group: int) -> None:
    """The gradient of the weights of a convolution."""
    if _fits(b, at, x, g) and None not in b.shape(w) and _places(b, g) >= PLACES and math.prod(at.kernel) > 1:
        params = _windows(at, group, heads=at.heads, tails=at.tails, strides=at.strides)
        _note(b, made, CONV_WEIGHT, [x, g], params)


def conv_input(
    b: Backward, made: str, w: str, g: str, at: Windows, group: int, heads: Sequence[int], tails: Sequence[int]
) -> None:
    """The gradient of the input of a convolution: one of dY, with zeros between where there are strides, padded so."""
    outs, inner = b.shape(w)[:2]
    if not _fits(b, at, made, g) or outs is None or inner is None or min(*heads, *tails) < 0:
        return
    depthwise = inner == 1 and outs == group
    if depthwise or (set(at.strides) == {1} and inner <= NARROW and math.prod(at.kernel) > 1):
        ones = [1] * len(at.kernel)
        params = _windows(at, group, heads=heads, tails=tails, strides=ones, up=at.strides, turned=True)
        _note(b, made, CONV, [g, w], params)


def clip(b: Backward, made: str, y: str, g: str, low: float = -math.inf, high: float = math.inf) -> None:
    """The gradient of Relu or Clip; g: that of y, of its shape."""
    _note(b, made, CLIP, [y, g], [*[0] * (GIVEN - 4), _bits(low), _bits(high)])


def batch_norm(b: Backward, made: Sequence[str], x: str, g: str, scale: str, epsilon: float) -> None:
    """The gradients of input, scale and shift of a BatchNormalization by the statistics of the batch."""
    if all(b.code(name) == FLOAT for name in (*made, x, g, scale)):
        node = step(BATCH_NORM, [x, g, scale], made, [_bits(epsilon)])
        b.kernels.append(Kernel(BATCH_NORM, tuple(made), (node,)))


def max_pool(b: Backward, made: str, x: str, y: str, g: str, at: Windows) -> None:
    """The gradient of MaxPool. Of equal elements the first one gets all."""
    if _fits(b, at, x, g):
        _note(b, made, MAX_POOL, [x, y, g], _windows(at, 1, heads=at.heads, tails=at.tails, strides=at.strides))


@dataclass(frozen=True)
class Way:
    """A direction of a recurrent node as its rule has built it. x: W x with its biases, of all steps in the order of
    the direction; r: R^T; bias: of what a GRU resets, or ""; states: before the first step; y: h of all steps; last:
    states after the last."""

    x: str
    r: str
    bias: str
    states: tuple[str, ...]
    y: str
    last: tuple[str, ...]


def recurrent(b: Backward, n: Node, ways: Sequence[Way], joined: Callable[[Sequence[Way]], Sequence[str]]) -> None:
    """The steps of a recurrent node, and their gradients, which are known. joined: adds nodes that make the outputs of
    the node of those of its directions; their names."""
    number, back = {"LSTM": (LSTM, LSTM_BACK), "GRU": (GRU, GRU_BACK), "RNN": (RNN, RNN_BACK)}[n.op]
    floats = all(b.code(name) == FLOAT for w in ways for name in (w.x, w.r, *w.states))
    if not (floats and _usual(n)) or any(_coming(b, w) and not b.gradient_of(w.x) for w in ways):
        return
    relu = int((n.attr("activations") or [b""])[0].lower() == b"relu")
    nodes: list[NodeProto] = []
    made = [o for o in n.outputs if o]
    for w in ways:
        before, kept = (b.edit.fresh(f"{w.y}/{what}") for what in ("before", "kept"))
        more = {"LSTM": [kept, *w.last[1:]], "GRU": [kept], "RNN": []}[n.op]
        inputs = [w.x, w.r, *w.states, *([w.bias] if w.bias else [])]
        nodes.append(step(number, inputs, [w.y, before, *more], [relu]))
        nodes += _apart(b, [w.last[0]], lambda w=w: [b.op("Gather", w.y, b.constant(-1), axis=0)])  # type: ignore[misc]
        made += [w.y, *w.last]
        if _coming(b, w):
            read = {"LSTM": [kept, w.r, *w.states[1:]], "GRU": [kept, w.r, before], "RNN": [w.y, w.r]}[n.op]
            b.kernels.append(_backwards(b, w, back, read, before, relu))
    nodes += _apart(b, n.outputs, lambda: joined(ways))
    b.kernels.append(Kernel(number, tuple(made), tuple(nodes)))


def _usual(n: Node) -> bool:
    """Whether a recurrent node is one that the kernels compute."""
    given = [a.lower() for a in n.attr("activations") or []]
    each = {"LSTM": (b"sigmoid", b"tanh", b"tanh"), "GRU": (b"sigmoid", b"tanh"), "RNN": (b"tanh",)}[n.op]
    plain = given == [*each] * (len(given) // len(each)) or (n.op == "RNN" and set(given) == {b"relu"})
    reset = n.op != "GRU" or n.attr("linear_before_reset", 0)
    other = n.attr("clip") or n.attr("input_forget", 0) or n.input(4) or n.input(7)
    return bool(plain and reset and not other and int(n.attr("hidden_size")) >= PLACES)


def _coming(b: Backward, w: Way) -> dict[int, str]:
    """The gradients that arrive at a direction, by the number that the kernel has for them."""
    found = zip((EVERY_STEP, LAST_STATE, LAST_CELL), (w.y, *w.last), strict=False)
    return {number: g for number, name in found if (g := b.gradient_of(name))}


def _backwards(b: Backward, w: Way, number: int, read: Sequence[str], before: str, relu: int) -> Kernel:
    """The gradients of a direction. before: the states before every step, `(steps * samples, hidden)`."""
    coming, dx, dr = _coming(b, w), b.gradient_of(w.x), b.gradient_of(w.r)
    assert dx
    made = [dx, *(b.gradient_of(s) or b.edit.fresh(f"{s}/back") for s in w.states)]
    hidden, width = b.shape(w.r)
    sums = b.edit.fresh(f"{dx}/sums")  # R h, of all steps
    for name, size in ((before, hidden), (sums, width)):
        b.know(name, FLOAT, [(None, size)] * b.probe_count)
    nodes = [step(number, [*read, *coming.values()], made + [sums] * (number == GRU_BACK), [relu, sum(coming)])]
    if number != GRU_BACK:
        nodes += _apart(b, [sums], lambda: [b.op("Flatten", dx, axis=2)])
    if dr:
        nodes += _apart(b, [dr], lambda: [b.op("Gemm", before, sums, transA=1)])
        made.append(dr)
    bias = b.gradient_of(w.bias) if w.bias else None
    if bias and hidden:
        nodes += _apart(b, [bias], lambda: [b.sum(b.slice(sums, [-hidden], [LAST], [1]), [0])])
        made.append(bias)
    return Kernel(number, tuple(made), tuple(nodes))


def _apart(b: Backward, names: Sequence[str], build: Callable[[], Sequence[str]]) -> list[NodeProto]:
    """Nodes that are not put into the graph; what they make has these names, "" for what is not wanted."""
    graph = b.edit.graph
    start = len(graph.node)
    named = {old: new for old, new in zip(build(), names, strict=False) if new}
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in graph.node[start:]]
    del graph.node[start:]
    for node in nodes:
        node.input[:] = [named.get(i, i) for i in node.input]
        node.output[:] = [named.get(o, o) for o in node.output]
    return nodes


def forward(b: Backward) -> None:
    """Note the convolutions of the main graph whose weights change, and what clips them."""
    nodes = list(walk(b.edit.graph, {"": b.opset}))
    readers: dict[str, list[Node]] = {}
    for n in nodes:
        for i in n.inputs:
            readers.setdefault(i, []).append(n)
    for n in (n for n in nodes if n.op == "Conv"):
        try:
            w, group = b.shape(n.input(1)), int(n.attr("group", 1))
            at = windows(b, n, w[2:])
            fits = _fits(b, at, n.input(0), n.output(0)) and None not in w
        except NoRule:
            continue
        each = (w[0] or 0) // group
        if not fits or math.prod(at.kernel) == 1 or (each > NARROW and w[1] != 1):
            continue
        after = readers.get(n.output(0), [])
        bounds = [(n.output(0), -math.inf, math.inf)]
        if len(after) == 1 and after[0].op in ("Relu", "Clip"):
            ends = bounds_of(b, after[0])
            bounds += [(after[0].output(0), *ends)] if ends else []
        for made, low, high in bounds:
            params = _windows(
                at, group, heads=at.heads, tails=at.tails, strides=at.strides, low=low, high=high
            )  # fmt: skip
            _note(b, made, CONV, [i for i in n.inputs if i], params)


def bounds_of(b: Backward, n: Node) -> tuple[float, float] | None:
    """Between which a Relu or Clip leaves its input; None where they are not known."""
    if n.op == "Relu":
        return 0.0, math.inf
    ends = [-math.inf, math.inf]
    for k in (1, 2):
        if n.input(k):
            value = b.value(n.input(k))
            if value is None:
                return None
            ends[k - 1] = float(value.ravel()[0])
    return (min(ends), ends[1])
