"""Which products of two operands are attention: the axes of those alone are heads and the dimensions inside a head.

Where an operand is computed as well, a product may be attention, or a layer whose weights are computed or fetched (a
mixture of experts). Two products are attention, one of what the other gave,

- where a Softmax stands between them, as one operator or written out (Exp, ReduceSum, Div): softmax(q k^T) v; the first
  may have learned queries, a constant with a batch axis;
- where nothing but linear steps do, and no operand is fetched by Gather from a constant: q (k^T v), the same product in
  another order.

Where an activation stands between them they are a feed-forward layer, whose inner width is channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from onnx import TensorProto

from onnxprune.graph.arrays import Ids
from onnxprune.graph.links import makers
from onnxprune.graph.node import Node
from onnxprune.graph.traits import TRAITS
from onnxprune.structure.claims import Contraction
from onnxprune.structure.coupling import Coupling

LAYERS = TRAITS.keys() - {"Gather"}
# steps that are linear in what they read, or scale it
LINEAR = set(
    """Add Sub Mul Div Neg Sum Cast Identity Dropout Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile Slice Split
    Concat Gather GatherND GatherElements Pad Where Trilu CumSum ReduceSum ReduceMean QuantizeLinear DequantizeLinear
    DynamicQuantizeLinear""".split()
)
AROUND = (TensorProto.INT64, TensorProto.BOOL)  # indices, sizes and conditions: no values
LINEARLY, ACTIVATED, SOFTMAX = range(3)  # what stands between a tensor and the product that reads it


def mark_attention(c: Coupling, nodes: Sequence[Node]) -> None:
    """Mark the axes of the products that are attention, and note them (`Coupling.attention`)."""
    if not any(p.computed for p in c.contractions.values()):
        return
    graph = _Graph(c, nodes)
    for second in c.contractions.values():
        for first in graph.before(second) if second.computed else ():
            for p in (first, second):
                c.attention.add(p.node.key)
    for p in c.contractions.values():
        if p.node.key in c.attention:
            for ids in p.batch:
                c.mark("heads", ids)
            for ids in p.inner:
                c.mark("head_dim", ids)


class _Graph:
    """What tensors are computed of."""

    def __init__(self, c: Coupling, nodes: Sequence[Node]) -> None:
        self.c = c
        self.makers = makers(nodes)
        self.summed = {n.input(0) for n in nodes if n.op == "ReduceSum"}
        self.sums = {p.node.key: c.axes(p.node.input(p.input))[p.axis] for p in c.consumes if p.node.op in LAYERS}
        self.batch = [ids for p in c.contractions.values() for ids in p.batch if ids is not None]

    @cached_property
    def mixed(self) -> tuple[Ids, Ids]:
        """Component of every id, and the components of the batch axes of all products."""
        labels = self.c.component_labels()
        return labels, np.unique(labels[np.concatenate(self.batch)])

    def before(self, second: Contraction) -> Iterator[Contraction]:
        """The products that make attention together with `second`, of those that its operands are computed of."""
        todo = [(name, LINEARLY) for name in second.operands]
        seen = set(todo)
        while todo:
            name, between = todo.pop()
            node = self.makers.get(name)
            if node is None or self.c.is_constant(name) or self.c.shapes.types.get(name) in AROUND:
                continue
            first = self.c.contractions.get(node.key)
            if first is not None and (first.computed or between == SOFTMAX):
                if between == SOFTMAX or (between == LINEARLY and not any(map(self._fetches, (first, second)))):
                    yield first
                continue
            if node.op in LAYERS and not self._mixes_heads(node):
                continue
            if self._is_softmax(node):
                between = SOFTMAX
            elif node.op not in LINEAR and between == LINEARLY:
                between = ACTIVATED
            returned = [body.output[node.outputs.index(name)].name for body in node.bodies() if node.op == "If"]
            fresh = {(i, between) for i in (*node.inputs, *returned) if i} - seen
            seen |= fresh
            todo += sorted(fresh)

    def _is_softmax(self, n: Node) -> bool:
        """Whether a node is a Softmax, or the Exp of one that is written out."""
        return n.op.endswith("Softmax") or (n.op == "Exp" and n.output(0) in self.summed)

    def _mixes_heads(self, n: Node) -> bool:
        """Whether a layer sums over nothing but heads ("talking heads")."""
        ids = self.sums.get(n.key)
        if ids is None or not any(ids.size == axis.size for axis in self.batch):
            return False
        labels, heads = self.mixed
        return bool(np.isin(labels[ids], heads).all())

    def _fetches(self, p: Contraction) -> bool:
        """Whether an operand is looked up in a constant."""
        todo = list(p.operands)
        seen = set(todo)
        while todo:
            node = self.makers.get(todo.pop())
            if node is None or node.op not in LINEAR:
                continue
            if node.op.startswith("Gather") and self.c.is_constant(node.input(0)):
                return True
            fresh = {i for i in node.inputs if i} - seen
            seen |= fresh
            todo += sorted(fresh)
        return False
