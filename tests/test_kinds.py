"""Heads, dimensions inside them, hidden width, depth and experts: each kind alone, all together, by every road."""

from __future__ import annotations

import json
import math
import shlex
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune
from law import same_weights
from models.forms import TRANSFORMERS, Form, feeds
from models.forms.form import BATCH, EXPERTS, FFN, HEAD, HEADS, TIME, VOCAB, WIDE, WIDTH
from models.nets import Array, build, normal
from models.topologies import TOPOLOGIES
from onnxprune import Analysis, ChannelGroup, NothingToPrune, OptionError, Plan, Result, Score, VerificationError
from onnxprune.allocation.budget import Measure
from onnxprune.calibration.read import read
from onnxprune.cli import app as cli
from onnxprune.evaluation.damage import damage
from onnxprune.evaluation.metrics import Evaluator
from onnxprune.graph.io import load, to_proto
from onnxprune.importance.gates import gate_losses
from onnxprune.structure.groups import analyze
from onnxprune.structure.surgery import prune_model
from onnxprune.structure.verify import masked_model, verify

VIT = Path(__file__).parent.parent / "models" / "digits_vit.onnx"
FORMS = [pytest.param(f, id=name) for name, f in TRANSFORMERS.items()]
KINDS = ("channels", "layers", "experts", "heads", "head_dim", "hidden")
Keeps = dict[str, np.ndarray[Any, np.dtype[np.bool_]]]


@cache
def proto(name: str) -> ModelProto:
    return TRANSFORMERS[name].build()


@cache
def analysis_of(name: str, whole_layers: bool = False) -> Analysis:
    """Of a form, shared by all tests: it is never changed."""
    return analyze(load(proto(name)), allow_io_change=TRANSFORMERS[name].io, whole_layers=whole_layers)


def prune(source: Any, **options: Any) -> Result:
    source = proto(source) if isinstance(source, str) and source in TRANSFORMERS else source
    recover = {} if "plan" in options else {"recover": "none"}
    chosen: dict[str, Any] = {"measure": False, **recover} | options
    return onnxprune.prune(source, **chosen)


def proto_of(result: Result) -> ModelProto:
    assert result.model is not None
    return to_proto(result.model)


def data(result: Result) -> bytes:
    return bytes(proto_of(result).SerializeToString(deterministic=True))


def error(result: Result) -> float:
    assert result.report.verification is not None
    return result.report.verification.error


def kept(result: Result) -> dict[str, int]:
    """Units that are left, of the groups that were cut."""
    return {name: int(keep.sum()) for name, keep in result.plan.keep.items()}


def cut_kinds(result: Result) -> set[str]:
    return {result.analysis.group(name).kind for name in result.plan.keep}


def run(source: ModelProto, inputs: dict[str, Array]) -> list[Array]:
    """The outputs for inputs by name, without graph optimisations."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, inputs)]


def weights_of(source: ModelProto) -> dict[str, Array]:
    """Initializers and constants by name."""
    found = {t.name: numpy_helper.to_array(t) for t in source.graph.initializer}
    constants = {n.output[0]: n.attribute[0].t for n in source.graph.node if n.op_type == "Constant"}
    return found | {name: numpy_helper.to_array(t) for name, t in constants.items()}


def replaced(source: ModelProto, arrays: dict[str, Array]) -> ModelProto:
    """A copy with other numbers in some initializers."""
    copy = ModelProto()
    copy.CopyFrom(source)
    for t in copy.graph.initializer:
        if t.name in arrays:
            t.CopyFrom(numpy_helper.from_array(np.asarray(arrays[t.name], np.float32), t.name))
    return copy


def samples(name: str, n: int = 64) -> dict[str, Array]:
    """Random inputs, `n` samples; masks are one."""
    rng, out = np.random.default_rng(0), {}
    for key, x in feeds(proto(name)).items():
        shape = (n, *x.shape[1:])
        if x.dtype.kind == "f":
            out[key] = rng.standard_normal(shape).astype(x.dtype)
        elif "mask" in key:
            out[key] = np.ones(shape, x.dtype)
        else:
            out[key] = rng.integers(0, 2 if "type" in key else 6 if "position" in key else VOCAB, shape, x.dtype)
    return out


def gone(analysis: Analysis, *names: str) -> Keeps:
    return {name: np.zeros(analysis.group(name).size, bool) for name in names}


def random_keeps(analysis: Analysis, seed: int) -> Keeps:
    """Of every group some units stay, by chance, as its constraints allow; a third of the groups stays whole."""
    rng, out = np.random.default_rng(seed), {}
    for g in analysis.groups:
        if g.blocks or rng.random() < 1 / 3:
            continue
        if g.kind == "layers":
            out[g.name] = rng.random(1) < 0.6
            continue
        count = int(rng.integers(g.least, g.size + 1))
        out[g.name] = np.isin(np.arange(g.size), rng.choice(g.size, count, replace=False))
    return out


def counts(groups: Any, keeps: Keeps) -> Array:
    return np.array([keeps[g.name].sum() if g.name in keeps else g.size for g in groups], float)


# Depth


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
    mine = [[b for b in analysis.blocks if analysis.solution.labels[b.gate[0]] == g.labels[0]] for g in groups]
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


# One kind, several kinds


CASES = {
    "encoder_post_norm": ("heads", "head_dim", "hidden", "channels", "layers"),
    "moe_dense": ("experts", "heads", "head_dim", "hidden", "channels", "layers"),
    "onnx_attention_3d": ("heads", "head_dim", "hidden", "channels", "layers"),
}


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, kinds in CASES.items() for k in kinds])
def test_an_option_touches_its_own_kind(name: str, kind: str) -> None:
    result = prune(name, **{kind: 0.5}, **({} if kind == "layers" else {"round_to": 1}))
    assert cut_kinds(result) == {kind}
    groups = result.analysis.of_kind(kind)
    if kind == "layers":
        assert len(kept(result)) == round(0.5 * len(groups))
    else:
        assert kept(result) == {g.name: g.size // 2 for g in groups}
    assert error(result) < 1e-5
    report = result.report
    if (name, kind) != ("onnx_attention_3d", "layers"):  # see test_parameters_that_go_with_several_blocks
        assert report.after.parameters == parameters(proto_of(result))
    assert report.after.parameters < report.before.parameters
    assert report.before.parameters == parameters(proto(name))


def parameters(model: ModelProto) -> int:
    """All floats of the file."""
    return sum(w.size for w in weights_of(model).values() if w.dtype.kind == "f")


@pytest.mark.parametrize("name", ["encoder_post_norm", "llama", "ms_rotary", "swin", "moe_dense", "conformer"])
def test_all_kinds_in_one_run(name: str) -> None:
    form = TRANSFORMERS[name]
    options = {"heads": 0.5, "head_dim": 0.25, "channels": 0.3, "hidden": 0.25, "layers": 0.25}
    options |= {"experts": 0.5} if form.experts else {}
    result = prune(name, **options, recover="bias", round_to=1)
    assert cut_kinds(result) == set(options)
    assert error(result) < form.tolerance / 10
    left = kept(result)
    for g in result.analysis.groups:
        if g.kind in ("heads", "experts"):
            assert left[g.name] == g.size // 2
    assert len([n for n in left if result.analysis.group(n).kind == "layers"]) == max(1, round(form.blocks / 4))
    model = proto_of(result)
    onnx.checker.check_model(model, full_check=True)
    outputs = [run(m, feeds(proto(name))) for m in (proto(name), model)]
    assert [y.shape for y in outputs[0]] == [y.shape for y in outputs[1]]
    assert all(np.isfinite(y).all() for y in outputs[1])
    alone = prune(name, heads=0.5).report.after
    assert result.report.after.macs < alone.macs
    assert result.report.after.parameters < alone.parameters


def test_heads_shrink_the_projections() -> None:
    shapes = [w.shape for w in weights_of(proto_of(prune("encoder_post_norm", heads=0.25))).values()]
    assert shapes.count((WIDTH, 3 * HEAD)) == 6  # q, k and v of two layers
    assert shapes.count((3 * HEAD, WIDTH)) == 2
    assert shapes.count((3 * HEAD,)) == 6
    assert shapes.count((WIDTH, FFN)) == 2


def test_head_dim_shrinks_the_heads() -> None:
    result = prune("encoder_post_norm", head_dim=0.25, round_to=1)
    shapes = [w.shape for w in weights_of(proto_of(result)).values()]
    assert shapes.count((WIDTH, HEADS * 6)) == 6
    assert shapes.count((HEADS * 6, WIDTH)) == 2


def test_rotary_pairs_go_together() -> None:
    result = prune("llama", head_dim=0.5, round_to=1)
    assert error(result) < 1e-5
    pairs = [g for g in result.analysis.of_kind("head_dim") if g.size == HEAD // 2]
    assert [kept(result)[g.name] for g in pairs] == [2]
    tables = [w for name, w in weights_of(proto_of(result)).items() if "rope" in name]
    assert [w.shape[1] for w in tables] == [4, 4]
    for table in tables:
        assert np.array_equal(table[:, :2], table[:, 2:])  # halves that were equal still are


@pytest.mark.parametrize("name", ["ms_mha", "ms_attention", "ms_rotary", "onnx_attention_4d", "onnx_attention_3d"])
def test_the_scale_is_written_down(name: str) -> None:
    def scales(model: ModelProto) -> list[float | None]:
        mine = [n for n in model.graph.node if n.op_type in ("Attention", "MultiHeadAttention")]
        assert len(mine) == 2
        return [next((a.f for a in n.attribute if a.name == "scale"), None) for n in mine]

    assert scales(proto(name)) == [None, None]
    result = prune(name, head_dim=0.5, round_to=1)
    assert scales(proto_of(result)) == pytest.approx([1 / math.sqrt(HEAD)] * 2)
    assert error(result) < 1e-5
    assert scales(proto_of(prune(name, heads=0.5))) == [None, None]


def test_a_smaller_head_without_what_was_zero_says_the_same() -> None:
    """Dimensions of q that are zero go, and the outputs stay what they were: the scale is that of the old size."""
    analysis = analysis_of("onnx_attention_4d")
    group = next(g for g in analysis.of_kind("head_dim") if g.size == HEAD)  # of v
    dead = np.arange(HEAD) % 2 == 0
    arrays = {}
    for s in group.slices:
        w = analysis.model.weights[s.tensor].copy()
        w[(slice(None),) * s.axis + (np.isin(s.units, np.flatnonzero(dead)),)] = 0
        arrays[s.tensor] = w
    model = replaced(proto("onnx_attention_4d"), arrays)
    result = prune(model, plan=Plan({group.name: ~dead}, "none"))
    a, b = (run(m, feeds(model))[0] for m in (model, proto_of(result)))
    assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()
    assert parameters(proto_of(result)) < parameters(model)


# Ratios per group


def test_ratios_of_kinds() -> None:
    only = prune("encoder_post_norm", ratio={"heads:*": 0.5})
    assert cut_kinds(only) == {"heads"}
    assert set(kept(only).values()) == {2}
    both = prune("encoder_post_norm", heads=0.25, ratio=[("channels:MatMul_7", 0.5), ("MatMul_9*", 0.75)], round_to=1)
    assert kept(both) == {"MatMul_1:heads": 3, "MatMul_9:heads": 1, "MatMul_7": FFN // 2}
    plain = prune("encoder_post_norm", ratio={"MatMul_7": 0.5})
    assert kept(plain) == {"MatMul_7": FFN // 2}
    last = prune("encoder_post_norm", ratio=[("heads:*", 0.5), ("heads:MatMul_9*", 0.25), ("heads:MatMul_1:*", 0.0)])
    assert kept(last) == {"MatMul_9:heads": 3}
    block = prune("encoder_post_norm", ratio={"layers:Add_12*": 0.5})
    assert kept(block) == {"Add_12:layers": 0}


def test_what_is_ignored_stays() -> None:
    assert kept(prune("encoder_post_norm", heads=0.5, ignore=["MatMul_1:heads"])) == {"MatMul_9:heads": 2}
    assert kept(prune("encoder_post_norm", heads=0.5, ratio={"*": 0.25}, ignore=["heads:MatMul_9*"])) == {
        "MatMul_1:heads": 3
    }
    blocks = [g.name for g in analysis_of("encoder_post_norm").of_kind("layers")]
    result = prune("encoder_post_norm", layers=0.99, ignore=blocks[:2])
    assert kept(result) == dict.fromkeys(blocks[2:], 0)
    part = prune("encoder_post_norm", heads=0.5, channels=0.5, ignore=["channels:*"])
    assert cut_kinds(part) == {"heads"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 0.5, "ratio": {"heads:nothing*": 0.5}}, "ratio='heads:nothing.*' matches no group"),
        ({"heads": 0.5, "ratio": {"layers:MatMul_1:heads": 0.5}}, "matches no group"),
        ({"heads": 0.5, "ignore": ["MatMul_7"]}, "ignore='MatMul_7' matches no group"),
        ({"layers": 0.5, "ignore": ["heads:*"]}, "ignore='heads:.*' matches no group"),
        ({"heads": 1.0}, "heads=1: expected a fraction"),
        ({"head_dim": -0.1}, "head_dim=-0.1: expected a fraction"),
        ({"layers": 1.5}, "layers=1.5: expected a fraction"),
        ({"ratio": {"heads:*": 1.0}}, "expected a fraction"),
        ({"heads": 0.95}, r"heads=0.95 would leave 0.2 of the 4 heads of MatMul_1:heads.*give at most 0.75"),
        ({"ratio": {"heads:MatMul_9*": 0.95}}, "of MatMul_9:heads.*give at most 0.75"),
    ],
)
def test_amounts_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        prune("encoder_post_norm", **options)


# Plans


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("encoder_post_norm", {"layers": 0.5, "heads": 0.5, "recover": "bias"}),
        ("encoder_post_norm", {"layers": 0.5, "whole_layers": True, "channels": 0.25}),
        ("onnx_attention_gqa_cache", {"heads": 0.5, "head_dim": 0.5, "allow_io_change": True}),
        ("moe_dense", {"experts": 0.5, "hidden": 0.25}),
    ],
)
def test_a_plan_is_replayed_to_the_same_bytes(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    result = prune(name, **options)
    path = tmp_path / "plan.json"
    path.write_text(result.plan.to_json())
    read = Plan.from_json(result.plan.to_json(), result.analysis)
    assert read.to_json() == result.plan.to_json()
    for kind in ("whole_layers", "allow_io_change"):
        assert read.settings[kind] == options.get(kind, False)
    again = onnxprune.prune(proto(name), plan=path, measure=False)
    assert data(again) == data(result)
    assert data(onnxprune.prune(proto(name), plan=read, measure=False)) == data(result)
    assert {g.name for g in again.report.groups if g.kept < g.size} == set(result.plan.keep)


def test_a_plan_of_whole_layers_does_not_fit_blocks() -> None:
    plan = prune("encoder_post_norm", layers=0.5, whole_layers=True).plan
    with pytest.raises(OptionError, match="no such group"):
        Plan.from_json(plan.to_json().replace("Add_8:layers", "Add_9:layers").replace("Add_18:layers", "Add_1:layers"),
                       analysis_of("encoder_post_norm"))  # fmt: skip
    heads = prune("encoder_post_norm", heads=0.5).plan.to_json()
    fields = json.loads(heads)
    for g in fields["groups"].values():
        g["kept"] = []
    with pytest.raises(OptionError, match="must keep 1 to 4 different units"):
        Plan.from_json(json.dumps(fields), analysis_of("encoder_post_norm"))


# Targets


@pytest.mark.parametrize(
    ("kinds", "target"),
    [
        (("heads", "channels", "layers"), {"target_macs": "70%"}),
        (("heads", "channels"), {"target_macs": 0.7, "target_params": "80%"}),
        (("layers",), {"target_macs": "80%"}),
        (("hidden", "head_dim"), {"target_macs": "80%"}),
    ],
)
def test_targets_are_held_on_data(kinds: tuple[str, ...], target: dict[str, Any]) -> None:
    options = {**dict.fromkeys(kinds, "auto"), **target}
    result = prune("encoder_post_norm", **options, calibration=samples("encoder_post_norm"), recover="least-squares")
    assert cut_kinds(result) <= set(kinds)
    assert result.report.recipe is not None
    assert result.report.recipe.allocate == "kl"
    share = float(str(target["target_macs"]).rstrip("%")) / (100 if "%" in str(target["target_macs"]) else 1)
    before, after = result.report.before, result.report.after
    assert 0.5 * share < after.macs / before.macs <= share
    if "target_params" in target:
        assert after.parameters <= 0.8 * before.parameters
    assert error(result) < 1e-5
    assert all(np.isfinite(y).all() for y in run(proto_of(result), feeds(proto("encoder_post_norm"))))


def test_targets_without_data() -> None:
    result = prune("encoder_post_norm", heads="auto", channels="auto", target_macs="70%", round_to=1)
    assert cut_kinds(result) == {"heads", "channels"}
    assert result.report.after.macs <= 0.7 * result.report.before.macs
    fixed = prune("encoder_post_norm", heads=0.5, channels="auto", target_macs="60%", round_to=1)
    assert [n for name, n in kept(fixed).items() if name.endswith(":heads")] == [2, 2]
    assert fixed.report.after.macs <= 0.6 * fixed.report.before.macs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": "auto", "target_macs": "70%"}, "layers='auto' .* calibration"),
        ({"heads": "auto"}, "heads='auto' needs a target"),
        ({"head_dim": "auto", "channels": 0.5}, "head_dim='auto' needs a target"),
        ({"heads": "auto", "target_macs": "30%"}, "cannot be reached"),
        ({"heads": "auto", "target_macs": "0%"}, "target_macs"),
    ],
)
def test_targets_that_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        prune("encoder_post_norm", **options)


def test_a_ratio_of_a_kind_with_a_target() -> None:
    result = prune("encoder_post_norm", ratio={"heads:MatMul_1*": 0.5}, target_macs="60%")
    assert result.report.after.macs <= 0.6 * result.report.before.macs


def test_layers_auto_with_data_and_no_target() -> None:
    with pytest.raises(OptionError, match="target_macs"):
        prune("encoder_post_norm", layers="auto", calibration=samples("encoder_post_norm", 8))


# Head importance by gates


def kl(a: Array, b: Array) -> float:
    """KL divergence of the classes, mean over all rows."""
    p, q = (np.exp(y - y.max(-1, keepdims=True)) for y in (a.astype(np.float64), b.astype(np.float64)))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return float((p * np.log(p / q)).sum(-1).mean())


@pytest.mark.parametrize("name", ["encoder_post_norm", "ms_mha", "multi_query", "moe_dense"])
def test_head_loss_is_the_change_without_the_head(name: str) -> None:
    analysis, inputs = analysis_of(name), feeds(proto(name), seed=3)
    groups = [g for g in analysis.groups if g.kind in ("heads", "experts", "layers")]
    reference = run(proto(name), inputs)
    names = [o.name for o in proto(name).graph.output]
    measure = damage(analysis.model, [dict(zip(names, reference, strict=True))], names, BATCH)
    assert measure.classes
    scores = gate_losses(analysis, groups, [inputs], measure)
    assert set(scores) == {g.name for g in groups}
    for g in groups[:1] + [g for g in groups if g.kind != groups[0].kind][-2:]:
        for u in range(g.size):
            masked = masked_model(analysis, analysis.keep_ids({g.name: np.arange(g.size) != u}))
            expected = kl(reference[0], run(to_proto(masked), inputs)[0])
            assert scores[g.name][u] == pytest.approx(expected, rel=2e-3, abs=1e-7), (g.name, u)


def test_head_loss_counts_what_is_closed_already() -> None:
    name = "encoder_post_norm"
    analysis, inputs = analysis_of(name), feeds(proto(name), seed=3)
    groups = analysis.of_kind("heads")
    reference = run(proto(name), inputs)
    names = [o.name for o in proto(name).graph.output]
    measure = damage(analysis.model, [dict(zip(names, reference, strict=True))], names, BATCH)
    closed = {groups[0].name: np.array([False, True, True, True])}
    scores = gate_losses(analysis, groups, [inputs], measure, gone=closed)
    base = kl(reference[0], run(to_proto(masked_model(analysis, analysis.keep_ids(closed))), inputs)[0])
    both = {**closed, groups[1].name: np.array([True, True, False, True])}
    after = kl(reference[0], run(to_proto(masked_model(analysis, analysis.keep_ids(both))), inputs)[0])
    assert scores[groups[0].name][0] == 0
    assert scores[groups[1].name][2] == pytest.approx(abs(after - base), rel=2e-3, abs=1e-7)


def test_head_loss_prefers_heads_that_do_nothing() -> None:
    analysis = analysis_of("encoder_post_norm")
    group = analysis.of_kind("heads")[0]
    out = next(s for s in group.slices if s.axis == 0 and analysis.model.weights[s.tensor].ndim == 2)
    w = analysis.model.weights[out.tensor].copy()
    w[np.isin(out.units, [1, 3])] *= 1e-4
    model, inputs = replaced(proto("encoder_post_norm"), {out.tensor: w}), samples("encoder_post_norm")
    for steps in (1, 2):
        result = prune(model, heads=0.5, importance="head_loss", calibration=inputs, steps=steps)
        assert np.flatnonzero(result.plan.keep[group.name]).tolist() == [0, 2]
        assert error(result) < 1e-5


def test_head_loss_in_steps_with_streams() -> None:
    prune("encoder_post_norm", heads=0.5, hidden=0.25, importance="head_loss", steps=2,
          calibration=samples("encoder_post_norm", 16))  # fmt: skip


def test_steps_with_a_measured_importance() -> None:
    data = samples("encoder_post_norm", 16)
    once, often = (prune("encoder_post_norm", heads=0.5, importance="obs", steps=n, calibration=data) for n in (1, 2))
    assert kept(once) == kept(often)


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


# Product axes


@pytest.mark.parametrize("name", ["encoder_post_norm", "ms_attention", "fused_qkv_gather", "einsum_attention"])
def test_what_heads_and_dimensions_make_together(name: str) -> None:
    analysis, rng = analysis_of(name), np.random.default_rng(1)
    groups = [*analysis.of_kind("heads"), *analysis.of_kind("head_dim")]
    owners, labels = analysis.owners(groups), analysis.solution.labels
    keeps = {g.name: np.isin(np.arange(g.size), rng.choice(g.size, g.size // 2 + 1, replace=False)) for g in groups}
    keep = analysis.keep_ids(keeps)
    seen = 0
    for tensor in analysis.model.weights:
        for ids in analysis.coupling.axes(tensor):
            if ids is None or not (owners[labels[ids]] >= 0).all():
                continue
            for heads, inner in np.unique(owners[labels[ids]], axis=0):
                mine = ids[(owners[labels[ids]] == (heads, inner)).all(1)]
                h, d = groups[heads], groups[inner]
                assert (h.kind, d.kind) == ("heads", "head_dim")
                whole = mine.size // (h.size * d.size)
                assert keep[mine].sum() == whole * keeps[h.name].sum() * keeps[d.name].sum()
                both = keeps[h.name][analysis.units(h)[labels[mine]]] & keeps[d.name][analysis.units(d)[labels[mine]]]
                assert np.array_equal(keep[mine], both)
                seen += 1
    assert seen >= 4


STRONG = (
    "encoder_post_norm", "llama", "ms_attention_qkv_sizes", "onnx_attention_3d", "t5", "swin", "moe_dense",
    "fused_qkv_per_head", "resnet_depth", "conformer",
)  # fmt: skip


@pytest.mark.parametrize("name", STRONG)
def test_the_measure_of_a_target_is_the_cost_of_the_plan(name: str) -> None:
    analysis = analysis_of(name)
    costs = analysis.costs()
    products = {"macs": costs.macs_of, "params": costs.parameters_of, "bytes": costs.bytes_of}
    whole = np.ones(analysis.coupling.size, bool)
    for what, mine in products.items():
        measure = Measure(mine, analysis, analysis.groups, whole)
        for seed in range(5):
            keeps = random_keeps(analysis, seed)
            expected = sum(p(analysis.keep_ids(keeps)) for p in mine)
            kept = counts(analysis.groups, keeps)
            assert measure(kept) == pytest.approx(expected, rel=1e-9), (what, seed)
            for k, g in enumerate(analysis.groups[:6]):
                other = kept.copy()
                other[k] = g.size
                rise = measure.along(k, kept, np.array([kept[k], g.size]))
                assert rise[1] - rise[0] == pytest.approx(measure(other) - measure(kept), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", STRONG)
def test_the_cost_of_a_plan_is_that_of_its_model(name: str) -> None:
    """The same by an analysis of the pruned model."""
    analysis = analysis_of(name)
    keep = analysis.keep_ids(random_keeps(analysis, 7))
    pruned = prune_model(analysis, keep)
    again = analyze(load(to_proto(pruned)), allow_io_change=TRANSFORMERS[name].io)
    costs, own = analysis.costs(), again.costs()
    whole = np.ones(again.coupling.size, bool)
    assert costs.macs(keep) == pytest.approx(own.macs(whole), rel=1e-9)
    if name not in SHARING:
        assert costs.parameters(keep) == pytest.approx(own.parameters(whole), rel=1e-9)


SHARING = ("ms_attention_qkv_sizes", "t5")


@pytest.mark.parametrize("name", [*SHARING, "onnx_attention_3d"])
def test_parameters_that_go_with_several_blocks(name: str) -> None:
    result = prune(
        name, plan=Plan(gone(analysis_of(name), *(g.name for g in analysis_of(name).of_kind("layers"))), "none")
    )
    assert result.report.after.parameters == parameters(proto_of(result))


@pytest.mark.parametrize("fixed", ["heads", "head_dim"])
def test_the_measure_where_the_other_factor_is_fixed(fixed: str) -> None:
    analysis = analysis_of("encoder_post_norm")
    free = [g for g in analysis.groups if g.kind != fixed]
    held = {g.name: np.arange(g.size) < g.size // 2 for g in analysis.of_kind(fixed)}
    alive = analysis.keep_ids(held)
    costs = analysis.costs()
    measure = Measure(costs.macs_of, analysis, free, alive)
    assert measure(counts(free, {})) == pytest.approx(costs.macs(alive), rel=1e-9)


def test_a_fixed_kind_does_not_make_the_others_too_small() -> None:
    result = prune("encoder_post_norm", heads=0.5, head_dim="auto", target_macs="65%",
                   calibration=samples("encoder_post_norm"))  # fmt: skip
    assert 0.6 < result.report.after.macs / result.report.before.macs <= 0.65


def test_global_takes_its_share_of_every_kind() -> None:
    result = prune("encoder_post_norm", heads=0.5, channels=0.5, allocate="global", round_to=1)
    left = {kind: sum(g.kept for g in result.report.groups if g.kind == kind) for kind in ("heads", "channels")}
    assert left == {"heads": HEADS, "channels": FFN + WIDTH // 2}


# Experts


@pytest.mark.parametrize("name", ["moe_dense", "moe_onehot", "ms_moe"])
def test_experts_that_are_never_chosen_go_without_a_trace(name: str) -> None:
    """The input of the router is far from zero in one direction, in which two experts are far down."""
    source = proto(name)
    arrays = {n.input[2]: weights_of(source)[n.input[2]] + 10.0 for n in source.graph.node
              if n.op_type == "LayerNormalization"}  # fmt: skip
    routers = [key for key, w in weights_of(source).items() if w.shape == (WIDE, EXPERTS)]
    assert len(routers) == 2
    for key in routers:
        w = weights_of(source)[key]
        arrays[key] = w - w.mean(0)
        arrays[key][:, [1, 4]] -= 5.0
    model = replaced(source, arrays)
    alive = ~np.isin(np.arange(EXPERTS), [1, 4])
    groups = onnxprune.analyze(model).of_kind("experts")
    result = prune(model, plan=Plan({g.name: alive for g in groups}, "none"))
    inputs = feeds(source)
    before, after = run(model, inputs)[0], run(proto_of(result), inputs)[0]
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()
    other = prune(model, plan=Plan({g.name: np.arange(EXPERTS) != 0 for g in groups}, "none"))
    assert np.abs(before - run(proto_of(other), inputs)[0]).max() > 1e-3 * np.abs(before).max()


def test_as_many_experts_stay_as_are_chosen() -> None:
    with pytest.raises(OptionError, match=r"experts=0.9 .*of the 6 experts.*at least 2 must stay; give at most 0.66"):
        prune("moe_dense", experts=0.9)
    assert set(kept(prune("moe_dense", experts=0.67)).values()) == {2}


# Figures of language models


SPOKEN, LENGTH = "llama_dynamic", 2  # of `feeds`


def scored(labels: Array, metric: str) -> Score:
    model = load(proto(SPOKEN))
    found = read(samples(SPOKEN, 8), model, preprocess=None, option="data")
    return Evaluator(model, replace(found, labels=labels), metric)(model)


def test_the_loss_is_that_of_the_tokens() -> None:
    inputs, rng = samples(SPOKEN, 8), np.random.default_rng(5)
    labels = rng.integers(0, VOCAB, (8, LENGTH))
    labels[:, 0] = -100
    logits = run(proto(SPOKEN), inputs)[0].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(logs, np.where(labels < 0, 0, labels)[..., None], -1)[..., 0]
    found = scored(labels, "loss")
    assert (found.metric, found.better, found.samples) == ("loss", -1, 8)
    assert found.value == pytest.approx(-own[labels >= 0].mean(), rel=1e-5)
    hits = (logits.argmax(-1) == labels)[labels >= 0]
    assert scored(labels, "top1").value == pytest.approx(hits.mean())
    labels[labels >= 0] = logits.argmax(-1)[labels >= 0]
    assert scored(labels, "top1").value == 1


@pytest.mark.parametrize("apart", [False, True])
def test_labels_of_tokens_can_be_given(apart: bool) -> None:
    inputs, labels = samples(SPOKEN, 8), np.zeros((8, LENGTH), int)
    source = inputs if apart else {**inputs, "labels": labels}
    found = onnxprune.evaluate(proto(SPOKEN), source, labels=labels if apart else None)
    assert found.metric == "loss"


@pytest.mark.parametrize("shape", [(8,), (8, LENGTH + 1), (8, LENGTH, 2)])
def test_labels_that_do_not_count_the_tokens(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"for 16 rows of class scores; give one label per sample, or per token"):
        scored(np.zeros(shape, int), "loss")


def test_labels_outside_the_vocabulary() -> None:
    with pytest.raises(OptionError, match="labels go from 20 to 20"):
        scored(np.full((8, LENGTH), VOCAB), "loss")


def test_the_damage_of_a_language_model_is_per_position() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, BATCH, TIME, VOCAB)).astype(np.float32)
    model = load(proto(SPOKEN))
    name = model.proto.graph.output[0].name
    measure = damage(model, [{name: a}], [name], BATCH)
    assert measure.classes == name
    assert measure({name: a}) == pytest.approx(0, abs=1e-12)
    assert measure({name: b}) == pytest.approx(kl(a, b), rel=1e-6)
    one = a.copy()
    one[0, 0] = b[0, 0]  # a twelfth of the positions
    assert measure({name: one}) == pytest.approx(kl(a[0, 0], b[0, 0]) / (BATCH * TIME), rel=1e-6)


# Inputs and outputs


def test_a_cache_may_shrink_only_if_asked() -> None:
    name = "onnx_attention_gqa_cache"
    with pytest.raises(NothingToPrune, match=r"graph input past_key_0.*allow_io_change"):
        prune(name, heads=0.5)
    result = prune(name, heads=0.5, head_dim=0.5, allow_io_change=True, round_to=1)
    shapes = {
        i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim)
        for i in [*proto_of(result).graph.input, *proto_of(result).graph.output]
    }
    assert shapes["past_key_0"] == shapes["past_value_1"] == (BATCH, 1, 3, HEAD // 2)
    assert shapes["position_ids"] == (BATCH, TIME)
    assert error(result) < 1e-5
    stays = prune(name, channels=0.5)
    assert [i.type for i in proto_of(stays).graph.input] == [i.type for i in proto(name).graph.input]


@pytest.mark.parametrize("recover", ["none", "least-squares"])
def test_calibration_where_a_cache_shrinks(recover: str) -> None:
    name = "onnx_attention_gqa_cache"
    prune(name, heads=0.5, allow_io_change=True, calibration=samples(name, 16), recover=recover)


# Models without


@pytest.mark.parametrize(
    ("topology", "options", "words"),
    [
        ("lstm", {"hidden": 0.5}, "belong to channels"),
        ("resnet", {"heads": 0.5}, "nothing of kind heads was found"),
        ("resnet", {"experts": 0.5}, "nothing of kind experts was found"),
        ("lstm", {"layers": 0.5}, "no residual block"),
    ],
)
def test_models_without(topology: str, options: dict[str, float], words: str) -> None:
    name = next(n for n in TOPOLOGIES if topology in n)
    with pytest.raises(NothingToPrune) as refused:
        prune(TOPOLOGIES[name](), **options)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


# The command line


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run words in a folder with m.onnx (a BERT), moe.onnx and cache.onnx: code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    for file, name in (("m", "encoder_post_norm"), ("moe", "moe_dense"), ("cache", "onnx_attention_gqa_cache")):
        Path(f"{file}.onnx").write_bytes(proto(name).SerializeToString())

    def run(words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main(shlex.split(words))
        printed = capfd.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return run


QUICK = "-q --no-latency --recover none"


@pytest.mark.parametrize(
    ("words", "name", "options"),
    [
        ("m.onnx --heads 0.5 --hidden 0.25 --layers 0.25", "encoder_post_norm",
         {"heads": 0.5, "hidden": 0.25, "layers": 0.25}),
        ("m.onnx --head-dim 0.5 --layers 0.5 --whole-layers", "encoder_post_norm",
         {"head_dim": 0.5, "layers": 0.5, "whole_layers": True}),
        ("moe.onnx --experts 0.5 --ratio heads:*=0.5", "moe_dense", {"experts": 0.5, "ratio": {"heads:*": 0.5}}),
        ("cache.onnx --heads 0.5 --allow-io-change", "onnx_attention_gqa_cache",
         {"heads": 0.5, "allow_io_change": True}),
    ],
)  # fmt: skip
def test_the_command_line_says_the_same(words: str, name: str, options: dict[str, Any], call: Any) -> None:
    code, out, err = call(f"{words} {QUICK} -o out.onnx --save-plan plan.json")
    assert (code, out, err) == (0, "", "")
    written = Path("out.onnx").read_bytes()
    assert same_weights(load(written), load(data(prune(name, **options))))
    file = words.split()[0]
    assert call(f"{file} --plan plan.json -q --no-latency -o again.onnx")[0] == 0
    assert Path("again.onnx").read_bytes() == written
    assert call(f"{words} {QUICK} --dry-run -o dry.onnx")[0] == 0
    assert not Path("dry.onnx").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("m.onnx --heads x", "--heads x"),
        ("m.onnx --heads 1.0", "--heads"),
        ("m.onnx --heads -0.1", "--heads"),
        ("m.onnx --head-dim nan", "--head-dim"),
        ("m.onnx --layers 2", "--layers"),
        ("m.onnx --hidden 150%", "--hidden 150%: expected a fraction"),
        ("m.onnx --heads 0.95", "give at most 0.75"),
        ("m.onnx --heads auto", "--heads auto needs a target"),
        ("m.onnx --experts 0.5", "nothing of kind experts"),
        ("moe.onnx --experts 0.9", "at least 2 must stay"),
        ("m.onnx --ratio heads:none*=0.5", "matches no group"),
        ("m.onnx --ratio heads:*=2", "expected a fraction"),
        ("m.onnx --layers auto --target-macs 70%", "--calibration"),
        ("m.onnx --heads 0.5 --importance head_loss", "needs data"),
        ("cache.onnx --heads 0.5", "--allow-io-change"),
    ],
)
def test_bad_words_are_refused_in_one_line(words: str, text: str, call: Any) -> None:
    code, out, err = call(f"{words} --no-latency")
    assert (code, out) == (2, ""), err
    assert err.startswith("onnxprune: ")
    assert err.count("\n") == 1
    assert text in err
    assert sorted(p.name for p in Path().iterdir()) == ["cache.onnx", "m.onnx", "moe.onnx"]


def test_inspect_names_the_kinds(call: Any) -> None:
    code, out, _ = call("inspect moe.onnx --json moe.json")
    assert code == 0
    for kind in KINDS:
        assert kind in out
    rows = json.loads(Path("moe.json").read_text())["groups"]
    form = TRANSFORMERS["moe_dense"]
    sizes = {kind: sorted(r["size"] for r in rows if r["kind"] == kind) for kind in KINDS}
    assert sizes == {kind: sorted(getattr(form, kind)) for kind in KINDS if kind != "layers"} | {"layers": [1] * 4}
    for row in rows:
        assert 0 < row["parameters_share"] < 1, row["name"]
        assert row["kind"] == "layers" or row["members"], row["name"]
    layers = [r for r in rows if r["kind"] == "layers"]
    assert 0.5 < sum(r["macs_share"] for r in layers) < 1
    closed = json.loads(call("inspect cache.onnx --json - -q")[1])
    assert not [r for r in closed["groups"] if r["kind"] == "heads"]
    opened = json.loads(call("inspect cache.onnx --allow-io-change --json - -q")[1])
    assert len([r for r in opened["groups"] if r["kind"] == "heads"]) == 2


def test_the_report_names_the_kinds(call: Any) -> None:
    code, out, err = call("m.onnx --heads 0.5 --layers 0.5 --no-latency --recover none --json report.json")
    assert code == 0, err
    report = json.loads(Path("report.json").read_text())
    assert {g["kind"] for g in report["groups"]} == {"heads", "layers"}
    assert "heads" in out
    assert "layers" in out


# Mixtures by chance


@pytest.mark.parametrize("form", FORMS)
def test_random_mixtures_hold_the_law(form: Form) -> None:
    analysis = analysis_of(form.name)
    keeps = random_keeps(analysis, zlib.crc32(form.name.encode()))
    keep = analysis.keep_ids(keeps)
    pruned = prune_model(analysis, keep)
    assert verify(analysis, keep, pruned).error <= form.tolerance / 10, {n: int(k.sum()) for n, k in keeps.items()}


def test_a_broken_cut_is_noticed() -> None:
    """The law can fail: the masked model of one plan is not the pruned one of another."""
    analysis = analysis_of("encoder_post_norm")
    group: ChannelGroup = analysis.of_kind("heads")[0]
    a, b = (analysis.keep_ids({group.name: np.arange(HEADS) != u}) for u in (0, 1))
    with pytest.raises(VerificationError, match="differ"):
        verify(analysis, a, prune_model(analysis, b))
    block = analysis.of_kind("layers")[0]
    with pytest.raises(VerificationError):
        verify(analysis, analysis.keep_ids(gone(analysis, block.name)), prune_model(analysis, a))
