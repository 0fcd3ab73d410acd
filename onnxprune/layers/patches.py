"""Rows of convolutions: a row per output position, its columns the patch (im2col), channel, then kernel position.

Of ConvTranspose they are the same after zeros were put between the inputs ("spread"), and the kernel is flipped. A
grouped convolution is one regression per group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.node import Node
from onnxprune.kernels.compiled import njit
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
    chosen = _gathered(x, _taps(win, x.shape[2:]), picked)
    return chosen.reshape(len(chosen), g, chosen.shape[1] // g).transpose(1, 0, 2)


def output_rows(y: Array, picked: Array | None) -> Array:
    """float32 `(n, channels)` of a tensor `(N, channels, size...)` of the shape of the output."""
    return _gathered(y, (np.zeros((1, 1), np.int64), np.arange(math.prod(y.shape[2:]))[:, None]), picked)


def _taps(win: Window, size: tuple[int, ...]) -> tuple[Array, Array]:
    """Where the taps of a kernel read an input of the spatial size `size`, counted along it flat; -1 beside the input.

    What all axes but the last add, int64 `(outputs, taps)`, and what the last one adds, int64 `(outputs, taps)`.
    """
    axes: list[Array] = []
    spans = zip(size, win.output(size), win.kernel, win.strides, win.dilations, win.pads, win.spread, strict=True)
    for axis, (s, o, k, t, d, (head, _), z) in enumerate(spans):
        at = np.arange(o)[:, None] * t + np.arange(k) * d - head  # among the inputs spread
        known = (at >= 0) & (at % z == 0) & (at // z < s)
        axes.append(np.where(known, at // z * math.prod(size[axis + 1 :]), -1))
    outer = np.zeros((1, 1), np.int64)
    for table in axes[:-1]:
        a, b = outer[:, None, :, None], table[None, :, None, :]
        both = np.where((a >= 0) & (b >= 0), a + b, -1)
        outer = both.reshape(len(outer) * len(table), outer.shape[1] * table.shape[1])
    return outer, axes[-1]


def _gathered(x: Array, taps: tuple[Array, Array], picked: Array | None) -> Array:
    """float32 `(n, C * taps)`: what the taps read of `(N, C, size...)` at the picked positions, all where None."""
    outer, last = taps
    if picked is None:
        picked = np.arange(len(x) * len(outer) * len(last))
    if x.dtype != np.float32:
        x = finite(x)
    out = np.empty((len(picked), x.shape[1] * outer.shape[1] * last.shape[1]), np.float32)
    _gather(np.ascontiguousarray(x).ravel(), x.shape[1], math.prod(x.shape[2:]), outer, last, picked, out)
    return out


@njit(nogil=True)
def _gather(x: Array, channels: int, size: int, outer: Array, last: Array, picked: Array, out: Array) -> None:
    """Fill in out, float32 `(n, channels * taps)`: 0 beside the inputs, NaN for what is not finite.

    x: float32 `(N * channels * size,)`; outer, last: of `_taps`; picked: int64 `(n,)`.
    """
    wide, taps = len(last), outer.shape[1] * last.shape[1]
    place = np.empty(taps, np.int64)
    for i in range(len(picked)):
        sample, position = divmod(picked[i], len(outer) * wide)
        a, b = divmod(position, wide)
        for j in range(outer.shape[1]):
            for k in range(last.shape[1]):
                known = outer[a, j] >= 0 and last[b, k] >= 0
                place[j * last.shape[1] + k] = sample * channels * size + outer[a, j] + last[b, k] if known else -1
        # unsigned: no check for indices that count from the end; one tap alone: a loop less, twice as fast
        if taps == 1 and place[0] >= 0:
            for c in range(channels):
                v = x[np.uint64(place[0] + c * size)]
                out[i, c] = v if abs(v) < np.inf else np.float32(np.nan)
        else:
            for c in range(channels):
                for k in range(taps):
                    v = x[np.uint64(place[k] + c * size)] if place[k] >= 0 else np.float32(0)
                    out[i, np.uint64(c * taps + k)] = v if abs(v) < np.inf else np.float32(np.nan)
