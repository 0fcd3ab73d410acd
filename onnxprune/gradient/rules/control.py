"""If, Loop and Scan: the gradient is the same operator again, with bodies that compute their part and go its way back.

Going back through a loop needs what every step started from: the loop is run once more with its states as stacked
outputs. Then a Scan over the steps, from the last to the first, carries the gradients of the states, and adds up those
of everything that the body reads from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx import GraphProto, NodeProto, helper

from onnxprune.gradient.backward import LAST, Backward
from onnxprune.gradient.registry import Gradients, gradient
from onnxprune.gradient.through import added, along, inlined, through
from onnxprune.graph.links import reads
from onnxprune.graph.node import Node
from onnxprune.graph.shapes import Shape


def body_of(b: Backward, inputs: Sequence[str], build: Callable[[], Sequence[str]]) -> GraphProto:
    """A body of the nodes that `build` adds, which then are in it alone. inputs: their names, typed by what is known
    of them. Its outputs are named as `build` gives them; what it gives but does not make is passed on."""
    graph = b.edit.graph
    start = len(graph.node)
    made = list(build())
    own = {o for node in graph.node[start:] for o in node.output}
    outputs: list[str] = []
    for name in made:
        outputs.append(name if name in own and name not in outputs else b.name(name, f"{name}_out"))
    wanted, kept = set(outputs), []
    for node in reversed(graph.node[start:]):
        if not wanted.isdisjoint(node.output):
            wanted |= reads(node)
            kept.append(NodeProto.FromString(node.SerializeToString()))
    del graph.node[start:]
    scalars = {n for n in inputs if not any(b.sizes(n))}  # of which onnxruntime wants to know that they are
    first = [helper.make_tensor_value_info(n, b.code(n), [] if n in scalars else None) for n in inputs]
    last = [helper.make_tensor_value_info(n, b.code(n), list(b.shape(n))) for n in outputs]
    return helper.make_graph(kept[::-1], b.edit.fresh_node("body"), first, last)


def placed(
    b: Backward, op: str, inputs: Sequence[str], shapes: Sequence[tuple[int, list[Shape]]], **how: object
) -> list[str]:
    """Add a node with bodies; the names of its outputs. shapes: their types and shapes, these in each of the probes."""
    names = b.place(helper.make_node(op, inputs, ["new"] * len(shapes), **how))  # type: ignore[arg-type]
    for name, (code, sizes) in zip(names, shapes, strict=True):
        b.know(name, code, sizes)
    return names


def renamed(b: Backward, like: Sequence[tuple[str, int, list[Shape]]]) -> list[str]:
    """New names for the inputs of a body, known as given: base, type, shape in each of the probes."""
    names = [b.edit.fresh(base) for base, _, _ in like]
    for name, (_, code, sizes) in zip(names, like, strict=True):
        b.know(name, code, sizes)
    return names


@gradient("If")
def if_(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """an If whose branches compute theirs again, and give the gradients of all that either reads"""
    branches = [n.attr("then_branch"), n.attr("else_branch")]
    known = b.value(n.input(0))
    if known is not None:
        return through(b, n, dy, lambda b, n: _inline(b, branches[0 if known.any() else 1], []))
    wanted = sorted(b.needed.intersection(reads(n.proto)))

    def back(branch: GraphProto) -> Callable[[], list[str]]:
        def run() -> list[str]:
            start = len(b.edit.graph.node)
            results = _inline(b, branch, [])
            seeds = [(name, g) for name, g in zip(results, dy, strict=True) if g]
            found = _gradients(b, added(b, start), seeds, wanted)
            return [found[name] or b.zeros_like(name) for name in wanted]

        return run

    bodies = [body_of(b, [], back(branch)) for branch in branches]
    shapes = [(b.code(name), b.sizes(name)) for name in wanted]
    made = placed(b, "If", n.inputs, shapes, then_branch=bodies[0], else_branch=bodies[1])
    for name, g in zip(wanted, made, strict=True):
        b.contribute(name, g)
    return [None]


def _inline(b: Backward, body: GraphProto, inputs: Sequence[str]) -> list[str]:
    """Add the nodes of a body, which reads these; the names of its results."""
    names = dict(zip((i.name for i in body.input), inputs, strict=True))
    inlined(b, body.node, names)
    return [names.get(o.name, o.name) for o in body.output]


def _gradients(
    b: Backward, nodes: Sequence[Node], seeds: Sequence[tuple[str, str]], wanted: Sequence[str]
) -> dict[str, str | None]:
    """Gradients of `wanted` through nodes at whose results these gradients arrive, apart from all others."""
    outer, b.made = b.made, {}
    before = set(b.needed)
    b.needed |= set(wanted)
    for name, g in seeds:
        b.made.setdefault(name, []).append(g)
    along(b, nodes, wanted)
    found = {name: b.gradient_of(name) for name in wanted}
    b.made, b.needed = outer, before
    return found


@gradient("Scan")
def scan(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """a Scan from the last step to the first, which computes every step again and goes it back"""
    count = int(n.attr("num_scan_inputs"))
    states, steps = n.inputs[:-count], n.inputs[-count:]
    body: GraphProto = n.attr("body")
    results = len(body.output) - len(states)
    axes, ways = n.attr("scan_input_axes") or [0] * count, n.attr("scan_input_directions") or [0] * count
    out_axes = n.attr("scan_output_axes") or [0] * results
    out_ways = n.attr("scan_output_directions") or [0] * results
    if any([*axes, *ways, *out_axes, *out_ways]):
        return through(b, n, dy, _plain)
    shapes = [(f"{s}_state", b.code(s), b.sizes(s)) for s in states]
    shapes += [(f"{x}_step", b.code(x), [s[1:] for s in b.sizes(x)]) for x in steps]

    inner = renamed(b, shapes)
    kept = inner[: len(states)]
    again = body_of(
        b, inner, lambda: [*_inline(b, body, inner)[: len(states)], *(b.name(s, f"{s}_kept") for s in kept)]
    )
    lengths = [s[:1] for s in b.sizes(steps[0])]
    stacked = [(b.code(s), [(*t, *size) for t, size in zip(lengths, b.sizes(s), strict=True)]) for s in states]
    whole = [(b.code(s), b.sizes(s)) for s in states] + stacked
    started = placed(b, "Scan", n.inputs, whole, body=again, num_scan_inputs=count)[len(states) :]
    of_states, of_steps = _stepwise(b, dy, body, states, started, steps)
    return [*of_states, *of_steps]


@gradient("Loop")
def loop(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """as Scan, over as many steps as it takes"""
    body: GraphProto = n.attr("body")
    states = n.inputs[2:]
    shapes: list[tuple[str, int, list[Shape]]] = [
        ("iteration", 7, [()] * b.probe_count),
        ("condition", 9, [()] * b.probe_count),
    ]
    shapes += [(f"{s}_state", b.code(s), b.sizes(s)) for s in states]
    inner = renamed(b, shapes)
    kept = inner[2:]
    last = 1 + len(states)
    again = body_of(
        b, inner,
        lambda: [*_inline(b, body, inner)[:last], *(b.name(s, f"{s}_kept") for s in kept), b.name(inner[0], "step")],
    )  # fmt: skip
    trips = b.value(n.input(0)) if n.input(0) else None
    ends = (n.input(1) and b.value(n.input(1)) is None) or not _goes_on(body)
    length = None if trips is None or ends else int(trips.ravel()[0])
    stacked = [(b.code(s), [(length, *size) for size in b.sizes(s)]) for s in [*states, inner[0]]]
    whole = [(b.code(s), b.sizes(s)) for s in states] + stacked
    *started, number = placed(b, "Loop", n.inputs, whole, body=again)[len(states) :]
    going = b.op("Cast", b.op("GreaterOrEqual", number, b.constant(0)), to=9)  # the body ran, so it was told to go on
    order = GraphProto()  # the same body with the states first, and without the condition it returns
    order.CopyFrom(body)
    inputs = [*body.input[2:], body.input[0], body.input[1]]
    del order.input[:], order.output[0]
    order.input.extend(inputs)
    return [None, None, *_stepwise(b, dy, order, states, started, [number, going])[0]]


def _goes_on(body: GraphProto) -> bool:
    """Whether a body of a Loop passes the condition that it gets on."""
    made = {o: node for node in body.node for o in node.output}
    name = body.output[0].name
    while name in made and made[name].op_type == "Identity":
        name = made[name].input[0]
    return bool(name == body.input[1].name)


def _plain(b: Backward, n: Node) -> list[str]:
    """A Scan over first axes, forwards."""
    count = int(n.attr("num_scan_inputs"))
    body: GraphProto = n.attr("body")
    first = len(n.inputs) - count
    results = len(body.output) - first
    axes, ways = n.attr("scan_input_axes") or [0] * count, n.attr("scan_input_directions") or [0] * count
    steps = []
    for x, axis, way in zip(n.inputs[first:], axes, ways, strict=True):
        rank = b.rank(x)
        x = b.transpose(x, [axis % rank, *(k for k in range(rank) if k != axis % rank)])
        steps.append(b.slice(x, [-1], [-LAST], [0], [-1]) if way else x)
    sizes = [b.sizes(o) for o in n.outputs]
    axes, ways = n.attr("scan_output_axes") or [0] * results, n.attr("scan_output_directions") or [0] * results
    for k, axis in enumerate(axes):
        sizes[first + k] = [_first(s, axis % len(s)) for s in sizes[first + k]]
    shapes = [(b.code(o), s) for o, s in zip(n.outputs, sizes, strict=True)]
    shapes_in = [(f"{s}_state", b.code(s), b.sizes(s)) for s in n.inputs[:first]]
    shapes_in += [(f"{x}_step", b.code(x), [s[1:] for s in b.sizes(x)]) for x in steps]
    inner = renamed(b, shapes_in)
    again = body_of(b, inner, lambda: _inline(b, body, inner))
    made = placed(b, "Scan", [*n.inputs[:first], *steps], shapes, body=again, num_scan_inputs=count)
    for k, (axis, way) in enumerate(zip(axes, ways, strict=True), first):
        y = b.slice(made[k], [-1], [-LAST], [0], [-1]) if way else made[k]
        rank = b.rank(y)
        order = list(range(1, rank))
        order.insert(axis % rank, 0)
        made[k] = b.transpose(y, order)
    return made


def _first(shape: Shape, axis: int) -> Shape:
    return (shape[axis], *shape[:axis], *shape[axis + 1 :])


def _stepwise(
    b: Backward, dy: Gradients, body: GraphProto, states: Sequence[str], started: Sequence[str], steps: Sequence[str]
) -> tuple[Gradients, Gradients]:
    """Add the Scan that goes back; the gradients of states and steps, those of what the body reads are contributed.

    body: of states and steps, giving states and results; started: the states that every step started from, stacked;
    steps: what else every step reads, stacked.
    """
    count = len(states)
    floats = [k for k, s in enumerate(states) if b.is_float(s)]
    own = {i.name for i in body.input}
    outside = sorted(name for name in reads(_as_node(body)) - own if name in b.needed)
    wanted_steps = [k for k, x in enumerate(steps) if x in b.needed]
    coming = [k for k in range(count, len(body.output)) if dy[k]]
    carried = [(f"{states[k]}_back", b.code(states[k]), b.sizes(states[k])) for k in floats]
    carried += [(f"{c}_back", b.code(c), b.sizes(c)) for c in outside]
    tops = [g for k in coming if (g := dy[k])]
    read = [*started, *steps, *tops]
    each = [(f"{x}_at", b.code(x), [s[1:] for s in b.sizes(x)]) for x in read]
    inner = renamed(b, [*carried, *each])
    back_states, back_outside = inner[: len(floats)], inner[len(floats) : len(carried)]
    at = inner[len(carried) :]
    entering, stepping, arriving = at[:count], at[count : count + len(steps)], at[count + len(steps) :]

    def run() -> list[str]:
        start = len(b.edit.graph.node)
        results = _inline(b, body, [*entering, *stepping])
        seeds = [(results[k], g) for k, g in zip(floats, back_states, strict=True)]
        seeds += [(results[k], g) for k, g in zip(coming, arriving, strict=True)]
        mine = [entering[k] for k in floats] + [stepping[k] for k in wanted_steps]
        found = _gradients(b, added(b, start), seeds, [*mine, *outside])
        out = [found[entering[k]] or b.zeros_like(entering[k]) for k in floats]
        for c, total in zip(outside, back_outside, strict=True):
            part = found[c]
            out.append(b.op("Add", total, part) if part else total)
        return out + [found[stepping[k]] or b.zeros_like(stepping[k]) for k in wanted_steps]

    first = [dy[k] or b.zeros_like(states[k]) for k in floats] + [b.zeros_like(c) for c in outside]
    shapes = [(code, sizes) for _, code, sizes in carried]
    shapes += [(b.code(steps[k]), b.sizes(steps[k])) for k in wanted_steps]
    how: dict[str, object] = {"scan_output_directions": [1] * len(wanted_steps)} if wanted_steps else {}
    made = placed(
        b, "Scan", [*first, *read], shapes, body=body_of(b, inner, run), num_scan_inputs=len(read),
        scan_input_directions=[1] * len(read), **how,
    )  # fmt: skip
    of_states: Gradients = [None] * count
    of_steps: Gradients = [None] * len(steps)
    for k, g in zip(floats, made, strict=False):
        of_states[k] = g
    for c, g in zip(outside, made[len(floats) :], strict=False):
        b.contribute(c, g)
    for k, g in zip(wanted_steps, made[len(carried) :], strict=True):
        of_steps[k] = g
    return of_states, of_steps


def _as_node(body: GraphProto) -> NodeProto:
    return helper.make_node("Scan", [], [], body=body)
