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
    s.set_attr(n, "hidden_size", s.count(s.coupling.axes(n.input(2))[2]))


@rule("LSTM", "GRU", "RNN", resize=resize_hidden)
def recurrent(c: Coupling, n: Node) -> None:
    """W (D, g*H, I), R (D, g*H, H), B, P: hidden units are tied through gates, recurrence, states, directions"""
    x, w, r = c.axes(n.input(0)), c.axes(n.input(1)), c.axes(n.input(2))
    if len(x) != 3 or len(w) != 3 or len(r) != 3 or r[2] is None or w[1] is None or r[1] is None:
        c.pin_all(n, "a recurrent layer of unknown shape or of one unit")
        return
    hidden, gates = r[2], TRAITS[n.op].gates
    for axis in (w[0], r[0]):
        c.pin(axis, "directions of a recurrent layer")
    c.tie(x[2], w[2])
    c.tie(w[1].reshape(gates, -1), hidden[None])
    c.tie(r[1].reshape(gates, -1), hidden[None])
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
    c.consume(n, 2, 2)
    c.produce(n, n.input(1), 1)
    c.produce(n, n.input(2), 1)
