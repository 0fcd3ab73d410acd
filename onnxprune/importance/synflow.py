"""Synaptic flow: a model through which ones flow along the magnitudes of its weights (Tanaka et al. 2020, SynFlow).

R is the sum of its outputs, w dR/dw the part of it that flows through a weight, and g dR/dg through a unit. Nothing but
weights is left of the model: biases are zero, normalisations are their scales, activations and Softmax let pass what
comes. So that R is proportional to each layer's weights whatever the graph, a product of two activations is its root
(each gets half of the flow), a difference is a sum and a quotient its numerator.

Products over many layers leave float32. So weights go in over what they multiply by on average, as powers of two, and
where tensors meet that were divided by different ones, the smaller are divided again; all parts of R are R's times one
number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from onnxprune.gradient.backward import OPSET, Backward
from onnxprune.graph.arrays import FLOAT_TYPES, Array
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model
from onnxprune.graph.node import Node, opsets, walk
from onnxprune.graph.normalisation import SCALE, VARIANCE, batchnorm_factor
from onnxprune.graph.protos import place
from onnxprune.graph.shapes import Shapes, graph_inputs
from onnxprune.graph.traits import TRAITS
from onnxprune.graph.versions import raised
from onnxprune.layers.values import Unsuitable, Values
from onnxprune.runtime.feeds import likely_feeds
from onnxprune.runtime.session import Feeds

PASSES = {
    "BiasGelu", "Celu", "Clip", "DequantizeLinear", "Elu", "Erf", "Exp", "FastGelu", "Gelu", "HardSigmoid", "HardSwish",
    "Hardmax", "LRN", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "Max", "MeanVarianceNormalization", "Min",
    "Mish", "Neg", "PRelu", "Pow", "QuantizeLinear", "QuickGelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softmax",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
}  # fmt: skip
LAST = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}  # a scale along the last axes
CHANNELS = {"BatchNormalization", "GroupNormalization", "InstanceNormalization"}  # along axis 1
SKIPS = {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
LEAST = 9  # opset; the nodes that are made need it


@dataclass(frozen=True)
class Weight:
    """name: of the input; sums: how many sums the weights are in."""

    name: str
    sums: int


@dataclass(frozen=True)
class Exponent:
    """Of a tensor: the highest (or the mean) of those of `sources`, more by `plus` and by those of some weights."""

    tensor: str
    sources: tuple[str, ...]
    weights: tuple[str, ...] = ()
    plus: float = 0.0
    mean: bool = False


class Flow:
    """The model of the flow, a copy whose nodes have their first outputs. weights: tensor of weights -> its input."""

    def __init__(self, model: Model, shapes: Shapes) -> None:
        """shapes: of the model's tensors, at sizes with which it runs. Raises `UserError`."""
        old = opsets(model.proto).get("", 1) < LEAST
        self.shapes, self.values, self.edit = shapes, Values(model), Edit(raised(model, OPSET) if old else model)
        self.weights: dict[str, Weight] = {}
        self.flow = {i.name for i in graph_inputs(model) if i.type.tensor_type.elem_type in FLOAT_TYPES}
        feeds = likely_feeds(model, shapes, None)[0]
        self.ones = {n: np.ones_like(x) if n in self.flow else x for n, x in feeds.items()}
        self._exponents = [Exponent(name, ()) for name in sorted(self.flow)]
        self._factors: dict[str, tuple[str, tuple[str, ...]]] = {}  # input -> tensor, and those that it is to match
        self._now: dict[str, str] = {}  # tensor -> what is read in its place
        self._placed: list[NodeProto] = []
        for n in walk(self.edit.graph, opsets(self.edit.model.proto)):
            self._step(n)
        self.outputs = tuple(o.name for o in self.edit.graph.output if o.name in self.flow)
        for name in self.outputs if len(self.outputs) > 1 else ():  # parts of one R
            self._now[name] = self._over(name, self.outputs)
        made = {o for proto in self._placed for o in proto.output}
        known = [v for v in self.edit.graph.value_info if v.name not in made]
        place(self.edit.graph, self._placed)
        del self.edit.graph.value_info[:]
        self.edit.graph.value_info.extend(known)

    @property
    def model(self) -> Model:
        """The model; weights and factors are inputs."""
        return self.edit.model

    def loss(self, b: Backward) -> str:
        """Add the nodes of R to a copy of the model; its name."""
        names = [self._now.get(name, name) for name in self.outputs]
        return b.add([b.sum(name, range(b.rank(name))) for name in names])

    def values_of(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Magnitudes of all weights as they go in, and factors, by input; weights: some in place of the model's own."""
        return self.scaled(weights)[0]

    def scaled(self, weights: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        """What `values_of` gives, and the exponent e: R is 2^e times what the model then computes."""
        exponents: dict[str, float] = {}
        out: Feeds = {}
        for tensor, w in self.weights.items():
            magnitude = np.abs(np.asarray(weights[tensor] if tensor in weights else self.values(tensor)))
            total = float(magnitude.sum(dtype=np.float64))
            exponents[w.name] = round(math.log2(total / w.sums)) if 0 < total < math.inf else 0
            out[w.name] = np.asarray(np.ldexp(magnitude, -int(exponents[w.name])), magnitude.dtype)
        for e in self._exponents:
            of = [exponents[s] for s in e.sources] or [0.0]
            base = sum(of) / len(of) if e.mean else max(of)
            exponents[e.tensor] = base + e.plus + sum(exponents[w] for w in e.weights)
        for name, (tensor, others) in self._factors.items():
            kind = helper.tensor_dtype_to_np_dtype(self.shapes.types[tensor])
            out[name] = np.asarray(2.0 ** (exponents[tensor] - max(exponents[o] for o in others)), kind)
        return out, max((exponents[name] for name in self.outputs), default=0.0)

    # nodes

    def _step(self, n: Node) -> None:
        """Place what flows through a node."""
        proto = n.proto
        flows = [i for i, name in enumerate(n.inputs) if name in self.flow]
        table = not flows and n.op == "Gather" and self._value(n.input(0)) is not None
        floats = [o for o in n.outputs if self.shapes.types.get(o) in FLOAT_TYPES]
        if not floats or not (flows or table) or list(n.bodies()):
            self._place(proto, n)
            return
        self.flow.update(floats)
        op, read = proto.op_type, tuple(n.inputs[i] for i in flows)
        if op in PASSES and len(flows) == 1:
            self._becomes(proto, n, "Identity", n.inputs[flows[0]])
            self._exponents.append(Exponent(n.key, read))
        elif op in LAST or op in CHANNELS:
            self._scaled(proto, n)
        elif op in SKIPS:
            self._skip(proto, n)
        elif op in ("Add", "Sub", "Sum", "Where"):
            self._sum(proto, n, flows)
        elif op == "Div":
            self._quotient(proto, n, flows)
        elif op == "Mul" or (n.op in TRAITS and n.op != "Gather") or table:
            self._product(proto, n, flows)
        else:
            for i, name in enumerate(n.inputs) if op == "Concat" else ():
                if name not in self.flow:  # a token of its own
                    proto.input[i] = self._constant(name, 1.0)
            self._matched(proto, n, flows)
            self._place(proto, n)
            self._exponents += [Exponent(o, read) for o in floats]

    def _value(self, name: str) -> Array | None:
        """What a constant of a floating-point type holds; None for anything else."""
        if not name or self.shapes.types.get(name, 1) not in FLOAT_TYPES:
            return None
        try:
            return self.values(name)
        except Unsuitable:
            return None

    def _constant(self, like: str, value: float) -> str:
        """A number in the type and shape of a tensor."""
        known = self._value(like)
        if known is not None:
            return self.edit.constant("flow/constant", np.full_like(known, value))
        return self._op("Add", self._op("Mul", like, self._number(0.0, like)), self._number(value, like))

    def _number(self, value: float, like: str) -> str:
        kind = helper.tensor_dtype_to_np_dtype(self.shapes.types[like])
        return self.edit.constant("flow/number", np.array(value, kind))

    def _op(self, kind: str, *inputs: str) -> str:
        name = self.edit.fresh(f"flow/{kind}")
        read = [self._now.get(i, i) for i in inputs]
        self._placed.append(helper.make_node(kind, read, [name], self.edit.fresh_node(name)))
        return name

    def _place(self, proto: NodeProto, n: Node) -> None:
        proto.input[:] = [self._now.get(i, i) for i in proto.input]
        self._placed.append(proto)

    def _becomes(self, proto: NodeProto, n: Node, kind: str, *inputs: str) -> None:
        """Place an operator without attributes in the place of a node."""
        proto.op_type, proto.domain = kind, ""
        del proto.attribute[:]
        proto.input[:], proto.output[:] = list(inputs), proto.output[:1]
        self._place(proto, n)

    def _matched(self, proto: NodeProto, n: Node, flows: Sequence[int]) -> None:
        """Let tensors that meet be over the same number."""
        read = tuple(dict.fromkeys(n.inputs[i] for i in flows))
        for i in flows if len(read) > 1 else ():
            proto.input[i] = self._over(n.inputs[i], read)

    def _over(self, tensor: str, others: tuple[str, ...]) -> str:
        """A tensor over the number that all of some are to be over, itself among them."""
        name = self.edit.fresh("flow/factor")
        self._factors[name] = tensor, others
        code = self.shapes.types[tensor]
        self.edit.graph.input.append(helper.make_tensor_value_info(name, code, []))
        return self._op("Mul", tensor, name)

    def _sum(self, proto: NodeProto, n: Node, flows: Sequence[int]) -> None:
        """Of what flows; constants are biases, and zero."""
        for i, name in enumerate(n.inputs):
            if i not in flows and self.shapes.types.get(name) in FLOAT_TYPES:
                proto.input[i] = self._constant(name, 0.0)
        self._matched(proto, n, flows)
        proto.op_type = "Add" if proto.op_type == "Sub" else proto.op_type
        self._place(proto, n)
        self._exponents.append(Exponent(n.key, tuple(n.inputs[i] for i in flows)))

    def _quotient(self, proto: NodeProto, n: Node, flows: Sequence[int]) -> None:
        """Over a constant it is a product; over anything else its numerator."""
        x, y = n.inputs
        known = self._value(y)
        if known is not None:
            inverse = np.divide(1, np.abs(known), out=np.zeros_like(known), where=known != 0)
            self._times(proto, n, x, inverse)
        elif 0 not in flows:
            self._becomes(proto, n, "Identity", y)
            self._exponents.append(Exponent(n.key, (y,)))
        elif self.shapes.shapes.get(x) == self.shapes.shapes.get(n.key):
            self._becomes(proto, n, "Identity", x)
            self._exponents.append(Exponent(n.key, (x,)))
        else:
            self._becomes(proto, n, "Add", x, self._op("Mul", y, self._number(0.0, y)))
            self._exponents.append(Exponent(n.key, (x,)))

    def _times(self, proto: NodeProto, n: Node, x: str, factor: Array) -> None:
        """What flows times a constant, none of it negative, over its mean."""
        mean = float(np.mean(factor, dtype=np.float64)) if factor.size else 0.0
        plus = round(math.log2(mean)) if 0 < mean < math.inf else 0
        name = self.edit.constant("flow/scale", np.asarray(np.ldexp(factor, -plus), factor.dtype))
        self._becomes(proto, n, "Mul", x, name)
        self._exponents.append(Exponent(n.key, (x,), plus=plus))

    def _scaled(self, proto: NodeProto, n: Node) -> None:
        """A normalisation is its scale, of statistics that are known with them."""
        x = n.input(0)
        scale = self._value(n.input(SCALE))
        if n.input(0) not in self.flow or scale is None:
            self._becomes(proto, n, "Identity", x)
            self._exponents.append(Exponent(n.key, (x,)))
            return
        if n.op == "BatchNormalization":
            variance = self._value(n.input(VARIANCE))
            scale = scale if variance is None else batchnorm_factor(n, scale, variance)
        rank = len(self.shapes.shapes.get(x, ()))
        if proto.op_type in CHANNELS and scale.size == (self.shapes.shapes.get(x, (0, 0))[1] or 0):
            scale = scale.reshape(-1, *[1] * (rank - 2))
        elif proto.op_type in CHANNELS:  # of a group: they all count alike
            scale = np.full((), np.abs(scale).mean(), scale.dtype)
        self._times(proto, n, x, np.abs(scale))

    def _skip(self, proto: NodeProto, n: Node) -> None:
        """A sum of two, and a normalisation of it; the sum is the last output."""
        self._matched(proto, n, (0, 1))
        pair = tuple(n.inputs[:2])
        total = n.output(3) or self.edit.fresh("flow/sum")
        read = [self._now.get(i, i) for i in proto.input[:2]]
        self._placed.append(helper.make_node("Add", read, [total], self.edit.fresh_node(total)))
        self.flow.add(total)
        self.shapes.types.setdefault(total, self.shapes.types[n.key])
        self._exponents.append(Exponent(total, pair))
        scale = self._value(n.input(2))
        self._times(proto, n, total, np.ones(1, np.float32) if scale is None else np.abs(scale))

    def _product(self, proto: NodeProto, n: Node, flows: Sequence[int]) -> None:
        """Weights are inputs, biases zero; of two that flow it is the root."""
        trait = TRAITS.get(n.op)
        slots = (0, 1) if trait is None or not trait.slots else trait.slots
        weights = []
        for i, name in enumerate(n.inputs):
            known = None if i in flows else self._value(name)
            if i in flows or (known is None and self.shapes.types.get(name) not in FLOAT_TYPES):
                continue
            if trait is not None and (i == trait.bias or i in trait.added):
                proto.input[i] = self._constant(name, 0.0)
            elif known is None or i not in slots:
                proto.input[i] = self._op("Abs", name)
            else:
                weights.append(self._weight(n, i, name, known))
                proto.input[i] = weights[-1]
        factors = [i for i in flows if trait is None or (i != trait.bias and i not in trait.added)]
        several = len({n.inputs[i] for i in factors}) > 1 or len(factors) > 1
        self._place(proto, n)
        read = tuple(n.inputs[i] for i in flows)
        for o in n.outputs:
            self._exponents += [Exponent(o, read, tuple(weights), mean=several)] if o in self.flow else []
        if several and (trait is None or trait.attends != "fused"):
            self._root(n.key)

    def _weight(self, n: Node, i: int, tensor: str, value: Array) -> str:
        """The input in place of a constant that what flows is multiplied with."""
        if tensor not in self.weights:
            trait, sums = TRAITS.get(n.op), value.size
            if trait is not None and n.op != "Gather" and value.ndim > 1:
                reduction, outputs = trait.axes(n, i)
                inner = math.prod(value.shape[2:]) if trait.kernel else 1
                sums = value.shape[outputs] if trait.kernel else value.size // max(value.shape[reduction] * inner, 1)
            name = self.edit.fresh(f"{tensor}:flow")
            self.weights[tensor] = Weight(name, max(sums, 1))
            code = helper.np_dtype_to_tensor_dtype(value.dtype)
            self.edit.graph.input.append(helper.make_tensor_value_info(name, code, value.shape))
        return self.weights[tensor].name

    def _root(self, name: str) -> None:
        """Read the root of a tensor in its place; where it is zero, nothing flows back."""
        some = self._op("Greater", name, self._number(0.0, name))
        safe = self._op("Where", some, name, self._number(1.0, name))
        self._now[name] = self._op("Where", some, self._op("Sqrt", safe), self._number(0.0, name))
