"""The walker: from a scalar back to what it is differentiated by, node by node.

Only nodes on a way between them are visited. The gradient of a tensor that is read several times is the sum of its
parts. Where an operator on the way has no rule, everything before it has no gradient: a part of one would be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import UserError
from onnxprune.gradient.backward import Backward, NoRule
from onnxprune.gradient.rules import NO_GRADIENTS
from onnxprune.gradient.through import back, depending
from onnxprune.graph.links import reads
from onnxprune.graph.node import Node, walk


@dataclass(frozen=True)
class Derivatives:
    """of: tensor -> its gradient, in the order asked for; blocked: tensor -> why it has none though the loss depends on
    it; unread: those on which the loss does not depend, or only through operators through which nothing flows back."""

    of: Mapping[str, str]
    blocked: Mapping[str, str]
    unread: tuple[str, ...]


def differentiate(b: Backward, loss: str, wrt: Sequence[str]) -> Derivatives:
    """Append the nodes of d loss / d w for every w of `wrt` to the model of `b`; the names of the gradients.

    Raises `UserError` where the loss is no tensor of the graph, or not one number.
    """
    nodes = list(walk(b.edit.graph, {"": b.opset}))
    _check_scalar(b, loss, nodes)
    b.wrt |= set(wrt)
    path = _between(b, nodes, loss, wrt)
    blocked: dict[str, str] = {}
    b.made[loss] = [b.constant(np.ones([1] * b.rank(loss)), like=loss)]
    for n in reversed(path):
        why = next((blocked[o] for o in n.outputs if o in blocked), "")
        read = [i for i in reads(n.proto) if i in b.needed]
        if not why:
            why = back(b, n)
        if why:
            blocked.update((i, blocked.get(i, why)) for i in read)
    b.enter(None)
    of = {name: g for name in wrt if name not in blocked and (g := b.gradient_of(name)) is not None}
    b.made.clear()
    return Derivatives(
        of, {w: blocked[w] for w in wrt if w in blocked}, tuple(w for w in wrt if w not in of and w not in blocked)
    )


def _between(b: Backward, nodes: Sequence[Node], loss: str, wrt: Iterable[str]) -> list[Node]:
    """Nodes on a way from `wrt` to the loss, in order; sets what needs a gradient."""
    depends = depending(b, nodes, wrt)
    leads, path = {loss}, []
    for n in reversed(nodes):
        if n.op in NO_GRADIENTS or leads.isdisjoint(n.outputs):
            continue
        read = depends.intersection(reads(n.proto))
        if read:
            leads |= read
            path.append(n)
    b.needed = leads & depends
    return path[::-1]


def _check_scalar(b: Backward, loss: str, nodes: Sequence[Node]) -> None:
    known = {o for n in nodes for o in n.outputs}
    if loss not in known:
        raise UserError(f"{loss!r} is not computed by the model, and cannot be the loss")
    try:
        shape = b.shape(loss)
    except NoRule as e:
        raise UserError(f"the loss must be one number: {e}") from e
    if None in shape or math.prod(d or 0 for d in shape) != 1 or not b.is_float(loss):
        raise UserError(f"the loss must be one number; {loss!r} has the shape {list(shape)}")
