"""Laws that hold for any graph: pruned equals masked, ratio 0 is the identity, constraints are kept, sizes add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.random_graphs import Draws, models, simplest
from onnxprune.allocation.allocators import ALLOCATORS
from onnxprune.errors import VerificationError
from onnxprune.graph.io import Model, load, to_proto, unfolded
from onnxprune.graph.node import walk_all
from onnxprune.importance.units import rounded
from onnxprune.importance.weights import score
from onnxprune.structure.analysis import Analysis, ChannelGroup, Keep
from onnxprune.structure.check import compare
from onnxprune.structure.groups import analyze
from onnxprune.structure.masked import masked_model
from onnxprune.structure.surgery import prune_model
from onnxprune.structure.verify import verify

KINDS = ("channels", "heads", "head_dim", "hidden")
TOLERANCE = 1e-4
ROUNDING = 1e-6  # what rounding does to a weight, generously


@dataclass(frozen=True)
class Cut:
    """How a graph is cut: `ratio` of a `share` of its groups; twice where `again` is set."""

    ratio: float = 0.5
    round_to: int = 1
    allocator: str = "uniform"
    seed: int = 0
    share: float = 1.0
    again: bool = False


def draw_cut(draw: Draws) -> Cut:
    """Any way to cut."""
    return Cut(
        draw.pick((0.5, 0.5, 0.3, 0.75, 0.9, 0.0)),
        draw.pick((1, 2, 4, 8)),
        draw.pick(("uniform", "global")),
        draw.integer(0, 99),
        draw.pick((1.0, 1.0, 0.5)),
        draw.chance(5),
    )


@dataclass
class Outcome:
    """What `check` found.

    groups:  kind -> number of groups.
    removed: units that went.
    error:   pruned against masked.
    shaky:   the error is above the limit, but so is that of the masked model with its weights rounded otherwise.
    ops:     operators of the graph; cut: those of them that touch an axis that shrank.
    pinned:  reasons why weights cannot shrink, where no input or output of the graph is one.
    """

    groups: Counter[str] = field(default_factory=Counter)
    removed: int = 0
    error: float = 0.0
    shaky: bool = False
    ops: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    pinned: Counter[str] = field(default_factory=Counter)


def check(proto: onnx.ModelProto, cut: Cut) -> Outcome:
    """Cut a graph and assert every law; returns what was found."""
    model = load(proto)
    analysis = analyze(model)
    groups = [g for g in analysis.groups if g.kind in KINDS]
    scores = score(analysis, groups, importance="random", seed=cut.seed)
    rng = np.random.default_rng(cut.seed)
    wanted = {g.name: cut.ratio * (rng.random() < cut.share) for g in groups}
    by_ratio = ALLOCATORS[cut.allocator].by_ratio
    assert by_ratio is not None
    keeps = by_ratio(groups, scores, wanted, round_to=cut.round_to, max_ratio=0.9)
    for g in groups:
        check_constraints(g, keeps[g.name], cut)
    keep = analysis.keep_ids(keeps)
    pruned = prune_model(analysis, keep)
    if keep.all():
        check_identity(model, unfolded(pruned))
    out = Outcome(Counter(g.kind for g in analysis.groups), sum(int((~k).sum()) for k in keeps.values()))
    out.pinned.update(p.reason for p in analysis.pinned if "axis of the graph" not in p.reason)
    for node in walk_all(model.proto.graph, analysis.coupling.shapes.opsets):
        out.ops[node.op] += 1
        touched = [ids for t in (*node.inputs, *node.outputs) for ids in analysis.coupling.base.get(t, ())]
        out.cut[node.op] += any(ids is not None and not keep[ids].all() for ids in touched)
    try:
        out.error = verify(analysis, keep, pruned, seed=cut.seed).error
        assert out.error <= TOLERANCE, f"pruned and masked model differ by {out.error:.1e}"
    except (AssertionError, VerificationError) as e:
        out.shaky = "differ by" in str(e) and amplifies_rounding(analysis, keep, pruned)
        if not out.shaky:
            raise
    check_shapes(analysis, keep, keeps, pruned)
    if cut.again:
        check(to_proto(pruned), replace(cut, again=False))
    return out


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
    """Every weight and, at run time, every tensor has as many indices as survive."""
    for g in analysis.groups:
        kept = keeps.get(g.name, np.ones(g.size, bool))
        for s in g.slices:
            if s.tensor not in pruned.weights or s.units.ndim > 1:  # the inner axis of a grouped convolution
                continue
            gone = int((~kept[s.units[s.units >= 0]]).sum())
            assert pruned.weights[s.tensor].shape[s.axis] <= s.units.size - gone, f"{s.tensor} is too long"
    proto = to_proto(pruned)
    outputs = {o.name for o in proto.graph.output}
    nodes = [n for n in proto.graph.node if n.op_type != "Constant"]  # weights, which may be blocked anew
    made = [o for n in nodes for o in n.output if o in analysis.coupling.base and o not in outputs]
    proto.graph.output.extend(onnx.ValueInfoProto(name=o) for o in made)
    for name, value in run(proto).items():
        for k, ids in enumerate(analysis.coupling.base[name]):
            assert ids is None or value.shape[k] == int(keep[ids].sum()), f"axis {k} of {name} has {value.shape[k]}"


def amplifies_rounding(analysis: Analysis, keep: Keep, pruned: Model) -> bool:
    """The masked model itself moves as much when its weights are rounded a little: an output is all but cancelled."""
    rng = np.random.default_rng(0)
    masked = masked_model(analysis, keep)
    moved = masked.copy()
    for name, w in masked.weights.items():
        if w.dtype == np.float32:
            moved.weights[name] = (w * (1 + ROUNDING * rng.standard_normal(w.shape))).astype(np.float32)
    expected = run(to_proto(masked))
    noise, _ = compare(analysis.model, expected, run(to_proto(moved)), {})
    error, _ = compare(analysis.model, expected, run(to_proto(pruned)), {})
    return error <= 10 * noise


def run(proto: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs for one random sample of every input."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray[Any, Any]] = {}
    for i in session.get_inputs():
        shape = [d if isinstance(d, int) else 1 for d in i.shape]
        integers = i.type == "tensor(int64)"
        feeds[i.name] = rng.integers(0, 7, shape) if integers else rng.standard_normal(shape).astype(np.float32)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def constant_in_a_group() -> onnx.ModelProto:
    """A grouped convolution over a constant and a layer: no group of channels may shrink without the others."""
    b = simplest()
    x = b.conv(b.input((3, 4, 4)), 8, 3)
    joined = b.op("Concat", b.param(b.normal(1, 8, 4, 4)), x, axis=1)
    return b.model(b.conv(b.conv(joined, 8, group=2), 3))


def described_indices() -> onnx.ModelProto:
    """The type of a constant is stored, and the constant becomes shorter."""
    b = simplest()
    x = b.op("Gather", b.conv(b.input((3, 4, 4)), 8, 3), [5, 0, 3, 1, 7, 2], axis=1)
    return onnx.shape_inference.infer_shapes(b.model(b.conv(x, 3)))


def normalised_in_groups() -> onnx.ModelProto:
    """onnx infers no shape for GroupNormalization: its rule has to know it without."""
    b = simplest(opset=21)
    x = b.conv(b.input((3, 4, 4)), 8, 3)
    y = b.op("GroupNormalization", x, b.param(b.positive(8)), b.param(b.normal(8)), num_groups=4, shape=b.shape(x))
    return b.model(b.conv(y, 3))


REGRESSIONS = [(constant_in_a_group, True), (described_indices, True), (normalised_in_groups, True)]


@pytest.mark.parametrize(("build", "shrinks"), REGRESSIONS, ids=lambda v: getattr(v, "__name__", ""))
def test_found_before(build: Callable[[], onnx.ModelProto], shrinks: bool) -> None:
    """Graphs on which the random ones once failed, made small."""
    assert (check(build(), Cut()).removed > 0) == shrinks


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    return draw_cut(Draws(lambda low, high: draw(st.integers(low, high))))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(models(), cuts())
def test_any_graph(proto: onnx.ModelProto, cut: Cut) -> None:
    check(proto, cut)
