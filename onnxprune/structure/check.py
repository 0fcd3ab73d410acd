"""That a step left the outputs of a model as they were, in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.errors import OptionError, VerificationError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.node import opsets, walk
from onnxprune.runtime.session import Feeds, session
from onnxprune.structure.verify import SATURATING, compare


def running(model: Model, guesses: Sequence[Feeds], *, measured: bool) -> Feeds:
    """The first inputs with which the model runs; raises `OptionError` where there are none."""
    first = ""
    for feeds in guesses:
        try:
            with session(model) as s:
                s.run(None, feeds)
            return feeds
        except Exception as e:  # onnxruntime's exceptions share no base class
            first = first or _line(e)
    where = f"{model.path or 'the model'}: onnxruntime cannot run it"
    if measured:
        raise OptionError(f"{where}, and --format auto measures ({first}); choose another --format")
    raise OptionError(
        f"{where}, so the result cannot be verified ({first}); pass --no-verify to write it unverified, or "
        f"--input-shape if the guessed shapes are at fault"
    )


def same(a: Model, b: Model, feeds: Feeds, tolerance: float, what: str) -> tuple[float, list[str]]:
    """Largest difference of outputs over the largest magnitude, and what that cannot tell.

    Raises `VerificationError` above the tolerance, and where shapes or what is finite differ.
    """
    if a is b:
        return 0.0, []
    inner = _before_last_step(a, b)
    expected = _outputs(a, feeds, inner)
    try:
        found = _outputs(b, feeds, inner)
    except Exception as e:
        raise VerificationError(f"{what} broke it: {_line(e)}; nothing was written") from e
    try:
        worst, notes = compare(a, expected, found, inner)
    except VerificationError as e:
        raise VerificationError(f"{what} changed the model: {e}; nothing was written") from e
    if not worst <= tolerance:
        raise VerificationError(
            f"{what} changed the outputs by {worst:.1e} of the largest, allowed {tolerance:.0e}; nothing was written"
        )
    return worst, notes


def _outputs(model: Model, feeds: Feeds, inner: Mapping[str, str]) -> dict[str, Array]:
    """Outputs and inner values by name."""
    probed = model.copy()
    present = {o.name for o in model.proto.graph.output}
    for name in dict.fromkeys(inner.values()):
        if name not in present:
            probed.proto.graph.output.add(name=name)
    with session(probed) as s:
        return {o.name: np.asarray(v) for o, v in zip(s.get_outputs(), s.run(None, feeds), strict=True)}


def _before_last_step(a: Model, b: Model) -> dict[str, str]:
    """Output -> the value before its last Sigmoid, ArgMax, ..., where both models have it: a rounding may turn an
    ArgMax, and a Sigmoid hides differences."""
    makers, others = ({n.outputs[0]: n for n in walk(m.proto.graph, opsets(m.proto)) if n.outputs} for m in (a, b))
    found = {}
    for info in a.proto.graph.output:
        name = info.name
        while name in makers and makers[name].op in SATURATING:
            name = makers[name].input(0)
        if name != info.name and name in makers and name in others:
            found[info.name] = name
    return found


def _line(e: Exception) -> str:
    return " ".join(str(e).split())[:300]


__all__ = ["running", "same"]
