"""Shapes of every tensor, and the values of the small integer tensors that shapes are computed from.

onnx infers one node at a time; between the nodes we evaluate shape arithmetic (Shape, Gather, Concat, ...)
with concrete numbers, so that an unsimplified export needs no constant folding first; a node is evaluated once its
inferred shapes say that the result is small. Dynamic input axes are given
a concrete size for the analysis: they belong to the graph's inputs, which are pinned, so the size chosen does not
change what may be removed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.limits import LIMIT, PICKED, Kind, TooLarge, allowance, evaluated, nbytes, result_bytes
from onnxprune.graph.node import Node, opsets, walk
from onnxprune.graph.ort import ORT_ERRORS, base_options, open_session
from onnxprune.graph.protos import overridable

Shape = tuple[int | None, ...]

FOLD_LIMIT = 4096  # elements; larger tensors are data, not shape arithmetic
FOLDED = LIMIT // 8  # bytes of all values that are evaluated together
SIZES = (224, 64, 320, 32, 512, 16, 576, 8, 48)  # tried in this order for dynamic axes that are not the batch
SEQUENCE_SIZES = (24, 64, 576, 512, 16, 128, 8, 1)  # the same for inputs of rank 3 or less
UNKNOWN: tuple[type[Exception], ...] = (*ORT_ERRORS, KeyError)  # KeyError: a type that numpy lacks
NOT_FOLDED = {"QuantizeLinear", "DequantizeLinear", "OneHot", "Pad", "EyeLike", "Einsum"}


@dataclass
class Shapes:
    """What is known of every tensor, by name.

    shapes: `(d0, d1, ...)`, `None` for an axis of unknown size; a tensor of unknown rank is absent.
    types:  ONNX element type (`TensorProto.FLOAT`, ...).
    known:  values of small tensors that depend on constants and shapes alone.
    constant: names of all tensors that depend on constants alone.
    vast: constants that are too large to be computed, and what is computed of them.
    overridable: constants that a caller may replace with others of the same shape, and what is computed of them.
    """

    model: Model
    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    known: dict[str, Array] = field(default_factory=dict)
    constant: set[str] = field(default_factory=set)
    vast: set[str] = field(default_factory=set)
    overridable: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.opsets = opsets(self.model.proto)
        self._imports = list(self.model.proto.opset_import)
        self._declared = _declared(self.model.proto.graph)
        self._folded = 0  # bytes
        self.allowance = allowance(self.model.proto)
        self.overridable |= overridable(self.model.proto)
        for name, w in self.model.weights.items():
            self.shapes[name] = w.shape
            self.types[name] = onnx.helper.np_dtype_to_tensor_dtype(w.dtype)
            self.constant.add(name)
            if w.size <= FOLD_LIMIT:
                self.known[name] = np.asarray(w)

    def step(self, node: Node) -> None:
        """Infer the outputs of one node from what is known of its inputs."""
        outputs = [o for o in node.outputs if o]
        if node.op == "Constant":
            return
        constant = bool(node.inputs) and all(i in self.constant for i in node.inputs if i) and not [*node.bodies()]
        if constant:
            self.constant.update(outputs)
        if self._measure(node):
            return
        if node.op in ("If", "Loop"):
            self._leave(node)
            return
        try:
            inferred = self._infer(node)
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as e:
            self.problems.append(f"{node.label}: {str(e).splitlines()[0]}")
            inferred = {}
        folded = self._fold(node, inferred)
        if (constant or folded) and not self.overridable.isdisjoint(node.inputs):
            self.overridable.update(outputs)
        if folded:
            return
        for o in outputs:
            if o in inferred and inferred[o].HasField("tensor_type"):
                self._set(o, inferred[o])
            if o not in self.shapes and o in self._declared:
                self._set(o, self._declared[o])
        if node.op == "Reshape" and not self._fits(node):
            self.problems.append(f"{node.label}: {node.output(0)} does not hold as many elements as {node.input(0)}")
        if constant and (self.vast.intersection(node.inputs) or self._size(outputs) > self.allowance):
            self.vast.update(outputs)

    def value(self, name: str) -> Array | None:
        """What a constant holds that is stored, or small and computed; None for what a caller may override."""
        return None if name in self.overridable else self.model.weights.get(name, self.known.get(name))

    def _whole(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor whose sizes are all known."""
        return tuple(d or 0 for d in self.shapes[name])

    def _size(self, names: Iterable[str]) -> int:
        """Bytes of tensors; what is not known counts nothing."""
        return sum(nbytes(self.shapes.get(n), self.types.get(n, onnx.TensorProto.FLOAT)) or 0 for n in names)

    def _fits(self, node: Node) -> bool:
        x, y = self.shapes.get(node.input(0), (None,)), self.shapes.get(node.output(0), (None,))
        return None in x or None in y or math.prod(d or 0 for d in x) == math.prod(d or 0 for d in y)

    def forget_long(self, most: int) -> None:
        """Axes count as of unknown size, the longest first, until all others have at most `most` indices together."""
        lengths = np.array([d for shape in self.shapes.values() for d in shape if d is not None and d > 1], np.float64)
        lengths = np.sort(lengths)
        fitting = int(np.searchsorted(np.cumsum(lengths), most, side="right"))
        if fitting == len(lengths):
            return
        least = lengths[fitting]
        for name, shape in self.shapes.items():
            self.shapes[name] = tuple(None if d is not None and d >= least else d for d in shape)
        self.problems.append(f"axes of {least:.0f} indices and more are not followed: there are too many of them")

    def forget_declared(self, names: Iterable[str]) -> None:
        """Declared shapes of these tensors hold no longer."""
        for name in names:
            self._declared.pop(name, None)

    def _set(self, name: str, value: onnx.TypeProto) -> None:
        if value.tensor_type.elem_type:
            self.types[name] = value.tensor_type.elem_type
        shape = _dims(value)
        if shape is not None:
            self.shapes[name] = shape

    def _measure(self, node: Node) -> bool:
        """Shape and Size, which read no values; true if the output is now known."""
        shape = self.shapes.get(node.input(0), (None,))
        if node.op not in ("Shape", "Size") or None in shape:
            return False
        if node.op == "Shape":
            value = np.array(shape, np.int64)[node.attr("start", 0) : node.attr("end", len(shape))]
        else:
            count = math.prod(d or 0 for d in shape)
            if count > np.iinfo(np.int64).max:
                return False
            value = np.array(count, np.int64)
        return self._know(node, [value])

    def _fold(self, node: Node, inferred: Mapping[str, onnx.TypeProto]) -> bool:
        """Evaluate shape arithmetic whose result is small; true if all outputs are now known."""
        if not evaluated(node) or node.op in NOT_FOLDED or "::" in node.op or not node.inputs:
            return False
        if not all(i in self.known for i in node.inputs if i) or not self._small(node, inferred):
            return False
        try:
            feeds = {i: self.known[i] for i in node.inputs if i}
            return self._know(node, evaluate_node(node, feeds, self._imports))
        except Exception as e:  # the reference implementation is allowed to lack an operator
            self.problems.append(f"{node.label}: not evaluated ({type(e).__name__})")
            return False

    def _small(self, node: Node, inferred: Mapping[str, onnx.TypeProto]) -> bool:
        """Whether the outputs have at most FOLD_LIMIT elements each."""
        first = self.known[node.input(0)] if node.input(0) else None
        read = None if first is None else (first.shape, onnx.TensorProto.UINT8)
        for o in (o for o in node.outputs if o):
            shape = _dims(inferred[o]) if o in inferred else None
            count = result_bytes(node, read, [(shape, onnx.TensorProto.UINT8)])  # elements, counted as bytes
            if count is None or count > FOLD_LIMIT:
                return False
        if node.op == "Tile":  # onnx multiplies in 64 bits
            repeats = self.known[node.inputs[-1]].ravel().tolist()
            return math.prod(max(int(r), 1) for r in repeats) * self.known[node.inputs[0]].size <= FOLD_LIMIT
        return True

    def _know(self, node: Node, values: list[Array]) -> bool:
        if self._folded + sum(v.nbytes for v in values) > FOLDED:
            return False
        for o, v in zip(node.outputs, values, strict=False):
            self._folded += v.nbytes
            self.shapes[o] = v.shape
            self.types[o] = onnx.helper.np_dtype_to_tensor_dtype(v.dtype)
            self.known[o] = v
        return True

    def type_proto(self, name: str) -> onnx.TypeProto:
        """The tensor's type and shape in ONNX's own form."""
        return onnx.helper.make_tensor_type_proto(
            self.types.get(name, onnx.TensorProto.FLOAT), self.shapes.get(name), shape_denotation=None
        )

    def _infer(self, node: Node) -> Mapping[str, onnx.TypeProto]:
        proto, domain = node.proto, node.proto.domain
        version = self.opsets.get("" if domain == "ai.onnx" else domain, 1)
        if node.op in WIDTHS and node.input(0) in self.shapes:
            shape = (*self.shapes[node.input(0)][:-1], int(node.attr(WIDTHS[node.op], 0)))
            return {node.key: onnx.helper.make_tensor_type_proto(self.types[node.input(0)], shape)}
        like = LIKE.get(node.op)
        if like is not None:
            proto, domain, version = onnx.NodeProto(), "", self.opsets.get("", 1)
            proto.CopyFrom(node.proto)
            proto.op_type, proto.domain = like[0], ""
            del proto.input[like[1] :]
            keep = onnx.defs.get_schema(like[0], version, "").attributes
            attributes = [a for a in node.proto.attribute if a.name in keep]
            del proto.attribute[:]
            proto.attribute.extend(attributes)
        try:
            schema = onnx.defs.get_schema(proto.op_type, version, "" if domain == "ai.onnx" else domain)
        except onnx.defs.SchemaError:
            return self._infer_by_loading(node)
        data = {i: numpy_helper.from_array(self.known[i], i) for i in node.inputs if i in self.known}
        return onnx.shape_inference.infer_node_outputs(
            schema,
            proto,
            {i: self.type_proto(i) for i in proto.input if i},
            input_data=data,
            opset_imports=self._imports,
            ir_version=self.model.proto.ir_version,
        )

    def _infer_by_loading(self, node: Node) -> Mapping[str, onnx.TypeProto]:
        """An operator that onnx has no schema for (com.microsoft, ...): what onnxruntime infers when it loads it alone.

        Where it infers nothing and the result cannot be large, the node is run, on zeros.
        """
        inputs = list(dict.fromkeys(i for i in node.inputs if i))
        if any(i not in self.shapes or None in self.shapes[i] for i in inputs):
            return {}
        kinds: dict[str, Kind] = {i: (self.shapes[i], self.types[i]) for i in inputs}
        try:
            session, outputs = _load(
                node, kinds, {i: self.known[i] for i in inputs if i in self.known}, self.model.proto
            )
            if node.op in PICKED and self._size(inputs) <= LIMIT:
                feeds = {i: np.zeros(self._whole(i), onnx.helper.tensor_dtype_to_np_dtype(kinds[i][1])) for i in inputs}
                values = session.run(list(outputs), {i.name: feeds[i.name] for i in session.get_inputs()})
                outputs = {o: (np.shape(v), code) for v, (o, (_, code)) in zip(values, outputs.items(), strict=True)}
        except UNKNOWN as e:  # unknown shapes pin, and are reported
            self.problems.append(f"{node.label}: onnxruntime cannot run {node.op} ({type(e).__name__})")
            return {}
        return {
            o: onnx.helper.make_tensor_type_proto(code, shape)
            for o, (shape, code) in outputs.items()
            if shape is not None and None not in shape
        }

    def enter(self, node: Node, body: onnx.GraphProto) -> None:
        """Give the inputs of a body the types of what the outer node feeds them."""
        for k, info in enumerate(body.input):
            self._set(info.name, info.type)
            outer = node.input(k)
            if node.op == "Loop" and k < 2:
                self.shapes[info.name] = ()
            elif node.op in ("Loop", "Scan") and outer in self.types:
                self.types[info.name] = self.types[outer]
                if node.op == "Loop" and info.name not in self.shapes and outer in self.shapes:
                    self.shapes[info.name] = self.shapes[outer]

    def _leave(self, node: Node) -> None:
        """Outputs of If and Loop have the shapes of what their bodies return; where branches differ, None."""
        bodies = list(node.bodies())
        condition = self.value(node.input(0)) if node.op == "If" else None
        if condition is not None:
            bodies = [node.attr("then_branch" if condition.any() else "else_branch")]
        for k, o in enumerate(node.outputs):
            returned = [b.output[k + (node.op == "Loop")].name for b in bodies]
            if not o or any(r not in self.shapes for r in returned):
                continue
            shapes = [self.shapes[r] for r in returned]
            self.types[o] = self.types.get(returned[0], onnx.TensorProto.FLOAT)
            if node.op == "Loop" and k >= len(node.inputs) - 2:
                self.shapes[o] = (None, *shapes[0])
            elif node.op == "Loop" and shapes[0] != self.shapes.get(node.input(k + 2)):
                continue
            elif len({len(s) for s in shapes}) == 1:
                self.shapes[o] = tuple(d[0] if len(set(d)) == 1 else None for d in zip(*shapes, strict=True))


LIKE = {  # operators whose shapes onnx cannot infer -> one with the same shapes, and how many inputs it reads
    "Celu": ("Relu", 1),
    "GroupNormalization": ("Relu", 1),
    "MeanVarianceNormalization": ("Relu", 1),
    "com.microsoft::FusedConv": ("Conv", 3),
    "com.microsoft::NhwcFusedConv": ("Conv", 3),
    "com.microsoft::FusedGemm": ("Gemm", 3),
    "com.microsoft::BiasGelu": ("Add", 2),
    "com.microsoft::FastGelu": ("Relu", 1),
    "com.microsoft::QuickGelu": ("Relu", 1),
    "com.microsoft::Gelu": ("Relu", 1),
    "com.microsoft::QMoE": ("Relu", 1),
    "com.microsoft::DequantizeLinear": ("DequantizeLinear", 3),
    "com.microsoft::QuantizeLinear": ("QuantizeLinear", 3),
    "ImageScaler": ("Identity", 1),
    "Affine": ("Identity", 1),
}
WIDTHS = {"com.microsoft::MatMulNBits": "N"}  # operators that change the last axis alone -> attribute that has its size


def infer_nodes(shapes: Shapes, graph: onnx.GraphProto) -> None:
    """Infer the outputs of every node in order, those of its bodies' nodes first; shapes of inputs must be there."""
    for node in walk(graph, shapes.opsets):
        for body in node.bodies():
            shapes.enter(node, body)
            infer_nodes(shapes, body)
        shapes.step(node)


def evaluate_node(node: Node, feeds: Mapping[str, Array], imports: Iterable[onnx.OperatorSetIdProto]) -> list[Array]:
    """The outputs of one node by onnx's reference implementation; raises whatever that raises, also where it lacks the
    operator. feeds: input name -> value; imports: opsets of the model."""
    infos = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in feeds.items()
    ]
    outs = [onnx.ValueInfoProto(name=o) for o in node.outputs if o]
    graph = onnx.helper.make_graph([node.proto], "one", infos, outs)
    model = onnx.helper.make_model(graph, opset_imports=list(imports))
    return [np.asarray(v) for v in ReferenceEvaluator(model).run(None, dict(feeds))]


def run_node(node: Node, feeds: Mapping[str, Array], model: onnx.ModelProto) -> list[Array]:
    """The outputs of one node by onnxruntime; feeds: input name -> value.

    Raises `TooLarge` where inputs and results together are more than `allowance` of the model, or may be; and
    ORT_ERRORS.
    """
    if not evaluated(node):
        raise TooLarge(f"{node.op} may take more memory than its shapes tell")
    kinds: dict[str, Kind] = {n: (v.shape, onnx.helper.np_dtype_to_tensor_dtype(v.dtype)) for n, v in feeds.items()}
    session, outputs = _load(node, kinds, {n: v for n, v in feeds.items() if v.size <= FOLD_LIMIT}, model)
    need = result_bytes(node, kinds.get(node.input(0)), outputs.values())
    read = sum(v.nbytes for v in feeds.values())
    if need is None or (need + read > LIMIT and need + read > allowance(model)):
        raise TooLarge(f"{node.op} would make {'results of unknown size' if need is None else f'{need} bytes'}")
    result: list[Array] = session.run(list(outputs), {i.name: feeds[i.name] for i in session.get_inputs()})
    return result


def _load(
    node: Node, kinds: Mapping[str, Kind], known: Mapping[str, Array], model: onnx.ModelProto
) -> tuple[ort.InferenceSession, dict[str, Kind]]:
    """A session of one node, and what onnxruntime infers of its outputs, by name; nothing is computed.

    kinds: of its inputs, by name; known: values of those that a shape may depend on. Raises ORT_ERRORS.
    """
    make = onnx.helper.make_tensor_value_info
    infos = [make(name, code, shape) for name, (shape, code) in kinds.items() if name not in known]
    stored = [numpy_helper.from_array(np.asarray(v, order="C"), name) for name, v in known.items()]
    outs = [o for o in node.outputs if o]
    ranks = [onnx.helper.make_node("Shape", [o], [f"{o}:shape"]) for o in outs]  # a scalar, or nobody knows
    shown = [onnx.ValueInfoProto(name=name) for name in (*outs, *(r.output[0] for r in ranks))]
    graph = onnx.helper.make_graph([node.proto, *ranks], "one", infos, shown, stored)
    imports = [o for o in model.opset_import if o.domain in ("", "ai.onnx", node.proto.domain)]
    one = onnx.helper.make_model(graph, opset_imports=imports, ir_version=max(model.ir_version, 4))
    options = base_options(1, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)  # constants are not folded
    session = open_session(one.SerializeToString(), options)
    results = {o.name: o for o in session.get_outputs()}
    outputs: dict[str, Kind] = {}
    for o, rank in zip(outs, ranks, strict=True):
        sized = isinstance(results[rank.output[0]].shape[0], int)
        shape = tuple(d if isinstance(d, int) else None for d in results[o].shape) if sized else None
        outputs[o] = shape, ORT_TYPES.get(results[o].type, onnx.TensorProto.UNDEFINED)
    return session, outputs


ORT_TYPES = {  # of onnxruntime -> of onnx
    f"tensor({name.lower()})": code for name, code in onnx.TensorProto.DataType.items()
}


def infer(model: Model, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Shapes:
    """Shapes of all tensors, with dynamic input axes set to sizes with which the graph is consistent.

    input_shapes: input name -> concrete shape, overriding the declared one.
    Raises `OptionError` where a given shape does not fit.
    """
    best: Shapes | None = None
    for concrete in concrete_inputs(model, input_shapes):
        shapes = Shapes(model)
        for info in graph_inputs(model):
            shapes._set(info.name, info.type)
            if info.name in concrete:
                shapes.shapes[info.name] = concrete[info.name]
        infer_nodes(shapes, model.proto.graph)
        if best is None or len(shapes.problems) < len(best.problems):
            best = shapes
        if not best.problems:
            break
    assert best is not None
    return best


def concrete_inputs(
    model: Model, input_shapes: Mapping[str, tuple[int, ...]] | None = None, *, batch: int = 1
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Concrete shapes for all inputs, guess after guess where axes are dynamic; at least one.

    A symbol has one size wherever it stands; where it stands more than once, guesses without this come last, for what
    exporters write as a symbol may be none. batch: size of dynamic batch axes.
    Raises `OptionError` where a given shape does not fit.
    """
    given = dict(input_shapes or {})
    inputs = graph_inputs(model)
    sizes = given_sizes(inputs, given)
    symbols = [symbol for i in inputs for symbol in map(symbol_of, i.type.tensor_type.shape.dim) if symbol]
    done: list[dict[str, tuple[int, ...]]] = []
    for tied in (True, False) if len(set(symbols)) < len(symbols) else (True,):
        for attempt in range(len(SIZES)):
            known = {symbol: (size, False) for symbol, size in sizes.items()} if tied else None
            shapes = [(i.name, *_concrete(i, given.get(i.name), attempt, batch, known)) for i in inputs]
            guess = {name: shape for name, shape, _ in shapes if shape is not None}
            guess = _with_caches(inputs, given, sizes, guess)
            if guess not in done:
                yield guess
            done.append(guess)
            if not any(guessed for _, _, guessed in shapes):
                break


def given_sizes(inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Symbol -> its size, as the shapes say that are given for inputs.

    Raises `OptionError` for a shape that does not fit its input, and for two that give one symbol different sizes.
    """
    infos = {i.name: i for i in inputs}
    said: dict[str, tuple[int, str]] = {}
    for name, shape in given.items():
        if name not in infos:
            raise OptionError(f"--input-shape {name}: no such input; the model has {', '.join(infos)}")
        typed = f"--input-shape {name}:{','.join(map(str, shape))}"
        t = infos[name].type.tensor_type
        if not infos[name].type.HasField("tensor_type") or not t.HasField("shape"):
            continue
        dims = t.shape.dim
        fits = len(shape) == len(dims) and all(
            not fixed(d) or d.dim_value == g for d, g in zip(dims, shape, strict=True)
        )
        if not fits:
            declared = ",".join(str(d.dim_value) if fixed(d) else d.dim_param or "?" for d in dims)
            raise OptionError(f"{typed} does not fit the model's {declared}")
        for d, size in zip(dims, shape, strict=True):
            before, where = said.setdefault(symbol_of(d), (size, typed)) if symbol_of(d) else (size, typed)
            if before != size:
                both = where if where == typed else f"{where} and {typed}"
                raise OptionError(
                    f"{both}: the axis {d.dim_param} would have {before} and {size}, and a symbol has one size"
                )
    return {symbol: size for symbol, (size, _) in said.items()}


NO_SYMBOL = {"?", "*", "-1", "None", "none"}  # what exporters write for axes of which they know nothing


def symbol_of(dim: onnx.TensorShapeProto.Dimension) -> str:
    """The symbol of a dynamic axis, "" where it has none."""
    return "" if fixed(dim) or dim.dim_param in NO_SYMBOL else dim.dim_param


PAST = 7  # positions in a key-value cache, where that is dynamic


def _with_caches(
    inputs: Sequence[onnx.ValueInfoProto],
    given: Mapping[str, tuple[int, ...]],
    known: Mapping[str, int],
    shapes: dict[str, tuple[int, ...]],
) -> dict[str, tuple[int, ...]]:
    """Lengths that fit each other where keys and values of earlier steps are inputs, (..., heads, past, dimensions):
    that of the new tokens, that of the past, and their sum for a mask over both. known: sizes that are given."""
    dims = {i.name: i.type.tensor_type.shape.dim for i in inputs}

    def is_cache(d: Sequence[onnx.TensorShapeProto.Dimension]) -> bool:
        return len(d) in (4, 5) and fixed(d[-1]) and fixed(d[-3]) and bool(d[-2].dim_param)

    caches = {d[-2].dim_param for d in dims.values() if is_cache(d)}
    tokens = [
        i.name for i in inputs
        if len(dims[i.name]) == 2 and i.type.tensor_type.elem_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    ]  # fmt: skip
    if not caches or not tokens or tokens[0] not in shapes:
        return shapes
    new = shapes[tokens[0]][1]
    sizes = dict.fromkeys(caches, PAST) | {dims[tokens[0]][1].dim_param: new} | dict(known)
    for name in tokens:
        symbol = dims[name][1].dim_param
        if symbol and symbol not in sizes:
            sizes[symbol] = max(sizes[cache] for cache in caches) + new
    return {
        name: shape if name in given else tuple(sizes.get(d.dim_param, n) if k and d.dim_param else n for k, (d, n) in
                    enumerate(zip(dims[name], shape, strict=True)))
        for name, shape in shapes.items()
    }  # fmt: skip


def graph_inputs(model: Model) -> list[onnx.ValueInfoProto]:
    """The inputs that a user feeds: without initializers that are listed as inputs."""
    return [i for i in model.proto.graph.input if i.name not in model.weights]


def fixed(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """True for an axis of declared size; old exporters write -1 for a dynamic one."""
    return dim.HasField("dim_value") and dim.dim_value >= 0


def _concrete(
    info: onnx.ValueInfoProto,
    given: tuple[int, ...] | None,
    attempt: int,
    batch: int,
    known: dict[str, tuple[int, bool]] | None,
) -> tuple[tuple[int, ...] | None, bool]:
    """A concrete shape for an input (or None), and whether any axis had to be guessed.

    known: symbol -> size, and whether that was guessed; what is guessed is added. None: every axis is on its own.
    """
    t = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not t.HasField("shape"):
        return given, given is None
    dims = t.shape.dim
    if given is not None:
        return given, False
    sizes = SIZES if len(dims) >= 4 else SEQUENCE_SIZES
    shape = []
    guessed = False
    for k, d in enumerate(dims):
        size, unsure = d.dim_value, False
        if not fixed(d):
            # a batch also of a recurrent state, (layers, batch, hidden)
            first = k == 0 or "batch" in d.dim_param.lower() or (k == 1 and len(dims) == 3 and fixed(dims[0]))
            size, unsure = (batch, False) if first else (sizes[min(attempt, len(sizes) - 1)], True)
            if known is not None and symbol_of(d):
                size, unsure = known.setdefault(symbol_of(d), (size, unsure))
        shape.append(size)
        guessed |= unsure
    return tuple(shape), guessed


def _dims(value: onnx.TypeProto) -> Shape | None:
    """Sizes of a tensor's axes, None for one that is not fixed; None where the rank is unknown."""
    t = value.tensor_type
    return tuple(d.dim_value if fixed(d) else None for d in t.shape.dim) if t.HasField("shape") else None


def _declared(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    return {v.name: v.type for v in [*graph.value_info, *graph.output] if v.type.HasField("tensor_type")}
