"""Sparse weights from the user's side: masks, formats, plans, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import onnxprune
from conftest import Cli
from models.nets import noise, of_nodes
from onnxprune import formats
from onnxprune.formats import auto
from onnxprune.formats.csr import CSR
from onnxprune.formats.format import Packing
from onnxprune.formats.patterns import NMPattern, parse_pattern
from onnxprune.graph.io import load
from onnxprune.kernels import available
from onnxprune.layers.layer import sparse_layers
from onnxprune.solvers.patterns import lowest_kept, n_of_m
from onnxprune.sparsity.allocate import below, global_, uniform
from onnxprune.sparsity.amounts import layer_names, ratios_of
from onnxprune.sparsity.options import Zeros
from onnxprune.sparsity.outcome import Sparsity
from onnxprune.sparsity.prepare import prepare

pytestmark = pytest.mark.usefixtures("brief_search")
MODELS = Path(__file__).parent.parent / "models"
RESNET, MLP, VIT = (str(MODELS / f"digits_{name}.onnx") for name in ("resnet_bn", "mlp", "vit"))
QUICK: dict[str, Any] = {"measure": False, "format": "dense"}


def outcome(result: onnxprune.Result) -> Sparsity:
    """What the report says of sparse weights."""
    assert result.report.sparsity is not None
    return result.report.sparsity


def zeros(model: onnxprune.Model) -> dict[str, float]:
    return {x.name: float((model.weights[x.weight] == 0).mean()) for x in sparse_layers(model)[0]}


@pytest.fixture
def call(call: Cli) -> Cli:
    return lambda *words: call([str(w) for w in words])


# masks


def test_lowest_kept_removes_exactly_so_many_and_of_equals_the_first():
    scores = np.array([[3, 1, 1], [1, 2, 1]], np.float32)
    assert lowest_kept(scores, 2).tolist() == [[True, False, False], [True, True, True]]
    assert lowest_kept(scores, 0).all() and not lowest_kept(scores, 6).any()
    big = noise(100, 100)
    for count in (1, 17, 5000, 9999):
        kept = lowest_kept(np.abs(big), count)
        assert (~kept).sum() == count
        assert np.abs(big[~kept]).max() <= np.abs(big[kept]).min()


@pytest.mark.parametrize(("text", "length"), [("2:4", 16), ("1:4", 18), ("4:8", 21), ("3:5", 5), ("1:16", 7)])
def test_n_of_m_keeps_the_largest_of_every_block(text: str, length: int):
    pattern = parse_pattern(text)
    assert isinstance(pattern, NMPattern)
    scores = np.abs(noise(11, length))
    kept = n_of_m(scores, pattern.n, pattern.m)
    for start in range(0, length, pattern.m):
        block, mask = scores[:, start : start + pattern.m], kept[:, start : start + pattern.m]
        assert (mask.sum(1) == min(pattern.n, block.shape[1])).all()
        for s, k in zip(block, mask, strict=True):
            assert s[k].min() >= s[~k].max(initial=0)


def test_allocators_count():
    scores = {"a": np.arange(10, dtype=np.float32), "b": np.arange(10, dtype=np.float32) + 5}
    assert uniform(scores, {"a": 0.3, "b": 0.5}) == {"a": 3, "b": 5}
    assert global_(scores, dict.fromkeys("ab", 0.5)) == {"a": 8, "b": 2}  # of equals the first go
    small = {"a": np.full(10, 0.1, np.float32), "b": np.ones(90, np.float32)}
    assert global_(small, dict.fromkeys("ab", 0.5)) == {"a": 9, "b": 41}  # something stays of every layer
    assert below({"a": np.array([-1, 1, 3, -3], np.float32)}, 0.5) == {"a": 2}


def test_conv_pattern_runs_along_the_input_channels():
    w = noise(6, 8, 3, 3)
    model = of_nodes([helper.make_node("Conv", ["x", "w"], ["y"], name="c")], {"w": w}, [1, 8, 9, 9])
    masked = onnxprune.sparsify(model, pattern="2:4", **QUICK).model.weights["w"]
    assert ((masked.reshape(6, 2, 4, 3, 3) != 0).sum(2) == 2).all()
    assert np.array_equal(masked[masked != 0], w[masked != 0])


def test_shared_weight_is_masked_once():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="b"),
    ]
    result = onnxprune.sparsify(of_nodes(nodes, {"w": noise(12, 12)}, [3, 12]), 0.5, **QUICK)
    assert (result.model.weights["w"] == 0).sum() == 72
    both = onnxprune.sparsify(of_nodes(nodes, {"w": noise(12, 12)}, [3, 12]), 0.5, measure=False, format="csr")
    names = [n.input[1] for n in both.model.proto.graph.node]
    assert names[0] == names[1]
    one = onnxprune.prune(of_nodes(nodes, {"w": noise(12, 12)}, [3, 12]), ratio={"sparsity:a": 0.5}, **QUICK)
    assert (one.model.weights["w"] == 0).sum() == 72
    assert (outcome(one).zeros, outcome(one).size) == (72, 144)


# the stages before


def test_batchnorm_is_folded_and_listed_weights_become_constants():
    w, v = noise(8, 4, 3, 3), np.abs(noise(4, 8)) + 0.5
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="c"),
        helper.make_node("BatchNormalization", ["h", "s", "b", "m", "v"], ["n"], name="n"),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    arrays = {"w": w, **{name: v[i] for i, name in enumerate("sbmv")}}
    proto = of_nodes(nodes, arrays, [1, 4, 7, 7], inputs=("w",))
    model = load(proto)
    out, notes = prepare(model, functions=False)
    assert [n.op_type for n in out.proto.graph.node] == ["Conv", "Relu"]
    assert len(notes) == 2 and [i.name for i in out.proto.graph.input] == ["x"]
    x = noise(1, 4, 7, 7)
    a, b = (ort.InferenceSession(p.SerializeToString()) for p in (proto, onnxprune.to_proto(out)))
    np.testing.assert_allclose(a.run(None, {"x": x})[0], b.run(None, {"x": x})[0], rtol=1e-4, atol=1e-5)
    assert np.array_equal(model.weights["w"], w)  # the input is not touched


def test_old_opset_is_raised_for_the_functions():
    proto = of_nodes([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": noise(8, 8)}, [2, 8], opset=9)
    result = onnxprune.sparsify(proto, 0.5, measure=False, format="csr")
    assert {o.domain: o.version for o in result.model.proto.opset_import}[""] == 13
    assert [f.name for f in result.model.proto.functions] == ["CsrMatMul"]


# the whole way


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"sparsity": 0.8, "format": "csr"}, "csr"), ({"pattern": "2:4", "format": "nm"}, "nm"),
     ({"pattern": "1:4", "format": "csr"}, "csr"),
     ({"sparsity": 0.9, "format": "sparse-initializer"}, "sparse-initializer"),
     ({"quality": 0.6, "format": "dense"}, "dense")],
)  # fmt: skip
@pytest.mark.parametrize("path", [RESNET, MLP, VIT], ids=["resnet", "mlp", "vit"])
def test_every_format_computes_what_the_masked_model_computes(
    path: str, options: dict[str, Any], kind: str, tmp_path: Path
):
    result = onnxprune.prune(path, measure=False, **options)
    found = result.report.sparsity
    assert found is not None and found.error is not None and found.error < 1e-4
    assert any(x.format == kind for x in found.layers)
    out = tmp_path / "out.onnx"
    result.save(out)
    ignore = () if kind == "dense" else tuple(node for node, reason in found.untouched if "no constant" not in reason)
    masked = onnxprune.prune(path, measure=False, **{**options, "format": "dense", "ignore": ignore}).model
    back = onnxprune.densify(onnxprune.load(out))
    expected, got = ({x.name: x.matrix(m.weights[x.weight]) for x in sparse_layers(m)[0]} for m in (masked, back))
    assert expected.keys() == got.keys()
    for name in (x.node for x in found.layers):
        assert expected[name].tobytes() == got[name].tobytes(), name  # bit for bit
    if kind in ("csr", "nm"):
        node = next(n.name for n in onnx.load(out).graph.node if n.domain == "onnxprune")
        assert np.array_equal(formats.unpack(str(out), node).reshape(expected[node].shape), expected[node])
        plain = ort.InferenceSession(str(out))  # no library: the functions
        dense = ort.InferenceSession(onnxprune.to_proto(masked).SerializeToString())
        feeds = {i.name: noise(*(d if isinstance(d, int) else 2 for d in i.shape)) for i in dense.get_inputs()}
        for a, b in zip(dense.run(None, feeds), plain.run(None, feeds), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_sparsity_is_exact_and_deterministic():
    a, b = (onnxprune.sparsify(RESNET, 0.7, **QUICK) for _ in range(2))
    assert onnxprune.to_proto(a.model).SerializeToString() == onnxprune.to_proto(b.model).SerializeToString()
    sizes = {x.node: x.size for x in outcome(a).layers}
    for node, share in zeros(a.model).items():
        assert abs(share - 0.7) <= 1 / sizes[node]
    shares = zeros(onnxprune.sparsify(RESNET, 0.7, sparsity_allocate="global", **QUICK).model)
    assert max(shares.values()) - min(shares.values()) > 0.05


def test_ratios_and_ignore():
    names = [x.name for x in sparse_layers(load(RESNET))[0]]
    result = onnxprune.sparsify(RESNET, 0.5, ratio={names[1]: 0.9, names[2]: 0.2}, ignore=[names[0]], **QUICK)
    shares = zeros(result.model)
    assert shares[names[0]] < 0.01 and abs(shares[names[1]] - 0.9) < 0.01 and abs(shares[names[2]] - 0.2) < 0.01
    only = zeros(onnxprune.prune(RESNET, ratio={f"sparsity:{names[1]}": 0.9}, **QUICK).model)
    assert only[names[1]] > 0.89 and max(v for k, v in only.items() if k != names[1]) < 0.01


def two(**arrays: np.ndarray) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="b"),
    ]
    return of_nodes(nodes, {"w": noise(16, 16), "v": noise(16, 16, seed=1)} | arrays, [3, 16])


def test_names_from_before_the_preparation_match():
    """The output of a convolution is gone once its BatchNormalization is folded."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["before"]),
        helper.make_node("BatchNormalization", ["before", "s", "s", "s", "s"], ["after"]),
        helper.make_node("Relu", ["after"], ["y"]),
    ]
    proto = of_nodes(nodes, {"w": noise(8, 4, 3, 3), "s": np.ones(8, np.float32)}, [1, 4, 7, 7], inputs=("w",))
    for name in ("before", "after", "w"):
        found = outcome(onnxprune.prune(proto, ratio={f"sparsity:{name}": 0.5}, **QUICK))
        assert found.zeros == 144, name


def test_ratios_without_prefix_follow_the_mode_that_is_on():
    result = onnxprune.prune(two(), ratio=(("sparsity:a", 0.5), ("b", 0.25)), **QUICK)
    assert zeros(result.model) == {"a": 0.5, "b": 0.25}


def test_channels_then_sparsity():
    result = onnxprune.prune(RESNET, channels=0.25, sparsity=0.6, measure=False, format="csr", recover="bias")
    assert result.report.after.macs < result.report.before.macs
    assert abs(outcome(result).zeros / outcome(result).size - 0.6) < 0.01
    assert result.report.verification is not None
    with pytest.raises(onnxprune.OptionError, match="sparsity:"):
        onnxprune.prune(RESNET, channels=0.25, sparsity=0.6, ratio={"a": 0.5})


@pytest.mark.parametrize(
    "options",
    [
        "--sparsity 0.8 --format csr",
        "--pattern 2:4 --format nm",
        "--channels 0.25 --recover none --quality 0.7 --format csr",
    ],
)
def test_plan_replays_to_the_same_bytes(options: str, tmp_path: Path, call: Cli):
    a, b, plan = tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "p.json"
    assert call(RESNET, *options.split(), "-o", a, "--save-plan", plan, "--no-latency")[0] == 0
    assert call(RESNET, "--plan", plan, "-o", b, "--no-latency")[0] == 0
    assert a.read_bytes() == b.read_bytes()
    assert call(MLP, "--plan", plan, "-o", b, "--no-latency")[0] == 2


def test_plan_leaves_ignored_layers_alone_whatever_zeros_they_hold(tmp_path: Path):
    v = noise(16, 16, seed=1)
    v[0, 0], v[1, :8] = 0, -0.0
    for options in ({"pattern": "2:4", "ignore": ["b"]}, {"sparsity": 0.01, "ignore": ["a"]}):
        first = onnxprune.sparsify(two(v=v), measure=False, format="csr", **options)
        (tmp_path / "plan.json").write_text(first.plan.to_json())
        again = onnxprune.prune(two(v=v), plan=tmp_path / "plan.json", measure=False)
        one, other = (onnxprune.to_proto(r.model).SerializeToString() for r in (first, again))
        assert one == other


@pytest.mark.parametrize(
    ("change", "says"),
    [({"size": float("inf")}, "not what onnxprune wrote"), ({"size": 4}, "has 4 weights; in the model it has 256"),
     ({"zeros": 257}, "cannot be"), ({"format": "nm"}, "cannot be"), ({"format": 3}, "cannot be")],
)  # fmt: skip
def test_bad_plans(change: dict[str, Any], says: str, tmp_path: Path):
    plan = json.loads(onnxprune.sparsify(two(), 0.01, **QUICK).plan.to_json())
    plan["sparsity"]["layers"]["a"].update(change)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(onnxprune.OptionError, match=says):
        onnxprune.prune(two(), plan=tmp_path / "plan.json", measure=False)


def test_dry_run_plans_what_auto_chooses(monkeypatch: pytest.MonkeyPatch):
    choice = auto.Chosen({"a": Packing(CSR)}, {"b": "slower"}, 1.5, "some CPU", 1)
    monkeypatch.setattr(auto, "choose", lambda *a, **k: choice)
    dry, run = (onnxprune.sparsify(two(), 0.8, measure=False, dry_run=d) for d in (True, False))
    assert dry.model is None and dry.plan.to_json() == run.plan.to_json()
    assert dry.plan.sparsity is not None and dry.plan.sparsity["layers"]["a"]["format"] == "csr"


def test_plan_replays_what_auto_chose_without_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = [x.name for x in sparse_layers(load(MLP))[0]]
    choice = auto.Chosen({names[0]: Packing(CSR)}, {n: "slower" for n in names[1:]}, 1.5, "some CPU", 1)
    monkeypatch.setattr(auto, "choose", lambda *a, **k: choice)
    first = onnxprune.sparsify(MLP, 0.8, measure=False)
    kinds = {x.node: (x.format, x.reason) for x in outcome(first).layers}
    assert kinds[names[0]] == ("csr", "") and kinds[names[1]] == ("dense", "slower")
    stored = {p.key: p.value for p in first.model.proto.metadata_props}["onnxprune.sparsity"]
    assert json.loads(stored)["cpu"] == "some CPU"
    monkeypatch.setattr(auto, "choose", lambda *a, **k: pytest.fail("measured"))
    path = tmp_path / "plan.json"
    path.write_text(first.plan.to_json())
    again = onnxprune.prune(MLP, plan=path, measure=False)
    assert onnxprune.to_proto(again.model).SerializeToString() == onnxprune.to_proto(first.model).SerializeToString()


@pytest.mark.skipif(bool(available()), reason=available())
def test_auto_measures_and_gives_reasons():
    wide = of_nodes(
        [helper.make_node("MatMul", ["x", "w"], ["h"], name="wide"),
         helper.make_node("MatMul", ["h", "v"], ["y"], name="thin")],
        {"w": noise(512, 1024), "v": noise(1024, 2)}, [64, 512],
    )  # fmt: skip
    found = outcome(onnxprune.sparsify(wide, 0.95, threads=1))
    assert found.cpu and found.speedup is not None and found.speedup >= 1
    assert all(x.format == "csr" or x.reason for x in found.layers)


def test_auto_without_the_library_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("onnxprune.kernels.available", lambda: "no compiler was there")
    with pytest.raises(onnxprune.UserError, match="no compiler was there"):
        onnxprune.sparsify(MLP, 0.8)


@pytest.mark.parametrize(("good", "bad"), [("Identity", "Log"), ("Identity", "Neg"), ("ArgMax", "ArgMin")])
def test_a_change_of_the_outputs_is_found(good: str, bad: str, monkeypatch: pytest.MonkeyPatch):
    """Also where all that comes out is NaN, or holds integers."""

    def ending(last: str, inner: str) -> onnx.ModelProto:
        extra: dict[str, Any] = {"axis": 1} if last.startswith("Arg") else {}
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
            helper.make_node("Sigmoid", ["h"], ["s"]),
            helper.make_node("Sub", ["s", "one"], [inner]),  # below 0, of which Log is NaN
            helper.make_node(last, [inner], ["y"], **extra),
        ]
        proto = of_nodes(nodes, {"w": noise(16, 16), "one": np.ones(1, np.float32)}, [3, 16])
        proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64 if extra else TensorProto.FLOAT
        return proto

    broken = load(ending(bad, "other"))  # another name, so that what is before the last step is not compared instead
    monkeypatch.setattr("onnxprune.sparsity.store.rewrite", lambda *_: (broken, []))
    with pytest.raises(onnxprune.VerificationError, match="nothing was written"):
        onnxprune.sparsify(ending(good, "inner"), 0.5, measure=False, format="csr")


def test_model_that_does_not_run_is_not_passed_off_as_verified():
    proto = two()
    proto.graph.node[1].domain, proto.graph.node[1].op_type = "other", "Foo"
    proto.opset_import.append(helper.make_opsetid("other", 1))
    with pytest.raises(onnxprune.OptionError, match="verify=False"):
        onnxprune.sparsify(proto, 0.5, **QUICK)
    assert outcome(onnxprune.sparsify(proto, 0.5, verify=False, **QUICK)).error is None


def test_sparse_model_is_sent_to_densify():
    result = onnxprune.sparsify(two(), 0.8, measure=False, format="csr")
    with pytest.raises(onnxprune.NothingToPrune, match="densify"):
        onnxprune.sparsify(result.model, 0.8, **QUICK)


BAD = [
    (["--sparsity", "1.2"], "fraction"),
    (["--sparsity", "-0.1"], "fraction"),
    (["--pattern", "4:2"], "N:M"),
    (["--pattern", "two"], "N:M"),
    (["--pattern", "2:4", "--sparsity", "0.9"], "50%"),
    (["--quality", "0"], "deviations"),
    (["--quality", "0.5", "--sparsity", "0.5"], "leave out"),
    (["--quality", "0.5", "--ratio", "sparsity:*=0.5"], "leave out"),
    (["--pattern", "2:4", "--sparsity-allocate", "global"], "--pattern"),
    (["--format", "csr"], "--sparsity"),
    (["--sparsity", "0.5", "--format", "nm"], "--pattern"),
    (["--sparsity", "0.5", "--ignore", "nothing*"], "matches no layer"),
    (["--sparsity", "0.5", "--ratio", "sparsity:nothing=0.5"], "matches no layer"),
    (["--sparsity", "0.5", "--channels", "0.5", "--ratio", "a=0.5"], "channels:a"),
    (["--sparsity", "0.5", "--format", "zip"], "zip"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=[" ".join(o) for o, _ in BAD])
def test_bad_options_are_one_line_and_write_nothing(options: list[str], says: str, tmp_path: Path, call: Cli):
    out = tmp_path / "out.onnx"
    code, _, error = call(RESNET, *options, "-o", out)
    assert code == 2 and says in error and len(error.strip().splitlines()) == 1, error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("glob", ["nothing", "sparsity:nothing"])
def test_a_glob_that_matches_no_layer_is_said_as_typed(glob: str):
    model = load(RESNET)
    layers, zeros = sparse_layers(model)[0], Zeros(sparsity=0.5)
    with pytest.raises(onnxprune.OptionError, match=f"^--ratio '{glob}' matches no layer"):
        ratios_of(layer_names(model), layers, zeros, [(glob, 0.5)], [])
    one = layers[0].name
    assert ratios_of(layer_names(model), layers, zeros, [(f"sparsity:{one}", 0.25)], [])[one] == 0.25


def test_weights_that_are_not_finite_are_refused():
    w = noise(8, 8)
    w[3, 3] = np.nan
    with pytest.raises(onnxprune.OptionError, match="NaN"):
        onnxprune.sparsify(of_nodes([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": w}, [2, 8]), 0.5, **QUICK)


def test_model_without_layers(tmp_path: Path):
    with pytest.raises(onnxprune.NothingToPrune, match="no layer"):
        onnxprune.sparsify(of_nodes([helper.make_node("Relu", ["x"], ["y"])], {}, [2, 8]), 0.5, **QUICK)


def test_densify_command(tmp_path: Path, call: Cli):
    sparse, dense = tmp_path / "s.onnx", tmp_path / "d.onnx"
    assert call(RESNET, "-s", "0.8", "--format", "csr", "-o", sparse, "--no-latency")[0] == 0
    before = sparse.read_bytes()
    assert call("densify", sparse, "-o", sparse)[0] == 2 and sparse.read_bytes() == before
    assert call("densify", sparse, "-o", dense)[0] == 0
    assert not any(n.domain == "onnxprune" for n in onnx.load(dense).graph.node)
    assert not onnx.load(dense).functions
    code, _, error = call("densify", dense, "-o", tmp_path / "e.onnx")
    assert code == 2 and "no sparse operator" in error


def test_report_as_json(tmp_path: Path, call: Cli):
    code, out, _ = call(MLP, "-s", "0.8", "--format", "csr", "-o", tmp_path / "o.onnx", "--json", "-", "-q")
    data = json.loads(out)["sparsity"]
    assert code == 0 and data["format"] == "csr" and all(x["format"] == "csr" for x in data["layers"])
    assert data["zeros"] == sum(x["zeros"] for x in data["layers"])


@pytest.mark.parametrize(
    ("pattern", "form"), [("block:4x4", "bsr"), ("block:1x4", "bsr"), ("column", "columns"), ("column", "csr")]
)
def test_blocks_and_columns_are_stored_as_asked(pattern: str, form: str):
    result = onnxprune.prune(MLP, sparsity=0.7, pattern=pattern, format=form, measure=False)
    found = result.report.sparsity
    assert found is not None and {x.format for x in found.layers if x.masked} == {form}
    assert found.error is not None and found.error < 1e-4
    again = onnxprune.prune(MLP, plan=result.plan, measure=False)
    assert result.model is not None and again.model is not None
    assert {k: w.tobytes() for k, w in again.model.weights.items()} == {
        k: w.tobytes() for k, w in result.model.weights.items()
    }


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"sparsity": 0.5, "format": "bsr"}, "format='bsr' stores tiles"),
        ({"sparsity": 0.5, "format": "columns"}, "format='columns' leaves out whole columns"),
        ({"pattern": "block:4x4"}, "say how many with sparsity"),
        ({"pattern": "block:4x4", "sparsity": 0.5, "solver": "obc"}, "solver='obc' removes weights one by one"),
        ({"sparsity": 0.5, "solver": "admm"}, "solver='admm' needs data"),
        ({"sparsity": 0.5, "sparsity_allocate": "error"}, "sparsity_allocate='error' needs data"),
        ({"sparsity": 0.5, "format": "csr", "cluster": 16}, "cluster stores dense weights"),
        ({"channels": 0.2, "values": "int8"}, "values='int8' needs zeros"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], line: str):
    with pytest.raises(onnxprune.OptionError, match=line):
        onnxprune.prune(MLP, **options)
