"""One-shot sparsity from calibration data, the whole way: solvers, patterns, caches, plans, values, codebooks."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

import onnxprune
from conftest import Cli
from models.nets import build, normal
from models.small import grouped, mlp
from onnxprune import OptionError, Result
from onnxprune.formats.patterns import BlockPattern, NMPattern, parse_pattern
from onnxprune.graph.io import Model, load
from onnxprune.layers.layer import Layer, sparse_layers
from onnxprune.solvers.masks import SOLVERS
from onnxprune.sparsity import solve as stage

pytestmark = pytest.mark.usefixtures("brief_search")
Array = np.ndarray[Any, np.dtype[Any]]
MODELS = Path(__file__).parent.parent / "models"
OWN = {"mlp": "pixels", "gru": "rows", "unet": "noisy"}  # input of models with data of their own
QUICK: dict[str, Any] = {"measure": False, "format": "dense", "threads": 1}


@cache
def arrays(name: str, part: str = "calibration") -> dict[str, Array]:
    """Samples of one of the digits models: those of the calibration set, or held out with labels."""
    if name not in OWN:
        z = np.load(MODELS / f"digits_{part}.npz")
        return {"image": z["image"]} | ({"labels": z["labels"]} if part == "heldout" else {})
    z = np.load(MODELS / f"digits_{name}.npz")
    at = slice(0, 150) if part == "calibration" else slice(150, None)
    return {OWN[name]: z[OWN[name]][at]} | ({"labels": z["labels"][at]} if part == "heldout" else {})


def digits(name: str, samples: int = 64, **options: Any) -> Result:
    data = {k: v[:samples] for k, v in arrays(name).items()}
    return onnxprune.prune(MODELS / f"digits_{name}.onnx", calibration=data, **{**QUICK, **options})


def accuracy(name: str, model: Model) -> float:
    data = arrays(name, "heldout")
    feeds = {k: v for k, v in data.items() if k != "labels"}
    return float((run(model, feeds).argmax(-1) == data["labels"]).mean())


def run(model: Model | onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    proto = onnxprune.to_proto(model) if isinstance(model, Model) else model
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def two(**weights: Any) -> ModelProto:
    """Two layers with a Relu between them."""
    return mlp(16, 24, 8, names="wv", **weights)


X = normal(64, 16, seed=2).astype(np.float32)
IMAGES = (normal(48, 8, 5, 5, seed=3) + normal(48, 8, 1, 1, seed=4)).astype(np.float32)


def small(proto: Any = None, x: Array = X, **options: Any) -> Result:
    found = {"sparsity": 0.5, "calibration": {"x": x}, **QUICK, **options}
    return onnxprune.prune(two() if proto is None else proto, **found)


def weights_of(result: Result) -> dict[str, Array]:
    assert result.model is not None
    return {x.weight: result.model.weights[x.weight] for x in sparse_layers(result.model)[0]}


def same(a: Result, b: Result) -> bool:
    """Bit for bit, biases and all."""
    protos = [onnxprune.to_proto(r.model).SerializeToString(deterministic=True) for r in (a, b) if r.model is not None]
    return len(protos) == 2 and protos[0] == protos[1]


def whole_tiles(gone: Array, layer: Layer, tile: BlockPattern) -> bool:
    """Whether tiles of `[o, d]` go as a whole."""
    segment = layer.segment if tile.rows else gone.shape[1]
    for s in range(0, gone.shape[1], segment):
        for i in range(0, len(gone), tile.rows or len(gone)):
            for j in range(s, s + segment, tile.columns):
                part = gone[i : i + (tile.rows or len(gone)), j : min(j + tile.columns, s + segment)]
                if part.any() != part.all():
                    return False
    return True


def check(result: Result, ratio: float, form: str | None) -> None:
    """Zeros are as many as wanted, where the pattern wants them."""
    assert result.model is not None and result.report.sparsity is not None
    pattern = parse_pattern(form) if form else None
    total = size = allowed = 0
    taken = {x.node for x in result.report.sparsity.layers}
    layers = {x.weight: x for x in sparse_layers(result.model)[0] if x.name in taken}.values()
    for layer in layers:
        w = result.model.weights[layer.weight]
        assert np.isfinite(w).all()
        gone = layer.rows(w == 0)
        total, size = total + int(gone.sum()), size + w.size
        if isinstance(pattern, NMPattern):
            for s in range(0, gone.shape[2], layer.segment):
                for k in range(s, s + layer.segment, pattern.m):
                    block = gone[:, :, k : min(k + pattern.m, s + layer.segment)]
                    assert (block.sum(2) == max(block.shape[2] - pattern.n, 0)).all(), layer.name
        elif isinstance(pattern, BlockPattern):
            assert all(whole_tiles(g, layer, pattern) for g in gone), layer.name
            allowed += layer.group * (pattern.rows or gone.shape[1]) * pattern.columns
    if not isinstance(pattern, NMPattern):
        assert -1 - len(layers) <= total - ratio * size <= allowed + 1 + len(layers)
    assert result.report.sparsity.zeros == total and result.report.sparsity.size == size
    onnx.checker.check_model(onnxprune.to_proto(result.model), full_check=True)


# Solvers and patterns


FORMS = [(0.7, None), (None, "2:4"), (0.5, "block:1x4"), (0.5, "block:4x1"), (0.5, "column")]
GRID = [(s, r, f) for s, row in SOLVERS.items() for r, f in FORMS if row.tiles or f in (None, "2:4")]


def in_order(form: str | None) -> dict[str, Any]:
    """N:M without reordered channels; other patterns never reorder them."""
    return {"permute": False} if form is not None and form[0].isdigit() else {}


@pytest.mark.parametrize(("solver", "ratio", "form"), GRID)
def test_every_solver_and_pattern(solver: str, ratio: float | None, form: str | None) -> None:
    labels = {"train": IMAGES, "train_labels": np.arange(len(IMAGES)) % 4} if SOLVERS[solver].labels else {}
    options = {"solver": solver, "sparsity_allocate": "uniform", **in_order(form), **labels}
    result = small(grouped(), IMAGES, sparsity=ratio, pattern=form, **options)
    check(result, ratio or 0.5, form)
    found = result.report.sparsity
    assert found is not None and found.solver == solver and found.pattern == (form or "")
    assert len(found.solved) == 3 and found.error is not None
    assert all(not x.reason and x.rows >= len(IMAGES) and 0 < x.error < 1 for x in found.solved)
    if solver in ("obc", "admm"):  # others may choose worse than magnitude in one layer, not in all of them
        assert all(x.error < x.plain for x in found.solved)
    if not SOLVERS[solver].gradients:  # these look at the loss, not at the outputs of layers
        assert sum(x.error for x in found.solved) < sum(x.plain for x in found.solved)
    raw = small(grouped(), IMAGES, sparsity=ratio, pattern=form, **options, recover="none")
    check(raw, ratio or 0.5, form)
    assert raw.report.sparsity is not None
    # on the rows that were fitted a ridge that suits other rows costs a little
    assert sum(x.error for x in found.solved) < 1.1 * sum(x.error for x in raw.report.sparsity.solved)


@pytest.mark.parametrize(
    ("name", "solver", "ratio", "form", "layers"),
    [("mlp", "obc", None, "2:4", 4), ("mlp", "wanda", 0.7, "block:4x1", 4), ("vit", "admm", None, "2:4", 17),
     ("vit", "ria", 0.7, "column", 18), ("gru", "admm", 0.7, None, 6), ("gru", "sparsegpt", 0.7, "block:1x4", 6),
     ("unet", "admm", 0.7, "block:4x1", 13)],
)  # fmt: skip
def test_digits(name: str, solver: str, ratio: float | None, form: str | None, layers: int) -> None:
    options = {"solver": solver, "sparsity_allocate": "uniform", **in_order(form)}
    result = digits(name, 32, sparsity=ratio, pattern=form, **options)
    check(result, ratio or 0.5, form)
    found = result.report.sparsity
    assert found is not None and len(found.solved) == layers
    for x in found.solved:
        assert x.error < x.plain or "a step before" in x.reason, x


@pytest.mark.parametrize(("name", "gain"), [("mlp", 0.05), ("mobile_se", 0.1)])
def test_the_default_solver_beats_magnitude(name: str, gain: float) -> None:
    solved = digits(name, 64, sparsity=0.8)
    plain = onnxprune.prune(MODELS / f"digits_{name}.onnx", sparsity=0.8, recover="none", **QUICK)
    assert solved.report.sparsity is not None and plain.report.sparsity is not None
    assert (solved.report.sparsity.solver, plain.report.sparsity.solver) == ("admm", "magnitude")
    assert abs(solved.report.sparsity.zeros - plain.report.sparsity.zeros) <= len(solved.report.sparsity.layers)
    assert solved.model is not None and plain.model is not None
    assert accuracy(name, solved.model) > accuracy(name, plain.model) + gain
    assert solved.report.fidelity is not None


def test_the_same_every_time() -> None:
    for options in ({}, {"sparsity": None, "pattern": "2:4"}, {"solver": "obc"}, {"sparsity_allocate": "owl"}):
        assert same(small(**options), small(**options)), options


def test_magnitude_with_data_keeps_the_mask_and_mends_the_weights() -> None:
    plain = small(calibration=None)
    solved = small(solver="magnitude", sparsity_allocate="uniform", recover="none")
    for name, w in weights_of(plain).items():
        np.testing.assert_allclose(weights_of(solved)[name], w, rtol=1e-6)
    better = small(solver="magnitude", sparsity_allocate="uniform")
    feeds = {"x": X}
    dense, a, b = (run(m, feeds) for m in (two(), plain.model, better.model) if m is not None)
    assert np.square(b - dense).mean() < 0.8 * np.square(a - dense).mean()


# Layers that need care


@pytest.mark.parametrize("allocate", ["uniform", "error"])
def test_a_constant_channel_of_a_depthwise_layer_keeps_the_others_from_nothing(allocate: str) -> None:
    proto = build("y = Conv<group=4>(x, w, b)", "float[n,4,9]", "float[n,4,m]", w=normal(4, 1, 5), b=normal(4))
    x = normal(40, 4, 9, seed=5).astype(np.float32)
    x[:, 1] = 2.0
    result = small(proto, x, sparsity=0.4, sparsity_allocate=allocate)
    assert result.model is not None and result.report.sparsity is not None
    (solved,) = result.report.sparsity.solved
    assert not solved.reason and 0 < solved.error < solved.plain
    gap = run(result.model, {"x": x}) - run(proto, {"x": x})
    np.testing.assert_allclose(gap[:, 1], 0, atol=1e-5)  # its bias makes up for what it lost


@pytest.mark.parametrize(("ratio", "form"), [(0.5, None), (None, "2:4"), (0.5, "block:2x4"), (0.5, "column")])
def test_one_dimensional_and_grouped(ratio: float | None, form: str | None) -> None:
    """Channels that no pattern divides."""
    proto = build("h = Conv<pads=[1,1]>(x, w) r = Relu(h) y = Conv<group=2>(r, v)", "float[n,6,12]", "float[n,10,m]",
                  w=normal(12, 6, 3), v=normal(10, 6, 3))  # fmt: skip
    x = normal(40, 6, 12, seed=5).astype(np.float32)
    for solver in ("admm", "obc") if form in (None, "2:4") else ("admm",):
        result = small(
            proto, x, sparsity=ratio, pattern=form, solver=solver, **in_order(form), sparsity_allocate="uniform"
        )
        check(result, ratio or 1 / 3, form)
        assert result.report.sparsity is not None
        assert all(not s.reason and s.error < s.plain for s in result.report.sparsity.solved)
        torn = [n for n in result.report.notes if "does not divide 2 layers" in n and "h, y" in n]
        assert len(torn) == (form in ("2:4", "block:2x4"))


@pytest.mark.parametrize(("ratio", "form"), [(0.5, None), (None, "2:4"), (0.5, "block:1x4")])
def test_two_layers_of_one_weight(ratio: float | None, form: str | None) -> None:
    proto = build("h = MatMul(x, w) r = Relu(h) y = MatMul(r, w)", "float[n,16]", "float[n,16]", w=normal(16, 16))
    result = small(proto, sparsity=ratio, pattern=form, **in_order(form))
    check(result, 0.5, form)
    found = result.report.sparsity
    assert found is not None and found.zeros == 128 and list(weights_of(result)) == ["w"]
    assert [x.node for x in found.solved] == ["h", "y"]
    assert all(x.error < x.plain for x in found.solved)
    plain = small(proto, sparsity=ratio, pattern=form, **in_order(form), calibration=None)
    dense, a, b = (run(m, {"x": X}) for m in (proto, plain.model, result.model) if m is not None)
    assert np.square(b - dense).mean() < np.square(a - dense).mean()


@pytest.mark.parametrize("alpha", [0.5, -2.0, 0.0])
def test_gemm_with_factors(alpha: float) -> None:
    proto = build(f"h = Gemm<alpha={alpha}, beta=2.0, transB=1>(x, w, b) r = Relu(h) y = Gemm(r, v)", "float[n,16]",
                  "float[n,8]", w=normal(24, 16), b=normal(24), v=normal(24, 8))  # fmt: skip
    result = small(proto, sparsity_allocate="uniform")
    check(result, 0.5, None)
    if not alpha:
        assert any("alpha is 0" in note for note in result.report.notes)
        return
    plain = small(proto, calibration=None)
    dense, a, b = (run(m, {"x": X}) for m in (proto, plain.model, result.model) if m is not None)
    assert np.square(b - dense).mean() < np.square(a - dense).mean()


CARE: dict[str, tuple[str, dict[str, Any], str]] = {
    "constant": ("z = Mul(x, k) h = MatMul(z, w) y = Add(h, x)", {"k": np.zeros(1)}, "its inputs are constant"),
    "unreached": (
        "g = Greater(x, k) i = NonZero(g) j = Gather(i, a) s = Gather(x, j) h = MatMul(s, w) "
        "t = ReduceSum<keepdims=0>(h) y = Add(x, t)",
        {"k": np.full(1, 100.0), "a": np.array(0)},
        "no data reached it",
    ),
    "infinite": ("l = Log(x) h = MatMul(l, w) y = Add(h, x)", {}, "its inputs are not finite"),
    "left": ("t = Transpose(x) h = MatMul(w, t) y = Transpose(h)", {}, "its weight is the left operand"),
}


@pytest.mark.parametrize("form", [None, "2:4", "block:1x4"])
@pytest.mark.parametrize("name", list(CARE))
def test_masked_by_magnitude_with_a_reason(name: str, form: str | None) -> None:
    nodes, more, reason = CARE[name]
    proto = build(nodes, "float[n,16]", "float[n,16]", w=normal(16, 16), **more)
    for allocate in ("uniform",) if form == "2:4" else ("uniform", "owl", "error"):
        result = small(proto, sparsity=None if form == "2:4" else 0.5, pattern=form, sparsity_allocate=allocate,
                       **in_order(form), verify=name != "infinite")  # fmt: skip
        check(result, 0.5, form)
        found = result.report.sparsity
        assert found is not None and [(x.node, x.reason) for x in found.solved] == [("h", reason)]
        assert f"h: masked by magnitude: {reason}" in result.report.notes
        plain = small(proto, sparsity=None if form == "2:4" else 0.5, pattern=form, **in_order(form), calibration=None,
                      verify=name != "infinite")  # fmt: skip
        assert (weights_of(plain)["w"] == weights_of(result)["w"]).all()


def test_samples_that_are_not_finite() -> None:
    x = X.copy()
    x[3, 3] = np.nan
    with pytest.raises(OptionError, match="not finite"):
        small(x=x)


def test_more_sparsity_than_the_survey_knows() -> None:
    found = small(two(w=normal(16, 64), v=normal(64, 16)), sparsity=0.998).report.sparsity
    assert found is not None and abs(found.zeros - 0.998 * found.size) <= 2


def test_few_zeros_of_narrow_layers() -> None:
    proto = build("y = MatMul(x, w)", "float[n,4]", "float[n,32]", w=normal(4, 32))
    check(small(proto, X[:, :4], sparsity=0.05, solver="obc", sparsity_allocate="uniform"), 0.05, None)


# Plans


def test_a_plan_replays_with_the_same_data(tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [{}, {"sparsity": None, "pattern": "2:4"}, {"pattern": "block:1x4"}]
    for k, options in enumerate(ways):
        first = small(**options)
        path = tmp_path / f"{k}.json"
        path.write_text(first.plan.to_json())
        again = onnxprune.prune(two(), plan=path, calibration={"x": X}, measure=False, threads=1)
        assert same(first, again), options
        with pytest.raises(OptionError, match="solver='admm' needs data"):
            onnxprune.prune(two(), plan=path, measure=False)
        other = onnxprune.prune(two(), plan=path, calibration={"x": -X}, measure=False, threads=1)
        assert other.report.sparsity is not None and first.report.sparsity is not None
        assert [x.zeros for x in other.report.sparsity.layers] == [x.zeros for x in first.report.sparsity.layers]


@pytest.mark.parametrize("solver", ["wanda", "sparsegpt", "admm"])
def test_a_plan_of_tiles_replays_to_the_same_zeros(solver: str, tmp_path: Path) -> None:
    """Whole tiles are more zeros than were asked for, and the plan holds what became of it."""
    first = small(grouped(), IMAGES, sparsity=0.37, pattern="block:2x4", solver=solver,
                  sparsity_allocate="uniform")  # fmt: skip
    path = tmp_path / "p.json"
    path.write_text(first.plan.to_json())
    again = onnxprune.prune(grouped(), plan=path, calibration={"x": IMAGES}, measure=False, threads=1)
    assert same(first, again)


# --cache


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that were solved."""
    names: list[str] = []
    solve: Callable[..., Any] = stage._solve

    def recorded(job: Any, *rest: Any) -> Any:
        names.append(job.layer.name)
        return solve(job, *rest)

    monkeypatch.setattr(stage, "_solve", recorded)
    return names


def test_finished_layers_are_not_solved_again(tmp_path: Path, solved: list[str]) -> None:
    plain = small(grouped(), IMAGES)
    del solved[:]
    first = small(grouped(), IMAGES, cache=tmp_path / "new" / "folder")
    assert len(solved) == 3
    second = small(grouped(), IMAGES, cache=tmp_path / "new" / "folder")
    assert len(solved) == 3
    assert same(plain, first) and same(first, second)
    assert first.report.sparsity is not None and second.report.sparsity is not None
    assert first.report.sparsity.solved == second.report.sparsity.solved


def test_reasons_are_kept_too(tmp_path: Path, solved: list[str]) -> None:
    nodes, more, reason = CARE["constant"]
    proto = build(nodes, "float[n,16]", "float[n,16]", w=normal(16, 16), **more)
    a, b = (small(proto, cache=tmp_path) for _ in range(2))
    assert solved == ["h"] and same(a, b)
    assert b.report.sparsity is not None and [x.reason for x in b.report.sparsity.solved] == [reason]


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, solved: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small(grouped(), IMAGES)
    del solved[:]
    recorded = stage._solve

    def stopped(job: Any, *rest: Any) -> Any:
        if len(solved) == 2:
            raise KeyboardInterrupt
        return recorded(job, *rest)

    monkeypatch.setattr(stage, "_solve", stopped)
    with pytest.raises(KeyboardInterrupt):
        small(grouped(), IMAGES, cache=tmp_path)
    monkeypatch.setattr(stage, "_solve", recorded)
    assert same(small(grouped(), IMAGES, cache=tmp_path), whole)
    assert len(solved) == 3 and len(set(solved)) == 3


def test_a_folder_holds_layers_of_many_runs(tmp_path: Path, solved: list[str]) -> None:
    first = small(cache=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    changed: list[tuple[str, dict[str, Any]]] = [
        ("model", {"proto": two(w=normal(16, 24, seed=9))}), ("samples", {"x": X[:32]}), ("samples", {"samples": 32}),
        ("options", {"solver": "wanda"}), ("options", {"recover": "none"}), ("options", {"sparsity": 0.6}),
        ("options", {"seed": 1}), ("options", {"sparsity": None, "pattern": "2:4", "permute": False}),
    ]  # fmt: skip
    for what, options in changed:
        alone, mixed = small(**options), small(**options, cache=tmp_path)
        assert same(alone, mixed), what
        now = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        assert len(now) > len(before) and now | before == now, what
        before = now
    del solved[:]
    assert same(small(cache=tmp_path), first) and not solved


def broken(data: bytes) -> dict[str, bytes]:
    return {
        "cut": data[: len(data) // 2], "empty": b"", "text": b"garbage", "head": data[:3],
        "wrong": data[:300] + bytes([x ^ 255 for x in data[300:340]]) + data[340:],
    }  # fmt: skip


@pytest.mark.parametrize("how", list(broken(bytes(1000))))
def test_a_broken_layer_is_solved_again(how: str, tmp_path: Path, solved: list[str]) -> None:
    first = small(cache=tmp_path)
    path = sorted(tmp_path.glob("*.npz"))[0]
    path.write_bytes(broken(path.read_bytes())[how])
    del solved[:]
    assert same(small(cache=tmp_path), first)
    assert len(solved) == 1
    assert same(small(cache=tmp_path), first) and len(solved) == 1


def test_a_layer_of_another_shape_is_solved_again(tmp_path: Path, solved: list[str]) -> None:
    first = small(cache=tmp_path)
    a, b = sorted(tmp_path.glob("*.npz"))
    a.write_bytes(b.read_bytes())
    del solved[:]
    assert same(small(cache=tmp_path), first) and len(solved) == 1


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(OptionError, match=r"^cache="):
            small(cache=folder)


# The command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model and samples."""
    monkeypatch.chdir(tmp_path)
    onnx.save(two(), "net.onnx")
    np.savez("c.npz", x=X)
    return tmp_path


@pytest.fixture
def call(call: Cli) -> Cli:
    return lambda words: call(f"net.onnx {words} -q --no-latency")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--sparsity 0.5 --solver admm", "needs data"),
        ("--sparsity 0.5 --solver wanda", "needs data"),
        ("--pattern 2:4 --solver obc", "needs data"),
        ("--sparsity 0.5 --sparsity-allocate error", "needs data"),
        ("--sparsity 0.5 --sparsity-allocate owl", "needs data"),
        ("--sparsity 0.5 --solver obc --pattern block:4x4 --calibration c.npz", "--solver obc"),
        ("--sparsity 0.5 --solver obc --pattern column --calibration c.npz", "--solver obc"),
        ("--sparsity 0.5 --pattern block:0x4", "--pattern block:0x4"),
        ("--sparsity 0.5 --pattern block:1x1", "--pattern block:1x1"),
        ("--sparsity 0.7 --pattern 2:4", "--pattern 2:4"),
        ("--pattern column", "say how many"),
        ("--pattern block:1x4 --calibration c.npz", "say how many"),
        ("--pattern 2:4 --sparsity-allocate lamp", "--sparsity-allocate lamp"),
        ("--pattern 2:4 --sparsity-allocate error --calibration c.npz", "--sparsity-allocate error"),
        ("--quality 0.5 --pattern column", "--quality"),
        ("--quality 0.5 --sparsity-allocate owl --calibration c.npz", "--sparsity-allocate owl"),
        ("--sparsity 0.5 --format nm", "--format nm"),
        ("--sparsity 0.5 --pattern block:1x4 --format nm", "--format nm"),
        ("--cluster 1", "--cluster"),
        ("--cluster 257", "--cluster"),
        ("--cluster 16 --format csr", "--format csr"),
        ("--sparsity 0.5 --cluster 16 --format csr", "--format csr"),
        ("--pattern 2:4 --cluster 16 --format nm", "--format nm"),
        ("--sparsity 0.5 --values int8 --format dense", "--values int8"),
        ("--sparsity 0.5 --values int8 --format sparse-initializer", "--values int8"),
        ("--sparsity 0.5 --values int8 --cluster 16", "--values"),
        ("--channels 0.3 --values int8", "--values"),
        ("--channels 0.3 --solver admm --calibration c.npz", "--solver"),
        ("--sparsity 0.5 --cluster-storage packed", "--cluster"),
        ("--sparsity 0.5 --solver none", "--solver"),
        ("--sparsity 0.5 --values float8", "--values"),
        ("--sparsity 0.5 --sparsity-allocate best", "--sparsity-allocate"),
        ("--sparsity 0.5 --cluster 16 --cluster-per row", "--cluster-per"),
        ("--sparsity 0.5 --cluster 16 --cluster-storage int3", "--cluster-storage"),
        ("--sparsity 0.5 --calibration c.npz --cache net.onnx", "--cache"),
        ("--sparsity 0.5 --calibration none.npz", "--calibration"),
    ],
)
def test_what_cannot_be_meant(words: str, says: str, folder: Path, call: Cli) -> None:
    code, out, err = call(words)
    assert code == 2 and out == "" and says in err
    assert err.startswith("onnxprune: ") and err.count("\n") == 1, err
    assert sorted(p.name for p in folder.iterdir()) == ["c.npz", "net.onnx"]


def test_the_report(folder: Path, call: Cli) -> None:
    code, out, _ = call("--sparsity 0.5 --format dense --calibration c.npz --cluster 16 --cache k --json -")
    data = json.loads(out)
    assert code == 0 and data["sparsity"]["solver"] == "admm" and len(data["sparsity"]["solved"]) == 2
    for row in data["sparsity"]["solved"]:
        assert row["error"] < row["plain"] and row["rows"] == 64 and row["reason"] == ""
    assert data["codebooks"]["k"] == 16 and len(data["codebooks"]["weights"]) == 2
    assert len(list(folder.glob("k/*.npz"))) == 2 and (folder / "net.pruned.onnx").is_file()
    assert list(folder.rglob("*.tmp*")) == []


def test_clustering_alone(folder: Path, call: Cli) -> None:
    code, _, err = call("--cluster 16")
    assert code == 0, err
    assert (folder / "net.pruned.onnx").is_file()


# Values and codebooks


def stored(result: Result) -> Array:
    assert result.model is not None
    return run(onnxprune.to_proto(result.model), {"x": X})


@pytest.mark.parametrize(
    ("values", "close"), [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 5e-2)]
)
@pytest.mark.parametrize(("form", "kind"), [(None, "csr"), ("2:4", "csr"), ("2:4", "nm")])
def test_values(form: str | None, kind: str, values: str, close: float) -> None:
    allocate = None if form else "uniform"
    options: dict[str, Any] = {"sparsity": None if form else 0.5, "pattern": form, "sparsity_allocate": allocate}
    result = small(values=values, **{**options, "format": kind})
    found = result.report.sparsity
    assert found is not None and {x.format for x in found.layers} == {kind} and found.values == values
    assert (found.rounding > 0) == (values != "float32") and found.rounding < close**2
    masked = small(**options)
    expected, got = stored(masked), stored(result)
    assert np.abs(expected - got).max() <= close * np.abs(expected).max()
    assert found.error is not None and found.error < 1e-4
    assert result.model is not None
    back = onnxprune.densify(result.model)
    again = {x.weight: back.weights[x.weight] for x in sparse_layers(back)[0]}
    for a, b in zip(weights_of(masked).values(), again.values(), strict=True):
        assert ((a == 0) <= (b == 0)).all()
        np.testing.assert_allclose(b, a, atol=close * np.abs(a).max())


@pytest.mark.parametrize("k", [16, 256])
@pytest.mark.parametrize("ratio", [None, 0.7])
def test_codebooks(k: int, ratio: float | None) -> None:
    zeros: dict[str, Any] = {"format": None}
    if ratio:
        zeros = {"sparsity": ratio, "solver": "wanda", "sparsity_allocate": "uniform", "recover": "none"}
    plain = digits("mlp", 32, **zeros) if ratio else None
    result = digits("mlp", 32, cluster=k, **zeros)
    books = result.report.codebooks
    assert books is not None and books.k == k and len(books.rows) == 4
    assert (4 if k == 16 else 8) <= books.bits_per_weight < (6 if k == 16 else 12)
    assert books.to_dict()["bits_per_weight"] == books.bits_per_weight
    assert result.model is not None
    proto = onnxprune.to_proto(result.model)
    names = [row.weight for row in books.rows]
    proto.graph.output.extend(i for i in proto.graph.value_info if i.name in names)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    values = dict(zip(names, session.run(names, {"pixels": arrays("mlp")["pixels"][:2]}), strict=True))
    dense = plain.model if plain is not None else load(MODELS / "digits_mlp.onnx")
    assert dense is not None
    for name, w in values.items():
        assert len(np.unique(w)) <= k
        original = dense.weights[name]
        assert ((original == 0) <= (w == 0)).all()
        assert np.square(w - original).sum() < (0.05 if k == 16 else 1e-3) * np.square(original).sum()
    assert abs(accuracy("mlp", result.model) - accuracy("mlp", dense)) < (0.1 if k == 16 else 0.02)


# Permutation


def test_permutation_keeps_more() -> None:
    path = MODELS / "digits_resnet_bn.onnx"
    options: dict[str, Any] = {**QUICK, "pattern": "2:4", "recover": "none"}
    on, off = (onnxprune.prune(path, permute=p, **options) for p in (True, False))
    assert on.report.sparsity is not None and off.report.sparsity is not None
    assert not off.report.sparsity.permuted and len(on.report.sparsity.permuted) >= 5
    assert all(x.after >= x.before for x in on.report.sparsity.permuted)
    kept = [sum(float(np.square(w, dtype=np.float64).sum()) for w in weights_of(r).values()) for r in (on, off)]
    assert kept[0] > kept[1]
    for r in (on, off):
        check(r, 0.5, "2:4")
        assert r.report.sparsity is not None and r.report.sparsity.error is not None


def test_permutation_with_data(tmp_path: Path) -> None:
    proto = build("h = MatMul(x, w) r = Relu(h) g = MatMul(r, v) q = Relu(g) y = MatMul(q, u)", "float[n,16]",
                  "float[n,8]", w=normal(16, 32), v=normal(32, 32, seed=1), u=normal(32, 8, seed=2))  # fmt: skip
    options: dict[str, Any] = {"sparsity": None, "pattern": "2:4"}
    on, off = (small(proto, permute=p, **options) for p in (True, False))
    dense = run(proto, {"x": X})
    for r in (on, off):
        check(r, 0.5, "2:4")
        assert np.square(stored(r) - dense).mean() < 0.5 * np.square(dense).mean()
    assert on.report.sparsity is not None and len(on.report.sparsity.permuted) == 2
    packed = small(proto, **options, format="nm")
    np.testing.assert_allclose(stored(packed), stored(on), rtol=1e-4, atol=1e-4)
    kept = small(proto, **options, cache=tmp_path)  # the cache knows the permuted model
    assert same(kept, small(proto, **options, cache=tmp_path)) and same(kept, on)
    assert same(off, small(proto, **options, permute=False, cache=tmp_path))


BIASES = {
    "gemm": "h = Gemm(x, w, b) r = Relu(h) y = Gemm(r, v, c)",
    "nodes behind": "g = MatMul(x, w) h = Add(g, b) r = Relu(h) f = MatMul(r, v) y = Add(f, c)",
    "scaled behind": "g = MatMul(x, w) i = Mul(g, two) h = Add(i, b) r = Relu(h) f = MatMul(r, v) y = Add(f, c)",
    "recurrent": "t = Unsqueeze(x, a) h, i = GRU<hidden_size = 8>(t, u, q, p) r = Squeeze(i, a) y = Gemm(r, k, c)",
}


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("steps", [1, 3])
def test_biases_are_right_after_every_step(name: str, steps: int) -> None:
    """The mean of the outputs is kept: a shift of a step before is not counted again."""
    weights: dict[str, Any] = {
        "w": normal(24, 32), "b": normal(32), "v": normal(32, 24, seed=1), "c": normal(24), "two": np.float32(2),
        "a": np.array([0]), "u": normal(1, 24, 24), "q": normal(1, 24, 8), "p": normal(1, 48), "k": normal(8, 24),
    }  # fmt: skip
    proto = build(BIASES[name], "float[n,24]", "float[n,24]", **weights)
    x = 1 + normal(200, 24, seed=2).astype(np.float32)
    result = onnxprune.prune(proto, calibration=x, sparsity=0.6, steps=steps, measure=False)
    assert result.model is not None and result.report.sparsity is not None
    before, after = (run(m, {"x": x}).astype(np.float64) for m in (proto, onnxprune.to_proto(result.model)))
    assert np.abs((after - before).mean(0)).max() < 1e-5 * before.std()
