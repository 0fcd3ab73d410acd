"""The table of gradients: one vector-Jacobian product per ONNX operator, written as ONNX nodes.

A rule gets the node and the names of the gradients of its outputs, and gives the names of those of its inputs:

    @gradient("Mul")
    def mul(b: Backward, n: Node, dy: Gradients) -> Gradients:
        '''dx = dy * y, dy = dy * x, summed over the axes that were broadcast'''

The table is closed: a rule makes only nodes of operators that have a rule, or none by reason, so that the gradient of a
gradient exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from onnxprune.gradient.backward import Backward, Gradients, NoRule
from onnxprune.graph.node import Node

__all__ = [
    "GRADIENTS", "NOT_YET", "NO_GRADIENTS", "Gradient", "Gradients", "NoRule", "Rule", "gradient", "no_gradient",
    "not_yet",
]  # fmt: skip

Rule: TypeAlias = Callable[[Backward, Node, Gradients], Gradients]


@dataclass(frozen=True)
class Gradient:
    """rule: makes the nodes; summary: what `onnxprune ops --gradients` prints."""

    rule: Rule
    summary: str


GRADIENTS: dict[str, Gradient] = {}
NO_GRADIENTS: dict[str, str] = {}  # operator -> why nothing flows back through it
NOT_YET: dict[str, str] = {}  # operator -> why it has no rule


def gradient(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators; the first line of its docstring is its summary."""

    def register(rule: Rule) -> Rule:
        summary = (rule.__doc__ or "").strip().splitlines()[0]
        for op in ops:
            assert op not in GRADIENTS and op not in NO_GRADIENTS, op
            GRADIENTS[op] = Gradient(rule, summary)
        return rule

    return register


def no_gradient(reason: str, *ops: str) -> None:
    """Register operators whose derivative is zero, or that do not compute with numbers: nothing flows back."""
    for op in ops:
        assert op not in GRADIENTS and op not in NO_GRADIENTS, op
        NO_GRADIENTS[op] = reason


def not_yet(reason: str, *ops: str) -> None:
    """Register operators that have a derivative, but no rule; the reason stands behind their name in errors."""
    for op in ops:
        assert op not in GRADIENTS and op not in NO_GRADIENTS and op not in NOT_YET, op
        NOT_YET[op] = reason
