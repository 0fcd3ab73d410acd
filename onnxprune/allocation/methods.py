"""What a search under a target may do to a model: a row each of `--methods`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from onnxprune.latency import zeros

ANY = frozenset({"macs", "params", "bytes", "latency", "energy", "memory"})
STORED = frozenset({"bytes", "latency", "energy", "memory"})  # what zeros that are stored as such make less


@dataclass(frozen=True)
class Method:
    """One way to make a model smaller or faster.

    kind: of the units that go, "" for none; zeros: whether weights become zero (`latency.zeros.METHODS` has where);
    serves: the budgets of which it leaves less; plain: whether the file needs nothing but ONNX's own operators; usual:
    whether it is tried where a time is to be held and nobody names methods.
    """

    help: str
    kind: str = ""
    zeros: bool = False
    serves: frozenset[str] = ANY
    plain: bool = True
    usual: bool = True


METHODS: dict[str, Method] = {
    "channels": Method("channels, filters, neurons go", "channels"),
    "heads": Method("attention heads go", "heads"),
    "layers": Method("residual blocks go", "layers"),
    "head-dim": Method("dimensions inside of heads go", "head_dim", usual=False),
    "hidden": Method("width of normalised streams goes", "hidden", usual=False),
    "experts": Method("experts of mixtures go", "experts", usual=False),
    "unstructured": Method(
        "single weights become zero, stored for our sparse kernels", zeros=True, serves=STORED, plain=False
    ),
    "nm": Method("2 of every 4 weights stay, stored for our sparse kernels", zeros=True, serves=STORED, plain=False),
    "block": Method("tiles of 4x4 weights go, stored for our sparse kernels", zeros=True, serves=STORED, plain=False),
    "column": Method("inputs of a layer go for all its outputs, in plain ONNX", zeros=True, serves=STORED),
    "values": Method("what our kernels store may be float16 or int8", serves=STORED, plain=False, usual=False),
    "cluster": Method(
        "weights become few values each, stored as indices in plain ONNX", serves=frozenset({"bytes"}), usual=False
    ),
}
VALUES, CLUSTER = "values", "cluster"


def usual() -> list[str]:
    """The methods that are tried where nobody names some."""
    return [name for name, row in METHODS.items() if row.usual]


def kinds(methods: Sequence[str]) -> list[str]:
    """The kinds of units that methods remove."""
    return [METHODS[name].kind for name in methods if METHODS[name].kind]


def of_zeros(methods: Sequence[str]) -> list[str]:
    """The methods that make weights zero."""
    return [name for name in methods if METHODS[name].zeros]


def stored_zeros(methods: Sequence[str], *, elsewhere: bool = False) -> list[str]:
    """Names of `latency.zeros.METHODS`: every way to make weights zero and to store them; elsewhere: on a device on
    which our operators do not run.

    >>> stored_zeros(("channels", "nm", "values")), stored_zeros(("channels", "nm", "column"), elsewhere=True)
    (['nm', 'nm:float16', 'nm:int8'], ['nm:dense', 'column'])
    """
    smaller = VALUES in methods
    return [way for name in of_zeros(methods) for way in zeros.ways(name, smaller=smaller, elsewhere=elsewhere)]


def needing_ours(methods: Iterable[str], *, elsewhere: bool = False) -> list[str]:
    """The methods whose files need our operators; elsewhere: where these do not run, 2 of every 4 weights count as
    plain: some runtimes look for them in dense weights."""
    return [n for n in methods if not METHODS[n].plain and not (elsewhere and zeros.ways(n, elsewhere=True))]


def idle(methods: Sequence[str], budgets: Collection[str]) -> list[str]:
    """The methods that leave all of these budgets as they are."""
    return [name for name in methods if not METHODS[name].serves & set(budgets)]
