"""One step of training as one session: inputs and targets in, loss and gradients out.

Weights and gradients lie in two flat float32 buffers that the session reads and writes in place; what they are of, and
where, is a `Layout`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from onnxprune.errors import UserError
from onnxprune.gradient.backward import Backward, Kernel, sweep
from onnxprune.gradient.kernels import forward as note_convolutions
from onnxprune.gradient.walk import Derivatives, differentiate
from onnxprune.graph.arrays import Array
from onnxprune.graph.edit import float32_feeds
from onnxprune.graph.io import Model, to_proto
from onnxprune.graph.ort import base_options, open_session
from onnxprune.graph.protos import is_constant, place
from onnxprune.graph.shapes import infer
from onnxprune.runtime.classes import IGNORED
from onnxprune.runtime.session import Feeds
from onnxprune.training.form import OTHERS, form_of
from onnxprune.training.losses import LABELS, Objective
from onnxprune.training.native import missing, with_kernels, with_products, worth
from onnxprune.training.weights import with_batch_statistics, without_normalisations

ALIGNED = 16  # elements: a cache line
HELD = 1.4
FOLLOWED = 0.1  # of the way to the statistics of a batch
Shapes = Mapping[str, tuple[int, ...]] | None


@dataclass(frozen=True)
class Layout:
    """Where each weight lies in a flat buffer: name -> (start, shape)."""

    places: Mapping[str, tuple[int, tuple[int, ...]]]
    size: int

    @staticmethod
    def of(weights: Mapping[str, Array]) -> Layout:
        """One after the other, each at the start of a cache line."""
        places, at = {}, 0
        for name, w in weights.items():
            places[name] = at, w.shape
            at += -(-w.size // ALIGNED) * ALIGNED
        return Layout(places, at)

    def view(self, flat: Array, name: str) -> Array:
        """The part of a buffer that is one weight's, in its shape."""
        start, shape = self.places[name]
        return flat[start : start + int(np.prod(shape))].reshape(shape)

    def empty(self, dtype: type = np.float32) -> Array:
        """A buffer of zeros, aligned."""
        raw = np.zeros(self.size * np.dtype(dtype).itemsize + 64, np.uint8)
        shift = -raw.ctypes.data % 64
        return raw[shift : shift + self.size * np.dtype(dtype).itemsize].view(dtype)

    def filled(self, weights: Mapping[str, Array]) -> Array:
        """A buffer that holds these weights."""
        flat = self.empty()
        for name in self.places:
            self.view(flat, name)[...] = weights[name]
        return flat


def part_of(model: Model, feeds: Feeds, outputs: Collection[str], memory: float) -> int | None:
    """Samples of a batch whose forward and backward pass take about so much memory, as many in every part; None where
    inputs and outputs do not have as many samples along the first axis.

    A step holds `HELD` times the tensors of the forward pass, by the growth of resident memory of resnet56 (.9) and
    mobilenetv2 (1.4).
    """
    shapes = infer(model, {name: x.shape for name, x in feeds.items()}).shapes
    counts = {s[0] if s else None for s in (*(x.shape for x in feeds.values()), *(shapes.get(o, ()) for o in outputs))}
    count = counts.pop()
    if counts or not count:
        return None
    each = sum(4 * math.prod(d or 1 for d in s) for name, s in shapes.items() if name not in model.weights) / count
    most = max(1.0, memory / max(HELD * each, 1))
    return max(k for k in range(1, count + 1) if count % k == 0 and k <= most)


def counted(targets: Feeds, count: int) -> Array:
    """How much each of so many samples counts in the loss, `(count,)`: as many times as it has labels of tokens."""
    labels = targets.get(LABELS)
    if labels is None or labels.ndim < 2:
        return np.ones(count, np.int64)
    return np.asarray((labels != IGNORED).sum(1))


@dataclass(frozen=True)
class Graph:
    """What a session runs. content: a file whose weights are inputs; loss, more: outputs; of: weight -> gradient."""

    content: bytes
    loss: str
    of: Mapping[str, str]
    more: Sequence[str]


class Step:
    """The session of a model's training step.

    layout: of `weights` and `gradients`, flat; free: which values may change; part: samples that are run at a time,
    None for all, or where batches have any shape; blocked: weight -> why it is not trained; kernels: of ours; missing:
    why none is used though some could be, or ""; masked: weight -> its mask, where products go by the entries that are
    left, of which there are so many `products`; followed: whether that is as `free` and `weights` are now.
    """

    def __init__(
        self, model: Model, objective: Objective, feeds: Feeds, *, names: Sequence[str] | None = None,
        fixed: bool = True, by_batch: bool = False, scores: str = "", memory: float = math.inf, threads: int = 0,
    ) -> None:  # fmt: skip
        """feeds: inputs of one batch; fixed: all batches have their shapes; names: weights to train, by default all
        that can be; by_batch: normalisations go by the statistics of the batch, which those of the model follow;
        scores: an output that `loss` leaves in `scored`; memory: bytes for activations, above which a batch is run in
        equal parts, where its loss is the mean of theirs, by what counts in each.

        Raises `UserError` where no weight has a gradient."""
        form = form_of(model)
        names = list(form.places) if names is None else list(names)
        if not names:
            raise UserError("the model cannot be trained: it has no weights of floating types")
        self._split = None if by_batch or objective.function is not None else (objective, memory)
        self._parts: dict[tuple[object, ...], int | None] = {}
        self.part = self._part(form.model, feeds) if fixed else None
        shapes = {n: x[: self.part].shape if x.ndim else () for n, x in feeds.items()} if fixed else None
        b = Backward(form.model if by_batch else without_normalisations(form.model), shapes)
        loss, self.targets = objective.add(b)
        note_convolutions(b)
        forward, measured, self.statistics = b.model.copy(), loss, dict[str, str]()
        self._options = base_options(threads)
        self._options.enable_mem_pattern = False  # a pattern doubles what activations take, and saves no time
        of_forward = list(b.kernels)
        if by_batch:
            trained, self.statistics = with_batch_statistics(form.model)
            form = form.also(model, self.statistics)
            b = Backward(trained, shapes)
            loss, _ = objective.add(b)
            note_convolutions(b)
        found: Derivatives = differentiate(b, loss, names)
        if not found.of:
            why = next(iter(found.blocked.values()), "the outputs depend on no weight")
            raise UserError(f"the model cannot be trained: {why}")
        self.blocked, self.form, self.trained = dict(found.blocked), form, list(found.of)
        self.layout = Layout.of({name: form.model.weights[name] for name in (*found.of, *self.statistics)})
        self.weights, self.gradients = self.layout.filled(form.model.weights), self.layout.empty()
        self.free = self.layout.empty(np.bool_)
        for name in self.trained:
            self.layout.view(self.free, name)[...] = form.free(name)
        made = {**found.of, **self.statistics}
        self._known = bool(b.kernels)
        self.missing = missing(self._options) if self._known else ""
        self.kernels: Sequence[Kernel] = with_kernels(b.model, [] if self.missing else b.kernels)
        self._graphs = hashlib.sha256()
        train = self._graph(b.finished([loss, *made.values()]), loss, made)
        self.scores, self.scored = scores, np.zeros(0, np.float32)
        more = [scores] if scores else []
        with_kernels(forward, [] if self.missing else of_forward)
        self._plain = train, self._graph(forward, measured, {}, more)
        self._train, self._measure = (self._session(g.content, g) for g in self._plain)
        self.masked, self.products, self.followed = dict[str, Array](), 0, False

    @property
    def digest(self) -> str:
        """Of the graphs that are run, without the values of the weights."""
        return self._graphs.hexdigest()

    def train(self, feeds: Feeds, targets: Feeds) -> float:
        """The mean loss of one batch; its gradients are in `gradients` then."""
        if not self.followed:
            self._follow()
        part = self.part or self._part(self.form.model, feeds)
        count = len(next(iter(feeds.values()))) if part else 0
        if part is None or count <= part:
            return self._run(self._train, feeds, targets)
        loss, total, starts = 0.0, np.zeros_like(self.gradients), range(0, count, part)
        counts = counted(targets, count).reshape(len(starts), -1).sum(1)
        for k, share in zip(starts, counts / max(counts.sum(), 1), strict=True):
            one, other = ({n: x[k : k + part] for n, x in of.items()} for of in (feeds, targets))
            loss += self._run(self._train, one, other) * float(share)
            total += np.float32(share) * self.gradients
        self.gradients[...] = total
        return loss

    def _part(self, model: Model, feeds: Feeds) -> int | None:
        """Samples of such a batch that are run at a time, None for all."""
        if self._split is None:
            return None
        key = tuple((n, x.shape) for n, x in feeds.items())
        if key not in self._parts:
            objective, memory = self._split
            self._parts[key] = part_of(model, feeds, [t.output for t in objective.terms], memory)
        return self._parts[key]

    def settle(self, share: float = FOLLOWED) -> None:
        """Statistics of normalisations go a part of the way to those of the last batch, which lie where other weights
        have their gradients."""
        for name in self.statistics:
            w = self.layout.view(self.weights, name)
            w += np.float32(share) * (self.layout.view(self.gradients, name) - w)

    def loss(self, feeds: Feeds, targets: Feeds) -> float:
        """The loss of one batch, of any size."""
        if not self.followed:
            self._follow()
        if self.scores:  # of as many samples as there are now
            self._measure[1].bind_output(self.scores, "cpu")
        found = self._run(self._measure, feeds, targets)
        if self.scores:
            self.scored = self._measure[1].get_outputs()[1].numpy()
        return found

    def _run(self, bound: tuple[ort.InferenceSession, ort.IOBinding], feeds: Feeds, targets: Feeds) -> float:
        session, binding = bound
        feeds = float32_feeds(feeds, OTHERS)
        for name, x in {**feeds, **{name: targets[key] for key, name in self.targets.items()}}.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(x))
        session.run_with_iobinding(binding)
        return float(np.asarray(binding.get_outputs()[0].numpy()).ravel()[0])

    def _follow(self) -> None:
        """Let products with weights that are mostly fixed at zero, those that may change and those that are not zero
        apart, run by their entries."""
        self.followed = True
        masks = {}
        for name in self.trained:
            free, w = (self.layout.view(x, name) for x in (self.free, self.weights))
            if worth(free) and worth(kept := free | (w != 0)):
                masks[name] = kept
        if masks.keys() == self.masked.keys() and all(np.array_equal(m, self.masked[n]) for n, m in masks.items()):
            return
        if not self._known:
            self._known, self.missing = True, missing(self._options)
        if self.missing:
            return
        self.masked, self.products, sessions = masks, 0, []
        for graph in self._plain:
            model = onnx.ModelProto.FromString(graph.content)
            self.products += with_products(model, masks)
            sessions.append(self._session(model.SerializeToString(deterministic=True), graph))
        self._train, self._measure = sessions

    def _graph(self, model: Model, loss: str, of: Mapping[str, str], more: Sequence[str] = ()) -> Graph:
        """A graph whose weights are inputs, with these outputs."""
        graph = model.proto.graph
        nodes = [n for n in graph.node if not (is_constant(n) and n.output[0] in self.layout.places)]
        place(graph, nodes)
        for name in self.layout.places:
            w = model.weights.pop(name)
            graph.input.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(w.dtype), w.shape))
        for k in reversed(range(len(graph.initializer))):
            if graph.initializer[k].name in self.layout.places:
                del graph.initializer[k]
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in (loss, *more, *of.values()))
        sweep(graph)
        content: bytes = to_proto(model).SerializeToString(deterministic=True)
        self._graphs.update(content)
        return Graph(content, loss, of, more)

    def _session(self, content: bytes, graph: Graph) -> tuple[ort.InferenceSession, ort.IOBinding]:
        """A session of a graph, as it is or with kernels in it, and what binds weights and gradients to the buffers."""
        session = open_session(content, self._options)
        binding = session.io_binding()
        for name in (graph.loss, *graph.more):
            binding.bind_output(name, "cpu")
        for name in self.layout.places:
            view = self.layout.view(self.weights, name)
            binding.bind_input(name, "cpu", 0, np.float32, view.shape, view.ctypes.data)
            if name in graph.of:
                view = self.layout.view(self.gradients, name)
                binding.bind_output(graph.of[name], "cpu", 0, np.float32, view.shape, view.ctypes.data)
        return session, binding

    def written(self, model: Model, flat: Array) -> Model:
        """A copy of the model with the weights of a buffer."""
        return self.form.written(model, {name: self.layout.view(flat, name).copy() for name in self.layout.places})
