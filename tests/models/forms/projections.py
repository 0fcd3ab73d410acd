"""One projection for q, k and v, and projections as Einsum."""

from __future__ import annotations

from onnx import ModelProto

from models.builder import INT_MAX
from models.forms.form import BATCH, HEAD, HEADS, LABELS, TIME, WIDE, WIDTH, form
from models.forms.net import Net

# One projection for q, k and v


@form(head_dim=(HEAD, HEAD))
def fused_qkv_gather() -> ModelProto:
    """ViT of timm: (batch, time, 3, heads, d), Transpose, Gather 0, 1, 2; convolution of patches, class token."""
    b = Net()
    patches = b.conv(b.input("pixels", ("batch", 3, 8, 8)), WIDTH, 4, stride=4, pad=0)
    ends = b.op("Slice", b.op("Shape", patches), [0], [2], [0])
    x = b.op("Reshape", patches, b.concat(ends, b.const([-1]), axis=0))
    x = b.transpose(b.declare(x, ("batch", WIDTH, 4)), 0, 2, 1)
    token = b.op("Expand", b.param(b.normal(1, 1, WIDTH), "cls_token"), b.dims(b.size(x, 0), 1, WIDTH))
    x = b.positions(b.declare(b.concat(token, x), ("batch", 5, WIDTH)))

    def attention(x: str) -> str:
        split = b.reshape(b.dense(x, 3 * WIDTH), b.size(x, 0), 5, 3, HEADS, HEAD)
        q, k, v = (b.op("Gather", b.transpose(split, 2, 0, 3, 1, 4), i, axis=0) for i in range(3))
        return b.out(b.attend(q, k, v, scale="q"), WIDTH)

    return b.model(b.linear(b.op("Gather", b.pre_norm(x, attention), 0, axis=1), LABELS))


@form()
@form("fused_qkv_per_head", fixed={"per_head": True}, note="BLOOM: every head holds its own q, k, v: (heads, 3 * d).")
def fused_qkv_slice(*, per_head: bool = False) -> ModelProto:
    """q, k and v by Slice of the last axis."""
    b = Net()

    def attention(x: str) -> str:
        qkv = b.dense(x, 3 * WIDTH)
        if per_head:
            parts = b.split(b.reshape(qkv, BATCH, TIME, HEADS, 3 * HEAD), [HEAD] * 3, axis=-1)
            q, k, v = (b.transpose(t, 0, 2, 1, 3) for t in parts)
        else:
            ends = (WIDTH, 2 * WIDTH, INT_MAX)
            q, k, v = (b.heads(b.slice(qkv, WIDTH * i, end, -1), HEADS) for i, end in enumerate(ends))
        return b.out(b.attend(q, k, v, scale="mul"), WIDTH)

    return b.classify(b.pre_norm(b.positions(b.embed()), attention))


# Einsum


@form(hidden=(WIDE,))
@form(
    "einsum_projections", fixed={"projections": True}, hidden=(WIDE,), note="Projections (in, heads, d) too, as Keras."
)
def einsum_attention(*, projections: bool = False) -> ModelProto:
    """Scores and mixing by Einsum over (batch, time, heads, d), without a Transpose."""
    b = Net()

    def project(x: str) -> str:
        if not projections:
            return b.reshape(b.dense(x, HEADS * HEAD), BATCH, TIME, HEADS, HEAD)
        weight = b.param(b.he(WIDE, HEADS, HEAD, fan_in=WIDE), "einsum.weight")
        return b.add(b.op("Einsum", x, weight, equation="bsc,chd->bshd"), b.vec(HEADS, HEAD))

    def attention(x: str) -> str:
        q, k, v = (project(x) for _ in range(3))
        scores = b.mul(b.op("Einsum", q, k, equation="bqhd,bkhd->bhqk"), HEAD**-0.5)
        mixed = b.op("Einsum", b.softmax(scores), v, equation="bhqk,bkhd->bqhd")
        if not projections:
            return b.dense(b.reshape(mixed, BATCH, TIME, HEADS * HEAD), WIDE)
        weight = b.param(b.he(HEADS, HEAD, WIDE, fan_in=HEADS * HEAD), "einsum.weight")
        return b.add(b.op("Einsum", mixed, weight, equation="bshd,hdc->bsc"), b.vec(WIDE))

    return b.classify(b.pre_norm(b.positions(b.embed(WIDE)), attention))
