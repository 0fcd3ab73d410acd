"""The table of rules: what each operator ties, and how its sizes follow when axes shrink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxprune.graph.node import Node
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.surgeon import Surgeon

Couple = Callable[[Coupling, Node], None]
Resize = Callable[[Surgeon, Node], None]


@dataclass(frozen=True)
class Rule:
    """couple: states ties, pins and consumers; resize: rewrites sizes held in attributes or shape inputs."""

    couple: Couple
    resize: Resize | None
    summary: str


RULES: dict[str, Rule] = {}
BARRIERS: dict[str, str] = {}  # operator -> why it pins everything that it touches


def rule(*ops: str, resize: Resize | None = None) -> Callable[[Couple], Couple]:
    """Register a rule for operators; the first line of its docstring is what `onnxprune ops` prints."""

    def register(couple: Couple) -> Couple:
        summary = (couple.__doc__ or "").strip().splitlines()[0]
        for op in ops:
            assert op not in RULES, op
            RULES[op] = Rule(couple, resize, summary)
        return couple

    return register


def barrier(reason: str, *ops: str) -> None:
    """Register operators that deliberately pin all that they touch."""
    for op in ops:
        assert op not in BARRIERS, op
        BARRIERS[op] = reason
