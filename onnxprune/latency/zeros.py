"""Variants of a model with zeros in all layers, in the format that is quickest: what single layers gain from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxprune import kernels
from onnxprune.errors import UserError
from onnxprune.formats.auto import quickest
from onnxprune.formats.format import no_operator
from onnxprune.formats.operators import is_sparse
from onnxprune.formats.patterns import BlockPattern, NMPattern, Pattern
from onnxprune.formats.registry import AUTO, candidates
from onnxprune.formats.rewrite import rewrite
from onnxprune.graph.io import Model
from onnxprune.graph.node import Node, opsets, walk
from onnxprune.layers.layer import Layer, sparse_layers
from onnxprune.runtime.session import Feeds
from onnxprune.sparsity.prepare import prepare
from onnxprune.sparsity.solve import by_magnitude

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)


SMALLER = ("float16", "int8")  # types of values that are tried beside float32


@dataclass(frozen=True)
class Method:
    """A way to make weights zero, and to store what is left. pattern: by which zeros lie, None for any; sparsities:
    that are measured; values: type of what operators of ours store; plain: the file has none of these; dense: zeros
    stay in dense weights, for a runtime that looks for them there."""

    pattern: Pattern | None
    sparsities: tuple[float, ...] = SPARSITIES
    values: str = "float32"
    plain: bool = False
    dense: bool = False


PATTERNS: Mapping[str, Method] = {
    "unstructured": Method(None),
    "nm": Method(NMPattern(2, 4), (0.5,)),
    "block": Method(BlockPattern(4, 4)),
    "column": Method(BlockPattern(0, 1), plain=True),
}
METHODS: Mapping[str, Method] = dict(PATTERNS) | {
    f"{name}:{values}": replace(row, values=values)
    for name, row in PATTERNS.items()
    for values in SMALLER
    if candidates(AUTO, row.pattern, present=False)[0].storage is not None
} | {"nm:dense": replace(PATTERNS["nm"], plain=True, dense=True)}  # fmt: skip


def ways(name: str, *, smaller: bool = False, elsewhere: bool = False) -> list[str]:
    """The names of the `METHODS` with the zeros of one; smaller: those with smaller values too; elsewhere: those of
    files in plain ONNX, for a device on which our operators do not run.

    >>> ways("nm", smaller=True), ways("column", smaller=True)
    (['nm', 'nm:float16', 'nm:int8'], ['column'])
    >>> ways("nm", elsewhere=True), ways("column", elsewhere=True), ways("block", elsewhere=True)
    (['nm:dense'], ['column'], [])
    """
    if elsewhere:
        return [n for n, row in METHODS.items() if row.plain and n.partition(":")[0] == name]
    return [n for n, row in METHODS.items() if not row.dense and (n == name or (smaller and n.startswith(f"{name}:")))]


@dataclass(frozen=True, eq=False)
class Zeros:
    """Zeros in all layers. method: of `METHODS`; layers: key of a layer -> keys of the nodes that the operator in its
    place computes."""

    method: str
    sparsity: float
    layers: Mapping[str, frozenset[str]]


def with_zeros(model: Model, methods: Sequence[str], feeds: Feeds, threads: int) -> Iterator[tuple[Zeros, Model]]:
    """Variants of a model by some of `METHODS`, of each the one with most zeros first.

    Raises `UserError` where sparse operators cannot run here.
    """
    missing = "" if all(METHODS[name].plain for name in methods) else kernels.available()
    if missing:
        raise UserError(f"--methods {','.join(methods)}: sparse kernels cannot run here: {missing}; leave them out")
    if not methods:
        return
    prepared, _ = prepare(model, functions=True)
    every = sparse_layers(prepared)[0]
    for name in methods:
        layers = every if METHODS[name].dense else [layer for layer in every if not no_operator(layer)]
        for sparsity in reversed(METHODS[name].sparsities) if layers else ():
            masked = _masked(prepared, layers, METHODS[name].pattern, sparsity)
            stored, done = _stored(masked, layers, METHODS[name], feeds, threads)
            yield Zeros(name, sparsity, _computed(prepared, layers, stored, done)), stored


def _masked(model: Model, layers: Sequence[Layer], pattern: Pattern | None, sparsity: float) -> Model:
    """The model with the smallest weights of all layers zero."""
    out = model.copy()
    for layer in {layer.initializer: layer for layer in layers}.values():
        count = round(sparsity * layer.read(model).size)
        layer.write(out, by_magnitude(model, layer, pattern, count))
    return out


def _stored(
    masked: Model, layers: Sequence[Layer], method: Method, feeds: Feeds, threads: int
) -> tuple[Model, set[str]]:
    """The model with these layers stored, and the names of those that are."""
    if method.dense:
        return masked, {layer.name for layer in layers}
    rows = candidates(AUTO, method.pattern, present=False)
    for row in rows:
        if row.plain is not None:
            out, done, _ = row.plain.write(masked, layers, 0.0)
            return out, set(done)
    packings = {layer.name: [row.packing(method.pattern) for row in rows if not row.refuses(layer)] for layer in layers}
    packings = {name: each for name, each in packings.items() if each}
    formats = quickest(masked, packings, feeds, values=method.values, threads=threads)
    return rewrite(masked, formats, method.values)[0], set(formats)


def _computed(model: Model, layers: Sequence[Layer], stored: Model, done: set[str]) -> dict[str, frozenset[str]]:
    """What the operators in the place of layers compute: the layer, and what lies between it and their output."""
    nodes = list(walk(model.proto.graph, opsets(model.proto)))
    ends = {n.name: n.output[0] for n in stored.proto.graph.node if is_sparse(n)}
    return {x.key: _between(nodes, x.key, ends.get(x.name, x.key)) for x in layers if x.name in done}


def _between(nodes: Sequence[Node], first: str, last: str) -> frozenset[str]:
    """Keys of the nodes on the ways from one node to another, these two with them; nodes are in order."""
    keys = [n.key for n in nodes]
    part = nodes[keys.index(first) : keys.index(last) + 1]
    after, before = {first}, {last}
    for n in part:
        after |= set(n.outputs) if after & set(n.inputs) else set()
    for n in reversed(part):
        before |= set(n.inputs) if before & set(n.outputs) else set()
    return frozenset({first, last} | {n.key for n in part if n.key in after and before & set(n.outputs)})
