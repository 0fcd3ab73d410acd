"""Small transformers, one per way in which exporters write them, with the groups that a pruner should find in each.

`TRANSFORMERS` maps a name to a `Form`. Every model runs in onnxruntime on `feeds(form)` unless `runs` is False, and
passes the checker's full check unless `checked` is False. Sizes that mean different things differ, as far as the
architecture lets them: batch 2, time 6, heads 4, dimensions of a head 8, feed-forward width 48, vocabulary 20, and a
residual stream of 40 where it may differ from heads times their dimensions (32).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, helper
from topologies import INT_MAX, MICROSOFT, Array, Builder, Dim, Operand

BATCH, TIME, VOCAB, LAYERS, LABELS = 2, 6, 20, 2, 10
HEADS, HEAD, FFN, WIDTH, WIDE = 4, 8, 48, 32, 40
TABLE = 16  # rows of tables of positions, at least the longest sequence of `feeds`
TOTAL = "total_sequence"  # past and new positions
LOWEST = float(np.finfo(np.float32).min)

Module = Callable[[str], str]
BuildFn = TypeVar("BuildFn", bound=Callable[..., ModelProto])


@dataclass(frozen=True)
class Form:
    """What a form is, and the groups that the dependency analysis should find in it.

    heads: sizes of the groups of heads, one per attention unless something shared ties several; under grouped
    queries the units are key-value heads.
    head_dim: per attention the dimensions of a head of q with k, then of v with the output projection; pairs of
    dimensions where q and k rotate; a group that a shared table of angles ties is listed once, and so is one for q, k
    and v where a Reshape to (3, heads, d) leaves them one axis for their dimensions.
    hidden: widths of the residual streams that cross a normalisation. channels: every other width, such as those of
    feed-forward layers. experts: numbers of experts. blocks: residual blocks `y = [norm](x + f(x))`.
    io: heads and their dimensions are axes of inputs or outputs (key-value caches), which the user has to allow.
    """

    name: str
    build: Callable[[], ModelProto]
    heads: tuple[int, ...] = (HEADS, HEADS)
    head_dim: tuple[int, ...] = (HEAD,) * 4
    hidden: tuple[int, ...] = (WIDTH,)
    channels: tuple[int, ...] = (FFN, FFN)
    experts: tuple[int, ...] = ()
    blocks: int = 2 * LAYERS
    note: str = ""
    io: bool = False
    runs: bool = True
    checked: bool = True
    tolerance: float = 1e-4  # of a run against another way to compute the same, relative to the largest output


TRANSFORMERS: dict[str, Form] = {}


def form(name: str = "", *, fixed: dict[str, Any] | None = None, **expected: Any) -> Callable[[BuildFn], BuildFn]:
    """Register a builder under its own name, or under `name` with the keyword arguments `fixed`."""

    def register(build: BuildFn) -> BuildFn:
        key = name or build.__name__
        assert key not in TRANSFORMERS, f"form {key!r} is registered twice"
        note = expected.pop("note", "") or " ".join((build.__doc__ or "").split())
        TRANSFORMERS[key] = Form(key, partial(build, **(fixed or {})), note=note, **expected)
        return build

    return register


LIMITS = {"input_ids": VOCAB, "decoder_input_ids": VOCAB, "token_type_ids": 2}


def feeds(form: Form | ModelProto, *, size: int = 2, seed: int = 0) -> dict[str, Array]:
    """Random inputs: symbolic sizes become `size`, past and new positions together twice that.

    Masks are 0 or 1, and 1 at the first position; those over past and new positions are 1.
    """
    model = form if isinstance(form, ModelProto) else form.build()
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [d.dim_value or (2 * size if d.dim_param == TOTAL else size) for d in dims]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype.kind == "f":
            found[value.name] = rng.standard_normal(shape).astype(dtype)
        elif "mask" in value.name:
            mask = rng.integers(0, 2, shape).astype(dtype)
            mask[..., slice(None) if dims[-1].dim_param == TOTAL else 0] = 1
            found[value.name] = mask
        else:
            found[value.name] = rng.integers(0, LIMITS.get(value.name, 6), shape).astype(dtype)
    return found


class Net(Builder):
    """The builder of topologies.py with what transformers share.

    Sizes that are known become constants, as tracing leaves them; `raw` keeps all shape arithmetic and the Transpose
    of each linear layer's weight, as an export without constant folding does.
    """

    def __init__(self, opset: int = 17, *, raw: bool = False, **options: Any) -> None:
        super().__init__(opset, **options)
        self.raw = raw

    def const(self, value: npt.ArrayLike) -> str:
        name = super().const(value)
        self.nodes[-1].name = self.nodes[-1].name or name
        return name

    def he(self, *shape: int, fan_in: int = 0) -> Array:
        return self.rng.normal(0.0, 1 / math.sqrt(fan_in or math.prod(shape[1:])), shape)

    def size(self, x: str, axis: int) -> Any:
        size = self.shape(x)[axis]
        return size if isinstance(size, int) and not self.raw else super().size(x, axis)

    def dims(self, *sizes: Dim) -> str:
        if not self.raw:
            return super().dims(*sizes)
        return self.concat(*[self.unsqueeze(self.const(d) if isinstance(d, int) else d, 0) for d in sizes], axis=0)

    def dense(self, x: str, n: int, *, bias: bool = True) -> str:
        if not self.raw:
            return super().dense(x, n, bias=bias)
        weight = self.transpose(self.param(self.he(n, self.channels(x, -1)), "linear.weight"), 1, 0)
        y = self.matmul(x, weight)
        return self.add(self.vec(n), y) if bias else y

    def conv1d(self, x: str, n: int) -> str:
        """GPT-2's linear layer: a Gemm between two Reshapes."""
        y = self.linear(self.reshape(x, -1, self.channels(x, 2)), n, trans_b=0)
        return self.reshape(y, self.size(x, 0), self.size(x, 1), n)

    def gain(self, n: int) -> str:
        return self.param(self.uniform(0.5, 1.5, n), "norm.weight")

    def rmsnorm(self, x: str) -> str:
        mean = self.reduce("Mean", self.op("Pow", x, 2.0), -1)
        inverse = self.op("Reciprocal", self.op("Sqrt", self.add(mean, 1e-6)))
        return self.mul(self.gain(self.channels(x, -1)), self.mul(x, inverse))

    def gelu_tanh(self, x: str) -> str:
        inner = self.mul(self.add(x, self.mul(self.op("Pow", x, 3.0), 0.044715)), math.sqrt(2 / math.pi))
        return self.mul(self.mul(x, 0.5), self.add(self.op("Tanh", inner), 1.0))

    def embed(self, width: int = WIDTH, *, name: str = "input_ids", time: Dim = TIME, batch: Dim = BATCH) -> str:
        ids = self.input(name, (batch, time), np.int64)
        return self.op("Gather", self.param(self.normal(VOCAB, width, scale=1.0), "embedding.weight"), ids, axis=0)

    def positions(self, x: str) -> str:
        """A learned vector per position, added."""
        return self.add(x, self.param(self.normal(1, *self.shape(x)[1:], scale=0.5), "position.weight"))

    def scores(self, q: str, k: str, *, scale: str = "div") -> str:
        """q k^T over (batch, heads, time, d), scaled by 1 / sqrt(d) in one of the ways in which models write it."""
        d, kt = self.channels(q, -1), self.transpose(k, 0, 1, 3, 2)
        if scale == "both":  # scaled_dot_product_attention
            return self.matmul(self.mul(q, d**-0.25), self.mul(kt, d**-0.25))
        if scale == "q":
            return self.matmul(self.mul(q, d**-0.5), kt)
        s = self.matmul(q, kt)
        if scale == "div":
            return self.op("Div", s, math.sqrt(d))
        return self.mul(s, d**-0.5) if scale == "mul" else s

    def attend(self, q: str, k: str, v: str, *, mask: Operand = None, scale: str = "div") -> str:
        scores = self.scores(q, k, scale=scale)
        return self.matmul(self.softmax(scores if mask is None else self.add(scores, mask)), v)

    def out(self, mixed: str, width: int, *, bias: bool = True) -> str:
        """(batch, heads, time, d) through the output projection."""
        shape = self.shape(mixed)
        return self.dense(self.unheads(mixed, int(shape[1]) * int(shape[3])), width, bias=bias)

    def mha(self, x: str, *, source: str = "", mask: Operand = None, scale: str = "div", bias: bool = True) -> str:
        """Attention with separate projections, across to `source` if given."""
        inputs = (x, source or x, source or x)
        q, k, v = (self.heads(self.dense(t, HEADS * HEAD, bias=bias), HEADS) for t in inputs)
        return self.out(self.attend(q, k, v, mask=mask, scale=scale), self.channels(x, -1), bias=bias)

    def ms(self, kind: str, *operands: Operand, shape: Sequence[Dim | None], **attributes: Any) -> str:
        """A com.microsoft node, whose output's shape onnx cannot infer."""
        return self.declare(self.op(kind, *operands, domain=MICROSOFT, **attributes), shape)

    def swiglu(self, x: str, hidden: int = FFN) -> str:
        gated = self.mul(self.silu(self.dense(x, hidden, bias=False)), self.dense(x, hidden, bias=False))
        return self.dense(gated, self.channels(x, -1), bias=False)

    def pre_norm(self, x: str, attention: Module, ffn: Module | None = None, norm: Module | None = None) -> str:
        """Two layers x + attention(norm(x)), x + ffn(norm(x)), and a last norm."""
        norm, ffn = norm or self.layernorm, ffn or (lambda y: self.ffn(y, FFN))
        for _ in range(LAYERS):
            x = self.add(x, attention(norm(x)))
            x = self.add(x, ffn(norm(x)))
        return norm(x)

    def post_norm(self, x: str, attention: Module, norm: Module | None = None) -> str:
        """Two layers norm(x + attention(x)), norm(x + ffn(x)) behind a first norm."""
        norm = norm or self.layernorm
        x = norm(x)
        for _ in range(LAYERS):
            x = norm(self.add(x, attention(x)))
            x = norm(self.add(x, self.ffn(x, FFN)))
        return x

    def classify(self, x: str) -> ModelProto:
        """The mean over time through a Gemm."""
        return self.model(self.linear(self.reduce("Mean", x, 1, keepdims=0), LABELS))

    def language_model(self, x: str, *others: str) -> ModelProto:
        return self.model(self.dense(x, VOCAB, bias=False), *others)


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


# Decoders


def causal(b: Net, scores: str, *, query: str, key: str) -> str:
    """Where on a constant triangle, sliced to [keys - queries : keys, : keys] as in GPT-2."""
    triangle = b.const(np.tril(np.ones((1, 1, 24, 24), np.bool_)))
    q, k = (b.op("Gather", b.op("Shape", t), -2, axis=0) for t in (query, key))
    start, end = b.unsqueeze(b.op("Sub", k, q), 0), b.unsqueeze(k, 0)
    mask = b.op("Slice", b.op("Slice", triangle, start, end, [2]), [0], end, [3])
    return b.op("Where", mask, scores, LOWEST)


@form()
@form(
    "decoder_kv_cache",
    fixed={"cache": True},
    io=True,
    note="The same with past and present keys and values per layer, (batch, heads, past, d), joined by Concat.",
)
def decoder_pre_norm(*, cache: bool = False) -> ModelProto:
    """GPT-2: q, k and v from one Gemm and a Split, causal mask by Where, tanh GELU; batch and sequence are dynamic."""
    b = Net()
    x, presents = b.embed(batch="batch", time="sequence"), []
    where = b.input("position_ids", ("batch", "sequence"), np.int64) if cache else b.op("Range", 0, b.size(x, 1), 1)
    x = b.add(x, b.op("Gather", b.param(b.normal(TABLE, WIDTH, scale=0.5), "position.weight"), where, axis=0))
    b.declare(x, ("batch", "sequence", WIDTH))

    def attention(x: str) -> str:
        q, k, v = (b.heads(part, HEADS) for part in b.split(b.conv1d(x, 3 * WIDTH), [WIDTH] * 3, axis=2))
        if cache:
            layer, shape = len(presents) // 2, ("batch", HEADS, "past_sequence", HEAD)
            pasts = [b.input(f"past_{t}_{layer}", shape) for t in ("key", "value")]
            k, v = (
                b.declare(b.concat(past, t, axis=2), ("batch", HEADS, TOTAL, HEAD))
                for past, t in zip(pasts, (k, v), strict=True)
            )
            presents.extend((k, v))
        scores = causal(b, b.op("Div", b.matmul(q, b.transpose(k, 0, 1, 3, 2)), math.sqrt(HEAD)), query=q, key=k)
        mixed = b.declare(b.matmul(b.softmax(scores), v), ("batch", HEADS, "sequence", HEAD))
        return b.conv1d(b.unheads(mixed, WIDTH), WIDTH)

    y = b.pre_norm(x, attention, lambda y: b.conv1d(b.gelu_tanh(b.conv1d(y, FFN)), WIDTH))
    return b.language_model(y, *presents)


def angles(half: int = HEAD // 2) -> Array:
    return np.outer(np.arange(TABLE), 1.0 / 100 ** (np.arange(half) / half)).astype(np.float32)


def rotary(b: Net, where: str, *, interleaved: bool = False) -> Module:
    """Rotation of (batch, heads, time, d) by tables gathered at `where`, the same tables for all layers."""
    tables = [f(angles()) if interleaved else np.concatenate([f(angles())] * 2, -1) for f in (np.cos, np.sin)]
    cos, sin = (b.unsqueeze(b.op("Gather", b.param(t, "rope"), where, axis=0), 1) for t in tables)

    def halves(t: str) -> str:
        turned = b.concat(b.op("Neg", b.slice(t, HEAD // 2, INT_MAX, 3)), b.slice(t, 0, HEAD // 2, 3), axis=-1)
        return b.add(b.mul(t, cos), b.mul(turned, sin))

    def pairs(t: str) -> str:
        even, odd = b.slice(t, 0, INT_MAX, 3, 2), b.slice(t, 1, INT_MAX, 3, 2)
        first = b.op("Sub", b.mul(even, cos), b.mul(odd, sin))
        second = b.add(b.mul(odd, cos), b.mul(even, sin))
        stacked = b.concat(b.unsqueeze(first, -1), b.unsqueeze(second, -1), axis=-1)
        return b.reshape(stacked, *[b.size(t, i) for i in range(4)])

    return pairs if interleaved else halves


def repeat_kv(b: Net, t: str, times: int) -> str:
    """(batch, kv heads, time, d) to (batch, heads, time, d) as Tensor.expand and reshape are exported."""
    batch, kv, time, d = (b.size(t, i) for i in range(4))
    sizes = b.dims(batch, kv, times, time, d)
    if any(isinstance(s, str) for s in (batch, time)):  # -1 would mean "as it is"; the exporter cannot know
        ones = b.op("ConstantOfShape", b.op("Shape", sizes), value=helper.make_tensor("one", 7, [1], [1]))
        sizes = b.op("Where", b.op("Equal", sizes, b.mul(ones, -1)), ones, sizes)
    wide = b.op("Expand", b.unsqueeze(t, 2), sizes)
    return b.reshape(wide, batch, int(kv) * times, time, d)


LLAMA = {"heads": (2, 2), "head_dim": (HEAD // 2, HEAD, HEAD), "hidden": (WIDE,)}


@form(**LLAMA)
@form("llama_dynamic", fixed={"batch": "batch", "time": "sequence"}, **LLAMA, note="The same, batch and time dynamic.")
@form("llama_tied", fixed={"tied": True}, **LLAMA, note="The head is the transposed embedding.")
@form(
    "llama_interleaved_rotary", fixed={"interleaved": True}, **LLAMA, note="Pairs by Slices of step 2, stacked again."
)
def llama(*, batch: Dim = BATCH, time: Dim = TIME, tied: bool = False, interleaved: bool = False) -> ModelProto:
    """RMSNorm, rotary halves, four query heads on two kv heads by Unsqueeze, Expand, Reshape, SwiGLU, no biases."""
    b = Net()
    x = b.embed(WIDE, batch=batch, time=time)
    table = b.nodes[-1].input[0]
    rotate = rotary(b, b.input("position_ids", (batch, time), np.int64), interleaved=interleaved)

    def attention(x: str) -> str:
        q, k, v = (b.heads(b.dense(x, n * HEAD, bias=False), n) for n in (HEADS, 2, 2))
        k, v = (repeat_kv(b, t, 2) for t in (rotate(k), v))
        scores = causal(b, b.scores(rotate(q), k, scale="both"), query=q, key=k)
        return b.out(b.declare(b.matmul(b.softmax(scores), v), (batch, HEADS, time, HEAD)), WIDE, bias=False)

    x = b.pre_norm(x, attention, b.swiglu, b.rmsnorm)
    return b.model(b.matmul(x, b.transpose(table, 1, 0))) if tied else b.language_model(x)


@form()
def multi_query() -> ModelProto:
    """GPT-BigCode: one key-value head that broadcasts over the query heads, which are the units."""
    b = Net()
    x = b.positions(b.embed())

    def attention(x: str) -> str:
        q, kv = b.split(b.dense(x, WIDTH + 2 * HEAD), [WIDTH, 2 * HEAD], axis=2)
        k, v = (b.unsqueeze(t, 1) for t in b.split(kv, [HEAD, HEAD], axis=-1))
        return b.out(b.attend(b.heads(q, HEADS), k, v, mask=triangle(TIME)), WIDTH)

    return b.language_model(b.pre_norm(x, attention))


def triangle(time: int) -> Array:
    """The additive causal mask."""
    return np.triu(np.full((1, 1, time, time), -10000.0, np.float32), 1)


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


# The operators of onnxruntime


def skip_norm(b: Net, x: str, y: str, kind: str = "SkipLayerNormalization", *, total: bool = False) -> tuple[str, str]:
    """norm(x + y [+ bias]), and with `total` the sum itself, as onnxruntime fuses both."""
    width = b.channels(x, -1)
    extra = [b.vec(width), b.vec(width)] if kind == "SkipLayerNormalization" else []
    made = b.ops(kind, x, y, b.gain(width), *extra, n=4 if total else 1, domain=MICROSOFT, epsilon=1e-5)
    for unused in (1, 2) if total else ():
        b.nodes[-1].output[unused] = ""
    return b.declare(made[0], b.shape(x)), b.declare(made[-1], b.shape(x))


@form()
@form("ms_attention_qkv_sizes", fixed={"wide": True}, head_dim=(6, 8, 6, 8), note="The same, v wider than q and k.")
def ms_attention(*, wide: bool = False) -> ModelProto:
    """BERT after fusion: EmbedLayerNormalization, Attention with mask lengths, SkipLayerNormalization, BiasGelu."""
    b = Net()
    ids, types, mask = (
        b.input(name, (BATCH, TIME), np.int32) for name in ("input_ids", "token_type_ids", "attention_mask")
    )
    tables = [b.param(b.normal(n, WIDTH, scale=0.7), "embedding") for n in (VOCAB, TABLE, 2)]
    x, lengths = b.ops(
        "EmbedLayerNormalization", ids, types, *tables, b.gain(WIDTH), b.vec(WIDTH), mask, n=2, domain=MICROSOFT,
        epsilon=1e-5, mask_index_type=1,
    )  # fmt: skip
    b.declare(x, (BATCH, TIME, WIDTH))
    sizes = [24, 24, WIDTH] if wide else [WIDTH] * 3
    for _ in range(LAYERS):
        weight = b.param(b.he(WIDTH, sum(sizes), fan_in=WIDTH), "qkv.weight")
        chosen = {"qkv_hidden_sizes": sizes} if wide else {}
        operands = (x, weight, b.vec(sum(sizes)), lengths)
        y = b.ms("Attention", *operands, num_heads=HEADS, shape=(BATCH, TIME, WIDTH), **chosen)
        x = skip_norm(b, b.dense(y, WIDTH), x)[0]
        h = b.ms("BiasGelu", b.dense(x, FFN, bias=False), b.vec(FFN), shape=(BATCH, TIME, FFN))
        x = skip_norm(b, b.dense(h, WIDTH), x)[0]
    return b.classify(x)


@form(hidden=(WIDE,))
@form("ms_rotary", fixed={"rotate": True}, head_dim=(4, 8, 8), hidden=(WIDE,), note="RotaryEmbedding before it.")
def ms_mha(*, rotate: bool = False) -> ModelProto:
    """com.microsoft MultiHeadAttention: q, k, v (batch, time, heads * d) without biases, one bias for the three."""
    b = Net()
    x = b.embed(WIDE)
    if rotate:
        tables = [b.input("position_ids", (BATCH, TIME), np.int64), *(b.param(f(angles())) for f in (np.cos, np.sin))]

    def attention(x: str) -> str:
        shape = (BATCH, TIME, HEADS * HEAD)
        q, k, v = (b.dense(x, HEADS * HEAD, bias=rotate) for _ in range(3))
        if rotate:
            q, k = (b.ms("RotaryEmbedding", t, *tables, shape=shape) for t in (q, k))
        bias = None if rotate else b.vec(3 * HEADS * HEAD)
        return b.dense(b.ms("MultiHeadAttention", q, k, v, bias, num_heads=HEADS, shape=shape), WIDE)

    return b.classify(b.pre_norm(x if rotate else b.positions(x), attention))


GQA_HEAD = 16
GQA = {"heads": (2, 2), "head_dim": (), "hidden": (WIDE,), "io": True}


@form(**GQA)
@form(
    "ms_gqa_packed",
    fixed={"packed": True},
    **GQA,
    checked=False,
    note="onnxruntime-genai: q, k, v packed in one input, lengths from attention_mask, SimplifiedLayerNormalization "
    "in the ONNX domain, which the checker does not know.",
)
def ms_gqa(*, packed: bool = False) -> ModelProto:
    """com.microsoft GroupQueryAttention and SkipSimplifiedLayerNormalization; q, k, v share one head size.

    Rotation happens inside, for head sizes that are multiples of 16 alone; the caches of angles hold half of it.
    """
    b = Net(23)
    batch = 1  # onnxruntime takes several new positions after a past for one sequence alone
    time, past = ("sequence", "past_sequence") if packed else (5, 3)
    x, presents = b.embed(WIDE, batch=batch, time=time), []
    cos, sin = b.param(np.cos(angles(GQA_HEAD // 2)), "cos_cache"), b.param(np.sin(angles(GQA_HEAD // 2)), "sin_cache")
    if packed:
        mask = b.input("attention_mask", (batch, TOTAL), np.int64)
        last = b.op("Cast", b.op("Sub", b.reduce("Sum", mask, 1, keepdims=0), 1), to=onnx.TensorProto.INT32)
        total = b.op("Cast", b.size(mask, 1), to=onnx.TensorProto.INT32)
    else:
        last, total = b.param(np.full(batch, past + time - 1, np.int32)), b.param(np.array(past + time, np.int32))
    y = b.op("SimplifiedLayerNormalization" if packed else "RMSNormalization", x, b.gain(WIDE), axis=-1, epsilon=1e-5)
    b.declare(y, (batch, time, WIDE))
    for layer in range(LAYERS):
        cache = [b.input(f"past_key_values.{layer}.{t}", (batch, 2, past, GQA_HEAD)) for t in ("key", "value")]
        if packed:
            qkv = [b.dense(y, (HEADS + 4) * GQA_HEAD, bias=False), "", ""]
        else:
            qkv = [b.dense(y, n * GQA_HEAD, bias=False) for n in (HEADS, 2, 2)]
        counts = {"num_heads": HEADS, "kv_num_heads": 2, "do_rotary": 1, "scale": GQA_HEAD**-0.5}
        mixed, *present = b.ops(
            "GroupQueryAttention", *qkv, *cache, last, total, cos, sin, n=3, domain=MICROSOFT, **counts
        )
        grown = TOTAL if packed else past + time
        presents.extend(b.declare(p, (batch, 2, grown, GQA_HEAD)) for p in present)
        y = b.dense(b.declare(mixed, (batch, time, HEADS * GQA_HEAD)), WIDE, bias=False)
        y, x = skip_norm(b, x, y, "SkipSimplifiedLayerNormalization", total=True)
        y, x = skip_norm(b, x, b.swiglu(y), "SkipSimplifiedLayerNormalization", total=True)
    return b.language_model(y, *presents)


# The operators of opset 23


@form(head_dim=(4, 8, 8), hidden=(WIDE,))
def onnx_attention_4d() -> ModelProto:
    """Attention, RotaryEmbedding (tables per position, batch first) and RMSNormalization on (batch, heads, time, d)."""
    b = Net(23)
    x = b.embed(WIDE)
    tables = [b.param(np.repeat(f(angles())[None, :TIME], BATCH, 0), "rope") for f in (np.cos, np.sin)]

    def attention(x: str) -> str:
        q, k, v = (b.heads(b.dense(x, HEADS * HEAD), HEADS) for _ in range(3))
        q, k = (b.op("RotaryEmbedding", t, *tables) for t in (q, k))
        return b.out(b.op("Attention", q, k, v, is_causal=1), WIDE)

    return b.language_model(b.pre_norm(x, attention, b.swiglu, lambda y: rms_operator(b, y)))


def rms_operator(b: Net, x: str) -> str:
    return b.op("RMSNormalization", x, b.gain(b.channels(x, -1)), axis=-1, epsilon=1e-5)


@form(heads=(2, 2), head_dim=(4, 8, 8), hidden=(WIDE,))
@form(
    "onnx_attention_gqa_cache",
    fixed={"cache": True},
    heads=(2, 2),
    head_dim=(4, 8, 8),
    hidden=(WIDE,),
    io=True,
    note="The same with past_key, past_value and the present outputs.",
)
def onnx_attention_3d(*, cache: bool = False) -> ModelProto:
    """Attention and RotaryEmbedding on (batch, time, heads * d), counts as attributes, grouped queries."""
    b = Net(23)
    x, presents = b.embed(WIDE), []
    tables = [b.param(f(angles()), "rope") for f in (np.cos, np.sin)]
    where = b.input("position_ids", (BATCH, TIME), np.int64)

    def attention(x: str) -> str:
        q, k, v = (b.dense(x, n * HEAD) for n in (HEADS, 2, 2))
        q, k = (b.op("RotaryEmbedding", t, *tables, where, num_heads=n) for t, n in ((q, HEADS), (k, 2)))
        counts = {"q_num_heads": HEADS, "kv_num_heads": 2, "is_causal": 1}
        if cache:
            layer = len(presents) // 2
            pasts = [b.input(f"past_{t}_{layer}", (BATCH, 2, 3, HEAD)) for t in ("key", "value")]
            mixed, *present = b.ops("Attention", q, k, v, None, *pasts, n=3, **counts)
            presents.extend(b.declare(p, (BATCH, 2, 3 + TIME, HEAD)) for p in present)
        else:
            mixed = b.op("Attention", q, k, v, **counts)
        return b.dense(b.declare(mixed, (BATCH, TIME, HEADS * HEAD)), WIDE)

    return b.language_model(b.pre_norm(x, attention, b.swiglu, lambda y: rms_operator(b, y)), *presents)


# Biases, masks and gates per head


@form(heads=(HEADS,), note="The slopes are one constant for both layers, so their heads go together.")
def alibi() -> ModelProto:
    """BLOOM: slopes (heads, 1, 1) times positions, added to the scores of both layers."""
    b = Net()
    x = b.embed()
    slopes = b.param((2.0 ** -np.arange(2, 2 + HEADS))[:, None, None], "slopes")
    bias = b.mul(slopes, np.arange(TIME, dtype=np.float32)[None, None])

    def attention(x: str) -> str:
        q, k, v = (b.heads(b.dense(x, WIDTH), HEADS) for _ in range(3))
        scores = b.add(b.add(bias, b.scores(q, k, scale="mul")), triangle(TIME))
        return b.out(b.matmul(b.softmax(scores), v), WIDTH)

    return b.language_model(b.pre_norm(x, attention))


@form()
def per_head_mask() -> ModelProto:
    """A gate per head (1, heads, 1, 1) on the probabilities, as Hugging Face's head_mask; a constant per layer."""
    b = Net()

    def attention(x: str) -> str:
        q, k, v = (b.heads(b.dense(x, WIDTH), HEADS) for _ in range(3))
        gate = b.param(b.uniform(0.3, 1.2, 1, HEADS, 1, 1), "head_mask")
        return b.out(b.matmul(b.mul(b.softmax(b.scores(q, k)), gate), v), WIDTH)

    return b.classify(b.post_norm(b.positions(b.embed()), attention))


@form(heads=(HEADS,), io=True)
def external_bias() -> ModelProto:
    """An input (1, heads, time, time) added to the scores of both layers: heads go together, if that input may change.

    The dimensions of the heads are free.
    """
    b = Net()
    x = b.positions(b.embed())
    bias = b.input("attention_bias", (1, HEADS, TIME, TIME))
    return b.classify(b.pre_norm(x, lambda y: b.mha(y, mask=bias, scale="both")))


@form(heads=(HEADS,) * 4, head_dim=(HEAD,) * 12, hidden=(WIDE,), channels=(FFN,) * 4, blocks=10)
def t5() -> ModelProto:
    """Encoder and decoder on one embedding, which is the head too; a table of relative position biases per stack.

    The table (buckets, heads) serves both layers of its stack, so the heads of two self-attentions are one group;
    cross attention has no bias. RMSNorm, no scale, no biases, ReLU.
    """
    b = Net()
    table = b.param(b.normal(VOCAB, WIDE, scale=1.0), "shared.weight")

    def stack(name: str, time: int, memory: str = "") -> str:
        x = b.op("Gather", table, b.input(name, (BATCH, time), np.int64), axis=0)
        near = np.arange(time)[None] - np.arange(time)[:, None]
        buckets = np.where(near > 0, 0, -near) if memory else np.where(near > 0, 4, 0) + np.minimum(abs(near), 3)
        bias = b.op("Gather", b.param(b.normal(8, HEADS, scale=1.0), "relative_attention_bias"), buckets, axis=0)
        bias = b.unsqueeze(b.transpose(bias, 2, 0, 1), 0)
        if memory:
            bias = b.add(bias, triangle(time))

        plain = {"scale": "none", "bias": False}
        for _ in range(LAYERS):
            x = b.add(x, b.mha(b.rmsnorm(x), mask=bias, **plain))
            if memory:
                x = b.add(x, b.mha(b.rmsnorm(x), source=memory, **plain))
            x = b.add(x, b.dense(b.relu(b.dense(b.rmsnorm(x), FFN, bias=False)), WIDE, bias=False))
        return b.rmsnorm(x)

    x = stack("decoder_input_ids", 5, stack("input_ids", TIME))
    return b.model(b.matmul(b.mul(x, WIDE**-0.5), b.transpose(table, 1, 0)))


# Vision and speech


@form(heads=(4, 4, 8), head_dim=(6, 6, 6), hidden=(24, 48), channels=(FFN, FFN, 64), blocks=6)
def swin() -> ModelProto:
    """Windows by Reshape and Transpose, a bias table per block, a shifted window with its mask, patch merging."""
    b = Net()
    window = 4

    def attention(x: str, heads: int, mask: Array | None) -> str:
        windows, n, width = b.shape(x)
        qkv = b.reshape(b.dense(x, 3 * int(width)), windows, n, 3, heads, int(width) // heads)
        q, k, v = (b.op("Gather", b.transpose(qkv, 2, 0, 3, 1, 4), i, axis=0) for i in range(3))
        grid = np.stack(np.meshgrid(range(window), range(window), indexing="ij")).reshape(2, -1)
        near = grid[:, :, None] - grid[:, None] + window - 1
        side = 2 * window - 1
        table = b.param(b.normal(side * side, heads, scale=0.7), "relative_position_bias_table")
        bias = b.reshape(b.op("Gather", table, (near[0] * side + near[1]).ravel(), axis=0), n, n, -1)
        scores = b.add(b.scores(q, k, scale="q"), b.unsqueeze(b.transpose(bias, 2, 0, 1), 0))
        if mask is not None:
            apart = b.reshape(scores, BATCH, len(mask), heads, n, n)
            scores = b.reshape(b.add(apart, mask[None, :, None]), -1, heads, n, n)
        mixed = b.transpose(b.matmul(b.softmax(scores), v), 0, 2, 1, 3)
        return b.dense(b.reshape(mixed, windows, n, width), int(width))

    def roll(x: str, by: int) -> str:
        for axis in (1, 2):
            x = b.concat(b.slice(x, -by, INT_MAX, axis), b.slice(x, 0, -by, axis), axis=axis)
        return x

    def block(x: str, size: int, heads: int, hidden: int, shift: int = 0) -> str:
        width, count = b.channels(x, -1), size // window
        y = b.reshape(b.layernorm(x), BATCH, size, size, width)
        y = roll(y, -shift) if shift else y
        y = b.transpose(b.reshape(y, BATCH, count, window, count, window, width), 0, 1, 3, 2, 4, 5)
        y = b.reshape(b.reshape(y, -1, window, window, width), -1, window * window, width)
        y = attention(y, heads, shift_mask(size, window, shift) if shift else None)
        y = b.reshape(y, -1, window, window, width)
        y = b.transpose(b.reshape(y, BATCH, count, count, window, window, -1), 0, 1, 3, 2, 4, 5)
        y = b.reshape(y, BATCH, size, size, -1)
        x = b.add(x, b.reshape(roll(y, shift) if shift else y, BATCH, size * size, width))
        return b.add(x, b.ffn(b.layernorm(x), hidden))

    x = b.conv(b.input("pixels", (BATCH, 3, 16, 16)), 24, 2, stride=2, pad=0)
    x = b.layernorm(b.transpose(b.reshape(x, BATCH, 24, 64), 0, 2, 1))
    x = block(block(x, 8, 4, FFN), 8, 4, FFN, shift=2)
    x = b.reshape(x, BATCH, 8, 8, 24)
    quarters = [b.slice(b.slice(x, i, INT_MAX, 1, 2), j, INT_MAX, 2, 2) for j in (0, 1) for i in (0, 1)]
    x = b.dense(b.layernorm(b.reshape(b.concat(*quarters, axis=-1), BATCH, -1, 96)), 48, bias=False)
    x = b.transpose(b.layernorm(block(x, 4, 8, 64)), 0, 2, 1)
    return b.model(b.linear(b.flatten(b.gap(x)), LABELS))


def shift_mask(size: int, window: int, shift: int) -> Array:
    """(windows, n, n): -100 between positions of a shifted window that are not neighbours in the image."""
    part = np.searchsorted([size - window, size - shift], np.arange(size), side="right")
    region = (3 * part[:, None] + part[None]).reshape(size // window, window, size // window, window)
    region = region.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return np.where(region[:, :, None] == region[:, None], 0.0, -100.0).astype(np.float32)


@form(channels=(FFN, 28, FFN) * LAYERS, blocks=4 * LAYERS)
def conformer() -> ModelProto:
    """Half-step feed-forward layers, attention, and convolution: pointwise, GLU, depthwise, BatchNorm, Swish."""
    b = Net()
    x = b.dense(b.input("features", (BATCH, TIME, 21)), WIDTH)

    def half_ffn(x: str) -> str:
        return b.add(x, b.mul(b.dense(b.silu(b.dense(b.layernorm(x), FFN)), WIDTH), 0.5))

    def convolution(x: str, inner: int = 28) -> str:
        y = b.conv(b.transpose(b.layernorm(x), 0, 2, 1), 2 * inner, 1)
        value, gate = b.split(y, [inner, inner], axis=1)
        y = b.conv(b.mul(value, b.sigmoid(gate)), inner, 3, group=inner)
        return b.transpose(b.conv(b.silu(b.bn(y)), WIDTH, 1), 0, 2, 1)

    for _ in range(LAYERS):
        x = half_ffn(x)
        x = b.add(x, b.mha(b.layernorm(x)))
        x = b.add(x, convolution(x))
        x = b.layernorm(half_ffn(x))
    return b.language_model(x)


@form(channels=(16, 20, FFN, FFN, 18, 26), head_dim=(HEAD,) * 4)
def mobilevit() -> ModelProto:
    """Convolutions, patches unfolded by Reshape and Transpose over a merged batch and channel axis, folded back."""
    b = Net()

    def conv(x: str, width: int, k: int = 3) -> str:
        return b.silu(b.bn(b.conv(x, width, k, bias=False)))

    stem = b.silu(b.bn(b.conv(b.input("pixels", (BATCH, 3, 8, 12)), 16, 3, stride=2, bias=False)))  # 4 x 6
    x = b.conv(conv(stem, 20), WIDTH, 1, bias=False)
    x = b.transpose(b.reshape(x, BATCH * WIDTH * 2, 2, 3, 2), 0, 2, 1, 3)  # rows of patches, 2 x 2 each
    x = b.transpose(b.reshape(x, BATCH, WIDTH, 6, 4), 0, 3, 2, 1)
    x = b.pre_norm(b.reshape(x, BATCH * 4, 6, WIDTH), b.mha)
    x = b.transpose(b.reshape(x, BATCH, 4, 6, WIDTH), 0, 3, 2, 1)
    x = b.transpose(b.reshape(x, BATCH * WIDTH * 2, 3, 2, 2), 0, 2, 1, 3)
    x = conv(b.reshape(x, BATCH, WIDTH, 4, 6), 18, 1)
    return b.model(b.head(conv(b.concat(stem, x), 26), LABELS))


@form(heads=(), head_dim=(), hidden=(), channels=(16, 12, 14, 18), blocks=3)
def resnet_depth() -> ModelProto:
    """Three residual blocks of equal shape, relu(x + f(x)): depth without a normalisation that crosses channels."""
    b = Net()
    x = b.relu(b.bn(b.conv(b.input("pixels", (BATCH, 3, 8, 8)), 16, bias=False)))
    for inner in (12, 14, 18):
        y = b.relu(b.bn(b.conv(x, inner, bias=False)))
        x = b.relu(b.add(b.bn(b.conv(y, 16, bias=False)), x))
    return b.model(b.head(x, LABELS))


# Other residual blocks, feed-forward layers and attentions


@form(hidden=(WIDE,))
def geglu() -> ModelProto:
    """One projection to twice the width, a Split, gelu(gate) * value."""
    b = Net()

    def ffn(x: str) -> str:
        value, gate = b.split(b.dense(x, 2 * FFN), [FFN, FFN], axis=-1)
        return b.dense(b.mul(value, b.gelu(gate)), WIDE)

    return b.classify(b.pre_norm(b.positions(b.embed(WIDE)), lambda y: b.mha(y, scale="mul"), ffn))


@form(blocks=LAYERS, note="x + (attention(norm(x)) + ffn(norm(x))): one sum adds both to the stream, one block.")
def parallel_residual() -> ModelProto:
    """GPT-J: attention and feed-forward layer side by side."""
    b = Net()
    x = b.positions(b.embed())
    for _ in range(LAYERS):
        y = b.layernorm(x)
        x = b.add(b.add(b.mha(y), b.ffn(y, FFN)), x)
    return b.language_model(b.layernorm(x))


@form(hidden=(WIDE,))
def linear_attention() -> ModelProto:
    """phi(q) (phi(k)^T v) / (phi(q) sum phi(k)), phi = elu + 1: no Softmax and no matrix of time by time."""
    b = Net()

    def attention(x: str) -> str:
        q, k, v = (b.heads(b.dense(x, HEADS * HEAD), HEADS) for _ in range(3))
        q, k = (b.add(b.op("Elu", t), 1.0) for t in (q, k))
        mixed = b.matmul(q, b.matmul(b.transpose(k, 0, 1, 3, 2), v))
        total = b.unsqueeze(b.reduce("Sum", k, 2, keepdims=0), -1)
        return b.out(b.op("Div", mixed, b.matmul(q, total)), WIDE)

    return b.classify(b.pre_norm(b.positions(b.embed(WIDE)), attention))


# Mixture of experts

EXPERTS = 6
MOE = {"hidden": (WIDE,), "experts": (EXPERTS, EXPERTS)}


def routed(b: Net, x: str, *, one_hot: bool) -> str:
    """Weights (batch * time, experts) of the two chosen experts, renormalised, elsewhere 0."""
    probabilities = b.softmax(b.dense(x, EXPERTS, bias=False))
    values, index = b.ops("TopK", probabilities, [2], n=2, axis=-1)
    values = b.op("Div", values, b.reduce("Sum", values, -1))
    if one_hot:
        chosen = b.op("OneHot", index, EXPERTS, np.array([0.0, 1.0], np.float32), axis=-1)
        return b.reduce("Sum", b.mul(b.unsqueeze(values, -1), chosen), 1, keepdims=0)
    zeros = np.zeros((BATCH * TIME, EXPERTS), np.float32)
    return b.op("ScatterElements", zeros, index, values, axis=-1)


@form(**MOE)
@form("moe_onehot", fixed={"one_hot": True}, **MOE, note="The same, OneHot and ReduceSum in place of ScatterElements.")
def moe_dense(*, one_hot: bool = False) -> ModelProto:
    """Every expert runs, stacked (experts, in, out) in one MatMul; top-2 weights by TopK and ScatterElements."""
    b = Net()

    def stacked(x: str, n: int, m: int) -> str:
        return b.add(b.matmul(x, b.param(b.he(EXPERTS, n, m, fan_in=n), "experts.weight")), b.vec(EXPERTS, 1, m))

    def ffn(x: str) -> str:
        flat = b.reshape(x, -1, WIDE)
        weights = b.unsqueeze(b.transpose(routed(b, flat, one_hot=one_hot), 1, 0), -1)
        y = stacked(b.silu(stacked(b.unsqueeze(flat, 0), WIDE, FFN)), FFN, WIDE)
        return b.reshape(b.reduce("Sum", b.mul(y, weights), 0, keepdims=0), BATCH, TIME, WIDE)

    return b.language_model(b.pre_norm(b.positions(b.embed(WIDE)), b.mha, ffn))


@form(**MOE)
def ms_moe() -> ModelProto:
    """com.microsoft MoE: router logits, stacked weights (experts, out, in) and biases, the two best experts.

    onnxruntime 1.31 has a kernel for float32 on the CPU; older releases have none.
    """
    b = Net()

    def ffn(x: str) -> str:
        flat = b.reshape(x, -1, WIDE)
        weights = [
            t
            for n, m in ((WIDE, FFN), (FFN, WIDE))
            for t in (b.param(b.he(EXPERTS, m, n, fan_in=n), "experts.weight"), b.vec(EXPERTS, m))
        ]
        how = {"k": 2, "activation_type": "silu", "normalize_routing_weights": 1}
        y = b.ms("MoE", flat, b.dense(flat, EXPERTS, bias=False), *weights, shape=(BATCH * TIME, WIDE), **how)
        return b.reshape(y, BATCH, TIME, WIDE)

    return b.language_model(b.pre_norm(b.positions(b.embed(WIDE)), b.mha, ffn))
