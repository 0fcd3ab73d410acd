"""The preset that a model was trained with, guessed from its first convolution."""

from __future__ import annotations

import functools

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.calibration.leaves import dead_leaves, pink
from onnxprune.calibration.presets import (
    PRESETS,
    Preset,
    image_axes,
    per_channel,
)
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.links import makers, readers
from onnxprune.graph.node import Node, opsets, walk_all

INSIDE = ("Sub", "Div", "Mul", "Add", "BatchNormalization", "ImageScaler", "Affine")
THROUGH = (
    "Transpose", "Pad", "Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Slice", "Concat", "Reshape",
)  # fmt: skip
STEPS = 8  # nodes between the input and the first convolution
PROBES = (16, 48)  # how many made-up images, pixels of a side
WORST = 10.0  # what one filter can add to a misfit
AS_GOOD = 2.0  # factor of deviations within which imagenet is preferred, of grey images unit


def guess(model: Model, info: onnx.ValueInfoProto) -> str:
    """The preset that fits the first convolution best.

    Integers, and models that normalise inside, get pixels. Where BatchNormalization follows the convolution, its
    recorded moments are compared with those of made-up images; else the convolution's outputs should vary by about one
    (models trained without normalisation may have larger ones, and be misjudged).
    """
    if info.type.tensor_type.elem_type in (TensorProto.UINT8, TensorProto.INT8):
        return "raw"
    nodes = list(walk_all(model.proto.graph, opsets(model.proto)))
    readers_of = readers(nodes)
    first = _first(model, info.name, readers_of)
    if first is None:
        return "unit"
    if first.op in INSIDE:
        return "raw"
    w = _weight(model, first.input(1), makers(nodes))
    axes = image_axes(info)
    if w is None or w.ndim != 4 or axes is None or w.shape[1] % axes[1]:
        return "unit"
    w = w.reshape(len(w), -1, axes[1], *w.shape[2:]).sum(1)  # of space to depth: neighbouring pixels are alike
    if not np.abs(w).max():
        return "imagenet"
    norm = next((n for n in readers_of.get(first.key, []) if n.op == "BatchNormalization"), None)
    bias = model.weights.get(first.input(2)) if len(first.inputs) > 2 else None
    if norm is not None and norm.input(3) in model.weights and norm.input(4) in model.weights:
        mean, var = (np.asarray(model.weights[norm.input(k)], np.float64) for k in (3, 4))
        return _by_moments(w, mean if bias is None else mean - np.asarray(bias, np.float64), var)
    return _by_deviation(w, np.zeros(len(w)) if bias is None else np.asarray(bias, np.float64))


def _first(model: Model, name: str, readers_of: dict[str, list[Node]]) -> Node | None:
    """The first convolution of an input, or the operator that normalises it inside the model."""
    front = [name]
    for _ in range(STEPS):
        nodes = [n for at in front for n in readers_of.get(at, [])]
        for node in nodes:
            if node.op in INSIDE and (len(node.inputs) == 1 or any(i in model.weights for i in node.inputs)):
                return node
            if node.op.split("::")[-1] in ("Conv", "FusedConv"):
                return node
        front = list(dict.fromkeys(o for n in nodes if n.op in THROUGH for o in n.outputs))
    return None


def _weight(model: Model, name: str, maker_of: dict[str, Node]) -> Array | None:
    """A weight as float64, also a quantised one `(q - zero) * scale`."""
    if name in model.weights:
        return np.asarray(model.weights[name], np.float64)
    node = maker_of.get(name)
    if node is None or node.op != "DequantizeLinear" or not all(i in model.weights for i in node.inputs if i):
        return None
    q, scale, *zero = (np.asarray(model.weights[i], np.float64) for i in node.inputs if i)
    each = (-1, *[1] * (q.ndim - 1)) if scale.size > 1 else ()
    if scale.size not in (1, len(q)):
        return None
    return np.asarray((q - (zero[0].reshape(each) if zero else 0)) * scale.reshape(each))


@functools.cache
def _probes(channels: int) -> Array:
    """Made-up images `(n, channels, h, w)`, 0 to 255."""
    count, side = PROBES
    textures = [pink((side, side), np.random.default_rng([0, k])) for k in range(8)]
    x = np.stack([dead_leaves((side, side), np.random.default_rng([1, k]), textures) for k in range(count)])
    x = x.mean(-1, keepdims=True) if channels == 1 else np.concatenate([x, x[..., :1]], -1)[..., :channels]
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float64)


def _candidates(channels: int) -> list[str]:
    """Presets that make sense for an image: grey ones are not normalised by colour."""
    return [name for name, preset in PRESETS.items() if channels > 1 or len(preset.mean) == 1]


def _moments(w: Array, preset: Preset) -> tuple[Array, Array]:
    """Mean and variance of every filter's output on made-up images, without bias."""
    channels = w.shape[1]
    x = _probes(channels)
    if preset.order == "BGR" and channels >= 3:
        x = x[:, [2, 1, 0, *range(3, channels)]]
    mean, std = (per_channel(v, channels).astype(np.float64).reshape(-1, 1, 1) for v in (preset.mean, preset.std))
    x = (x * preset.scale - mean) / std
    kh, kw = (min(k, PROBES[1]) for k in w.shape[2:])
    patches = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), (2, 3))[:, :, ::3, ::3]
    y = np.tensordot(w[:, :, :kh, :kw], patches, ((1, 2, 3), (1, 4, 5))).reshape(len(w), -1)
    return y.mean(1), y.var(1)


def _by_moments(w: Array, mean: Array, var: Array) -> str:
    """The preset whose outputs have the recorded moments `(out,)` of the BatchNormalization that follows."""

    def misfit(name: str) -> float:
        m, v = _moments(w, PRESETS[name])
        alive = (v > 1e-12) & (var > 1e-12)
        each = np.abs(np.log(v[alive] / var[alive])) + (m[alive] - mean[alive]) ** 2 / var[alive]
        return float(np.minimum(each, WORST).mean()) if alive.any() else WORST

    return min(_candidates(w.shape[1]), key=misfit)


def _by_deviation(w: Array, bias: Array) -> str:
    """The preset whose outputs vary most nearly by one."""
    alive = np.abs(w).max((1, 2, 3)) > 1e-6 * np.abs(w).max()
    distance = {}
    for name in _candidates(w.shape[1]):
        deviation = float(np.sqrt(np.median(_moments(w, PRESETS[name])[1][alive])))
        distance[name] = abs(float(np.log(max(deviation, 1e-12))))
    best = min(distance, key=lambda name: distance[name])
    usual = "imagenet" if "imagenet" in distance else "unit"
    if distance[usual] <= distance[best] + float(np.log(AS_GOOD)):
        return usual
    if best not in ("raw", "caffe") or "caffe" not in distance:
        return best
    sums = w.sum((1, 2, 3)) * 118.0  # of pixels about their mean; biases answer it where nothing subtracts it
    total = float(np.square(sums).sum())
    return "caffe" if total and 1 + float((sums * bias).sum()) / total > 0.5 else "raw"
