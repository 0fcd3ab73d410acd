"""Units that change nothing when they go: what a cut takes first, and what no recovery has to make up for.

A cut model computes what the original computes with the removed units at zero where they are read, see
structure/masked.py. So a unit changes nothing if at each of these places it is zero already (`Known`), or what it is
multiplied with is. A normalisation over units counts them, and a caller sees what goes in and out: these never change
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.graph.arrays import FLOAT_TYPES, Float, Ids
from onnxprune.graph.links import makers
from onnxprune.graph.node import Node, walk_all
from onnxprune.graph.quantized import numbers
from onnxprune.graph.shapes import graph_inputs
from onnxprune.graph.traits import LINEAR, TRAITS, einsum_labels
from onnxprune.structure.analysis import Analysis, Dead, Keep
from onnxprune.structure.claims import Consume
from onnxprune.structure.constant import Known, padded
from onnxprune.structure.rules.attention import EXPERTS

ABSORBING = LINEAR - {op for op, t in TRAITS.items() if t.recurs}  # whose biases can take what went


def dead_units(analysis: Analysis, *, absorbed: bool = False) -> Dead:
    """Units that change nothing, of all groups. absorbed: also those whose constant goes into biases exactly."""
    if absorbed not in analysis.dead:
        lives = _living(analysis, absorbed)
        analysis.dead[absorbed] = {g.name: ~lives[g.labels] for g in analysis.groups}
    return analysis.dead[absorbed]


def without_dead(analysis: Analysis, keep: Keep) -> Keep:
    """Ids that survive, `(ids,)`, and those that went and change nothing: what is False was worth something."""
    dead = dead_units(analysis)
    return keep | ~analysis.keep_ids({name: ~units for name, units in dead.items()})


def _living(analysis: Analysis, absorbed: bool) -> Keep:
    """Components that change something, bool `(components + 1,)`, with those of heads and dimensions inside them."""
    c, s = analysis.coupling, analysis.components
    asked = np.zeros(len(s.reason) + 1, bool)
    for g in analysis.groups:
        asked[g.labels] = True
    asked_ids: Keep = np.asarray(asked[s.homes[s.labels]].any(1)) if c.size else np.zeros(0, bool)
    if analysis.blocks:  # whose branch may be of any width
        asked_ids[:] = True
    known = Known(analysis, asked_ids)
    alive_ids: Keep = np.zeros(c.size, bool)
    maker_of = makers(walk_all(analysis.model.proto.graph, c.shapes.opsets))
    for consume in c.consumes:
        axes = c.axes(consume.node.input(consume.input))
        ids = axes[consume.axis] if axes else None
        if ids is not None and asked_ids[ids].any():
            alive_ids[ids[~_silent(known, consume, ids, maker_of, absorbed)]] = True
            if consume.node.key in c.statistics:
                alive_ids[ids] = True
    for norm in c.norms:
        alive_ids[norm.ids] = True
    for info in (*graph_inputs(analysis.model), *analysis.model.proto.graph.output):
        for ids in c.axes(info.name):
            if ids is not None:
                alive_ids[ids] = True
    for block in analysis.blocks:
        slots = [block.branch] + [4] * bool(block.node.input(4))
        alive_ids[block.gate] = not all(_all_zero(known, block.node.input(i)) for i in slots)
    alive = np.zeros(len(s.reason) + 1, bool)
    alive[s.homes[s.labels[alive_ids]].ravel()] = True
    return alive


def _silent(known: Known, consume: Consume, ids: Ids, maker_of: Mapping[str, Node], absorbed: bool) -> Keep:
    """Where the units that enter a reader add nothing, bool `(ids,)`."""
    value = known.of(consume.node.input(consume.input), consume.axis)
    assert value is not None
    out = _enters_zero(known, consume, value, maker_of) | _meets_zero(known, consume, ids)
    if absorbed and absorbs_exactly(known.analysis, consume.node):
        out |= np.isfinite(value)
    return np.asarray(out)


def _enters_zero(known: Known, consume: Consume, value: Float, maker_of: Mapping[str, Node]) -> Keep:
    """Where it is what a removed unit counts as."""
    if not consume.zero:
        return np.asarray(value == consume.neutral)
    zero = known.vector(consume.zero)
    if zero is not None:
        return np.asarray(value == zero) if zero.size in (1, value.size) else np.zeros(value.shape, bool)
    maker = maker_of.get(consume.node.input(consume.input))
    if maker is None or maker.op != "DynamicQuantizeLinear" or maker.output(2) != consume.zero:
        return np.zeros(value.shape, bool)
    before = known.of(maker.input(0), consume.axis)  # its range holds zero, which becomes the zero point
    return np.zeros(value.shape, bool) if before is None else np.asarray(before == 0)


def _meets_zero(known: Known, consume: Consume, ids: Ids) -> Keep:
    """Where what it is multiplied with is zero."""
    node, none = consume.node, np.zeros(ids.shape, bool)
    trait = TRAITS.get(node.op)
    if node.op == "Einsum":
        return _meets_zero_of_einsum(known, consume, ids)
    if node.op in EXPERTS:
        return _meets_zero_of_experts(known, consume, ids)
    if trait is not None and trait.recurs and consume.input in trait.weights[1:]:  # it reads what it made before
        before = known.of(node.key, -1)
        return none if before is None or before.shape != ids.shape else np.asarray(before == 0)
    if trait is None or not trait.weights or consume.input != trait.source:
        return none
    name = node.input(trait.weight)
    axis = trait.axes(node, trait.weight)[0]
    grouped = known.c.grouped.get(name)
    if trait.convolves and int(node.attr("group", 1)) > 1 and trait.rows == "patches":
        w = numbers(node, name, known.weights) if grouped is not None else None
        if w is None or grouped is None or grouped.size != ids.size:
            return none
        rows = w.reshape(len(grouped), -1, *w.shape[1:])  # (g, O/g, I/g, k...)
        return np.asarray(~rows.any((1, *range(3, rows.ndim)))).ravel()
    if known.c.is_constant(name):
        zero = known.zero_slices(node, name, axis)
    else:
        other = known.of(name, axis) if known.c.shapes.types.get(name, 1) in FLOAT_TYPES else None
        zero = None if other is None else np.asarray(other == 0)
    return none if zero is None or zero.shape != ids.shape else zero


def _meets_zero_of_einsum(known: Known, consume: Consume, ids: Ids) -> Keep:
    out = np.zeros(ids.shape, bool)
    node = consume.node
    terms, _ = einsum_labels(node.attr("equation", ""), [len(known.c.axes(i)) for i in node.inputs])
    label = terms[consume.input][consume.axis]
    for name, term in zip(node.inputs, terms, strict=True):
        zero = known.of(name, term.index(label)) if label in term else None
        if zero is not None and zero.shape == ids.shape:
            out |= zero == 0
    return out


def _meets_zero_of_experts(known: Known, consume: Consume, ids: Ids) -> Keep:
    """The input meets the first layer and the gate's. An inner unit that enters as a row of the second layer meets what
    the first makes; one that enters as the scale of its layer its row there, and its row of the second layer."""
    node, layers = consume.node, EXPERTS[consume.node.op]
    if consume.input == 0:
        read = [known.zero_slices(node, node.input(w), 2) for w, *_ in layers[::2] if node.input(w)]
        return _all_of(read, ids)
    if consume.input == layers[1][0]:
        made = [(layers[0][0], 1), *[(layers[0][2], -1)] * bool(node.input(layers[0][2]))]
        return _all_of([known.zero_slices(node, node.input(slot), axis) for slot, axis in made], ids)
    inner = [w for w, scale, *_ in layers[::2] if consume.input == scale]
    unread = [known.zero_slices(node, node.input(layers[1][0]), 2)] if consume.input > 1 else []
    return _all_of([known.zero_slices(node, node.input(w), 1) for w in inner], ids) | _all_of(unread, ids)


def _all_of(found: Sequence[Keep | None], ids: Ids) -> Keep:
    """Where all of them hold, bool `(ids,)`; nowhere where one is not known, or there is none."""
    fit = [k for k in found if k is not None and k.shape == ids.shape]
    return np.logical_and.reduce(fit) if fit and len(fit) == len(found) else np.zeros(ids.shape, bool)


def absorbs(analysis: Analysis, node: Node) -> bool:
    """Whether the bias of a node can absorb what constant inputs give."""
    trait, c = TRAITS.get(node.op), analysis.coupling
    if node.op not in ABSORBING or trait is None or not all(c.axes(node.input(i)) for i in (0, 1)):
        return False
    weight, grouped = node.input(trait.weight), int(node.attr("group", 1)) > 1
    if not c.is_constant(weight) or (trait.rows == "vectors" and len(c.axes(weight)) != 2):
        return False  # a stack of matrices adds other numbers in every place
    return not (grouped and trait.rows == "spread patches") and _takes_bias(analysis, node)


def absorbs_exactly(analysis: Analysis, node: Node) -> bool:
    """The same, of all that it reads: no border sees less of a constant, and no caller gives another weight or bias."""
    trait = TRAITS.get(node.op)
    if trait is None or not absorbs(analysis, node) or padded(node) or trait.rows == "spread patches":
        return False
    return analysis.coupling.shapes.overridable.isdisjoint(node.inputs)


def _takes_bias(analysis: Analysis, node: Node) -> bool:
    """True where a stored bias can grow, or a new one be added."""
    slot, beta = TRAITS[node.op].bias, float(node.attr("beta", 1.0))
    if slot is None:
        return True  # an Add behind it
    bias = node.input(slot)
    return bias in analysis.model.weights and beta != 0 if bias else beta == 1


def _all_zero(known: Known, name: str) -> bool:
    values = (known.of(name, k) for k in range(len(known.c.axes(name))))
    return any(v is not None and bool((v == 0).all()) for v in values)
