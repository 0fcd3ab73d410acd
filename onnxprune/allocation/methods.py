"""What a search under a target may do to a model: a row each of `--methods`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One way to make a model faster.

    kind: of the units that go, "" for weights that become zero (`latency.zeros.METHODS` has where); plain: whether the
    file needs nothing but ONNX's own operators; usual: whether it is tried where nobody names methods.
    """

    help: str
    kind: str = ""
    plain: bool = True
    usual: bool = True


METHODS: dict[str, Method] = {
    "channels": Method("channels, filters, neurons go", "channels"),
    "heads": Method("attention heads go", "heads"),
    "layers": Method("residual blocks go", "layers"),
    "head-dim": Method("dimensions inside of heads go", "head_dim", usual=False),
    "hidden": Method("width of normalised streams goes", "hidden", usual=False),
    "experts": Method("experts of mixtures go", "experts", usual=False),
    "unstructured": Method("single weights become zero, stored for our sparse kernels", plain=False),
    "nm": Method("2 of every 4 weights stay, stored for our sparse kernels", plain=False),
    "block": Method("tiles of 4x4 weights go, stored for our sparse kernels", plain=False),
    "column": Method("inputs of a layer go for all its outputs, in plain ONNX"),
}


def usual(*, plain: bool) -> tuple[str, ...]:
    """The methods that are tried where nobody names some; plain: those that need ONNX's own operators alone."""
    return tuple(name for name, row in METHODS.items() if row.usual and (row.plain or not plain))


def kinds(methods: Sequence[str]) -> list[str]:
    """The kinds of units that methods remove."""
    return [METHODS[name].kind for name in methods if METHODS[name].kind]


def of_zeros(methods: Sequence[str]) -> list[str]:
    """The methods that make weights zero."""
    return [name for name in methods if not METHODS[name].kind]
