"""Sums of products along named axes, determinants, and transforms that are products with fixed matrices."""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence

import numpy as np

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.registry import Gradients, NoRule, gradient
from onnxprune.gradient.through import decomposed
from onnxprune.gradient.windows import Windows
from onnxprune.graph.node import Node


@gradient("Einsum")
def einsum(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """to every operand, the Einsum of dy and the others onto its axes, of which one that is named twice is diagonal"""
    assert dy[0]
    terms, result = _terms(b, n)
    out: Gradients = []
    for i, (x, term) in enumerate(zip(n.inputs, terms, strict=True)):
        if not b.needs(i):
            out.append(None)
            continue
        term, units = _apart(b, x, term, "".join([result, *terms]))
        others = [(n.inputs[k], terms[k]) for k in range(len(terms)) if k != i] + units
        there = set(result).union(*(letters for _, letters in others))
        found = "".join(c for c in term if c in there)
        left = ",".join([result, *(letters for _, letters in others)])
        g = b.op("Einsum", dy[0], *(name for name, _ in others), equation=f"{left}->{found}")
        summed = [k for k, c in enumerate(term) if c not in there]  # the same along these
        if summed:
            g = b.op("Expand", b.unsqueeze(g, summed), b.shape_of(x))
        out.append(b.unbroadcast(g, x))
    return out


def _apart(b: Backward, x: str, term: str, used: str) -> tuple[str, list[tuple[str, str]]]:
    """Other letters for the second and later ones of a kind in the term of `x`, and unit matrices that tie them, each
    with its letters."""
    free = iter(c for c in string.ascii_letters if c not in used)
    letters, units = "", []
    for k, c in enumerate(term):
        if c in letters:
            size = b.shape(x)[k]
            if size is None:
                raise NoRule("an axis of unknown size that is named twice")
            other = next(free)
            units.append((b.constant(np.eye(size), like=x), c + other))
            c = other
        letters += c
    return letters, units


def _terms(b: Backward, n: Node) -> tuple[list[str], str]:
    """The letters of every operand and of the result; axes of an ellipsis get letters of their own."""
    left, arrow, right = str(n.attr("equation")).replace(" ", "").partition("->")
    terms = left.split(",")
    free = [c for c in string.ascii_letters if c not in left]
    extra = [b.rank(x) - len(t.replace("...", "")) if "..." in t else 0 for x, t in zip(n.inputs, terms, strict=True)]
    dots = "".join(free[: max(extra)])
    if not arrow:
        names = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        right = ("..." if "..." in left else "") + "".join(names)
    full = [t.replace("...", dots[len(dots) - k :]) for t, k in zip(terms, extra, strict=True)]
    return full, right.replace("...", dots)


@gradient("Det")
def det(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy times the cofactors, each the determinant of what is left without a row and a column"""
    assert dy[0]
    x = n.input(0)
    rank, size = b.rank(x), b.shape(x)[-1]
    if size is None:
        raise NoRule("the size of its matrices is not known")
    g = b.unsqueeze(dy[0], [rank - 2, rank - 1])
    if size == 1:
        return [g]
    rest = [b.constant([k for k in range(size) if k != i]) for i in range(size)]
    rows = []
    for i in range(size):
        under = b.op("Gather", x, rest[i], axis=rank - 2)
        minors = [b.op("Det", b.op("Gather", under, rest[j], axis=rank - 1)) for j in range(size)]
        signed = [m if (i + j) % 2 == 0 else b.op("Neg", m) for j, m in enumerate(minors)]
        wide = [b.unsqueeze(m, [rank - 2, rank - 1]) for m in signed]
        rows.append(b.op("Concat", *wide, axis=rank - 1))
    return [b.op("Mul", g, b.op("Concat", *rows, axis=rank - 2))]


@decomposed("DFT")
def dft(b: Backward, n: Node) -> list[str]:
    """through products with the matrices of cosines and sines"""
    x, rank, inverse = n.input(0), b.rank(n.input(0)), bool(n.attr("inverse", 0))
    at = n.attr("axis", 1) if b.opset < 20 else (b.ints(n, "axis", 2) or [-2])[0]
    axis, sizes = at % rank, b.shape(x)
    lengths = b.ints(n, "dft_length", 1)
    length = lengths[0] if lengths else sizes[axis]
    size, complex_ = sizes[axis], sizes[-1] == 2
    if size is None or length is None or sizes[-1] is None:
        raise NoRule("an axis of unknown size")
    if inverse and n.attr("onesided", 0):
        raise NoRule("inverse and onesided")
    order = [*(k for k in range(rank - 1) if k != axis), axis, rank - 1]
    x = b.transpose(x, order)
    if size > length:
        x = b.slice(x, [0], [length], [rank - 2])
    x = b.pad(x, [0] * rank, [*[0] * (rank - 2), max(length - size, 0), 0])
    count = length // 2 + 1 if n.attr("onesided", 0) else length
    angle = 2 * np.pi / length * np.outer(np.arange(count), np.arange(length))
    share = 1 / length if inverse else 1.0
    cosine, sine = (b.constant(m * share, like=x) for m in (np.cos(angle), np.sin(angle) * (-1 if inverse else 1)))
    even, odd = b.op("MatMul", cosine, x), b.op("MatMul", sine, x)
    if complex_:  # (a + i b)(cos - i sin)
        real, imaginary = b.ops("Split", odd, b.constant([1, 1]), outputs=2, axis=-1)
        y = b.op("Add", even, b.op("Concat", imaginary, b.op("Neg", real), axis=-1))
    else:
        y = b.op("Concat", even, b.op("Neg", odd), axis=-1)
    return [b.transpose(y, np.argsort(order).tolist())]


@decomposed("STFT")
def stft(b: Backward, n: Node) -> list[str]:
    """through Gather, the window and DFT"""
    x, steps = n.input(0), b.ints(n, "frame_step", 1)
    window, rank = n.input(2), b.rank(n.input(0))
    lengths, size = b.ints(n, "frame_length", 3), b.shape(x)[1]
    length = lengths[0] if lengths else (b.shape(window)[0] if window else None)
    if size is None or length is None:
        raise NoRule("an axis of unknown size")
    if rank == 2:
        x = b.unsqueeze(x, [2])
    at = np.arange((size - length) // steps[0] + 1)[:, None] * steps[0] + np.arange(length)
    frames = b.op("Gather", x, b.constant(at), axis=1)  # (samples, frames, length, 1 or 2)
    if window:
        frames = b.op("Mul", frames, b.unsqueeze(window, [1]))
    onesided = int(n.attr("onesided", 1))
    if b.opset < 20:
        return [b.op("DFT", frames, axis=2, onesided=onesided)]
    return [b.op("DFT", frames, "", b.constant(2), onesided=onesided)]


@gradient("Col2Im")
def col2im(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """the columns of dy"""
    assert dy[0]
    image, block = b.ints(n, "image_shape", 1), b.ints(n, "block_shape", 2)
    rank = len(block)
    strides, dilations = (n.attr(k) or [1] * rank for k in ("strides", "dilations"))
    pads = n.attr("pads") or [0] * 2 * rank
    at = Windows(tuple(block), tuple(strides), tuple(dilations), tuple(pads[:rank]), tuple(pads[rank:]))
    return [_columns(b, dy[0], at, image), None, None]


def _columns(b: Backward, x: str, at: Windows, image: Sequence[int]) -> str:
    """What every window of an image covers, `(samples, channels * window, windows)`."""
    rank = len(at.kernel)
    axes = list(range(2, 2 + rank))
    x = b.pad(x, [0, 0, *at.heads], [0, 0, *at.tails])
    counts = [
        (size + h + t - r) // s + 1 for size, h, t, r, s in
        zip(image, at.heads, at.tails, at.reach, at.strides, strict=True)
    ]  # fmt: skip
    parts = []
    for offset in itertools.product(*map(range, at.kernel)):
        starts = [o * d for o, d in zip(offset, at.dilations, strict=True)]
        ends = [start + (c - 1) * s + 1 for start, c, s in zip(starts, counts, at.strides, strict=True)]
        part = b.slice(x, starts, ends, axes, at.strides)
        parts.append(b.op("Reshape", part, b.constant([0, 0, 1, -1])))
    return b.op("Reshape", b.op("Concat", *parts, axis=2), b.constant([0, -1, int(np.prod(counts))]))
