"""What is promised of every report, function and option, beyond a single module."""

from __future__ import annotations

import ast
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state

import onnxprune
from criteria import ROWS
from models.nets import build, normal
from models.small import mlp
from onnxprune.errors import InternalError, OptionError
from onnxprune.pipeline.options import OPTIONS
from onnxprune.pipeline.recipe import run

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "onnxprune"
MODELS = ROOT / "models"
MLP, LABELLED = MODELS / "digits_mlp.onnx", MODELS / "digits_mlp.npz"
DIGITS, HELD_OUT = MODELS / "digits_resnet_bn.onnx", MODELS / "digits_heldout.npz"
CALIBRATION = MODELS / "digits_calibration.npz"
tiny = partial(mlp, 12, 16, 16, 4, seed=1)
BRIEF: dict[str, Any] = {"measure": False, "threads": 1}
MOST_LINES, MOST_PARAMETERS = 120, 15


def functions() -> list[tuple[str, int, int]]:
    """Every function of the package outside the kernels: where, lines, parameters."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] == "kernels":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                a = node.args
                count = len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs) + bool(a.vararg) + bool(a.kwarg)
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                found.append((f"{path.relative_to(ROOT)}:{node.name}", lines, count))
    return found


def test_functions_are_read_at_a_glance() -> None:
    found = functions()
    assert len(found) > 500
    long = [f"{where}: {lines} lines" for where, lines, _ in found if lines > MOST_LINES]
    wide = [f"{where}: {count} parameters" for where, _, count in found if count > MOST_PARAMETERS]
    assert not long and not wide, long + wide
    recipe = next(lines for where, lines, _ in found if where == "onnxprune/pipeline/recipe.py:run")
    assert recipe <= 60


def test_how_an_option_is_declared_imports_nothing_of_ours() -> None:
    tree = ast.parse((PACKAGE / "options.py").read_text(encoding="utf-8"))
    names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert not [n for n in names if n.startswith("onnxprune")]


# What the report says was measured on the file


def accuracy(path: Path, source: Path) -> float:
    """Of the file, by nothing of ours but the library of operators."""
    data = dict(np.load(source))
    labels = data.pop("labels")
    session = onnxprune.session(path)
    name = session.get_inputs()[0].name
    x = next(v for v in data.values() if v.ndim > 1)
    scores = np.concatenate([session.run(None, {name: part})[0] for part in np.array_split(x, 10)])
    return float((scores.reshape(len(labels), -1).argmax(1) == labels).mean())


WRITTEN: dict[str, dict[str, Any]] = {
    "channels": {"channels": 0.3, "recover": "none"},
    "csr": {"sparsity": 0.6, "format": "csr"},
    "nm": {"pattern": "2:4", "format": "nm", "values": "int8", "permute": False},
    "quality": {"quality": 0.8, "format": "dense"},
    "columns": {"pattern": "column", "sparsity": 0.3},
    "cluster": {"cluster": 6},
    "zeros and clusters": {"sparsity": 0.5, "cluster": 16},
    "all": {"channels": 0.25, "sparsity": 0.5, "cluster": 16},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_figures_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    result = onnxprune.prune(MLP, evaluate=LABELLED, **BRIEF, **WRITTEN[name])
    report = result.save(tmp_path / "out.onnx")
    assert report.evaluation is not None
    assert report.evaluation.before == pytest.approx(accuracy(MLP, LABELLED))
    assert report.evaluation.after == pytest.approx(accuracy(tmp_path / "out.onnx", LABELLED))
    assert result.report.after.bytes == report.after.bytes == (tmp_path / "out.onnx").stat().st_size
    if report.sparsity is not None:
        dense = onnxprune.to_proto(onnxprune.densify(onnxprune.load(tmp_path / "out.onnx")))
        left = not_zero(dense, [x.weight for x in report.sparsity.layers])
        assert report.sparsity.zeros == report.sparsity.size - left


def not_zero(proto: onnx.ModelProto, names: list[str]) -> int:
    """Entries of the weights, as onnxruntime computes them, that are not zero."""
    probed = onnx.ModelProto()
    probed.CopyFrom(proto)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    made = {o for n in proto.graph.node for o in n.output}
    computed = [n for n in dict.fromkeys(names) if n not in stored and n in made]
    for name in computed:
        probed.graph.output.add(name=name)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {i.name: np.zeros([1, *i.shape[1:]], np.float32) for i in session.get_inputs()}
    stored |= dict(zip(computed, session.run(computed, feeds), strict=True)) if computed else {}
    return sum(int(np.count_nonzero(stored[n])) for n in dict.fromkeys(names))


BOUNDED: dict[str, dict[str, Any]] = {
    "sparsity": {"sparsity": 0.3, "format": "csr"},
    "pattern": {"pattern": "2:4", "format": "nm", "permute": False},
    "quality": {"quality": 0.3, "format": "dense"},
    "cluster": {"cluster": 32},
    "values": {"sparsity": 0.3, "format": "csr", "values": "int8"},
    "with channels": {"channels": "auto", "sparsity": 0.3, "format": "csr"},
    "channels alone": {},
}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_bound_holds_for_the_model_that_is_written(name: str, tmp_path: Path) -> None:
    result = onnxprune.prune(MLP, max_drop=0.08, evaluate=LABELLED, recover="none", **BRIEF, **BOUNDED[name])
    result.save(tmp_path / "out.onnx")
    assert result.report.evaluation is not None and result.report.evaluation.bound is not None
    assert result.report.evaluation.bound <= 0.08
    assert accuracy(MLP, LABELLED) - accuracy(tmp_path / "out.onnx", LABELLED) <= 0.08 + 0.02
    assert result.report.after.macs < result.report.before.macs  # there was room for a cut as well


BREAKING: list[dict[str, Any]] = [
    {"sparsity": 0.9, "format": "dense"}, {"pattern": "1:8", "permute": False, "format": "dense"},
    {"quality": 2.0, "format": "dense"}, {"cluster": 2},
]  # fmt: skip


@pytest.mark.parametrize("options", BREAKING)
def test_zeros_that_break_the_bound_alone_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"alone cost .* no cut can hold it"):
        onnxprune.prune(MLP, max_drop=0.02, evaluate=LABELLED, recover="none", **BRIEF, **options)


MEASURED = {  # what only measures or compares, and how the line starts that says it failed
    "onnxprune.pipeline.prepare.measured": "the time was not estimated (",
    "onnxprune.evaluation.measure.latency": "latency not measured",
    "onnxprune.evaluation.measure.too_large": "latency not measured (",
    "onnxprune.evaluation.measure.node_times": "layers not timed (",
    "onnxprune.evaluation.fidelity.Stream": "outputs not compared with the original's (",
    "onnxprune.pipeline.recipe.drop": "the result was not scored (",
    "onnxprune.pipeline.reporting.parameters_of": "parameters counted as of the cut (",
    "onnxprune.pipeline.reporting.layers_of": "layers not counted (",
}
FAILURES = (onnxruntime_pybind11_state.Fail("no kernel"), MemoryError(), InternalError("ours"), IndexError(3))


@pytest.mark.parametrize("place", MEASURED)
def test_what_only_measures_keeps_no_file_from_being_written(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise FAILURES[list(MEASURED).index(place) % len(FAILURES)]

    monkeypatch.setattr(place, fail)
    pixels = np.load(LABELLED)["pixels"][:80]
    result = onnxprune.prune(
        MLP, channels=0.3, recover="none", importance="l2", calibration=pixels, evaluate=pixels, threads=1
    )  # fmt: skip
    report = result.save(tmp_path / "out.onnx")
    assert accuracy(tmp_path / "out.onnx", LABELLED) >= 0
    assert report.after.parameters < report.before.parameters
    assert sum(note.startswith(MEASURED[place]) for note in report.notes) == 1
    assert MEASURED[place] in str(report)
    ours = isinstance(FAILURES[list(MEASURED).index(place) % len(FAILURES)], (InternalError, IndexError))
    assert any("internal error" in note and "please report it" in note for note in report.notes) == ours


def test_a_function_that_fails_on_the_result_is_named() -> None:
    """Whatever it raises: what is the user's is no mistake of ours."""
    asked: list[str] = []

    def judge(path: str) -> float:
        asked.append(path)
        assert len(asked) < 2, "not this one"
        return 1.0

    report = onnxprune.prune(MLP, channels=0.3, recover="none", evaluate=judge, **BRIEF).report
    (note,) = [note for note in report.notes if note.startswith("the result was not scored (")]
    assert "--evaluate judge: the function raised AssertionError: not this one" in note and "internal" not in note


def test_what_decides_still_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check, and the score that a bound is for."""
    scores = iter([1.0, 0.9])
    with pytest.raises(OptionError, match="raised StopIteration"):
        onnxprune.prune(tiny(), max_drop=0.5, evaluate=lambda path: next(scores), recover="none", **BRIEF)

    def fail(*_: Any, **__: Any) -> None:
        raise onnxruntime_pybind11_state.Fail("no kernel")

    monkeypatch.setattr("onnxprune.structure.verify._run_pruned", fail)
    with pytest.raises(onnxruntime_pybind11_state.Fail):
        onnxprune.prune(tiny(), channels=0.5, recover="none", **BRIEF)


def test_latency_has_an_interval() -> None:
    report = onnxprune.prune(MLP, channels=0.5, recover="none", threads=1).report
    after = report.after.latency
    assert after is not None and after.interval is not None
    assert after.interval[0] <= after.ratio <= after.interval[1]
    assert "90% interval" in str(report)
    said = report.to_dict()["after"]
    assert said["latency_ratio_interval"] == after.interval


# Asked and got


def test_asked_and_got_stand_side_by_side() -> None:
    report = onnxprune.prune(MLP, channels="30%", recover="none", **BRIEF).report
    (row,) = report.got
    assert (row.option, row.asked) == ("--channels", 0.3) and row.got == pytest.approx(168 / 544)
    assert "multiples of 8" in row.why and "--round-to 1 is exact" in row.why
    exact = onnxprune.prune(MLP, channels=0.3, round_to=1, recover="none", **BRIEF).report
    assert exact.got[0].got == pytest.approx(0.3, abs=0.003) and not exact.got[0].why
    said = report.to_dict()
    assert said["schema"] == 1 and said["onnxprune"] == onnxprune.__version__
    assert said["asked"] == {"channels": 0.3, "recover": "none", "measure": False, "threads": 1}


@pytest.mark.parametrize("options", [{"channels": 0}, {"target_macs": "100%"}, {"target_params": 1}])
def test_what_changes_nothing_says_so(options: dict[str, Any]) -> None:
    report = onnxprune.prune(MLP, recover="none", **BRIEF, **options).report
    assert all(g.kept == g.size for g in report.groups)
    assert any("nothing was" in g.why for g in report.got)


def test_a_tiny_ratio_takes_the_least_there_is_and_says_so() -> None:
    report = onnxprune.prune(MLP, channels=0.0001, recover="none", **BRIEF).report
    assert sum(g.size - g.kept for g in report.groups) == 1
    assert "least that can go" in report.got[0].why
    some = onnxprune.prune(MLP, channels=0.004, round_to=1, recover="none", **BRIEF).report
    assert {g.size: g.kept for g in some.groups} == {256: 255, 192: 191, 96: 96}  # 0.4% of 96 is none


def test_the_file_names_what_was_done(tmp_path: Path) -> None:
    onnxprune.prune(MLP, channels=0.3, sparsity=0.5, format="csr", recover="none", **BRIEF).save(tmp_path / "a.onnx")
    proto = onnx.load(tmp_path / "a.onnx")
    assert (proto.producer_name, proto.producer_version) == ("onnxprune", onnxprune.__version__)
    done = json.loads({p.key: p.value for p in proto.metadata_props}["onnxprune.pruning"])
    assert done["asked"] == {"channels": 0.3, "sparsity": 0.5, "format": "csr", "recover": "none"}
    assert done["removed"] == {"channels": [168, 544]} and done["format"] == "csr"


def test_plans_belong_to_their_model(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(onnxprune.prune(MLP, channels=0.3, recover="none", **BRIEF).plan.to_json())
    other = onnx.load(MLP)
    weight = next(t for t in other.graph.initializer if len(t.dims) == 2)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
    with pytest.raises(OptionError, match=r"was made for another model .*plan_for_another_model"):
        onnxprune.prune(other, plan=path, **BRIEF)
    report = onnxprune.prune(other, plan=path, plan_for_another_model=True, **BRIEF).report
    assert any("was made for another model" in note for note in report.notes)
    old = json.loads(path.read_text())
    del old["model"]
    path.write_text(json.dumps(old))
    assert any("version 0.5" in note for note in onnxprune.prune(MLP, plan=path, **BRIEF).report.notes)


# Steps


@pytest.mark.parametrize("importance", ROWS)
def test_steps_work_with_every_importance(importance: str) -> None:
    options: dict[str, Any] = {"importance": importance, "calibration": {"x": normal(80, 12, seed=5).astype("f")}}
    once, often = (onnxprune.prune(tiny(), channels=0.5, round_to=1, steps=n, **options, **BRIEF) for n in (1, 4))
    for result in (once, often):
        assert {g.size - g.kept for g in result.report.groups} == {8}
    assert often.plan.settings["steps"] == 4
    again = onnxprune.prune(tiny(), plan=often.plan, calibration=options["calibration"], **BRIEF)
    assert onnxprune.to_proto(again.model) == onnxprune.to_proto(often.model)


def test_steps_of_a_target_by_levels() -> None:
    data = {"x": normal(80, 12, seed=5).astype("f")}
    found = onnxprune.prune(tiny(), target_macs=0.5, steps=3, round_to=1, calibration=data, **BRIEF)
    assert 0.4 < found.report.after.macs / found.report.before.macs <= 0.5


# Python as people use it


def test_functions_and_scores_of_the_caller() -> None:
    seen: list[str] = []

    def score(path: str) -> float:
        seen.append(path)
        return float(Path(path).stat().st_size)

    last = onnxprune.prune(
        tiny(), channels=0.5, round_to=1, recover="none", importance=lambda g: np.arange(g.size), evaluate=score,
        **BRIEF,
    )  # fmt: skip
    assert all(kept[-8:].all() and not kept[:8].any() for kept in last.plan.keep.values())
    assert last.report.evaluation is not None and last.report.evaluation.before > last.report.evaluation.after
    assert len(seen) == 2
    scores = {name: -np.arange(len(kept)) for name, kept in last.plan.keep.items()}
    first = onnxprune.prune(tiny(), channels=0.5, round_to=1, recover="none", scores=scores, **BRIEF)
    assert all(kept[:8].all() and not kept[8:].any() for kept in first.plan.keep.values())


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({}, "there are no scores for group"),
        ({"MatMul(h)": np.ones(3)}, "expected 16 numbers"),
        ({"MatMul(h)": np.full(16, np.nan), "MatMul(k)": np.ones(16)}, "hold NaN"),
        ({"MatMul(h)": np.ones(16), "MatMul(k)": np.ones(16), "other": np.ones(2)}, "is no group of the model"),
    ],
)
def test_scores_that_do_not_fit(scores: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        onnxprune.prune(tiny(), channels=0.5, recover="none", scores=scores, **BRIEF)


def test_a_result_shows_itself() -> None:
    result = onnxprune.prune(tiny(), channels=0.5, recover="none", **BRIEF)
    assert "parameters" in str(result) and "MACs per run" in str(result)
    assert "<h1>" in result._repr_html_() and "Parameters" in result._repr_html_()


def test_a_graph_in_gives_a_graph_out() -> None:
    result = onnxprune.prune(gs.import_onnx(tiny()), channels=0.5, recover="none", **BRIEF)
    assert isinstance(result.model, gs.Graph)
    x = normal(2, 12).astype("f")
    again = onnxprune.prune(tiny(), plan=result.plan, **BRIEF)
    a, b = (
        ort.InferenceSession(p.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for p in (gs.export_onnx(result.model), onnxprune.to_proto(again.model))
    )
    assert np.allclose(a, b, rtol=1e-5)


def test_messages_are_in_the_words_of_the_caller() -> None:
    with pytest.raises(OptionError, match=r"^channels=30: expected a fraction in \[0, 1\)"):
        onnxprune.prune(tiny(), channels=30)
    with pytest.raises(TypeError, match="no option 'chanels'; did you mean channels"):
        onnxprune.prune(tiny(), chanels=0.3)  # type: ignore[call-arg]
    names = {o.name for o in OPTIONS}
    assert {"channels", "calibration", "max_drop", "plan"} <= names and callable(run)


# Found in a review


def test_scores_come_from_a_file_too(tmp_path: Path) -> None:
    names: dict[str, Any] = {g.name: np.arange(g.size) for g in onnxprune.analyze(tiny()).groups}
    np.savez(tmp_path / "scores.npz", **names)
    result = onnxprune.prune(tiny(), channels=0.5, round_to=1, recover="none", scores=tmp_path / "scores.npz", **BRIEF)
    assert all(kept[-8:].all() for kept in result.plan.keep.values())
    with pytest.raises(OptionError, match=r"scores=.*absent"):
        onnxprune.prune(tiny(), channels=0.5, recover="none", scores=tmp_path / "absent.npz", **BRIEF)


SEARCHES: dict[str, dict[str, Any]] = {
    "dry run": {"dry_run": True},
    "fixed channels stay": {"channels": 0.2, "sparsity": 0.2, "format": "dense"},
    "fixed channels by data": {"channels": 0.2, "calibration": str(LABELLED), "samples": 64},
    "a target as well": {"target_macs": 0.9, "sparsity": 0.2, "format": "dense"},
}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_keep_to_what_was_asked(name: str) -> None:
    options = {"recover": "none", **SEARCHES[name]}
    result = onnxprune.prune(MLP, max_drop=0.1, evaluate=LABELLED, **BRIEF, **options)
    assert result.report.after.macs < result.report.before.macs
    assert (result.model is None) == (name == "dry run")
    if "channels" in options:
        assert next(g.got for g in result.report.got if g.option == "--channels") >= 0.19
    assert any(g.option == "--max-drop" and g.got <= 0.1 for g in result.report.got)


def test_zeros_that_break_the_bound_are_told_from_targets() -> None:
    with pytest.raises(OptionError, match="alone cost"):
        onnxprune.prune(MLP, sparsity=0.97, format="dense", target_macs=0.9, max_drop=0.02, evaluate=LABELLED,
                        recover="none", **BRIEF)  # fmt: skip


def test_parameters_of_fewer_blocks_with_codebooks() -> None:
    vit = MODELS / "digits_vit.onnx"
    options: dict[str, Any] = {"layers": 0.3, "recover": "none", "verify": False, **BRIEF}
    plain, books = (onnxprune.prune(vit, **options, cluster=k) for k in (None, 16))
    assert plain.report.after.parameters == books.report.after.parameters


def test_plans_say_what_they_were_replayed_with(tmp_path: Path) -> None:
    data = {"pixels": np.load(LABELLED)["pixels"]}
    first = onnxprune.prune(MLP, channels=0.3, recover="none", cluster=8, calibration=data, samples=64, **BRIEF)
    again = onnxprune.prune(MLP, plan=first.plan, **BRIEF)
    assert any("the plan was made with" in note for note in again.report.notes)
    same = onnxprune.prune(MLP, plan=first.plan, calibration=data, **BRIEF)
    assert onnxprune.to_proto(same.model) == onnxprune.to_proto(first.model)


def test_a_plan_for_another_model_belongs_to_it_from_then_on() -> None:
    plan = onnxprune.prune(MLP, channels=0.3, recover="none", **BRIEF).plan
    other = onnx.load(MLP)
    weight = next(t for t in other.graph.initializer if len(t.dims) == 2)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
    forced = onnxprune.prune(other, plan=plan, plan_for_another_model=True, **BRIEF)
    onnxprune.prune(other, plan=forced.plan, **BRIEF)
    with pytest.raises(OptionError, match="has no effect"):
        onnxprune.prune(other, plan=forced.plan, plan_for_another_model=True, **BRIEF)
    with pytest.raises(OptionError, match="no such group"):
        onnxprune.prune(MODELS / "digits_vit.onnx", plan=plan, plan_for_another_model=True, **BRIEF)
    for wrong in (5, "no/plan.json"):
        with pytest.raises(OptionError, match="plan"):
            onnxprune.prune(MLP, plan=wrong, **BRIEF)


def test_a_cache_that_would_stay_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cache"):
        onnxprune.prune(MLP, target_macs=0.7, calibration="synthetic", samples=64, cache=tmp_path / "c", **BRIEF)


def test_causes_are_those_that_hold() -> None:
    third = onnx.load(MLP)
    for t in third.graph.initializer:
        if len(t.dims) == 2:
            w = onnx.numpy_helper.to_array(t).copy()
            w[np.abs(w) < np.quantile(np.abs(w), 0.3)] = 0
            t.CopyFrom(onnx.numpy_helper.from_array(w, t.name))
    report = onnxprune.prune(third, sparsity=0.1, format="dense", **BRIEF).report
    assert "were zero already" in report.got[0].why
    both = onnxprune.prune(MLP, target_macs="90%", target_params="50%", recover="none", **BRIEF).report
    assert not any(g.why for g in both.got)
    ratio = onnxprune.prune(MLP, ratio={"*": "50%"}, recover="none", **BRIEF).report
    assert ratio.got[0].option == "--ratio" and ratio.got[0].got == pytest.approx(0.5, abs=0.02)
    assert json.dumps(
        onnxprune.prune(MLP, target_macs=float(np.float32(0.7)), recover="none", **BRIEF).report.to_dict()
    )


def test_values_of_constants_count_in_a_fingerprint() -> None:
    from onnxprune.graph.fingerprint import fingerprint

    protos = [
        build(f"c = Constant<value_float={v}>() h = Mul(x, c) y = Relu(h)", "float[n,4]", "float[n,4]")
        for v in (1.0, 2.0)
    ]
    assert len({fingerprint(onnxprune.load(p)) for p in protos}) == 2
