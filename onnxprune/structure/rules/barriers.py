"""Control flow, and the operators that deliberately pin whatever they touch, with the reason."""

from __future__ import annotations

from onnxprune.graph.chance import DRAWING
from onnxprune.graph.node import Node
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.rules.registry import barrier, rule


@rule("If")
def branches(c: Coupling, n: Node) -> None:
    """an output and what both branches return for it are tied; bodies are analysed in place"""
    for k, o in enumerate(n.outputs):
        returned = [body.output[k].name for body in n.bodies()]
        if not o:
            continue
        if all(c.complete(t) and c.shape(t) == c.shape(o) for t in (o, *returned)):
            for t in returned:
                for p, q in zip(c.axes(t), c.axes(o), strict=True):
                    c.tie(p, q)
        else:
            for t in (o, *returned):
                for ids in c.axes(t):
                    c.pin(ids, "branches of If return different shapes")


@rule("Loop", "Scan")
def control_flow(c: Coupling, n: Node) -> None:
    """bodies are analysed in place; what enters or leaves them by name of the operator is pinned"""
    c.pin_all(n, f"passes through {n.op}")
    for body in n.bodies():
        for info in (*body.input, *body.output):
            for ids in c.axes(info.name):
                c.pin(ids, f"enters or leaves a body of {n.op}")


barrier(
    "addresses elements by index",
    *"Compress Unique NonZero".split(),
)
barrier("its indices count elements across channels", "MaxUnpool")
barrier("attention as one operator: its heads are not split", "LinearAttention", "com.microsoft::PackedAttention")
barrier("its state holds channels between runs", "CausalConvWithState")
barrier("gate and value are interleaved inside one axis", "SwiGLU")
barrier("mixes all elements of its axes", "DFT", "STFT", "Det", "AffineGrid")
barrier(
    "makes constants, not channels",
    *"BlackmanWindow HammingWindow HannWindow MelWeightMatrix EyeLike Range".split(),
)
barrier(
    "random: pruned and masked model would draw different numbers",
    *DRAWING,
)
barrier("a training loss", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
barrier("selects boxes", "NonMaxSuppression")
barrier(
    "sequences and optionals hold tensors of any shape",
    *"""ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty
    SequenceErase SequenceInsert SequenceLength SequenceMap SplitToSequence""".split(),
)
barrier(
    "works on strings, text or encoded images",
    *"ImageDecoder RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer".split(),
)
