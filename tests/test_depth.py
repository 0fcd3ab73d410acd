"""Which residual blocks can go, which go first, and that the rest computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxprune
from kinds import FORMS, VIT, analysis_of, cut_kinds, error, gone, kept, proto, prune, replaced, samples
from law import proto_of
from models.forms import TRANSFORMERS, Form, feeds
from models.nets import build, normal, run
from onnxprune import ChannelGroup, NothingToPrune, OptionError
from onnxprune.graph.io import to_proto
from onnxprune.structure.surgery import prune_model
from onnxprune.structure.verify import verify


@pytest.mark.parametrize("form", FORMS)
def test_every_other_block_can_go(form: Form) -> None:
    analysis = analysis_of(form.name)
    groups = analysis.of_kind("layers")
    assert len(groups) == len(analysis.blocks) == form.blocks
    assert all(g.size == 1 for g in groups)
    keep = analysis.keep_ids(gone(analysis, *(g.name for g in groups[::2])))
    pruned = prune_model(analysis, keep)
    assert verify(analysis, keep, pruned).error <= form.tolerance / 10
    left = {o for n in pruned.proto.graph.node for o in n.output}
    dropped = [b for b in analysis.blocks if not keep[b.gate].any()]
    assert not left.intersection(o for b in dropped for n in b.inside for o in n.outputs if o)
    read = {i for n in pruned.proto.graph.node for i in n.input} | {o.name for o in pruned.proto.graph.output}
    assert set(pruned.weights) <= read  # weights that only they needed are gone
    assert sum(w.size for w in pruned.weights.values()) < sum(w.size for w in analysis.model.weights.values())


DEEP = ("encoder_float16", "llama_tied", "ms_attention", "ms_gqa", "t5", "swin", "conformer", "resnet_depth")


@pytest.mark.parametrize("which", ["first", "last", "all"])
@pytest.mark.parametrize("name", DEEP)
def test_the_first_block_the_last_and_all(name: str, which: str) -> None:
    analysis, form = analysis_of(name), TRANSFORMERS[name]
    groups = analysis.of_kind("layers")
    chosen = {"first": groups[:1], "last": groups[-1:], "all": groups}[which]
    keep = analysis.keep_ids(gone(analysis, *(g.name for g in chosen)))
    pruned = prune_model(analysis, keep)
    assert verify(analysis, keep, pruned).error <= form.tolerance / 10
    onnx.checker.check_model(to_proto(pruned), full_check=True)
    whole = np.ones(analysis.coupling.size, bool)
    costs = analysis.costs()
    assert 0 <= costs.macs(keep) < costs.macs(whole)


def test_depth_of_a_convolutional_network() -> None:
    result = prune("resnet_depth", layers=0.34)
    assert cut_kinds(result) == {"layers"}
    ops = [n.op_type for n in proto_of(result).graph.node]
    assert ops.count("Conv") == [n.op_type for n in proto("resnet_depth").graph.node].count("Conv") - 2
    assert error(result) < 1e-5
    assert result.report.after.macs < 0.75 * result.report.before.macs


def test_a_gelu_is_no_block() -> None:
    """x + 0.044715 x^3 is a sum of a stream and of a branch, but for the weights."""
    nodes = """h = MatMul(x, a) three = Constant<value_float = 3.0>() c = Constant<value_float = 0.044715>()
               p = Pow(h, three) q = Mul(p, c) s = Add(h, q) t = Tanh(s) y = MatMul(t, b)"""
    model = build(nodes, "float[n,8]", "float[n,4]", a=normal(8, 16), b=normal(16, 4))
    analysis = onnxprune.analyze(model)
    assert analysis.blocks == ()
    assert [g.kind for g in analysis.groups] == ["channels"]
    with pytest.raises(NothingToPrune, match="no residual block"):
        prune(model, layers=0.5)


def test_a_branch_that_comes_from_elsewhere_is_no_block() -> None:
    nodes = "h = MatMul(x, a) g = MatMul(x, b) s = Add(h, g) y = MatMul(s, c)"
    model = build(nodes, "float[n,8]", "float[n,4]", a=normal(8, 16), b=normal(8, 16, seed=1), c=normal(16, 4))
    assert onnxprune.analyze(model).blocks == ()


@pytest.mark.parametrize("name", ["encoder_post_norm", "llama", "ms_attention", "onnx_attention_4d", "t5"])
def test_whole_layers_pair_attention_with_the_feed_forward_after_it(name: str) -> None:
    analysis = analysis_of(name, whole_layers=True)
    groups = analysis.of_kind("layers")
    mine = [[b for b in analysis.blocks if analysis.components.labels[b.gate[0]] == g.labels[0]] for g in groups]
    for blocks in mine[:2]:  # of t5 the encoder's
        assert [b.attends for b in blocks] == [True, False]
    assert sum(map(len, mine)) == len(analysis.blocks)
    keep = analysis.keep_ids(gone(analysis, groups[0].name))
    assert not any(keep[b.gate[0]] for b in mine[0])
    assert all(keep[b.gate[0]] for b in mine[1])
    assert verify(analysis, keep, prune_model(analysis, keep)).error < 1e-5


@pytest.mark.parametrize("name", ["ms_gqa", "ms_gqa_packed", "onnx_attention_gqa_cache"])
def test_whole_layers_with_a_cache(name: str) -> None:
    assert len(analysis_of(name, whole_layers=True).of_kind("layers")) == len(analysis_of(name).blocks) // 2


def test_a_tiny_ratio_of_blocks() -> None:
    """The least that can go where it is all that is asked, none beside a cut of something else."""
    alone = prune(VIT, layers=0.01)
    assert list(kept(alone).values()) == [0] and cut_kinds(alone) == {"layers"}
    assert "least" in alone.report.got[0].why
    assert cut_kinds(prune(VIT, channels=0.3, layers=0.01)) == {"channels"}


def test_depth_leaves_one_block() -> None:
    result = prune("encoder_post_norm", layers=0.99)
    assert sorted(kept(result).values()) == [0, 0, 0]


def test_depth_leaves_one_block_with_two_ratios() -> None:
    result = prune("encoder_post_norm", ratio=[("layers:*", 0.9), ("layers:Add_2*", 0.8)])
    assert len(kept(result)) < 4


# Which blocks go


@pytest.mark.parametrize("chosen", [0, 1, 2, 3])
def test_the_block_that_adds_least_goes_first(chosen: int) -> None:
    analysis = analysis_of("llama")  # has no biases
    block = analysis.blocks[chosen]
    last = [n for n in block.inside if n.op == "MatMul" and n.input(1) in analysis.model.weights][-1]
    model = replaced(proto("llama"), {last.input(1): analysis.model.weights[last.input(1)] * 1e-3})
    name = analysis.of_kind("layers")[chosen].name
    assert kept(prune(model, layers=0.25)) == {name: 0}
    assert kept(prune(model, layers=0.25, calibration=samples("llama", 16))) == {name: 0}


def test_what_the_function_of_the_caller_raises_is_an_option_error() -> None:
    def broken(group: ChannelGroup) -> Any:
        raise KeyError(group.kind)

    with pytest.raises(OptionError, match=r"^importance='broken': the function raised KeyError: 'heads'$"):
        prune("encoder_post_norm", heads=0.5, importance=broken)
    with pytest.raises(OptionError, match=r"lambda.*the function raised ZeroDivisionError: division by zero$"):
        prune("encoder_post_norm", heads=0.5, importance=lambda g: 1 / 0)


def test_closeness_is_one_minus_the_cosine() -> None:
    from onnxprune.importance.depth import closeness

    analysis, inputs = analysis_of("llama"), feeds(proto("llama"))
    block = analysis.blocks[1]
    model = ModelProto.FromString(proto("llama").SerializeToString())
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (block.source, block.node.key))
    a, b = (y.astype(np.float64) for y in run(model, inputs))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    groups = analysis.of_kind("layers")
    found = closeness(analysis, groups, [inputs])
    assert found[groups[1].name][0] == pytest.approx(float((1 - cosine).mean()), rel=1e-4)
