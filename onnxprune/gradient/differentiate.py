"""Gradients and Hessian-vector products as models: what `onnxprune.gradients` and `hessian_vector_product` give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from onnx import ModelProto

from onnxprune.errors import UserError
from onnxprune.gradient.backward import Backward
from onnxprune.gradient.walk import Derivatives, differentiate
from onnxprune.graph.io import Model, load, to_proto
from onnxprune.graph.sources import Source

Loss: TypeAlias = str | Callable[[Backward], str]  # a tensor of the model, or a function that makes one


def gradients(
    source: Source,
    loss: Loss,
    wrt: Iterable[str] | None = None,
    *,
    input_shape: Mapping[str, tuple[int, ...]] | None = None,
) -> ModelProto:
    """The model with d loss / d w as outputs `w_gradient` (in the order of `wrt`), after its own and the loss.

    source: as `load` takes it; loss: a tensor of one number, or a function that adds nodes to a `Backward` and gives
    their result; wrt: weights, inputs or other tensors, by default all weights that the loss depends on through
    operators that have a gradient; input_shape: sizes of dynamic axes, where a gradient needs them.
    Raises `UserError` where one that is named in `wrt` has no gradient, with the operator that cuts it off.
    """
    b = Backward(load(source), input_shape)
    name = loss if isinstance(loss, str) else loss(b)
    found = differentiate(b, name, chosen(b.model, wrt))
    check(found, wrt is not None)
    return to_proto(b.finished([name, *named(b, found.of, "gradient")]))


def hessian_vector_product(
    source: Source,
    loss: Loss,
    wrt: Iterable[str] | None = None,
    *,
    input_shape: Mapping[str, tuple[int, ...]] | None = None,
) -> ModelProto:
    """The model with inputs `w_vector` and outputs `w_hessian_vector`, H v over all of `wrt` together, after its own
    and the loss: sum over u of d^2 loss / dw du times v_u. Arguments as of `gradients`."""
    b = Backward(load(source), input_shape)
    name = loss if isinstance(loss, str) else loss(b)
    names = chosen(b.model, wrt)
    found = differentiate(b, name, names)
    check(found, wrt is not None)
    parts = []
    for w, g in found.of.items():
        v = b.input_like(f"{w}_vector", w)
        parts.append(b.sum(b.op("Mul", g, v), range(b.rank(g))))
    second = differentiate(b, b.add(parts), list(found.of))
    check(Derivatives(second.of, second.blocked, ()), True)
    of = {w: second.of.get(w) or b.zeros_like(w) for w in found.of}  # the loss is linear in it
    return to_proto(b.finished([name, *named(b, of, "hessian_vector")]))


def chosen(model: Model, wrt: Iterable[str] | None) -> list[str]:
    """What to differentiate by: what is named, else all weights of a floating-point type."""
    if wrt is not None:
        return list(dict.fromkeys([wrt] if isinstance(wrt, str) else wrt))
    return [name for name, w in model.weights.items() if w.dtype.kind == "f"]


def check(found: Derivatives, all_: bool) -> None:
    """Raise `UserError` where there is no gradient; all_: where there is not every one."""
    lacking = dict(found.blocked) | {name: "the loss does not depend on it" for name in found.unread}
    if lacking and (all_ or not found.of):
        name, why = next(iter(lacking.items()))
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise UserError(f"no gradient for {name!r}{more}: {why}")
    if not found.of:
        raise UserError("no gradient: the model has no weights of a floating-point type")


def named(b: Backward, of: Mapping[str, str], what: str) -> list[str]:
    """The tensors of `of` under names that say whose they are."""
    return [b.name(g, f"{w}_{what}") for w, g in of.items()]
