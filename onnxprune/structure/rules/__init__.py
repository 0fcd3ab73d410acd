"""One rule per ONNX operator; families are one line each. A new operator touches one of these files."""

from onnxprune.structure.rules import attention, barriers, elementwise, layout, linear, quantized, recurrent, reduction
from onnxprune.structure.rules.registry import BARRIERS, RULES, Rule

__all__ = [
    "BARRIERS",
    "RULES",
    "Rule",
    "attention",
    "barriers",
    "elementwise",
    "layout",
    "linear",
    "quantized",
    "recurrent",
    "reduction",
]
