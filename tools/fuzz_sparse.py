"""Mutates model files with sparse operators: none may crash, hang, or compute something else than its dense form.

    fuzz_sparse.py --mutants 20000 --seed 0     mutants by the thousand in processes of their own; failures are kept
    fuzz_sparse.py --soak                       10,000 runs and 200 sessions, and the memory that they take
    fuzz_sparse.py --cold                       two processes that start at once with an empty cache of kernels

Mutant i of a seed is always the same. Each is loaded with the library registered and, if that is accepted, run with
random input; it is also loaded by onnxprune, unpacked and made dense, and where both worked their outputs are compared.
A mutant that kills its process is tried again without our library, to tell onnxruntime's own faults apart.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import gc
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import common
import onnxprune
from onnxprune import formats

sys.path.insert(0, str(common.REPO / "tests"))

import test_int8
from onnxprune.formats.operators import OPERATORS, is_sparse
from onnxprune.kernels.names import ACTIVATIONS, PRODUCTS
from test_sparse_runtime import FORMS, Form, model_of, options_of, session_of, storage_of, weight

BATCH = 1000  # mutants of a process
LIMIT = 20  # seconds for one step of one mutant
GIGABYTES = 8.0  # address space of a process
ELEMENTS = 2_000_000  # of X and Y of a run
OURS = "onnxprune: node"
BY_US, BY_ONNXRUNTIME = "refused by us", "refused by onnxruntime"
LARGE = 1e30  # of weights and bias: above, sums overflow in one order and not in another
INTEGER = 1 << 24  # of a bias of int32: above, float32 has not all of them
EXTREMES = (
    0, 1, 2, -1, 3, 4, 7, 8, 9, 127, 255, 256, 65535, 65536, 65537, 1 << 20, (1 << 31) - 1, 1 << 31, -(1 << 31),
    1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63),
)  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-42, 1e-38, 3e38, -3e38, float("nan"), float("inf"), float("-inf"))


# mutants


def valid(rng: random.Random, name: str | None = None) -> ModelProto:
    """A model that is right: some operator, sizes, attributes and form; half of them with the function."""
    operator = OPERATORS[name or rng.choice(list(OPERATORS))]
    if operator.quantized:
        share, tile = rng.choice(test_int8.TILES)
        w = test_int8.weight((rng.randint(1, 40), rng.randint(1, 70)), share, tile, most=63, seed=rng.randint(0, 99))
        x = rng.choice([test_int8.UINT8, test_int8.INT8])
        return test_int8.model_of(w, tile, x, operator.result, body=rng.random() < 0.5, alpha=rng.choice([1.0, -0.5]))
    form: Form = rng.choice([f for f in FORMS if storage_of(f) == operator.storage.name])
    given: dict[str, Any] = {"alpha": rng.choice([1.0, 1.0, -0.5, 3.0])}
    shape: tuple[int, ...] = (rng.randint(1, 40), rng.randint(1, 70))
    if operator.product == "Conv":
        axes = rng.choice([1, 2, 2, 2])
        group = rng.choice([1, 1, 1, 2, 3])
        shape = (group * rng.randint(1, 12), rng.randint(1, 9), *(rng.randint(1, 3) for _ in range(axes)))
        given |= {"group": group, "pads": [rng.choice([0, 0, 1, 2]) for _ in range(2 * axes)]}
        given |= {key: [rng.choice([1, 1, 2, 3]) for _ in range(axes)] for key in ("strides", "dilations")}
    w = weight(shape, form, rng.randint(0, 99))
    bias = np.random.default_rng(rng.randint(0, 99)).standard_normal(len(w), np.float32)
    return model_of(
        w, form, operator.product, add=operator.add, activation=operator.activation, bias=bias,
        body=rng.random() < 0.5, **given,
    )  # fmt: skip


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """One model of every operator."""
    return tuple(valid(random.Random(name), name).SerializeToString() for name in OPERATORS)


def change_bytes(rng: random.Random, tensor: TensorProto) -> None:
    raw = bytearray(tensor.raw_data or b"\0")
    for _ in range(rng.choice([1, 1, 2, 8])):
        raw[rng.randrange(len(raw))] ^= rng.choice([1 << rng.randrange(8), rng.randrange(256)])
    tensor.raw_data = bytes(raw)


def change_element(rng: random.Random, tensor: TensorProto) -> None:
    try:
        array = numpy_helper.to_array(tensor).copy()
    except Exception:
        return
    if not array.size:
        return
    value = rng.choice(FLOATS) if array.dtype.kind == "f" else rng.choice(EXTREMES)
    at = rng.randrange(array.size)
    if array.dtype.kind != "f":
        bits = 8 * array.dtype.itemsize
        value = rng.choice([int(value), int(array.flat[at]) + rng.choice([-1, 1])]) % (1 << bits)
        array.view(f"u{array.dtype.itemsize}").flat[at] = value
    else:
        array.flat[at] = value
    tensor.raw_data = array.tobytes()


def change_length(rng: random.Random, tensor: TensorProto) -> None:
    raw = tensor.raw_data
    cut = rng.choice([0, 1, 2, 4, 8, len(raw) // 2])
    tensor.raw_data = rng.choice([raw[: max(0, len(raw) - cut)], raw + bytes(cut), raw + raw[:cut], b""])
    size = {1: 4, 2: 1, 3: 1, 4: 2, 6: 4, 7: 8, 11: 8}.get(tensor.data_type, 1)
    if rng.random() < 0.6 and len(tensor.dims) == 1:  # with dims that say so
        tensor.dims[0] = len(tensor.raw_data) // size


def change_dims(rng: random.Random, tensor: TensorProto) -> None:
    dims = list(tensor.dims)
    what = rng.randrange(4)
    if what == 0 or not dims:
        dims.insert(rng.randint(0, len(dims)), rng.choice([1, 1, *EXTREMES]))
    elif what == 1:
        dims.pop(rng.randrange(len(dims)))
    elif what == 2:
        dims = rng.sample(dims, len(dims))
    else:
        at = rng.randrange(len(dims))
        dims[at] = rng.choice([dims[at] + 1, dims[at] - 1, rng.choice(EXTREMES)])
    del tensor.dims[:]
    tensor.dims.extend(dims)


def change_type(rng: random.Random, tensor: TensorProto) -> None:
    tensor.data_type = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 22, 99])


def change_attribute(rng: random.Random, node: NodeProto) -> None:
    """Another value, mostly of the same type and sometimes small."""
    if not node.attribute:
        return
    a = rng.choice(node.attribute)
    number = rng.choice([rng.randint(0, 9), rng.randint(0, 70), rng.choice(EXTREMES)])
    if a.type == AttributeProto.INTS and a.ints:
        what = rng.randrange(8)
        if what == 0:
            a.ints.append(number)
        elif what == 1:
            a.ints.pop(rng.randrange(len(a.ints)))
        else:
            a.ints[rng.randrange(len(a.ints))] = number
    elif a.type == AttributeProto.INT:
        a.i = number
    elif a.type == AttributeProto.FLOAT:
        a.f = rng.choice(FLOATS)
    elif a.type == AttributeProto.STRING:
        a.s = rng.choice([b"KM", b"MK", b"Gemm", b"Conv", b"\xff\0", b""])
    if rng.random() < 0.1:
        a.type = rng.choice([0, 1, 2, 3, 4, 6, 7, 14])


def drop_attribute(rng: random.Random, node: NodeProto) -> None:
    if node.attribute:
        node.attribute.remove(rng.choice(node.attribute))


def change_inputs(rng: random.Random, node: NodeProto) -> None:
    names = list(node.input)
    if not names:
        return
    a, b = rng.randrange(len(names)), rng.randrange(len(names))
    what = rng.randrange(5)
    if what == 0:
        names[a], names[b] = names[b], names[a]
    elif what == 1:
        names[a] = names[b]
    elif what == 2:
        names[a] = rng.choice(["", "nothing", "Y"])
    elif what == 3:
        names.pop(a)
    else:
        names.insert(a, rng.choice([names[b], ""]))
    del node.input[:]
    node.input.extend(names)


def change_names(rng: random.Random, node: NodeProto) -> None:
    what = rng.randrange(4)
    if what == 0:
        node.op_type = rng.choice(list(OPERATORS))
    elif what == 1:
        node.name = rng.choice(["", "x" * 1000, "ß" * 500, "%s%n", "a\nb"])
    elif what == 2:
        node.domain = rng.choice(["", "onnxprune", "com.microsoft"])
    else:
        node.output.append(rng.choice(["", "Z", "X"]))


def change_graph(rng: random.Random, model: ModelProto) -> None:
    """Weights become inputs, arrays are shared or given away, versions change, the node is there twice."""
    graph, what = model.graph, rng.randrange(5)
    if what == 0 and graph.initializer:
        tensor = rng.choice(graph.initializer)
        graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        if rng.random() < 0.5:
            graph.initializer.remove(tensor)
    elif what == 1 and graph.initializer:
        tensor = graph.initializer.pop(rng.randrange(len(graph.initializer)))
        graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    elif what == 2 and model.opset_import:
        rng.choice(model.opset_import).version = rng.choice([0, 1, 2, 7, 11, 12, 22, -1, 1 << 40])
    elif what == 3 and graph.node:
        twin = graph.node.add()
        twin.CopyFrom(graph.node[0])
        if twin.input and twin.output:
            twin.input[0], twin.output[0] = twin.output[0], "Z"
    elif graph.input:
        info = rng.choice(graph.input)
        dims: list[Any] = [rng.choice([1, 3, "n", 0, -1, 1 << 40]) for _ in range(rng.randint(0, 5))]
        info.CopyFrom(helper.make_tensor_value_info(info.name, rng.choice([1, 1, 7, 10, 11]), dims))


TENSOR = (change_bytes, change_bytes, change_element, change_element, change_length, change_dims, change_type)
NODE = (change_attribute, change_attribute, change_attribute, drop_attribute, change_inputs, change_names)


def mutant(seed: int, index: int) -> bytes:
    """Mutant number `index`."""
    rng = random.Random(f"{seed}/{index}")
    if rng.random() < 0.1:
        return valid(rng).SerializeToString()
    data = rng.choice(seeds())
    if rng.random() < 0.8:
        model = ModelProto.FromString(data)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            kind = rng.random()
            if kind < 0.45 and model.graph.initializer:
                rng.choice(TENSOR)(rng, rng.choice(model.graph.initializer))
            elif kind < 0.9 and model.graph.node:
                rng.choice(NODE)(rng, rng.choice(model.graph.node))
            else:
                change_graph(rng, model)
        data = model.SerializeToString()
        if rng.random() < 0.9:
            return data
    raw = bytearray(data)
    body = raw.find(b"onnxprune")  # what follows may be a long function
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        raw[rng.randrange(len(raw) if rng.random() < 0.5 else min(len(raw), max(body, 0) + 600))] = rng.randrange(256)
    return bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.2 else raw)


# one mutant


def feeds_for(session: ort.InferenceSession, node: NodeProto, rng: np.random.Generator) -> dict[str, Any] | None:
    """Inputs of shapes that the node's attributes ask for, mostly; None where they are too large."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    shape = attributes.get("shape", [1, 1])
    few = [int(n) for n in rng.integers(0 if rng.random() < 0.1 else 1, 9, 4)]
    product = next((p for p in reversed(PRODUCTS) if p in node.op_type), "MatMul")
    if product == "Conv" and len(shape) > 2:
        reach = [d * (k - 1) + 1 for d, k in zip(attributes["dilations"], shape[2:], strict=False)]
        pads, strides = attributes["pads"], attributes["strides"]
        sizes = [n + max(0, r - p) for n, r, p in zip(few[1:], reach, pads, strict=False)]
        after = [sum(pads[i :: len(sizes)]) + s - r for i, (s, r) in enumerate(zip(sizes, reach, strict=True))]
        y = [few[0], shape[0], *(a // s + 1 for a, s in zip(after, strides, strict=False))]
        x = [few[0], shape[1] * attributes["group"], *sizes]
    elif product == "LeftMatMul":
        x, y = ([*few[:1], size, few[1]] for size in (shape[-1], shape[0]))
    else:
        leading = few[: rng.integers(0, 3)] if rng.random() < 0.8 else [40]
        x, y = [*leading, shape[-1]], [*leading, shape[0]]
    feeds = {}
    for value in session.get_inputs():
        dims = y if len(node.input) > 1 and value.name == node.input[-1] else x
        if rng.random() < 0.05:
            dims = rng.permutation(dims).tolist()
        if min(dims) < 0 or np.prod(np.array(dims, float)) > ELEMENTS or np.prod(np.array(y, float)) > ELEMENTS:
            return None
        kind = {"tensor(int64)": np.int64, "tensor(double)": np.float64, "tensor(uint8)": np.uint8,
                "tensor(int8)": np.int8}.get(value.type, np.float32)  # fmt: skip
        wide = 60 if np.dtype(kind).itemsize == 1 else 1
        feeds[value.name] = (wide * rng.standard_normal([int(n) for n in dims])).astype(kind)
    return feeds


@dataclass
class Trial:
    """What became of a mutant; `step` is told before every step that may not come back."""

    data: bytes
    number: int
    step: Callable[[str], None]
    ours: bool = True
    outcome: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=lambda: {"create": "", "read": ""})  # of refusals

    def run(self) -> dict[str, str]:
        """create, run: of the session; read: by onnxprune; compare: outputs; only one check: what one objects to."""
        outputs = self.execute()
        if not self.ours:
            return self.outcome
        plain = self.read()
        reason = self.reasons["create"] or self.reasons["read"]
        if self.outcome["create"] != BY_ONNXRUNTIME and (self.reasons["create"] == "") != (self.reasons["read"] == ""):
            self.outcome["only one check"] = re.sub(r"'[^']*'|-?\d+|nan", "#", reason.split("layer", 1)[-1])[:66]
        if plain is not None and outputs is not None:
            self.outcome["compare"] = self.compare(plain, *outputs)
        return self.outcome

    def execute(self) -> tuple[dict[str, Any], list[Any]] | None:
        """Inputs and outputs with the library, where the session is made and runs."""
        self.step("create")
        try:
            session = ort.InferenceSession(self.data, options_of(ours=self.ours), providers=["CPUExecutionProvider"])
        except Exception as error:
            self.reasons["create"] = str(error)
            self.outcome["create"] = BY_US if OURS in str(error) else BY_ONNXRUNTIME
            return None
        self.outcome["create"] = "accepted"
        self.step("run")
        try:
            node = next((n for n in ModelProto.FromString(self.data).graph.node if is_sparse(n)), NodeProto())
            feeds = feeds_for(session, node, np.random.default_rng(self.number))
        except Exception:
            feeds = None
        if feeds is None:
            self.outcome["run"] = "not tried: no input of a sensible size"
            return None
        try:
            outputs = session.run(None, feeds)
        except Exception as error:
            self.outcome["run"] = BY_US if OURS in str(error) else BY_ONNXRUNTIME
            return None
        self.outcome["run"] = "ran"
        return feeds, outputs

    def read(self) -> ModelProto | None:
        """The dense model, where onnxprune reads the file."""
        self.step("read")
        try:
            model = onnxprune.load(self.data)
            for node in model.proto.graph.node:
                if is_sparse(node):
                    formats.unpack(model, node.name or node.output[0])
            dense: ModelProto = onnxprune.to_proto(onnxprune.densify(model))
        except onnxprune.OnnxPruneError as error:
            self.reasons["read"] = str(error)
            self.outcome["read"] = "refused" if str(error).isprintable() else f"unprintable {error!r}"
            return None
        except Exception as error:
            self.outcome["read"] = f"raised {type(error).__name__}"
            return None
        self.outcome["read"] = "read"
        return dense

    def compare(self, dense: ModelProto, feeds: dict[str, Any], outputs: list[Any]) -> str:
        arrays = [numpy_helper.to_array(t) for t in dense.graph.initializer]
        arrays += [np.asarray(a.f, np.float32) for node in dense.graph.node for a in node.attribute]
        if any(a.dtype == np.float32 and np.abs(a).max(initial=0) > LARGE for a in arrays):
            return "not tried: weights overflow"
        if any(a.dtype == np.int32 and np.abs(a.astype(np.int64)).max(initial=0) > INTEGER for a in arrays):
            return "not tried: the bias overflows"
        self.step("dense")
        try:
            expected = session_of(dense, ours=False).run(None, feeds)
        except Exception:
            return "the dense form does not run"
        for a, b in zip(outputs, expected, strict=True):
            if a.shape != b.shape:
                return "different shape"
            if a.dtype.kind in "iu":
                if np.abs(a.astype(int) - b).max(initial=0) > 1:
                    return "different by more than a quantum"
                continue
            both = np.isfinite(a) & np.isfinite(b)
            if not np.allclose(a[both], b[both], rtol=1e-3, atol=1e-3 * np.abs(b[both]).max(initial=1)):
                return "different"
        return "equal"


def child(seed: int, first: int, count: int, progress: Path, ours: bool) -> None:
    """Try mutants; a line of `progress` for each step and each outcome."""
    with progress.open("w", buffering=1) as file:
        for index in range(first, first + count):

            def step(name: str, index: int = index) -> None:
                faulthandler.dump_traceback_later(LIMIT, exit=True)
                file.write(json.dumps([index, name]) + "\n")

            outcome = Trial(mutant(seed, index), index, step, ours).run()
            file.write(json.dumps([index, outcome]) + "\n")
    faulthandler.cancel_dump_traceback_later()


# many mutants


def batch(seed: int, first: int, count: int, ours: bool = True) -> tuple[dict[int, dict[str, str]], list[Any], str]:
    """Outcomes of one process, the step that it did not survive if there was one, and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        numbers = [str(n) for n in (seed, first, count, int(ours))]
        done = common.run(
            [sys.executable, __file__, "--child", *numbers, progress], seconds=LIMIT * count, gigabytes=GIGABYTES
        )
        lines = [json.loads(text) for text in progress.read_text().splitlines()]
    outcomes = {index: outcome for index, outcome in lines if isinstance(outcome, dict)}
    if not done.problem:
        return outcomes, [], ""
    how = f"hang of {LIMIT} s" if "Timeout (" in done.err else done.problem
    return outcomes, lines[-1] if lines else [first, "start"], how


def keep(folder: Path, name: str, seed: int, index: int) -> None:
    """Write a mutant."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{seed}-{index}.onnx").write_bytes(mutant(seed, index))


def fuzz(seed: int, count: int, folder: Path) -> int:
    """All mutants; the number of failures that are ours."""
    start, at, failures, end = time.perf_counter(), 0, 0, count
    tally: Counter[tuple[str, str]] = Counter()
    while at < end:
        size = min(BATCH, end - at)
        outcomes, last, how = batch(seed, at, size)
        for index, outcome in outcomes.items():
            tally.update(outcome.items())
            results = [v for key, v in outcome.items() if key != "only one check"]
            bad = [v for v in results if v.startswith(("raised", "different", "unprintable"))]
            if bad:
                failures += 1
                common.say(f"{index}: {bad[0]}")
                keep(folder, bad[0].replace(" ", "-"), seed, index)
        at += size
        if last:
            at = last[0] + 1
            _, again, _ = batch(seed, last[0], 1, ours=False)
            theirs = last[1] == "dense" or (bool(again) and again[1] == last[1])
            tally["died", f"in {last[1]}, {'also without' if theirs else 'only with'} our library: {how}"] += 1
            failures += not theirs
            common.say(f"{last[0]}: {how} in {last[1]}, {'theirs' if theirs else 'OURS'}")
            keep(folder, "theirs" if theirs else "died", seed, last[0])
        common.say(f"{at} of {end}, {time.perf_counter() - start:.0f} s, {failures} failures")
    print(f"{count} mutants of seed {seed} in {time.perf_counter() - start:.0f} s, onnxruntime {ort.__version__}")
    for (what, result), number in sorted(tally.items()):
        print(f"  {what:14} {result:70} {number:6}")
    print(f"{failures} failures")
    return failures


# memory, and processes that start together


def soak(runs: int = 10_000, sessions: int = 200) -> int:
    """Runs and sessions, with the anonymous memory of the process on the way; 1 where it grows."""
    models = [(product, form) for product in PRODUCTS for form in (0.1, 0.4, (2, 4))]
    shapes = {"MatMul": (64, 512), "LeftMatMul": (512, 64), "Conv": (2, 64, 14, 14)}
    x = {p: np.random.default_rng(0).standard_normal(shape, np.float32) for p, shape in shapes.items()}

    def make(i: int) -> Callable[[int], None]:
        product, form = models[i % len(models)]
        w = weight((128, 64, 3, 3) if product == "Conv" else (256, 512), form)
        activation = ACTIVATIONS[i % len(ACTIVATIONS)]
        session = session_of(model_of(w, form, product, activation=activation), threads=2)

        def work(n: int) -> None:
            batch = {"MatMul": x[product][: 1 + n % 64], "Conv": x[product][: 1 + n % 2]}.get(product, x[product])
            session.run(None, {"X": batch})

        return work

    def measure(name: str, repeat: Callable[[int], None], count: int) -> float:
        sizes = []
        for part in range(10):
            for i in range(count // 10):
                repeat(part * (count // 10) + i)
            gc.collect()
            sizes.append(common.rss_anon() / 2**20)
        print(f"{count} {name}: MiB after every tenth: {' '.join(f'{size:.1f}' for size in sizes)}")
        return sizes[-1] - sizes[1]

    kept = [make(i) for i in range(len(models))]
    for i in range(len(models) * 20):
        kept[i % len(models)](i)
    grown = measure("runs", lambda i: kept[i % len(models)](i // len(models)), runs)

    def cycle(i: int) -> None:
        work = make(i)
        for n in (0, 63, 3):
            work(n)

    grown = max(grown, measure("sessions", cycle, sessions))
    print("grows" if grown > 16 else "does not grow")
    return int(grown > 16)


def cold() -> int:
    """Two processes that compile at once into one empty folder, then one that finds the kernels; 1 where one fails."""
    script = (
        "import sys, os, time; sys.path[:0] = [{tests!r}, {tools!r}]\n"
        "os.environ['ONNXPRUNE_CACHE_DIR'] = {cache!r}; start = time.perf_counter()\n"
        "from test_sparse_runtime import *\n"
        "w, x = weight((130, 300), 0.2), noise(20, 300)\n"
        "close(run(session_of(model_of(w, 0.2)), x), dense(w, x)); print(round(time.perf_counter() - start, 1))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.py"
        path.write_text(
            script.format(tests=str(common.REPO / "tests"), tools=str(common.TOOLS), cache=str(Path(folder) / "c"))
        )
        pair = [subprocess_of(path) for _ in range(2)]
        ends = [(*process.communicate(), process.returncode) for process in pair]
        after = subprocess_of(path)
        ends.append((*after.communicate(), after.returncode))
    for out, err, code in ends:
        print(f"exit {code}, {out.strip()} s; {err.strip().splitlines()[-1:]}")
    return int(any(code for *_, code in ends) or "compiling" in ends[-1][1])


def subprocess_of(script: Path) -> Any:
    """A python process, started."""
    return subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("fuzz-sparse-failures"), help="where failures go")
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        *numbers, progress = args.child
        seed, first, count, ours = map(int, numbers)
        child(seed, first, count, Path(progress), bool(ours))
        return 0
    if args.soak or args.cold:
        return soak() if args.soak else cold()
    return int(fuzz(args.seed, args.mutants, args.folder) > 0)


if __name__ == "__main__":
    sys.exit(main())
