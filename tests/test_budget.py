"""Targets, and that what is estimated is what the model that is written costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kinds import (
    analysis_of,
    counts,
    cut_kinds,
    error,
    gone,
    kept,
    parameters,
    proto,
    prune,
    random_keeps,
    samples,
)
from law import proto_of
from models.forms import TRANSFORMERS, feeds
from models.forms.form import FFN, HEADS, WIDTH
from models.nets import run
from onnxprune import OptionError, Plan
from onnxprune.allocation.budget import BUDGETS, Tables, Usage, added, meters_of
from onnxprune.allocation.options import Cut
from onnxprune.graph.io import load, to_proto
from onnxprune.options import declared
from onnxprune.structure.groups import analyze
from onnxprune.structure.surgery import prune_model


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


# Product axes


@pytest.mark.parametrize("name", ["encoder_post_norm", "ms_attention", "fused_qkv_gather", "einsum_attention"])
def test_what_heads_and_dimensions_make_together(name: str) -> None:
    analysis, rng = analysis_of(name), np.random.default_rng(1)
    groups = [*analysis.of_kind("heads"), *analysis.of_kind("head_dim")]
    owners, labels = analysis.owners(groups), analysis.components.labels
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


def test_every_budget_has_its_target() -> None:
    assert [f"target_{name}" for name in BUDGETS] == [o.name for o in declared(Cut) if o.name.startswith("target_")]


STRONG = (
    "encoder_post_norm", "llama", "ms_attention_qkv_sizes", "onnx_attention_3d", "t5", "swin", "moe_dense",
    "fused_qkv_per_head", "resnet_depth", "conformer",
)  # fmt: skip


@pytest.mark.parametrize("name", STRONG)
def test_the_usage_of_a_target_is_the_cost_of_the_plan(name: str) -> None:
    analysis = analysis_of(name)
    whole = np.ones(analysis.coupling.size, bool)
    for what, meter in meters_of(analysis, Tables(), BUDGETS).items():
        usage = Usage(meter, analysis, analysis.groups, whole)
        for seed in range(5):
            keeps = random_keeps(analysis, seed)
            expected = meter(analysis.keep_ids(keeps))
            kept = counts(analysis.groups, keeps)
            assert usage(kept) == pytest.approx(expected, rel=1e-9), (what, seed)
            for k, g in enumerate(analysis.groups[:6]):
                other = kept.copy()
                other[k] = g.size
                rise = usage.at(kept).along(k, np.array([[kept[k]], [g.size]]))
                if meter.eased is None:
                    assert rise[1] - rise[0] == pytest.approx(usage(other) - usage(kept), rel=1e-6, abs=1e-6)


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
def test_the_usage_where_the_other_factor_is_fixed(fixed: str) -> None:
    analysis = analysis_of("encoder_post_norm")
    free = [g for g in analysis.groups if g.kind != fixed]
    held = {g.name: np.arange(g.size) < g.size // 2 for g in analysis.of_kind(fixed)}
    alive = analysis.keep_ids(held)
    costs = analysis.costs()
    usage = Usage(added(costs.macs_of), analysis, free, alive)
    assert usage(counts(free, {})) == pytest.approx(costs.macs(alive), rel=1e-9)


def test_a_fixed_kind_does_not_make_the_others_too_small() -> None:
    result = prune("encoder_post_norm", heads=0.5, head_dim="auto", target_macs="65%",
                   calibration=samples("encoder_post_norm"))  # fmt: skip
    assert 0.6 < result.report.after.macs / result.report.before.macs <= 0.65


def test_global_takes_its_share_of_every_kind() -> None:
    result = prune("encoder_post_norm", heads=0.5, channels=0.5, allocate="global", round_to=1)
    left = {kind: sum(g.kept for g in result.report.groups if g.kind == kind) for kind in ("heads", "channels")}
    assert left == {"heads": HEADS, "channels": FFN + WIDTH // 2}
