"""What the pruned model is compared with, and when that is trusted."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from kinds import FORMS, analysis_of, gone, random_keeps
from models.forms import Form
from models.forms.form import HEADS
from models.rules import build, text
from onnxprune import ChannelGroup, OptionError, VerificationError
from onnxprune.graph.io import load
from onnxprune.importance.weights import score
from onnxprune.structure.groups import analyze
from onnxprune.structure.surgery import prune_model
from onnxprune.structure.verify import verify


def test_einsum_masks_an_operand_that_is_not_broadcast() -> None:
    weights = "float[3,1] w0, float[3,8] w1, float[8,4] w2, int64[1] last = {2}"
    nodes = """a = MatMul(x, w0) h = MatMul(x, w1) q = Einsum<equation = "btc,btc->bt">(a, h) s = Unsqueeze(q, last)
        g = MatMul(h, w2) y = Add(g, s)"""
    analysis = analyze(load(build(text("float[2,5,3] x", weights, nodes))))
    keep = analysis.keep_ids({g.name: score(analysis, [g], importance="random")[g.name] > 0.4 for g in analysis.groups})
    assert not keep.all()
    assert verify(analysis, keep, prune_model(analysis, keep)).error <= 1e-5


def test_a_removed_channel_may_be_no_number() -> None:
    """The square root of a negative channel: it goes, and its NaN with it."""
    weights = "float[8,3,1,1] w1, float[4,8,1,1] w2, float[8,1,1] sign = {1,-1,1,-1,1,-1,1,-1}"
    nodes = "h = Conv(x, w1) a = Abs(h) b = Mul(a, sign) k = Sqrt(b) y = Conv(k, w2)"
    model = build(text("float[2,3,6,6] x", weights, nodes))
    analysis = analyze(load(model))
    keep = analysis.keep_ids({g.name: np.arange(8) % 2 == 0 for g in analysis.groups})
    assert verify(analysis, keep, prune_model(analysis, keep)).error <= 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_random_mixtures_hold_the_law(form: Form) -> None:
    analysis = analysis_of(form.name)
    keeps = random_keeps(analysis, zlib.crc32(form.name.encode()))
    keep = analysis.keep_ids(keeps)
    pruned = prune_model(analysis, keep)
    assert verify(analysis, keep, pruned).error <= form.tolerance / 10, {n: int(k.sum()) for n, k in keeps.items()}


DROPS = "h = Conv(x, w1) k = Dropout(h, ratio, on) y = Conv(k, w2)"
DRAWS = "h = Conv(x, w1) k = Relu(h) z = Conv(k, w2) r = RandomNormalLike(z) y = Add(z, r)"
CHANCES = {DROPS: "Dropout 'Dropout.k.' has training_mode true", DRAWS: "RandomNormalLike 'RandomNormalLike.r.' draws"}


def chance(nodes: str, inputs: str = "") -> onnx.ModelProto:
    """Convolutions with something random in front of them or between."""
    weights = "float[8,3,1,1] w1, float[4,8,1,1] w2, float ratio = {0.5}" + ("" if inputs else ", bool on = {1}")
    return build(text(f"float[2,3,6,6] x{inputs}", weights, nodes))


def cut_of(model: onnx.ModelProto, **options: Any) -> onnxprune.Result:
    return onnxprune.prune(model, recover="none", measure=False, threads=1, **options)


ZEROS: dict[str, Any] = {"sparsity": 0.5, "format": "csr"}


@pytest.mark.parametrize(("nodes", "options"), [(DROPS, {"channels": 0.5}), (DRAWS, {"channels": 0.5}), (DRAWS, ZEROS)])
def test_what_is_random_is_said_to_be_so(nodes: str, options: dict[str, Any]) -> None:
    """Two runs differ, which no check can tell from a mistake; without the check the model is written."""
    with pytest.raises(OptionError, match=CHANCES[nodes]):
        cut_of(chance(nodes), **options)
    assert cut_of(chance(nodes), verify=False, **options).model is not None


def test_what_is_random_by_a_seed_or_not_at_all_is_verified() -> None:
    for model in (chance(DRAWS.replace("Like(", "Like<seed = 1.0>(")), chance(DROPS, ", bool on")):
        checked = cut_of(model, channels=0.5).report.verification
        assert checked is not None and checked.error <= 1e-5


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
