"""Zeros that a model has already: what is found, how it is stored, that nothing else changes; zeros that grow."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from models.nets import build, normal
from onnxprune import NothingToPrune, OptionError, Result
from onnxprune.cli.inspect import layer_table
from onnxprune.formats import auto
from onnxprune.formats.options import Store
from onnxprune.formats.patterns import BlockPattern, NMPattern
from onnxprune.graph.io import load
from onnxprune.kernels import available
from onnxprune.layers.layer import sparse_layers
from onnxprune.options import MAX_STEPS
from onnxprune.solvers.patterns import n_of_m
from onnxprune.sparsity.grow import schedule, shares, taken
from onnxprune.sparsity.options import Zeros
from onnxprune.sparsity.outcome import from_plan
from onnxprune.sparsity.present import present
from onnxprune.sparsity.spec import Spec
from onnxprune.sparsity.stage import sparsify

Array = np.ndarray[Any, np.dtype[Any]]
MODELS = Path(__file__).parent.parent / "models"
QUICK: dict[str, Any] = {"measure": False, "threads": 1}


def scattered(share: float, *shape: int, seed: int = 0) -> Array:
    """A weight of which a share is zero, anywhere."""
    w = normal(*shape, seed=seed).astype(np.float32)
    return np.where(np.random.default_rng(seed).random(shape) < share, np.float32(0), w)


def patterned(n: int, m: int, *shape: int) -> Array:
    """A weight `(out, in)` with n of every m along the inputs."""
    w = normal(*shape).astype(np.float32)
    return np.where(n_of_m(np.abs(w), n, m), w, np.float32(0))


def tiled(r: int, c: int, share: float, *shape: int) -> Array:
    """A weight `(out, in)` of which a share of the tiles is zero."""
    zero = np.random.default_rng(1).random((shape[0] // r, shape[1] // c)) < share
    return np.where(np.kron(zero, np.ones((r, c))) > 0, np.float32(0), normal(*shape).astype(np.float32))


def gemm(w: Array, **more: Any) -> onnx.ModelProto:
    """One Gemm with a weight `(out, in)`."""
    return build("y = Gemm<transB=1>(x, w)", f"float[4,{w.shape[1]}]", f"float[4,{w.shape[0]}]", w=w, **more)


def stored(result: Result) -> dict[str, tuple[str, str]]:
    """Format and pattern of every layer."""
    assert result.report.sparsity is not None
    return {x.node: (x.format, x.pattern) for x in result.report.sparsity.layers}


def same_bytes(a: Result, b: Result) -> bool:
    protos = [onnxprune.to_proto(r.model).SerializeToString(deterministic=True) for r in (a, b) if r.model is not None]
    return len(protos) == 2 and protos[0] == protos[1]


# what is found


@pytest.mark.parametrize(
    ("w", "patterns", "tiles"),
    [
        (patterned(2, 4, 64, 64), ("2:4",), ()),
        (patterned(1, 4, 64, 64), ("1:4",), ()),
        (patterned(1, 2, 64, 64), ("1:2",), ()),
        (patterned(4, 8, 64, 64), ("4:8",), ()),
        (patterned(2, 8, 64, 64), ("2:8",), ()),
        (tiled(4, 4, 0.7, 64, 64), (), ("4x4", "4x1", "1x4")),
        (tiled(8, 8, 0.8, 64, 64), (), ("8x8", "4x4", "8x1", "1x8", "4x1", "1x4")),
        (scattered(0.6, 64, 64), (), ()),
        (normal(64, 64), (), ()),
    ],
)
def test_patterns_and_tiles_of_a_layer(w: Array, patterns: tuple[str, ...], tiles: tuple[str, ...]) -> None:
    (row,) = present(load(gemm(w)))
    assert (row.rows, row.columns, row.zeros) == (*w.shape, int((w == 0).sum()))
    assert row.patterns[: len(patterns)] == patterns and bool(row.patterns) == bool(patterns)
    found = [tile for tile, _ in row.tiles]
    assert set(tiles) <= set(found)
    assert row.to_dict()["share"] == row.share == (w == 0).mean()


def test_the_order_of_a_convolution_is_that_of_patterns() -> None:
    rows = np.moveaxis(normal(32, 32, 3, 3), 1, -1).reshape(-1, 32)  # -0.0 where the mask is False
    w = np.moveaxis((rows * n_of_m(np.abs(rows), 2, 4)).reshape(32, 3, 3, 32), -1, 1).astype(np.float32)
    proto = build("y = Conv<pads=[1,1,1,1]>(x, w)", "float[1,32,5,5]", "float[1,32,5,5]", w=w)
    assert present(load(proto))[0].patterns == ("2:4",)
    assert stored(onnxprune.prune(proto, format="nm", **QUICK)) == {"y": ("nm", "2:4")}


def test_inspection_lists_layers() -> None:
    rows = [x.to_dict() for x in present(load(gemm(patterned(2, 4, 32, 32))))]
    table = layer_table([*rows, {**rows[0], "share": 0.0}])
    assert table.row_count == 1 and table.caption is not None and "1 layers" in str(table.caption)


# how it is stored


@pytest.mark.parametrize(
    ("w", "form", "kind", "most"),
    [
        (scattered(0.9, 96, 128), "csr", ("csr", ""), 0.35),
        (patterned(2, 4, 64, 64), "nm", ("nm", "2:4"), 0.8),
        (patterned(1, 4, 64, 64), "nm", ("nm", "1:4"), 0.6),
        (patterned(4, 8, 64, 64), "nm", ("nm", "4:8"), 0.8),
        (tiled(4, 4, 0.8, 64, 64), "bsr", ("bsr", "block:4x4"), 0.5),
        (tiled(8, 8, 0.8, 64, 64), "bsr", ("bsr", "block:8x8"), 0.5),
        (tiled(1, 4, 0.8, 64, 64), "bsr", ("bsr", "block:1x4"), 0.5),
        (scattered(0.9, 96, 128), "sparse-initializer", ("sparse-initializer", ""), 0.4),
    ],
)
def test_a_format_alone_stores_the_zeros_that_are_there(
    w: Array, form: str, kind: tuple[str, str], most: float, tmp_path: Path
) -> None:
    w.reshape(-1)[np.flatnonzero(w == 0)[::2]] = -0.0  # as a product with a mask leaves them
    proto = gemm(w)
    result = onnxprune.prune(proto, format=form, **QUICK)
    assert stored(result) == {"y": kind}
    result.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size <= most * len(proto.SerializeToString()) + 2500  # functions
    back = onnxprune.load(tmp_path / "out.onnx")
    back = onnxprune.densify(back) if kind[0] in ("csr", "nm", "bsr") else back
    (layer,) = sparse_layers(back)[0]
    assert layer.matrix(back.weights[layer.weight]).tobytes() == np.where(w == 0, np.float32(0), w).tobytes()
    found = result.report.sparsity
    assert found is not None and found.zeros == int((w == 0).sum()) and found.error is not None
    plan = tmp_path / "plan.json"
    plan.write_text(result.plan.to_json())
    assert same_bytes(result, onnxprune.prune(proto, plan=plan, **QUICK))


def test_layers_that_would_not_be_smaller_stay_dense_with_a_reason() -> None:
    proto = build(
        "h = MatMul(x, w) g = MatMul(h, v) y = MatMul(g, u)", "float[4,128]", "float[4,64]",
        w=scattered(0.9, 128, 96), v=scattered(0.1, 96, 96), u=normal(96, 64),
    )  # fmt: skip
    result = onnxprune.prune(proto, format="csr", **QUICK)
    assert [x[0] for x in stored(result).values()] == ["csr", "dense", "dense"]
    assert result.report.sparsity is not None
    why = [x.reason for x in result.report.sparsity.layers]
    assert why[0] == "" and "no smaller" in why[1] and why[2] == "it has no zeros"


@pytest.mark.parametrize("form", ["csr", "nm", "bsr", "sparse-initializer"])
def test_a_model_without_zeros_is_sent_to_sparsity(form: str) -> None:
    with pytest.raises(NothingToPrune, match=r"sparsity[ =]0\.8") as found:
        onnxprune.prune(gemm(normal(64, 64)), format=form, **QUICK)
    assert "\n" not in str(found.value)


def test_weights_stay_where_a_normalisation_could_be_folded() -> None:
    w = scattered(0.9, 32, 32, 3, 3)
    s = normal(32).astype(np.float32) ** 2 + 1
    nodes = "h = Conv<pads=[1,1,1,1]>(x, w) y = BatchNormalization(h, s, s, s, s)"
    result = onnxprune.prune(build(nodes, "float[1,32,6,6]", "float[1,32,6,6]", w=w, s=s), format="csr", **QUICK)
    assert result.model is not None and "BatchNormalization" in [n.op_type for n in result.model.proto.graph.node]
    assert onnxprune.densify(result.model).weights["w"].tobytes() == w.tobytes()


def test_zeros_of_a_model_that_loses_channels(tmp_path: Path) -> None:
    path = MODELS / "digits_mlp.onnx"
    sparse = onnxprune.prune(path, sparsity=0.9, format="dense", **QUICK)
    sparse.save(tmp_path / "sparse.onnx")
    result = onnxprune.prune(tmp_path / "sparse.onnx", channels=0.25, format="csr", recover="none", **QUICK)
    assert "csr" in {kind for kind, _ in stored(result).values()}
    again = onnxprune.prune(tmp_path / "sparse.onnx", plan=result.plan, **QUICK)
    assert same_bytes(result, again)


@pytest.mark.skipif(bool(available()), reason=available())
def test_auto_measures_the_forms_that_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def quickest(model: Any, formats: Any, *rest: Any, **options: Any) -> Any:
        asked.update(formats)
        return {name: ways[0] for name, ways in formats.items()}

    monkeypatch.setattr(auto, "quickest", quickest)
    monkeypatch.setattr(auto, "choose", lambda model, one, *a, **k: auto.Chosen(one, {}, 1.5, "some CPU", 1))
    proto = gemm(patterned(2, 4, 64, 64))
    result = onnxprune.prune(proto, format="auto", **QUICK)
    assert str(asked["y"][0]) == "nm 2:4" and "csr" in map(str, asked["y"])
    assert stored(result) == {"y": ("nm", "2:4")}
    monkeypatch.setattr(auto, "choose", lambda *a, **k: pytest.fail("measured"))
    assert same_bytes(result, onnxprune.prune(proto, plan=result.plan, **QUICK))


@pytest.mark.skipif(bool(available()), reason=available())
def test_auto_finds_a_format_by_itself() -> None:
    result = onnxprune.prune(gemm(scattered(0.97, 512, 512)), format="auto", **QUICK)
    found = result.report.sparsity
    assert found is not None and found.speedup is not None and found.speedup >= 1


OLD = {"solver": "admm", "pattern": "2:4", "format": "nm", "cpu": "", "threads": 0,
       "layers": {"a": {"size": 16, "zeros": 8, "format": "nm"}}}  # fmt: skip


def test_plans_of_version_5_are_read() -> None:
    plan = from_plan(OLD, "plan")
    assert plan["steps"] == 1 and plan["layers"]["a"]["pattern"] == "" and plan["values"] == "float32"


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"steps": "many"}, {"solver": "guess"}, {"layers": {"a": {"size": 16, "zeros": 8, "format": "bsr"}}},
     {"layers": {"a": {"size": 16, "zeros": 8, "format": "nm", "pattern": "block:4x4"}}},
     {"layers": {"a": {"size": 16, "zeros": 8, "format": "nm", "pattern": "4:2"}}}],
)  # fmt: skip
def test_plans_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        from_plan({**OLD, **change}, "plan")


# zeros that grow


def test_schedules_end_at_the_target() -> None:
    assert shares(4, "linear", 0.9) == (0.25, 0.5, 0.75, 1.0) and shares(2, "cubic", 0.9) == (0.875, 1.0)
    left = [1 - 0.9 * share for share in shares(3, "geometric", 0.9)]
    assert left == pytest.approx([0.1 ** (k / 3) for k in (1, 2, 3)])
    assert [c["w"] for c, _ in schedule({"w": 80}, None, 4)] == [20, 40, 60, 80]
    assert [c["w"] for c, _ in schedule({"w": 75}, None, 2, "geometric", 0.75)] == [50, 75]
    assert [str(p) for _, p in schedule({"w": 80}, NMPattern(2, 8), 3)] == ["6:8", "4:8", "2:8"]
    assert [str(p) for _, p in schedule({"w": 80}, NMPattern(2, 4), 9)] == ["3:4", "2:4"]


@pytest.mark.parametrize("goes", [1, 2, 6, 15, 250])
def test_steps_that_were_taken_are_the_same_schedule(goes: int) -> None:
    """What a plan records, replays."""
    for steps in (1, 2, 5, 6, 7, 100, MAX_STEPS):
        pattern, now = NMPattern(256 - goes, 256), taken(NMPattern(256 - goes, 256), steps)
        assert now == min(steps, goes)
        assert schedule({"w": 999}, pattern, now) == schedule({"w": 999}, pattern, steps)
    assert taken(None, 7) == taken(BlockPattern(4, 4), 7) == 7


X = normal(96, 24, seed=5).astype(np.float32)
NET = build("h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)", "float[n,24]", "float[n,16]",
            w=normal(24, 32), v=normal(32, 16, seed=1))  # fmt: skip
GROWN: list[dict[str, Any]] = [
    *({"sparsity": 0.7, "solver": s} for s in ("magnitude", "wanda", "ria", "sparsegpt", "obc", "admm")),
    *({"pattern": "2:8", "solver": s, "permute": False} for s in ("obc", "admm", "sparsegpt")),
    {"pattern": "block:4x4", "sparsity": 0.5}, {"pattern": "column", "sparsity": 0.5}, {"sparsity": 0.7, "seed": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", GROWN, ids=str)
def test_zeros_grow_to_the_same_counts(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.sparsity import solve

    passes: list[dict[str, Array]] = []
    once: Any = solve._pass

    def recorded(*rest: Any) -> Any:
        out = once(*rest)
        passes.append({x.weight: out[0].weights[x.weight] == 0 for x in sparse_layers(out[0])[0]})
        return out

    monkeypatch.setattr(solve, "_pass", recorded)
    quick = {**QUICK, "format": "dense", "calibration": {"x": X}, "sparsity_allocate": "uniform"} | options
    if "pattern" in options:
        del quick["sparsity_allocate"]
    one = onnxprune.prune(NET, **quick)
    del passes[:]
    many = onnxprune.prune(NET, steps=3, **quick)
    assert len(passes) == 3 and one.report.sparsity is not None and many.report.sparsity is not None
    for before, after in pairwise(passes):
        assert all((after[name] | ~before[name]).all() for name in before)
    assert [x.zeros for x in many.report.sparsity.layers] == [x.zeros for x in one.report.sparsity.layers]
    assert same_bytes(many, onnxprune.prune(NET, plan=many.plan, calibration={"x": X}, **QUICK))


def test_steps_without_data_are_refused() -> None:
    """Where the pipeline does not refuse it already: magnitude chooses the same weights in one step as in many."""
    with pytest.raises(OptionError, match="steps=3"):
        onnxprune.prune(NET, sparsity=0.5, steps=3, format="dense", **QUICK)
    spec = Spec(Zeros(sparsity=0.5), Store(format="dense"), steps=3)
    with pytest.raises(OptionError, match=r"^--steps 3: magnitude chooses the same"):
        spec.check(data=False)
    with pytest.raises(OptionError, match=r"^--steps 3: .*--solver admm"):
        replace(spec, zeros=Zeros(sparsity=0.5, solver="magnitude"), recover=False).check(data=True)
    spec.check(data=True)
    replace(spec, alone=False).check(data=False)


def test_zeros_after_a_cut_in_steps_without_data_take_one_step() -> None:
    spec = Spec(Zeros(sparsity=0.5), Store(format="dense"), steps=3, alone=False)
    found = sparsify(load(NET), spec, [{"x": X}])
    once = sparsify(load(NET), replace(spec, steps=1), [{"x": X}])
    (note,) = set(found.notes) - set(once.notes)
    assert found.outcome.steps == 1 and found.outcome == once.outcome
    assert note == "--steps 3: the zeros take one step: magnitude chooses the same weights"


def test_steps_are_those_that_were_taken() -> None:
    quick = {**QUICK, "format": "dense", "calibration": {"x": X}, "permute": False}
    many = onnxprune.prune(NET, pattern="2:4", steps=10, **quick)
    assert many.report.sparsity is not None and many.plan.sparsity is not None
    assert many.report.sparsity.steps == many.plan.sparsity["steps"] == 2
    assert any("the zeros take 2 steps" in note for note in many.report.notes)
    assert same_bytes(many, onnxprune.prune(NET, plan=many.plan, calibration={"x": X}, **QUICK))
    older = replace(many.plan, sparsity={**many.plan.sparsity, "steps": 10})  # as plans once said what was asked
    assert same_bytes(many, onnxprune.prune(NET, plan=older, calibration={"x": X}, **QUICK))


def test_steps_of_a_pattern_that_has_one_are_refused() -> None:
    quick = {**QUICK, "format": "dense", "calibration": {"x": X}, "pattern": "3:4"}
    with pytest.raises(OptionError, match=r"^steps=4 has no effect: pattern='3:4' is reached in one step; leave it"):
        onnxprune.prune(NET, steps=4, **quick)
    one = onnxprune.prune(NET, **quick)
    assert one.plan.sparsity is not None
    older = replace(one.plan, sparsity={**one.plan.sparsity, "steps": 4})
    assert same_bytes(one, onnxprune.prune(NET, plan=older, calibration={"x": X}, **QUICK))


def test_more_steps_than_a_plan_may_have_are_refused() -> None:
    with pytest.raises(OptionError, match="steps=1001: expected a whole number from 1 to 1000"):
        onnxprune.prune(NET, sparsity=0.5, steps=MAX_STEPS + 1, calibration={"x": X}, **QUICK)
    rows = {"a": {"size": 4, "zeros": 2, "format": "dense"}}
    plan = {"solver": "admm", "pattern": "", "format": "dense", "cpu": "", "threads": 1, "layers": rows}
    assert from_plan({**plan, "steps": MAX_STEPS}, "plan")["steps"] == MAX_STEPS
    with pytest.raises(OptionError, match="1001 steps"):
        from_plan({**plan, "steps": MAX_STEPS + 1}, "plan")


def test_finished_layers_of_steps_are_kept(tmp_path: Path) -> None:
    quick = {**QUICK, "format": "dense", "calibration": {"x": X}, "sparsity": 0.6, "steps": 2, "cache": tmp_path}
    first = onnxprune.prune(NET, **quick)
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
    assert len(kept) == 4 and same_bytes(first, onnxprune.prune(NET, **quick))
    assert kept == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
