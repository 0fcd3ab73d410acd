"""What a row is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx import ModelProto, parser


@dataclass(frozen=True)
class Row:
    """op: key of GRADIENTS; inputs, nodes, weights: parts of a model as onnx.parser reads it, `double` throughout; its
    outputs are all of type double, of any shape.

    sizes: of dynamic axes, by symbol; feeds: values of inputs, the others lie between low and high; fixed: inputs that
    are not differentiated by; runtime: what runs it in float64, `reference` (onnx's evaluator) or `onnxruntime`, or
    `float32`, where neither can: onnxruntime in float32; step: of the differences in float32; single: whether float32
    in onnxruntime is tried as well; second: whether second derivatives are; checked: whether onnx's shape inference can
    read the result; input_shape: sizes that are given when the gradient is built.
    """

    op: str
    form: str
    inputs: str
    nodes: str
    weights: str = ""
    outputs: str = "double[] y"
    opset: int = 18
    sizes: Mapping[str, int] = field(default_factory=dict)
    feeds: Mapping[str, Any] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    low: float = 0.4
    high: float = 1.6
    runtime: str = "reference"
    step: float = 0.1
    single: bool = True
    second: bool = True
    checked: bool = True
    input_shape: Mapping[str, tuple[int, ...]] | None = None

    def model(self, kind: str = "double") -> ModelProto:
        """The model, with `double` replaced."""
        imports = f'"" : {self.opset}, "com.microsoft" : 1'
        text = f"g ({self.inputs}) => ({self.outputs}) <{self.weights}> {{ {self.nodes} }}".replace("double", kind)
        return parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]> {text}")


ROWS: list[Row] = []


def row(op: str, form: str, inputs: str, nodes: str, weights: str = "", **more: Any) -> None:
    """Add a row."""
    ROWS.append(Row(op, form, inputs, nodes, weights, **more))
