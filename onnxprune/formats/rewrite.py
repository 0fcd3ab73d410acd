"""Layers become sparse operators: the weight packed, and bias, residual and activation computed in the same node.

In goes a model whose weights hold zeros; out comes a copy in which the chosen layers are nodes of domain onnxprune
(docs/sparse-format.md), each with the name of its layer, at the place of the last node that it has absorbed. A layer
that cannot be expressed stays dense, with a note. `densify` is the way back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from onnxprune.errors import OptionError
from onnxprune.formats.absorb import Absorber, Chain, Uses, as_bias
from onnxprune.formats.format import Packing
from onnxprune.formats.functions import MIN_BFLOAT16, MIN_IR, MIN_OPSET, function
from onnxprune.formats.int8 import FOURS, QUANTIZE, Grid, Integers, grid_of, integers_of, is_quantized
from onnxprune.formats.operators import Operator, least_version
from onnxprune.formats.patterns import BlockPattern
from onnxprune.formats.values import encode
from onnxprune.graph.arrays import Array
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model
from onnxprune.graph.messages import show
from onnxprune.graph.node import Node, opsets
from onnxprune.graph.protos import place
from onnxprune.graph.sizes import Sizes
from onnxprune.kernels.names import DOMAIN, RESULTS
from onnxprune.layers.layer import Layer, node_names, sparse_layers

INEXPRESSIBLE = "cannot be expressed as a sparse operator"  # of layers that have no reason of their own


def rewrite(
    model: Model,
    formats: Mapping[str, Packing],
    values: str = "float32",
    *,
    input_shape: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[Model, list[str]]:
    """A copy of the model in which the named layers are sparse operators, and what the user should know.

    formats: name of a layer (see `layers.layer.node_names`) -> a format with operators; its weight must conform to
        an N:M pattern already, tiles are stored where they hold anything but +0.0.
    values: how its weights are stored, see `formats.values`; `round_values` tells what they become.
    input_shape: input name -> concrete shape, for the shape inference that residuals and SAME padding need.
    Raises OptionError where there is no such layer, a block of a weight holds more than n weights, or `values` cannot
    hold a weight.
    """
    layers = {layer.name: layer for layer in sparse_layers(model)[0]}
    unknown = [key for key in formats if key not in layers or formats[key].format.refuses(layers[key])]
    if unknown:
        raise OptionError(f"{show(unknown[0])} is no layer that can be sparse")
    return _Rewriter(model, values, input_shape).run([(layers[key], formats[key]) for key in layers if key in formats])


@dataclass
class _Base:
    """A layer's own part of the sparse operator.

    x: the data; flip: x must be transposed; extra: what is to be added after the product times beta, if it is no bias.
    """

    x: str
    product: str
    attributes: dict[str, Any]
    alpha: float = 1.0
    bias: Array | None = None
    flip: bool = False
    extra: str = ""
    beta: float = 1.0


class _Rewriter:
    def __init__(self, model: Model, values: str, input_shape: Mapping[str, tuple[int, ...]] | None) -> None:
        self.edit = Edit(model)
        self.values = values
        self.model = self.edit.model
        self.opset = opsets(model.proto).get("", 1)
        self.sizes = Sizes(model, input_shape)
        self.uses = Uses(model, [NodeProto.FromString(n.SerializeToString()) for n in self.edit.graph.node])
        self.indices = {key: i for i, key in enumerate(node_names(model.proto))}
        inputs = {info.name for info in model.proto.graph.input} if model.proto.ir_version >= 4 else set()
        self.constants = {name: w for name, w in model.weights.items() if name not in inputs}
        self.absorber = Absorber(self.uses, self.sizes, self.constants, self.opset)
        self.before: dict[int, list[NodeProto]] = {}
        self.after: dict[int, list[NodeProto]] = {}
        self.packed: dict[tuple[Any, ...], list[str]] = {}
        self.unread: set[str] = set()
        self.operators: set[Operator] = set()
        self.notes: list[str] = []

    def run(self, packings: Iterable[tuple[Layer, Packing]]) -> tuple[Model, list[str]]:
        for layer, packing in packings:
            i = self.indices[layer.name]
            proto = self.uses.nodes[i]
            assert proto is not None
            node = Node(proto, self.opset)
            if is_quantized(layer):
                reason = self.quantized(layer, packing, i, node)
            else:
                base = self.base(layer, node)
                reason = base if isinstance(base, str) else self.replace(layer, packing, i, base)
            if reason:
                self.notes.append(f"{layer.name}: stays dense: {reason}")
        if self.operators:
            self.finish()
        return self.model, self.notes

    def base(self, layer: Layer, node: Node) -> _Base | str:
        """What a layer computes, or why it stays dense."""
        if self.opset < 7:
            return f"opset {self.opset} is below 7, and broadcasts by other rules"
        if layer.op == "Conv":
            return self.conv(layer, node)
        product, slot = ("MatMul", 0) if not layer.left else ("LeftMatMul", 1)
        base = _Base(node.input(slot), product, {"weight": layer.orientation, "dense": layer.op})
        if layer.op == "MatMul":
            if layer.left and (self.sizes.rank(base.x) or 0) < 2:
                return "its input is a vector, or of unknown rank"
            return base
        base.alpha = float(node.attr("alpha", 1.0))
        base.flip = bool(node.attr("transA" if slot == 0 else "transB", 0))
        beta = float(node.attr("beta", 1.0))
        if node.input(2) and beta != 0:
            c = self.constants.get(node.input(2))
            vector = None if c is None else as_bias(c, product, layer.shape[0], 0, lambda: 2)
            if vector is None:
                base.extra, base.beta = node.input(2), beta
            else:
                base.bias = vector if beta == 1 else vector * np.float32(beta)
        return base

    def conv(self, layer: Layer, node: Node) -> _Base | str:
        kernel, spatial = layer.shape[2:], len(layer.shape) - 2
        attributes = {
            "strides": node.attr("strides", [1] * spatial),
            "pads": node.attr("pads", [0] * 2 * spatial),
            "dilations": node.attr("dilations", [1] * spatial),
            "group": layer.group,
        }
        lengths = {"strides": spatial, "pads": 2 * spatial, "dilations": spatial}
        if any(len(attributes[name]) != n or min(attributes[name]) < (name != "pads") for name, n in lengths.items()):
            return "its strides, pads or dilations are negative, or not as many as it has axes"
        auto = node.attr("auto_pad", "NOTSET")
        if auto == "VALID":
            attributes["pads"] = [0] * 2 * spatial
        elif auto != "NOTSET":
            shape = self.sizes.shape(node.input(0))
            sizes = shape[2:] if shape is not None and len(shape) == spatial + 2 else (None,) * spatial
            rows = zip(sizes, kernel, attributes["strides"], attributes["dilations"], strict=True)
            totals = [_same_padding(*row) for row in rows]
            known = [t for t in totals if t is not None]
            if len(known) < spatial or auto not in ("SAME_UPPER", "SAME_LOWER"):
                return f"auto_pad {auto} pads by what is known only at run time"
            small, large = [t // 2 for t in known], [t - t // 2 for t in known]
            attributes["pads"] = small + large if auto == "SAME_UPPER" else large + small
        bias = None
        if node.input(2):
            bias = self.constants.get(node.input(2))
            if bias is None or bias.shape != layer.shape[:1]:
                return "its bias is not constant"
        return _Base(node.input(0), "Conv", {**attributes, "dense": "Conv"}, bias=bias)

    def quantized(self, layer: Layer, packing: Packing, i: int, node: Node) -> str:
        """Put the node on integers in the place of the layer and of what quantizes its output, or say why not."""
        pattern = packing.pattern
        if not isinstance(pattern, BlockPattern) or pattern.columns % FOURS:
            return f"in int8, tiles have a multiple of {FOURS} inputs, and not {packing.pattern}"
        found = integers_of(layer, node, self.maker, self.constants.get)
        if isinstance(found, str):
            return found
        last, grid, end = self.quantizing(node.output(0)) or (node, None, i)
        result = "" if grid is None else next(name for name, dtype in RESULTS.items() if dtype == grid.zero.dtype)
        operator = Operator(packing.storage, "MatMul", scaled=True, quantized=True, result=result)
        self.operators.add(operator)
        inputs = self.integers(layer, packing, found, grid)
        made = helper.make_node(str(operator), inputs, [last.output(0)], name=layer.name, domain=DOMAIN)
        attributes: dict[str, Any] = {"shape": list(layer.shape), "alpha": found.alpha, "dense": layer.op}
        attributes |= {"weight": layer.orientation, **packing.storage.given(pattern)}
        made.attribute.extend(helper.make_attribute(name, attributes[name]) for name in operator.attributes)
        made.doc_string = node.proto.doc_string
        made.metadata_props.extend(node.proto.metadata_props)
        self.unread.update((*node.inputs, *last.inputs))
        self.uses.replace([i, end], end, made)
        for name in node.inputs:
            self.drop_unread(name)
        return ""

    def quantizing(self, name: str) -> tuple[Node, Grid, int] | None:
        """The node that quantizes a value, if nothing else reads that, with its grid and place."""
        i = self.uses.only(name)
        proto = None if i is None else self.uses.nodes[i]
        if i is None or proto is None:
            return None
        node = Node(proto, self.opset)
        grid = grid_of(node, self.constants.get) if node.op == QUANTIZE else None
        return None if grid is None else (node, grid, i)

    def integers(self, layer: Layer, packing: Packing, found: Integers, grid: Grid | None) -> list[str]:
        """Names of the inputs of a node on integers."""
        key, storage = (layer.weight, packing), packing.storage
        if key not in self.packed:
            packed = dict(zip(storage.arrays, storage.pack(layer, self.codes(layer), packing.pattern), strict=True))
            packed["scale"] = found.scale
            self.packed[key] = [self.edit.constant(f"{layer.initializer}_{n}", a) for n, a in packed.items()]
        steps = [
            self.scalar(name, array)
            for one in (found.grid, grid)
            if one is not None
            for name, array in zip(one.names, (one.scale, one.zero), strict=True)
        ]
        return [found.x, *self.packed[key], self.edit.constant(f"{layer.name}_bias", found.bias), *steps]

    def scalar(self, name: str, array: Array) -> str:
        """Name of a constant `()`: the model's own where it has no axes."""
        if self.constants[name].shape == ():
            return name
        return self.edit.constant(f"{name}_scalar", array)

    def codes(self, layer: Layer) -> Array:
        """The int8 of a layer, in the initializer's layout."""
        return np.asarray(self.model.weights[layer.initializer])

    def maker(self, name: str) -> Node | None:
        """The node that makes a value."""
        made = next((n for n in self.uses.nodes if n is not None and name in n.output), None)
        return None if made is None else Node(made, self.opset)

    def drop_unread(self, name: str) -> None:
        """Remove the node that makes a value which nothing reads any more."""
        made = self.maker(name)
        if made is None or self.uses.readers[name] or name in self.uses.kept:
            return
        self.unread.update(made.inputs)
        self.uses.remove(next(i for i, n in enumerate(self.uses.nodes) if n is made.proto))

    def replace(self, layer: Layer, packing: Packing, i: int, base: _Base) -> str:
        """Put the sparse node in the place of the layer and all that it absorbs; "", as nothing stands against it."""
        proto = self.uses.nodes[i]
        assert proto is not None
        w = self.model.weights[layer.weight]
        names = self.pack(layer, packing, w)
        chain = Chain(proto.output[0], [i], base.bias)
        dynamic = base.extra not in self.model.weights
        if base.extra and base.beta == 1 and dynamic and self.sizes.same(base.extra, chain.output):
            chain.residual, base.extra = base.extra, ""
        if not base.extra:
            self.absorber.extend(chain, base.product, layer.shape[0], len(layer.shape) - 2)
        end, old = max(chain.nodes), [self.uses.nodes[k] for k in chain.nodes]
        read = [name for node in old if node is not None for name in node.input]
        self.unread.update(read)
        operator = Operator(
            packing.storage, base.product, bool(chain.residual), chain.activation, self.values == "int8"
        )
        self.operators.add(operator)
        x = base.x
        if base.flip:
            x = self.edit.fresh(f"{base.x}_transposed")
            name = self.edit.fresh_node(f"{layer.name}_transpose")
            flip = helper.make_node("Transpose", [base.x], [x], name=name, perm=[1, 0])
            self.before.setdefault(end, []).append(flip)
        attributes: dict[str, Any] = {"shape": list(layer.shape), "alpha": base.alpha, **base.attributes}
        attributes |= packing.storage.given(packing.pattern)
        if chain.activation == "Clip":
            attributes["min"], attributes["max"] = chain.bounds
        output = chain.output
        if base.extra:
            output = self.edit.fresh(f"{chain.output}_product")
            self.add_after(i, layer, base, output, chain.output)
        inputs = [x, *names, self.bias(layer, read, chain.bias), *([chain.residual] if chain.residual else [])]
        node = helper.make_node(str(operator), inputs, [output], name=layer.name, domain=DOMAIN)
        node.attribute.extend(helper.make_attribute(name, attributes[name]) for name in operator.attributes)
        node.doc_string = proto.doc_string
        node.metadata_props.extend(proto.metadata_props)
        self.uses.replace(chain.nodes, end, node)
        if base.flip:
            self.uses.readers[base.x].append(end)
        return ""

    def pack(self, layer: Layer, packing: Packing, w: Array) -> list[str]:
        """Names of the arrays that hold a weight; layers that share it share them."""
        key, storage = (layer.weight, packing), packing.storage
        if key not in self.packed:
            try:
                codes, scale = encode(layer.matrix(w), self.values)
                packed = storage.pack(layer, layer.restore(codes), packing.pattern)
            except OptionError as error:
                raise OptionError(f"{layer.name}: {error}") from error
            arrays = dict(zip(storage.arrays, packed, strict=True)) | ({} if scale is None else {"scale": scale})
            self.packed[key] = [self.edit.constant(f"{layer.weight}_{name}", array) for name, array in arrays.items()]
        return self.packed[key]

    def bias(self, layer: Layer, read: Iterable[str], bias: Array | None) -> str:
        """Name of a constant that holds the bias: the model's own where it is one already."""
        if bias is None:
            return self.edit.zeros(layer.shape[0])
        for name in read:
            old = self.constants.get(name)
            if old is not None and old.shape == bias.shape and old.dtype == bias.dtype and np.shares_memory(old, bias):
                return name
        return self.edit.constant(f"{layer.name}_bias", bias)

    def add_after(self, i: int, layer: Layer, base: _Base, product: str, output: str) -> None:
        """Gemm's C, where it is no bias, is scaled and added by nodes of its own."""
        extra, nodes = base.extra, []
        if base.beta != 1:
            scaled = self.edit.fresh(f"{base.extra}_scaled")
            factor = self.edit.constant(f"{layer.name}_beta", np.array(base.beta, np.float32))
            name = self.edit.fresh_node(f"{layer.name}_scale")
            nodes.append(helper.make_node("Mul", [base.extra, factor], [scaled], name=name))
            extra = scaled
        name = self.edit.fresh_node(f"{layer.name}_add")
        nodes.append(helper.make_node("Add", [product, extra], [output], name=name))
        self.after[i] = nodes
        self.uses.kept.add(base.extra)

    def finish(self) -> None:
        """Put the nodes in place, import the domain, and add the functions."""
        proto = self.model.proto
        nodes: list[NodeProto] = []
        for i, node in enumerate(self.uses.nodes):
            nodes += [*self.before.get(i, ()), *([node] if node is not None else []), *self.after.get(i, ())]
        place(proto.graph, nodes)
        if proto.ir_version < 4:  # there all initializers are inputs too; from 4 on such inputs override them
            inputs = [info for info in proto.graph.input if info.name not in self.model.weights]
            copies = [type(info).FromString(info.SerializeToString()) for info in inputs]
            del proto.graph.input[:]
            proto.graph.input.extend(copies)
        self.edit.drop(self.unread)
        versions = {o.domain: o for o in proto.opset_import}
        if DOMAIN not in versions:
            versions[DOMAIN] = proto.opset_import.add(domain=DOMAIN, version=1)
        least_of = [least_version(o, float32=self.values == "float32") for o in self.operators]
        versions[DOMAIN].version = max(versions[DOMAIN].version, *least_of)
        least = MIN_BFLOAT16 if self.values == "bfloat16" else MIN_OPSET
        bodies = [function(o, self.opset) for o in sorted(self.operators, key=str)] if self.opset >= least else []
        functions = {f.name: f for f in bodies if f is not None}
        if not functions:
            self.notes.append(
                f"opset {self.opset} is below {least}: the model has no functions for its sparse layers, and runs "
                f"only where onnxprune's library is registered"
            )
        proto.ir_version = max(proto.ir_version, MIN_IR if functions else 4)
        others = [f for f in proto.functions if f.domain != DOMAIN or f.name not in functions]
        copies_of = [type(f).FromString(f.SerializeToString()) for f in others]
        del proto.functions[:]
        proto.functions.extend([*copies_of, *functions.values()])


def _same_padding(size: int | None, kernel: int, stride: int, dilation: int) -> int | None:
    """Padding of one axis with auto_pad SAME, both sides together; None where it depends on a size that is unknown.

    >>> _same_padding(None, 3, 1, 2), _same_padding(7, 3, 2, 1), _same_padding(8, 3, 2, 1), _same_padding(None, 3, 2, 1)
    (4, 2, 1, None)
    """
    if stride == 1:
        return (kernel - 1) * dilation
    if size is None:
        return None
    return max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
