"""Every kind of group alone, all together, experts, inputs and outputs, and models without."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxprune
from kinds import cut_kinds, error, kept, parameters, proto, prune, replaced, samples, weights_of
from law import proto_of
from models.builder import Builder
from models.forms import TRANSFORMERS, feeds
from models.forms.form import BATCH, EXPERTS, HEAD, TIME, WIDE
from models.nets import run
from models.topologies import TOPOLOGIES
from onnxprune import NothingToPrune, OptionError, Plan, analyze

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


@pytest.mark.parametrize("groups", [4, 8])
def test_whole_groups_of_a_group_norm_that_is_written_out_go(groups: int) -> None:
    b = Builder()
    h = b.conv(b.input("input", (1, 3, 8, 8)), 32)
    ones, zeros = b.param(np.ones(groups, np.float32)), b.param(np.zeros(groups, np.float32))
    normed = b.op("InstanceNormalization", b.reshape(h, 1, groups, -1), ones, zeros)
    h = b.relu(b.mul(b.reshape(normed, 1, 32, 8, 8), b.vec(32, 1, 1)))
    group = analyze(b.model(b.conv(h, 4))).groups[0]
    assert (group.size, group.width) == (groups, 32 // groups)


def test_what_is_chosen_from_may_be_more_than_a_unit() -> None:
    b = Builder()
    scores = b.reshape(b.conv(b.input("input", (1, 3, 8, 8)), 4), 1, 256)
    values, places = b.ops("TopK", scores, np.array([20], np.int64), n=2, axis=1)
    table = b.reshape(b.conv("input", 4), 1, 256)
    chosen = b.op("GatherElements", table, places, axis=1)
    (group,) = analyze(b.model(b.add(values, chosen))).groups
    assert (group.size, group.least) == (4, 1), "20 of 64 places that one of the four has"
