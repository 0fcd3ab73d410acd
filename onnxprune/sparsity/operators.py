"""Names and attributes of the sparse operators, as docs/sparse-format.md has them.

{Csr|Nm}{MatMul|LeftMatMul|Conv}[Add][Relu|Clip|HardSwish|Silu|Gelu|FastGelu]
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto

DOMAIN = "onnxprune"
VERSION = 1
METADATA = "onnxprune.sparsity"  # key of what the model says of its sparse layers

STORAGES = ("Csr", "Nm")
PRODUCTS = ("MatMul", "LeftMatMul", "Conv")
DENSE = ("MatMul", "Gemm", "Conv")  # operators that the sparse ones replace
ACTIVATIONS = ("", "Relu", "Clip", "HardSwish", "Silu", "Gelu", "FastGelu")


@dataclass(frozen=True)
class Operator:
    """One sparse operator; `str()` of it is its name.

    >>> str(Operator("Csr", "Conv", add=True, activation="Relu"))
    'CsrConvAddRelu'
    """

    storage: str
    product: str
    add: bool = False
    activation: str = ""

    def __str__(self) -> str:
        return f"{self.storage}{self.product}{'Add' if self.add else ''}{self.activation}"

    @property
    def arrays(self) -> tuple[str, ...]:
        """The inputs that hold the weight."""
        return ("values", "indices", "indptr") if self.storage == "Csr" else ("values", "positions")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs in order."""
        return ("X", *self.arrays, "bias", *(["residual"] if self.add else []))

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes, all of which are always written."""
        nm = ("n", "m") if self.storage == "Nm" else ()
        clip = ("min", "max") if self.activation == "Clip" else ()
        own = ("strides", "pads", "dilations", "group") if self.product == "Conv" else ("weight",)
        return ("shape", "alpha", *nm, *clip, *own, "dense")


OPERATORS = {
    str(operator): operator
    for operator in (
        Operator(s, p, a, f) for s in STORAGES for p in PRODUCTS for a in (False, True) for f in ACTIVATIONS
    )
}


def is_sparse(node: NodeProto) -> bool:
    """Whether a node is of our domain."""
    return bool(node.domain == DOMAIN)
