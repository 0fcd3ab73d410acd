"""Laws that hold for any graph: pruned equals masked, ratio 0 is the identity, constraints are kept, sizes add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import models

from onnxprune.allocation import ALLOCATORS, rounded
from onnxprune.graph.io import Model, load, to_proto
from onnxprune.importance import score
from onnxprune.structure.groups import Analysis, ChannelGroup, Keep, analyze
from onnxprune.structure.surgery import prune_model
from onnxprune.structure.verify import verify

KINDS = ("channels", "heads", "head_dim")
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Cut:
    """How a graph is cut."""

    ratio: float = 0.5
    round_to: int = 1
    seed: int = 0
    allocator: str = "uniform"


@dataclass
class Outcome:
    """groups: kind -> how many were found; removed: units that went; error: pruned against masked."""

    groups: Counter[str] = field(default_factory=Counter)
    removed: int = 0
    error: float = 0.0
    pinned: list[str] = field(default_factory=list)


def check(proto: onnx.ModelProto, cut: Cut) -> Outcome:
    """Cut a graph and assert every law; returns what was found."""
    model = load(proto)
    analysis = analyze(model)
    groups = [g for g in analysis.groups if g.kind in KINDS]
    scores = score(analysis, groups, importance="random", seed=cut.seed)
    wanted = {g.name: cut.ratio for g in groups}
    keeps = ALLOCATORS[cut.allocator](groups, scores, wanted, round_to=cut.round_to, max_ratio=0.9)
    for g in groups:
        check_constraints(g, keeps[g.name], cut)
    keep = analysis.keep_ids(keeps)
    pruned = prune_model(analysis, keep)
    if keep.all():
        check_identity(model, pruned)
    found = verify(analysis, keep, pruned, seed=cut.seed)
    assert found.error <= TOLERANCE, f"pruned and masked model differ by {found.error:.1e}"
    check_shapes(analysis, keep, keeps, pruned)
    return Outcome(
        Counter(g.kind for g in analysis.groups),
        sum(int((~k).sum()) for k in keeps.values()),
        found.error,
        [p.reason for p in analysis.pinned],
    )


def check_constraints(group: ChannelGroup, keep: Keep, cut: Cut) -> None:
    """No group is emptied, and blocks keep the same number."""
    assert keep.shape == (group.size,)
    assert keep.any(), f"{group} lost all its units"
    assert 0 < rounded(group, cut.ratio, cut.round_to) <= group.size
    for counts in group.blocks:
        assert len({*(counts @ keep).tolist()}) == 1, f"blocks of {group} are uneven"


def check_identity(model: Model, pruned: Model) -> None:
    """Nothing was removed: weights and nodes are what they were."""
    assert model.weights.keys() == pruned.weights.keys()
    for name, w in model.weights.items():
        np.testing.assert_array_equal(w, pruned.weights[name], strict=True)
    for old, new in zip(model.proto.graph.node, pruned.proto.graph.node, strict=True):
        assert (old.op_type, old.input, old.output) == (new.op_type, new.input, new.output)
        assert {a.name: a for a in old.attribute} == {a.name: a for a in new.attribute}


def check_shapes(analysis: Analysis, keep: Keep, keeps: dict[str, Keep], pruned: Model) -> None:
    """Every weight and every tensor at run time has as many indices as survive."""
    for g in analysis.groups:
        kept = keeps.get(g.name, np.ones(g.size, bool))
        for s in g.slices:
            gone = int((~kept[s.units[s.units >= 0]]).sum()) if s.units.ndim == 1 else 0
            if s.tensor in pruned.weights and s.units.ndim == 1:
                others = analysis.coupling.base[s.tensor][s.axis]
                assert others is not None
                assert pruned.weights[s.tensor].shape[s.axis] == int(keep[others].sum()) <= s.units.size - gone
    proto = to_proto(pruned)
    outputs = {o.name for o in proto.graph.output}
    made = [o for n in proto.graph.node for o in n.output if o and o in analysis.coupling.base]
    proto.graph.output.extend(onnx.ValueInfoProto(name=o) for o in made if o not in outputs)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(None, feeds(session))
    for info, value in zip(session.get_outputs(), values, strict=True):
        axes = analysis.coupling.base.get(info.name, [])
        for k, ids in enumerate(axes):
            assert ids is None or value.shape[k] == int(keep[ids].sum()), f"axis {k} of {info.name} has {value.shape[k]}"


def feeds(session: ort.InferenceSession) -> dict[str, np.ndarray[Any, Any]]:
    """One sample for every input."""
    rng = np.random.default_rng(0)
    out: dict[str, np.ndarray[Any, Any]] = {}
    for i in session.get_inputs():
        shape = [d if isinstance(d, int) else 1 for d in i.shape]
        integers = i.type == "tensor(int64)"
        out[i.name] = rng.integers(0, 7, shape) if integers else rng.standard_normal(shape).astype(np.float32)
    return out


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    models(),
    st.builds(
        Cut, st.sampled_from([0.5, 0.3, 0.75, 0.0]), st.sampled_from([1, 2, 4, 8]), st.integers(0, 99),
        st.sampled_from(["uniform", "global"]),
    ),
)  # fmt: skip
def test_any_graph(proto: onnx.ModelProto, cut: Cut) -> None:
    check(proto, cut)
