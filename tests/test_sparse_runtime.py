"""The sparse operators in onnxruntime: results, threads, bad weights, the ends of processes, the cache, memory."""

from __future__ import annotations

import ctypes
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
import pytest
from onnx import ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper

from models.nets import noise
from onnxprune import formats
from onnxprune.formats.functions import function
from onnxprune.formats.operators import OPERATORS, least_version
from onnxprune.formats.values import encode, round_values
from onnxprune.graph.arrays import Array
from onnxprune.kernels import available, library, register
from onnxprune.kernels.names import ACTIVATIONS, PRODUCTS, VALUES
from onnxprune.layers.layer import from_rows, to_blocks, to_rows

pytestmark = pytest.mark.skipif(bool(available()), reason=available() or "sparse operators can run")

ROOT = Path(__file__).resolve().parent.parent
Form = float | tuple[int, int] | tuple[float, int, int]  # the density of CSR, or n:m, or density and size of tiles
PATTERNS: tuple[Form, ...] = ((2, 4), (1, 4), (4, 8), (1, 16), (3, 5))
TILES: tuple[Form, ...] = (
    (0.3, 1, 4), (0.1, 4, 1), (0.2, 4, 4), (1.0, 1, 4), (0.0, 4, 4), (0.4, 8, 12), (0.3, 2, 2), (0.1, 3, 5),
)  # fmt: skip
FORMS: tuple[Form, ...] = (0.0, 0.03, 0.12, 0.3, 1.0, *PATTERNS, *TILES)
CONV = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1}


# weights, models, and what they should compute


def storage_of(form: Form) -> str:
    return ("Nm" if len(form) == 2 else "Bsr") if isinstance(form, tuple) else "Csr"


def weight(shape: Sequence[int], form: Form, seed: int = 0) -> Array:
    """A weight that conforms to a form; CSR has an empty row where there is more than one."""
    w = noise(*shape, seed=seed)
    if isinstance(form, tuple) and len(form) == 3:
        share, r, c = form
        rows = to_rows(w, 1)[0].reshape(shape[0], -1, shape[1])
        keep = np.random.default_rng(seed + 1).random((-(-shape[0] // r), rows.shape[1], -(-shape[1] // c))) < share
        keep = keep.repeat(r, axis=0)[: shape[0]].repeat(c, axis=2)[:, :, : shape[1]]
        return from_rows(np.where(keep, rows, np.float32(0)).reshape(1, shape[0], -1), tuple(shape))
    if isinstance(form, tuple):
        blocks = np.array(to_blocks(w) if len(shape) > 2 else w)
        for k in range(0, blocks.shape[1], form[1]):
            part = blocks[:, k : k + form[1]]
            part[np.argsort(np.argsort(-np.abs(part), axis=1), axis=1) >= form[0]] = 0
        return blocks if len(shape) == 2 else np.moveaxis(blocks.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
    w[np.random.default_rng(seed + 1).random(shape) >= form] = 0
    if len(w) > 1 and form < 1:
        w[len(w) // 2] = 0
    return w


def arrays_of(w: Array, form: Form, values: str = "float32", group: int = 1) -> dict[str, Array]:
    """The arrays of a sparse operator, in order."""
    codes, scale = encode(w, values)
    scales = {} if scale is None else {"scale": scale}
    if isinstance(form, tuple) and len(form) == 3:
        tiles = formats.pack_bsr(to_rows(codes, group), *form[1:], w.shape[1])
        return dict(zip(("values", "indices", "indptr"), tiles, strict=True)) | scales
    if isinstance(form, tuple):
        rows = np.ascontiguousarray(to_blocks(codes) if w.ndim > 2 else codes)
        return dict(zip(("values", "positions"), formats.pack_nm(rows, *form), strict=True)) | scales
    return dict(zip(("values", "indices", "indptr"), formats.pack_csr(codes.reshape(len(w), -1)), strict=True)) | scales


def model_of(
    w: Array, form: Form, product: str = "MatMul", *, add: bool = False, activation: str = "",
    bias: Array | None = None, body: bool = False, values: str = "float32", **attributes: Any,
) -> ModelProto:  # fmt: skip
    """One sparse operator named `layer`; all sizes of X but those of the weight are free. body: with its function."""
    operator = OPERATORS[
        f"{storage_of(form)}{'Scaled' if values == 'int8' else ''}{product}{'Add' if add else ''}{activation}"
    ]
    bias = np.zeros(len(w), np.float32) if bias is None else bias
    arrays = arrays_of(w, form, values, attributes.get("group", 1)) | {"bias": bias}
    given = {"shape": w.shape, "alpha": 1.0, "dense": "Conv" if product == "Conv" else "MatMul", "weight": "MK"}
    if isinstance(form, tuple):
        given |= {"n": form[0], "m": form[1]} if len(form) == 2 else {"block": form[1:]}
    given |= ({"min": -0.5, "max": 0.75} if activation == "Clip" else {}) | CONV
    if w.ndim == 3:
        given |= {"strides": [1], "pads": [0, 0], "dilations": [1]}
    given |= attributes
    chosen = {name: given[name] for name in operator.attributes}
    node = helper.make_node(str(operator), operator.inputs, ["Y"], "layer", domain="onnxprune", **chosen)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("X", "residual")[: 1 + add]]
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in arrays.items()],
    )  # fmt: skip
    opsets = [
        helper.make_opsetid("", 17),
        helper.make_opsetid("onnxprune", least_version(operator, float32=values == "float32")),
    ]
    bodies = [made for made in [function(operator, 17)] if made and body]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=bodies)


def options_of(threads: int = 1, ours: bool = True) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if ours:
        register(options)
    return options


def session_of(model: ModelProto, threads: int = 1, ours: bool = True) -> ort.InferenceSession:
    return ort.InferenceSession(
        model.SerializeToString(), options_of(threads, ours), providers=["CPUExecutionProvider"]
    )


def run(session: ort.InferenceSession, x: Array, residual: Array | None = None) -> Array:
    result: Array = session.run(None, {"X": x} | ({} if residual is None else {"residual": residual}))[0]
    return result


def together(models: Sequence[ModelProto]) -> ModelProto:
    """One model of several, names with the number of theirs: every session takes 20 ms to learn all our operators."""
    out, *others = (compose.add_prefix(m, f"{k} ", rename_functions=False) for k, m in enumerate(models))
    for other in others:
        for field in ("node", "input", "output", "initializer"):
            getattr(out.graph, field).extend(getattr(other.graph, field))
        known = [f.name for f in out.functions]
        out.functions.extend(f for f in other.functions if f.name not in known)
        assert out.opset_import == other.opset_import
    return out


def run_each(session: ort.InferenceSession, feeds: Sequence[Sequence[Array]]) -> list[Array]:
    """X, and the residual where there is one, of each of several models `together`: what each computes."""
    named = {f"{k} {name}": x for k, each in enumerate(feeds) for name, x in zip(("X", "residual"), each, strict=False)}
    result: list[Array] = session.run(None, named)
    return result


def dense(w: Array, x: Array, product: str = "MatMul", **attributes: Any) -> Array:
    """The product in float64."""
    wide, x = w.astype(np.float64), x.astype(np.float64)
    if product != "Conv":
        return x @ wide.T if product == "MatMul" else wide @ x
    a = {**CONV, **({"strides": [1], "pads": [0, 0], "dilations": [1]} if w.ndim == 3 else {}), **attributes}
    axes, group = w.ndim - 2, a["group"]
    padding = list(zip(a["pads"][:axes], a["pads"][axes:], strict=True))
    x = np.pad(x, [(0, 0), (0, 0), *padding])
    reach = [d * (k - 1) + 1 for d, k in zip(a["dilations"], w.shape[2:], strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, a["strides"], strict=True)]
    y = np.zeros((len(x), len(w), *sizes))
    rows, channels = len(w) // group, w.shape[1]
    for tap in itertools.product(*map(range, w.shape[2:])):
        starts = [t * d for t, d in zip(tap, a["dilations"], strict=True)]
        window = [slice(b, b + s * n, s) for b, s, n in zip(starts, a["strides"], sizes, strict=True)]
        part = x[(slice(None), slice(None), *window)]
        for g in range(group):
            rows_of, channels_of = (slice(g * n, (g + 1) * n) for n in (rows, channels))
            at: Any = (rows_of, slice(None), *tap)
            y[:, rows_of] += np.einsum("mc,bc...->bm...", wide[at], part[:, channels_of])
    return y


def activated(x: Array, name: str, low: float = -0.5, high: float = 0.75) -> Array:
    """An activation in float64."""
    erf = np.vectorize(math.erf, otypes=[float])
    functions: dict[str, Callable[[], Array]] = {
        "": lambda: x,
        "Relu": lambda: np.maximum(x, 0),
        "Clip": lambda: np.minimum(np.maximum(x, low), high),
        "HardSwish": lambda: x * np.clip(x / 6 + 0.5, 0, 1),
        "Silu": lambda: x / (1 + np.exp(-x)),
        "Gelu": lambda: 0.5 * x * (1 + erf(x / math.sqrt(2))),
        "FastGelu": lambda: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    }
    return functions[name]()


def close(got: Array, expected: Array) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


# results


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("m", "k"), [(1, 1), (1, 70), (70, 1), (33, 47), (65, 130), (600, 300)])
def test_matmul(m: int, k: int, form: Form) -> None:
    w, bias = weight((m, k), form), noise(m, seed=3)
    session = session_of(model_of(w, form, bias=bias))
    for leading in [(), (1,), (2,), (3,), (5,), (2, 3), (2, 1, 9), (1, 1), (17,), (40,), (131,)]:
        x = noise(*leading, k, seed=len(leading))
        close(run(session, x), dense(w, x) + bias)


@pytest.mark.parametrize("form", [0.05, 0.4, (2, 4), (3, 5), *TILES[:3]])
def test_every_count_of_tokens_and_columns(form: Form) -> None:
    w = weight((37, 61), form)
    right, left = session_of(model_of(w, form)), session_of(model_of(w, form, "LeftMatMul"))
    for count in range(1, 41):
        x = noise(count, 61, seed=count)
        close(run(right, x), dense(w, x))
        close(run(left, np.ascontiguousarray(x.T)), dense(w, x).T)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("m", "k"), [(1, 1), (1, 33), (70, 1), (65, 130)])
def test_left_matmul(m: int, k: int, form: Form) -> None:
    w, bias = weight((m, k), form), noise(m, seed=3)
    session = session_of(model_of(w, form, "LeftMatMul", bias=bias))
    for leading, n in [((), 1), ((2,), 7), ((2, 3), 16), ((1, 1, 2), 70), ((), 131)]:
        x = noise(*leading, k, n, seed=n)
        close(run(session, x), dense(w, x, "LeftMatMul") + bias[:, None])


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [  # X, W, attributes
    ((1, 5, 7, 9), (6, 5, 1, 1), {}),
    ((2, 5, 7, 9), (6, 5, 1, 1), {"strides": [2, 2]}),
    ((2, 5, 7, 9), (6, 5, 1, 1), {"pads": [1, 0, 2, 1]}),
    ((3, 5, 7, 9), (6, 5, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 5, 12, 9), (7, 5, 3, 2), {"strides": [2, 3], "pads": [0, 1, 2, 3], "dilations": [2, 1]}),
    ((2, 5, 12, 11), (7, 5, 3, 3), {"strides": [3, 1], "pads": [4, 0, 0, 4], "dilations": [2, 3]}),
    ((1, 5, 3, 2), (4, 5, 3, 2), {}),
    ((2, 6, 8, 8), (8, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    ((2, 6, 8, 8), (6, 1, 3, 3), {"group": 6}),
    ((2, 6, 8, 8), (9, 2, 1, 1), {"group": 3, "strides": [1, 2]}),
    ((2, 5, 40), (6, 5, 1), {}),
    ((2, 5, 40), (6, 5, 5), {"strides": [2], "pads": [3, 1], "dilations": [2]}),
    ((1, 1, 6, 300), (1, 1, 2, 3), {"pads": [1, 1, 1, 1]}),
    ((1, 20, 14, 14), (80, 20, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((1, 3, 2, 2), (4, 3, 1, 1), {"pads": [2, 2, 2, 2], "strides": [3, 3]}),
]


@pytest.mark.parametrize("form", [0.0, 0.1, 0.5, 1.0, *PATTERNS, *TILES])
def test_conv(form: Form) -> None:
    weights = [(weight(shape, form), noise(shape[0], seed=3)) for _, shape, _ in CONVOLUTIONS]
    inputs = [noise(*shape, seed=4) for shape, _, _ in CONVOLUTIONS]
    rows = list(zip(weights, inputs, [attributes for _, _, attributes in CONVOLUTIONS], strict=True))
    models = [model_of(w, form, "Conv", bias=bias, **attributes) for (w, bias), _, attributes in rows]
    got = run_each(session_of(together(models)), [[x] for x in inputs])
    for y, ((w, bias), x, attributes) in zip(got, rows, strict=True):
        close(y, dense(w, x, "Conv", **attributes) + bias.reshape(-1, *[1] * (w.ndim - 2)))


HALVES = tuple(VALUES)[1:]


@pytest.mark.parametrize("values", HALVES)
@pytest.mark.parametrize("form", FORMS)
def test_values_of_matmul(form: Form, values: str) -> None:
    weights = [
        (round_values(weight(shape, form), values), noise(shape[0], seed=3))
        for shape in ((1, 1), (1, 70), (33, 47), (65, 130), (300, 200))
    ]
    options: dict[str, Any] = {"values": values, "alpha": -0.5}
    right, left = (
        [model_of(w, form, product, bias=bias, **options) for w, bias in weights]
        for product in ("MatMul", "LeftMatMul")
    )
    session = session_of(together(right + left))
    for count in (1, 2, 3, 4, 5, 17, 40):
        inputs = [noise(count, w.shape[1], seed=count) for w, _ in weights]
        expected = [bias - 0.5 * dense(w, x) for (w, bias), x in zip(weights, inputs, strict=True)]
        got = run_each(session, [[x] for x in inputs] + [[np.ascontiguousarray(x.T)] for x in inputs])
        for y, e in zip(got, expected + [e.T for e in expected], strict=True):
            close(y, e)


@pytest.mark.parametrize("values", HALVES)
@pytest.mark.parametrize("form", [0.1, 0.5, (2, 4), (3, 5), TILES[2]])
def test_values_of_conv(form: Form, values: str) -> None:
    rows = [
        (round_values(weight(w_shape, form), values), noise(*x_shape, seed=4), attributes)
        for x_shape, w_shape, attributes in CONVOLUTIONS
    ]
    session = session_of(together([model_of(w, form, "Conv", values=values, **some) for w, _, some in rows]))
    for y, (w, x, attributes) in zip(run_each(session, [[x] for _, x, _ in rows]), rows, strict=True):
        close(y, dense(w, x, "Conv", **attributes))


@pytest.mark.parametrize(("form", "k"), [(0.05, 20), (0.5, 4), ((2, 4), 4), *((tiles, 20) for tiles in TILES[:3])])
def test_every_code(form: Form, k: int) -> None:
    """All finite float16 and int8, and some bfloat16 of all exponents, one in a row: what they stand for, exactly."""
    for values, codes in (
        ("float16", np.arange(1 << 16).astype(np.uint16).view(np.float16)),
        ("bfloat16", np.arange(0, 1 << 16, 97).astype(np.uint16).view(VALUES["bfloat16"])),
        ("int8", np.arange(-127, 128).astype(np.int8)),
    ):
        with np.errstate(invalid="ignore"):
            all_of = codes.astype(np.float32)
        all_of = all_of[np.isfinite(all_of) & (np.abs(all_of) >= 2.0**-126)]  # a product below may be flushed to 0
        w = np.zeros((len(all_of), k), np.float32)
        w[:, 0], w[:, 3] = all_of, 127 * (values == "int8")  # a scale of 1
        session = session_of(model_of(w, form, values=values))
        for count in (1, 2, 9):
            x = np.zeros((count, k), np.float32)
            x[:, 0] = 1
            np.testing.assert_array_equal(run(session, x), np.tile(all_of, (count, 1)))


def test_values_take_fewer_bytes_in_a_session() -> None:
    """Only what few tokens read is packed for them, as it is stored."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)
    w = weight((2048, 2048), (2, 4))
    x, used = noise(1, 2048), {"float32": [0.0] * 3, "int8": [0.0] * 3}
    for values, each in used.items():
        for k in range(len(each)):
            session = session_of(model_of(round_values(w, values), (2, 4), values=values))
            trim(0)  # what the process holds and does not use would serve, and nothing be seen
            before = resident()
            run(session, x)
            each[k] = resident() - before
            del session
    # what else is allocated meanwhile only adds
    assert min(used["int8"]) < 0.5 * min(used["float32"])


INPUTS = {"MatMul": (3, 21), "LeftMatMul": (2, 21, 19), "Conv": (2, 7, 4, 5)}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("form", [0.4, (2, 4), *TILES[:3]])
@pytest.mark.parametrize("alpha", [1.0, -0.5])
def test_activations_and_residual(product: str, form: Form, alpha: float) -> None:
    w = weight((19, 7, 3, 1) if product == "Conv" else (19, 21), form)
    options: dict[str, Any] = {"pads": [1, 0, 1, 0]} if product == "Conv" else {}
    rows = list(itertools.product(ACTIVATIONS, (False, True)))
    models = [model_of(w, form, product, add=add, activation=a, alpha=alpha, **options) for a, add in rows]
    session = session_of(together(models))
    for shape in [(count, 21) for count in (1, 2, 7, 20)] if product == "MatMul" else [INPUTS[product]]:
        x = 3 * noise(*shape, seed=5)
        plain = alpha * dense(w, x, product, **options)
        residual = noise(*plain.shape, seed=6)
        got = run_each(session, [[x, residual] if add else [x] for _, add in rows])
        for y, (activation, add) in zip(got, rows, strict=True):
            close(y, activated(plain + residual if add else plain, activation))


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 6.0), (-math.inf, 0.25), (0.5, math.inf), (-math.inf, math.inf), (1.0, -1.0)]
)
def test_bounds_of_clip(low: float, high: float) -> None:
    w = weight((19, 21), 0.4)
    session = session_of(model_of(w, 0.4, activation="Clip", min=low, max=high))
    for count in (1, 30):
        x = noise(count, 21)
        close(run(session, x), activated(dense(w, x), "Clip", low, high))


@pytest.mark.parametrize("form", [0.0, 0.4, (2, 4), TILES[2]])
def test_nothing_comes_of_nothing(form: Form) -> None:
    w, w4 = weight((9, 12), form), weight((9, 12, 3, 1), form)
    right, left, conv = (session_of(model_of(w4 if product == "Conv" else w, form, product)) for product in PRODUCTS)
    for shape in ((0, 12), (2, 0, 12), (0, 3, 12)):
        assert run(right, noise(*shape)).shape == (*shape[:-1], 9)
    for shape in ((12, 0), (0, 12, 5), (2, 12, 0)):
        assert run(left, noise(*shape)).shape == (*shape[:-2], 9, shape[-1])
    assert run(conv, noise(0, 12, 5, 4)).shape == (0, 9, 3, 4)
    with pytest.raises(Exception, match="larger than the padded X"):  # as the dense Conv
        run(conv, noise(2, 12, 5, 0))


@pytest.mark.parametrize("form", [0.05, 0.5, (2, 4), (3, 5), *TILES[:3]])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_spread_where_weights_are_stored(form: Form, bad: float) -> None:
    """A row that stores no weight there may or may not show them; other tokens never do."""
    w = weight((37, 61), form)
    session = session_of(together([model_of(w, form, activation=activation) for activation in ACTIVATIONS]))
    for count in (2, 9, 30):
        x = noise(count, 61)
        x[1, 17] = bad
        rest = np.arange(count) != 1
        for activation, got in zip(ACTIVATIONS, run_each(session, [[x]] * len(ACTIVATIONS)), strict=True):
            shows = w[:, 17] != 0
            if np.isinf(bad) and activation:  # minus infinity may become 0, or 0 times infinity; Clip has bounds
                shows = (w[:, 17] * np.sign(bad) > 0) & (activation != "Clip")
            assert not np.isfinite(got[1][shows]).any()
            close(got[rest], activated(dense(w, x[rest]), activation))


def test_values_may_be_extreme_in_size() -> None:
    w = np.array([[1e-42, 0, 0], [0, 3e38, 0], [0, 0, -1.5]], np.float32)
    x = np.array([[1, 10, 2]], np.float32)
    got = run(session_of(model_of(w, 0.4)), x)
    assert got[0, 1] == np.inf
    assert got[0, 2] == -3


@pytest.mark.parametrize("form", [0.1, (0.1, 1, 4), (0.1, 4, 1)])
def test_more_columns_than_uint16_can_tell_apart(form: Form) -> None:
    w = np.zeros((3, 70000), np.float32)
    w[[0, 0, 2, 2], [3, 69999, 65536, 12]] = (1, 2, 3, 4)
    model = model_of(w, form)
    assert numpy_helper.to_array(model.graph.initializer[1]).dtype == (np.uint16 if form == (0.1, 1, 4) else np.int32)
    session = session_of(model)
    for count in (1, 5):
        x = noise(count, 70000)
        close(run(session, x), dense(w, x))


# threads, sessions, changing shapes


@pytest.mark.parametrize("form", [0.05, 0.5, (2, 4), TILES[0], TILES[2]])
@pytest.mark.parametrize("product", PRODUCTS)
def test_threads_give_the_same_bytes(product: str, form: Form) -> None:
    w = weight((256, 64, 3, 3) if product == "Conv" else (600, 300), form)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "MatMul": [(1, 300), (4, 300), (9, 300), (200, 300)],
        "LeftMatMul": [(2, 300, 70)],
        "Conv": [(2, 64, 14, 14)],
    }
    sessions = [session_of(model_of(w, form, product, activation="Silu"), threads) for threads in (1, 2, 4)]
    for shape in shapes[product]:
        x = noise(*shape)
        one, *others = (run(session, x).tobytes() for session in sessions)
        assert all(other == one for other in others)


def test_many_threads_call_one_session() -> None:
    w = weight((130, 300), 0.2)
    session = session_of(model_of(w, 0.2, activation="Relu"), threads=2)
    inputs = [noise(count, 300, seed=count) for count in (1, 2, 3, 17, 64, 200)]
    expected = [activated(dense(w, x), "Relu") for x in inputs]
    with ThreadPoolExecutor(8) as pool:  # the first runs race for the packing of the weight
        for i, got in enumerate(pool.map(lambda i: run(session, inputs[i % 6]), range(240))):
            close(got, expected[i % 6])


def test_many_sessions_at_once() -> None:
    weights = [weight((40 + i, 100), 0.3, seed=i) for i in range(20)]
    x = noise(9, 100)

    def work(i: int) -> None:
        session = session_of(model_of(weights[i], 0.3), threads=1 + i % 3)
        for _ in range(5):
            close(run(session, x), dense(weights[i], x))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(20)))
    sessions = [session_of(model_of(w, 0.3)) for w in weights]
    for session, w in zip(sessions, weights, strict=True):
        close(run(session, x), dense(w, x))


@pytest.mark.parametrize("product", PRODUCTS)
def test_batch_changes_from_run_to_run(product: str) -> None:
    w = weight((32, 8, 3, 3) if product == "Conv" else (32, 72), 0.3)
    session = session_of(model_of(w, 0.3, product), threads=2)
    one = {"MatMul": (72,), "LeftMatMul": (72, 5), "Conv": (8, 9, 10)}[product]
    for batch in (1, 64, 1, 3, 64, 2):
        x = noise(batch, *one, seed=batch)
        close(run(session, x), dense(w, x, product))


def test_x_that_does_not_fit() -> None:
    right, left = (session_of(model_of(weight((9, 12), 0.4), 0.4, product)) for product in ("MatMul", "LeftMatMul"))
    conv = session_of(model_of(weight((9, 12, 3, 1), 0.4), 0.4, "Conv"))
    line = session_of(model_of(weight((9, 12, 3), 0.4), 0.4, "Conv"))
    added = session_of(model_of(weight((9, 12), 0.4), 0.4, add=True))
    wrong: list[tuple[ort.InferenceSession, list[tuple[int, ...]]]] = [
        (right, [(2, 11), (12, 2), ()]), (left, [(11, 2), (12,)]),
        (conv, [(1, 11, 5, 5), (1, 12, 5), (1, 12, 2, 5), (12, 5, 5), (1, 1, 12, 5, 5)]),
        (line, [(1, 12, 5, 5), (1, 12, 2)]),
    ]  # fmt: skip
    for session, shapes in wrong:
        for shape in shapes:
            with pytest.raises(Exception, match="onnxprune: node layer: "):
                run(session, noise(*shape))
    for shape in ((3, 9), (2, 8), (9,), (1, 2, 9)):
        with pytest.raises(Exception, match="node layer: residual must"):
            run(added, noise(2, 12), noise(*shape))
    assert run(right, noise(2, 12)).shape == (2, 9)


# bad weights


def edited(form: Form, product: str = "MatMul", kind: str = "float32", **edits: Any) -> ModelProto:
    """A model of 4 x 8 weights, arrays and attributes replaced; a None removes an attribute."""
    w = weight((4, 8, 1, 1) if product == "Conv" else (4, 8), form, seed=7)
    model = model_of(w, form, product, values=kind)
    node = model.graph.node[0]
    for name, value in edits.items():
        for tensor in model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(value, name))
        for attribute in list(node.attribute):
            if attribute.name == name:
                node.attribute.remove(attribute)
                if value is not None:
                    node.attribute.append(helper.make_attribute(name, value))
    return model


def put(array: Array, at: Any, value: Any) -> Array:
    array = array.copy()
    array[at] = value
    return array


CSR, NM = (arrays_of(weight((4, 8), form, seed=7), form) for form in (0.5, (2, 4)))
NNZ = len(CSR["values"])
BAD_CSR: list[tuple[dict[str, Any], str]] = [
    ({"indptr": put(CSR["indptr"], 1, -1)}, "indptr falls"),
    ({"indptr": put(CSR["indptr"], 2, NNZ + 1)}, "indptr"),
    ({"indptr": put(CSR["indptr"], 2, 2**31 - 1)}, "indptr"),
    ({"indptr": put(CSR["indptr"], 2, -(2**31))}, "indptr"),
    ({"indptr": put(CSR["indptr"], 0, 1)}, "indptr does not start at 0"),
    ({"indptr": put(CSR["indptr"], 4, NNZ - 1)}, "indptr"),
    ({"indptr": put(CSR["indptr"], 4, NNZ + 1)}, "indptr exceeds"),
    ({"indptr": CSR["indptr"][:-1]}, "indptr has length 4"),
    ({"indptr": CSR["indptr"][None]}, "indptr has 2 axes"),
    ({"indptr": CSR["indptr"].astype(np.int64)}, "indptr"),
    ({"indices": put(CSR["indices"], 0, 8)}, "indices"),
    ({"indices": put(CSR["indices"], NNZ - 1, 65535)}, "outside the row"),
    ({"indices": put(CSR["indices"], 1, CSR["indices"][0])}, "does not rise"),
    ({"indices": CSR["indices"][:-1]}, "indices has length"),
    ({"indices": CSR["indices"].astype(np.int32)}, "indices has the wrong type"),
    ({"indices": CSR["indices"].astype(np.float32)}, "indices has the wrong type"),
    ({"values": CSR["values"][:-1]}, "indices has length"),
    ({"values": CSR["values"][None]}, "values has 2 axes"),
    ({"values": CSR["values"].astype(np.float64)}, "values"),
    ({"values": put(CSR["values"], 2, np.nan)}, r"values\[2\] is not finite"),
    ({"values": put(CSR["values"], 0, np.inf)}, r"values\[0\] is not finite"),
    ({"bias": noise(5)}, "bias has length 5"),
    ({"bias": put(noise(4), 3, -np.inf)}, r"bias\[3\] is not finite"),
    ({"bias": put(noise(4), 1, np.nan)}, r"bias\[1\] is not finite"),
    ({"shape": [4, 7]}, "indices"),
    ({"shape": [5, 8]}, "indptr has length 5"),
    ({"shape": [-4, 8]}, "shape holds -4"),
    ({"shape": [4, 0]}, "shape holds 0"),
    ({"shape": [4, 2**31]}, "shape holds"),
    ({"shape": [4, 2**31 - 1]}, "2\\^31"),
    ({"shape": [4]}, "shape must hold 2 integers"),
    ({"shape": [4, 8, 1]}, "shape must hold 2 integers"),
    ({"shape": None}, "shape must hold 2 integers"),
    ({"shape": 4}, "shape must hold 2 integers"),
    ({"alpha": math.nan}, "alpha is not a number"),
    ({"alpha": math.inf}, "alpha is not finite"),
    ({"alpha": None}, "alpha is missing"),
]
BAD_NM: list[tuple[dict[str, Any], str]] = [
    ({"positions": put(NM["positions"], (1, 0), 0)}, "positions of row 1 do not rise within a block"),
    ({"positions": put(NM["positions"], (3, 0), 0b0100_0001)}, "positions of row 3 do not rise"),
    ({"positions": NM["positions"][:, :0]}, "positions has length 0"),
    ({"positions": NM["positions"][:3]}, "positions has length 3"),
    ({"positions": NM["positions"].astype(np.int8)}, "positions"),
    ({"positions": NM["positions"][0]}, "positions has 1 axes"),
    ({"values": NM["values"].reshape(4, -1)}, "values has 2 axes"),
    ({"values": NM["values"][:, :1]}, "values has length 1"),
    ({"values": put(NM["values"], (0, 0, 0), np.nan)}, r"values\[0\] is not finite"),
    ({"values": put(NM["values"], (3, 1, 1), -np.inf)}, r"values\[15\] is not finite"),
    ({"bias": put(noise(4), 1, np.nan)}, r"bias\[1\] is not finite"),
    ({"n": 3}, "values has length 2"),
    ({"n": 0}, "n is 0"),
    ({"n": -1}, "n is -1"),
    ({"n": 5}, "n is 5"),
    ({"m": 1}, "m is 1"),
    ({"m": 257}, "m is 257"),
    ({"m": 2**40}, "m is"),
    ({"m": 3}, "values|positions"),
    ({"n": None}, "n is missing"),
    ({"shape": [4, 7]}, "values of row . lie beyond its end"),
    ({"shape": [4, 9]}, "values has length 2"),
    ({"shape": [2**31 - 1, 8]}, "2\\^31"),
]
TILED = arrays_of(weight((4, 8), (0.6, 3, 3), seed=7), (0.6, 3, 3))
LAST = len(TILED["values"]) - 1
BAD_BSR: list[tuple[dict[str, Any], str]] = [
    ({"indptr": put(TILED["indptr"], 1, -1)}, "indptr falls"),
    ({"indptr": put(TILED["indptr"], 1, LAST + 2)}, "indptr exceeds"),
    ({"indptr": put(TILED["indptr"], 2, LAST)}, "indptr"),
    ({"indptr": put(TILED["indptr"], 0, 1)}, "indptr does not start at 0"),
    ({"indptr": TILED["indptr"][:-1]}, "indptr has length 2"),
    ({"indices": put(TILED["indices"], LAST, 3)}, "outside the row"),
    ({"indices": put(TILED["indices"], 1, TILED["indices"][0])}, "does not rise"),
    ({"indices": TILED["indices"][:-1]}, "indices has length"),
    ({"indices": TILED["indices"].astype(np.int32)}, "indices has the wrong type"),
    ({"values": TILED["values"][:-1]}, "indices has length"),
    ({"values": TILED["values"][:, :2]}, "values has length 2 in axis 1"),
    ({"values": TILED["values"].reshape(LAST + 1, -1)}, "values has 2 axes"),
    ({"values": put(TILED["values"], (0, 1, 2), np.nan)}, r"values\[5\] is not finite"),
    ({"values": put(TILED["values"], (LAST, 1, 0), 1)}, f"values of tile {LAST} lie beyond the edges"),
    ({"shape": [4, 7]}, "lie beyond the edges"),
    ({"shape": [3, 8]}, "indptr has length 3"),
    ({"block": [3, 4]}, "values has length 3 in axis 2"),
    ({"block": [3, 0]}, "block holds 0"),
    ({"block": [65, 3]}, "block holds 65, above 64"),
    ({"block": [2**40, 3]}, "block holds"),
    ({"block": [3]}, "block must hold 2 integers"),
    ({"block": None}, "block must hold 2 integers"),
]
BAD_CONV: list[tuple[dict[str, Any], str]] = [
    ({"group": 3}, "group 3 does not divide"),
    ({"group": 0}, "group is 0"),
    ({"group": -1}, "group is -1"),
    ({"strides": [1, 0]}, "strides holds 0"),
    ({"strides": [1]}, "strides must hold 2"),
    ({"strides": [1, 2**21]}, "stride"),
    ({"dilations": [0, 1]}, "dilations holds 0"),
    ({"dilations": [1, -1]}, "dilations holds -1"),
    ({"pads": [0, 0, -1, 0]}, "pads holds -1"),
    ({"pads": [0, 0]}, "pads must hold 4"),
    ({"pads": [0, 0, 0, 2**40]}, "pads holds"),
    ({"shape": [4, 8, 0, 1]}, "shape holds 0"),
    ({"shape": [4, 8, 1]}, "strides must hold 1"),
    ({"shape": [4, 8]}, "shape must hold 4"),
    ({"shape": [4, 8, 1, 1, 1]}, "shape must hold 4"),
    ({"shape": [4, 2**20, 2**20, 1]}, "too large"),
    ({"group": None}, "group is missing"),
]


BAD_SCALED: list[tuple[dict[str, Any], str]] = [
    ({"scale": np.array([1, 1, np.nan, 1], np.float32)}, r"scale\[2\] is not a finite number above 0"),
    ({"scale": np.array([1, 1, 1, np.inf], np.float32)}, r"scale\[3\] is not"),
    ({"scale": np.array([0, 1, 1, 1], np.float32)}, r"scale\[0\] is not"),
    ({"scale": np.array([1, -1, 1, 1], np.float32)}, r"scale\[1\] is not"),
    ({"scale": np.array([1, 1, 1], np.float32)}, "scale has length 3"),
    ({"scale": np.ones((4, 1), np.float32)}, "scale has 2 axes"),
    ({"scale": np.ones(4)}, "scale"),
    ({"values": CSR["values"]}, "values"),
    ({"values": CSR["values"].astype(np.uint8)}, "values"),
]
BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"values": CSR["values"].astype(np.int8)}, "values has the wrong type"),
    ({"values": CSR["values"].astype(np.uint16)}, "values has the wrong type"),
    ({"values": put(CSR["values"].astype(np.float16), 1, np.nan)}, r"values\[1\] is not finite"),
    ({"values": put(CSR["values"].astype(np.float16), 0, -np.inf)}, r"values\[0\] is not finite"),
    ({"values": put(CSR["values"].astype(VALUES["bfloat16"]), 0, np.inf)}, r"values\[0\] is not finite"),
    ({"values": put(CSR["values"].astype(VALUES["bfloat16"]), 2, np.nan)}, r"values\[2\] is not finite"),
]


TYPE = "Type 'tensor.* of input parameter"


def refused(model: ModelProto, words: str) -> None:
    """The session is not made, and the error has the node's name and these words; onnxruntime itself checks types."""
    with pytest.raises(Exception, match=rf"node layer: .*({words})|{TYPE}.*{words.split()[0]}.* in node \(layer\)"):
        session_of(model)


@pytest.mark.parametrize(("edits", "words"), BAD_CSR)
def test_bad_csr(edits: dict[str, Any], words: str) -> None:
    refused(edited(0.5, **edits), words)


@pytest.mark.parametrize(("edits", "words"), BAD_SCALED)
def test_bad_scaled(edits: dict[str, Any], words: str) -> None:
    refused(edited(0.5, kind="int8", **edits), words)


@pytest.mark.parametrize(("edits", "words"), BAD_VALUES)
def test_bad_values(edits: dict[str, Any], words: str) -> None:
    refused(edited(0.5, **edits), words)


@pytest.mark.parametrize(("edits", "words"), BAD_NM)
def test_bad_nm(edits: dict[str, Any], words: str) -> None:
    refused(edited((2, 4), **edits), words)


@pytest.mark.parametrize(("edits", "words"), BAD_BSR)
def test_bad_bsr(edits: dict[str, Any], words: str) -> None:
    refused(edited((0.6, 3, 3), **edits), words)


@pytest.mark.parametrize(("edits", "words"), BAD_CONV)
@pytest.mark.parametrize("form", [0.5, (2, 4), (0.6, 3, 3)])
def test_bad_conv(edits: dict[str, Any], words: str, form: Form) -> None:
    refused(edited(form, "Conv", **edits), words)


def test_positions_outside_their_block() -> None:
    model = model_of(weight((2, 5), (1, 5)), (1, 5))
    position = model.graph.initializer[1]
    position.CopyFrom(numpy_helper.from_array(np.array([[0], [5]], np.uint8), "positions"))
    refused(model, "positions of row 1 lie outside their block")
    position.CopyFrom(numpy_helper.from_array(np.array([[0b1000], [1]], np.uint8), "positions"))
    refused(model, "positions of row 0 have bits set")


@pytest.mark.parametrize("form", [0.5, (2, 4), (0.6, 3, 3)])
def test_weights_must_be_constant(form: Form) -> None:
    for name in (*arrays_of(weight((4, 8), form), form), "bias"):
        model = edited(form)
        tensor = next(t for t in model.graph.initializer if t.name == name)
        model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        refused(model, f"{name} must be an initializer or a constant")  # an initializer that a feed may override
        model.graph.initializer.remove(tensor)
        refused(model, f"{name} must be an initializer or a constant")


@pytest.mark.parametrize("form", [0.5, (2, 4), (0.6, 3, 3)])
def test_inputs_left_out(form: Form) -> None:
    for i, count in itertools.product(range(4), (None, 1, 3)):
        model = edited(form)
        node = model.graph.node[0]
        if count is None:
            node.input[i] = ""
        else:
            del node.input[count:]
        try:
            session = session_of(model)
        except Exception as error:
            assert "layer" in str(error)
        else:  # X alone may be missing in the file
            with pytest.raises(Exception, match="X is missing"):
                session.run(None, {})


def test_names_in_errors() -> None:
    model = edited(0.5, alpha=math.nan)
    node = model.graph.node[0]
    long, odd = "ß" * 300, "a" + "ß" * 300
    for name, found in (
        (long, long[:127]),
        (odd, odd[:128]),
        ("", "Y"),
        ("%s%n", "%s%n"),
        ("layer 漢😀", "layer 漢😀"),
    ):
        node.name = name
        with pytest.raises(Exception) as caught:
            session_of(model)
        assert f"onnxprune: node {found}: attribute alpha is not a number" in str(caught.value)


@pytest.mark.parametrize(
    "odd", [b"\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\xe6\xbc"]
)
def test_names_that_are_no_text(odd: bytes) -> None:
    model = edited(0.5, alpha=math.nan)
    model.graph.node[0].name = "l" * len(odd)
    data = model.SerializeToString().replace(b"l" * len(odd) + b"\x22", odd + b"\x22")  # the next field follows
    with pytest.raises(Exception, match=r"onnxprune: node [?]+: attribute alpha is not a number"):
        ort.InferenceSession(data, options_of(), providers=["CPUExecutionProvider"])


# the library and the functions


def test_the_library_wins_over_a_function() -> None:
    w, x = weight((9, 12), 0.4), noise(3, 12)
    model = model_of(w, 0.4, body=True)
    close(run(session_of(model, ours=False), x), dense(w, x))
    body = model.functions[0]
    name = body.output[0]
    for node in body.node:  # another answer
        for i, output in enumerate(node.output):
            if output == name:
                node.output[i] = "right"
    body.node.append(NodeProto(op_type="Neg", input=["right"], output=[name]))
    close(run(session_of(model, ours=False), x), -dense(w, x))
    close(run(session_of(model), x), dense(w, x))


@pytest.mark.parametrize("form", [0.4, (2, 4), (3, 5), TILES[0], TILES[2], (0.5, 3, 2)])
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("values", VALUES)
def test_functions_and_kernels_agree(product: str, form: Form, values: str) -> None:
    w = weight((19, 7, 3, 1) if product == "Conv" else (19, 21), form)
    options: dict[str, Any] = {"alpha": 0.5, "bias": noise(19), "values": values, "body": True}
    chosen = ACTIVATIONS if values in ("float32", "int8") else ("", "Gelu")
    model = together([model_of(w, form, product, add=True, activation=activation, **options) for activation in chosen])
    x = noise(*INPUTS[product])
    feeds = [[x, noise(*dense(w, x, product).shape)]] * len(chosen)
    kernels, functions = (run_each(session_of(model, ours=ours), feeds) for ours in (True, False))
    for a, b in zip(kernels, functions, strict=True):
        close(a, b)


def test_without_function_and_library() -> None:
    with pytest.raises(Exception, match="is not a registered function/op"):
        session_of(model_of(weight((9, 12), 0.4), 0.4), ours=False)


# processes

HEAD = """
import sys, threading, time
import numpy as np
sys.path.insert(0, {tests!r})
from test_sparse_runtime import dense, model_of, noise, run, session_of, weight
w, x = weight((130, 300), 0.2), noise(20, 300)
model = model_of(w, 0.2)
def check(session):
    np.testing.assert_allclose(run(session, x), dense(w, x), rtol=1e-4, atol=1e-4)
"""
ENDS = {
    "global": "session = session_of(model, 2); check(session)",
    "cycle": "a = [session_of(model, 2)]; a.append(a); check(a[0]); import gc; gc.disable()",
    "before the modules": "session = session_of(model, 2); check(session); del session",
    "after the modules": """
session = session_of(model, 2)
check(session)
import builtins
builtins.kept = session
for name in [n for n in sys.modules if n.startswith(("onnxprune", "numba", "llvmlite"))]:
    del sys.modules[name]
import gc
gc.collect()
check(session)
""",
    "thread": """
def work():
    global session
    session = session_of(model, 2)
    check(session)
thread = threading.Thread(target=work); thread.start(); thread.join(); check(session)
""",
    "daemon thread": """
# in a kernel when the interpreter ends; one that comes back to Python by then aborts in onnxruntime, also without us
w = weight((2048, 2048), 1.0)
session = session_of(model_of(w, 1.0))
run(session, noise(9, 2048))
x = np.ones((20000, 2048), np.float32)
threading.Thread(target=lambda: run(session, x), daemon=True).start()
time.sleep(0.3)
""",
    "exception": """
session = session_of(model, 2)
try:
    run(session, x[:, 1:])
except Exception as error:
    assert "expected 300" in str(error)
check(session)
model.graph.node[0].input[1] = 'bias'
try:
    session_of(model)
except Exception as error:
    kept = error
""",
    "exit hook": "import atexit; session = session_of(model, 2); atexit.register(lambda: check(session)); sys.exit(0)",
    "pools": """
import multiprocessing
session = session_of(model)
check(session)
def work(i):
    check(session)  # of one thread, so it may be used after a fork
    check(session_of(model, 2))
    return i
if __name__ == "__main__":
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert sum(pool.map(work, range(8))) == 28
""",
}


def python(folder: Path, text: str, **environment: str) -> str:
    """Run a script in a new process: what it prints, if it exits with 0."""
    script = folder / "script.py"
    script.write_text(HEAD.format(tests=str(ROOT / "tests")) + text)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path, **environment}, text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
@pytest.mark.parametrize("end", ENDS)
def test_processes_end_well(end: str, tmp_path: Path) -> None:
    python(tmp_path, ENDS[end])


EDGES = """
import ctypes, itertools, mmap
import onnxruntime as ort
from onnx import numpy_helper
import test_int8
from test_sparse_runtime import FORMS, options_of
libc, kept = ctypes.CDLL(None), []

def edged(a):  # a copy that ends where a page begins that nobody may read
    size = -(-max(a.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(at + size), mmap.PAGESIZE, 0) == 0
    out = np.frombuffer(memory, a.dtype, a.size, size - a.nbytes).reshape(a.shape)
    out[...] = a
    kept.append((memory, out))
    return out

def at_edges(model, x):
    options, values = options_of(), []
    for t in model.graph.initializer:
        values.append(ort.OrtValue.ortvalue_from_numpy(edged(numpy_helper.to_array(t))))
        options.add_initializer(t.name, values[-1])
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    y = run(session_of(model), x)
    out, binding, x = edged(np.zeros_like(y)), session.io_binding(), edged(x)
    binding.bind_input("X", "cpu", 0, x.dtype, x.shape, x.ctypes.data)
    binding.bind_output("Y", "cpu", 0, y.dtype, y.shape, out.ctypes.data)
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(out, y)

for form in FORMS:
    for values in ("float32", "int8"):
        for tokens in (1, 2, 4, 23):
            at_edges(model_of(weight((37, 83), form), form, values=values), noise(tokens, 83))
    at_edges(model_of(weight((21, 13, 3, 3), form), form, "Conv", pads=[1, 1, 1, 1]), noise(1, 13, 7, 9))
    at_edges(model_of(weight((21, 13, 1, 1), form), form, "Conv"), noise(2, 13, 5, 7))

for (share, tile), x in itertools.product(test_int8.TILES, (test_int8.UINT8, test_int8.INT8)):
    for shape, result, tokens in (((37, 83), "", 1), ((37, 83), "Uint8", 23), ((64, 128), "Int8", 64)):
        model = test_int8.model_of(test_int8.weight(shape, share, tile), tile, x, result)
        at_edges(model, test_int8.integers(x, tokens, shape[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pages")
def test_arrays_may_end_at_an_unreadable_page(tmp_path: Path) -> None:
    python(tmp_path, EDGES)


TELL = """
from onnxprune.kernels import library
from onnxprune.kernels.loops import MACHINE
check(session_of(model))
import json
print(json.dumps([MACHINE.name, str(library._cache_folder())]))
"""


def test_each_cpu_has_its_own_kernels(tmp_path: Path) -> None:
    """The same cache, one CPU after the other and back (the first time ever, this compiles)."""
    if os.uname().machine != "x86_64":
        pytest.skip("names of x86 CPUs")
    machine, folder = json.loads(python(tmp_path, TELL))
    other, other_folder = json.loads(python(tmp_path, TELL, NUMBA_CPU_NAME="x86-64"))
    assert other == "portable"
    assert folder != other_folder
    assert Path(folder).parent == Path(other_folder).parent
    assert machine == json.loads(python(tmp_path, TELL))[0]


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE_DIR", str(tmp_path))
    folder = library._cache_folder()
    assert folder is not None
    assert folder.parent == tmp_path
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("ONNXPRUNE_CACHE_DIR", str(blocked))
    assert library._cache_folder() is None


# memory


def resident() -> float:
    """MiB of this process."""
    return float(psutil.Process().memory_info().rss / 2**20)


def test_memory_does_not_grow() -> None:
    w = weight((512, 512), 0.3)
    model, x = model_of(w, 0.3), noise(64, 512)

    def cycle() -> None:
        session = session_of(model, 2)
        for count in (64, 1, 7):
            run(session, x[:count])

    session = session_of(model, 2)
    for _ in range(50):
        run(session, x)
    for _ in range(5):
        cycle()
    before = resident()
    for i in range(300):
        run(session, x[: 1 + i % 64])
    for _ in range(20):  # each holds about 4 MiB
        cycle()
    assert resident() - before < 20


def test_scratch_memory_goes_with_the_last_session() -> None:
    memory = library.waiting_memory
    session = session_of(model_of(weight((64, 512), 0.3), 0.3))
    run(session, noise(20000, 512))
    assert memory() > 30 << 20
    del session
    assert memory() == 0
