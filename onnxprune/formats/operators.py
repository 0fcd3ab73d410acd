"""Names and attributes of the sparse operators, as docs/sparse-format.md has them.

{a storage: Csr|Nm|Bsr}[Scaled]{MatMul|LeftMatMul|Conv}[Add][Relu|Clip|HardSwish|Silu|Gelu|FastGelu], and
BsrQuantizedMatMul[Uint8|Int8]
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto

from onnxprune.formats.format import Storage
from onnxprune.formats.registry import storages
from onnxprune.kernels.names import ACTIVATIONS, DOMAIN, PRODUCTS, RESULTS

METADATA = "onnxprune.sparsity"  # key of what the model says of its sparse layers

DENSE = ("MatMul", "Gemm", "Conv")  # operators that the sparse ones replace


@dataclass(frozen=True)
class Operator:
    """One sparse operator; `str()` of it is its name.

    scaled: its values are integers, times a scale for every output. quantized: so are X and, with a result, Y.

    >>> csr, nm, bsr = (s for s in storages() if s.name in ("Csr", "Nm", "Bsr"))
    >>> str(Operator(csr, "Conv", add=True, activation="Relu"))
    'CsrConvAddRelu'
    >>> str(Operator(nm, "MatMul", scaled=True))
    'NmScaledMatMul'
    >>> str(Operator(bsr, "MatMul", scaled=True, quantized=True, result="Uint8"))
    'BsrQuantizedMatMulUint8'
    >>> Operator(bsr, "MatMul").attributes
    ('shape', 'alpha', 'block', 'weight', 'dense')
    """

    storage: Storage
    product: str
    add: bool = False
    activation: str = ""
    scaled: bool = False
    quantized: bool = False
    result: str = ""

    def __str__(self) -> str:
        scaled = "Quantized" if self.quantized else "Scaled" if self.scaled else ""
        return f"{self.storage.name}{scaled}{self.product}{'Add' if self.add else ''}{self.activation}{self.result}"

    @property
    def arrays(self) -> tuple[str, ...]:
        """The inputs that hold the weight."""
        return (*self.storage.arrays, *(["scale"] if self.scaled else []))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs in order."""
        return ("X", *self.arrays, "bias", *(["residual"] if self.add else []), *self.steps)

    @property
    def steps(self) -> tuple[str, ...]:
        """The inputs that hold how X and Y are quantized."""
        sides = ("x", *(["y"] if self.result else [])) if self.quantized else ()
        return tuple(f"{side}_{what}" for side in sides for what in ("scale", "zero_point"))

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
OPERATORS |= {
    str(operator): operator
    for operator in (
        Operator(s, "MatMul", scaled=True, quantized=True, result=result)
        for s in storages()
        if s.quantizes
        for result in RESULTS
    )
}


QUANTIZED_VERSION = 4  # of the domain: the first with operators on uint8 and int8
VERSION = max(QUANTIZED_VERSION, *(s.version for s in storages()))  # 1 had float32 values only


def least_version(operator: Operator, *, float32: bool) -> int:
    """The version of the domain from which on there is an operator; float32: with values of that type."""
    if operator.quantized:
        return QUANTIZED_VERSION
    return max(operator.storage.version, 1 if float32 else 2)


def is_sparse(node: NodeProto) -> bool:
    """Whether a node is of our domain."""
    return bool(node.domain == DOMAIN)
