"""Whole random graphs."""

from __future__ import annotations

import math
import random
import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort
from hypothesis import strategies as st
from onnx import TensorProto, helper

from models.random_graphs import any_rank, images, last_axis
from models.random_graphs.net import BLOCKS, LONGEST, Draws, Net

FAMILIES = (images, last_axis, any_rank)  # the order in which blocks are numbered
LAYOUT = (  # blocks that move indices about
    images.channel_shuffle, images.pixel_shuffle, images.maxout, last_axis.mixer, any_rank.refactor, any_rank.transpose,
    any_rank.split, any_rank.cut, any_rank.gather, any_rank.concat, any_rank.meet, any_rank.pad, any_rank.repeat,
)  # fmt: skip


def start(b: Net) -> str:
    """An input and a first layer on it."""
    form = b.draw.pick(("image", "image", "tokens", "image", "vector", "signal", "ids", "tokens"))
    if form == "image":
        side = b.draw.pick((4, 6, 3))
        return b.conv(b.input((b.draw.pick((3, 2, 1)), side, side)), b.width(), 3)
    if form == "signal":
        return b.conv(b.input((3, b.draw.pick((6, 5)))), b.width(), 3)
    if form == "vector":
        return b.dense(b.input((5,)), b.width())
    if form == "tokens":
        return b.dense(b.input((b.draw.pick((4, 3, 6)), 5)), b.width())
    table = b.param(b.normal(7, b.width(), scale=1.0))
    return b.op("Gather", table, b.input((4,), TensorProto.INT64), axis=0)


def head(b: Net, x: str) -> str:
    """What turns the last tensor into an output; most forms leave its axes free."""
    rank = len(b.shape(x))
    form = b.draw.pick(("layer", "flatten", "pool", "reduce", "layer", "flatten", "raw"))
    if form == "raw":
        return x
    if form == "flatten" and math.prod(b.shape(x)[1:]) <= 4 * LONGEST:
        return b.dense(b.op("Flatten", x, axis=1), 3)
    if form == "pool" and rank in (3, 4):
        return b.dense(b.op("Flatten", b.op("GlobalAveragePool", x), axis=1), 3)
    if form == "reduce" and rank > 2:
        y = b.reduce(b.draw.pick(("Mean", "Sum", "L2")), x, [b.draw.integer(1, rank - 1)], 0)
        return b.dense(y, 3) if b.draw.chance(2) else y
    return b.axis_layer(x, b.draw.pick((1, rank - 1)), 3)


def build(draw: Draws) -> onnx.ModelProto:
    """A model from the choices of `draw`."""
    b = Net(draw)
    b.pool.append(start(b))
    blocks = [(ranks, f) for family in FAMILIES for ranks, f in BLOCKS[family.__name__]]
    if draw.chance(4):
        blocks = [(ranks, f) for ranks, f in blocks if f in LAYOUT]
    for _ in range(draw.integer(1, 10)):
        x = draw.pick(b.pool) if draw.chance(6) else b.pool[-1]
        rank = len(b.shape(x))
        y = draw.pick([f for ranks, f in blocks if rank in ranks])(b, x)
        if y != x:
            b.pool.append(y)
            if draw.chance(3):
                axis = draw.pick((len(b.shape(y)) - 1, 1))
                b.pool.append(b.axis_layer(y, axis, draw.pick((b.shape(y)[axis], b.width()))))
    outputs = dict.fromkeys([head(b, b.pool[-1])])
    if draw.chance(3):
        x = draw.pick(b.pool)
        outputs[x if draw.chance(4) else head(b, x)] = None
    if draw.chance(10):
        outputs[b.op("ArgMax", b.pool[-1], axis=1)] = None
    model = b.model(*outputs)
    form = draw.pick(("plain",) * 6 + ("described", "basic", "extended"))
    if form == "described":  # with the types of inner tensors stored, as many exporters do
        return onnx.shape_inference.infer_shapes(model)
    return model if form == "plain" else optimised(model, form)


def optimised(model: onnx.ModelProto, level: str) -> onnx.ModelProto:
    """What onnxruntime saves after its graph optimisations: constants folded, operators fused."""
    level_of = ort.GraphOptimizationLevel
    levels = {"basic": level_of.ORT_ENABLE_BASIC, "extended": level_of.ORT_ENABLE_EXTENDED}
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = levels[level]
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # its fusion of quantized weights that are shared fails
            return model
        return onnx.load(options.optimized_model_filepath)


def from_seed(seed: int) -> onnx.ModelProto:
    """The model that `tools/fuzz.py` draws from this seed."""
    return build(Draws(random.Random(seed).randint))


def simplest(opset: int = 17) -> Net:
    """A net whose every choice is the first, to write a graph down by hand."""
    b = Net(Draws(lambda low, high: low))
    b.opset, b.imports = opset, [helper.make_opsetid("", opset)]
    return b


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """Any model that `build` can make."""
    return build(Draws(lambda low, high: draw(st.integers(low, high))))
