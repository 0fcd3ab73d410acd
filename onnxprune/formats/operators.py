"""Names and attributes of the sparse operators, as docs/sparse-format.md has them.

{a storage: Csr|Nm|Bsr}[Scaled]{MatMul|LeftMatMul|Conv}[Add][Relu|Clip|HardSwish|Silu|Gelu|FastGelu]
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto

from onnxprune.formats.format import Storage
from onnxprune.formats.registry import storages
from onnxprune.kernels.names import ACTIVATIONS, DOMAIN, PRODUCTS

METADATA = "onnxprune.sparsity"  # key of what the model says of its sparse layers

DENSE = ("MatMul", "Gemm", "Conv")  # operators that the sparse ones replace


@dataclass(frozen=True)
class Operator:
    """One sparse operator; `str()` of it is its name.

    scaled: its values are integers, times a scale for every output.

    >>> csr, nm, bsr = (s for s in storages() if s.name in ("Csr", "Nm", "Bsr"))
    >>> str(Operator(csr, "Conv", add=True, activation="Relu"))
    'CsrConvAddRelu'
    >>> str(Operator(nm, "MatMul", scaled=True))
    'NmScaledMatMul'
    >>> Operator(bsr, "MatMul").attributes
    ('shape', 'alpha', 'block', 'weight', 'dense')
    """

    storage: Storage
    product: str
    add: bool = False
    activation: str = ""
    scaled: bool = False

    def __str__(self) -> str:
        scaled, add = "Scaled" if self.scaled else "", "Add" if self.add else ""
        return f"{self.storage.name}{scaled}{self.product}{add}{self.activation}"

    @property
    def arrays(self) -> tuple[str, ...]:
        """The inputs that hold the weight."""
        return (*self.storage.arrays, *(["scale"] if self.scaled else []))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs in order."""
        return ("X", *self.arrays, "bias", *(["residual"] if self.add else []))

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes, all of which are always written."""
        clip = ("min", "max") if self.activation == "Clip" else ()
        product_attributes = ("strides", "pads", "dilations", "group") if self.product == "Conv" else ("weight",)
        return ("shape", "alpha", *self.storage.attributes, *clip, *product_attributes, "dense")


OPERATORS = {
    str(operator): operator
    for operator in (
        Operator(s, p, a, f, scaled)
        for scaled in (False, True)
        for s in storages()
        for p in PRODUCTS
        for a in (False, True)
        for f in ACTIVATIONS
    )
}


VERSION = max(2, *(s.version for s in storages()))  # of the domain: 1 had float32 values only


def least_version(operator: Operator, *, float32: bool) -> int:
    """The version of the domain from which on there is an operator; float32: with values of that type."""
    return max(operator.storage.version, 1 if float32 else 2)


def is_sparse(node: NodeProto) -> bool:
    """Whether a node is of our domain."""
    return bool(node.domain == DOMAIN)
