"""Kernels inside a training session: loss and gradients are those of the nodes that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from conftest import ROOT
from models.files import parse
from onnxprune.gradient.kernels import PLACES
from onnxprune.graph.io import load
from onnxprune.graph.ort import base_options
from onnxprune.kernels import header
from onnxprune.kernels.names import DOMAIN
from onnxprune.kernels.steps.tables import (
    BATCH_NORM,
    CLIP,
    CONV,
    CONV_WEIGHT,
    GRU,
    GRU_BACK,
    LSTM,
    LSTM_BACK,
    MAX_POOL,
    RNN,
    RNN_BACK,
)
from onnxprune.training import native
from onnxprune.training import step as step_module
from onnxprune.training.losses import Objective, Target
from onnxprune.training.native import missing
from onnxprune.training.step import Step
from onnxprune.training.trainer import Trainer


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    """The kernels; skips where the library is not built, or from another version."""
    why = missing(base_options())
    if why:
        pytest.skip(why)


THREE = "kernel_shape = [3,3], pads = [1,1,1,1]"
FORMS = {  # attributes of the second of two convolutions, channels of the first, filters, kernel, sides of the input
    "plain": (THREE, 5, 9, (3, 3), (7, 9)),
    "few-filters": (THREE, 6, 3, (3, 3), (6, 5)),
    "one-side": ("kernel_shape = [3,2], pads = [1,0,0,1]", 4, 8, (3, 2), (9, 8)),
    "dilated": ("kernel_shape = [3,3], pads = [2,1,2,1], dilations = [2,1]", 3, 10, (3, 3), (8, 8)),
    "strides": (f"{THREE}, strides = [2,1]", 3, 8, (3, 3), (9, 8)),
    "groups": (f"{THREE}, group = 2", 6, 10, (3, 3), (5, 7)),
    "depthwise": (f"{THREE}, group = 6", 6, 6, (3, 3), (6, 6)),
    "depthwise-strides": ("kernel_shape = [5,5], pads = [2,2,1,1], strides = [2,2], group = 4", 4, 4, (5, 5), (13, 10)),
    "depthwise-twice": (f"{THREE}, group = 3", 3, 6, (3, 3), (6, 6)),
    "same": ("auto_pad = \"SAME_UPPER\", kernel_shape = [3,3], strides = [2,2]", 4, 6, (3, 3), (9, 9)),
    "line": ("kernel_shape = [3], pads = [1,1]", 4, 8, (3,), (21,)),
    "wide": (THREE, 5, 70, (3, 3), (5, 5)),
    "broad": (THREE, 2, 3, (3, 3), (4, 75)),
}  # fmt: skip


def net(form: str, after: str = "y = Identity(h)", **more: Any) -> tuple[onnx.ModelProto, np.ndarray]:
    """Two convolutions, the first 1 x 1, and what stands behind; inputs of three samples."""
    attributes, channels, filters, kernel, sides = FORMS[form]
    group = int(attributes.partition("group = ")[2] or 1)
    sizes = ",".join(map(str, sides))
    out = ",".join(["N", "K", *(f"o{k}" for k in range(len(sides)))])
    model = parse(
        f"g (float[N,2,{sizes}] x) => (float[{out}] y) {{ a = Conv(x, first) c = Conv<{attributes}>(a, w, bias) "
        f"h = Clip(c, low, high) {after} }}"
    )
    rng = np.random.default_rng(len(form))
    arrays = {
        "first": rng.standard_normal((channels, 2, *[1] * len(kernel))),
        "w": rng.standard_normal((filters, channels // group, *kernel)), "bias": rng.standard_normal(filters),
        "low": np.array(-2.0), "high": np.array(1.5), **more,
    }  # fmt: skip
    for name, value in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return model, rng.standard_normal((3, 2, *sides)).astype(np.float32)


def trained(
    model: onnx.ModelProto,
    x: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    *,
    kernels: bool = True,
    threads: int = 1,
    by_batch: bool = False,
) -> tuple[Step, float, dict[str, np.ndarray]]:
    """A step, its loss of a batch, and the gradients."""
    with monkeypatch.context() as m:
        if not kernels:
            m.setattr(step_module, "missing", lambda options: "left out")
        objective = Objective((Target("y", "squared-error"),))
        step = Step(load(model), objective, {"x": x}, threads=threads, by_batch=by_batch)
        y = np.random.default_rng(1).standard_normal(shape_of(model, x)).astype(np.float32)
        loss = step.train({"x": x}, {"y": y})
    assert step.loss({"x": x[:2]}, {"y": y[:2]}) > 0  # another batch
    return step, loss, {n: step.layout.view(step.gradients, n).copy() for n in step.layout.places}


def shape_of(model: onnx.ModelProto, x: np.ndarray) -> tuple[int, ...]:
    from onnxprune.runtime.session import run

    return run(load(model), {"x": x})["y"].shape


def agree(
    model: onnx.ModelProto, x: np.ndarray, monkeypatch: pytest.MonkeyPatch, wanted: set[int], by_batch: bool = False
) -> None:
    ours, loss, gradients = trained(model, x, monkeypatch, by_batch=by_batch)
    plain, expected_loss, expected = trained(model, x, monkeypatch, kernels=False, by_batch=by_batch)
    assert not ours.missing and plain.missing == "left out"
    assert {k.number for k in ours.kernels} == wanted and not plain.kernels
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, g in expected.items():
        assert np.abs(g).max() > 0
        np.testing.assert_allclose(gradients[name], g, rtol=1e-4, atol=1e-5 * np.abs(g).max(), err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_convolutions(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards, to the input, and to the weights, before a Clip."""
    agree(*net(form), monkeypatch, {CONV, CONV_WEIGHT, CLIP})


@pytest.mark.parametrize(
    "pool",
    ["kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]", "kernel_shape = [2,2], strides = [2,2]",
     "kernel_shape = [2,3], strides = [1,2], dilations = [2,1]",
     "kernel_shape = [3,3], strides = [2,2], ceil_mode = 1", "kernel_shape = [2,4], strides = [2,3], pads = [0,1,0,0]"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["plain", "broad"])
def test_pools(form: str, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without elements that are equal."""
    model, x = net(form, f"s = Add(c, h) y = MaxPool<{pool}>(s)")
    agree(model, x, monkeypatch, {CONV, CONV_WEIGHT, CLIP, MAX_POOL})


def test_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    agree(*net("plain", "y = Relu(h)"), monkeypatch, {CONV, CONV_WEIGHT, CLIP})


PRODUCTS = {  # of 83 to 37 and back, and what x is; the first keeps no gradient of its input
    "MatMul": ("h = MatMul(x, u) y = MatMul(h, v)", "N,83", (70, 83)),
    "rows of rows": ("h = MatMul(x, u) y = MatMul(h, v)", "N,5,83", (3, 5, 83)),
    "Gemm": ("h = Gemm<transB = 1>(x, ut, a) y = Gemm(h, v, c)", "N,83", (16, 83)),
    "Gemm without a bias": ("h = Gemm(x, u) y = Gemm<transB = 1>(h, vt)", "N,83", (1, 83)),
}  # fmt: skip


@pytest.mark.parametrize("form", PRODUCTS)
def test_products_with_weights_that_are_mostly_zero(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output without an entry, and one with an odd number of them, are among them."""
    nodes, shape, sides = PRODUCTS[form]
    rng = np.random.default_rng(0)
    u, v = (rng.standard_normal(s) * (rng.random(s) < 0.06) for s in ((83, 37), (37, 83)))
    u[:, 5], v[:, 7] = 0, 0
    arrays = {"u": u, "v": v, "ut": u.T, "vt": v.T, "a": rng.standard_normal(37), "c": rng.standard_normal(83)}
    model = parse(f"g (float[{shape}] x) => (float[{shape}] y) {{ w = Identity(x) {nodes} }}")
    for name in (n for n in arrays if f"{n})" in nodes or f"{n}," in nodes):
        model.graph.initializer.append(numpy_helper.from_array(arrays[name].astype(np.float32), name))
    x = rng.standard_normal(sides).astype(np.float32)
    monkeypatch.setattr(native, "WIDE", 0)
    ours, loss, gradients = trained(model, x, monkeypatch, threads=2)
    plain, expected_loss, expected = trained(model, x, monkeypatch, kernels=False)
    assert (ours.products, plain.products) == (2 + 1 + 2, 0), "forwards, back to h, and forwards without gradients"
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, g in expected.items():
        np.testing.assert_allclose(gradients[name], g, rtol=1e-4, atol=1e-5 * np.abs(g).max(), err_msg=name)
    assert [list(g.ravel()) for g in trained(model, x, monkeypatch)[2].values()] == [
        list(g.ravel()) for g in gradients.values()
    ], "sums do not depend on the number of threads"


def test_products_go_by_masks_as_they_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """None below nine tenths of zeros; a mask that goes back takes them along."""
    monkeypatch.setattr(native, "WIDE", 0)
    folder = ROOT / "models"
    t = Trainer(folder / "digits_mlp.onnx", folder / "digits_mlp.npz", steps=9, batch_size=8, threads=1, init=0)
    start, found = t.state(), []
    layout, rng = t.run.step.layout, np.random.default_rng(2)
    places = {n: rng.random(shape) for n, (_, shape) in layout.places.items() if len(shape) == 2}
    for share in (0.2, 0.05):
        t.mask({n: x < share for n, x in places.items()})
        t.step()
        found.append(t.run.step.products)
    assert not any(layout.view(t.run.step.weights, n)[x >= 0.05].any() for n, x in places.items())
    t.restore(start)
    t.step()
    count = len(places)
    assert [*found, t.run.step.products] == [0, 3 * count - 1, 0], "forwards, backwards but for the first, held out"
    whole = Trainer(folder / "digits_mlp.onnx", folder / "digits_mlp.npz", steps=9, batch_size=8, threads=1, init=0)
    whole.step()
    assert np.array_equal(whole.run.step.weights, t.run.step.weights)


@pytest.mark.parametrize("sides", [(), (9,), (7, 5), (2, 3, 4)], ids=str)
def test_statistics_of_the_batch(sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """One normalisation behind another, so that all gradients of both are needed."""
    rng, shape = np.random.default_rng(3), ",".join(["N", "5", *map(str, sides)])
    model = parse(
        f"g (float[{shape}] x) => (float[{shape}] y) {{ p = Mul(x, first) a = Sigmoid(p) "
        "b = BatchNormalization(a, s, b1, m, v) "
        "c = Sigmoid(b) y = BatchNormalization<epsilon = 0.01>(c, s2, b1, m2, v2) }"
    )
    first = rng.uniform(1, 2, (5, *[1] * len(sides)))
    vectors = {"s": rng.uniform(1, 2, 5), "s2": rng.uniform(1, 2, 5), "b1": np.zeros(5), "m": np.zeros(5)}
    for name, value in {"first": first, **vectors, "m2": np.ones(5), "v": np.ones(5), "v2": np.ones(5)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    x = rng.standard_normal((6, 5, *sides)).astype(np.float32) + np.float32(3)
    agree(model, x, monkeypatch, {BATCH_NORM}, by_batch=True)


@pytest.mark.parametrize("form", ["groups", "gru"])
def test_any_number_of_threads(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are the same to the last bit."""
    made = net(form) if form in FORMS else recurrent(*RECURRENT[form])
    found = [trained(*made, monkeypatch, threads=threads)[2] for threads in (1, 2, 3)]
    for name, g in found[0].items():
        assert all(np.array_equal(g, other[name]) for other in found[1:])


def test_few_places_stay_with_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of weights needs a vector of places."""
    model, x = net("plain")
    x = x[..., :3, :5]
    assert x[0, 0].size < PLACES
    for k, size in enumerate(x.shape[2:]):
        model.graph.input[0].type.tensor_type.shape.dim[2 + k].dim_value = size
    agree(model, x, monkeypatch, {CONV, CLIP})


def test_gradients_for_a_file_are_plain() -> None:
    import onnxprune

    model = onnxprune.gradients(net("plain")[0], lambda b: b.reduce("ReduceMean", "y", range(4)), ["w"])
    assert DOMAIN not in {o.domain for o in model.opset_import}
    onnx.checker.check_model(model)


def test_header_of_the_kernels_is_what_tables_say() -> None:
    """After a change of steps/tables.py: `python -m onnxprune.kernels.header`, and build again."""
    assert header.STEPS_PLACE.read_text(encoding="utf-8") == header.steps_text()


AFTER, BOTH = {"linear_before_reset": 1}, {"direction": "bidirectional"}
RECURRENT: dict[str, tuple[str, dict[str, Any], int, str]] = {  # attributes, hidden units, outputs that are read
    "lstm": ("LSTM", {}, 21, "hnc"),
    "lstm-wide": ("LSTM", {}, 80, "h"),
    "lstm-last": ("LSTM", {"direction": "reverse"}, 16, "n"),
    "lstm-cell": ("LSTM", {}, 18, "c"),
    "lstm-both-ways": ("LSTM", BOTH, 16, "hnc"),
    "gru": ("GRU", AFTER, 70, "hn"),
    "gru-both-ways": ("GRU", AFTER | BOTH, 18, "h"),
    "gru-last": ("GRU", AFTER | {"direction": "reverse"}, 16, "n"),
    "rnn": ("RNN", {}, 35, "hn"),
    "rnn-relu": ("RNN", {"activations": ["Relu"], "direction": "reverse"}, 19, "h"),
}
KERNELS = {"LSTM": {LSTM, LSTM_BACK}, "GRU": {GRU, GRU_BACK}, "RNN": {RNN, RNN_BACK}}
OTHERS: dict[str, tuple[str, dict[str, Any], int, dict[int, Any]]] = {  # what kernels compute not; inputs by number
    "few-units": ("LSTM", {}, 12, {}),
    "lengths": ("LSTM", {}, 16, {4: np.array([2, 4, 3, 1, 4, 4, 4], np.int32)}),
    "peepholes": ("LSTM", {}, 16, {7: np.ones((1, 48), np.float32)}),
    "clip": ("LSTM", {"clip": 0.5}, 16, {}),
    "coupled": ("LSTM", {"input_forget": 1}, 16, {}),
    "hard": ("LSTM", {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, 16, {}),
    "reset-before": ("GRU", {}, 16, {}),
    "softsign": ("RNN", {"activations": ["Softsign"]}, 16, {}),
}


def recurrent(
    op: str, attributes: dict[str, Any], hidden: int, read: str, bare: bool = False, more: Mapping[int, Any] = {}
) -> tuple[onnx.ModelProto, np.ndarray]:
    """A recurrent node of four steps and seven samples; the product of what is read of all steps (h), the last states
    (n) and cells (c). bare: without bias and states before the first step."""
    rng, steps, samples, size = np.random.default_rng(hidden), 4, 7, 3
    gates, ways = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if "bidirectional" in attributes.values() else 1
    state = (ways, samples, hidden)
    arrays = {
        "w": rng.standard_normal((ways, gates * hidden, size)),
        "r": rng.standard_normal((ways, gates * hidden, hidden)) / 4,
        "side": rng.standard_normal((size, hidden)),
    }  # fmt: skip
    inputs = ["x", "w", "r", *[""] * (5 if op == "LSTM" else 3)]
    if not bare:
        arrays |= {"bias": rng.standard_normal((ways, 2 * gates * hidden)), "start": rng.standard_normal(state)}
        inputs[3], inputs[5] = "bias", "start"
        if op == "LSTM":
            arrays["cell"], inputs[6] = rng.standard_normal(state), "cell"
    init = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in arrays.items()]
    for i, array in more.items():
        inputs[i] = f"more{i}"
        init.append(numpy_helper.from_array(array, inputs[i]))
    init += [numpy_helper.from_array(np.array([axis]), name) for name, axis in (("at", 0), ("of_x", 1))]
    outputs = [name if name in read else "" for name in "hnc"[: 3 if op == "LSTM" else 2]]
    nodes = [helper.make_node(op, inputs, outputs, hidden_size=hidden, **attributes)]
    nodes += [helper.make_node("Unsqueeze", ["x", "of_x"], ["v"]), helper.make_node("MatMul", ["v", "side"], ["u"])]
    parts = ["u", *read]
    for k, name in enumerate(read):
        if name in "nc":
            nodes.append(helper.make_node("Unsqueeze", [name, "at"], [f"{name}1"]))
        nodes.append(helper.make_node("Mul", [parts[0], name if name == "h" else f"{name}1"], [f"m{k}"]))
        parts[0] = f"m{k}"
    nodes.append(helper.make_node("Identity", [parts[0]], ["y"]))
    ends = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ("A", "B", size)), ("y", (*"ACD", hidden)))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], init)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    return model, rng.standard_normal((steps, samples, size)).astype(np.float32)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("form", RECURRENT)
def test_recurrent(form: str, bare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    row = RECURRENT[form]
    agree(*recurrent(*row, bare), monkeypatch, KERNELS[row[0]])


@pytest.mark.parametrize("form", OTHERS)
def test_other_recurrent_layers_stay_with_the_nodes(form: str) -> None:
    op, attributes, hidden, more = OTHERS[form]
    model, x = recurrent(op, attributes, hidden, "h", more=more)
    step = Step(load(model), Objective((Target("y", "squared-error"),)), {"x": x})
    assert not step.kernels and "r" in step.trained
    assert np.isfinite(step.train({"x": x}, {"y": np.ones(shape_of(model, x), np.float32)}))
