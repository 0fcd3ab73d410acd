"""How much memory may be taken for what a file only describes, and the size of a result before it is computed.

A few bytes of a graph can ask for any amount of memory: three vectors on different axes, added; a shape that is
expanded; an axis that is declared. Whatever is computed or laid out from sizes in a file is measured by the shapes
first: beyond `allowance` it counts as unknown, and what is unknown is pinned and reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from onnx import ModelProto, TensorProto

from onnxprune.graph.arrays import BITS
from onnxprune.graph.node import Node
from onnxprune.graph.protos import tensors

Kind: TypeAlias = tuple[Sequence[int | None] | None, int]  # shape, None for unknown rank, and ONNX type

LIMIT = 1 << 28  # bytes for what a file only describes
RATIO = 4  # or so many times the bytes of the tensors that the file holds
PER_INDEX = 32  # bytes that following an index of an axis takes, about

# Operators that take no memory beyond their inputs and outputs: what they make of constants may be computed.
EVALUATED = frozenset(
    """Abs Acos Acosh Add Affine And ArgMax ArgMin Asin Asinh Atan Atanh BatchNormalization BitCast BitShift BitwiseAnd
    BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Compress Concat ConstantOfShape Cos Cosh CumProd
    CumSum DepthToSpace DequantizeLinear Div Dropout Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gelu Gemm Greater GreaterOrEqual GroupNormalization Hardmax HardSigmoid HardSwish
    Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    LpNormalization MatMul Max Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad
    Pow QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape ReverseSequence Round Scatter
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign SimplifiedLayerNormalization Sin Sinh Size Slice
    Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unique Unsqueeze Where Xor com.microsoft::BiasGelu com.microsoft::DequantizeLinear
    com.microsoft::FastGelu com.microsoft::FusedMatMul com.microsoft::Gelu com.microsoft::QuantizeLinear
    com.microsoft::QuickGelu""".split()
)

# Results whose size nobody infers -> elements of each output, at most, for every element of the first input
PICKED = {"Compress": 1, "Crop": 1, "NonZero": 64, "Unique": 1}


class TooLarge(RuntimeError):
    """The result would be larger than what may be computed, or nothing says how large it is."""


def allowance(proto: ModelProto) -> int:
    """Bytes that something computed from the model may take: LIMIT, or RATIO times the tensors that it holds."""
    return max(LIMIT, RATIO * sum(nbytes(t.dims, t.data_type) or 0 for _, t in tensors(proto)))


def nbytes(shape: Sequence[int | None] | None, code: int) -> int | None:
    """Bytes of a tensor in memory by its shape and ONNX type; None where a size is not known.

    An axis of size 0 counts as 1, since what is computed on the way may have the others already.
    """
    if shape is None or any(d is None for d in shape):
        return None
    width = 64 if code == TensorProto.STRING else -(-max(BITS.get(code, 8), 8) // 8)
    return width * math.prod(max(d or 0, 1) for d in shape)


def evaluated(node: Node) -> bool:
    """Whether a node that reads constants may be computed, if its results are not too large."""
    return node.op in EVALUATED or (node.op == "Einsum" and len(node.inputs) <= 2)  # more: what is made on the way


def result_bytes(node: Node, read: Kind | None, outputs: Iterable[Kind]) -> int | None:
    """Bytes of all outputs of a node together, at most; None where they cannot be told.

    read: shape and type of its first input; outputs: of each output.
    """
    total = 0
    for shape, code in outputs:
        size = nbytes(shape, code)
        if size is None and node.op in PICKED and read is not None:
            first = nbytes(read[0], code)
            size = None if first is None else first * PICKED[node.op]
        if size is None:
            return None
        total += size
    return total
