"""From a model to a smaller one: the same from every source, reproducible, as small as asked for, truly reported."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, helper, numpy_helper

import onnxprune
from conftest import ROOT
from law import data, proto_of
from models.nets import build, normal, run
from models.small import three_groups
from models.topologies import TOPOLOGIES
from onnxprune import ModelFileError, NothingToPrune, OptionError, Plan, Result
from onnxprune.allocation.options import limit_of
from onnxprune.cli.app import main

sys.path.insert(0, str(ROOT / "models"))
import score

MODELS = sorted(p.stem for p in (ROOT / "models").glob("*.onnx") if not p.stem.endswith(".pruned"))
FIXED = [name for name in MODELS if name.startswith("digits_")]  # of one length of sequence


STEM, BODY, WIDE = "Conv(h)", "Conv(k)", "Gemm(l)"


def prune(source: Any, **options: Any) -> Result:
    replayed = options.get("plan") is not None and len(options) == 1
    return onnxprune.prune(source, **({"measure": False} | ({} if replayed else {"recover": "bias"}) | options))


def kept(result: Result) -> dict[str, int]:
    return {g.name: g.kept for g in result.report.groups}


def count(proto: ModelProto) -> tuple[int, int]:
    """Parameters from the file and MACs from the shapes in a run with ones, without a word from onnxprune."""
    graph = onnx.ModelProto.FromString(proto.SerializeToString()).graph
    statistics = {name for n in graph.node if n.op_type == "BatchNormalization" for name in n.input[3:5]}
    constants = {n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute}
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    arrays |= {name: numpy_helper.to_array(t) for name, t in constants.items()}
    parameters = sum(w.size for name, w in arrays.items() if w.dtype.kind == "f" and name not in statistics)

    traced = ModelProto.FromString(proto.SerializeToString())
    del traced.graph.output[:]
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    types = {v.name: v.type for v in [*inferred.value_info, *inferred.output]}
    wanted = [o for n in graph.node if n.op_type != "Constant" for o in n.output if o in types]
    traced.graph.output.extend(helper.make_value_info(o, types[o]) for o in wanted)
    feeds = {}
    for t, name in [(i.type.tensor_type, i.name) for i in graph.input]:
        dtype = helper.tensor_dtype_to_np_dtype(t.elem_type)
        feeds[name] = np.ones([d.dim_value or 1 for d in t.shape.dim], dtype)
    shapes = {name: w.shape for name, w in arrays.items()} | {name: x.shape for name, x in feeds.items()}
    shapes |= {o: v.shape for o, v in zip(wanted, run(traced, *feeds.values()), strict=True)}
    macs = 0
    for node in graph.node:
        x, y = (shapes.get(name, ()) for name in (node.input[0] if node.input else "", node.output[0]))
        w = shapes.get(node.input[1], ()) if len(node.input) > 1 else ()
        if node.op_type == "Conv":
            macs += math.prod(y) * math.prod(w[1:])
        elif node.op_type == "ConvTranspose":
            macs += math.prod(x) * math.prod(w[1:])
        elif node.op_type == "Gemm":
            macs += math.prod(y) * x[0 if any(a.name == "transA" and a.i for a in node.attribute) else 1]
        elif node.op_type == "MatMul":
            macs += math.prod(y) * x[-1]
        elif node.op_type in ("GRU", "LSTM", "RNN"):
            macs += x[0] * x[1] * (math.prod(w) + math.prod(shapes[node.input[2]]))
    return parameters, macs


# Sources


def sources(folder: Path) -> dict[str, Any]:
    path = folder / "net.onnx"
    onnx.save(three_groups(), path)
    onnx.save(
        three_groups(), folder / "external.onnx", save_as_external_data=True, location="net.bin", size_threshold=0
    )  # of net.bin nothing is copied
    return {
        "path": path,
        "str": str(path),
        "external": folder / "external.onnx",
        "bytes": path.read_bytes(),
        "ModelProto": three_groups(),
        "Model": onnxprune.load(path),
        "Graph": gs.import_onnx(three_groups()),
    }


def fingerprint(source: Any) -> bytes:
    if isinstance(source, Path | str):
        return Path(source).read_bytes()
    if isinstance(source, ModelProto):
        return source.SerializeToString(deterministic=True)
    if isinstance(source, onnxprune.Model):
        return onnxprune.to_proto(source).SerializeToString(deterministic=True)
    if isinstance(source, gs.Graph):
        return gs.export_onnx(source).SerializeToString(deterministic=True)
    return bytes(source)


@pytest.mark.parametrize("kind", ["path", "str", "external", "bytes", "ModelProto", "Model", "Graph"])
def test_every_source_gives_the_same_model_and_is_not_changed(kind: str, tmp_path: Path) -> None:
    source = sources(tmp_path)[kind]
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    mark = fingerprint(source)
    result = prune(source, channels=0.4)
    again = prune(source, channels=0.4)
    assert fingerprint(source) == mark
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert data(result) == data(again)
    expected = {
        t.name: numpy_helper.to_array(t) for t in proto_of(prune(three_groups(), channels=0.4)).graph.initializer
    }
    found = {t.name: numpy_helper.to_array(t) for t in proto_of(result).graph.initializer}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], w) for name, w in expected.items())


def test_no_source() -> None:
    with pytest.raises(ModelFileError, match="a path, bytes, a ModelProto"):
        prune(3, channels=0.3)


# The command line says the same

BIAS = ("--recover", "bias")

WORDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ratio": ("--channels 0.4", {"channels": 0.4}),
    "importance": ("--channels 0.4 --importance fpgm", {"importance": "fpgm"}),
    "random": ("--channels 0.4 --importance random --seed 3", {"importance": "random", "seed": 3}),
    "global": ("--channels 0.4 --allocate global --round-to 1", {"allocate": "global", "round_to": 1}),
    "globs": (
        "--channels 0.4 --ratio Conv(*=0.2 --ratio body=0.6 --ignore wide",
        {"ratio": [("Conv(*", 0.2), ("body", 0.6)], "ignore": ["wide"]},
    ),
    "only": ("--ratio body=0.6", {"channels": None, "ratio": {"body": 0.6}}),
    "targets": (
        "--channels auto --target-macs 60% --target-params 4.5k --max-ratio 0.7",
        {"channels": "auto", "target_macs": "60%", "target_params": "4.5k", "max_ratio": 0.7},
    ),
    "steps": ("--channels 0.4 --steps 3", {"steps": 3}),
    "shape": ("--channels 0.4 --input-shape x:2,3,8,8", {"input_shape": {"x": (2, 3, 8, 8)}}),
}


@pytest.mark.parametrize("name", WORDS)
def test_command_line_and_python_agree(name: str, tmp_path: Path) -> None:
    words, options = WORDS[name]
    onnx.save(three_groups(), tmp_path / "net.onnx")
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                str(tmp_path / "net.onnx"),
                *words.split(),
                *BIAS,
                "--no-latency",
                "-q",
                "--json",
                str(tmp_path / "report"),
            ]
        )
    assert exit_.value.code == 0
    result = prune(tmp_path / "net.onnx", **({"channels": 0.4} | options))
    report = result.save(tmp_path / "mine.onnx")
    assert (tmp_path / "net.pruned.onnx").read_bytes() == (tmp_path / "mine.onnx").read_bytes()
    assert report.after.parameters < report.before.parameters
    said = json.loads((tmp_path / "report").read_text())
    mine = report.to_dict()
    for key in ("model", "before", "after", "groups", "left_alone", "pinned", "notes"):
        assert said[key] == mine[key]


# Reproducible

CHOICES: dict[str, dict[str, Any]] = {
    "none": {"channels": 0.4, "recover": "none"},
    "bias": {"channels": 0.4, "recover": "bias"},
    "steps": {"channels": 0.6, "steps": 4},
    "random": {"channels": 0.4, "importance": "random", "seed": 7},
    "global": {"channels": 0.4, "allocate": "global", "round_to": 1},
    "target": {"target_macs": 0.5, "steps": 2},
}


@pytest.mark.parametrize("name", CHOICES)
def test_same_words_same_bytes(name: str) -> None:
    assert data(prune(three_groups(), **CHOICES[name])) == data(prune(three_groups(), **CHOICES[name]))


def test_another_seed_another_model() -> None:
    first, second = (prune(three_groups(), channels=0.4, importance="random", seed=s) for s in (0, 1))
    assert kept(first) == kept(second)
    assert data(first) != data(second)


@pytest.mark.parametrize("name", CHOICES)
def test_plans_replay_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    first = prune(three_groups(), **CHOICES[name])
    file = tmp_path / "plan.json"
    file.write_text(first.plan.to_json())
    replayed = prune(three_groups(), plan=file)
    assert data(replayed) == data(first)
    assert kept(replayed) == kept(first)
    assert replayed.plan.to_json() == first.plan.to_json()
    assert data(prune(three_groups(), plan=first.plan)) == data(first)


def test_plans_of_models_with_constraints_replay(tmp_path: Path) -> None:
    for name in ("shufflenet_v1", "groupnorm_detector", "mobilenet_v2"):
        proto = TOPOLOGIES[name]()
        first = prune(proto, channels=0.4)
        (tmp_path / name).write_text(first.plan.to_json())
        assert data(prune(proto, plan=tmp_path / name)) == data(first)


def edited(**changes: Any) -> str:
    plan = json.loads(prune(three_groups(), channels=0.4).plan.to_json())
    for path, value in changes.items():
        at = plan
        *outer, last = path.split("__")
        for key in outer:
            at = at[{"stem": STEM}.get(key, key)]
        at[last] = value
    return json.dumps(plan)


BAD_PLANS: dict[str, tuple[Callable[[], str], str]] = {
    "not JSON": (lambda: "plan: yes", "not a plan that onnxprune --save-plan wrote"),
    "empty": (lambda: "", "not a plan"),
    "a list": (lambda: "[1, 2]", "not a plan"),
    "nested without end": (lambda: "[" * 100_000, "not a plan"),
    "a report": (lambda: '{"groups": [{"name": "a"}]}', "not a plan"),
    "groups as list": (lambda: edited(groups=[1]), "not a plan"),
    "no recovery": (lambda: edited().replace('"recover"', '"recovery"'), "not a plan"),
    "settings": (lambda: edited(settings=3), "not a plan"),
    "version": (lambda: edited(onnxprune_plan=2), "plan version 2"),
    "recovery": (lambda: edited(recover="magic"), "recovery 'magic'"),
    "size": (lambda: edited(groups__stem__size=17), "has 17 units in the plan, the model has 16 units"),
    "infinite size": (lambda: edited(groups__stem__size=float("inf")), "not a plan"),
    "twice": (lambda: edited(groups__stem__kept=[1, 1, 2]), "must keep 1 to 16 different units in 0..15"),
    "too large": (lambda: edited(groups__stem__kept=[1, 16]), "must keep 1 to 16 different units in 0..15"),
    "negative": (lambda: edited(groups__stem__kept=[-1, 3]), "must keep 1 to 16 different units in 0..15"),
    "none": (lambda: edited(groups__stem__kept=[]), "must keep 1 to 16 different units in 0..15"),
    "fractions": (lambda: edited(groups__stem__kept=[0.5, 3]), "not a plan"),
    "words": (lambda: edited(groups__stem__kept=["0"]), "not a plan"),
    "other model": (lambda: edited().replace(STEM, "Conv(other)"), "the model has no such group"),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_bad_plans(name: str, tmp_path: Path) -> None:
    make, words = BAD_PLANS[name]
    (tmp_path / "plan.json").write_text(make())
    with pytest.raises(OptionError) as caught:
        prune(three_groups(), plan=tmp_path / "plan.json")
    assert words in str(caught.value)
    assert str(tmp_path / "plan.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_uneven_over_blocks(tmp_path: Path) -> None:
    proto = TOPOLOGIES["resnext"]()
    plan = prune(proto, channels=0.4).plan
    name = next(g.name for g in onnxprune.analyze(proto).of_kind("channels") if g.blocks)
    keep = np.ones(len(plan.keep[name]), bool)
    keep[0] = False
    (tmp_path / "plan.json").write_text(Plan({name: keep}, "none").to_json())
    with pytest.raises(OptionError, match="must keep the same number of units in every block"):
        prune(proto, plan=tmp_path / "plan.json")


# As small as asked for


def test_a_ratio_is_taken_from_every_group() -> None:
    assert kept(prune(three_groups(), channels=0.25)) == {STEM: 12, BODY: 24, WIDE: 16}
    assert kept(prune(three_groups(), channels=0.5, round_to=1)) == {STEM: 8, BODY: 16, WIDE: 12}
    assert kept(prune(three_groups(), channels=0.5, max_ratio=0.25)) == {STEM: 12, BODY: 24, WIDE: 20}
    assert kept(prune(three_groups(), ratio={"body": 0.5})) == {STEM: 16, BODY: 16, WIDE: 24}
    assert kept(prune(three_groups(), channels=0.5, ignore=["stem", WIDE])) == {STEM: 16, BODY: 16, WIDE: 24}
    whole = prune(three_groups(), channels=0.0)
    assert kept(whole) == {STEM: 16, BODY: 32, WIDE: 24}
    assert data(whole) == data(prune(three_groups(), plan=whole.plan))


def test_global_takes_the_fraction_of_all_units() -> None:
    found = kept(prune(three_groups(), channels=0.25, allocate="global", round_to=1))
    assert sum(found.values()) == 72 - 18
    assert found != {STEM: 12, BODY: 24, WIDE: 18}


@pytest.mark.parametrize("allocate", ["uniform", "global"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("target", "macs", "params"),
    [
        ({"target_macs": 0.6}, 0.6, 1.0),
        ({"target_macs": "40%"}, 0.4, 1.0),
        ({"target_macs": "0.05M"}, 50e3, 1.0),
        ({"target_params": 0.5}, 1.0, 0.5),
        ({"target_params": "3K"}, 1.0, 3e3),
        ({"target_params": 3000}, 1.0, 3e3),
        ({"target_macs": 0.7, "target_params": 0.3}, 0.7, 0.3),
        ({"target_macs": 0.3, "target_params": 0.7}, 0.3, 0.7),
    ],
)
def test_targets_hold(target: Any, macs: float, params: float, steps: int, allocate: str) -> None:
    """In the model, counted again, and the search does not overshoot by more than a few units."""
    whole = count(three_groups())
    result = prune(three_groups(), steps=steps, allocate=allocate, round_to=1, verify=steps == 1, **target)
    found = count(proto_of(result))
    limits = [limit if limit > 1 else limit * total for limit, total in zip((params, macs), whole, strict=True)]
    assert all(x <= limit for x, limit in zip(found, limits, strict=True))
    assert max(x / limit for x, limit in zip(found, limits, strict=True)) > 0.85


@pytest.mark.parametrize("options", [{"allocate": "global"}, {"target_macs": 0.9}])
def test_a_ratio_above_the_default_of_the_most_is_taken(options: dict[str, Any]) -> None:
    found = kept(prune(three_groups(), channels=0.9, round_to=1, **options))
    assert sum(found.values()) <= 0.1 * 72 + len(found)  # every group keeps whole units


def test_a_target_that_holds_already_changes_nothing() -> None:
    assert kept(prune(three_groups(), target_macs=1.0)) == {STEM: 16, BODY: 32, WIDE: 24}


def test_a_fixed_ratio_comes_before_a_target() -> None:
    fixed = {"channels": 0.25, "round_to": 1}
    ratio = count(proto_of(prune(three_groups(), **fixed)))[1]
    weak = prune(three_groups(), target_macs=0.9, **fixed)
    assert kept(weak) == {STEM: 12, BODY: 24, WIDE: 18}  # more than the target needs
    strong = prune(three_groups(), target_macs=0.3, **fixed)
    assert count(proto_of(strong))[1] <= 0.3 * count(three_groups())[1] < ratio
    assert all(n <= m for n, m in zip(kept(strong).values(), (12, 24, 18), strict=True))


def test_groups_with_their_own_ratio_keep_it_under_a_target() -> None:
    result = prune(three_groups(), ratio={"stem": 0.25}, ignore=["wide"], target_macs=0.5, round_to=1)
    found = kept(result)
    assert (found[STEM], found[WIDE]) == (12, 24)
    assert found[BODY] < 32
    assert count(proto_of(result))[1] <= 0.5 * count(three_groups())[1]


def test_targets_out_of_reach() -> None:
    with pytest.raises(OptionError, match=r"target_macs=0.01 cannot be reached by channels.*max_ratio=0.8.*% of macs"):
        prune(three_groups(), target_macs=0.01)
    with pytest.raises(OptionError, match="cannot be reached"):
        prune(three_groups(), target_macs=0.5, ignore=[STEM, BODY])


@pytest.mark.parametrize("text", ["0", "-0.5", "120%", "1.2G", "abc", "", "%", "M", "nan", "inf"])
def test_targets_that_make_no_sense(text: str) -> None:
    with pytest.raises(OptionError, match="target_macs"):
        prune(three_groups(), target_macs=text)


def test_parse_target() -> None:
    words: list[float | str] = ["0.7", 0.7, "70%", "300M", "1.2G", "300m", "5k", 12345, "1", " 50% ", "1.5B"]
    found = [limit_of("macs", word, 2e9) for word in words]
    assert found == pytest.approx([1.4e9, 1.4e9, 1.4e9, 3e8, 1.2e9, 3e8, 5e3, 12345, 2e9, 1e9, 1.5e9])


def test_steps_score_again() -> None:
    """As many units go, but others: what a layer no longer reads does not count the second time."""
    once, often = (prune(three_groups(), channels=0.5, round_to=1, importance="l1", steps=n) for n in (1, 4))
    assert kept(once) == kept(often)
    assert any((once.plan.keep[n] != often.plan.keep[n]).any() for n in (BODY, WIDE))
    assert (once.plan.keep[STEM] == often.plan.keep[STEM]).all()  # it reads the image
    assert often.plan.settings["steps"] == 4


def test_what_went_in_a_step_does_not_come_back() -> None:
    """The second unit of `body` is the weakest, until the first of `stem` is gone and takes two others with it."""
    stem = np.diag([0.1, 5, 6, 7]) + 0.01
    body = np.array([[10, 0, 0, 0], [0, 1, 0, 0], [9, 0, 0, 0], [0, 20, 0, 0]]) + 0.01  # all units are read
    nodes = "h = Gemm<transB = 1>(x, stem) r = Relu(h) k = Gemm<transB = 1>(r, body) t = Relu(k) y = Gemm(t, head)"
    proto = build(nodes, "float[n,4]", "float[n,2]", stem=stem, body=body, head=normal(4, 2))
    plan = prune(proto, channels=0.5, steps=2, round_to=1, importance="l1").plan
    assert not plan.keep["Gemm(h)"][0]
    assert not plan.keep["Gemm(k)"][1]
    assert plan.keep["Gemm(k)"].sum() == 2


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to do: say how much with channels=0.3"),
        ({"channels": 1.0}, "channels=1: expected a fraction in [0, 1)"),
        ({"channels": -0.1}, "channels=-0.1: expected a fraction"),
        ({"channels": float("nan")}, "channels=nan: expected a fraction"),
        ({"channels": "auto"}, "channels='auto' needs a target"),
        ({"channels": 0.3, "importance": "magic"}, "importance='magic': unknown; choose one of"),
        ({"channels": 0.3, "allocate": "magic"}, "allocate='magic': unknown; choose one of uniform, global"),
        (
            {"channels": 0.3, "recover": "magic"},
            "recover='magic': unknown; choose one of least-squares, mean-std, batchnorm, bias, none",
        ),
        ({"channels": 0.3, "round_to": 0}, "round_to=0: expected a whole number, 1"),
        ({"channels": 0.3, "steps": 0}, "steps=0: expected a whole number from 1 to 1000"),
        ({"channels": 0.3, "max_ratio": 0.0}, "max_ratio=0: expected a fraction in (0, 1)"),
        ({"channels": 0.3, "max_ratio": 1.0}, "max_ratio=1: expected a fraction in (0, 1)"),
        ({"channels": 0.3, "ratio": {"nothing": 0.3}}, "ratio='nothing' matches no group"),
        ({"channels": 0.3, "ignore": ["nothing"]}, "ignore='nothing' matches no group"),
        ({"channels": 0.3, "input_shape": {"z": (1,)}}, "input_shape='z': no such input; the model has x"),
        ({"channels": 0.3, "input_shape": {"x": (1, 3, 8)}}, "input_shape={'x': (1, 3, 8)} does not fit the model's n"),
        ({"channels": 0.3, "input_shape": {"x": (1, 4, 8, 8)}}, "does not fit the model's n,3,8,8"),
        ({"channels": 0.3, "seed": -1}, "seed=-1: expected"),
        ({"channels": 0.3, "threads": -1}, "threads=-1: expected"),
        ({"channels": 0.3, "plan": Plan({}, "none")}, "has no effect: plan replays what was chosen before"),
        ({"plan": "no/such/plan"}, "plan='no/such/plan': cannot be read (No such file or directory)"),
    ],
)
def test_refused_options(options: dict[str, Any], words: str) -> None:
    proto = three_groups()
    with pytest.raises(OptionError) as caught:
        prune(proto, **options)
    assert words in str(caught.value)


def test_nothing_to_prune_names_what_pins() -> None:
    with pytest.raises(NothingToPrune, match=r"nothing can be pruned: .* by Softmax .*mixed by Softmax"):
        prune(TOPOLOGIES["nothing_single_gemm"](), channels=0.3)
    with pytest.raises(NothingToPrune, match=r"nothing can be pruned: .*axis of the graph output"):
        prune(TOPOLOGIES["nothing_hidden_is_output"](), channels=0.3)
    with pytest.raises(NothingToPrune, match="nothing can be pruned: it has no weights"):
        prune(TOPOLOGIES["nothing_stored"](), channels=0.3)
    square = build("h = MatMul(x, w) y = MatMul(h, v)", "float[n,n]", "float[n,3]", w=normal(6, 16), v=normal(16, 3))
    with pytest.raises(NothingToPrune, match=r"with x:1,1: MatMul\(h\): .*Incompatible.*give input_shape"):
        prune(square, channels=0.3)
    assert prune(square, channels=0.3, input_shape={"x": (6, 6)}).model is not None


def only_hidden() -> ModelProto:
    """A stream under LayerNormalization."""
    nodes = "h = MatMul(x, w) n = LayerNormalization(h, g, b) y = MatMul(n, v)"
    return build(nodes, "float[n,5,6]", "float[n,5,3]", w=normal(6, 16), g=normal(16), b=normal(16), v=normal(16, 3))


def test_other_kinds_are_left_alone_not_pinned() -> None:
    with pytest.raises(NothingToPrune, match="no group of kind channels; there are 1 of kind hidden"):
        prune(only_hidden(), channels=0.3)
    report = prune(ROOT / "models" / "digits_vit.onnx", channels=0.3, verify=False).report
    assert report.left_alone == {"hidden": 1, "heads": 4, "head_dim": 4, "layers": 8}
    assert {g.kind for g in report.groups} == {"channels"}
    assert [p.tensor for p in report.pinned] == ["head.weight"]


# What is reported


@pytest.mark.parametrize("name", ["net", *FIXED, "resnext", "unet", "mobilenet_v2", "densenet"])
def test_the_report_is_what_the_file_holds(name: str, tmp_path: Path) -> None:
    source = (
        three_groups() if name == "net" else ROOT / "models" / f"{name}.onnx" if name in MODELS else TOPOLOGIES[name]()
    )
    before = count(source if isinstance(source, ModelProto) else onnx.load(source))
    result = prune(source, channels=0.4, recover="none")
    report = result.save(tmp_path / "out.onnx")
    assert (report.before.parameters, report.before.macs) == before
    assert (report.after.parameters, report.after.macs) == count(onnx.load(tmp_path / "out.onnx"))
    assert report.after.bytes == (tmp_path / "out.onnx").stat().st_size
    assert report.output == str(tmp_path / "out.onnx")
    assert result.report.output == ""
    for group in report.groups:
        assert group.kept == (result.plan.keep[group.name].sum() if group.name in result.plan.keep else group.size)
    again = prune(tmp_path / "out.onnx", channels=0.0, verify=False).report
    assert (again.before.parameters, again.before.macs) == (report.after.parameters, report.after.macs)


def test_biases_that_compensation_adds_are_counted() -> None:
    nodes = "h = Conv(x, w, b) r = Relu(h) y = Conv(r, v)"
    proto = build(nodes, w=normal(16, 3, 3, 3) / 100, b=np.abs(normal(16)), v=normal(2, 16, 3, 3))
    result = prune(proto, channels=0.5)
    assert len(proto_of(result).graph.node[-1].input) == 3  # after the Constant that holds its bias
    assert (result.report.after.parameters, result.report.after.macs) == count(proto_of(result))


def test_bytes_with_external_data(tmp_path: Path) -> None:
    onnx.save(three_groups(), tmp_path / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)
    (tmp_path / "out").mkdir()
    report = prune(tmp_path / "net.onnx", channels=0.4).save(tmp_path / "out" / "net.onnx")
    held = sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert report.after.bytes is not None
    assert abs(report.after.bytes - held) <= 0.1 * held + 3 * 4096  # tensors start on pages


def test_an_input_shape_counts() -> None:
    proto = three_groups("float[n,3,h,w]")
    small, large = (
        prune(proto, channels=0.3, input_shape={"x": (1, 3, n, n)}, verify=False).report.before.macs for n in (8, 16)
    )
    dense = 32 * 24 + 24 * 10
    assert large - dense == 4 * (small - dense)


def test_a_dry_run_chooses_the_same_and_makes_nothing() -> None:
    dry, wet = (prune(three_groups(), channels=0.4, dry_run=d) for d in (True, False))
    assert dry.plan.to_json() == wet.plan.to_json()
    assert dry.model is None
    assert (dry.report.after.parameters, dry.report.after.macs) == (
        wet.report.after.parameters,
        wet.report.after.macs,
    )
    assert dry.report.after.bytes is None
    assert dry.report.verification is None
    with pytest.raises(OptionError, match="a dry run has no model to save"):
        dry.save("never")


def test_measurement_and_progress() -> None:
    stages: list[str] = []

    def progress(stage: str, *_: Any, **__: Any) -> None:
        stages.append(stage)

    report = onnxprune.prune(
        three_groups(), channels=0.4, threads=1, input_shape={"x": (1, 3, 8, 8)}, recover="bias", progress=progress
    ).report
    assert stages == ["load", "analyze", "plan", "cut", "verify", "recover", "measure"]
    assert set(report.seconds) == set(stages)
    for cost in (report.before, report.after):
        assert cost.latency is not None
        assert 0 < cost.latency.fastest <= cost.latency.median < 1
        assert cost.latency.threads == 1
    assert report.verification is not None
    assert report.verification.error <= report.verification.tolerance
    assert report.verification.runs == 2  # a dynamic batch is tried with two samples
    unverified = prune(three_groups(), channels=0.4, verify=False).report
    assert unverified.verification is None
    assert unverified.after.latency is None


def test_what_is_no_weight_stays_as_it_is() -> None:
    proto = three_groups()
    proto.ir_version = 8
    proto.opset_import.append(helper.make_opsetid("com.example", 3))
    proto.producer_name, proto.producer_version, proto.domain, proto.model_version = "exporter", "1.2", "org.example", 7
    proto.doc_string, proto.graph.doc_string, proto.graph.name = "what it is", "its graph", "main"
    proto.metadata_props.add(key="labels", value="cat,dog")
    proto.graph.node[0].doc_string = "the stem"
    proto.graph.input[0].doc_string = "an image"
    found = proto_of(prune(proto, channels=0.4))
    for field in ("ir_version", "opset_import", "domain", "model_version", "doc_string"):
        assert getattr(found, field) == getattr(proto, field), field
    assert (found.producer_name, found.producer_version) == ("onnxprune", onnxprune.__version__)
    said = {p.key: p.value for p in found.metadata_props}
    assert said["labels"] == "cat,dog"
    assert said["onnxprune.producer"] == "exporter 1.2"
    assert json.loads(said["onnxprune.pruning"])["asked"] == {"channels": 0.4, "recover": "bias"}
    assert found.graph.name == "main"
    assert found.graph.doc_string == "its graph"
    assert list(found.graph.input) == list(proto.graph.input)
    assert list(found.graph.output) == list(proto.graph.output)
    assert [(n.op_type, n.doc_string) for n in found.graph.node] == [
        (n.op_type, n.doc_string) for n in proto.graph.node
    ]


def test_a_float64_model_is_verified_in_float32() -> None:
    proto = build("h = Conv(x, w, b) r = Relu(h) y = Conv(r, v)", "double[n,3,8,8]", "double[n,2,h,w]")
    weights = {"w": normal(16, 3, 3, 3), "b": normal(16), "v": normal(2, 16, 3, 3)}
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    result = prune(proto, channels=0.5)
    verification = result.report.verification
    assert verification is not None
    assert any("verified on a float32 copy" in note for note in verification.notes)
    assert verification.error <= verification.tolerance
    pruned = {t.name: numpy_helper.to_array(t) for t in proto_of(result).graph.initializer}
    assert pruned["w"].shape == (8, 3, 3, 3)
    assert {w.dtype for w in pruned.values()} == {np.dtype(np.float64)}
    kept_rows = weights["w"][result.plan.keep["Conv(h)"]]
    assert np.array_equal(pruned["w"], kept_rows)  # not a bit lost


# The trained models of this repository


@cache
def trained(name: str, ratio: float) -> Result:
    return prune(ROOT / "models" / f"{name}.onnx", channels=ratio)


@pytest.mark.parametrize("name", MODELS)
def test_trained_models(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.pruned.onnx"
    report = trained(name, 0.3).save(path)
    onnx.checker.check_model(path, full_check=True)
    assert report.verification is not None
    assert report.verification.error <= 1e-4
    assert report.before.bytes == (ROOT / "models" / f"{name}.onnx").stat().st_size
    assert report.after.bytes == path.stat().st_size < 0.9 * report.before.bytes
    assert report.after.macs < 0.9 * report.before.macs
    assert sum(g.kept < g.size for g in report.groups) == len(report.groups) >= 2
    assert 0 <= score.score(path) <= 1


LEAST = {  # of held-out accuracy with a tenth of the channels removed and no training; all started above .93
    "digits_mlp": 0.98,
    "digits_gru": 0.95,
    "digits_vit": 0.95,
    "digits_resnet_bn": 0.85,
    "digits_resnet_folded": 0.85,
    "digits_unet": 0.8,
}


@pytest.mark.parametrize("name", LEAST)
def test_a_light_cut_leaves_a_model_that_works(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.pruned.onnx"
    trained(name, 0.1).save(path)
    assert score.score(path) >= LEAST[name]


# Real models for development

QUICK = [
    "deeplabv3_mnv2_dm05_voc", "espcn_subpixel", "fused_resnet20_ort_extended", "g2p_encoder_gru",
    "mlptiny_ad01_autoencoder", "mlptiny_kws_dscnn", "mlptiny_resnet8_cifar10_qdq", "mnist_cnn_cntk",
    "mobilenetv1_025_128_imagenet", "squeezenet10_imagenet_fp16", "xfeat_256", "yunet_n_dynamic",
]  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_development_models(name: str, shared: Path) -> None:
    path = shared / "models" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"../shared lacks {name}")
    report = prune(path, channels=0.3).report
    assert report.verification is not None
    assert report.verification.error <= report.verification.tolerance
    assert report.after.parameters < 0.9 * report.before.parameters
    assert report.after.macs < 0.95 * report.before.macs
