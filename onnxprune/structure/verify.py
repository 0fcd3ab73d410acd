"""The law that tests surgery: the pruned model equals the original with the removed units masked.

Masked means multiplied by zero where they enter each consumer. Before anything is written, the pruned
model also passes onnx's checker and full shape inference, and its inputs and outputs are those of the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.errors import OptionError, VerificationError
from onnxprune.graph.io import Model, graphs, to_proto, weight_bytes
from onnxprune.graph.node import Node, walk
from onnxprune.graph.shapes import Array, concrete_inputs, fixed, graph_inputs
from onnxprune.runtime.feeds import random_feeds
from onnxprune.runtime.session import Feeds, as_float32, session
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.coupling import Consume, Norm
from onnxprune.structure.depth import Block

TOLERANCE = {"float16": 3e-2, "bfloat16": 1e-1}
DEFAULT_TOLERANCE = 1e-3
QUANTIZED_TOLERANCE = 1e-1  # a sum that falls on the other side of a rounding boundary moves by a whole step
SMALLEST_SCALE = 1e-3  # outputs below this are compared as if they reached it
PROTO_LIMIT = 2**31 - 2**20  # bytes


@dataclass(frozen=True)
class Verification:
    """error: largest difference of an output element between pruned and masked model, over the largest
    magnitude of that output; tolerance: what was allowed; notes: what the figure cannot tell."""

    error: float
    tolerance: float
    runs: int
    notes: tuple[str, ...] = ()
    feeds: Feeds = field(default_factory=dict)  # inputs with which the model runs
    float32: bool = False  # run as a float32 copy
    finite: bool = True  # all outputs of the masked model were finite
    pruned_feeds: Feeds = field(default_factory=dict)  # the same inputs as the pruned model takes them


def masked_model(analysis: Analysis, keep: Keep) -> Model:
    """The original with every removed id multiplied by zero where it enters a consumer, and left out of the statistics
    of what normalises over it."""
    model = analysis.model.copy()
    wanted: dict[str, list[Consume]] = {}
    for consume in analysis.coupling.consumes:
        axes = analysis.coupling.axes(consume.node.input(consume.input))
        ids = axes[consume.axis] if axes else None
        if ids is not None and not keep[ids].all():
            wanted.setdefault(consume.node.key, []).append(consume)
    norms: dict[str, list[Norm]] = {}
    for norm in analysis.coupling.norms:
        if not keep[norm.ids].all():
            norms.setdefault(norm.node.key, []).append(norm)
    closed = {b.node.key: [b] for b in analysis.blocks if not keep[b.gate].any()}
    for graph in graphs(model.proto.graph):
        placed: list[onnx.NodeProto] = []
        for proto in graph.node:
            node = Node(proto, 1)
            for consume in wanted.get(node.key, []):
                placed += _mask(analysis, keep, proto, consume, len(placed))
            for block in closed.get(node.key, ()):
                placed += _close(proto, block)
            after: list[onnx.NodeProto] = []
            for norm in norms.get(node.key, []):
                before, more = _normalise_kept(keep, proto, norm)
                placed, after = placed + before, more + after
            if node.key in analysis.coupling.statistics:
                after += _mean_of_kept(analysis, keep, proto)
            placed += [proto, *after]
        copies = [onnx.NodeProto.FromString(p.SerializeToString()) for p in placed]
        del graph.node[:]
        graph.node.extend(copies)
    return model


def _normalise_kept(keep: Keep, proto: onnx.NodeProto, norm: Norm) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Let the node see what is kept alone; what is removed comes out as anything, it is masked where it is read."""
    kept = np.flatnonzero(keep[norm.ids])
    spread = np.where(keep[norm.ids], np.cumsum(keep[norm.ids]) - 1, 0)
    base = f"{next(o for o in proto.output if o)}:{norm.ids[0]}"

    def constant(value: Array, name: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value.astype(np.int64), name))

    before, after = [constant(kept, base + ":kept")], [constant(spread, base + ":spread")]
    for i, axis in norm.inputs.items():
        before.append(helper.make_node("Gather", [proto.input[i], base + ":kept"], [f"{base}:i{i}"], axis=axis))
        proto.input[i] = f"{base}:i{i}"
    for i, axis in norm.outputs.items():
        name, proto.output[i] = proto.output[i], f"{base}:o{i}"
        after.append(helper.make_node("Gather", [proto.output[i], base + ":spread"], [name], axis=axis))
    return before, after


def _mean_of_kept(analysis: Analysis, keep: Keep, proto: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A mean over masked values is one over the survivors after this factor."""
    name, factor = proto.output[0], 1.0
    for ids in analysis.coupling.means.get(name, []):
        factor *= ids.size / max(int(keep[ids].sum()), 1)
    if factor == 1.0:
        return []
    dtype = helper.tensor_dtype_to_np_dtype(analysis.coupling.shapes.types[name])
    value = numpy_helper.from_array(np.array(factor, dtype), name + ":factor")
    proto.output[0] = name + ":of_all"
    return [
        helper.make_node("Constant", [], [name + ":factor"], value=value),
        helper.make_node("Mul", [proto.output[0], name + ":factor"], [name]),
    ]


def _close(proto: onnx.NodeProto, block: Block) -> list[onnx.NodeProto]:
    """Let nothing of the branch (and of the bias that a fused sum adds to it) enter the sum."""
    nodes = []
    for slot in (block.branch, *([4] if len(proto.input) > 4 and proto.input[4] else [])):
        name = f"{block.node.key}:closed{slot}"
        nodes.append(helper.make_node("Sub", [proto.input[slot], proto.input[slot]], [name]))
        proto.input[slot] = name
    return nodes


def _mask(analysis: Analysis, keep: Keep, proto: onnx.NodeProto, consume: Consume, serial: int) -> list[onnx.NodeProto]:
    name = consume.node.input(consume.input)
    current = proto.input[consume.input]  # an input masked along two axes: chained
    ids = analysis.coupling.axes(name)[consume.axis]
    assert ids is not None
    rank = len(analysis.coupling.axes(name))
    shape = [1] * rank
    shape[consume.axis] = -1
    elem = analysis.coupling.shapes.types[name]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(elem))
    out = f"{proto.output[0]}:masked{serial}:{consume.input}:{consume.axis}"
    alive = keep[ids].reshape(shape)
    proto.input[consume.input] = out

    def constant(value: Array, suffix: str) -> onnx.NodeProto:
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), out + suffix)
        return helper.make_node("Constant", [], [out + suffix], value=tensor)

    if dtype in (np.float32, np.float64) and analysis.coupling.shapes.opsets.get("", 1) >= 9:
        # what is removed may be no number (of a constant channel, normalised), which times zero is none either
        choice = helper.make_node("Where", [out + ":m", current, out + ":z"], [out])
        return [constant(alive, ":m"), constant(np.full((), consume.neutral, dtype), ":z"), choice]
    if dtype.kind not in "iu":
        masked = [constant(alive.astype(dtype), ":m"), helper.make_node("Mul", [current, out + ":m"], [out])]
        if consume.neutral:
            masked[1].output[0] = out + ":k"
            floor = np.where(alive, 0, np.finfo(np.float16).min).astype(dtype)
            masked += [constant(floor, ":n"), helper.make_node("Add", [out + ":k", out + ":n"], [out])]
        return masked
    nodes = [constant(alive, ":m"), helper.make_node("Cast", [current], [out + ":i"], to=onnx.TensorProto.INT32)]
    if consume.zero:
        nodes.append(helper.make_node("Cast", [consume.zero], [out + ":z"], to=onnx.TensorProto.INT32))
    else:
        nodes.append(constant(np.array(0, np.int32), ":z"))
    nodes.append(helper.make_node("Where", [out + ":m", out + ":i", out + ":z"], [out + ":w"]))
    nodes.append(helper.make_node("Cast", [out + ":w"], [out], to=elem))
    return nodes


def verify(
    analysis: Analysis,
    keep: Keep,
    pruned: Model,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
) -> Verification:
    """Check the file and the law; see the module's docstring.

    Raises `OptionError` where onnxruntime cannot run the original, `VerificationError` where the law is broken.
    """
    original = analysis.model
    notes = check_file(original, pruned, allowed=lambda info: shrunk(analysis, keep, info))
    inner = probes(analysis, keep)
    expected, feeds, shapes, how = _run_masked(analysis, keep, inner, input_shapes, seed)
    notes += how
    narrow = bool(how)

    expected, small = analysis.narrow(expected, keep), analysis.narrow(feeds, keep)
    found = _run_pruned(as_float32(pruned) if narrow else pruned, small, inner)
    error, more = compare(original, expected, found, inner)
    notes += more
    runs = 1
    if not narrow and any(_dynamic_batch(i) for i in graph_inputs(original)):
        larger = _larger(original, shapes, input_shapes)
        second = random_feeds(original, analysis.coupling.shapes, larger, seed=seed + 1)
        try:
            expected = _run(masked_model(analysis, keep), second, inner)
        except Exception as e:  # onnxruntime's exceptions share no base class
            notes.append(f"the original does not run with a batch of 2, so one sample was verified ({_line(e)[:80]})")
        else:
            other, _ = compare(
                original,
                analysis.narrow(expected, keep),
                _run_pruned(pruned, analysis.narrow(second, keep), inner),
                inner,
            )
            error, runs = max(error, other), 2
    limit = tolerance(analysis)
    if not error <= limit:
        raise VerificationError(
            f"pruned and masked model differ by {error:.1e} (allowed {limit:.0e}); nothing was written; "
            f"please report this with the plan (--save-plan) and the model"
        )
    finite = all(map(_finite, expected.values()))
    return Verification(error, limit, runs, tuple(notes), feeds, narrow, finite, small)


def check_recovered(analysis: Analysis, keep: Keep, recovered: Model, checked: Verification) -> None:
    """After recovery the law no longer holds; what is left to check is the file, and that it runs and stays finite."""
    check_file(analysis.model, recovered, allowed=lambda info: shrunk(analysis, keep, info))
    outputs = _run_pruned(as_float32(recovered) if checked.float32 else recovered, checked.pruned_feeds, {})
    if checked.finite and not all(_finite(v) for v in outputs.values()):
        raise VerificationError("an output is not finite after recovery; try --recover none; nothing was written")


def _finite(x: Array) -> bool:
    return x.dtype.kind not in "fV" or bool(np.isfinite(x.astype(np.float64)).all())


def _larger(
    model: Model, shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]] | None
) -> dict[str, tuple[int, ...]]:
    """The same shapes with a batch of two."""
    ones, twos = concrete_inputs(model, given), concrete_inputs(model, given, batch=2)
    return next(two for one, two in zip(ones, twos, strict=True) if one == shapes)


def _dynamic_batch(info: onnx.ValueInfoProto) -> bool:
    dims = info.type.tensor_type.shape.dim
    return bool(dims) and not fixed(dims[0])


def _run_masked(
    analysis: Analysis,
    keep: Keep,
    inner: Mapping[str, str],
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    seed: int,
) -> tuple[dict[str, Array], Feeds, dict[str, tuple[int, ...]], list[str]]:
    """Outputs of the masked model for the first guess of the dynamic axes with which it runs."""
    original, masked = analysis.model, masked_model(analysis, keep)
    guesses = [
        (random_feeds(original, analysis.coupling.shapes, shapes, seed=seed), shapes)
        for shapes in concrete_inputs(original, input_shapes)
    ]
    first: Exception | None = None
    for feeds, shapes in guesses:
        try:
            return _run(masked, feeds, inner), feeds, shapes, []
        except Exception as e:  # onnxruntime's exceptions share no base class
            first = first or e
    feeds, shapes = guesses[0]
    assert first is not None
    try:
        _run(original, feeds, {})
    except Exception as e:
        small = {k: v.astype(np.float32) if v.dtype.kind in "fV" else v for k, v in feeds.items()}
        try:
            expected = _run(as_float32(masked), small, inner)
        except Exception:
            raise OptionError(
                f"{original.path or 'the model'}: onnxruntime cannot run the original, so the result cannot be "
                f"verified ({_line(e)}); pass --no-verify to write it unverified, or --input-shape if the guessed "
                f"shapes are at fault"
            ) from e
        return expected, small, shapes, ["verified on a float32 copy: onnxruntime has no kernels for the model's type"]
    raise VerificationError(f"the masked model does not run: {_line(first)}") from first


def tolerance(analysis: Analysis) -> float:
    """What the model's types allow."""
    ops = {Node(p, 1).op for g in graphs(analysis.model.proto.graph) for p in g.node}
    if any("Quantize" in op or op.startswith("QLinear") for op in ops):
        return QUANTIZED_TOLERANCE
    dtypes = {helper.tensor_dtype_to_np_dtype(t).name for t in analysis.coupling.shapes.types.values() if t}
    return max((TOLERANCE[d] for d in dtypes if d in TOLERANCE), default=DEFAULT_TOLERANCE)


def _run_pruned(pruned: Model, feeds: Feeds, probes: Mapping[str, str]) -> dict[str, Array]:
    try:
        return _run(pruned, feeds, probes)
    except Exception as e:
        raise VerificationError(f"the pruned model does not run: {_line(e)}; nothing was written") from e


def _run(model: Model, feeds: Feeds, probes: Mapping[str, str]) -> dict[str, Array]:
    """Outputs and probes by name."""
    probed = model.copy()
    present = {o.name for o in model.proto.graph.output}
    for name in dict.fromkeys(probes.values()):
        if name not in present:
            probed.proto.graph.output.add(name=name)
    with session(probed, optimize=False) as s:
        names = [o.name for o in s.get_outputs()]
        return {n: np.asarray(v) for n, v in zip(names, s.run(None, feeds), strict=True)}


SATURATING = {"Sigmoid", "Softmax", "LogSoftmax", "HardSigmoid", "Tanh", "Clip", "ArgMax", "ArgMin", "Cast", "Identity"}


def probes(analysis: Analysis, keep: Keep) -> dict[str, str]:
    """Output -> the tensor before its last Sigmoid, Softmax, ArgMax, ...: on random input these hide differences."""
    c = analysis.coupling
    makers = {o: n for n in walk(analysis.model.proto.graph, c.shapes.opsets) for o in n.outputs}
    found = {}
    for info in analysis.model.proto.graph.output:
        name = info.name
        while name in makers and makers[name].op in SATURATING:
            name = makers[name].input(0)
        whole = all(ids is None or bool(keep[ids].all()) for ids in c.axes(name))
        if name != info.name and name in makers and whole and c.shapes.types.get(name) in FLOATS:
            found[info.name] = name
    return found


FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)


def _line(e: Exception) -> str:
    return " ".join(str(e).split())[:300]


def compare(
    model: Model, expected: Mapping[str, Array], found: Mapping[str, Array], probes: Mapping[str, str]
) -> tuple[float, list[str]]:
    """Largest difference over largest magnitude, over all outputs and probes, and what the figure cannot tell."""
    worst, notes = 0.0, []
    for info in model.proto.graph.output:
        a, b = expected[info.name], found[info.name]
        if info.name in probes and a.shape == b.shape:
            name = probes[info.name]
            notes.append(f"output {info.name}: compared before its last step, as {name}")
            info, a, b = onnx.ValueInfoProto(name=name), expected[name], found[name]
        if a.shape != b.shape:
            raise VerificationError(f"output {info.name} has shape {b.shape}, the original {a.shape}")
        if a.size == 0 or a.dtype.kind in "OSU":
            notes.append(f"output {info.name} is empty or text: not compared")
            continue
        if a.dtype.kind in "iub":
            notes.append(f"output {info.name} holds integers (labels, an argmax): its figure is the share that differs")
            worst = max(worst, float((a != b).mean()))
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x)
        if not np.array_equal(finite, np.isfinite(y)):
            raise VerificationError(f"output {info.name}: masked and pruned model differ in where they are not finite")
        if not finite.all():
            notes.append(f"output {info.name} of the original is not finite on random input")
        x, y = x[finite], y[finite]
        if x.size == 0:
            continue
        scale = float(np.abs(x).max())
        if scale < SMALLEST_SCALE or (x.size > 1 and float(np.ptp(x)) <= 1e-6 * scale):
            notes.append(f"output {info.name} is (nearly) constant on random input: its figure says little")
        worst = max(worst, float(np.abs(x - y).max()) / max(scale, SMALLEST_SCALE))
    return worst, notes


def shrunk(analysis: Analysis, keep: Keep, info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """An input or output of the original as the pruned model declares it."""
    out = onnx.ValueInfoProto()
    out.CopyFrom(info)
    for d, ids in zip(out.type.tensor_type.shape.dim, analysis.coupling.axes(info.name), strict=False):
        if ids is not None and d.HasField("dim_value") and not keep[ids].all():
            d.dim_value = int(keep[ids].sum())
    return out


def check_file(
    original: Model,
    pruned: Model,
    *,
    allowed: Callable[[onnx.ValueInfoProto], onnx.ValueInfoProto] = lambda info: info,
) -> list[str]:
    """onnx's checker and full shape inference, and inputs and outputs that are what is `allowed` of the original's.

    A defect that the original has too is a note; one that only the pruned model has raises `VerificationError`.
    """
    notes = []
    for what in ("input", "output"):
        before = [(i.name, allowed(i).type.SerializeToString(deterministic=True))
                  for i in getattr(original.proto.graph, what) if i.name not in original.weights]  # fmt: skip
        after = [(i.name, i.type.SerializeToString(deterministic=True)) for i in getattr(pruned.proto.graph, what)
                 if i.name not in pruned.weights]  # fmt: skip
        if before != after:
            raise VerificationError(f"the graph {what}s changed; nothing was written")
    if weight_bytes(original) > PROTO_LIMIT:
        return ["above 2 GB: loaded by onnxruntime, not by onnx's checker"]
    problem = _defect(pruned)
    if problem:
        old = _defect(original)
        if not old:
            raise VerificationError(f"onnx's checker rejects the pruned model: {problem}; nothing was written")
        notes.append(f"the input already fails onnx's checker: {old}")
    return notes


def _defect(model: Model) -> str:
    try:
        onnx.checker.check_model(to_proto(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as e:
        return " ".join(str(e).split())[:200]
    return ""


__all__ = ["Verification", "check_file", "compare", "masked_model", "tolerance", "verify"]
