"""Operators that ONNX itself defines by others."""

from __future__ import annotations

from onnxprune.gradient.through import by_definition, decomposed

decomposed(
    "Attention", "CenterCropPad", "NegativeLogLikelihoodLoss",
    "RotaryEmbedding", "SoftmaxCrossEntropyLoss", "SwiGLU",
)(by_definition)  # fmt: skip
