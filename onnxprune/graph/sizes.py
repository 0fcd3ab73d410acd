"""What can be proved of shapes: with dynamic axes set once to the sizes of the analysis, and once to others.

Two tensors have the same shape for certain only where they have it under both, an axis is static only where it is the
same in both. A dynamic axis of another name gets another size, so that no two of them agree by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from onnxprune.graph.io import Model
from onnxprune.graph.shapes import Shape, Shapes, fixed, graph_inputs, infer


class Sizes:
    """Shapes of a model's tensors, inferred when first asked for.

    input_shape: input name -> concrete shape, where the declared one is dynamic and cannot be guessed.
    """

    def __init__(self, model: Model, input_shape: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.model = model
        self.input_shape = input_shape

    @cached_property
    def _variants(self) -> list[Shapes]:
        """Under the sizes of the analysis, and under others where an axis is dynamic."""
        first = infer(self.model, self.input_shape)
        factors: dict[str, int] = {}
        other: dict[str, tuple[int, ...]] = {}
        for info in graph_inputs(self.model):
            t, guess = info.type.tensor_type, first.shapes.get(info.name)
            if not info.type.HasField("tensor_type") or guess is None or None in guess:
                continue
            if not t.HasField("shape"):
                return [first, Shapes(self.model)]  # of unknown rank: nothing is certain
            if all(fixed(d) for d in t.shape.dim):
                continue
            sizes = []
            for k, (d, size) in enumerate(zip(t.shape.dim, guess, strict=True)):
                factor = 1 if fixed(d) else factors.setdefault(d.dim_param or f"{info.name}[{k}]", len(factors) + 2)
                sizes.append((size or 0) * factor)
            other[info.name] = tuple(sizes)
        return [first, infer(self.model, other)] if other else [first]

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor, None for an axis that is unknown or dynamic; None where not even its rank is known."""
        shapes = [variant.shapes.get(name) for variant in self._variants]
        first = shapes[0]
        if first is None or any(s is None or len(s) != len(first) for s in shapes):
            return None
        return tuple(
            d[0] if len(set(d)) == 1 else None for d in zip(*(s for s in shapes if s is not None), strict=True)
        )

    def rank(self, name: str) -> int | None:
        """Rank of a tensor; None where it is not known for certain."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def same(self, a: str, b: str) -> bool:
        """Whether two tensors certainly have the same shape."""
        shapes = [(variant.shapes.get(a), variant.shapes.get(b)) for variant in self._variants]
        return all(s is not None and None not in s and s == t for s, t in shapes)
