"""A node as the rules see it: operator, names of inputs and outputs, attributes with defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx

DEFAULT_DOMAINS = ("", "ai.onnx")
OWN_DOMAIN = "onnxprune"  # of our sparse operators, whose functions are never inlined


class Node:
    """A view of a `NodeProto`; it holds no state of its own beyond the proto.

    `op` is the operator's name, with the domain in front where it is not ONNX's own:
    `Conv`, `com.microsoft::FusedConv`.
    """

    __slots__ = ("attributes", "inputs", "op", "opset", "outputs", "proto")

    def __init__(self, proto: onnx.NodeProto, opset: int) -> None:
        self.proto = proto
        self.opset = opset
        self.renew()

    def renew(self) -> None:
        """Read the proto again, which has become another node."""
        proto = self.proto
        self.inputs: list[str] = list(proto.input)
        self.outputs: list[str] = list(proto.output)
        self.op = proto.op_type if proto.domain in DEFAULT_DOMAINS else f"{proto.domain}::{proto.op_type}"
        self.attributes = {a.name: a for a in proto.attribute}

    @property
    def label(self) -> str:
        """The node's name, or, where it has none, operator and first output."""
        return self.proto.name or f"{self.proto.op_type}({self.key})"

    @property
    def key(self) -> str:
        """Identifies the node in a model and in its copies: the first output, which no other node has."""
        return next((o for o in self.outputs if o), "")

    def input(self, i: int) -> str:
        """Name of input `i`; the empty string where it is left out."""
        return self.inputs[i] if i < len(self.inputs) else ""

    def output(self, i: int) -> str:
        """Name of output `i`; the empty string where it is left out."""
        return self.outputs[i] if i < len(self.outputs) else ""

    def attr(self, name: str, default: Any = None) -> Any:
        """Value of an attribute; strings come as `str`, lists as `list`."""
        a = self.attributes.get(name)
        if a is None:
            return default
        value = onnx.helper.get_attribute_value(a)
        if isinstance(value, bytes):
            return value.decode(errors="replace")
        return list(value) if a.type in _LISTS else value

    def bodies(self) -> Iterator[onnx.GraphProto]:
        """The bodies of If, Loop and Scan."""
        for a in self.proto.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield a.g
            yield from a.graphs

    def __repr__(self) -> str:
        return f"Node({self.op} {self.label!r})"


_LISTS = {
    onnx.AttributeProto.INTS,
    onnx.AttributeProto.FLOATS,
    onnx.AttributeProto.STRINGS,
}


def opsets(proto: onnx.ModelProto) -> dict[str, int]:
    """Domain -> opset version; ONNX's own domain is `""`."""
    return {"" if o.domain in DEFAULT_DOMAINS else o.domain: o.version for o in proto.opset_import}


def walk(graph: onnx.GraphProto, versions: Mapping[str, int]) -> Iterator[Node]:
    """Nodes of one graph in order, without those of its bodies."""
    for proto in graph.node:
        yield Node(proto, versions.get("" if proto.domain == "ai.onnx" else proto.domain, 1))


def walk_all(graph: onnx.GraphProto, versions: Mapping[str, int]) -> Iterator[Node]:
    """Nodes in order, every body right before the node that owns it."""
    for node in walk(graph, versions):
        for body in node.bodies():
            yield from walk_all(body, versions)
        yield node
