"""Inputs of a model read from files, arrays or an iterable; nothing of a folder is decoded before it is asked for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
import onnx

from onnxprune.calibration.images import ImageFormat
from onnxprune.calibration.presets import Preprocess
from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.shapes import fixed
from onnxprune.runtime.session import Feeds

MADE_UP = 256  # samples where nobody says how many
MAX_SQUARES = float(np.finfo(np.float32).max)
Map = Callable[[Callable[[int], Feeds], Sequence[int]], Iterable[Feeds]]


class _Watch:
    """Sums of the squares of every input, over the samples that were loaded."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.sums: dict[str, float] = {}

    def look(self, i: int, feeds: Feeds, what: str) -> None:
        """Raise `OptionError` by the sample with which the sum of an input leaves float32."""
        if i in self.seen:
            return
        for name, x in feeds.items():
            self.sums[name] = self.sums.get(name, 0.0) + squares(x)
            if self.sums[name] > MAX_SQUARES:
                raise OptionError(f"{what}: sample {i}: {overflow_message(f'input {name}', x)}")
        self.seen.add(i)


@dataclass(frozen=True, eq=False)
class Samples:
    """load: index -> inputs of one run; chosen: which of the source's samples these are.

    description: for the report; fingerprint: bytes that stand for one of the source's samples; labels: int64
    `(count,)`, of tokens `(count, tokens)`, IGNORED behind the end of shorter samples, or None; stackable: whether
    samples can be joined along axis 0 of every input; total: samples that the source has; names: files of all of them,
    none of arrays; augmented: whether they are random crops; uses: fields of `Preprocess` that had a say in them, and
    "augment"; holds: what the source is, for messages; misfit: what is wrong with labels that came with them, for
    whoever would need them.
    """

    load: Callable[[int], Feeds]
    chosen: tuple[int, ...]
    description: str
    fingerprint: Callable[[int], bytes]
    labels: Array | None
    stackable: bool
    total: int
    names: tuple[str, ...] = ()
    augmented: bool = False
    uses: frozenset[str] = frozenset()
    holds: str = ""
    misfit: str = ""
    watch: _Watch = field(default_factory=_Watch, repr=False)

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.chosen)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the samples are made of, wherever it lies."""
        digest = hashlib.sha256()
        for i in self.chosen:
            digest.update(self.fingerprint(i))
        return digest.hexdigest()

    def feeds(self, indices: Sequence[int], each_of: Map = map) -> Feeds:
        """Inputs of one run: the samples, joined along axis 0 where they are stackable, else exactly one.

        each_of: how they are loaded, as `map` does or by several threads.
        Raises `OptionError` where the squares of what was loaded so far overflow float32.
        """
        each = list(each_of(self.load, [self.chosen[i] for i in indices]))
        for i, feeds in zip(indices, each, strict=True):
            self.watch.look(self.chosen[i], feeds, self.holds or self.description)
        if len(each) == 1:
            return each[0]
        assert each and self.stackable
        return {name: np.concatenate([e[name] for e in each]) for name in each[0]}

    def batches(self, size: int) -> Iterator[Feeds]:
        """Inputs of one run after the other, `size` samples each, one where they are not stackable."""
        size = size if self.stackable else 1
        for start in range(0, self.count, size):
            yield self.feeds(range(start, min(start + size, self.count)))

    def take(self, indices: Sequence[int]) -> Samples:
        """The samples at some indices, with their labels."""
        labels = None if self.labels is None else self.labels[list(indices)]
        return replace(self, chosen=tuple(self.chosen[i] for i in indices), labels=labels)

    def spare(self, count: int) -> Samples | None:
        """At most `count` of the source's other samples, evenly spread, without labels; None where there are none."""
        other = sorted(set(range(self.total)) - set(self.chosen))
        if not other:
            return None
        return replace(self, chosen=tuple(other[i] for i in spread(len(other), count)), labels=None)


def spread(total: int, count: int | None) -> list[int]:
    """At most `count` indices below `total`, evenly spread: `spread(5, 3)` is `[0, 2, 4]`."""
    if count is None or count >= total:
        return list(range(total))
    return [int(i) for i in np.unique(np.linspace(0, total - 1, count).round())]


# ---------------------------------------------------------------------------------------------------------------------
# Options that say how images are read
# ---------------------------------------------------------------------------------------------------------------------

VALUE_FIELDS = ("preset", "mean", "std", "scale")  # how pixels become numbers
PURPOSES = {
    **dict.fromkeys(VALUE_FIELDS, "it is for images in files and uint8 pixels that a floating input takes"),
    "channel_order": "it is for images in files and uint8 pixels in colour",
    "layout": "it says which axes of an input are those of an image, for images in files and uint8 pixels",
    "image_size": "it is for images in files of another size than the input",
    "crop": "it is for images in files of another size than the input",
}


def uses_of(form: ImageFormat, sizes: Iterable[str] = ()) -> frozenset[str]:
    """Fields of `Preprocess` that have a say in images of a format; sizes: those of them that say the size."""
    values = () if form.dtype.kind in "iu" else VALUE_FIELDS
    order = ("channel_order",) if form.channels >= 3 else ()
    return frozenset(("layout", *values, *order, *sizes))


def unused(preprocess: Preprocess, *sources: Samples | None) -> str:
    """One line on an option of images that none of the sources has a use for; "" where there is no such option.

    sources: everything that was read with these options.
    """
    read_from = [s for s in sources if s is not None]
    known = frozenset[str]().union(*(s.uses for s in read_from))
    for f in fields(preprocess):
        value = getattr(preprocess, f.name)
        if f.name in PURPOSES and f.name not in known and value != f.default:
            contents = dict.fromkeys(s.holds or s.description for s in read_from)
            shown = ",".join(f"{v:g}" for v in value) if isinstance(value, (tuple, list)) else value
            option = f"--{f.name.replace('_', '-')} {shown}"
            return f"{option}: {'; '.join(contents) or 'no samples are read'}; {PURPOSES[f.name]}"
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------------------------------------------------


def shape_of(info: onnx.ValueInfoProto) -> list[int | None] | None:
    """Declared sizes of an input's axes, None for dynamic ones; None where the rank is unknown."""
    t = info.type.tensor_type
    return [d.dim_value if fixed(d) else None for d in t.shape.dim] if t.HasField("shape") else None


def stackable(inputs: Sequence[onnx.ValueInfoProto]) -> bool:
    """Whether samples can be joined along axis 0 of every input."""
    return all((shape := shape_of(i)) is not None and len(shape) > 0 and shape[0] is None for i in inputs)


def shown_shape(shape: Iterable[int | None]) -> str:
    """A shape for messages: `(?, 3, 224, 224)`."""
    return "(" + ", ".join("?" if d is None else str(d) for d in shape) + ")"


def squares(x: Array) -> float:
    """Sum of the squares of the values of an array of a floating type, infinite where they leave float32; else 0."""
    if x.dtype.kind not in "fV" or not x.size:
        return 0.0
    largest = _largest(x)
    if not largest < 1e19:
        return math.inf
    if largest * largest * x.size < 1e30:
        return largest * largest * x.size  # far from the bound, where the sum itself is of no interest
    return float(np.square(x.astype(np.float64)).sum())


def _largest(x: Array) -> float:
    return max(float(x.max()), -float(x.min()))


def overflow_message(name: str, x: Array) -> str:
    """What to say of an array whose squares leave float32."""
    way = "scale the data, or leave such samples out"
    return f"{name} holds values up to {_largest(x):.3g}, whose squares overflow float32; {way}"
