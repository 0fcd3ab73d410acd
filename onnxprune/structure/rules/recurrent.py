"""LSTM, GRU and RNN: the hidden units, coupled to themselves through the recurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.graph.node import Node
from onnxprune.graph.traits import TRAITS
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.rules.registry import rule

if TYPE_CHECKING:
    from onnxprune.structure.surgeon import Surgeon


def resize_hidden(s: Surgeon, n: Node) -> None:
    """`hidden_size` is the width of the recurrence."""
    s.set_attr(n, "hidden_size", s.count(s.coupling.axes(n.input(2))[TRAITS[n.op].reduction]))


@rule("LSTM", "GRU", "RNN", resize=resize_hidden)
def recurrent(c: Coupling, n: Node) -> None:
    """W (D, g*H, I), R (D, g*H, H), B, P: hidden units are tied through gates, recurrence, states, directions"""
    couple_recurrent(c, n)


@rule("com.microsoft::DynamicQuantizeLSTM", resize=resize_hidden)
def quantized_recurrent(c: Coupling, n: Node) -> None:
    """as LSTM, with W (D, I, g*H) and R (D, H, g*H); scales and zero points are of directions or follow g*H"""
    t = TRAITS[n.op]
    zero = c.known(n.input(t.zeros[1]))
    alone = (c.shape(n.input(2)) or (0,))[0] == 1
    if not alone and (zero is None or zero.any()):
        c.pin_all(n, "a zero point of its own for every direction")
        return
    couple_recurrent(c, n, zero=n.input(t.zeros[1]) if alone else "")
    hidden = c.axes(n.input(2))[1]
    for slot in t.steps:
        axes = c.axes(n.input(slot))
        c.pin(axes[0], "directions of a recurrent layer")
        if len(axes) == 2 and axes[1] is not None and hidden is not None:
            c.tie(axes[1].reshape(t.gates, -1), hidden[None])


def couple_recurrent(c: Coupling, n: Node, zero: str = "") -> None:
    """Tie hidden units through weights, bias, states and directions. zero: the zero point of the recurrence."""
    x, w, r = c.axes(n.input(0)), c.axes(n.input(1)), c.axes(n.input(2))
    t = TRAITS[n.op]
    if len(x) != 3 or len(w) != 3 or len(r) != 3 or any(i is None for i in (r[1], r[2], w[t.outputs])):
        c.pin_all(n, "a recurrent layer of unknown shape or of one unit")
        return
    hidden, made, again, gates = r[t.reduction], w[t.outputs], r[t.outputs], t.gates
    assert hidden is not None and made is not None and again is not None
    for axis in (w[0], r[0]):
        c.pin(axis, "directions of a recurrent layer")
    c.tie(x[2], w[t.reduction])
    c.tie(made.reshape(gates, -1), hidden[None])
    c.tie(again.reshape(gates, -1), hidden[None])
    # B (D, 2*g*H), initial states (D, batch, H), P (D, 3*H)
    layout = n.attr("layout", 0)
    for i, blocks in ((3, 2 * gates), (7, 3)):
        axes = c.axes(n.input(i)) if n.input(i) else []
        if len(axes) == 2 and axes[1] is not None:
            c.tie(axes[1].reshape(blocks, -1), hidden[None])
            c.pin(axes[0], "directions of a recurrent layer")
    for i in (5, 6):
        axes = c.axes(n.input(i)) if n.input(i) else []
        if len(axes) == 3:
            c.tie(axes[2], hidden)
            c.pin(axes[1 if layout else 0], "directions of a recurrent layer")
            c.tie(axes[0 if layout else 1], x[0 if layout else 1])
    for axis in c.axes(n.input(4)) if n.input(4) else []:
        c.pin(axis, "sequence lengths")
    for o in n.outputs:
        axes = c.axes(o) if o else []
        if axes:
            c.tie(axes[-1], hidden)
            for axis in axes[:-1]:
                c.pin(axis, "time, directions and batch of a recurrent layer")
    for axis in x[:2]:
        c.pin(axis, "time and batch of a recurrent layer")
    c.consume(n, 0, 2)
    c.consume(n, 2, t.reduction, zero)
    c.produce(n, n.input(1), t.outputs)
    c.produce(n, n.input(2), t.outputs)
