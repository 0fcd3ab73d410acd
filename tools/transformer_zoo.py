"""Small random transformers in every form in which PyTorch and onnxruntime's optimizer write them.

    python tools/transformer_zoo.py FOLDER [--only 'bert*' ...] [--form 'dynamo*' ...] [--again]

needs torch, onnxscript and transformers, which the package itself does not: models are built from configurations,
with seeded weights and nothing downloaded. One row of FAMILIES per architecture, one of FORMS per exporter; both
attention implementations of transformers where a model has both. With an old release of transformers in front
(PYTHONPATH), the graphs are those that onnxruntime's fusions were written for; give it a folder of its own.

FAMILY.ATTENTION.FORM.onnx is the export, FAMILY.ATTENTION.FORM.ort.onnx the same with the operators of com.microsoft
that onnxruntime.transformers.optimizer found (.mha.onnx: with MultiHeadAttention for Attention where it can).
index.json, rewritten after every export, has a row per file: how it was made, inputs with which it runs (`feeds`: the
arrays), the largest difference to torch, `fixed`: dimensions declared dynamic with another size of which it fails or
is wrong (`static`: those that had to be declared fixed, as the exporter `refused`), counts of operators, and
`problem`, in one line, where it failed. Every export runs in a process of its own, with a limit on time; what the
index has already is left alone, unless --again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import transformers
from onnxruntime.transformers.optimizer import FusionOptions, optimize_model
from torch import Tensor, nn
from torch.nn import functional

SECONDS = 120
SIZES = {"batch": 3, "sequence": 9, "target": 7, "past": 5, "samples": 400}
OTHER = {"batch": 5, "sequence": 11, "target": 10, "past": 8, "samples": 520}
VOCABULARY, WIDTH, HEADS, LAYERS, INNER = 99, 64, 4, 2, 96
TOLERANCE = 1e-3  # of the largest output
ODD = (
    "If Loop Scan ScatterND ScatterElements NonZero GatherND GatherElements Einsum Mod Trilu Where Expand Range CumSum "
    "OneHot TopK Split Attention RMSNormalization RotaryEmbedding LayerNormalization Gelu"
).split()

Feeds = dict[str, Any]  # arrays
Inputs = dict[str, tuple[Any, ...]]  # name -> what is in it (see `arrays`), then its dimensions
Row = dict[str, Any]


def blocks(norm: Callable[[int], nn.Module], bias: bool, **shapes: tuple[int, int]) -> nn.ModuleList:
    """Layers of two norms, n1 and n2, and linear maps by name."""
    linear = [{k: nn.Linear(*s, bias=bias) for k, s in shapes.items()} for _ in range(LAYERS)]
    return nn.ModuleList(nn.ModuleDict({"n1": norm(WIDTH), "n2": norm(WIDTH), **m}) for m in linear)


class Packed(nn.Module):
    """Pre-norm blocks over `x`, q, k and v by one linear layer that is taken apart in one of several styles."""

    def __init__(self, style: str):
        super().__init__()
        self.style = style
        mlp = {"up": (WIDTH, INNER), "down": (INNER, WIDTH)}
        self.blocks = blocks(nn.LayerNorm, True, qkv=(WIDTH, 3 * WIDTH), out=(WIDTH, WIDTH), **mlp)

    def attention(self, qkv: Tensor) -> Tensor:
        b, n, _ = qkv.shape
        if self.style in ("unbind", "index"):  # timm
            split = qkv.reshape(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            q, k, v = split.unbind(0) if self.style == "unbind" else (split[0], split[1], split[2])
        elif self.style == "einsum":
            q, k, v = (t.reshape(b, n, HEADS, -1) for t in qkv.chunk(3, -1))
            weights = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
            return torch.einsum("bhij,bjhd->bihd", weights.softmax(-1), v).reshape(b, n, WIDTH)
        else:
            slices = [qkv[..., i * WIDTH : (i + 1) * WIDTH] for i in range(3)]
            parts = qkv.chunk(3, -1) if self.style == "chunk" else slices
            q, k, v = (t.reshape(b, n, HEADS, -1).transpose(1, 2) for t in parts)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(b, n, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for m in self.blocks:
            x = x + m["out"](self.attention(m["qkv"](m["n1"](x))))
            x = x + m["down"](functional.gelu(m["up"](m["n2"](x))))
        return x


class Onnx23(nn.Module):
    """A LLaMA in operators of opset 23: RMSNormalization, RotaryEmbedding, Attention with half as many k and v."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        mlp = {"gate": (WIDTH, INNER), "up": (WIDTH, INNER), "down": (INNER, WIDTH)}
        wide, narrow = (WIDTH, WIDTH), (WIDTH, WIDTH // 2)
        self.blocks = blocks(nn.RMSNorm, False, q=wide, k=narrow, v=narrow, o=wide, **mlp)
        size = WIDTH // HEADS
        angles = torch.outer(torch.arange(64.0), 10000 ** -(torch.arange(0, size, 2) / size))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        rotary, attend, kv = torch.onnx.ops.rotary_embedding, torch.onnx.ops.attention, HEADS // 2
        x = self.embed(input_ids)
        for m in self.blocks:
            y = m["n1"](x)
            q = rotary(m["q"](y), self.cos, self.sin, position_ids, num_heads=HEADS)
            k = rotary(m["k"](y), self.cos, self.sin, position_ids, num_heads=kv)
            x = x + m["o"](attend(q, k, m["v"](y), is_causal=True, q_num_heads=HEADS, kv_num_heads=kv)[0])
            y = m["n2"](x)
            x = x + m["down"](functional.silu(m["gate"](y)) * m["up"](y))
        return self.head(x)


class Experts(nn.Module):
    """A residual mixture of four experts without loops: all are computed, those outside the top two weigh zero."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)
        self.up, self.down = nn.Parameter(torch.empty(4, WIDTH, INNER)), nn.Parameter(torch.empty(4, INNER, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        scores = self.router(y).softmax(-1)
        top, chosen = scores.topk(2, -1)
        gates = torch.zeros_like(scores).scatter(-1, chosen, top / top.sum(-1, keepdim=True))
        hidden = functional.silu(torch.einsum("bnw,ewi->bnei", y, self.up))
        return x + torch.einsum("bnei,eiw,bne->bnw", hidden, self.down, gates)


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, batch_first=True, **options)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


class Flat(nn.Module):
    """Tensors in, tensors out: what exporters want, around a model with named arguments and structured results."""

    def __init__(self, model: nn.Module, names: Sequence[str], fixed: Row):
        super().__init__()
        self.model, self.fixed = model, fixed
        self.names = [n for n in names if not n.startswith("past.")]
        self.cached = len(names) > len(self.names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        arguments = {**dict(zip(self.names, tensors, strict=False)), **self.fixed}
        if not self.cached:
            found = self.model(**arguments)
            return (found if isinstance(found, Tensor) else found[0],)
        past = tensors[len(self.names) :]
        pairs: Any = tuple(zip(past[::2], past[1::2], strict=True))
        if transformers.__version__ < "5":
            found = self.model(**arguments, past_key_values=pairs, use_cache=True)
            return (found.logits, *(t for pair in found.past_key_values for t in pair))
        cache = transformers.DynamicCache(pairs)
        logits = self.model(**arguments, past_key_values=cache, use_cache=True).logits
        return (logits, *(t for layer in cache.layers for t in (layer.keys, layer.values)))


@dataclass(frozen=True)
class Family:
    """An architecture: a class of transformers with its configuration, or a function that makes a module."""

    name: str
    kind: str
    model: str | Callable[[], nn.Module]
    inputs: Inputs
    fusion: str = "bert"  # model types of the optimizer to try
    config: Row = field(default_factory=dict)
    fixed: Row = field(default_factory=dict)  # arguments that are no inputs
    heads: int = HEADS  # for the optimizer; 0: it shall find out


@dataclass(frozen=True)
class Form:
    """A way to export. folding: of constants; for dynamo: its optimizer. attention: empty for all."""

    name: str
    opset: int
    dynamo: bool
    folding: bool = True
    attention: str = ""


FORMS = [
    Form("ts17", 17, False),
    Form("ts17-nofold", 17, False, folding=False),
    Form("ts14", 14, False, attention="eager"),  # before LayerNormalization
    Form("dynamo18", 18, True),
    Form("dynamo23", 23, True),
    Form("dynamo18-raw", 18, True, folding=False, attention="eager"),
]

IDS, POSITIONS = ("ids", "batch", "sequence"), ("positions", "batch", "sequence")
TOKENS: Inputs = {"input_ids": IDS, "attention_mask": ("mask", "batch", "sequence")}
ROTARY: Inputs = {**TOKENS, "position_ids": POSITIONS}
SEQ2SEQ: Inputs = {**TOKENS, "decoder_input_ids": ("ids", "batch", "target")}
SPEECH: Inputs = {"input_features": ("floats", "batch", 16, 40), "decoder_input_ids": ("ids", "batch", "target")}
AUDIO: Inputs = {"input_values": ("floats", "batch", "samples")}
IMAGE: Inputs = {"pixel_values": ("floats", "batch", 3, 32, 32)}
LARGER: Inputs = {"pixel_values": ("floats", "batch", 3, 64, 64)}
HIDDEN: Inputs = {"x": ("floats", "batch", "sequence", WIDTH)}
PADDED: Inputs = {"src": HIDDEN["x"], "src_key_padding_mask": ("padding", "batch", "sequence")}
CROSS: Inputs = {"query": HIDDEN["x"], **{n: ("floats", "batch", "target", WIDTH) for n in ("key", "value")}}

SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER}
SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
TEXT = {**SHAPE, **SPECIAL, "max_position_embeddings": 64, "tie_word_embeddings": False}
GROUPED = {**TEXT, "num_key_value_heads": 2}
GEMMA = {**TEXT, "head_dim": 24, "num_key_value_heads": 1}
OPT = {**TEXT, "ffn_dim": INNER, "word_embed_proj_dim": WIDTH}
DEBERTA = {
    **TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True,
    "norm_rel_ebd": "layer_norm", "position_biased_input": False,
}  # fmt: skip
DISTIL = {**SPECIAL, "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INNER}
BART = {
    **SPECIAL, "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER, "forced_eos_token_id": None,
    "max_position_embeddings": 64, "decoder_start_token_id": 0,
}  # fmt: skip
WHISPER = {**BART, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 64}
T5 = {**SPECIAL, "d_model": WIDTH, "d_kv": 16, "d_ff": INNER, "num_layers": LAYERS, "num_heads": HEADS}
VIT = {**SHAPE, "image_size": 32, "patch_size": 8}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
CONVNEXT = {"num_stages": 2, "depths": [2, 2], "hidden_sizes": [32, 64], "image_size": 32}
SEGFORMER = {
    "num_encoder_blocks": 2, "depths": [2, 2], "sr_ratios": [2, 1], "hidden_sizes": [32, 64], "patch_sizes": [7, 3],
    "strides": [4, 2], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2], "decoder_hidden_size": 48,
}  # fmt: skip
MOBILEVIT = {
    "image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64],
    "num_attention_heads": HEADS,
}  # fmt: skip
WAV2VEC2 = {
    **SHAPE, "vocab_size": VOCABULARY, "conv_dim": [32, 32], "conv_kernel": [10, 3], "conv_stride": [5, 2],
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
MOE = {**GROUPED, "num_experts_per_tok": 2, "experts_implementation": "batched_mm"}
QWENMOE = {**MOE, "num_experts": 4, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 48}
LLMS = "gpt2 qwen3 gpt_neox"


def cached(kv: int) -> Inputs:
    """The inputs of a decoder with `kv` heads in its cache."""
    names = [f"past.{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
    past: Inputs = dict.fromkeys(names, ("floats", "batch", kv, "past", WIDTH // HEADS))
    return {"input_ids": IDS, "attention_mask": ("mask", "batch", "past+sequence"), "position_ids": POSITIONS, **past}


# fmt: off
FAMILIES = [
    Family("bert", "encoder", "BertModel", TOKENS, "bert", TEXT),
    Family("gpt2", "decoder", "GPT2LMHeadModel", TOKENS, "gpt2", TEXT),
    Family("llama", "decoder", "LlamaForCausalLM", TOKENS, LLMS, GROUPED),
    Family("vit", "vision", "ViTForImageClassification", IMAGE, "vit", VIT),
    Family("swin", "vision", "SwinForImageClassification", IMAGE, "swin", SWIN, heads=0),
    Family("t5", "encoder-decoder", "T5ForConditionalGeneration", SEQ2SEQ, "t5", T5),
    Family("gpt2-cache", "decoder with cache", "GPT2LMHeadModel", cached(HEADS), "gpt2", TEXT),
    Family("llama-cache", "decoder with cache", "LlamaForCausalLM", cached(2), LLMS, GROUPED),
    Family("gpt2-nomask", "decoder", "GPT2LMHeadModel", {"input_ids": IDS}, "gpt2", TEXT),
    Family("llama-nomask", "decoder", "LlamaForCausalLM", {"input_ids": IDS, "position_ids": POSITIONS}, LLMS, GROUPED),
    Family("bert-classifier", "encoder", "BertForSequenceClassification", TOKENS, "bert", TEXT),
    *(Family(f"packed-{style}", "fused qkv", partial(Packed, style), HIDDEN, "vit bert")
      for style in ("unbind", "index", "chunk", "slice", "einsum")),
    Family("onnx23", "decoder", Onnx23, {"input_ids": IDS, "position_ids": POSITIONS}, LLMS),
    Family("experts", "mixture of experts", Experts, HIDDEN),
    Family("nn-encoder", "encoder", encoder, PADDED),
    Family("nn-encoder-prenorm", "encoder", lambda: encoder(norm_first=True, activation="gelu"), {"src": HIDDEN["x"]}),
    Family("nn-attention", "attention", lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), CROSS,
           fixed={"need_weights": False}),
    Family("distilbert", "encoder", "DistilBertModel", TOKENS, "bert", DISTIL),
    Family("roberta", "encoder", "RobertaModel", TOKENS, "bert", TEXT),
    Family("electra", "encoder", "ElectraModel", TOKENS, "bert", {**TEXT, "embedding_size": 32}),
    Family("deberta-v2", "encoder", "DebertaV2Model", TOKENS, "bert", DEBERTA),
    Family("opt", "decoder", "OPTForCausalLM", TOKENS, LLMS, OPT),
    Family("gpt-neox", "decoder", "GPTNeoXForCausalLM", ROTARY, LLMS, TEXT),
    Family("bloom", "decoder", "BloomForCausalLM", TOKENS, LLMS, TEXT),
    Family("qwen2", "decoder", "Qwen2ForCausalLM", ROTARY, LLMS, GROUPED),
    Family("qwen3", "decoder", "Qwen3ForCausalLM", ROTARY, LLMS, {**GROUPED, "head_dim": 16}),
    Family("gemma", "decoder", "GemmaForCausalLM", ROTARY, LLMS, GEMMA),
    Family("phi", "decoder", "PhiForCausalLM", ROTARY, f"{LLMS} phi", TEXT),
    Family("phi3", "decoder", "Phi3ForCausalLM", ROTARY, LLMS, GROUPED),
    Family("falcon", "decoder", "FalconForCausalLM", ROTARY, LLMS, {**TEXT, "multi_query": True}),
    Family("qwen2-cache", "decoder with cache", "Qwen2ForCausalLM", cached(2), LLMS, GROUPED),
    Family("gpt-neox-cache", "decoder with cache", "GPTNeoXForCausalLM", cached(HEADS), LLMS, TEXT),
    Family("bart", "encoder-decoder", "BartForConditionalGeneration", SEQ2SEQ, "bart", BART),
    Family("marian", "encoder-decoder", "MarianMTModel", SEQ2SEQ, "bart", BART),
    Family("t5-gated", "encoder-decoder", "T5ForConditionalGeneration", SEQ2SEQ, "t5",
           {**T5, "feed_forward_proj": "gated-gelu"}),
    Family("deit", "vision", "DeiTForImageClassification", IMAGE, "vit", VIT),
    Family("swinv2", "vision", "Swinv2ForImageClassification", IMAGE, "swin", SWIN, heads=0),
    Family("mobilevit", "vision", "MobileViTForImageClassification", LARGER, "vit", MOBILEVIT, heads=0),
    Family("convnext", "vision", "ConvNextForImageClassification", IMAGE, "vit", CONVNEXT, heads=0),
    Family("segformer", "vision", "SegformerForSemanticSegmentation", LARGER, "vit", SEGFORMER, heads=0),
    Family("beit", "vision", "BeitForImageClassification", IMAGE, "vit", {**VIT, "use_relative_position_bias": True}),
    Family("clip-text", "text tower", "CLIPTextModelWithProjection", TOKENS, "clip", {**TEXT, "projection_dim": 32}),
    Family("wav2vec2", "audio", "Wav2Vec2Model", AUDIO, "bert conformer", WAV2VEC2),
    Family("wav2vec2-conformer", "audio", "Wav2Vec2ConformerModel", AUDIO, "conformer bert", WAV2VEC2),
    Family("wav2vec2-conformer-rotary", "audio", "Wav2Vec2ConformerModel", AUDIO, "conformer bert",
           {**WAV2VEC2, "position_embeddings_type": "rotary"}),
    Family("whisper", "audio", "WhisperForConditionalGeneration", SPEECH, "bart", WHISPER),
    Family("mixtral", "mixture of experts", "MixtralForCausalLM", ROTARY, LLMS, {**MOE, "num_local_experts": 4}),
    Family("qwen2-moe", "mixture of experts", "Qwen2MoeForCausalLM", ROTARY, LLMS, QWENMOE),
]
# fmt: on


def attentions(family: Family) -> list[str]:
    """The implementations that a family has; "plain" where it is not transformers'."""
    if not isinstance(family.model, str):
        return ["plain"]
    made = getattr(transformers, family.model, None)  # an old release may lack it
    return [] if made is None else ["eager", "sdpa"] if made._supports_sdpa else ["eager"]


def build(family: Family, attention: str) -> nn.Module:
    """The model, with seeded weights under which no branch, norm or bias is without effect."""
    torch.manual_seed(0)
    if isinstance(family.model, str):
        made = getattr(transformers, family.model)
        model = made._from_config(made.config_class(**family.config), attn_implementation=attention)
    else:
        model = family.model()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(0, (p[0].numel() if p.ndim > 3 else p.shape[-1]) ** -0.5)
            elif name.endswith("weight"):
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(0, 0.1)
    return Flat(model, list(family.inputs), family.fixed).eval()


def arrays(inputs: Inputs, sizes: dict[str, int]) -> Feeds:
    """Seeded inputs of these sizes."""
    rng = np.random.default_rng(0)
    feeds: Feeds = {}
    for name, (kind, *dims) in inputs.items():
        shape = tuple(d if isinstance(d, int) else sum(sizes[s] for s in d.split("+")) for d in dims)
        if kind == "ids":
            feeds[name] = rng.integers(3, VOCABULARY, shape)
        elif kind == "positions":
            feeds[name] = np.broadcast_to(np.arange(shape[1]) + sizes["past"], shape).copy()
        elif kind == "floats":
            feeds[name] = rng.standard_normal(shape, np.float32)
        else:  # the last sequence ends early
            mask = np.ones(shape, np.int64)
            mask[-1, -2:] = 0
            feeds[name] = mask if kind == "mask" else mask == 0
    return feeds


def reason(error: BaseException) -> str:
    """In one line what went wrong at the bottom of it."""
    while error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"[:300]


def compare(path: Path, module: nn.Module, feeds: Feeds) -> Row:
    """How far the file is from torch."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    with torch.no_grad():
        wanted = [t.numpy() for t in module(*map(torch.from_numpy, feeds.values()))]
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    except Exception as e:  # onnxruntime's exceptions share no base class
        return {"problem": f"does not run: {reason(e)}"}
    if [f.shape for f in found] != [w.shape for w in wanted]:
        return {"problem": f"shapes {[f.shape for f in found]} in place of {[w.shape for w in wanted]}"}
    worst = max(float(np.abs(f - w).max()) for f, w in zip(found, wanted, strict=True))
    scale = max(float(np.abs(w).max()) for w in wanted)
    if not worst <= TOLERANCE * scale:  # NaN is not
        return {"problem": f"differs from torch by {worst:.2g} of {scale:.2g}"}
    return {"difference": worst, "scale": scale, "problem": ""}


def export(family: Family, form: Form, module: nn.Module, path: Path, static: Sequence[str]) -> None:
    """Write the file, all named dimensions dynamic but those in `static`."""
    axes: dict[str, dict[int, str]] = {
        name: {i: d.replace("+", "_") for i, d in enumerate(dims) if isinstance(d, str) and d not in static}
        for name, (_, *dims) in family.inputs.items()
    }
    presents = [n.replace("past", "present") for n in family.inputs if n.startswith("past.")]
    options: Row = {"input_names": list(axes), "output_names": ["output", *presents], "opset_version": form.opset}
    if form.dynamo:  # the module takes *tensors, hence a tuple in a tuple
        shapes = (tuple(axes.values()),)
        options |= {"dynamic_shapes": shapes, "optimize": form.folding, "external_data": False, "verbose": False}
    else:
        grown = {name: {0: "batch", 2: "past_sequence"} for name in presents}
        options |= {"dynamic_axes": {**axes, **grown}, "do_constant_folding": form.folding}
    feeds = tuple(map(torch.from_numpy, arrays(family.inputs, SIZES).values()))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, feeds, str(path), dynamo=form.dynamo, **options)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs as well."""
    for node in graph.node:
        yield node
        for a in node.attribute:
            for g in [a.g, *a.graphs]:
                yield from nodes(g)


def look(path: Path, family: Family, module: nn.Module, static: Sequence[str]) -> Row:
    """What the index says of a file."""
    model = onnx.load(path)
    every = [*(n for f in model.functions for n in f.node), *nodes(model.graph)]
    ops, fused = Counter[str](), Counter[str]()
    for n in every:  # the optimizer writes some of its operators into the domain of ONNX
        (ops if n.domain != "com.microsoft" and n.op_type != "SimplifiedLayerNormalization" else fused)[n.op_type] += 1
    declared = {i.name for i in model.graph.input}
    sizes, result = SIZES, compare(path, module, arrays(family.inputs, SIZES))
    if result["problem"] and "batch" not in static:
        alone = compare(path, module, arrays(family.inputs, {**SIZES, "batch": 1}))
        sizes, result = (SIZES, result) if alone["problem"] else ({**SIZES, "batch": 1}, alone)
    feeds = arrays(family.inputs, sizes)
    saved = path.parent / f"{family.name}.batch{sizes['batch']}.npz"
    np.savez(saved, **feeds)
    inputs = {n: {"shape": a.shape, "dtype": str(a.dtype)} for n, a in feeds.items() if n in declared}
    dims = {s for _, *dims in family.inputs.values() for d in dims for s in str(d).split("+")} - set(static)
    resized = {d: arrays(family.inputs, {**sizes, d: OTHER[d]}) for d in sorted(dims & set(SIZES))}
    return {
        "file": path.name,
        "inputs": {n: {**i, "dims": family.inputs[n][1:]} for n, i in inputs.items()},
        "unused": [n for n in feeds if n not in declared],
        "outputs": [o.name for o in model.graph.output],
        "feeds": saved.name,
        "nodes": len(every),
        "fused": fused,
        "odd": {op: ops[op] for op in ODD if ops[op]},
        "functions": len(model.functions),
        "static": static,
        "fixed": [] if result["problem"] else [d for d, f in resized.items() if compare(path, module, f)["problem"]],
        **result,
    }


def fuse(path: Path, family: Family, module: nn.Module, static: Sequence[str], stage: str) -> Row:
    """The file through onnxruntime's optimizer, as that of the model types that fuses most and still agrees."""
    best, merit, problems = {}, (False, 0), []
    target, trial = path.with_suffix(f".{stage}.onnx"), path.with_suffix(".trial.onnx")
    target.unlink(missing_ok=True)
    for kind in family.fusion.split():
        try:
            options = FusionOptions(kind)
            options.use_multi_head_attention = stage == "mha"
            fused = optimize_model(str(path), kind, family.heads, WIDTH if family.heads else 0, options)
            fused.save_model_to_file(str(trial))
            row = {**look(trial, family, module, static), "file": target.name, "optimizer": kind, "stage": stage}
        except Exception as e:  # it raises whatever the graph makes it raise
            problems.append(f"{kind}: {reason(e)}")
            continue
        count = row["fused"].total()
        if count and (not row["problem"], count) > merit:
            best, merit = row, (not row["problem"], count)
            os.replace(trial, target)
    trial.unlink(missing_ok=True)
    return best or {"stage": stage, "file": None, "problem": "; ".join(problems) or "nothing fused"}


def work(pipe: Connection, family: Family, attention: str, form: Form, path: Path) -> None:
    """Send the row of an export, then that of its optimized file."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(form.dynamo)  # which the TorchScript exporter has no words for
    module = build(family, attention)
    names = sorted({d for _, *dims in family.inputs.values() for d in dims if isinstance(d, str)})
    refused = ""
    for static in ([], [n for n in names if n != "batch"], names):
        try:
            export(family, form, module, path, static)
        except Exception as e:  # exporters raise whatever the model makes them raise
            refused = refused or reason(e)
            continue
        pipe.send({"stage": "export", **look(path, family, module, static), "refused": refused})
        fused = fuse(path, family, module, static, "ort")
        pipe.send(fused)
        if "Attention" in fused.get("fused", {}):
            pipe.send(fuse(path, family, module, static, "mha"))
        return
    pipe.send({"stage": "export", "file": None, "problem": refused})


def attempt(family: Family, attention: str, form: Form, folder: Path) -> list[Row]:
    """The rows of one export, in a process of its own."""
    key = {
        "family": family.name, "kind": family.kind, "attention": attention, "form": form.name, "opset": form.opset,
        "exporter": "dynamo" if form.dynamo else "torchscript", "folding": form.folding,
        "transformers": transformers.__version__,
    }  # fmt: skip
    path = folder / f"{family.name}.{attention}.{form.name}.onnx"
    context = multiprocessing.get_context("fork")  # which has torch and transformers loaded already
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, family, attention, form, path))
    start = time.monotonic()
    process.start()
    sender.close()
    rows: list[Row] = []
    problem = f"timeout after {SECONDS} s"
    try:
        while receiver.poll(max(0.0, start + SECONDS - time.monotonic())):
            rows.append({**key, **receiver.recv()})
    except EOFError:
        process.join(1)
        problem = f"the process died with {process.exitcode}"
    process.kill()
    process.join()
    if not rows or (len(rows) == 1 and rows[0]["file"]):
        rows.append({**key, "stage": "ort" if rows else "export", "file": None, "problem": problem})
    rows[0]["seconds"] = round(time.monotonic() - start, 1)
    return rows


def table(rows: Sequence[Row]) -> None:
    """A line per file or failure."""
    for r in rows:
        what = f"{r['family']}.{r['attention']}.{r['form']}{'' if r['stage'] == 'export' else '.' + r['stage']}"
        counts = {**r.get("fused", {}), "functions": r.get("functions"), **r.get("odd", {})}
        marks = [f"{k}={','.join(r[k])}" for k in ("static", "fixed", "unused") if r.get(k)]
        text = r["problem"] or " ".join(f"{k}:{v}" for k, v in counts.items() if v)
        print(f"{what:48} {r.get('difference', math.nan):<8.0e}", *marks, text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="families")
    parser.add_argument("--form", nargs="+", default=["*"], metavar="GLOB", help=" ".join(f.name for f in FORMS))
    parser.add_argument("--again", action="store_true", help="also what the index has already")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    index = args.folder / "index.json"
    rows: list[Row] = json.loads(index.read_text()) if index.is_file() else []
    wanted = [f for f in FAMILIES if any(fnmatch(f.name, g) for g in args.only)]
    forms = [f for f in FORMS if any(fnmatch(f.name, g) for g in args.form)]
    for family, attention, form in ((f, a, o) for f in wanted for a in attentions(f) for o in forms):
        same = [r for r in rows if (r["family"], r["attention"], r["form"]) == (family.name, attention, form.name)]
        if form.attention not in ("", attention) and attention != "plain":
            continue
        if same and not args.again:
            continue
        new = attempt(family, attention, form, args.folder)
        rows = [r for r in rows if r not in same] + new
        part = index.with_suffix(".part")
        part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        os.replace(part, index)
        table(new)


if __name__ == "__main__":
    main()
