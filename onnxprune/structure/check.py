"""What a step left as it was: the file is sound, inputs and outputs are the original's, and it computes the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from onnxprune.errors import OptionError, VerificationError
from onnxprune.graph.arrays import Array
from onnxprune.graph.chance import drawing
from onnxprune.graph.edit import as_float32, float32_feeds
from onnxprune.graph.io import Model, to_proto, weight_bytes
from onnxprune.graph.links import makers
from onnxprune.graph.messages import one_line
from onnxprune.graph.node import opsets, walk
from onnxprune.runtime.session import UNRUNNABLE, Feeds, run, session

SMALLEST_SCALE = 1e-3  # outputs below this are compared as if they reached it
ON_FLOAT32 = "verified on a float32 copy: onnxruntime has no kernels for the model's type"
PROTO_LIMIT = 2**31 - 2**20  # bytes
# what hides differences on random input: a rounding may turn an ArgMax, and a Sigmoid is flat
SATURATING = {"Sigmoid", "Softmax", "LogSoftmax", "HardSigmoid", "Tanh", "Clip", "ArgMax", "ArgMin", "Cast", "Identity"}


def running(model: Model, guesses: Sequence[Feeds], *, measured: bool) -> tuple[Feeds, bool]:
    """The first inputs with which the model runs, or else a float32 copy of it, and whether it is the copy; raises
    `OptionError` where there are none.

    measured: whether they are for `--format auto`, which the copy says nothing of, and not for a check alone.
    """
    first = ""
    for float32 in (False,) if measured else (False, True):
        tried = as_float32(model) if float32 else model
        for guess in guesses:
            feeds = float32_feeds(guess) if float32 else guess
            try:
                with session(tried) as s:
                    s.run(None, feeds)
                return feeds, float32
            except UNRUNNABLE as e:
                first = first or one_line(e)
    where = f"{model.path or 'the model'}: onnxruntime cannot run it"
    if measured:
        raise OptionError(f"{where}, and --format auto measures ({first}); choose another --format")
    raise OptionError(
        f"{where}, so the result cannot be verified ({first}); pass --no-verify to write it unverified, or "
        f"--input-shape if the guessed shapes are at fault"
    )


def check_same(
    a: Model, b: Model, feeds: Feeds, tolerance: float, what: str, *, float32: bool = False
) -> tuple[float, list[str]]:
    """Largest difference of outputs over the largest magnitude, and what that cannot tell.

    what: the step that made `b` of `a`, for messages; float32: run copies in float32. Raises `VerificationError` above
    the tolerance, and where shapes or what is finite differ.
    """
    if a is b:
        return 0.0, []
    if float32:
        a, b = as_float32(a), as_float32(b)
    computed = {node.output[0] for node in b.proto.graph.node if node.output}
    inner = before_last_step(a, computed.__contains__)
    expected = run(a, feeds, inner.values())
    try:
        actual = run(b, feeds, inner.values())
    except UNRUNNABLE as e:
        raise VerificationError(f"{what} broke it: {one_line(e)}; nothing was written") from e
    try:
        worst, notes = compare(a, expected, actual, inner)
    except VerificationError as e:
        refuse_random(a, feeds, tolerance)
        raise VerificationError(f"{what} changed the model: {e}; nothing was written") from e
    if not worst <= tolerance:
        refuse_random(a, feeds, tolerance)
        raise VerificationError(
            f"{what} changed the outputs by {worst:.1e} of the largest, allowed {tolerance:.0e}; nothing was written"
        )
    return worst, notes


def refuse_random(original: Model, feeds: Feeds, tolerance: float) -> None:
    """Raises `OptionError` where a model's outputs are random, so that no other can be compared with it: two runs
    differ by more than is tolerated."""
    drawn = list(drawing(original))
    if _same_twice(original, feeds, tolerance, fresh=not drawn):
        return
    what, way = drawn[0] if drawn else ("two runs on the same inputs differ", "make it the same every time")
    raise OptionError(
        f"{original.path or 'the model'}: {what}, so that the result cannot be verified; {way}, or pass --no-verify to "
        f"write it unverified"
    )


def _same_twice(model: Model, feeds: Feeds, tolerance: float, *, fresh: bool) -> bool:
    """Whether two runs give the same; fresh: each in a session of its own, where what has a seed starts anew."""
    try:
        first = run(model, feeds, optimize=False)
        again = run(model, feeds, optimize=False) if fresh else run(model, feeds, optimize=False, times=2)
        return compare(model, first, again, {})[0] <= tolerance
    except VerificationError:
        return False
    except UNRUNNABLE:  # which says nothing of chance
        return True


def before_last_step(model: Model, usable: Callable[[str], bool]) -> dict[str, str]:
    """Output -> the tensor before its last Sigmoid, Softmax, ArgMax, ..., where that is `usable`."""
    maker_of = makers(walk(model.proto.graph, opsets(model.proto)))
    before = {}
    for info in model.proto.graph.output:
        name = info.name
        while name in maker_of and maker_of[name].op in SATURATING:
            name = maker_of[name].input(0)
        if name != info.name and name in maker_of and usable(name):
            before[info.name] = name
    return before


def compare(
    model: Model, expected: Mapping[str, Array], actual: Mapping[str, Array], probes: Mapping[str, str]
) -> tuple[float, list[str]]:
    """Largest difference over largest magnitude, over all outputs, and what the figure cannot tell.

    model: whose outputs these are; expected, actual: values by name; probes: output -> tensor to compare in its place.
    Raises `VerificationError` where shapes, or what is finite, differ.
    """
    worst, notes = 0.0, []
    for info in model.proto.graph.output:
        a, b = expected[info.name], actual[info.name]
        if info.name in probes and a.shape == b.shape:
            name = probes[info.name]
            notes.append(f"output {info.name}: compared before its last step, as {name}")
            info, a, b = onnx.ValueInfoProto(name=name), expected[name], actual[name]
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
        return one_line(e, 200)
    return ""
