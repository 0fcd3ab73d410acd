"""Activations of a model for many samples, advanced node by node without holding more than a cut through the graph.

A `Stream` keeps the values of all tensors that cross one place in the graph (the cut), for every batch. Moving the cut
runs only the nodes between; asking for a tensor runs what lies between the cut and it. Where the values that would
cross a cut do not fit into the limit, the cut stays where it is, and what lies behind it is run again for every
question: less memory, more passes. Weights may change between two questions; only nodes behind the cut see it.

What runs alone declares its inputs as they are, and of what is inside the rank that the model declares: operators may
need it to load (Resize with computed sizes).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx

from onnxprune.graph.io import Model, graphs
from onnxprune.graph.links import made_at, reads
from onnxprune.runtime.session import Feeds, session


class Stream:
    """See the module's docstring.

    model: its weights may be exchanged while the stream lives (`Model.weights`), its nodes may not.
    source: the inputs of every batch.
    limit: bytes that the values at the cut may take; threads: of onnxruntime, 0 for its default.
    """

    def __init__(self, model: Model, source: Sequence[Feeds], *, limit: float = float("inf"), threads: int = 0) -> None:
        self.model, self.limit, self.threads = model, limit, threads
        graph = model.proto.graph
        self.nodes = list(graph.node)
        self.at = made_at(self.nodes)
        self.reads = [reads(node) for node in self.nodes]
        self.outputs = [o.name for o in graph.output]
        self.inputs = [i.name for i in graph.input if i.name not in model.weights]
        self.varying = set(self.inputs)  # tensors that depend on the inputs
        self.last: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            if self.varying & self.reads[i]:
                self.varying.update(o for o in node.output if o)
            for name in self.reads[i]:
                self.last[name] = i
        self.last.update(dict.fromkeys(self.outputs, len(self.nodes)))
        self.initializers = {t.name: t for g in graphs(graph) for t in g.initializer}
        self.declared = {
            v.name: v.type.tensor_type
            for v in (*graph.value_info, *graph.output, *graph.input)
            if v.type.tensor_type.elem_type and v.type.tensor_type.HasField("shape")
        }
        self.cut = 0
        self.state: list[Feeds] = list(source)

    def position(self, name: str) -> int:
        """Index of the node that makes a tensor; -1 for an input."""
        return self.at.get(name, -1)

    def crossing(self, position: int) -> list[str]:
        """Tensors that are made before node `position` and read at it or later."""
        return sorted(n for n in self.varying if self.position(n) < position <= self.last.get(n, -1))

    def advance(self, position: int) -> None:
        """Move the cut to right before node `position`, if what crosses it is tensors alone and fits into the limit."""
        if position <= self.cut or not self.state:
            return
        names = self.crossing(position)
        values = self.compute(names)
        first = next(values)
        arrays = all(isinstance(v, np.ndarray) for v in first.values())  # no sequence, no map
        if not arrays or sum(v.nbytes for v in first.values()) * len(self.state) > self.limit:
            return
        self.state[0] = first  # a batch is computed of its own values alone
        for i, batch in enumerate(values, 1):
            self.state[i] = batch
        self.cut = position

    def compute(self, names: Iterable[str]) -> Iterator[Feeds]:
        """The values of tensors, batch by batch, from the cut on and with the weights as they are now.

        Raises ORT_ERRORS where onnxruntime cannot run what lies between.
        """
        names = list(dict.fromkeys(names))
        known = set(self.state[0]) if self.state else set()
        missing = [n for n in names if n not in known]
        if not missing:
            yield from ({n: values[n] for n in names} for values in self.state)
            return
        part, needed = self.between(known, missing)
        with session(part, threads=self.threads) as s:
            for values in self.state:
                outputs = s.run(missing, {n: values[n] for n in needed})
                yield {**{n: values[n] for n in names if n in known}, **dict(zip(missing, outputs, strict=True))}

    def between(self, known: set[str], names: Sequence[str]) -> tuple[Model, list[str]]:
        """The nodes that make `names` of the tensors `known`, as a model, and which of those are its inputs."""
        todo, chosen, needed, used = list(names), set(), set(), set()
        while todo:
            name = todo.pop()
            if name in known and name not in names:
                needed.add(name)
            elif name in self.at:
                if self.at[name] not in chosen:
                    chosen.add(self.at[name])
                    todo += [r for r in self.reads[self.at[name]] if r]
            elif name in self.initializers:
                used.add(name)
        graph = onnx.GraphProto(name="part")
        graph.node.extend(self.nodes[i] for i in sorted(chosen))
        graph.initializer.extend(self.initializers[n] for n in sorted(used))
        inside = sorted(needed)
        graph.input.extend(self.taken(name) for name in inside)
        made = {o for i in chosen for o in self.nodes[i].output}.difference(names, inside)
        graph.value_info.extend(self.ranked(name) for name in sorted(made & self.declared.keys()))
        graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
        proto = onnx.ModelProto(ir_version=max(self.model.proto.ir_version, 4), graph=graph)
        proto.opset_import.extend(self.model.proto.opset_import)
        proto.functions.extend(self.model.proto.functions)
        return Model(proto, dict(self.model.weights)), inside

    def taken(self, name: str) -> onnx.ValueInfoProto:
        """What a part declares of an input: type, rank and sizes of the values at the cut; of a size that is not the
        same in every batch the symbol that the model declares."""
        values = [np.asarray(batch[name]) for batch in self.state]
        info = onnx.ValueInfoProto(name=name)
        own = info.type.tensor_type
        own.elem_type = onnx.helper.np_dtype_to_tensor_dtype(values[0].dtype)
        if len({v.ndim for v in values}) > 1:
            return info
        declared = self.declared[name].shape.dim if name in self.declared else ()
        own.shape.SetInParent()
        for axis in range(values[0].ndim):
            dim, sizes = own.shape.dim.add(), {v.shape[axis] for v in values}
            if len(sizes) == 1:
                dim.dim_value = sizes.pop()
            elif len(declared) == values[0].ndim and declared[axis].dim_param:
                dim.dim_param = declared[axis].dim_param
        return info

    def ranked(self, name: str) -> onnx.ValueInfoProto:
        """Type and rank that the model declares of a tensor inside a part; its sizes may be those of other batches."""
        info = onnx.ValueInfoProto(name=name)
        info.type.tensor_type.elem_type = self.declared[name].elem_type
        info.type.tensor_type.shape.SetInParent()
        for _ in self.declared[name].shape.dim:
            info.type.tensor_type.shape.dim.add()
        return info
