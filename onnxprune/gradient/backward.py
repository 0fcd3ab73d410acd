"""What rules build with: nodes appended to a model, whose shapes are known as they come.

Sizes of dynamic axes are unknown. What a rule computes of them it computes by nodes (`shape_of`, `op`); where all sizes
turn out to be known, the nodes are replaced by the constant, so that one way of writing serves both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from onnx import GraphProto, NodeProto, TypeProto, ValueInfoProto, helper

from onnxprune.errors import UserError
from onnxprune.gradient.probes import probes
from onnxprune.graph.arrays import FLOAT_TYPES, Array
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model
from onnxprune.graph.links import reads
from onnxprune.graph.node import Node, opsets
from onnxprune.graph.protos import graphs, is_constant, place, rename_values
from onnxprune.graph.shapes import Shape, infer_nodes
from onnxprune.graph.versions import raised

OPSET = 17  # older models are raised to it: before, operators lack what the rules need
Gradients: TypeAlias = list[str | None]  # names; None where there is no gradient, or none is needed
FUSED = ("gemm_input_shape", "gemm_output_shape")  # how names of what onnxruntime's MatMulAddFusion adds begin
LAST = np.iinfo(np.int64).max  # the end of a slice that goes to the end of its axis


class NoRule(Exception):
    """What a rule raises for a form of its operator that it cannot differentiate; the text says which."""


def sweep(graph: GraphProto) -> None:
    """Remove nodes of which nothing is read, neither by others nor as outputs."""
    wanted, kept = {o.name for o in graph.output}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted |= reads(node)
            kept.append(node)
    if len(kept) < len(graph.node):
        place(graph, kept[::-1])


def free_constants(model: Model) -> None:
    """Raise the version of the file's form to 8; before 4 all constants were listed as inputs, and are no longer. Nor
    are sizes and indices that a caller may replace: gradients are those of the values that the file gives."""
    graph = model.proto.graph
    every = model.proto.ir_version < 4
    fixed = {name for name, w in model.weights.items() if every or w.dtype.kind in "iub"}
    if not fixed.isdisjoint(i.name for i in graph.input):
        kept = [ValueInfoProto.FromString(i.SerializeToString()) for i in graph.input if i.name not in fixed]
        del graph.input[:]
        graph.input.extend(kept)
    model.proto.ir_version = max(model.proto.ir_version, 8)


@dataclass(frozen=True)
class Kernel:
    """Tensors that a kernel of ours makes as well as the nodes that the graph has. number: of kernels/steps/tables.py;
    nodes: with the kernel, and what brings its results into form."""

    number: int
    made: tuple[str, ...]
    nodes: tuple[NodeProto, ...]


class Backward:
    """A copy of a model that grows backwards. Names go in and out; a name is a tensor.

    Of the node whose rule runs, `needs(i)` says whether input `i` wants a gradient. A constant that is differentiated
    by is none: `value` does not give it.
    """

    def __init__(self, model: Model, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """input_shapes: sizes to build for, by input; those that are not given may vary. Raises `UserError`."""
        old = opsets(model.proto).get("", 1)
        try:
            edit = Edit(raised(model, OPSET))
        except UserError as e:
            raise UserError(f"gradients need opset {OPSET}, and onnx cannot raise {old} to it: {e}") from e
        self.edit = edit
        free_constants(edit.model)
        hoist(edit.model.proto.graph)
        free_names(edit)
        self.opset = opsets(edit.model.proto)[""]
        self.wrt: set[str] = set()
        self.needed: set[str] = set()
        self.made: dict[str, list[str]] = {}  # tensor -> parts of its gradient
        self.kernels: list[Kernel] = []  # for a session of ours
        self._node: Node | None = None
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._probes = probes(edit.model, input_shapes or {})
        for probe in self._probes:  # weights change: nothing is computed of them here
            probe.known = {name: v for name, v in probe.known.items() if v.dtype.kind in "iub"}

    @property
    def model(self) -> Model:
        """The model with all nodes so far."""
        return self.edit.model

    # what is known of a tensor

    def shape(self, name: str) -> Shape:
        """Sizes, None for one that may vary. Raises `NoRule` where not even the rank is known."""
        known = self.sizes(name)
        if len({len(s) for s in known}) > 1:
            raise NoRule(f"the rank of {name} is not known")
        return tuple(d[0] if len(set(d)) == 1 else None for d in zip(*known, strict=True))

    def rank(self, name: str) -> int:
        """Number of axes. Raises `NoRule` where it is not known."""
        return len(self.shape(name))

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type of the elements; float32 where it is not known."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.code(name)))

    def code(self, name: str) -> int:
        """ONNX type of the elements, as `Cast` has it; FLOAT where it is not known."""
        return self._probes[0].types.get(name, FLOAT_TYPES[0])

    def is_float(self, name: str) -> bool:
        """Whether a tensor can have a gradient."""
        return self.code(name) in FLOAT_TYPES

    def type_proto(self, name: str) -> TypeProto:
        """Type and shape of a tensor as ONNX has them; empty for one that is left out."""
        if not name:
            return TypeProto()
        return helper.make_tensor_type_proto(self.code(name), self.shape(name))

    def value(self, name: str) -> Array | None:
        """What a constant holds; None for what is computed of inputs, or differentiated by."""
        if not name or name in self.wrt:
            return None
        values = [probe.value(name) for probe in self._probes]
        first = values[0]
        same = all(v is not None and first is not None and np.array_equal(v, first) for v in values)
        return first if same else None

    def ints(self, n: Node, attribute: str, i: int = -1, default: Iterable[int] = ()) -> list[int]:
        """Integers that a node has as an attribute, or as input `i`; the default where it has neither.

        Raises `NoRule` where they are known at run time only.
        """
        if i >= 0 and n.input(i):
            value = self.value(n.input(i))
            if value is None:
                raise NoRule(f"{attribute} is known at run time only")
            return [int(v) for v in value.ravel()]
        given = n.attr(attribute, default)
        return [given] if isinstance(given, int) else list(given)

    def needs(self, i: int) -> bool:
        """Whether input `i` of the node whose rule runs wants a gradient."""
        assert self._node is not None
        return self._node.input(i) in self.needed

    @property
    def probe_count(self) -> int:
        """How many sets of sizes are followed."""
        return len(self._probes)

    def sizes(self, name: str) -> list[Shape]:
        """The shape of a tensor in each of the probes. Raises `NoRule` where one is not known."""
        shapes = [probe.shapes.get(name) for probe in self._probes]
        known = [s for s in shapes if s is not None]
        if len(known) < len(shapes):
            raise NoRule(f"the rank of {name} is not known")
        return known

    def know(self, name: str, code: int, sizes: Sequence[Shape]) -> None:
        """Type and shape, in each of the probes, of a tensor that onnx does not infer."""
        for probe, shape in zip(self._probes, sizes, strict=True):
            probe.types[name], probe.shapes[name] = code, shape

    # making nodes

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; its name. kind: as `Node.op`; inputs: "" for one that is left out."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node of so many outputs; their names."""
        domain, _, op = kind.rpartition("::")
        names = ["new"] * outputs
        return self.place(helper.make_node(op, list(inputs), names, domain=domain, **attributes))

    def place(self, proto: NodeProto) -> list[str]:
        """Add a node, whose outputs get new names (one that is left out stays so); they are given."""
        base = f"{self._node.key if self._node else 'loss'}/{proto.op_type}"
        names = [self.edit.fresh(base) if o else "" for o in proto.output]
        proto.output[:], proto.name = names, self.edit.fresh_node(base)
        node = Node(proto, opsets(self.model.proto).get(proto.domain, 1))
        for probe in self._probes:
            for body in node.bodies():
                probe.enter(node, body)
                infer_nodes(probe, body)
            probe.step(node)
        values = [self.value(name) for name in names]
        if not any(node.bodies()) and all(v is not None for v in values):  # computed of sizes that turn out to be fixed
            return [self.constant(v) for v in values if v is not None]
        self.edit.graph.node.append(proto)
        return names

    def constant(self, value: Any, like: str = "") -> str:
        """A constant of the type of tensor `like`; without it int64, or what the array has."""
        array = np.asarray(value, self.dtype(like) if like else None)
        key = str(array.dtype), array.shape, array.tobytes()
        if key not in self._constants:
            name = self._constants[key] = self.edit.constant("constant", array)
            for probe in self._probes:
                probe.shapes[name], probe.known[name] = array.shape, array
                probe.types[name] = helper.np_dtype_to_tensor_dtype(array.dtype)
                probe.constant.add(name)
        return self._constants[key]

    def input(self, base: str, code: int, shape: Sequence[int | str | None], sizes: Sequence[Shape] = ()) -> str:
        """Add an input to the model; its name. code: ONNX type; sizes: its shape in each of the probes, where axes of
        it vary."""
        name = self.edit.fresh(base)
        self.edit.graph.input.append(helper.make_tensor_value_info(name, code, list(shape)))
        for k, probe in enumerate(self._probes):
            probe.types[name] = code
            probe.shapes[name] = sizes[k] if sizes else tuple(d if isinstance(d, int) else None for d in shape)
        return name

    def input_like(self, base: str, like: str, declared: Sequence[int | str | None] | None = None) -> str:
        """Add an input of the type and shape of a tensor; its name. declared: the shape that the model states."""
        sizes = [probe.shapes[like] for probe in self._probes]
        return self.input(base, self.code(like), self.shape(like) if declared is None else declared, sizes)

    # what differs between versions, and what is written often

    def shape_of(self, name: str) -> str:
        """The shape of a tensor, int64 `(rank,)`."""
        return self.op("Shape", name)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Reshape to sizes, of which one may be -1."""
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64)), allowzero=int(0 in shape))

    def reshape_like(self, x: str, like: str) -> str:
        """Reshape to the shape of another tensor."""
        if self.same_shape(x, like):
            return x
        empty = any(0 in probe.shapes.get(like, ()) for probe in self._probes)
        return self.op("Reshape", x, self.shape_of(like), allowzero=int(empty))

    def reduce(self, kind: str, x: str, axes: Iterable[int], keepdims: bool = False) -> str:
        """A reduction over axes; over none it is the tensor itself."""
        axes = list(axes)
        if not axes:
            return x
        if self.opset >= 18 or kind == "ReduceSum":
            return self.op(kind, x, self.constant(np.array(axes, np.int64)), keepdims=int(keepdims))
        return self.op(kind, x, axes=axes, keepdims=int(keepdims))

    def sum(self, x: str, axes: Iterable[int], keepdims: bool = False) -> str:
        """The sum over axes."""
        return self.reduce("ReduceSum", x, axes, keepdims)

    def unsqueeze(self, x: str, axes: Sequence[int]) -> str:
        """Insert axes of one; positions in the result."""
        return self.op("Unsqueeze", x, self.constant(np.array(axes, np.int64))) if axes else x

    def squeeze(self, x: str, axes: Sequence[int]) -> str:
        """Remove axes of one."""
        return self.op("Squeeze", x, self.constant(np.array(axes, np.int64))) if axes else x

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        """Permute axes."""
        return x if list(perm) == list(range(len(perm))) else self.op("Transpose", x, perm=list(perm))

    def slice(
        self, x: str, starts: Sequence[int] | str, ends: Sequence[int] | str, axes: Iterable[int],
        steps: Sequence[int] | None = None,
    ) -> str:  # fmt: skip
        """A slice; starts and ends are numbers or int64 tensors, `LAST` is the end of an axis."""
        axes = list(axes)
        if not axes:
            return x
        first, last = (v if isinstance(v, str) else self.constant(np.array(v, np.int64)) for v in (starts, ends))
        more = [] if steps is None or set(steps) == {1} else [self.constant(np.array(steps, np.int64))]
        return self.op("Slice", x, first, last, self.constant(np.array(axes, np.int64)), *more)

    def pad(self, x: str, heads: Sequence[int], tails: Sequence[int]) -> str:
        """Zeros before and after every axis; negative numbers take away."""
        pads = np.array([*heads, *tails], np.int64)
        return self.op("Pad", x, self.constant(pads), self.constant(0, like=x)) if pads.any() else x

    def expand_like(self, x: str, like: str) -> str:
        """Broadcast to the shape of another tensor."""
        return x if self.same_shape(x, like) else self.op("Expand", x, self.shape_of(like))

    def name(self, x: str, base: str) -> str:
        """The same tensor under a name that says what it is."""
        name = self.edit.fresh(base)
        proto = helper.make_node("Identity", [x], [name], self.edit.fresh_node(base))
        for probe in self._probes:
            probe.step(Node(proto, self.opset))
        self.edit.graph.node.append(proto)
        return name

    def zeros_like(self, x: str) -> str:
        """Zeros of the type and shape of a tensor."""
        return self.op("Expand", self.constant(0, like=x), self.shape_of(x))

    def scale(self, x: str, factor: float) -> str:
        """A tensor times a number."""
        return x if factor == 1 else self.op("Mul", x, self.constant(factor, like=x))

    def add(self, parts: Sequence[str]) -> str:
        """The sum of tensors of one shape; at least one."""
        return parts[0] if len(parts) == 1 else self.op("Add" if len(parts) == 2 else "Sum", *parts)

    def where(self, condition: str, x: str, y: str) -> str:
        """x where the condition holds, else y."""
        return self.op("Where", condition, x, y)

    def same_shape(self, x: str, y: str) -> bool:
        """Whether two tensors have one shape whatever the sizes of dynamic axes are."""
        shapes = [(probe.shapes.get(x), probe.shapes.get(y)) for probe in self._probes]
        return all(a is not None and a == b and None not in a for a, b in shapes)

    def unbroadcast(self, g: str, like: str) -> str:
        """The sum over the axes along which `like` was broadcast to the shape of `g`; it has the shape of `like`."""
        if self.same_shape(g, like):
            return g
        whole, rank = self.rank(g), self.rank(like)
        more, reduced = whole - rank, []
        for k in range(rank):
            sizes = [(probe.shapes[g][k + more], probe.shapes[like][k]) for probe in self._probes]
            if all(a is not None and a == b for a, b in sizes):
                continue
            if any(b != 1 for _, b in sizes):  # an axis that is broadcast at some sizes only
                return self._unbroadcast(g, like, more)
            reduced.append(k + more)
        g = self.sum(g, reduced, keepdims=True)
        return self.sum(g, range(more))

    def _unbroadcast(self, g: str, like: str, more: int) -> str:
        """`unbroadcast` with axes that are found at run time."""
        size = self.shape_of(like)
        if more:
            size = self.op("Concat", self.constant(np.ones(more, np.int64)), size, axis=0)
        ones = self.op("NonZero", self.op("Equal", size, self.constant(np.ones(1, np.int64))))
        axes = self.op("Reshape", ones, self.constant(np.array([-1], np.int64)))
        summed = self.op("ReduceSum", g, axes, keepdims=1, noop_with_empty_axes=1)
        out = self.op("Reshape", summed, self.shape_of(like))
        for probe in self._probes:  # onnx infers neither
            probe.shapes.setdefault(summed, (None,) * self.rank(g))
            probe.shapes[out] = probe.shapes[like]
        return out

    def size(self, name: str, axes: Iterable[int]) -> str:
        """Sizes of these axes, int64, one for each."""
        return self.op("Gather", self.shape_of(name), self.constant(np.array(list(axes), np.int64)), axis=0)

    def enter(self, node: Node | None) -> Node | None:
        """The node whose rule runs from now on; the one before."""
        before, self._node = self._node, node
        return before

    def contribute(self, name: str, part: str | None) -> None:
        """A part of the gradient of a tensor; rules of operators with bodies state what the bodies read so."""
        if part is not None and name in self.needed:
            self.made.setdefault(name, []).append(part)

    def gradient_of(self, name: str) -> str | None:
        """The gradient of a tensor, all parts summed; None where nothing flows back to it."""
        parts = self.made.get(name)
        if not parts:
            return None
        if len(parts) > 1:
            self.made[name] = parts = [self.add(parts)]
        return parts[0]

    def outputs(self, n: Node) -> Gradients:
        """Gradients of the outputs of a node."""
        return [self.gradient_of(o) if o else None for o in n.outputs]

    def finished(self, keep: Sequence[str]) -> Model:
        """The model with these tensors as outputs beside its own, and without what nothing reads."""
        graph = self.edit.graph
        present = {o.name for o in graph.output}
        for name in keep:
            if name not in present:
                graph.output.append(helper.make_tensor_value_info(name, self.code(name), list(self.shape(name))))
        sweep(graph)
        self.edit.drop(self._constants.values())
        return self.edit.model


def free_names(edit: Edit) -> None:
    """Give initializers other names that onnxruntime gave them when it made Gemm of MatMul and Add (a file that it
    wrote): where it does so again, in what we add, it means to name another like that, and fails."""
    weights = edit.model.weights
    names = {name: edit.fresh("shape_of_gemm") for name in list(weights) if name.startswith(FUSED)}
    for graph in graphs(edit.graph):
        rename_values(graph, names)
    for name, other in names.items():
        weights[other] = weights.pop(name)


def hoist(graph: GraphProto) -> None:
    """Move the constants of bodies into the main graph, where gradients can read and give them; but for those that a
    body returns as they are."""
    for body in list(graphs(graph))[1:]:
        returned = {o.name for o in body.output}
        moved = [t for t in body.initializer if t.name not in returned]
        graph.initializer.extend(moved)
        kept = [t for t in body.initializer if t.name in returned]
        del body.initializer[:]
        body.initializer.extend(kept)
        nodes = [n for n in body.node if is_constant(n) and n.output[0] not in returned]
        for node in reversed(nodes):
            graph.node.insert(0, node)
            body.node.remove(node)
