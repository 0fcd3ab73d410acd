"""Activations of a model for many samples, advanced node by node without holding more than a cut through the graph.

A `Stream` keeps, of every batch, the values of all tensors that cross one place in the graph (the cut). Moving the cut
runs only the nodes between; asking for a tensor runs what lies between the cut and it. Batches move on their own:
layers that see many positions of each sample are asked about the first batches alone, and the others come after them in
one go when they are needed. Where the values that would cross a cut do not fit into the limit, a batch stays where it
is, and what lies behind its cut is run again for every question: less memory, more passes. Weights may change between
two questions; only nodes behind the cut see it.

What runs alone declares its inputs as they are, and of what is inside the rank that the model declares: operators may
need it to load (Resize with computed sizes).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import overload

import numpy as np
import onnx
import onnxruntime as ort

from onnxprune.graph.io import Model, graphs
from onnxprune.graph.links import made_at, reads
from onnxprune.graph.ort import release_memory
from onnxprune.runtime.session import Feeds, session

SEGMENT = 32e6  # bytes of asked tensors of one batch that one session of a walk gives, if more than one tensor
Dims = dict[str, tuple[int | None, ...]]  # sizes of tensors, None where they differ


class Runs(Sequence[Feeds]):
    """Inputs batch by batch, made each time they are asked for. each: samples in a batch, but for the last."""

    def __init__(self, count: int, make: Callable[[int], Feeds], each: int = 1) -> None:
        self.total, self.make, self.each = count, make, each

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, index: int) -> Feeds: ...
    @overload
    def __getitem__(self, index: slice) -> Runs: ...
    def __getitem__(self, index: int | slice) -> Feeds | Runs:
        if isinstance(index, slice):
            chosen = range(self.total)[index]
            return Runs(len(chosen), lambda i: self.make(chosen[i]), self.each)
        if not -self.total <= index < self.total:
            raise IndexError(index)
        return self.make(index % self.total)


def mapped(source: Sequence[Feeds], change: Callable[[Feeds], Feeds]) -> Runs:
    """The same batches, each changed when it is asked for."""
    return Runs(len(source), lambda i: change(source[i]), samples_in(source))


def samples_in(source: Sequence[Feeds]) -> int:
    """Samples in a batch; 1 where that is not said."""
    return source.each if isinstance(source, Runs) else 1


@dataclass(frozen=True)
class Stop:
    """Tensors that are asked for on a walk; position: of the first node that reads them; batches: how many of them are
    asked about, None for all."""

    position: int
    names: tuple[str, ...]
    batches: int | None = None

    def asks(self, batch: int) -> bool:
        """Whether it asks about a batch."""
        return self.batches is None or batch < self.batches


class Stream:
    """See the module's docstring.

    model: its weights may be exchanged while the stream lives (`Model.weights`), its nodes may not.
    source: the inputs of every batch.
    limit: bytes that the values at the cuts may take; threads: of onnxruntime, 0 for its default.
    """

    def __init__(self, model: Model, source: Sequence[Feeds], *, limit: float = float("inf"), threads: int = 0) -> None:
        self.model, self.limit, self.threads = model, limit, threads
        graph = model.proto.graph
        self.nodes = list(graph.node)
        self.at = made_at(self.nodes)
        self.reads = [reads(node) for node in self.nodes]
        self.outputs = [o.name for o in graph.output]
        self.inputs = {i.name: i for i in graph.input if i.name not in model.weights}
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
        self.source = source
        self.cuts = [0] * len(source)
        self.held: list[Feeds | None] = [None] * len(source)  # None where the cut is at the inputs
        self.bytes = [0] * len(source)  # that are held

    def __len__(self) -> int:
        return len(self.source)

    @property
    def cut(self) -> int:
        """Position of the cut of the batch that is furthest behind."""
        return min(self.cuts, default=0)

    def values(self, batch: int) -> Feeds:
        """What is known at a batch's cut."""
        held = self.held[batch]
        return self.source[batch] if held is None else held

    def position(self, name: str) -> int:
        """Index of the node that makes a tensor; -1 for an input."""
        return self.at.get(name, -1)

    def crossing(self, position: int) -> list[str]:
        """Tensors that are made before node `position` and read at it or later."""
        return sorted(n for n in self.varying if self.position(n) < position <= self.last.get(n, -1))

    def advance(self, position: int, batches: int | None = None) -> None:
        """Move the cuts of the first batches (all where None) to right before node `position`, of as many of them as
        the limit allows, if what crosses it is tensors alone."""
        behind = [i for i, cut in enumerate(self.cuts[:batches]) if cut < position]
        names = self.crossing(position) if behind else []
        for i, values in zip(behind, self._computed(behind, names), strict=True):
            size = sum(v.nbytes for v in values.values() if isinstance(v, np.ndarray))
            arrays = all(isinstance(v, np.ndarray) for v in values.values())  # no sequence, no map
            if not arrays or sum(self.bytes) - self.bytes[i] + size > self.limit:
                break
            before = self.held[i] or {}
            # outputs of a run lie in onnxruntime's arena, which could give nothing back around them
            own = {n: v if v is before.get(n) else v.copy() for n, v in values.items()}
            self.held[i], self.bytes[i], self.cuts[i] = own, size, position
            values.clear()  # before the next run needs room
        if behind:
            release_memory()

    def advanced(self, position: int) -> int:
        """How many of the first batches have their cut right before node `position`, or further."""
        return next((i for i, cut in enumerate(self.cuts) if cut < position), len(self))

    def compute(self, names: Iterable[str], batches: Iterable[int] | None = None) -> Iterator[Feeds]:
        """The values of tensors batch by batch, for all where None, from the cuts on and with the weights as they are
        now. Raises ORT_ERRORS where onnxruntime cannot run what lies between."""
        yield from self._computed(range(len(self)) if batches is None else batches, list(dict.fromkeys(names)))

    def _computed(self, batches: Iterable[int], names: Sequence[str]) -> Iterator[Feeds]:
        for _, together in groupby(batches, key=lambda i: self.cuts[i]):
            alike = list(together)
            first = self.values(alike[0])
            missing = [n for n in names if n not in first]
            if not missing:
                yield {n: first[n] for n in names}
                yield from ({n: self.values(i)[n] for n in names} for i in alike[1:])
                continue
            held = [v for v in (self.held[i] for i in alike) if v is not None]
            part, needed = self.between(set(first), missing, held)
            with session(part, threads=self.threads) as s:
                for i in alike:
                    values = first if i == alike[0] else self.values(i)
                    given = {n: values[n] for n in needed}
                    passed = {n: values[n] for n in names if n in values}
                    yield {**passed, **dict(zip(missing, s.run(missing, given), strict=True))}

    def walk(self, stops: Sequence[Stop], batches: Iterable[int]) -> Iterator[tuple[int, int, Feeds]]:
        """Batch, number of the stop and its values, batch by batch from the inputs to the last stop that asks about
        it, every node run once and nothing kept: one pass for many tensors.

        stops: in the order of their positions; batches: in rising order. Raises ORT_ERRORS.
        """
        sizes: dict[int, float] = {}  # stop -> bytes of a batch of what it asks for
        closed: set[int] = set()  # stops at which no cut can be, as what crosses there is no tensor
        for asking, together in groupby(batches, key=lambda i: [k for k, s in enumerate(stops) if s.asks(i)]):
            with ExitStack() as opened:
                legs: list[_Leg] = []
                for i in together:
                    known = all(k in sizes for k in asking)
                    if not legs or (known and len(legs) == len(asking)):
                        opened.close()
                        segments = _segments(asking, sizes, closed) if known else [[k] for k in asking]
                        legs = [_Leg(self, [stops[k] for k in part], part, opened) for part in segments]
                    values = self.source[i]
                    for leg in legs:
                        found, crossing = leg.run(values)
                        for k in leg.numbers:
                            asked = {n: found[n] for n in stops[k].names}
                            sizes.setdefault(k, sum(v.nbytes for v in asked.values()))
                            yield i, k, asked
                        if all(isinstance(v, np.ndarray) for v in crossing.values()):
                            values = crossing
                        else:
                            closed.add(leg.numbers[-1])

    def between(
        self, known: set[str], names: Sequence[str], values: Sequence[Feeds], dims: Dims | None = None
    ) -> tuple[Model, list[str]]:
        """The nodes that make `names` of the tensors `known`, as a model, and which of those are its inputs.

        values: what the known tensors are in the batches to come, () at the inputs of the model; dims: sizes that are
        declared instead of theirs.
        """
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
        graph.input.extend(self.taken(name, values) for name in inside)
        for info in graph.input:
            for axis, size in enumerate((dims or {}).get(info.name, ())):
                if size is None:
                    info.type.tensor_type.shape.dim[axis].Clear()
        made = {o for i in chosen for o in self.nodes[i].output}.difference(names, inside)
        graph.value_info.extend(self.ranked(name) for name in sorted(made & self.declared.keys()))
        graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
        proto = onnx.ModelProto(ir_version=max(self.model.proto.ir_version, 4), graph=graph)
        proto.opset_import.extend(self.model.proto.opset_import)
        proto.functions.extend(self.model.proto.functions)
        return Model(proto, dict(self.model.weights)), inside

    def taken(self, name: str, batches: Sequence[Feeds]) -> onnx.ValueInfoProto:
        """What a part declares of an input: as the model does at its inputs; behind them type, rank and sizes of the
        values, of a size that is not the same in every batch the symbol that the model declares."""
        if not batches:
            own_input: onnx.ValueInfoProto = self.inputs[name]
            return own_input
        values = [np.asarray(batch[name]) for batch in batches]
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


class _Leg:
    """Part of a walk in one session: from what is known to some stops, and what crosses behind the last of them."""

    def __init__(self, stream: Stream, stops: Sequence[Stop], numbers: Sequence[int], opened: ExitStack) -> None:
        self.stream, self.numbers, self.opened = stream, numbers, opened
        self.asked = list(dict.fromkeys(n for stop in stops for n in stop.names))
        self.crossing = stream.crossing(stops[-1].position)
        self.session: ort.InferenceSession | None = None
        self.missing: list[str] = []
        self.needed: list[str] = []
        self.dims: Dims = {}

    def run(self, values: Feeds) -> tuple[Feeds, Feeds]:
        """What is asked of a batch, and what crosses behind."""
        wished = list(dict.fromkeys([*self.asked, *self.crossing]))
        missing = [n for n in wished if n not in values]
        shapes = {n: np.shape(v) for n, v in values.items()}
        if missing and (missing != self.missing or not self._fits(shapes)):
            self._open(missing, values, shapes)
        outputs = self.session.run(missing, {n: values[n] for n in self.needed}) if missing and self.session else []
        found = {**{n: values[n] for n in wished if n in values}, **dict(zip(missing, outputs, strict=True))}
        return {n: found[n] for n in self.asked}, {n: found[n] for n in self.crossing}

    def _fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return self.session is not None and all(
            len(shapes[n]) == len(self.dims[n])
            and all(d in (None, s) for d, s in zip(self.dims[n], shapes[n], strict=True))
            for n in self.needed
        )

    def _open(self, missing: list[str], values: Feeds, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Open the session; an axis that has had another size before is declared without one."""
        dims: Dims = {}
        for n, shape in shapes.items():
            before = self.dims.get(n, shape)
            same = len(before) == len(shape)
            dims[n] = tuple(d if d == s else None for d, s in zip(before, shape, strict=True)) if same else shape
        at_inputs = set(values) <= set(self.stream.inputs)
        part, self.needed = self.stream.between(set(values), missing, [] if at_inputs else [values], dims)
        self.missing, self.dims = missing, dims
        self.session = self.opened.enter_context(session(part, threads=self.stream.threads))


def _segments(asking: Sequence[int], sizes: Mapping[int, float], closed: Container[int]) -> list[list[int]]:
    """Stops that one session serves, so that what it gives is not too much at once."""
    out: list[list[int]] = []
    held = 0.0
    for k in asking:
        if out and (held + sizes[k] <= SEGMENT or out[-1][-1] in closed):
            out[-1].append(k)
            held += sizes[k]
        else:
            out.append([k])
            held = sizes[k]
    return out
