"""What kernels of ours compute as well as nodes do: a rule notes the tensor that its nodes end in, what the kernel
reads and its parameters (kernels/steps/).

A note changes nothing: gradients are plain ONNX. A session of training may put the kernel in the place of the nodes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from onnxprune.gradient.backward import Backward, Kernel, NoRule
from onnxprune.gradient.windows import Windows, windows
from onnxprune.graph.node import Node, walk
from onnxprune.kernels.steps.tables import CLIP, CONV, CONV_WEIGHT, GIVEN, MAX_POOL, STEP_PARAMS

FLOAT = 1  # as ONNX has it
PLACES = 16  # of an output, least: lanes of the kernels are places
NARROW = 64  # filters of a group up to which a convolution whose weights are inputs is faster here


def _note(b: Backward, made: str, number: int, inputs: Sequence[str], params: Sequence[int]) -> None:
    if all(b.code(i) == FLOAT for i in (made, *inputs)):
        b.kernels[made] = Kernel(number, tuple(inputs), (*params, *[0] * (STEP_PARAMS - len(params))))


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


def max_pool(b: Backward, made: str, x: str, y: str, g: str, at: Windows) -> None:
    """The gradient of MaxPool. Of equal elements the first one gets all."""
    if _fits(b, at, x, g):
        _note(b, made, MAX_POOL, [x, y, g], _windows(at, 1, heads=at.heads, tails=at.tails, strides=at.strides))


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
