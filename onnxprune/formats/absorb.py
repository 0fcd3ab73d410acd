"""What may follow a product inside one sparse operator: a bias, a residual, an activation.

In goes a product's node; out comes the chain of nodes behind it that the operator can compute itself. Only values that
nothing else reads are given up. An activation that an exporter wrote as several nodes is recognised by what it
computes, not by how it is written: the nodes are evaluated on points, and compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto
from scipy import special

from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.links import read_at
from onnxprune.graph.node import Node
from onnxprune.graph.sizes import Sizes

MAX_CONE = 10  # nodes of a written-out activation
LOWEST, HIGHEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
POINTS = np.concatenate([np.linspace(-12, 12, 97), [-1e30, -1e4, -100, 100, 1e4, 1e30]])


class Uses:
    """Who reads what in the main graph: index of the node for each value, once per input."""

    def __init__(self, model: Model, nodes: Sequence[NodeProto]) -> None:
        self.nodes: list[NodeProto | None] = list(nodes)
        self.readers = read_at(nodes)
        self.kept = {value.name for value in model.proto.graph.output}  # read from outside
        for graph in list(graphs(model.proto.graph))[1:]:
            self.kept.update(value.name for value in graph.output)
            self.kept.update(itertools.chain.from_iterable(node.input for node in graph.node))

    def only(self, name: str) -> int | None:
        """The one node that reads a value, and reads it once."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.kept else None

    def remove(self, i: int) -> None:
        """Put nothing at a place."""
        old = self.nodes[i]
        for name in old.input if old is not None else ():
            self.readers[name] = [j for j in self.readers[name] if j != i]
        self.nodes[i] = None

    def replace(self, gone: Sequence[int], index: int, node: NodeProto) -> None:
        """Put `node` at `index`, and nothing at the places in `gone`."""
        for i in gone:
            self.remove(i)
        self.nodes[index] = node
        for name in node.input:
            self.readers[name].append(index)


@dataclass
class Chain:
    """A product and what is absorbed behind it.

    bias: `(M,)`, None for none; output: the last value; nodes: indices of all nodes that go, the product's first.
    """

    output: str
    nodes: list[int]
    bias: Array | None = None
    residual: str = ""
    activation: str = ""
    bounds: tuple[float, float] = (LOWEST, HIGHEST)
    gone: list[str] = field(default_factory=list)  # what the nodes that go have read


class Absorber:
    """Follows products; constants: values that are constant for certain."""

    def __init__(self, uses: Uses, sizes: Sizes, constants: Mapping[str, Array], opset: int) -> None:
        self.uses = uses
        self.sizes = sizes
        self.constants = constants
        self.opset = opset

    def extend(self, chain: Chain, product: str, m: int, spatial: int) -> None:
        """Add to a chain all that can be absorbed; product: MatMul, LeftMatMul or Conv; spatial: axes of a Conv."""
        while self._add(chain, product, m, spatial):
            pass
        if not self._clip(chain):
            self._cone(chain)

    def _take(self, chain: Chain, nodes: Sequence[int], output: str) -> None:
        chain.nodes += nodes
        chain.output = output

    def _add(self, chain: Chain, product: str, m: int, spatial: int) -> bool:
        i = self.uses.only(chain.output)
        node = self._node(i)
        if i is None or node is None or node.op != "Add":
            return False
        other = node.input(1) if node.input(0) == chain.output else node.input(0)
        if other in self.constants:
            bias = None
            if chain.bias is None:
                bias = as_bias(self.constants[other], product, m, spatial, lambda: self.sizes.rank(chain.output))
            if bias is None:
                return False
            chain.bias = bias
        elif chain.residual or other in self.sizes.model.weights or not self.sizes.same(other, chain.output):
            return False
        else:
            chain.residual = other
        self._take(chain, [i], node.output(0))
        return True

    def _clip(self, chain: Chain) -> bool:
        i = self.uses.only(chain.output)
        node = self._node(i)
        if i is None or node is None or node.op != "Clip" or node.input(0) != chain.output:
            return False
        bounds = self._bounds(node)
        if bounds is None:
            return False
        chain.activation, chain.bounds = "Clip", bounds
        self._take(chain, [i], node.output(0))
        return True

    def _bounds(self, node: Node) -> tuple[float, float] | None:
        if self.opset < 11:
            low, high = float(node.attr("min", LOWEST)), float(node.attr("max", HIGHEST))
        else:
            given = [self.constants.get(node.input(k)) if node.input(k) else np.float32(d) for k, d in BOUNDS]
            if any(g is None or g.size != 1 for g in given):
                return None
            low, high = (float(np.asarray(g).reshape(())) for g in given)
        return None if np.isnan([low, high]).any() else (low, high)

    def _cone(self, chain: Chain) -> None:
        """Absorb an activation, written as one node or as several."""
        uses, start = self.uses, chain.output
        values = {start: POINTS}
        inside: list[int] = []
        while len(inside) < MAX_CONE:
            live = [v for v in values if v in uses.kept or any(i not in inside for i in uses.readers[v])]
            if len(live) == 1 and live[0] not in (start,):
                name = recognise(values[live[0]])
                if name:
                    chain.activation = name
                    self._take(chain, inside, live[0])
                    return
            readers = {i for v in live for i in uses.readers[v]} - set(inside)
            if not readers or any(v in uses.kept for v in live):
                return
            i = min(readers)
            node = self._node(i)
            y = None if node is None else self._evaluate(node, values)
            if node is None or y is None:
                return
            values[node.output(0)] = y
            inside.append(i)

    def _evaluate(self, node: Node, values: Mapping[str, Array]) -> Array | None:
        """The node's output on POINTS; None where it is more than arithmetic on `values` and scalars."""
        operands = [values.get(name, self._scalar(name)) for name in node.inputs]
        if node.op == "Clip":
            bounds = self._bounds(node) if node.input(0) in values else None
            return None if bounds is None else np.clip(values[node.input(0)], *bounds)
        if any(x is None for x in operands):
            return None
        with np.errstate(all="ignore"):
            if node.op in BINARY and len(operands) == 2:
                return np.asarray(BINARY[node.op](*operands))
            if node.op in UNARY and len(operands) == 1:
                return np.asarray(UNARY[node.op](node, operands[0]))
        return None

    def _scalar(self, name: str) -> Array | None:
        constant = self.constants.get(name)
        if constant is None or constant.size != 1 or constant.ndim > 1:
            return None
        return constant.reshape(()).astype(np.float64)

    def _node(self, i: int | None) -> Node | None:
        proto = None if i is None else self.uses.nodes[i]
        return None if proto is None else Node(proto, self.opset)


BOUNDS = ((1, LOWEST), (2, HIGHEST))
BINARY: dict[str, Callable[..., Any]] = {
    "Mul": np.multiply,
    "Add": np.add,
    "Sub": np.subtract,
    "Div": np.divide,
    "Pow": np.power,
}


def _gelu(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + special.erf(x / np.sqrt(2))))


def _fast_gelu(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def _hard_sigmoid(x: Array, alpha: float = 1 / 6, beta: float = 0.5) -> Array:
    return np.clip(alpha * x + beta, 0, 1)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "HardSwish": lambda x: x * _hard_sigmoid(x),
    "Silu": lambda x: np.asarray(x * special.expit(x)),
    "Gelu": _gelu,
    "FastGelu": _fast_gelu,
}
UNARY: dict[str, Callable[[Node, Any], Any]] = {
    "Relu": lambda node, x: np.maximum(x, 0),
    "HardSwish": lambda node, x: x * _hard_sigmoid(x),
    "HardSigmoid": lambda node, x: _hard_sigmoid(x, node.attr("alpha", 0.2), node.attr("beta", 0.5)),
    "Sigmoid": lambda node, x: special.expit(x),
    "Swish": lambda node, x: x * special.expit(node.attr("alpha", 1.0) * x),
    "com.microsoft::QuickGelu": lambda node, x: x * special.expit(node.attr("alpha", 1.702) * x),
    "Tanh": lambda node, x: np.tanh(x),
    "Erf": lambda node, x: special.erf(x),
    "Gelu": lambda node, x: _fast_gelu(x) if node.attr("approximate", "none") == "tanh" else _gelu(x),
    "com.microsoft::Gelu": lambda node, x: _gelu(x),
    "com.microsoft::FastGelu": lambda node, x: _fast_gelu(x),
}


def recognise(y: Array) -> str:
    """The activation whose values on POINTS are `y`; the empty string where it is none."""
    for name, compute in ACTIVATIONS.items():
        if y.shape == POINTS.shape and np.allclose(y, compute(POINTS), rtol=1e-6, atol=1e-6):
            return name
    return ""


def as_bias(w: Array, product: str, m: int, spatial: int, rank: Callable[[], int | None]) -> Array | None:
    """A constant that is added to a product, as a vector `(m,)` over its outputs; None where it is none.

    rank: of the product, asked for where adding the constant could give it more axes.
    """
    after = {"MatMul": 0, "LeftMatMul": 1, "Conv": spatial}[product]  # axes behind that of the outputs
    shape = (1,) * max(after + 1 - w.ndim, 0) + w.shape
    at = len(shape) - after - 1
    if any(d != 1 for k, d in enumerate(shape) if k != at) or shape[at] not in (1, m):
        return None
    surely = {"MatMul": 1, "LeftMatMul": 2, "Conv": spatial + 2}[product]
    if w.ndim > surely:
        known = rank()
        if known is None or w.ndim > known:
            return None
    return np.broadcast_to(w.reshape(-1), (m,))
