"""RNN, GRU and LSTM, through a Scan over the steps (of which the gradient is a Scan again).

What does not depend on the state is computed for all steps at once: the inputs times W, and the biases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.gradient.backward import LAST, Backward
from onnxprune.gradient.formula import Tensor
from onnxprune.gradient.kernels import Way, recurrent
from onnxprune.gradient.registry import Gradients, NoRule, gradient
from onnxprune.gradient.rules.control import body_of, placed, renamed
from onnxprune.gradient.through import through
from onnxprune.graph.node import Node

Activation = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, list[Tensor]], list[Tensor]]  # inputs of a step times W, states -> states

_PLAIN = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "softsign": "Softsign", "softplus": "Softplus"}
_SCALED = {  # name -> operator, defaults of alpha and beta where it takes them
    "leakyrelu": ("LeakyRelu", (0.01,)), "thresholdedrelu": ("ThresholdedRelu", (1.0,)), "elu": ("Elu", (1.0,)),
    "hardsigmoid": ("HardSigmoid", (0.2, 0.5)), "affine": ("", (1.0, 0.0)), "scaledtanh": ("", (1.0, 1.0)),
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Of one direction: R^T `(hidden, gates * hidden)`, the bias beside it, peepholes `(3 * hidden,)`."""

    r: Tensor
    bias: Tensor | None
    peepholes: Tensor | None


def activations(n: Node, default: Sequence[str], directions: int) -> list[list[Activation]]:
    """The functions of every direction."""
    given_names = [a.decode() for a in n.attr("activations") or []] or [*default] * directions
    names = [name.lower() for name in given_names]
    alphas, betas = list(n.attr("activation_alpha") or []), list(n.attr("activation_beta") or [])
    found: list[Activation] = []
    for name in names:
        if name in _PLAIN:
            found.append(lambda x, op=_PLAIN[name]: x.op(op))  # type: ignore[misc]
            continue
        if name not in _SCALED:
            raise NoRule(f"the activation {name}")
        op, defaults = _SCALED[name]
        alpha = float(alphas.pop(0)) if alphas else defaults[0]
        given = {"alpha": alpha}
        if len(defaults) > 1:
            given["beta"] = float(betas.pop(0)) if betas else defaults[1]
        if name == "affine":
            found.append(lambda x, a=alpha, c=given["beta"]: x * a + c)  # type: ignore[misc]
        elif name == "scaledtanh":
            found.append(lambda x, a=alpha, c=given["beta"]: (x * c).op("Tanh") * a)  # type: ignore[misc]
        else:
            found.append(lambda x, op=op, given=given: x.op(op, **given))  # type: ignore[misc]
    each = len(default)
    return [found[k * each : (k + 1) * each] for k in range(directions)]


def _clipped(n: Node, x: Tensor) -> Tensor:
    bound = n.attr("clip")
    return x if not bound else x.op("Clip", -float(bound), float(bound))


def _split(x: Tensor, hidden: int, parts: int) -> list[Tensor]:
    sizes = x.b.constant([hidden] * parts)
    return [Tensor(x.b, name) for name in x.b.ops("Split", x.name, sizes, outputs=parts, axis=-1)]


def unfolded(op: str) -> Callable[[Callable[[Backward, Node], list[Way]]], object]:
    """Register an operator by the directions that are built of it; the first line of the docstring is its summary."""

    def register(build: Callable[[Backward, Node], list[Way]]) -> object:
        def rule(b: Backward, n: Node, dy: Gradients) -> Gradients:
            ways: list[Way] = []

            def whole(b: Backward, n: Node) -> list[str]:
                ways.extend(build(b, n))
                return _joined(b, n, ways)

            found = through(b, n, dy, whole)
            recurrent(b, n, ways, lambda ways: _joined(b, n, ways))
            return found

        rule.__doc__ = build.__doc__
        gradient(op)(rule)
        return build

    return register


@unfolded("RNN")
def rnn(b: Backward, n: Node) -> list[Way]:
    """through a Scan of h = f(x W^T + h R^T + bias)"""

    def step(fs: list[Activation], w: Weights) -> Step:
        return lambda x, states: [fs[0](_clipped(n, x + states[0].op("MatMul", w.r)))]

    return _ways(b, n, 1, ["tanh"], 1, step)


@unfolded("LSTM")
def lstm(b: Backward, n: Node) -> list[Way]:
    """through a Scan of c = f c + i g, h = o tanh(c)"""
    hidden = int(n.attr("hidden_size"))

    def step(fs: list[Activation], w: Weights) -> Step:
        peep = _split(w.peepholes, hidden, 3) if w.peepholes else None

        def run(x: Tensor, states: list[Tensor]) -> list[Tensor]:
            h, c = states
            i, o, f, g = _split(x + h.op("MatMul", w.r), hidden, 4)
            if peep:
                i, f = i + peep[0] * c, f + peep[2] * c
            i = fs[0](_clipped(n, i))
            f = 1 - i if n.attr("input_forget", 0) else fs[0](_clipped(n, f))
            c = f * c + i * fs[1](_clipped(n, g))
            o = o + peep[1] * c if peep else o
            return [fs[0](_clipped(n, o)) * fs[2](c), c]

        return run

    return _ways(b, n, 4, ["sigmoid", "tanh", "tanh"], 2, step)


@unfolded("GRU")
def gru(b: Backward, n: Node) -> list[Way]:
    """through a Scan of h = (1 - z) g + z h"""
    hidden, after = int(n.attr("hidden_size")), bool(n.attr("linear_before_reset", 0))

    def step(fs: list[Activation], w: Weights) -> Step:
        gates, last = (
            Tensor(b, v) for v in b.ops("Split", w.r.name, b.constant([2 * hidden, hidden]), outputs=2, axis=1)
        )

        def run(x: Tensor, states: list[Tensor]) -> list[Tensor]:
            h = states[0]
            both, own = (
                Tensor(b, v) for v in b.ops("Split", x.name, b.constant([2 * hidden, hidden]), outputs=2, axis=-1)
            )
            z, r = _split(fs[0](_clipped(n, both + h.op("MatMul", gates))), hidden, 2)
            if after:
                inner = h.op("MatMul", last)
                own = own + r * (inner + w.bias if w.bias else inner)
            else:
                own = own + (r * h).op("MatMul", last)
            return [(1 - z) * fs[1](_clipped(n, own)) + z * h]

        return run

    return _ways(b, n, 3, ["sigmoid", "tanh"], 1, step)


def _ways(
    b: Backward, n: Node, gates: int, default: Sequence[str], count: int,
    make: Callable[[list[Activation], Weights], Step],
) -> list[Way]:  # fmt: skip
    """The directions of a recurrent node. gates: of W and R; count: states; make: the step of a direction."""
    x = b.transpose(n.input(0), [1, 0, 2]) if n.attr("layout", 0) else n.input(0)
    ways = _backwards(n)
    found = enumerate(zip(activations(n, default, len(ways)), ways, strict=True))
    return [
        _direction(b, n, x, d, back, gates, count, lambda w, fs=fs: make(fs, w))  # type: ignore[misc]
        for d, (fs, back) in found
    ]


def _backwards(n: Node) -> list[bool]:
    """Of every direction, whether it goes from the last step to the first."""
    return {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[n.attr("direction", "forward")]


def _joined(b: Backward, n: Node, ways: Sequence[Way]) -> list[str]:
    """The outputs of a recurrent node from those of its directions."""
    steps = [b.unsqueeze(_turned(b, w.y, back, n.input(4)), [1]) for w, back in zip(ways, _backwards(n), strict=True)]
    ends = [[b.unsqueeze(s, [0]) for s in w.last] for w in ways]
    whole = b.op("Concat", *steps, axis=1) if len(ways) > 1 else steps[0]  # (steps, directions, samples, hidden)
    states = [b.op("Concat", *parts, axis=0) if len(ways) > 1 else parts[0] for parts in zip(*ends, strict=True)]
    if n.attr("layout", 0):
        whole, states = b.transpose(whole, [2, 0, 1, 3]), [b.transpose(s, [1, 0, 2]) for s in states]
    return [whole, *states][: len(n.outputs)]


def _direction(
    b: Backward, n: Node, x: str, d: int, back: bool, gates: int, count: int, make: Callable[[Weights], Step]
) -> Way:
    """One direction: the Scan over its steps, and what it reads."""
    hidden, lengths = int(n.attr("hidden_size")), n.input(4)
    own = b.constant(d)
    w, r = (Tensor(b, b.transpose(b.op("Gather", n.input(i), own, axis=0), [1, 0])) for i in (1, 2))
    bias: Tensor | None = None
    p = Tensor(b, x).op("MatMul", w)
    if n.input(3):
        of_w, of_r = _split(Tensor(b, b.op("Gather", n.input(3), own, axis=0)), gates * hidden, 2)
        if n.op == "GRU" and n.attr("linear_before_reset", 0):
            first, last = b.ops("Split", of_r.name, b.constant([2 * hidden, hidden]), outputs=2, axis=0)
            bias = Tensor(b, last)
            of_r = Tensor(b, b.op("Concat", first, b.constant(np.zeros(hidden), like=x), axis=0))
        p = p + (of_w + of_r)
    peepholes = Tensor(b, b.op("Gather", n.input(7), own, axis=0)) if n.op == "LSTM" and n.input(7) else None
    steps = [_turned(b, p.name, back, lengths)]
    if lengths:
        every = b.op("Range", b.constant(0), b.squeeze(b.size(x, [0]), [0]), b.constant(1))
        lasts = b.op("Less", b.unsqueeze(every, [1]), b.op("Cast", lengths, to=7))
        steps.append(b.unsqueeze(lasts, [2]))  # (steps, samples, 1)
    states = [_initial(b, n, x, i, own, hidden) for i in (5, 6)[:count]]
    shapes = [("state", b.code(s), b.sizes(s)) for s in states]
    shapes += [("step", b.code(s), [size[1:] for size in b.sizes(s)]) for s in steps]
    step, inner = make(Weights(r, bias, peepholes)), renamed(b, shapes)

    def run() -> list[str]:
        before = [Tensor(b, s) for s in inner[:count]]
        after = step(Tensor(b, inner[count]), before)
        y = after[0]
        if lengths:
            runs = Tensor(b, inner[-1])
            after = [runs.where(a, s, a) for a, s in zip(after, before, strict=True)]
            y = runs.where(y, 0, y)
        return [*(s.name for s in after), y.name]

    whole = [(t, *size) for (t, *_), size in zip(b.sizes(x), b.sizes(states[0]), strict=True)]
    kinds = [(b.code(s), b.sizes(s)) for s in states] + [(b.code(x), whole)]
    *lasting, y = placed(b, "Scan", [*states, *steps], kinds, body=body_of(b, inner, run), num_scan_inputs=len(steps))
    return Way(steps[0], r.name, bias.name if bias else "", tuple(states), y, tuple(lasting))


def _turned(b: Backward, x: str, back: bool, lengths: str) -> str:
    """The steps of every sample in the order in which a direction takes them; twice, it is what it was."""
    if not back:
        return x
    if lengths:
        return b.op("ReverseSequence", x, b.op("Cast", lengths, to=7), time_axis=0, batch_axis=1)
    return b.slice(x, [-1], [-LAST], [0], [-1])


def _initial(b: Backward, n: Node, x: str, i: int, own: str, hidden: int) -> str:
    """A state before the first step, `(samples, hidden)`; zeros where none is given."""
    if n.input(i):
        return b.op("Gather", n.input(i), own, axis=1 if n.attr("layout", 0) else 0)
    return b.op("Expand", b.constant(0, like=x), b.op("Concat", b.size(x, [1]), b.constant([hidden]), axis=0))
