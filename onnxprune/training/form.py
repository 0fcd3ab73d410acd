"""The form in which a model is trained: float32 all through, whatever types its file has.

What a file stores in less than float32 is trained in float32, and rounded in the forward pass as the file will hold it;
the gradient passes the rounding straight through (Bengio et al. 2013, arXiv:1308.3432). Integers that one
DequantizeLinear reads keep their scale and zero point.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.graph.arrays import DTYPES, FLOAT_TYPES, Array
from onnxprune.graph.edit import Edit, as_float32
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.links import read_by
from onnxprune.graph.node import Node
from onnxprune.graph.protos import place
from onnxprune.layers.stored import Stored, integral, plainly, step_of
from onnxprune.layers.values import Values
from onnxprune.training.weights import trainable

OTHERS = tuple(t for t in FLOAT_TYPES if t != TensorProto.FLOAT)  # they become float32
FINE = 4  # bytes of an integer that stands for a number as exactly as float32 does


@dataclass(frozen=True, eq=False)
class Form:
    """model: float32; places: parameter of it -> where the file holds it; codebooks: parameters that are values which
    others share."""

    model: Model
    places: Mapping[str, Stored]
    codebooks: frozenset[str]

    def free(self, name: str) -> Array:
        """Which values of a parameter may change, bool in its shape: zeros of weights and codebooks stay."""
        w = self.model.weights[name]
        return np.asarray((w != 0) | (w.ndim < 2 and name not in self.codebooks))

    def also(self, model: Model, names: Iterable[str]) -> Form:
        """The same with other tensors that training changes, of the model that it was made of."""
        return replace(self, places={**self.places, **{name: plainly(name, model.weights[name]) for name in names}})

    def read(self, model: Model) -> dict[str, Array]:
        """The parameters, float32, of a model of the same graph."""
        return {name: held.read(model) for name, held in self.places.items()}

    def written(self, model: Model, values: Mapping[str, Array]) -> Model:
        """A copy of the model that this form was made of, with these values of parameters."""
        out = model.copy()
        for name, value in values.items():
            self.places[name].write(out, value)
        return out


def form_of(model: Model) -> Form:
    """The form of a model whose weights are float32, float16, bfloat16, float64, or integers behind one
    DequantizeLinear."""
    names = trainable(model)
    edit = Edit(as_float32(model, OTHERS))
    readers, values = read_by(edit.model.proto), Values(edit.model)
    places: dict[str, Stored] = {}
    first: list[NodeProto] = []  # nodes that round, before all others
    for name in names:
        w = model.weights[name]
        if integral(w.dtype):
            parameter, place_of_it, nodes = _dequantized(edit, readers[name][0], name, values)
            places[parameter] = place_of_it
            first += nodes
        elif w.dtype == np.float32:
            places[name] = plainly(name, w)
        else:
            places[name], nodes = plainly(name, w), _cast(edit, name, w.dtype)
            first += nodes
    place(edit.graph, [*first, *edit.graph.node])
    tables = {n.input[0] for g in graphs(edit.graph) for n in g.node if n.op_type == "Gather"}
    codebooks = frozenset(n for n in places if n in tables and edit.model.weights[n].ndim == 1)
    return Form(edit.model, places, codebooks)


def _dequantized(edit: Edit, reader: Node, name: str, values: Values) -> tuple[str, Stored, list[NodeProto]]:
    """A parameter in the place of integers that a node dequantizes, and the nodes that round it."""
    w = np.asarray(edit.model.weights[name])
    step = step_of(reader, w.shape, w.dtype, values)
    assert step is not None, "a DequantizeLinear"
    held = Stored(name, w.dtype, w.shape, np.dtype(np.float32), (step,), (name,))
    parameter = edit.constant(f"{name}_trained", held.read(edit.model))
    if w.dtype.itemsize >= FINE:
        node = helper.make_node("Identity", [parameter], list(reader.outputs), reader.proto.name)
        reader.proto.CopyFrom(node)
        return parameter, held, []
    scale = values(reader.input(1))
    zero = reader.input(2) or edit.constant(f"{name}_zero", np.zeros(scale.shape, w.dtype))
    out, domain = edit.fresh(f"{name}_rounded"), reader.proto.domain
    kept = {a.name: helper.get_attribute_value(a) for a in reader.proto.attribute if a.name in ("axis", "block_size")}
    node = helper.make_node(
        "QuantizeLinear", [parameter, reader.input(1), zero], [out], edit.fresh_node(out), domain=domain, **kept
    )
    reader.proto.input[:] = [out, reader.input(1), zero]  # one zero point for both, or onnxruntime loses it on the way
    return parameter, held, [node]


def _cast(edit: Edit, name: str, dtype: np.dtype[np.generic]) -> list[NodeProto]:
    """Nodes that round a parameter to another floating type and back, for all that read it."""
    code = next(code for code, known in DTYPES.items() if known == dtype)
    if code == TensorProto.DOUBLE:
        return []
    narrow, wide = edit.fresh(f"{name}_narrow"), edit.fresh(f"{name}_wide")
    for graph in graphs(edit.graph):
        for node in graph.node:
            for k, read in enumerate(node.input):
                if read == name:
                    node.input[k] = wide
    return [
        helper.make_node("Cast", [name], [narrow], edit.fresh_node(narrow), to=code),
        helper.make_node("Cast", [narrow], [wide], edit.fresh_node(wide), to=TensorProto.FLOAT),
    ]


__all__ = ["OTHERS", "Form", "form_of"]
