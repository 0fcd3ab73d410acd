"""Which sizes of a model are fixed: its shapes at one size of every dynamic axis, and at another.

What is the same in both does not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxprune.errors import UserError
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import Shapes, fixed, graph_inputs, infer, symbol_of


def probes(model: Model, input_shapes: Mapping[str, tuple[int, ...]]) -> list[Shapes]:
    """Shapes of all tensors; one where all sizes of the inputs are fixed or given, else two that differ in all others.

    Raises `OptionError` for a shape that does not fit, `UserError` where no two sets of sizes fit the graph.
    """
    first = infer(model, input_shapes)
    symbols: dict[str, list[tuple[str, int]]] = {}  # symbol -> the axes that have its size
    for info in graph_inputs(model):
        for k, d in enumerate(info.type.tensor_type.shape.dim):
            if not fixed(d) and info.name not in input_shapes:
                symbols.setdefault(symbol_of(d) or f"{info.name} {k}", []).append((info.name, k))
    if not symbols:
        return [first]

    def other(factors: Sequence[int]) -> Shapes | None:
        """The shapes with the size of each symbol times its factor; None where they do not fit the graph."""
        shapes = {i.name: list(first.shapes[i.name]) for i in graph_inputs(model) if i.name in first.shapes}
        for axes, factor in zip(symbols.values(), factors, strict=True):
            for name, k in axes:
                shapes[name][k] = factor * (first.shapes[name][k] or 1)
        found = infer(model, {name: tuple(d or 1 for d in shape) for name, shape in shapes.items()})
        return found if len(found.problems) <= len(first.problems) else None

    count = len(symbols)
    second = other(range(2, 2 + count))
    if second is not None:
        return [first, second]
    second = other([2] * count)  # axes that must have one size, or of which one may be 1
    if second is None:
        raise UserError(f"the sizes of {', '.join(symbols)} are not free; give them with --input-shape")
    more = [other([1 if k == one else 2 for k in range(count)]) for one in range(count) if count > 1]
    return [first, second, *(probe for probe in more if probe is not None)]
