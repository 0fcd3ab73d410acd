"""What the integers of a quantized weight stand for: (integer - zero point) * scale.

The table of facts says which inputs hold scales and zero points (`Trait.scales`, `Trait.zeros`). Where an input is
absent, the scale is one and the zero point zero; where bytes hold several values each, it is the middle of their range.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.graph.node import Node
from onnxprune.graph.traits import TRAITS

Value = Callable[[str], Array | None]  # of a constant by its name
QUANTIZES = ("QuantizeLinear", "com.microsoft::QuantizeLinear")
DEQUANTIZES = ("DequantizeLinear", "com.microsoft::DequantizeLinear")


def numbers(n: Node, name: str, value: Value) -> Array | None:
    """The weight `name` of a node in float32, as the node reads it, of the constant's shape; where a byte holds several
    values, these are one axis more, the last. None where weight, scale or zero point has no value, or does not fit."""
    w, trait = value(name), TRAITS.get(n.op)
    slot = n.inputs.index(name) if name in n.inputs else -1
    if w is None or trait is None or slot not in trait.weights or not trait.steps:
        return None if w is None else np.asarray(w).astype(np.float32, copy=False)
    k = trait.weights.index(slot)
    held = [n.input(slots[k]) if k < len(slots) else "" for slots in (trait.scales, trait.zeros)]
    scale, zero = (value(i) if i else None for i in held)
    if any(i and v is None for i, v in zip(held, (scale, zero), strict=True)):
        return None
    try:
        return LAYOUTS.get(n.op, plain)(n, slot, np.asarray(w), scale, zero)
    except ValueError:  # there are not as many as the weight needs
        return None


def plain(n: Node, slot: int, w: Array, scale: Array | None, zero: Array | None) -> Array:
    """Integers of their own, with a scale and a zero point for all or for every output."""
    outputs = TRAITS[n.op].axes(n, slot)[1]
    out = w.astype(np.float32)
    if zero is not None:
        out = out - along(np.asarray(zero).astype(np.float32), out.ndim, outputs)
    return out if scale is None else out * along(np.asarray(scale).astype(np.float32), out.ndim, outputs)


def blocks(n: Node, slot: int, w: Array, scale: Array | None, zero: Array | None) -> Array:
    """MatMulNBits, (outputs, blocks, bytes): a scale and a zero point for every block; zeros behind the last input."""
    bits, (outputs, count, size) = int(n.attr("bits", 4)), w.shape
    middle = np.full((outputs, count), 1 << (bits - 1), np.float32)
    offset = middle if zero is None else block_zeros(np.asarray(zero), bits, outputs, count).astype(np.float32)
    out = unpacked(w, bits).astype(np.float32) - offset[:, :, None, None]
    out = out * (1 if scale is None else np.asarray(scale).astype(np.float32).reshape(outputs, count, 1, 1))
    out.reshape(outputs, -1)[:, int(n.attr("K")) :] = 0
    return out.reshape(outputs, count, size, -1)


def experts(n: Node, slot: int, w: Array, scale: Array | None, zero: Array | None) -> Array:
    """QMoE, (experts, outputs, bytes): a scale and a zero point for every output, or for every block of its inputs."""
    bits = expert_bits(n, TRAITS[n.op].weights.index(slot))
    values = unpacked(w, bits).astype(np.float32).reshape(*w.shape[:2], -1)
    size = max(0, int(n.attr("block_size", 0)))
    count = values.shape[2] // size if size else 1

    def spread(step: Array) -> Array:
        step = step.astype(np.float32).reshape(*w.shape[:2], count)
        return np.repeat(step, values.shape[2] // count, 2)

    if zero is None:
        values = values - (1 << (bits - 1))
    else:
        stored = unpacked(np.asarray(zero), bits).reshape(*zero.shape[:-1], -1)
        values = values - spread(stored[..., : count if size else w.shape[1]])
    return (values if scale is None else values * spread(np.asarray(scale))).reshape(*w.shape, -1)


def expert_bits(n: Node, layer: int) -> int:
    """Bits of a value of the first, second or third layer of all experts of QMoE."""
    return int(n.attr(f"fc{layer + 1}_expert_weight_bits", n.attr("expert_weight_bits", 4)))


def table(n: Node, slot: int, w: Array, scale: Array | None, zero: Array | None) -> Array:
    """GatherBlockQuantized, (rows, width or bytes): a scale and a zero point for every block of the width."""
    bits, middle = int(n.attr("bits", 4)), 0
    values, size = w, int(n.attr("block_size", 128))
    if w.dtype == np.uint8:
        values, middle = unpacked(w, bits).reshape(len(w), -1), 1 << (bits - 1)
        zero = None if zero is None else unpacked(np.asarray(zero), bits).reshape(len(w), -1)
    at = np.arange(values.shape[1]) // size
    out = values.astype(np.float32) - (middle if zero is None else np.asarray(zero).astype(np.float32)[:, at])
    out = out if scale is None else out * np.asarray(scale).astype(np.float32)[:, at]
    return out.reshape(*w.shape, -1) if values.shape != w.shape else out


def directions(n: Node, slot: int, w: Array, scale: Array | None, zero: Array | None) -> Array:
    """DynamicQuantizeLSTM, (directions, inputs, outputs): a scale and a zero point for all of one, or every output."""
    out = w.astype(np.float32)
    if zero is not None:
        out = out - np.asarray(zero).astype(np.float32).reshape(len(w), 1, -1)
    return out if scale is None else out * np.asarray(scale).astype(np.float32).reshape(len(w), 1, -1)


LAYOUTS = {
    "com.microsoft::DynamicQuantizeLSTM": directions,
    "com.microsoft::GatherBlockQuantized": table,
    "com.microsoft::MatMulNBits": blocks,
    "com.microsoft::QMoE": experts,
}  # else `plain`


def block_zeros(zero: Array, bits: int, outputs: int, count: int) -> Array:
    """Zero points of MatMulNBits, `(outputs, count)`, of bytes that hold several or of values of their own."""
    if zero.dtype == np.uint8 and bits < 8:
        return unpacked(zero.reshape(outputs, -1), bits).reshape(outputs, -1)[:, :count]
    return zero.reshape(outputs, count)


def unpacked(w: Array, bits: int) -> Array:
    """The values that bytes `(...)` hold, the low bits first, `(..., 8 // bits)`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (w[..., None] >> shifts) & np.uint8((1 << bits) - 1)


def packed(values: Array, bits: int) -> Array:
    """Bytes of the values along the last axis, uint8, the low bits first; zeros fill the last byte."""
    count = 8 // bits
    padded = np.pad(values.astype(np.uint8), [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % count)])
    parts = padded.reshape(*padded.shape[:-1], -1, count) << np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray(np.bitwise_or.reduce(parts, -1))


def along(vector: Array, rank: int, axis: int) -> Array:
    """A vector, or a number, shaped to stand along one axis of that many; what has several axes is left as it is."""
    if vector.size == 1:
        return vector.reshape(())
    return vector.reshape([-1 if k == axis % rank else 1 for k in range(rank)]) if vector.ndim == 1 else vector
