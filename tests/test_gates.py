"""The importance of heads and experts by gates, against the model without them."""

from __future__ import annotations

import numpy as np
import pytest

from kinds import analysis_of, error, kept, kl, proto, prune, replaced, samples
from models.forms import feeds
from models.forms.form import BATCH
from models.nets import run
from onnxprune.evaluation.damage import damage
from onnxprune.graph.io import to_proto
from onnxprune.importance.gates import gate_losses
from onnxprune.structure.masked import masked_model


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
