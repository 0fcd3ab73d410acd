"""From components to groups: which units can be removed, of what kind, from where.

`analyze` runs the rule of every node, solves the coupling, and gathers interchangeable components into
`ChannelGroup`s.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from onnxprune.graph.arrays import Array, Ids
from onnxprune.graph.folding import fold
from onnxprune.graph.io import Model
from onnxprune.graph.limits import PER_INDEX
from onnxprune.graph.links import read_counts
from onnxprune.graph.node import Node, walk_all
from onnxprune.graph.shapes import fixed, graph_inputs, infer
from onnxprune.graph.traits import TRAITS
from onnxprune.structure.analysis import Analysis, ChannelGroup, Pinned, Slice, weight_axes
from onnxprune.structure.attends import mark_attention
from onnxprune.structure.claims import Consume, Pin
from onnxprune.structure.components import Components, solved
from onnxprune.structure.coupling import Computed, Coupling
from onnxprune.structure.depth import Block, find_blocks
from onnxprune.structure.rules import BARRIERS, RULES

PASSING = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand"}  # move indices
PRODUCTS = {"MatMul", "Einsum", "com.microsoft::FusedMatMul"}
NEVER = np.iinfo(np.int64).max
SUFFIXED = ("heads", "head_dim")  # kinds that stand in the name of the group, after the node


def analyze(
    model: Model,
    input_shapes: dict[str, tuple[int, ...]] | None = None,
    *,
    allow_io_change: bool = False,
    whole_layers: bool = False,
) -> Analysis:
    """Find every group of removable units; `Analysis.model` has weights that are computed of constants folded.

    input_shapes: input name -> concrete shape, where the declared one is dynamic.
    allow_io_change: axes of the model's inputs and outputs that hold heads or their dimensions (key-value caches,
    masks per head) may shrink. whole_layers: attention and the feed-forward block after it are one unit of depth.
    Raises `OptionError` where a given shape does not fit.
    """
    shapes = infer(model, input_shapes)
    folded = fold(shapes)
    if folded is not model:
        model, shapes = folded, infer(folded, input_shapes)
    shapes.forget_long(shapes.allowance // PER_INDEX)
    coupling = Coupling(model, shapes, read_counts(model.proto.graph))
    nodes = list(walk_all(model.proto.graph, shapes.opsets))
    for node in nodes:
        couple(coupling, node)
    coupling.node = None
    mark_attention(coupling, nodes)
    for what, infos in (("input", graph_inputs(model)), ("output", model.proto.graph.output)):
        for info in infos:
            for k, ids in enumerate(coupling.axes(info.name)):
                dims = info.type.tensor_type.shape.dim
                changes = allow_io_change and 0 < k < len(dims) and fixed(dims[k])
                reason = f"axis of the graph {what} {info.name}"
                coupling.pin(ids, reason, unless=("heads", "head_dim") if changes else ())
    blocks = find_blocks(coupling, whole_layers=whole_layers)
    components = solved(coupling)
    groups = (*_groups(coupling, components), *_layers(components, blocks))
    pinned = _pinned(coupling, components)
    return Analysis(model, coupling, components, groups, pinned, tuple(shapes.problems), tuple(blocks))


def _layers(s: Components, blocks: Sequence[Block]) -> list[ChannelGroup]:
    """One group of one unit per residual block, or per several that go together."""
    together: dict[int, list[Block]] = {}
    for b in blocks:
        together.setdefault(int(s.labels[b.gate[0]]), []).append(b)
    out = []
    for label, members in together.items():
        nodes = [n for b in members for n in (*b.inside, b.node)]
        names = [
            f"{members[0].node.label}:layers",
            *(n.label for n in nodes),
            *(o for n in nodes for o in n.outputs if o),
        ]
        labels = np.array([label])
        out.append(ChannelGroup(names[0], "layers", 1, labels, (), (), tuple(n.label for n in nodes), tuple(names)))
    return out


def couple(c: Coupling, node: Node) -> None:
    """Let the node's rule tie, pin and mark; without a rule, or where a shape is not known, pin all it touches."""
    c.node = node
    unknown = incomplete(c, node)
    if node.op in BARRIERS:
        c.pin_all(node, BARRIERS[node.op])
    elif node.op not in RULES:
        c.pin_all(node, "no rule for this operator")
    elif not c.shapes.vast.isdisjoint(node.outputs):
        c.pin_all(node, "makes a constant that is too large to be computed")
    elif unknown is not None and node.op not in ("Shape", "Size", "Constant", "If", "Loop", "Scan"):
        c.pin_all(node, f"the shape of {unknown} is not known")
        if node.op in PRODUCTS:  # it may be what makes an earlier product attention
            c.contract(node, node.inputs[:2], (), ())
    else:
        before = len(c.consumes)
        try:
            RULES[node.op].couple(c, node)
            if node.op in PASSING:
                c.follow(node.input(0), node.output(0))
            pin_statistics(c, node, c.consumes[before:])
        except Computed as e:
            c.pin_all(node, str(e))
        except (IndexError, TypeError, ValueError) as e:  # ranks and attributes that contradict each other
            c.pin_all(node, f"malformed for its rule: {e}")


def pin_statistics(c: Coupling, node: Node, consumes: Sequence[Consume]) -> None:
    """A norm or a mean of constants stays what it is: what it is taken over goes only where it could be folded."""
    if c.is_constant(node.key) and node.op not in TRAITS:
        for consume in consumes:
            c.pin(c.axes(node.input(consume.input))[consume.axis], f"{node.op} over constants that are not folded")


def incomplete(c: Coupling, node: Node) -> str | None:
    """A tensor of the node whose shape is not known; None where all are, but for outputs that nothing reads."""
    used = [i for i in node.inputs if i] + [o for o in node.outputs if c.readers[o]]
    return next((t for t in used if not c.complete(t)), None)


def _groups(c: Coupling, s: Components) -> tuple[ChannelGroup, ...]:
    """Components with the same sites, or linked by a constraint, form one group."""
    n = len(s.reason)
    free = (s.reason < 0) & (s.homes[:, 1] < 0)
    rng = np.random.default_rng(0)
    signature = np.zeros(n, np.uint64)
    produced = np.zeros(n, bool)
    touched = np.zeros(n, bool)
    times = np.full(n, NEVER)  # ids of a unit along one axis, at least

    def units(labels: Ids) -> Ids:
        parts = np.unique(s.homes[labels])
        return parts[parts >= 0]

    for name in c.base:
        for _, ids in weight_axes(c, name):
            labels, count = np.unique(s.labels[ids], return_counts=True)
            times[labels] = np.minimum(times[labels], count)
            present = units(labels)
            signature[present] += rng.integers(1, 1 << 63, dtype=np.uint64)
            if name in c.model.weights:
                touched[present] = True
    for p in c.produces:
        axes = c.axes(p.weight)
        out = axes[p.axis] if axes else None
        if out is not None:
            produced[units(s.labels[out])] = True
    free &= produced & touched
    before = -1
    while before != free.sum():  # a block that holds what nothing makes (a constant's channels) cannot shrink evenly
        before = free.sum()
        for rows in s.blocks:
            free[rows] &= free[rows].all()
    for has in s.kinds.values():  # kinds never mix
        signature[has] += rng.integers(1, 1 << 63, dtype=np.uint64)
    parent = _Union()
    for rows in s.blocks:
        flat = np.unique(signature[rows[free[rows]]])
        for other in flat[1:]:
            parent.join(int(flat[0]), int(other))
    family = np.array([parent.find(int(x)) if f else 0 for x, f in zip(signature, free, strict=True)], np.uint64)
    order = np.flatnonzero(free)
    members: dict[int, list[int]] = {}
    for label in order:  # labels grow with the first id, so families come in graph order
        members.setdefault(int(family[label]), []).append(int(label))
    return _build(c, s, [np.array(m) for m in members.values() if _countable(c, s, np.array(m))], times)


def _countable(c: Coupling, s: Components, labels: Ids) -> bool:
    """Whether the constraints of a group, units times blocks, can be written down; where they cannot, it is pinned."""
    if not s.blocks:
        return True
    members = np.zeros(len(s.reason), bool)
    members[labels] = True
    counts = 8 * len(labels) * sum(len(rows) for rows in s.blocks if members[rows].all())
    if counts <= c.shapes.allowance:
        return True
    s.pins.append(Pin("", "graph", "", 1, "channels in too many blocks that must shrink evenly"))
    s.reason[labels] = len(s.pins) - 1
    return False


def _build(c: Coupling, s: Components, families: list[Ids], times: Ids) -> tuple[ChannelGroup, ...]:
    n = len(s.reason)
    group_of, unit_of = np.full(n + 1, -1), np.full(n, -1)
    for k, labels in enumerate(families):
        group_of[labels] = k
        unit_of[labels] = np.arange(len(labels))
    slices: list[list[Slice]] = [[] for _ in families]
    nodes: list[dict[str, None]] = [{} for _ in families]
    outputs: list[dict[str, None]] = [{} for _ in families]
    for p in c.produces:
        axes = c.axes(p.weight)
        ids = axes[p.axis] if axes else None
        for k in np.unique(group_of[s.parts(ids)]) if ids is not None else ():
            if k >= 0:
                nodes[k].setdefault(p.node.label)
                outputs[k].setdefault(p.output)
                if p.weight in c.model.weights:
                    outputs[k].setdefault(p.weight)
    for name in c.base:
        if name not in c.model.weights:
            continue
        for axis, ids in weight_axes(c, name):
            parts = s.parts(ids)
            for k in np.unique(group_of[parts]):
                if k >= 0:
                    units = np.where(group_of[parts] == k, unit_of[parts], -1).max(-1)
                    slices[k].append(Slice(name, axis, units))
    groups = []
    used: Counter[str] = Counter()
    for k, labels in enumerate(families):
        kind = next((kind for kind, has in s.kinds.items() if has[labels].any()), "channels")
        blocks: list[Ids] = []
        for rows in s.blocks:
            if (group_of[rows] == k).all():
                per_block = np.stack([np.bincount(unit_of[r], minlength=len(labels)) for r in rows])
                if (per_block != per_block[0]).any() and not any(np.array_equal(per_block, old) for old in blocks):
                    blocks.append(per_block)
            else:
                assert not (group_of[rows] == k).any(), "blocks that share a constraint are one group"
        name = next(iter(nodes[k]), "") or f"group_{k}"
        if kind in SUFFIXED:  # a projection makes heads and what is inside them
            name = f"{name}:{kind}"
        used[name] += 1
        if used[name] > 1:
            name = f"{name}#{used[name]}"
        names = dict.fromkeys([name, *nodes[k], *outputs[k]])
        counts = [(t.units >= 0).sum() // len(labels) for t in slices[k] if len(c.axes(t.tensor)) > 1]
        width = max(1, int(min(counts, default=1)))
        if kind == "head_dim":  # a part of the width of every head; ids in no tensor count one
            width = int(min(times[labels].min(), len(labels))) if (times[labels] < NEVER).all() else 1
        leasts = [_least_units(group_of[s.labels[ids]] == k, count, len(labels)) for ids, count in c.leasts]
        groups.append(
            ChannelGroup(
                name, kind, len(labels), labels, tuple(slices[k]), tuple(blocks), tuple(nodes[k]), tuple(names), width,
                max((1, *leasts)),
            )
        )  # fmt: skip
    return tuple(g for g in groups if g.size > 1)


def _least_units(members: Array, count: int, size: int) -> int:
    """How many of a group's `size` units must stay so that an axis keeps `count` indices, of which `members` are
    theirs, bool `(length,)`; 0 where none is."""
    theirs = int(members.sum())
    return math.ceil(max(count - (len(members) - theirs), 0) * size / theirs) if theirs else 0


class _Union:
    def __init__(self) -> None:
        self.parent: dict[int, int] = {}

    def find(self, x: int) -> int:
        while self.parent.get(x, x) != x:
            x = self.parent[x]
        return x

    def join(self, x: int, y: int) -> None:
        self.parent[self.find(y)] = self.find(x)


def _pinned(c: Coupling, s: Components) -> tuple[Pinned, ...]:
    """Weight axes that make units, all pinned, with the reason of the first index."""
    out = []
    seen = set()
    for p in c.produces:
        axes = c.axes(p.weight)
        ids = axes[p.axis] if axes else None
        if ids is None or (p.weight, p.axis) in seen:
            continue
        seen.add((p.weight, p.axis))
        reasons = s.reason[s.labels[ids]]
        pinned = reasons[reasons >= 0]
        if pinned.size:
            pin: Pin = s.pins[int(np.bincount(pinned).argmax())]
            out.append(Pinned(p.weight, p.axis, int(pinned.size), pin.node, pin.op, pin.reason))
        elif (s.parts(ids) == s.parts(ids)[0]).all():
            n = p.node
            out.append(Pinned(p.weight, p.axis, ids.size, n.label, n.op, "all of it goes together, or nothing"))
    return tuple(out)
