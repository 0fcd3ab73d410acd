"""What the integers of a quantized weight stand for: (integer - zero point) * scale.

The table of facts says which inputs hold scales and zero points (`Trait.scales`, `Trait.zeros`). Where an input is
absent, the scale is one and the zero point zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.graph.node import Node
from onnxprune.graph.traits import TRAITS

Value = Callable[[str], Array | None]  # of a constant by its name


def numbers(n: Node, name: str, value: Value) -> Array | None:
    """The weight `name` of a node in float32, as the node reads it, of the constant's shape; where a byte holds several
    values, these are one axis more, the last. None where the weight, a scale or a zero point has no value."""
    w, trait = value(name), TRAITS.get(n.op)
    slot = n.inputs.index(name) if name in n.inputs else -1
    if w is None or trait is None or slot not in trait.weights or not trait.steps:
        return None if w is None else np.asarray(w).astype(np.float32, copy=False)
    k, (_, outputs) = trait.weights.index(slot), trait.axes(n, slot)
    out = np.asarray(w).astype(np.float32)
    for slots, sign in ((trait.zeros, -1), (trait.scales, 1)):
        if k >= len(slots) or not n.input(slots[k]):
            continue
        step = value(n.input(slots[k]))
        if step is None:
            return None
        step = along(np.asarray(step).astype(np.float32), out.ndim, outputs)
        out = out - step if sign < 0 else out * step
    return out


def along(vector: Array, rank: int, axis: int) -> Array:
    """A vector, or a number, shaped to stand along one axis of that many; what has several axes is left as it is."""
    if vector.size == 1:
        return vector.reshape(())
    return vector.reshape([-1 if k == axis % rank else 1 for k in range(rank)]) if vector.ndim == 1 else vector
