"""Where the windows of a convolution or pool stand, with `auto_pad` resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxprune.gradient.backward import Backward, NoRule
from onnxprune.graph.node import Node


@dataclass(frozen=True)
class Windows:
    """Per spatial axis: size of the window, step, distance of its elements, padding before and after."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    heads: tuple[int, ...]
    tails: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Elements from the first to the last of a window, both counted."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def attributes(self) -> dict[str, list[int]]:
        """As a node has them."""
        return {
            "kernel_shape": list(self.kernel), "strides": list(self.strides), "dilations": list(self.dilations),
            "pads": [*self.heads, *self.tails],
        }  # fmt: skip


def windows(b: Backward, n: Node, kernel: Sequence[int | None]) -> Windows:
    """The windows of a node that reads its first input by windows of this size.

    Raises `NoRule` where they depend on sizes that are not known.
    """
    if any(k is None for k in kernel):
        raise NoRule("the size of its window is not known")
    size = tuple(int(k or 0) for k in kernel)
    rank = len(size)
    strides, dilations = (tuple(n.attr(name) or [1] * rank) for name in ("strides", "dilations"))
    auto = n.attr("auto_pad", "NOTSET")
    pads = n.attr("pads") or [0] * 2 * rank if auto == "NOTSET" else [0] * 2 * rank
    heads, tails = tuple(pads[:rank]), tuple(pads[rank:])
    plain = Windows(size, strides, dilations, heads, tails)
    if n.op == "ConvTranspose" and (n.attr("output_shape") or auto.startswith("SAME")):
        return _of_transpose(b, n, plain)
    if auto in ("NOTSET", "VALID"):
        return plain
    both = [_same(length, s, reach) for length, s, reach in
            zip(b.shape(n.input(0))[2:], strides, plain.reach, strict=True)]  # fmt: skip
    less, more = tuple(p // 2 for p in both), tuple(p - p // 2 for p in both)
    heads, tails = (less, more) if auto == "SAME_UPPER" else (more, less)
    return Windows(size, strides, dilations, heads, tails)


def _of_transpose(b: Backward, n: Node, plain: Windows) -> Windows:
    """Where the output has a given size: padding is what is over, half on each side. Where that is odd, onnx and
    onnxruntime do not agree on the side."""
    sizes, made = b.shape(n.input(0))[2:], b.shape(n.output(0))[2:]
    more = n.attr("output_padding") or [0] * len(sizes)
    over = []
    for length, out, stride, extra, reach in zip(sizes, made, plain.strides, more, plain.reach, strict=True):
        if length is None or out is None:
            raise NoRule("output_shape of an axis of unknown size")
        over.append(stride * (length - 1) + extra + reach - out)
    if any(total % 2 or total < 0 for total in over):
        raise NoRule("output_shape with padding that is not the same on both sides")
    half = tuple(total // 2 for total in over)
    return replace(plain, heads=half, tails=half)


def _same(length: int | None, stride: int, reach: int) -> int:
    """Padding of both sides with which an axis has ceil(length / stride) windows."""
    if length is None:
        if stride == 1:
            return reach - 1
        raise NoRule("auto_pad SAME over an axis of unknown size")
    return max((-(-length // stride) - 1) * stride + reach - length, 0)
