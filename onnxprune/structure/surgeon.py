"""The state of one cut, and what rules can do to the model: sizes, constants, nodes put in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph import folds
from onnxprune.graph.arrays import Array, Ids
from onnxprune.graph.edit import add_initializer
from onnxprune.graph.io import graphs
from onnxprune.graph.links import makers
from onnxprune.graph.node import Node, walk_all
from onnxprune.graph.shapes import Shapes, fixed, graph_inputs, infer_nodes
from onnxprune.graph.traits import TRAITS
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.claims import Axis
from onnxprune.structure.depth import Block

# inputs that hold shapes: their rules rewrite them, or they follow by themselves
SHAPE_INPUTS = {"Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,), "Shape": (0,), "Size": (0,)}
# the same, where an axis of the node shrinks
SHRUNK_INPUTS = {
    "Resize": (1, 2, 3), "Upsample": (1,), "Slice": (1, 2, 3, 4), "Gather": (1,), "Pad": (1, 3), "Split": (1,),
}  # fmt: skip
ALWAYS_OLD = {"Range", "Tile"}  # also where nothing but shapes is computed: what they make has its old size


class Surgeon:
    """The state of one cut; rules reach it through the methods below."""

    def __init__(
        self, analysis: Analysis, keep: Keep, shifts: Mapping[str, Array], sliced: Mapping[str, Array]
    ) -> None:
        self.analysis = analysis
        self.shifts = shifts
        self.coupling = analysis.coupling
        self.alive = keep
        self.model = analysis.model.copy()
        self.inserted: list[onnx.NodeProto] = []
        self.appended: list[onnx.NodeProto] = []
        self.other: Shapes | None = None  # of the original with dynamic axes of other sizes
        self.outputs = {o.name for g in graphs(self.model.proto.graph) for o in g.output}
        self.makers = makers(walk_all(analysis.model.proto.graph, self.coupling.shapes.opsets))
        self.names = {n for g in graphs(self.model.proto.graph) for p in g.node for n in (*p.input, *p.output)}
        self.names |= folds.names(self.model.folds)
        self.readers: Counter[str] = Counter(self.coupling.readers)
        self.closed = {b.node.key: b for b in analysis.blocks if not keep[b.gate].any()}
        self.model.weights.update(sliced)
        self.shapes = Shapes(self.model)
        self.shapes.forget_declared(
            name for name, axes in self.coupling.base.items() if any(self.shrinks(name, k) for k in range(len(axes)))
        )
        for info in graph_inputs(self.model):
            if info.name in self.coupling.shapes.shapes:
                old = self.coupling.shapes.shapes[info.name]
                self.shapes.shapes[info.name] = tuple(
                    self.new_size(info.name, k) if self.shrinks(info.name, k) else d for k, d in enumerate(old)
                )
            self.shapes.types[info.name] = self.coupling.shapes.types.get(info.name, 1)

    # what rules read

    def keep(self, ids: Ids) -> Keep:
        """Which of the ids survive, bool of their shape."""
        return self.alive[ids]

    def count(self, ids: Axis) -> int:
        """How many of the ids survive; an axis without ids counts one."""
        return 1 if ids is None else int(self.alive[ids].sum())

    def shrinks(self, name: str, axis: int) -> bool:
        """True where something goes from this axis."""
        ids = self.coupling.axes(name)[axis]
        return ids is not None and not bool(self.alive[ids].all())

    def new_size(self, name: str, axis: int) -> int:
        """Size of an axis after the cut; one without ids stays what it is, one or empty."""
        axes = self.coupling.axes(name)
        if not axes:
            return 0
        ids = axes[axis]
        return (self.coupling.shapes.shapes[name][axis] or 0) if ids is None else self.count(ids)

    # what rules change

    def set_attr(self, n: Node, name: str, value: Any) -> None:
        """Write an attribute; `None` removes it."""
        if n.attr(name) == value:
            return
        if name in n.attributes:
            n.proto.attribute.remove(n.attributes[name])
        if value is not None:
            n.proto.attribute.append(helper.make_attribute(name, value))
        n.attributes = {a.name: a for a in n.proto.attribute}

    def set_input(self, n: Node, slot: int, value: Array) -> None:
        """Make input `slot` the constant `value`: in place where only this node reads it, else a new initializer."""
        old = n.input(slot)
        if old in self.model.weights and self.readers[old] == 1:
            self._replace(old, value)
            return
        self._connect(n, slot, self._constant(value, f"{old or n.key}_pruned"))

    def patch(self, n: Node, attribute: str, slot: int, entries: Mapping[int, int]) -> None:
        """Overwrite entries of a list of integers that is an attribute, a constant, or computed at run time."""
        if not entries:
            return
        if attribute in n.attributes:
            value = list(n.attr(attribute))
            for i, v in entries.items():
                value[i] = v
            self.set_attr(n, attribute, value)
            return
        name = n.input(slot)
        now = self.shapes.known[name]
        target = now.copy()
        for i, v in entries.items():
            target[i] = v
        if np.array_equal(now, target):
            return
        if name in self.shapes.constant:
            self.set_input(n, slot, target)
            return
        # computed: make the entries zero and add the new ones, which every opset can; not by Mul and Add, which
        # onnxruntime's quantizers take for arithmetic on activations
        by, minus = np.ones_like(now), np.zeros_like(now)
        for i, v in entries.items():
            by[i], minus[i] = np.iinfo(now.dtype).max if now.dtype.kind in "iu" else np.inf, -v
        scaled, shifted = self.fresh(f"{name}_scaled"), self.fresh(f"{name}_patched")
        self.insert("Div", [name, self._constant(by, f"{name}_mask")], scaled)
        self.insert("Sub", [scaled, self._constant(minus, f"{name}_sizes")], shifted)
        self._connect(n, slot, shifted)

    def set_shape_input(self, n: Node, slot: int) -> None:
        """Entries of a target shape that no longer name the number of survivors are overwritten."""
        asked = source = n.input(slot)
        entries = self._wrong_sizes(n, source)
        if any(self._varies(asked, i) for i in entries) and self._changed(asked):
            # arithmetic on widths that have shrunk did not come out even: begin with what it was on the old ones
            source = self._as_before(asked)
            self._connect(n, slot, source)
            entries = self._wrong_sizes(n, source)
        if not entries:
            return
        now = self.shapes.known[source]
        varying = {i: v for i, v in entries.items() if now[i] > 0 and self._varies(asked, i)}
        if varying:  # a dynamic size times a width: scaled, so that it stays dynamic
            times, by = np.ones_like(now), np.ones_like(now)
            for i, v in varying.items():
                times[i], by[i] = v, now[i]
            product, quotient = self.fresh(f"{source}_times"), self.fresh(f"{source}_resized")
            self.insert("Mul", [source, self._constant(times, f"{source}_kept")], product)
            self.insert("Div", [product, self._constant(by, f"{source}_full")], quotient)
            self._connect(n, slot, quotient)
        self.patch(n, "", slot, {i: v for i, v in entries.items() if i not in varying})

    def _wrong_sizes(self, n: Node, source: str) -> dict[int, int]:
        """Entry of the target shape `source` -> the number of survivors, where it names another one."""
        y = self.coupling.axes(n.output(0))
        now = self.shapes.known.get(source)
        before = self.coupling.shape(n.output(0))
        if now is None or now.ndim != 1 or before is None or len(y) != len(before):
            return {}
        x, old = self.shapes.shapes.get(n.input(0), ()), self.coupling.shapes.known.get(source)
        offset = len(y) - now.size
        entries = {}
        for i, v in enumerate(now.tolist()):
            k = i + offset
            if v == -1 or before[k] is None:
                continue
            size = self.new_size(n.output(0), k)
            if n.op == "Reshape" and v == 0 and not n.attr("allowzero", 0) and (old is None or old[i] == 0):
                v = x[k] if k < len(x) else 0  # as written; a quotient that came down to zero means something else
            elif n.op == "Expand" and v == 1:
                continue
            if v != size:
                entries[i] = size
        return entries

    def scale_output(self, n: Node, factor: float) -> None:
        """Multiply the node's first output by a constant."""
        output = n.output(0)
        dtype = helper.tensor_dtype_to_np_dtype(self.coupling.shapes.types[output])
        inner = self.fresh(f"{output}_unscaled")
        constant = self._constant(np.array(factor, dtype), f"{output}_factor")
        self.appended.append(helper.make_node("Mul", [inner, constant], [output], name=self.fresh(f"{output}_scale")))
        n.proto.output[0] = n.outputs[0] = inner

    def fresh(self, base: str) -> str:
        """A name that no value or weight of the cut has, `base` or `base_1`, ...; it is taken from now on."""
        name, k = base, 1
        while name in self.names or name in self.model.weights:
            name, k = f"{base}_{k}", k + 1
        self.names.add(name)
        return name

    def insert(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        """Put a node before the current one."""
        proto = helper.make_node(op, inputs, [output], name=self.fresh(f"{output}_node"), **attributes)
        self.inserted.append(proto)
        self.readers.update(inputs)
        self.shapes.step(Node(proto, self.shapes.opsets.get("", 1)))

    # inside

    def _constant(self, value: Array, base: str) -> str:
        name = self.fresh(base)
        add_initializer(self.model, name, value)
        self.shapes.known[name], self.shapes.shapes[name] = value, value.shape
        self.shapes.types[name] = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.shapes.constant.add(name)
        return name

    def _connect(self, n: Node, slot: int, name: str) -> None:
        while len(n.proto.input) <= slot:
            n.proto.input.append("")
            n.inputs.append("")
        if n.inputs[slot]:
            self.readers[n.inputs[slot]] -= 1
        n.proto.input[slot] = n.inputs[slot] = name
        self.readers[name] += 1

    def _replace(self, name: str, value: Array) -> None:
        self.model.weights[name] = value
        self.shapes.known[name], self.shapes.shapes[name] = value, value.shape

    def bypass(self, n: Node, block: Block) -> None:
        """The stream takes the place of the sum; a fused sum goes on as the normalisation that it is too."""
        stream, attributes = block.source, {a.name: a for a in n.proto.attribute}
        for i in {i for i in n.inputs if i}:
            self.readers[i] -= 1
        if n.op == "Add":
            replacement = helper.make_node("Identity", [stream], [n.output(0)], name=n.proto.name)
            inputs = [stream]
        else:
            zero = self.fresh(f"{n.key}_nothing")
            self.insert("Sub", [stream, stream], zero)
            inputs = [stream, zero, *n.inputs[2:4]][: 3 if "Simplified" in n.op else 4]
            replacement = helper.make_node(n.proto.op_type, inputs, n.outputs, name=n.proto.name, domain=n.proto.domain)
            replacement.attribute.extend(attributes.values())
        self.readers.update(i for i in inputs if i)
        n.proto.CopyFrom(replacement)
        n.renew()

    def shift_output(self, n: Node, shift: Array) -> None:
        """Add a vector over the original's output channels to the node's bias."""
        y, trait = self.coupling.axes(n.output(0)), TRAITS[n.op]
        ids = y[trait.outer(len(y))]
        if ids is not None:
            shift = shift[self.alive[ids]]
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(self.coupling.shapes.types[n.output(0)]))
        if trait.bias is None:
            inner = self.fresh(f"{n.output(0)}_unshifted")
            bias = self._constant(shift.astype(dtype), f"{n.output(0)}_shift")
            name = self.fresh(f"{n.output(0)}_shifted")
            self.appended.append(helper.make_node("Add", [inner, bias], [n.output(0)], name=name))
            n.proto.output[0] = n.outputs[0] = inner
        elif not n.input(trait.bias):
            self.set_input(n, trait.bias, (shift / float(n.attr("beta", 1.0))).astype(dtype))
        elif n.input(trait.bias) in self.model.weights:
            old = self.model.weights[n.input(trait.bias)].astype(np.float64)
            self.set_input(n, trait.bias, (old + shift / float(n.attr("beta", 1.0))).astype(dtype))

    def freeze(self, n: Node) -> None:
        """Sizes that are read as numbers (the sqrt of a width, a count to divide by) keep their old value."""
        if n.op not in ALWAYS_OLD and all(o in self.coupling.shapes.known for o in n.outputs if o):
            return
        follows: tuple[int, ...] = SHAPE_INPUTS.get(n.op, ())
        if n.op in SHRUNK_INPUTS and any(
            self.shrinks(t, k) for t in (n.input(0), n.output(0)) for k in range(len(self.coupling.axes(t)))
        ):
            follows = SHRUNK_INPUTS[n.op]
        for slot, name in enumerate(n.inputs):
            if slot not in follows and self._changed(name):
                self._connect(n, slot, self._as_before(name))

    def _changed(self, name: str) -> bool:
        """True for a number computed of shapes that the cut has changed."""
        old, now = self.coupling.shapes.known.get(name), self.shapes.known.get(name)
        if old is None or now is None or name in self.coupling.shapes.constant or old.shape != now.shape:
            return False
        return not np.array_equal(old, now)

    def keep_output(self, n: Node) -> None:
        """An output of the graph that is computed of shapes has the value that it had."""
        for k, o in enumerate(n.outputs):
            if o in self.outputs and self._changed(o):
                n.proto.output[k] = n.outputs[k] = self.fresh(f"{o}_pruned")
                self.appended.append(helper.make_node("Identity", [self._as_before(o)], [o]))

    def _varies(self, name: str, index: int | None = None) -> bool:
        """True where a value computed of shapes (or one entry of it) depends on dynamic axes of the inputs."""
        old = self.coupling.shapes.known.get(name)
        if old is None or name in self.coupling.shapes.constant:
            return False
        if self.other is None:
            model, self.other = self.analysis.model, Shapes(self.analysis.model)
            for info in graph_inputs(model):
                self.other.types[info.name] = self.coupling.shapes.types.get(info.name, 1)
                shape = self.coupling.shapes.shapes.get(info.name)
                if shape is not None:
                    dims = info.type.tensor_type.shape.dim
                    self.other.shapes[info.name] = tuple(
                        s if s is None or fixed(d) else 2 * s for s, d in zip(shape, dims, strict=True)
                    )
            infer_nodes(self.other, model.proto.graph)
        new = self.other.known.get(name)
        if new is None or new.shape != old.shape:
            return True
        return not np.array_equal(old, new) if index is None else bool(old[index] != new[index])

    def _as_before(self, name: str) -> str:
        """A tensor with the value that `name` has in the original, whatever the dynamic axes: a constant, or the shape
        arithmetic behind it once more, on the original's widths."""
        known = self.coupling.shapes.known
        node = self.makers.get(name)
        if name in self.coupling.shapes.constant or node is None:
            return name
        if not self._varies(name):
            return self._constant(known[name], f"{name}_original")
        if node.op in ("Shape", "Size"):
            sizes = self.fresh(f"{name}_shape")
            self.insert("Shape", [node.input(0)], sizes)
            old = self.coupling.shape(node.input(0)) or ()
            shrunk = [self.shrinks(node.input(0), k) for k in range(len(old))]
            times = np.array([d if s else 1 for s, d in zip(shrunk, old, strict=True)], np.int64)
            by = [self.new_size(node.input(0), k) if s else 1 for k, s in enumerate(shrunk)]
            scaled, whole = self.fresh(f"{name}_scaled"), self.fresh(f"{name}_original")
            self.insert("Mul", [sizes, self._constant(times, f"{name}_widths")], scaled)
            self.insert("Div", [scaled, self._constant(np.array(by, np.int64), f"{name}_kept")], whole)
            if node.op == "Size":
                count = self.fresh(f"{name}_count")
                self.insert("ReduceProd", [whole], count, keepdims=0)
                return count
            if "start" in node.attributes or "end" in node.attributes:
                at = np.arange(len(old))[node.attr("start", 0) : node.attr("end", len(old))]
                part = self.fresh(f"{name}_part")
                self.insert("Gather", [whole, self._constant(at, f"{name}_at")], part)
                return part
            return whole
        copy = onnx.NodeProto()
        copy.CopyFrom(node.proto)
        inputs = [self._as_before(i) if i else "" for i in node.inputs]
        names = {o: self.fresh(f"{o}_original") for o in node.outputs if o}
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(names.get(o, "") for o in node.outputs)
        copy.name = self.fresh(f"{names[name]}_node")
        self.inserted.append(copy)
        self.readers.update(i for i in inputs if i)
        self.shapes.step(Node(copy, self.shapes.opsets.get("", 1)))
        return names[name]
