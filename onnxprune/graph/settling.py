"""Settling a graph: what a file may leave open is decided once, so that all later code meets one kind of graph.

In goes a parsed proto; out comes one that names its versions, whose local functions are inlined (those of OWN_DOMAIN
stay), that defines a value name once over all scopes, and whose nodes are in topological order. What was changed is
told in `notes`; a graph that means nothing is refused.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import onnx.inliner
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, helper

from onnxprune.graph.limits import LIMIT, RATIO
from onnxprune.graph.links import made_at
from onnxprune.graph.messages import REPAIR, fault, label, show
from onnxprune.graph.node import DEFAULT_DOMAINS, OWN_DOMAIN
from onnxprune.graph.protos import bodies, defined, graphs, rename_values

MAX_NODES = 1 << 20  # nodes after inlining
MAX_BYTES = LIMIT  # of these nodes
MAX_CALLS = 100  # functions calling one another

_FIELDS = ["f", "i", "s", "t", "g", "floats", "ints", "strings", "tensors", "graphs"]
_TYPE_OF_FIELD: dict[str, Any] = {name: number for number, name in enumerate(_FIELDS, AttributeProto.FLOAT)}


def settle_versions(proto: ModelProto, where: str, notes: list[str]) -> None:
    """Files from before IR version 3 name neither opset nor attribute types: write down what they mean."""
    named = any(opset.domain in DEFAULT_DOMAINS for opset in proto.opset_import)
    if named and proto.ir_version >= 3:
        return
    nodes = [node for graph in graphs(proto.graph) for node in graph.node]
    if not named and any(node.domain in DEFAULT_DOMAINS for node in nodes):
        if proto.ir_version >= 3:
            raise fault(where, "an opset_import for ONNX's own operators", "none", "add one, or export again")
        proto.opset_import.add(domain="", version=1)
    if proto.ir_version >= 3:
        return
    for attribute in chain.from_iterable(node.attribute for node in nodes):
        fields = [_TYPE_OF_FIELD[d.name] for d, _ in attribute.ListFields() if d.name in _TYPE_OF_FIELD]
        if not attribute.type and len(fields) == 1:
            attribute.type = fields[0]
    version = max(3, helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True))
    opset = next((o.version for o in proto.opset_import if o.domain in DEFAULT_DOMAINS), 0)
    notes.append(f"ir_version {proto.ir_version} read as {version}, opset {opset}")
    proto.ir_version = version


def settle_graph(proto: ModelProto, where: str, notes: list[str]) -> ModelProto:
    """Inline functions, make names unique, sort; the proto returned takes the place of the given one."""
    proto = _inline_functions(proto, where, notes)
    scope = _scope(proto.graph)
    _drop_repeated_initializers(scope, notes)
    _name_uniquely(scope, where, notes)
    _sort(scope, set(), where, notes)
    return proto


def _inline_functions(proto: ModelProto, where: str, notes: list[str]) -> ModelProto:
    """Inline all local functions but our own; those that want another opset are converted, or stay."""
    ours = [function for function in proto.functions if function.domain == OWN_DOMAIN]
    others = [function for function in proto.functions if function.domain != OWN_DOMAIN]
    if not others:
        return proto
    _check_calls(proto, where)
    del proto.functions[:]
    proto.functions.extend(others)
    imported = {"" if opset.domain in DEFAULT_DOMAINS else opset.domain for opset in proto.opset_import}
    for opset in chain.from_iterable(function.opset_import for function in others):
        domain = "" if opset.domain in DEFAULT_DOMAINS else opset.domain
        if domain not in imported:  # the inliner moves nodes into the model, but not what they import
            imported.add(domain)
            proto.opset_import.add(domain=domain, version=opset.version)
    try:
        proto = onnx.inliner.inline_local_functions(proto)
    except Exception as error:  # the C++ inliner raises several unrelated types
        raise fault(where, "local functions that can be inlined", error, REPAIR) from error
    if proto.functions:
        with contextlib.suppress(Exception):  # no conversion: they stay, as operators that nobody knows
            proto = onnx.inliner.inline_local_functions(proto, convert_version=True)
    notes.append(f"{len(others) - len(proto.functions)} local functions inlined")
    notes.extend(f"local function {show(f.name)} not inlined: it needs another opset" for f in proto.functions)
    proto.functions.extend(ours)
    for graph in list(graphs(proto.graph))[1:]:  # the inliner renames values in bodies, but not their value_info
        known = set(defined(graph))
        for info in [info for info in graph.value_info if info.name not in known]:
            graph.value_info.remove(info)
    return proto


def _check_calls(proto: ModelProto, where: str) -> None:
    """Refuse functions that call themselves, or unfold beyond reason, before they are inlined."""
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    endless = (MAX_NODES, 0)  # what a call within itself finds
    sizes: dict[tuple[str, str, str], tuple[int, int]] = {}

    def size(body: GraphProto | FunctionProto, depth: int) -> tuple[int, int]:
        """Nodes and bytes of a body once it is inlined; what its nodes hold is counted with them."""
        nodes = total = 0
        for node in body.node:
            call = node.domain, node.op_type, node.overload
            if call in functions and call not in sizes:
                sizes[call] = endless
                sizes[call] = size(functions[call], depth + 1) if depth < MAX_CALLS else endless
            parts = [sizes.get(call, (1, 0)), *(size(nested, depth) for nested in bodies(node))]
            nodes += sum(nodes for nodes, _ in parts)
            total += node.ByteSize() + sum(more for _, more in parts)
        return nodes, total

    nodes, total = size(proto.graph, 0)
    if nodes >= MAX_NODES:
        found = f"{MAX_NODES} nodes or more, or a function that calls itself"
        raise fault(where, "local functions of reasonable size", found, REPAIR)
    if total > max(MAX_BYTES, RATIO * proto.ByteSize()):
        raise fault(where, "local functions of reasonable size", f"{total} bytes once they are inlined", REPAIR)


class _Scope(NamedTuple):
    """A graph, and the scopes nested in its nodes: index of the node -> scopes."""

    graph: GraphProto
    bodies: dict[int, list[_Scope]]

    def inner(self) -> Iterator[_Scope]:
        return chain.from_iterable(self.bodies.values())

    def all(self) -> Iterator[_Scope]:
        yield self
        for scope in self.inner():
            yield from scope.all()


def _scope(graph: GraphProto) -> _Scope:
    nested = ((i, [_scope(body) for body in bodies(node)]) for i, node in enumerate(graph.node))
    return _Scope(graph, {i: scopes for i, scopes in nested if scopes})


def _drop_repeated_initializers(scope: _Scope, notes: list[str]) -> None:
    """Of initializers with one name the last counts, as in onnxruntime."""
    for graph, _ in scope.all():
        last = {tensor.name: i for i, tensor in enumerate(graph.initializer) if tensor.name}
        for i in reversed(range(len(graph.initializer))):
            name = graph.initializer[i].name
            if last.get(name, i) != i:
                notes.append(f"initializer {show(name)} occurs again: the last one counts")
                del graph.initializer[i]


def _name_uniquely(scope: _Scope, where: str, notes: list[str]) -> None:
    """Rename values in bodies whose name is defined elsewhere too; names of the main graph never change."""
    seen: set[str] = set()
    taken = set(chain.from_iterable(defined(inner.graph) for inner in scope.all()))
    numbers: Counter[str] = Counter()
    before = len(taken)

    def visit(scope: _Scope, names: dict[str, str]) -> None:
        values = list(defined(scope.graph))
        wrong = next((name for name, n in Counter(values).items() if n > 1 or isinstance(name, bytes)), None)
        if wrong is not None:
            found = f"{show(wrong)} twice" if isinstance(wrong, str) else show(wrong)
            raise fault(where, "every value defined once, by a name in UTF-8", found, REPAIR)
        for name in [name for name in values if name in seen]:
            names[name] = name
            while names[name] in taken:
                numbers[name] += 1
                names[name] = f"{name}_{numbers[name]}"
            taken.add(names[name])
        seen.update(values)
        if names:
            rename_values(scope.graph, names)
        for inner in scope.inner():
            visit(inner, dict(names))

    visit(scope, {})
    if len(taken) > before:
        notes.append(f"{len(taken) - before} values renamed (same name in two scopes)")


def _sort(scope: _Scope, visible: set[str], where: str, notes: list[str]) -> None:
    """Stable topological order; every name in use must be `visible`, which is to say defined here or around."""
    graph, values = scope.graph, set(defined(scope.graph))
    visible |= values
    at = made_at(graph.node)
    needs: list[set[int]] = []
    for i, node in enumerate(graph.node):
        used = set(node.input) - {""}
        if not used <= visible:
            found = f"{show(min(used - visible, key=str))}, which is not"
            raise fault(where, f"every input of {label(node)} defined", found, REPAIR)
        for body, _ in chain.from_iterable(inner.all() for inner in scope.bodies.get(i, ())):
            used.update(*(inner.input for inner in body.node), (value.name for value in body.output))
        needs.append({at[name] for name in used if name in at})
    order = topological(needs)
    if len(order) < len(needs):
        stuck = graph.node[min(set(range(len(needs))) - set(order))]
        raise fault(where, "a graph without cycles", f"one that {label(stuck)} waits for", REPAIR)
    if order != sorted(order):
        ranks = iter(sorted(range(len(order)), key=order.__getitem__))
        graph.node.sort(key=lambda _: next(ranks))
        notes.append("nodes sorted topologically")
    for inner in scope.inner():
        _sort(inner, visible, where, notes)
    missing = {value.name for value in graph.output} - visible - {""}
    if missing:
        raise fault(where, "every output computed", f"{show(min(missing, key=str))}, which is not", REPAIR)
    visible -= values


def topological(needs: list[set[int]]) -> list[int]:
    """The order nearest to 0, 1, 2, ... in which each comes after all it needs; cycles are left out.

    >>> topological([{1}, set(), {0}])
    [1, 0, 2]
    """
    if all(max(need, default=-1) < i for i, need in enumerate(needs)):
        return list(range(len(needs)))
    users: list[list[int]] = [[] for _ in needs]
    for i, need in enumerate(needs):
        for j in need:
            users[j].append(i)
    missing = [len(need) for need in needs]
    ready = [i for i, n in enumerate(missing) if n == 0]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for user in users[order[-1]]:
            missing[user] -= 1
            if missing[user] == 0:
                heapq.heappush(ready, user)
    return order
