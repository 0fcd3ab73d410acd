"""Clustered weights: k-means against all partitions, and ONNX that unfolds to the same values everywhere."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import onnxprune
from models.nets import build, normal
from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.formats.codebook import _digits, cluster, find_weights, zipped_bytes
from onnxprune.graph.io import Model, load, save
from onnxprune.solvers import kmeans as solver
from onnxprune.solvers.kmeans import kmeans, kmeans_rows

MODELS = Path(__file__).parent.parent / "models"
Array = np.ndarray[Any, np.dtype[Any]]
IR = {7: 3, 9: 4, 11: 6, 13: 7, 17: 8, 21: 10}


# k-means


def least(x: Array, w: Array, k: int, *, zero: bool = False) -> float:
    """The least weighted squared error of all partitions of the sorted values; zero: 0 has a cluster with itself."""
    order = np.argsort(x)
    x, w = x[order].astype(np.float64), w[order].astype(np.float64)
    found = np.inf
    for cuts in itertools.combinations_with_replacement(range(len(x) + 1), k - 1):
        error = 0.0
        for a, b in itertools.pairwise((0, *cuts, len(x))):
            if a < b:
                center = 0.0 if zero and (x[a:b] == 0).any() else np.average(x[a:b], weights=w[a:b])
                error += float((w[a:b] * (x[a:b] - center) ** 2).sum())
        found = min(found, error)
    return found


def error(x: Array, w: Array, found: tuple[Array, Array]) -> float:
    return float((w * (x.astype(np.float64) - found[0][found[1]]) ** 2).sum())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_no_partition_is_better(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = rng.standard_t(2, 11).astype(np.float32), rng.exponential(size=11)
    x[seed : seed + 2] = 0
    ones = np.ones(11)
    assert error(x, ones, kmeans(x, k)) == pytest.approx(least(x, ones, k), rel=1e-5)
    assert error(x, w, kmeans(x, k, w)) == pytest.approx(least(x, w, k), rel=1e-5)
    kept = kmeans(x, k, w, keep_zero=True)
    assert error(x, w, kept) == pytest.approx(least(x, w, k, zero=True), rel=1e-5)
    assert (kept[0][kept[1]][x == 0] == 0).all()


def test_grouped_points_are_as_good_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_t(3, 20000).astype(np.float32)
    x[:5000] = 0
    ones = np.ones(x.size)
    found = {}
    for k in (16, 100):
        found[k] = [error(x, ones, kmeans(x, k, keep_zero=True))]
    monkeypatch.setattr(solver, "EXACT", 1000)  # by leading bits
    for k in found:
        codebook, indices = kmeans(x, k, keep_zero=True)
        assert (codebook[indices][x == 0] == 0).all()
        found[k].append(error(x, ones, (codebook, indices)))
    monkeypatch.setattr(solver, "EXACT", 1 << 20)
    monkeypatch.setattr(solver, "LEAST", 1 << 20)  # no groups
    for k, others in found.items():
        best = error(x, ones, kmeans(x, k, keep_zero=True))
        assert best <= min(others) * (1 + 1e-6) and max(others) <= 1.005 * best


def test_indices_point_to_the_nearest_codeword() -> None:
    x = normal(5000).astype(np.float32)
    codebook, indices = kmeans(x, 256)
    assert codebook.dtype == np.float32 and indices.dtype == np.uint8 and (np.diff(codebook) > 0).all()
    distance = np.abs(x[:, None].astype(np.float64) - codebook)
    np.testing.assert_array_equal(distance[np.arange(x.size), indices], distance.min(1))


def test_a_weight_draws_a_codeword() -> None:
    x = np.array([0, 1, 2, 3, 10], np.float32)
    assert 3 in kmeans(x, 2, np.array([1, 1, 1, 1e9, 1]))[0]
    np.testing.assert_array_equal(kmeans(x, 2, np.zeros(5))[0], kmeans(x, 2)[0])
    codebook, indices = kmeans(x, 2, np.array([1, 1, 1, 1, 0]))  # what counts for nothing has the nearest
    np.testing.assert_allclose(codebook, [0.5, 2.5], rtol=1e-5)
    assert indices[4] == 1


def test_few_values_are_kept_as_they_are() -> None:
    x = np.array([3, -1, -0.0, 3], np.float32)
    codebook, indices = kmeans(x, 16, keep_zero=True)
    assert codebook.shape == (16,)
    np.testing.assert_array_equal(codebook[indices], x)
    assert not np.signbit(codebook[indices][2])


def test_offset_values() -> None:
    x = (1000 + normal(3000) / 100).astype(np.float32)
    codebook, indices = kmeans(x, 8)
    spread = x.astype(np.float64) - x.mean(dtype=np.float64)
    assert error(x, np.ones(x.size), (codebook, indices)) < 0.05 * (spread**2).sum()


def test_rows_are_separate() -> None:
    x, w = normal(3, 40).astype(np.float32), np.abs(normal(3, 40, seed=1))
    codebooks, indices = kmeans_rows(x, 4, w)
    for r in range(3):
        for a, b in zip((codebooks[r], indices[r]), kmeans(x[r], 4, w[r]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_same_every_time() -> None:
    x = normal(4000).astype(np.float32)
    for a, b in zip(kmeans(x, 16), kmeans(x, 16), strict=True):
        np.testing.assert_array_equal(a, b)


# ONNX


NETS: dict[str, tuple[str, str, str, dict[str, tuple[int, ...]]]] = {
    "matmul": ("y = MatMul (x, w)", "float[n,65]", "float[n,33]", {"w": (65, 33)}),
    "left": ("y = MatMul (w, x)", "float[65,n]", "float[33,n]", {"w": (33, 65)}),
    "batched": ("y = MatMul (x, w)", "float[3,2,32]", "float[3,2,40]", {"w": (3, 32, 40)}),
    "gemm": ("y = Gemm <transB = 1> (x, w, b)", "float[n,64]", "float[n,48]", {"w": (48, 64), "b": (48,)}),
    "conv": ("y = Conv <pads = [1,1,1,1]> (x, w)", "float[n,8,5,5]", "float[n,31,5,5]", {"w": (31, 8, 3, 3)}),
    "depthwise": ("y = Conv <group = 256> (x, w)", "float[n,256,5,5]", "float[n,256,3,3]", {"w": (256, 1, 3, 3)}),
    "transposed": ("y = ConvTranspose (x, w)", "float[n,16,5,5]", "float[n,24,7,7]", {"w": (16, 24, 3, 3)}),
    "shared": ("a = MatMul (x, w)  y = Gemm <transB = 1> (a, w)", "float[n,48]", "float[n,48]", {"w": (48, 48)}),
}


def net(name: str, opset: int = 17, *, inputs: bool = True) -> onnx.ModelProto:
    nodes, x, y, shapes = NETS[name]
    arrays: dict[str, Any] = {n: normal(*shape, seed=i) for i, (n, shape) in enumerate(shapes.items())}
    proto = build(nodes, x, y, opset=opset, **arrays)
    proto.ir_version = IR[opset]
    if proto.ir_version < 4:
        proto.graph.input.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    return proto


def outputs(proto: onnx.ModelProto | str, level: Any = ort.GraphOptimizationLevel.ORT_ENABLE_ALL, **files: Any) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level, options.intra_op_num_threads = level, 4, 1
    if files:
        options.optimized_model_filepath = str(files["optimized"])
    source = proto if isinstance(proto, str) else proto.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    shapes = {i.name: [d if isinstance(d, int) else 4 for d in i.shape] for i in session.get_inputs()}
    return session.run(None, {n: normal(*s, seed=7).astype(np.float32) for n, s in shapes.items()})[0]


def unfolded(model: Model, names: list[str]) -> dict[str, Array]:
    """The values of weights as onnxruntime computes them."""
    proto = onnxprune.to_proto(model)
    for name in names:
        info = next(i for i in proto.graph.value_info if i.name == name)
        proto.graph.output.append(info)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fixed = {n for n in model.weights}
    shapes = {i.name: [d if isinstance(d, int) else 4 for d in i.shape] for i in session.get_inputs()}
    feeds = {n: np.zeros(s, np.float32) for n, s in shapes.items() if n not in fixed}
    return dict(zip(names, session.run(names, feeds), strict=True))


def dense(model: Model, values: dict[str, Array]) -> onnx.ModelProto:
    out = model.copy()
    out.weights.update(values)
    return onnxprune.to_proto(out)


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize(("storage", "k"), [("uint8", 20), ("packed", 16), ("packed", 7), ("packed", 32)])
@pytest.mark.parametrize("opset", sorted(IR))
@pytest.mark.parametrize("name", ["matmul", "gemm", "conv"])
def test_equals_the_dense_model_of_the_same_values(name: str, opset: int, storage: Any, k: int, per: Any) -> None:
    model = load(net(name, opset))
    q, rows, _ = cluster(model, k=k, per=per, storage=storage)
    proto = onnxprune.to_proto(q)
    onnx.checker.check_model(proto, full_check=True)
    assert {o.version for o in proto.opset_import} == {opset} and proto.ir_version == IR[opset]
    values = unfolded(q, ["w"])["w"]
    assert len(np.unique(values)) <= k * (
        values.shape[find_weights(model)[0]["w"].axis] if rows[0].per != "tensor" else 1
    )
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        np.testing.assert_array_equal(outputs(proto, level), outputs(dense(model, {"w": values}), level))
    w = model.weights["w"].astype(np.float64)
    assert rows[0].error == pytest.approx(((w - values) ** 2).sum() / (w**2).sum(), rel=1e-6)
    assert rows[0].storage == storage and rows[0].error < 0.05


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("name", sorted(NETS))
def test_every_operator(name: str, per: Any, tmp_path: Path) -> None:
    model = load(net(name))
    q, (row,), _ = cluster(model, k=4, per=per)
    proto = onnxprune.to_proto(q)
    onnx.checker.check_model(proto, full_check=True)
    values = unfolded(q, ["w"])["w"]
    assert row.per == ("tensor" if name == "depthwise" else per)
    axis = find_weights(model)[0]["w"].axis if row.per == "channel" else None
    assert axis is None or all(len(np.unique(part)) <= 4 for part in np.moveaxis(values, axis, 0))
    assert axis is not None or len(np.unique(values)) == row.k
    assert row.k == (256 if name == "depthwise" else 4), "few weights, that matter much"
    folded = tmp_path / "folded.onnx"
    np.testing.assert_array_equal(outputs(proto, optimized=folded), outputs(dense(model, {"w": values})))
    left = {node.op_type for node in onnx.load(folded).graph.node}
    assert not left & {"Cast", "Gather", "Div", "Mod", "Reshape"}, "it costs nothing at run time"


def test_uint4() -> None:
    model = load(net("matmul", 21))
    q, (row,), _ = cluster(model, k=16, storage="uint4")
    proto = onnxprune.to_proto(q)
    onnx.checker.check_model(proto, full_check=True)
    assert TensorProto.UINT4 in {t.data_type for t in proto.graph.initializer} and row.storage == "uint4"
    assert row.bits_per_weight == pytest.approx(4, abs=0.3)
    values = unfolded(cluster(model, k=16, storage="packed")[0], ["w"])
    if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 23):
        np.testing.assert_array_equal(outputs(proto), outputs(dense(model, values)))
    for opset in (17, 13):
        with pytest.raises(OptionError, match="packed is as small"):
            cluster(load(net("matmul", opset)), k=16, storage="uint4")
    with pytest.raises(OptionError, match="lower --cluster 17"):
        cluster(model, k=17, storage="uint4")


def test_auto_is_the_smallest_and_counts_the_bytes() -> None:
    model = load(build("y = MatMul (x, w)", "float[n,256]", "float[n,256]", w=normal(256, 256)))
    sizes = {}
    for k in (2, 8, 16, 32, 64, 256):
        q, (row,), _ = cluster(model, k=k)
        arrays = sum(t.nbytes for n, t in q.weights.items() if not n.startswith("cluster_"))
        assert row.after_bytes == arrays and row.before_bytes == 4 * 256**2
        sizes[k] = row.bits_per_weight, row.storage
    assert [round(bits, 1) for bits, _ in sizes.values()] == [1.0, 3.2, 4.0, 5.3, 6.4, 8.1]
    assert [storage for _, storage in sizes.values()] == ["packed"] * 5 + ["uint8"]
    assert _digits(3) == (np.uint8, 5) and _digits(41) == (np.int32, 5)


def test_zeros_stay_and_zip() -> None:
    w = normal(128, 128)
    w[np.abs(w) < 1.3] = 0
    model = load(build("y = MatMul (x, w)", "float[n,128]", "float[n,128]", w=w))
    for per in ("tensor", "channel"):
        q, _, _ = cluster(model, k=16, per=per)
        values = unfolded(q, ["w"])["w"]
        np.testing.assert_array_equal(values == 0, w == 0)
        assert per == "channel" or zipped_bytes(q) < 0.3 * zipped_bytes(model)
        assert q.weights["w_codebook"].reshape(-1, 16)[:, 0].tolist() == [0] * (1 if per == "tensor" else 128)
    full = load(build("y = MatMul (x, w)", "float[n,128]", "float[n,128]", w=normal(128, 128)))
    assert zipped_bytes(cluster(model, k=16)[0]) < 0.7 * zipped_bytes(cluster(full, k=16)[0])


def test_one_codebook_where_many_would_not_pay() -> None:
    _, (row,), notes = cluster(load(net("conv")), k=64, per="channel")
    assert row.per == "tensor" and notes[0].startswith("w: one codebook for the whole weight")


def test_importance() -> None:
    model = load(net("matmul"))
    diagonal = np.geomspace(1, 1e4, 65)[:, None]
    w = model.weights["w"].astype(np.float64)
    errors = []
    for importance in (None, {"w": diagonal}):
        q, (row,), _ = cluster(model, k=8, importance=importance)
        errors.append(float((diagonal * (w - unfolded(q, ["w"])["w"]) ** 2).sum()))
    assert errors[1] < 0.95 * errors[0]
    assert row.error == pytest.approx(errors[1] / (diagonal * w**2).sum(), rel=1e-6)
    for bad in (np.ones(3), np.full((65, 33), -1.0)):
        with pytest.raises(OptionError, match="importance of 'w'"):
            cluster(model, k=8, importance={"w": bad})


def test_external_data(tmp_path: Path) -> None:
    proto = build("y = MatMul (x, w)", "float[n,256]", "float[n,256]", w=normal(256, 256))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    model = load(tmp_path / "m.onnx")
    q, _, _ = cluster(model, k=16)
    save(q, tmp_path / "q.onnx")
    data = next(tmp_path.glob("q.onnx.*.data"))
    assert data.stat().st_size < 40_000
    values = unfolded(q, ["w"])
    np.testing.assert_array_equal(outputs(str(tmp_path / "q.onnx")), outputs(dense(model, values)))
    np.testing.assert_array_equal(unfolded(load(tmp_path / "q.onnx"), ["w"])["w"], values["w"])
    expected = sum(len(zlib.compress(p.read_bytes(), 6)) for p in (tmp_path / "q.onnx", data))
    assert zipped_bytes(tmp_path / "q.onnx") == expected
    assert abs(zipped_bytes(q) - expected) < 20  # the file is called otherwise


def test_weight_of_a_constant_node_and_of_two_readers() -> None:
    proto = build("y = MatMul (x, w)", "float[n,64]", "float[n,64]", w=normal(64, 64))
    constant = helper.make_node("Constant", [], ["w"], value=proto.graph.initializer.pop())
    proto.graph.node.insert(0, constant)
    q, _, _ = cluster(load(proto), k=16)
    onnx.checker.check_model(onnxprune.to_proto(q), full_check=True)
    assert "Constant" not in {node.op_type for node in q.proto.graph.node}
    assert [node.name for node in q.proto.graph.node if not node.name] == [""]  # only the model's own MatMul


@pytest.mark.parametrize(
    ("proto", "why"),
    [
        (build("y = MatMul (x, w)", "float[n,4]", "float[n,4]", w=normal(4, 4)), "no smaller"),
        (build("y = MatMul (x, w)", "float[n,64]", "float[n,64]", w=np.full((64, 64), np.nan)), "NaN"),
        (build("y = MatMul (x, w)", "float16[n,64]", "float16[n,64]", w=normal(64, 64).astype(np.float16)), "float16"),
        (build("y = Relu (x)"), "no layer has one"),
    ],
)
def test_nothing_to_cluster(proto: Any, why: str) -> None:
    with pytest.raises(NothingToPrune, match=why):
        cluster(load(proto), k=16)


def test_weights_that_a_caller_may_override_stay() -> None:
    proto = net("gemm")
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [48, 64]))
    with pytest.raises(NothingToPrune, match="may override it"):
        cluster(load(proto), k=16)


def test_what_cannot_be_meant() -> None:
    model = load(net("gemm"))
    for options in ({"k": 1}, {"k": 257}, {"per": "row"}, {"storage": "int8"}, {"weights": ["b"]}, {"weights": ["?"]}):
        with pytest.raises(OptionError):
            cluster(model, **options)
    old = net("gemm", 7)
    old.opset_import[0].version = 6
    with pytest.raises(OptionError, match="below 7"):
        cluster(load(old))


def test_the_model_stays_as_it_was() -> None:
    model = load(net("gemm"))
    before, weights = model.proto.SerializeToString(), dict(model.weights)
    q, rows, _ = cluster(model, ["w"], 16)
    assert model.proto.SerializeToString() == before and model.weights == weights
    assert [row.weight for row in rows] == ["w"] and q.weights["b"] is weights["b"]
    with pytest.raises(NothingToPrune):  # there is no dense weight left
        cluster(q, k=16)


# real models


def agreement(name: str, q: Model) -> float:
    own = MODELS / f"{name}.npz"
    data = np.load(own if own.is_file() else MODELS / f"{name.split('_')[0]}_heldout.npz")
    feeds = {n: data[n][:50] for n in data.files if n != "labels"}
    classes = []
    for model in (load(MODELS / f"{name}.onnx"), q):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(onnxprune.to_proto(model).SerializeToString(), options)
        out = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})[0]
        classes.append(out > 0 if name == "digits_unet" else out.argmax(-1))
    return float((classes[0] == classes[1]).mean())


LARGE = 2_000_000  # bytes of weights, above which one number of values is enough


@pytest.mark.parametrize("name", sorted(p.stem for p in MODELS.glob("*.onnx") if ".pruned" not in p.name))
def test_models(name: str) -> None:
    model = load(MODELS / f"{name}.onnx")
    dense_size = sum(w.nbytes for w in model.weights.values())
    cases = ((16, 0.8, 0.18), (32, 0.9, 0.24), (256, 0.98, 0.32))
    for k, least_agreement, size in cases[: 1 if dense_size > LARGE else 3]:
        q, _, _ = cluster(model, k=k)
        onnx.checker.check_model(onnxprune.to_proto(q), full_check=True)
        assert agreement(name, q) >= least_agreement
        assert onnxprune.to_proto(q).ByteSize() < (size + 0.08) * dense_size


# end to end


def test_deep_compression_in_one_command(tmp_path: Path) -> None:
    """Han et al. 2016: zeros in steps with training between, then clusters, trained as they are stored."""
    source = MODELS / "digits_mlp.onnx"
    options: dict[str, Any] = {"cluster_storage": "uint8", "measure": False, "threads": 1}
    zeros: dict[str, Any] = {"sparsity": 0.9, "sparsity_allocate": "global"}
    result = onnxprune.prune(
        source, **zeros, steps=3, tune="80steps", learning_rate=5e-3, train=MODELS / "digits_mlp.npz",
        evaluate=MODELS / "digits_mlp.npz", cluster=8, **options,
    )  # fmt: skip
    report = result.save(tmp_path / "small.onnx").to_dict()
    assert "tuned 4 times, after every step of the zeros, and as clusters" in report["notes"]
    assert report["sparsity"]["zeros"] >= 0.899 * report["sparsity"]["weights"]
    found, sizes = report["codebooks"], {r["weight"]: r["k"] for r in report["codebooks"]["weights"]}
    written = load(tmp_path / "small.onnx")
    assert all(written.weights[f"{n}_codebook"].size <= 8 for n in sizes)
    assert found["ratio"] == source.stat().st_size / zipped_bytes(tmp_path / "small.onnx") > 20
    assert "the original file over" in str(result.report)
    assert report["evaluation"]["after"] > 0.95
    plain = onnxprune.prune(source, **zeros, cluster=8, evaluate=MODELS / "digits_mlp.npz", **options)
    assert plain.report.evaluation is not None and plain.report.evaluation.after < 0.5
    again = onnxprune.prune(source, plan=result.plan, train=MODELS / "digits_mlp.npz", measure=False, threads=1)
    assert all(np.array_equal(w, written.weights[n]) for n, w in again.model.weights.items())
