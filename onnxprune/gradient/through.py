"""Operators by what they are made of: nodes that compute the same are built, and differentiated one by one.

So an operator needs no rule of its own that ONNX, or we, define by others. What is computed again is what the rules of
its parts read; the results are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, defs, helper, numpy_helper

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.registry import GRADIENTS, NO_GRADIENTS, NOT_YET, Gradients, NoRule, gradient
from onnxprune.graph.arrays import Array
from onnxprune.graph.links import reads
from onnxprune.graph.node import Node, opsets
from onnxprune.graph.protos import bodies, defined, graphs, rename_values

Build = Callable[[Backward, Node], Sequence[str]]  # adds nodes that compute the outputs of a node; their names


def back(b: Backward, n: Node) -> str:
    """Run the rule of a node, whose parts go to the gradients of what it reads; why it has none, "" where it has."""
    row = GRADIENTS.get(n.op)
    if row is None:
        why = NOT_YET.get(n.op)
        return f"{n.op} ({n.label}) has no rule{f': {why}' if why else ''}"
    outer = b.enter(n)
    dy = b.outputs(n)
    if not any(dy):
        b.enter(outer)
        return ""
    try:
        parts: Gradients = row.rule(b, n, dy)
    except NoRule as e:
        return f"{n.op} ({n.label}): {e}"
    finally:
        b.enter(outer)
    for name, part in zip(n.inputs, parts, strict=False):
        b.contribute(name, part)
    return ""


def depending(b: Backward, nodes: Iterable[Node], on: Iterable[str]) -> set[str]:
    """Tensors that depend on some others along ways through which something flows back, those included."""
    found = set(on)
    for n in nodes:
        if n.op not in NO_GRADIENTS and not found.isdisjoint(reads(n.proto)):
            found.update(o for o in n.outputs if o and (b.is_float(o) or n.op.endswith("QuantizeLinear")))
    return found


def through(b: Backward, n: Node, dy: Gradients, build: Build) -> Gradients:
    """The gradients of a node by those of the nodes that `build` makes in its place.

    Raises `NoRule` where one of them has none.
    """
    nodes, made = recorded(b, n, build)
    for name, g in zip(made, dy, strict=False):
        if name not in n.outputs and g:
            b.made.setdefault(name, []).append(g)
    along(b, nodes, b.needed.intersection(reads(n.proto)))
    return [None] * len(n.inputs)


def graphs_of(node: NodeProto) -> list[GraphProto]:
    """The bodies of a node, and those inside of them."""
    return [inner for body in bodies(node) for inner in graphs(body)]


def along(b: Backward, nodes: Sequence[Node], on: Iterable[str]) -> None:
    """Run the rules of nodes from the last to the first, on all ways from these tensors; gradients of results are
    stated before. Raises `NoRule`."""
    found = depending(b, nodes, on)
    b.needed |= found
    for n in reversed(nodes):
        if n.op not in NO_GRADIENTS and not found.isdisjoint(reads(n.proto)):
            why = back(b, n)
            if why:
                raise NoRule(why)


def added(b: Backward, start: int) -> list[Node]:
    """Copies of the nodes that the graph has got since it had `start` of them."""
    versions = opsets(b.model.proto)
    return [Node(_copy(node), versions.get(node.domain, 1)) for node in b.edit.graph.node[start:]]


def inlined(b: Backward, nodes: Iterable[NodeProto], names: dict[str, str]) -> None:
    """Add copies of nodes; what they make gets new names. names: old -> new, of what they read; those of what they make
    are put in. Of an If whose condition is known, the branch that it takes."""
    for node in nodes:
        known = b.value(names.get(node.input[0], node.input[0])) if node.op_type == "If" else None
        if known is not None:
            branch = Node(node, 1).attr("then_branch" if known.any() else "else_branch")
            inlined(b, branch.node, names)
            names |= {o: names.get(r.name, r.name) for o, r in zip(node.output, branch.output, strict=True)}
            continue
        proto = _copy(node)
        _rename(b, proto, names)
        for o, name in zip(node.output, b.place(proto), strict=True):
            if o:
                names[o] = name


def _rename(b: Backward, proto: NodeProto, names: dict[str, str]) -> None:
    """Read by the new names, also in bodies, whose own values get new names."""
    proto.input[:] = [names.get(i, i) for i in proto.input]
    inner = dict(names)
    for body in graphs_of(proto):
        inner |= {name: b.edit.fresh(name) for name in defined(body) if name}
    for body in graphs_of(proto):
        rename_values(body, inner)


def recorded(b: Backward, n: Node, build: Build) -> tuple[list[Node], list[str]]:
    """The nodes that `build` adds, and the names of the results: those of the node itself, which computes them already,
    wherever a node that makes nothing else makes them."""
    graph = b.edit.graph
    start = len(graph.node)
    made = list(build(b, n))
    nodes = list(graph.node[start:])
    single = {node.output[0] for node in nodes if len(node.output) == 1}
    names = {y: o for y, o in zip(made, n.outputs, strict=False) if o and y in single and made.count(y) == 1}
    for y, o in names.items():  # what onnx infers of the whole may be less
        b.know(o, b.code(y), b.sizes(y))
    for node in nodes:
        if names.keys() & reads(node):
            node.input[:] = [names.get(i, i) for i in node.input]
            for body in graphs_of(node):
                rename_values(body, names)
    result = added(b, start)
    for k, node in reversed(list(enumerate(result))):
        if node.output(0) in names:
            del graph.node[start + k]
            node.proto.output[0] = names[node.output(0)]
            node.renew()
    return result, [names.get(y, y) for y in made]


def _copy(node: NodeProto) -> NodeProto:
    out = NodeProto()
    out.CopyFrom(node)
    return out


def decomposed(*ops: str) -> Callable[[Build], Build]:
    """Register operators by a function that builds them of others; the first line of its docstring is the summary."""

    def register(build: Build) -> Build:
        def rule(b: Backward, n: Node, dy: Gradients) -> Gradients:
            return through(b, n, dy, build)

        rule.__doc__ = build.__doc__
        gradient(*ops)(rule)
        return build

    return register


def by_definition(b: Backward, n: Node) -> list[str]:
    """as ONNX defines it by other operators"""
    body = definition(b, n)
    if body is None:
        raise NoRule(f"onnx defines it by no other operators at opset {b.opset}")
    names = {"": ""} | {inner: n.input(i) for i, inner in enumerate(body.input)}
    schema = _schema(b, n)
    given = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.type}
    given |= {a.name: a for a in body.attribute_proto} | {a.name: a for a in n.proto.attribute}
    _follow(b, body.node, names, given)
    return [names.get(o, "") for o in body.output][: len(n.outputs)]


def _follow(b: Backward, nodes: Iterable[NodeProto], names: dict[str, str], given: dict[str, AttributeProto]) -> None:
    """Add the nodes of a function. names: as `inlined` has them; given: its attributes by name."""
    for node in nodes:
        proto = _copy(node)
        attributes = [_resolved(a, given) for a in node.attribute]
        del proto.attribute[:]
        proto.attribute.extend(a for a in attributes if a is not None)
        if node.op_type == "Constant":
            names[node.output[0]] = b.constant(constant_value(proto.attribute[0]))
        elif node.op_type == "CastLike":
            names[node.output[0]] = b.op("Cast", names[node.input[0]], to=b.code(names[node.input[1]]))
        elif node.op_type == "If":
            known = b.value(names[node.input[0]])
            if known is None:
                raise NoRule("its definition depends on values")
            branch = Node(proto, 1).attr("then_branch" if known.any() else "else_branch")
            _follow(b, branch.node, names, given)
            names |= {o: names[r.name] for o, r in zip(node.output, branch.output, strict=True)}
        else:
            proto.input[:] = [names[i] for i in node.input]
            names |= {o: name for o, name in zip(node.output, b.place(proto), strict=True) if o}


def _schema(b: Backward, n: Node) -> Any:
    """What onnx says of an operator; untyped, as the types that onnx declares for it lack methods that are called."""
    return defs.get_schema(n.op, b.opset, "")


def definition(b: Backward, n: Node) -> FunctionProto | None:
    """The function by which onnx defines an operator; None where there is none."""
    schema = _schema(b, n)
    body = FunctionProto()
    if schema.has_context_dependent_function:
        kinds = [b.type_proto(i).SerializeToString() for i in n.inputs]
        at = max((v for v in schema.context_dependent_function_opset_versions if v <= b.opset), default=0)
        if not at:
            return None
        body.ParseFromString(
            schema.get_context_dependent_function_with_opset_version(at, n.proto.SerializeToString(), kinds)
        )
        return body
    at = max((v for v in schema.function_opset_versions if v <= b.opset), default=0)
    if not at:
        return None
    body.ParseFromString(schema.get_function_with_opset_version(at))
    return body


def _resolved(a: AttributeProto, given: dict[str, AttributeProto]) -> AttributeProto | None:
    """An attribute of a node of a function; where it refers to one of the function, that one under its name."""
    if not a.ref_attr_name:
        return a
    source = given.get(a.ref_attr_name)
    if source is None:
        return None
    out = AttributeProto()
    out.CopyFrom(source)
    out.name = a.name
    return out


def constant_value(a: AttributeProto) -> Array:
    """What the attribute of a Constant holds."""
    if a.type == AttributeProto.TENSOR:
        return numpy_helper.to_array(a.t)
    kind = np.float32 if a.type in (AttributeProto.FLOAT, AttributeProto.FLOATS) else np.int64
    return np.asarray(helper.get_attribute_value(a), kind)
