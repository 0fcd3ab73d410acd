"""A model as onnxruntime runs it: parts, each a node with what was fused into it, and what they are counted by.

onnxruntime fuses nodes, and the profile names what is left. A variant's nodes are called by their first output
(`named`), and every fused node keeps one of these names in its own, so that the time of each belongs to a node of the
original. Which nodes are one part is read from the profile of the uncut model.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxprune.graph.arrays import Array, Float, Ids, stored_bits
from onnxprune.graph.chance import DRAWING
from onnxprune.graph.io import Model
from onnxprune.graph.links import readers
from onnxprune.graph.node import Node, walk
from onnxprune.graph.traits import TRAITS, CostInputs, Product, product
from onnxprune.structure.analysis import Analysis, Keep

ADDED = re.compile(r"(_nchwc|_token(_\d+)?|_MatMul_With_Add|/[A-Za-z]+Fusion[A-Za-z]*/?)+$")  # by fusions, to a name
FOLLOWS = {
    "BatchNormalization",
    "Add",
    "Sum",
    "Relu",
    "Clip",
    "Sigmoid",
    "Tanh",
    "LeakyRelu",
    "HardSigmoid",
    "HardSwish",
}
MULTIPLIES = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}  # what fuses with what follows
COUNTED = ("node", "macs", "read", "written", "weights")
# what also counts where a width is no such multiple: blocked layouts hold 16 channels, and need multiples of 4
UNEVEN = {
    f"{kind} off {multiple}": (kind, multiple)
    for multiple, kinds in ((4, ("macs", "read", "written")), (16, ("read", "written")))
    for kind in kinds
}
KINDS = (*COUNTED, *UNEVEN)
WHOLE = "the whole session"
Steps = tuple[int, int]  # what widths are rounded up to multiples of: those that are made, the one that is summed over
EXACT = (1, 1)
BLOCK = 16  # channels, up to which convolutions read what is not blocked
Timed = Sequence[tuple[str, str, float]]  # name, operator, seconds of nodes in the order of execution


@dataclass(frozen=True, eq=False)
class Part:
    """label: node name; family: what its time is alike with; keys: of its nodes; inputs, outputs: tensors; counted: one
    of `KINDS` -> products: 1 where the part is there, multiply-accumulates, bytes read, written, and of weights."""

    label: str
    family: str
    keys: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    counted: Mapping[str, tuple[Product, ...]]

    def products(self, kind: str, steps: Steps) -> list[Product]:
        """What it is counted by, widths rounded up to multiples of the steps where blocks are filled up."""
        if kind in UNEVEN or steps == EXACT:
            return list(self.counted[kind])
        made, summed = steps
        before, last = {"read": (summed, summed), "written": (made, made)}.get(kind, steps)
        return [replace(p, steps=_of_widths(p, before, last)) for p in self.counted[kind]]


def _of_widths(p: Product, before: int, last: int) -> tuple[int, ...]:
    """The multiple for every width of a product, and for the last; 1 for what is there or not."""
    multiples = [before] * (len(p.ids) - 1) + [last]
    return tuple(multiple if ids.size > 1 else 1 for ids, multiple in zip(p.ids, multiples, strict=False))


def design(parts: Sequence[Part], keeps: Sequence[Keep], steps: Steps) -> Float:
    """What parts are counted by where these ids survive, `(parts, keeps, kinds)`."""
    out = np.zeros((len(parts), len(keeps), len(KINDS)))
    for i, part in enumerate(parts):
        for j, kind in enumerate(KINDS):
            for p in part.products(kind, steps):
                out[i, :, j] += p.at(list(np.array([p.counts(keep) for keep in keeps]).T))
    return out


def named(model: Model) -> Model:
    """A copy whose nodes are called by their first output, which is theirs alone."""
    out = model.copy()
    for node in walk(out.proto.graph, {}):
        node.proto.name = node.key
    return out


def owners(timed: Timed, known: Iterable[str]) -> list[str]:
    """The node of the original, by its key, that every node of a profile belongs to; what has a name of its own
    belongs to the one before."""
    known = set(known)
    out = [_owner(name, known) for name, _, _ in timed]
    for k in range(1, len(out)):
        out[k] = out[k] or out[k - 1]
    for k in range(len(out) - 2, -1, -1):
        out[k] = out[k] or out[k + 1]
    return out


def _owner(name: str, known: set[str]) -> str:
    """The known name that a fused node's name holds; "" for none."""
    found = name if name in known else ADDED.sub("", name.removeprefix("fused "))
    while found not in known and "/" in found:
        found = found.rpartition("/")[0]
    return found if found in known else ""


def shown(analysis: Analysis, timed: Timed) -> bool:
    """Whether most of the time is of nodes that a profile names: some execution providers run many as one."""
    known = {n.key for n in walk(analysis.model.proto.graph, {})}
    named_ = sum(seconds for name, _, seconds in timed if _owner(name, known))
    return bool(timed) and named_ > 0.5 * sum(seconds for _, _, seconds in timed)


def parts_of(analysis: Analysis, timed: Timed) -> list[Part]:
    """The parts of a model, by the profile of the uncut one; nodes that it does not name are fused into others, or
    computed once with others that are alike."""
    c = analysis.coupling
    nodes = [n for n in walk(analysis.model.proto.graph, c.shapes.opsets) if n.key not in c.shapes.constant]
    op_of: dict[str, str] = {} if timed else {n.key: n.proto.op_type for n in nodes}
    for key, (_, op, _) in zip(owners(timed, [n.key for n in nodes]), timed, strict=True):
        op_of.setdefault(key, op)  # what comes after it under its name only moves data
    alike = _alike(analysis, nodes, set(op_of))
    single = [n for n in nodes if alike[n.key][0] == n.key]
    of = _fused(single, op_of)
    members: dict[str, list[Node]] = defaultdict(list)
    for n in single:
        members[of[n.key]].append(n)
    maker = _Maker(analysis, single, alike)
    parts = [maker.part(key, some) for key, some in members.items() if key]
    return _distinct(parts) if timed else [_together(parts)]


def _alike(analysis: Analysis, nodes: Sequence[Node], run: set[str]) -> dict[str, list[str]]:
    """Key of a node -> keys of all nodes that compute the same, of which onnxruntime keeps one: that which runs comes
    first."""
    names: dict[str, str] = {}  # tensor -> what stands for its value
    classes: dict[str, list[str]] = defaultdict(list)
    form_of: dict[str, str] = {}
    for n in nodes:
        proto = onnx.NodeProto(op_type=n.proto.op_type, domain=n.proto.domain, attribute=n.proto.attribute)
        proto.input.extend(names.get(name) or _constant(analysis, name) for name in n.inputs)
        form = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
        form = n.key if n.op in DRAWING else form
        names |= {o: f"{form} {k}" for k, o in enumerate(n.outputs)}
        classes[form].append(n.key)
        form_of[n.key] = form
    ordered = {form: sorted(keys, key=lambda key: key not in run) for form, keys in classes.items()}
    return {key: ordered[form] for key, form in form_of.items()}


def _constant(analysis: Analysis, name: str) -> str:
    """What stands for a tensor that no node makes: a small constant is alike by its value."""
    value = analysis.coupling.known(name)
    return name if value is None else f"{value.dtype} {value.shape} {value.tolist()}"


def _distinct(parts: Sequence[Part]) -> list[Part]:
    """The parts, those of one label called by a key."""
    often = Counter(part.label for part in parts)
    return [replace(part, label=min(part.keys)) if often[part.label] > 1 else part for part in parts]


def _together(parts: Sequence[Part]) -> Part:
    """One part of all, for execution providers that hide their nodes."""
    counted = {kind: tuple(p for part in parts for p in part.counted[kind]) for kind in KINDS}
    keys = frozenset(key for part in parts for key in part.keys)
    return Part(WHOLE, WHOLE, keys, parts[0].inputs, parts[-1].outputs, counted)


def _fused(nodes: Sequence[Node], op_of: Mapping[str, str]) -> dict[str, str]:
    """Key of a node -> key of the one under whose name it runs."""
    made_by = {o: n for n in nodes for o in n.outputs}
    read_by = readers(nodes)
    of: dict[str, str] = {n.key: n.key for n in nodes if n.key in op_of and n.op not in FOLLOWS}
    for n in nodes:  # whether what follows a product is fused depends on its width
        for name in n.inputs if n.op in FOLLOWS else ():
            before = made_by.get(name)
            host = of.get(before.key, "") if before is not None else ""
            if host and op_of.get(host) in MULTIPLIES and len(read_by.get(name, ())) == 1:
                of[n.key] = host
        if n.key not in of and n.key in op_of:
            of[n.key] = n.key
    for n in reversed(nodes):  # what is left goes with what reads it
        if n.key not in of:
            later = [of.get(r.key, "") for o in n.outputs for r in read_by.get(o, ())]
            of[n.key] = next(filter(None, later), "")
    return of


class _Maker:
    """Makes parts of nodes."""

    def __init__(self, analysis: Analysis, nodes: Sequence[Node], alike: Mapping[str, list[str]]) -> None:
        c = analysis.coupling
        self.analysis, self.alike = analysis, alike
        self.costs = CostInputs(c.shapes, c.axes, c.grouped)
        self.shrinking = np.asarray((analysis.owners(analysis.groups)[analysis.components.labels] >= 0).any(1))
        self.read_by = readers(nodes)
        self.last = {o.name for o in analysis.model.proto.graph.output}

    def part(self, key: str, nodes: Sequence[Node]) -> Part:
        """The part of nodes that run as one, under the key of one of them."""
        c = self.analysis.coupling
        inside = {n.key for n in nodes}
        made = {o for n in nodes for o in n.outputs if o}
        read = {name for n in nodes for name in n.inputs if name and name not in made}
        weights = {name for name in read if name in c.shapes.constant}
        written = {o for o in made if o in self.last or any(r.key not in inside for r in self.read_by.get(o, ()))}
        main = max(nodes, key=lambda n: (n.op in TRAITS, n.key == key))
        gates = [c.gates.get(key) for key in self.alike[main.key]]
        gate = gates[0] if all(g is gates[0] for g in gates) else None  # others of its like keep it alive
        all_of = {
            "node": [product(main.label, 1.0, [])],
            "macs": [p for n in nodes if c.complete(n.key) for p in _macs(n, self.costs)],
            "read": [_bytes(self.analysis, main.label, name) for name in sorted(read - weights)],
            "written": [_bytes(self.analysis, main.label, name) for name in sorted(written)],
            "weights": [_bytes(self.analysis, main.label, name) for name in sorted(weights)],
        }
        counted = {
            kind: tuple(_settled(p, main.label, gate, self.shrinking) for p in each) for kind, each in all_of.items()
        }
        for name, (kind, multiple) in UNEVEN.items():
            # the last width of a product is the one that is summed over
            counted[name] = tuple(replace(p, uneven=_of_widths(p, 1, multiple)) for p in counted[kind] if p.ids)
        return Part(
            main.label,
            _family(main, nodes, weights, self.analysis),
            frozenset(twin for key in inside for twin in self.alike[key]),
            tuple(name for n in nodes for name in n.inputs if name in read),
            tuple(sorted(written)),
            counted,
        )


def _macs(n: Node, costs: CostInputs) -> list[Product]:
    trait = TRAITS.get(n.op)
    return [] if trait is None else trait.macs(n, trait, costs)


def _settled(p: Product, label: str, gate: Ids | None, shrinking: Array) -> Product:
    """The product over the widths that may shrink, of a node that may go with a block."""
    of = list(zip(p.ids, p.divisors, strict=True))
    widths = [(ids, d) for ids, d in of if shrinking[ids].any()]
    fixed = math.prod(ids.size / d for ids, d in of if not shrinking[ids].any())
    return product(label, p.factor * fixed, [(gate, 1), *widths])


def _bytes(analysis: Analysis, label: str, name: str) -> Product:
    """Bytes of a tensor as a product over its axes."""
    c = analysis.coupling
    shape = c.shape(name) or ()
    axes = c.axes(name) or [None] * len(shape)  # no rule has read it: nothing shrinks
    fixed = math.prod(d or 1 for d, ids in zip(shape, axes, strict=True) if ids is None)
    weight = analysis.model.weights.get(name)
    size = stored_bits(weight) / 8 if weight is not None else 4.0
    if name in c.grouped:
        fixed //= shape[1] or 1
        axes = [*axes, c.grouped[name]]
    return product(label, fixed * size, [(ids, len(ids) if ids is not None and ids.ndim > 1 else 1) for ids in axes])


def _family(main: Node, nodes: Sequence[Node], weights: set[str], analysis: Analysis) -> str:
    """Operator and what of its attributes matters; and what is fused into it."""
    words = [main.op]
    trait = TRAITS.get(main.op)
    if trait is not None and trait.kernel:
        kernel = analysis.coupling.shape(main.input(trait.weight)) or ()
        group = main.attr("group", 1)
        words.append("x".join(map(str, kernel[2:])))
        words += [f"{name} {value}" for name in ("strides", "dilations") if max(value := main.attr(name, [1])) > 1]
        words += ["narrow"] * (group == 1 and (kernel[1] or 0) <= BLOCK)
        words += ["depthwise"] * (group > 1 and kernel[1] == 1) + ["grouped"] * (group > 1 and kernel[1] != 1)
    elif trait is not None:
        words += ["weights"] * bool(weights & set(main.inputs))
    words += sorted({n.op for n in nodes} - {main.op})
    return " ".join(words)
