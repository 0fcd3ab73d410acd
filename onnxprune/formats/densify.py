"""The way back: sparse operators become standard ones, with the dense weight bit for bit.

In goes a model with nodes of domain onnxprune; out comes a copy without them. What they had absorbed becomes nodes
again; a bias of zeros is left out. The file is checked on the way, and refused in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.parser
from onnx import NodeProto, helper, numpy_helper

from onnxprune.formats.arrays import EXPORT
from onnxprune.formats.functions import activation
from onnxprune.formats.operators import METADATA, VERSION, is_sparse
from onnxprune.formats.weight import Weight, read_weight
from onnxprune.graph.arrays import Array
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.messages import fault
from onnxprune.graph.node import Node, opsets
from onnxprune.graph.protos import place
from onnxprune.graph.reading import DENSE_LIMIT, DENSE_RATIO
from onnxprune.graph.sizes import Sizes
from onnxprune.kernels.names import DOMAIN


def densify(model: Model) -> Model:
    """A copy of the model without sparse operators; a Gemm comes back as one where its input is surely a matrix.

    Raises ModelFileError, one line that names node and array, where the file breaks the format, or its weights would
    unfold to more than 1 GiB and 64 times what is stored.
    """
    sparse_nodes = [node for graph in graphs(model.proto.graph) for node in graph.node if is_sparse(node)]
    if not sparse_nodes and not any(o.domain == DOMAIN for o in model.proto.opset_import):
        return model.copy()
    where = model.path or "model"
    version = opsets(model.proto).get(DOMAIN, 1)
    if version > VERSION:
        raise fault(where, f"domain {DOMAIN} {VERSION}", version, "update onnxprune")
    weights: dict[str, Weight] = {}
    dense = stored = 0
    read: set[int] = set()
    for node in sparse_nodes:
        weight = weights[node.output[0] if node.output else ""] = read_weight(model, node)
        if id(weight.arrays["values"]) not in read:
            read.add(id(weight.arrays["values"]))
            dense, stored = dense + 4 * int(np.prod(weight.shape)), stored + weight.stored
    if dense > max(DENSE_LIMIT, DENSE_RATIO * stored):
        raise fault(
            where, f"weights that unfold to at most {max(DENSE_LIMIT, DENSE_RATIO * stored)} bytes", dense, EXPORT
        )
    arrays: dict[tuple[Any, ...], Array] = {}
    model = model.copy()
    kept = [p for p in model.proto.metadata_props if p.key != METADATA]
    del model.proto.metadata_props[:]
    model.proto.metadata_props.extend(kept)
    plain = _Densifier(model, weights, arrays, lambda name: False).run()
    if not any(Node(node, 1).attr("dense") == "Gemm" for node in sparse_nodes):
        return plain
    sizes = Sizes(plain)  # which knows the standard operators only
    return _Densifier(model, weights, arrays, lambda name: sizes.rank(name) == 2).run()


class _Densifier:
    """arrays: dense weights that were unpacked already; is_matrix: whether a value is certainly of rank 2."""

    def __init__(
        self,
        model: Model,
        weights: dict[str, Weight],
        arrays: dict[tuple[Any, ...], Array],
        is_matrix: Callable[[str], bool],
    ) -> None:
        self.edit = Edit(model)
        self.opset = opsets(model.proto).get("", 1)
        self.weights = weights
        self.arrays = arrays
        self.is_matrix = is_matrix
        self.names: dict[tuple[Any, ...], str] = {}
        self.floats: dict[tuple[str, str, str], str] = {}
        self.made: list[NodeProto] = []
        self.label = ""

    def run(self) -> Model:
        model, unread = self.edit.model, set()
        for graph in list(graphs(model.proto.graph)):
            nodes: list[NodeProto] = []
            changed = False
            for proto in graph.node:
                if is_sparse(proto):
                    unread.update(proto.input)
                    self.made = []
                    self.convert(Node(proto, self.opset))
                    nodes += self.made
                    changed = True
                else:
                    nodes.append(proto)
            if changed:
                place(graph, nodes)
        self.edit.drop(unread)
        proto = model.proto
        functions = [type(f).FromString(f.SerializeToString()) for f in proto.functions if f.domain != DOMAIN]
        if len(functions) != len(proto.functions):
            del proto.functions[:]
            proto.functions.extend(functions)
        if not any(o.domain == DOMAIN for f in functions for o in f.opset_import):
            for opset in [o for o in proto.opset_import if o.domain == DOMAIN]:
                proto.opset_import.remove(opset)
        return model

    def convert(self, node: Node) -> None:
        """Append to `made` the standard nodes for one sparse node."""
        weight = self.weights[node.output(0)]
        operator = weight.operator
        self.label = node.proto.name or node.output(0)
        given = dict(zip(operator.inputs, node.inputs, strict=True))
        if operator.quantized:
            self.quantized(node, weight, given)
            return
        steps: list[Callable[[str, str], None]] = []  # of what follows the product: input, output
        bias = self.edit.model.weights[given["bias"]]
        used = given["bias"] if bias.view(np.uint32).any() else ""
        alpha = float(node.attr("alpha"))
        if operator.product == "Conv":
            first, absorbed = self.conv(node, given["X"], weight, used if alpha == 1 else ""), alpha == 1
        elif node.attr("dense") == "Gemm" and self.is_matrix(given["X"]):
            first, absorbed = self.gemm(node, given["X"], weight, used), True
        else:
            first, absorbed = self.matmul(node, given["X"], weight), False
        if alpha != 1 and first.op_type != "Gemm":
            steps.append(lambda x, y: self.add("Mul", [x, self.scalar("alpha", alpha)], y))
        if used and not absorbed:
            steps.append(lambda x, y: self.add("Add", [x, self.upright(used, weight)], y))
        if operator.add:
            steps.append(lambda x, y: self.add("Add", [x, given["residual"]], y))
        if operator.activation:
            steps.append(lambda x, y: self.activate(node, operator.activation, x, y))
        first.name = node.proto.name
        first.doc_string = node.proto.doc_string
        first.metadata_props.extend(node.proto.metadata_props)
        self.made.append(first)
        value = node.output(0)
        for k, step in enumerate(steps):
            if k == 0:
                value = self.edit.fresh(f"{node.output(0)}_product")
                first.output[0] = value
            after = node.output(0) if k == len(steps) - 1 else self.edit.fresh(f"{node.output(0)}_step")
            step(value, after)
            value = after

    def quantized(self, node: Node, weight: Weight, given: dict[str, str]) -> None:
        """A product between DequantizeLinear and QuantizeLinear; Gemm's bias is int32 in its steps."""
        model, result, alpha = self.edit.model, weight.operator.result, float(node.attr("alpha"))
        bias, gemm = model.weights[given["bias"]], node.attr("dense") == "Gemm" and self.is_matrix(given["X"])
        km = node.attr("weight") == "KM" if gemm else True
        inputs = [self.dequantized(given["X"], given["x_scale"], given["x_zero_point"]), self.int8(node, weight, km)]
        added = ""
        if bias.any():
            step = np.float32(alpha) * model.weights[given["x_scale"]] * model.weights[given["scale"]]
            scale = self.edit.constant(f"{self.label}_bias_scale", step.astype(np.float32))
            added = self.dequantized(given["bias"], scale, axis=0)
        output = self.edit.fresh(f"{node.output(0)}_float") if result else node.output(0)
        if gemm:
            more: dict[str, Any] = {"alpha": alpha, "transB": int(not km)}
            first = helper.make_node("Gemm", [*inputs, *([added] if added else [])], [output], **more)
            added, alpha = "", 1.0
        else:
            first = helper.make_node("MatMul", inputs, [output])
        first.name, first.doc_string = node.proto.name, node.proto.doc_string
        first.metadata_props.extend(node.proto.metadata_props)
        self.made.append(first)
        more_steps = [("Mul", self.scalar("alpha", alpha))] if alpha != 1 else []
        for op, operand in [*more_steps, *([("Add", added)] if added else [])]:
            product = self.edit.fresh(f"{output}_product")
            self.made[-1].output[0] = product
            self.add(op, [product, operand], output)
        if result:
            self.add("QuantizeLinear", [output, given["y_scale"], given["y_zero_point"]], node.output(0))

    def dequantized(self, name: str, scale: str, zero: str = "", **attributes: int) -> str:
        """The floats that integers stand for; nodes that read the same share them."""
        key = name, scale, zero
        if key not in self.floats:
            self.floats[key] = self.edit.fresh(f"{name}_dequantized")
            self.add("DequantizeLinear", [name, scale, *([zero] if zero else [])], self.floats[key], **attributes)
        return self.floats[key]

    def int8(self, node: Node, weight: Weight, km: bool) -> str:
        """The floats of a weight of int8, as `[K, M]` or `[M, K]`."""
        stored = (*node.inputs[1 : 1 + len(weight.operator.arrays)], weight.shape, km)
        if stored not in self.names:
            base = node.inputs[1].removesuffix("_values") or f"{self.label}_weight"
            codes = np.ascontiguousarray(weight.codes().T if km else weight.codes())
            zero = self.edit.constant(f"{base}_zero_point", np.zeros(weight.shape[0], np.int8))
            scale = node.inputs[1 + len(weight.operator.storage.arrays)]
            self.names[stored] = self.dequantized(self.edit.constant(base, codes), scale, zero, axis=int(km))
        return self.names[stored]

    def conv(self, node: Node, x: str, weight: Weight, bias: str) -> NodeProto:
        names = ("strides", "pads", "dilations", "group")
        attributes = {"kernel_shape": list(weight.shape[2:]), **{name: node.attr(name) for name in names}}
        inputs = [x, self.weight(node, weight, "MK"), *([bias] if bias else [])]
        return helper.make_node("Conv", inputs, list(node.outputs), **attributes)

    def gemm(self, node: Node, x: str, weight: Weight, bias: str) -> NodeProto:
        orientation, left = node.attr("weight"), weight.operator.product == "LeftMatMul"
        w = self.weight(node, weight, orientation)
        inputs = [w, x] if left else [x, w]
        if bias:
            inputs.append(self.upright(bias, weight))
        elif self.opset < 11:  # where C is no option yet
            inputs.append(self.scalar("c", 0.0))
        attributes: dict[str, Any] = {"alpha": float(node.attr("alpha"))}
        if left:
            attributes["transA"] = int(orientation == "KM")
        else:
            attributes["transB"] = int(orientation == "MK")
        return helper.make_node("Gemm", inputs, list(node.outputs), **attributes)

    def matmul(self, node: Node, x: str, weight: Weight) -> NodeProto:
        """W must lie as `MatMul` wants it; where the initializer lay otherwise, a Transpose goes before."""
        left, orientation = weight.operator.product == "LeftMatMul", node.attr("weight")
        w = self.weight(node, weight, orientation)
        if orientation != ("MK" if left else "KM"):
            flipped = self.edit.fresh(f"{w}_transposed")
            self.add("Transpose", [w], flipped, perm=[1, 0])
            w = flipped
        return helper.make_node("MatMul", [w, x] if left else [x, w], list(node.outputs))

    def weight(self, node: Node, weight: Weight, orientation: str) -> str:
        """Name of the dense initializer; nodes that share their arrays share it."""
        stored = node.inputs[1 : 1 + len(weight.operator.arrays)]
        key = *stored, weight.shape, weight.pattern, weight.group, orientation
        if key not in self.names:
            if key not in self.arrays:
                w = weight.dense()
                self.arrays[key] = np.ascontiguousarray(w.T) if orientation == "KM" else w
            base = node.inputs[1].removesuffix("_values") or f"{self.label}_weight"
            self.names[key] = self.edit.constant(base, self.arrays[key])
        return self.names[key]

    def upright(self, bias: str, weight: Weight) -> str:
        """A bias in the shape that broadcasts over its product."""
        product, m = weight.operator.product, weight.shape[0]
        after = {"MatMul": 0, "LeftMatMul": 1, "Conv": len(weight.shape) - 2}[product]
        if not after:
            return bias
        return self.edit.constant(f"{bias}_upright", self.edit.model.weights[bias].reshape(m, *(1,) * after))

    def scalar(self, name: str, value: float) -> str:
        return self.edit.constant(f"{self.label}_{name}", np.array(value, np.float32))

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        name = self.edit.fresh_node(f"{self.label}_{op.lower()}")
        self.made.append(helper.make_node(op, inputs, [output], name=name, **attributes))

    def activate(self, node: Node, name: str, x: str, y: str) -> None:
        """Append an activation: the nodes that the functions have, under names of their own."""
        names = {"before": x, "Y": y}
        if name == "Clip":
            low, high = float(node.attr("min")), float(node.attr("max"))
            if self.opset < 11:
                self.add("Clip", [x], y, min=low, max=high)
                return
            names |= {"min": self.scalar("min", low), "max": self.scalar("max", high)}
        text = f"g (float[] before, float[] min, float[] max) => (float[] Y) {{ {activation(name, self.opset)} }}"
        for proto in onnx.parser.parse_graph(text).node:
            if proto.op_type == "Constant":
                array = numpy_helper.to_array(proto.attribute[0].t)
                names[proto.output[0]] = self.edit.constant(f"{self.label}_{proto.output[0]}", array)
                continue
            for value in proto.output:
                if value not in names:
                    names[value] = self.edit.fresh(f"{y}_{value}")
            inputs, outputs = ([names[v] for v in side] for side in (proto.input, proto.output))
            del proto.input[:], proto.output[:]
            proto.input.extend(inputs)
            proto.output.extend(outputs)
            proto.name = self.edit.fresh_node(f"{self.label}_{proto.op_type.lower()}")
            self.made.append(proto)
