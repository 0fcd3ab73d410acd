"""Rows of convolutions: a row per output position, its columns the patch (im2col), channel, then kernel position.

Of ConvTranspose they are the same after zeros were put between the inputs ("spread"), and the kernel is flipped. A
grouped convolution is one regression per group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.node import Node
from onnxprune.layers.finite import finite


@dataclass(frozen=True)
class Window:
    """How a convolution reads its input, per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    spread: tuple[int, ...]  # zeros are put between inputs, so that neighbours lie so far apart (ConvTranspose)

    def output(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Output positions per axis for inputs of the spatial size `size`."""
        spans = zip(size, self.kernel, self.strides, self.dilations, self.pads, self.spread, strict=True)
        return tuple(((s - 1) * z + 1 + a + b - d * (k - 1) - 1) // t + 1 for s, k, t, d, (a, b), z in spans)


def group_count(n: Node) -> int:
    """How many groups the channels are divided into."""
    return int(n.attr("group", 1))


def matrix(n: Node, w: Float) -> Float:
    """float64 `(groups, in, out)` of a weight `(O, I/g, k...)`."""
    g = group_count(n)
    return np.ascontiguousarray(w.reshape(g, w.shape[0] // g, -1).transpose(0, 2, 1))


def weight_of(n: Node, m: Float, shape: tuple[int, ...]) -> Float:
    """The inverse of `matrix`, of the weight's shape."""
    return np.asarray(m.transpose(0, 2, 1).reshape(shape))


def spread_matrix(n: Node, w: Float) -> Float:
    """float64 `(groups, in, out)` of a weight `(I, O/g, k...)`."""
    g = group_count(n)
    flipped = np.flip(w, tuple(range(2, w.ndim)))
    moved = np.moveaxis(flipped.reshape(g, -1, *w.shape[1:]), 2, -1)  # (g, I/g, k..., O/g)
    return np.ascontiguousarray(moved.reshape(g, -1, w.shape[1]))


def spread_weight_of(n: Node, m: Float, shape: tuple[int, ...]) -> Float:
    """The inverse of `spread_matrix`, of the weight's shape."""
    w = np.moveaxis(m.reshape(group_count(n), shape[0] // group_count(n), *shape[2:], shape[1]), -1, 2).reshape(shape)
    return np.asarray(np.flip(w, tuple(range(2, w.ndim))))


def _attributes(n: Node, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], list[int], str, list[int]]:
    """strides, dilations, pads (heads, then tails), auto_pad, and how far a kernel reaches, per spatial axis."""
    rank = len(kernel)
    dilations = tuple(n.attr("dilations", [1] * rank))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = list(n.attr("pads", [0] * 2 * rank))
    return tuple(n.attr("strides", [1] * rank)), dilations, pads, n.attr("auto_pad", "NOTSET"), spans


def window(n: Node, kernel: tuple[int, ...], size: tuple[int, ...]) -> Window:
    """Attributes of a convolution for inputs of the spatial size `size`, automatic padding resolved."""
    rank = len(kernel)
    strides, dilations, pads, auto, spans = _attributes(n, kernel)
    if auto.startswith("SAME"):
        total = [max((math.ceil(s / t) - 1) * t + k - s, 0) for s, t, k in zip(size, strides, spans, strict=True)]
        heads = [p - p // 2 if auto == "SAME_LOWER" else p // 2 for p in total]
        pads = heads + [p - h for p, h in zip(total, heads, strict=True)]
    elif auto == "VALID":
        pads = [0] * 2 * rank
    return Window(kernel, strides, dilations, tuple(zip(pads[:rank], pads[rank:], strict=True)), (1,) * rank)


def spread_window(n: Node, kernel: tuple[int, ...], size: tuple[int, ...]) -> Window:
    """As `window`, of a ConvTranspose: as a convolution, with stride 1, of inputs that were spread."""
    rank = len(kernel)
    strides, dilations, pads, auto, spans = _attributes(n, kernel)
    extra = list(n.attr("output_padding", [0] * rank))
    asked = n.attr("output_shape")
    if asked is not None or auto.startswith("SAME"):
        target = asked[-rank:] if asked is not None else [s * t for s, t in zip(size, strides, strict=True)]
        total = [t * (s - 1) + e + k - w for s, t, e, k, w in zip(size, strides, extra, spans, target, strict=True)]
        total = [max(p, 0) for p in total]
        heads = [p // 2 if auto == "SAME_UPPER" else p - p // 2 for p in total]
        pads = heads + [p - h for p, h in zip(total, heads, strict=True)]
    elif auto == "VALID":
        pads = [0] * 2 * rank
    inner = [(k - 1 - a, k - 1 - b + e) for k, a, b, e in zip(spans, pads[:rank], pads[rank:], extra, strict=True)]
    return Window(kernel, (1,) * rank, dilations, tuple(inner), strides)


def rows(x: Array, win: Window, g: int, picked: Array | None) -> Array:
    """float32 `(groups, n, in)`: the patches at `picked`, all where None, of one batch of inputs `(N, C, size...)`."""
    kernel, out = win.kernel, win.output(x.shape[2:])
    if math.prod(kernel) == 1 and set(win.strides) | set(win.spread) == {1} and not np.any(win.pads):
        flat = x.reshape(*x.shape[:2], -1)
        if picked is None:
            chosen = flat.transpose(0, 2, 1).reshape(-1, x.shape[1])
        else:
            chosen = flat[picked // flat.shape[2], :, picked % flat.shape[2]]
        return finite(chosen).reshape(len(chosen), g, -1).transpose(1, 0, 2)
    if any(z > 1 for z in win.spread):
        wide = np.zeros(
            (*x.shape[:2], *((s - 1) * z + 1 for s, z in zip(x.shape[2:], win.spread, strict=True))), x.dtype
        )
        wide[(slice(None), slice(None), *(slice(None, None, z) for z in win.spread))] = x
        x = wide
    crop = tuple(slice(max(0, -a), x.shape[2 + k] - max(0, -b)) for k, (a, b) in enumerate(win.pads))
    x = x[(slice(None), slice(None), *crop)]
    x = np.pad(x, ((0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in win.pads)))
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, win.dilations, strict=True))
    axes = tuple(range(2, x.ndim))
    view: Array = np.lib.stride_tricks.sliding_window_view(x, spans, axis=axes)
    steps = tuple(slice(None, None, t) for t in win.strides)
    taps = tuple(slice(None, None, d) for d in win.dilations)
    view = view[:, :, *steps, *taps]
    if picked is None:
        view = np.moveaxis(view, 1, 1 + len(kernel))  # (N, out..., C, k...)
        chosen = view.reshape(-1, x.shape[1] * math.prod(kernel))
    else:
        which, *place = np.unravel_index(picked, (x.shape[0], *out))
        index: Any = (which, slice(None), *place)
        chosen = view[index].reshape(len(picked), -1)
    return finite(chosen).reshape(len(chosen), g, -1).transpose(1, 0, 2)


def output_rows(y: Array, picked: Array | None) -> Array:
    """float32 `(n, channels)` of a tensor `(N, channels, size...)` of the shape of the output."""
    flat = y.reshape(*y.shape[:2], -1)
    if picked is None:
        return finite(flat.transpose(0, 2, 1).reshape(-1, y.shape[1]))
    return finite(flat[picked // flat.shape[2], :, picked % flat.shape[2]])
