"""Values of constants, also of those that nodes compute of constants (Reshape, Transpose, DequantizeLinear).

In goes the name of a tensor; out comes its value, or None where it is none, where onnxruntime cannot compute it, and
where it, or what is held on the way to it, is larger than the model's `allowance`.
"""

from __future__ import annotations

from onnxprune.graph.arrays import Array
from onnxprune.graph.limits import nbytes
from onnxprune.graph.links import made_at
from onnxprune.graph.node import Node, walk_all
from onnxprune.graph.ort import ORT_ERRORS
from onnxprune.graph.shapes import Shapes, run_node


class Constants:
    """The constants of the model that `shapes` are of; nothing is kept between two questions."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes, self.model = shapes, shapes.model
        self.nodes = list(walk_all(self.model.proto.graph, shapes.opsets))
        makers = made_at(node.proto for node in self.nodes)
        self.at = {o: i for o, i in makers.items() if o in shapes.constant}

    def __call__(self, name: str) -> Array | None:
        """The value of a tensor; None where it has none that may be computed."""
        if name in self.model.weights:
            return self.model.weights[name]
        nodes = self.needed(name)
        if nodes is None:
            return None
        last = {i: node.key for node in nodes for i in node.inputs} | {name: ""}
        if self._peak(nodes, last) > self.shapes.allowance:
            return None
        values: dict[str, Array] = {}
        for node in nodes:
            feeds = {i: self.model.weights[i] if i in self.model.weights else values[i] for i in node.inputs if i}
            try:
                results = run_node(node, feeds, self.model.proto)
            except ORT_ERRORS:  # TooLarge is a RuntimeError
                return None
            outputs = dict(zip((o for o in node.outputs if o), results, strict=True))
            values = {n: v for n, v in (values | outputs).items() if n in last and last[n] != node.key}
        return values[name]

    def needed(self, name: str) -> list[Node] | None:
        """The nodes that a tensor is computed by, in order; None where one of them reads what is no constant."""
        needed: set[int] = set()
        pending = [name]
        while pending:
            tensor = pending.pop()
            if not tensor or tensor in self.model.weights:
                continue
            if tensor not in self.at or not self.nodes[self.at[tensor]].inputs:
                return None
            if self.at[tensor] not in needed:
                needed.add(self.at[tensor])
                pending.extend(self.nodes[self.at[tensor]].inputs)
        return [self.nodes[i] for i in sorted(needed)]

    def _peak(self, nodes: list[Node], last: dict[str, str]) -> float:
        """Bytes that computed tensors take at a time, at most; infinity where a size is not known."""
        sizes: dict[str, float] = {}
        peak = 0.0
        for node in nodes:
            for o in (o for o in node.outputs if o):
                size = nbytes(self.shapes.shapes.get(o), self.shapes.types.get(o, 1))
                sizes[o] = float("inf") if size is None else float(size)
            peak = max(peak, sum(sizes.values()))
            sizes = {n: v for n, v in sizes.items() if n in last and last[n] != node.key}
        return peak
