"""Every way in which transformers are exported: the groups that are found, and pruned equals masked for each kind."""

from __future__ import annotations

import pytest

from law import cut
from models.forms import TRANSFORMERS, Form
from onnxprune.graph.io import load
from onnxprune.structure.groups import analyze

KINDS = ("heads", "head_dim", "hidden", "channels", "experts")
FORMS = [pytest.param(f, id=name) for name, f in TRANSFORMERS.items()]


@pytest.mark.parametrize("form", FORMS)
def test_groups(form: Form) -> None:
    analysis = analyze(load(form.build()), allow_io_change=form.io)
    found = {kind: sorted(g.size for g in analysis.of_kind(kind)) for kind in KINDS}
    assert found == {kind: sorted(getattr(form, kind)) for kind in KINDS}


@pytest.mark.parametrize("form", FORMS)
def test_pruned_equals_masked(form: Form) -> None:
    analysis = analyze(load(form.build()), allow_io_change=form.io)
    for kinds in (*((kind,) for kind in KINDS if getattr(form, kind)), KINDS):
        done = cut(analysis, 0.4, kinds=kinds)
        assert done.error <= form.tolerance / 10, kinds
        assert done.removed > 0, kinds


@pytest.mark.parametrize("form", [pytest.param(f, id=name) for name, f in TRANSFORMERS.items() if f.io])
def test_inputs_and_outputs_keep_their_shape_unless_they_may_change(form: Form) -> None:
    analysis = analyze(load(form.build()))
    assert not analysis.of_kind("heads")
    reasons = {p.reason for p in analysis.components.pins}
    assert any(r.startswith("axis of the graph input") for r in reasons), reasons
    done = cut(form.build(), 0.4, kinds=("heads",), allow_io_change=True)
    before, after = ({i.name: i for i in m.proto.graph.input} for m in (done.analysis.model, done.pruned))
    assert any(before[n].type != after[n].type for n in before)
