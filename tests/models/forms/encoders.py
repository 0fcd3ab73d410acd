"""Encoders."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, helper

from models.builder import Array, Dim
from models.forms.form import BATCH, FFN, LABELS, LOWEST, TABLE, TIME, WIDTH, form
from models.forms.net import Module, Net

# Encoders


def bert_embeddings(b: Net, batch: Dim = BATCH, time: Dim = TIME) -> tuple[str, str]:
    """Words, token types and positions added up, and the additive mask (batch, 1, 1, time)."""
    x = b.embed(batch=batch, time=time)
    mask = b.input("attention_mask", (batch, time), np.int64)
    types = b.input("token_type_ids", (batch, time), np.int64)
    x = b.add(x, b.op("Gather", b.param(b.normal(2, WIDTH, scale=0.5), "type.weight"), types, axis=0))
    table = b.param(b.normal(TABLE, WIDTH, scale=0.5), "position.weight")
    if isinstance(time, int):
        where: str | Array = np.arange(time)[None]
    else:
        where = b.op("Slice", b.const(np.arange(TABLE)[None]), [0], b.unsqueeze(b.size(x, 1), 0), [1], [1])
    x = b.add(x, b.op("Gather", table, where, axis=0))
    keep = b.op("Cast", b.unsqueeze(b.unsqueeze(mask, 1), 2), to=helper.np_dtype_to_tensor_dtype(b.dtype))
    return x, b.mul(b.op("Sub", 1.0, keep), LOWEST if b.dtype == np.float32 else -10000.0)


def bert(b: Net, norm: Module | None = None, batch: Dim = BATCH, time: Dim = TIME) -> ModelProto:
    """BERT for classification: post-norm layers, the first position through a Gemm, Tanh and a Gemm."""
    x, mask = bert_embeddings(b, batch, time)
    first = b.op("Gather", b.post_norm(x, lambda y: b.mha(y, mask=mask), norm), 0, axis=1)
    return b.model(b.linear(b.op("Tanh", b.linear(first, WIDTH)), LABELS))


@form(channels=(FFN, FFN, WIDTH))
def encoder_post_norm() -> ModelProto:
    """BERT from TorchScript with constants folded and every size baked in; a pooler of stream width before the head."""
    return bert(Net())


@form(channels=(FFN, FFN, WIDTH), tolerance=2e-2)
def encoder_float16() -> ModelProto:
    """BERT converted to float16, the mask to -10000."""
    return bert(Net(dtype=np.float16))


@form(channels=(FFN, FFN, WIDTH))
def encoder_decomposed_norm() -> ModelProto:
    """BERT at opset 11, nothing folded: decomposed LayerNorm, Shape arithmetic, a Transpose before each MatMul."""
    b = Net(11, raw=True)
    return bert(b, b.layernorm_decomposed, "batch", "sequence")
