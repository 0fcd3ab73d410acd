"""Differentiate thousands of random graphs and compare with finite differences; failures are made small and kept.

    python tools/fuzz_gradients.py --graphs 2000 --seed 0
    python tools/fuzz_gradients.py --replay gradient-failures/17.json

Graph number k is drawn from seed k, as for tools/fuzz.py. The loss is the sum of the squares of all outputs; it is
differentiated by all weights of a floating-point type that have a gradient, along one random direction of them
together, in float32 by onnxruntime. Differences at four steps, and those ahead beside those behind, say how far they
are from a slope themselves: where a kink lies between, or rounding is as large, the graph counts as `no slope`, not as
a failure. The exit code is 1 where one fails.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fuzz import Numbers, minimise, signature
from models.random_graphs import Draws, build
from onnxprune.errors import UserError
from onnxprune.gradient.backward import Backward
from onnxprune.gradient.differentiate import chosen, named
from onnxprune.gradient.walk import differentiate
from onnxprune.graph.io import load, to_proto
from onnxprune.graph.node import opsets, walk_all

SAID = 30.0  # seconds between two lines of progress
STEPS = (1e-2, 3e-3, 1e-3, 3e-4)  # of a direction as long as the weights
TOLERANCE = 0.03  # relative
ROUNDING = 2e-6  # of a loss


class Wrong(Exception):
    """A gradient that is no slope."""


def recorded(seed: int) -> tuple[ModelProto, Numbers]:
    """The graph of a seed, and the numbers that it was drawn from."""
    rng, numbers = random.Random(seed), Numbers()

    def integer(low: int, high: int) -> int:
        numbers.append(rng.randint(low, high))
        return numbers[-1]

    return build(Draws(integer)), numbers


def replayed(numbers: Numbers) -> ModelProto:
    """The graph of recorded numbers; past their end, the smallest that is allowed."""
    left = iter(numbers)
    return build(Draws(lambda low, high: min(max(next(left, low), low), high)))


def squares(b: Backward) -> str:
    """The mean of the squares of every output that holds numbers, summed."""
    names = [o.name for o in b.edit.graph.output if b.is_float(o.name)]
    return b.add([b.reduce("ReduceMean", b.op("Mul", y, y), range(b.rank(y))) for y in names])


def check(model: ModelProto) -> Counter[str]:
    """What was found of a graph: operators, reasons of weights without a gradient, `no slope` where differences say
    nothing. Raises `Wrong`."""
    out: Counter[str] = Counter(f"op {n.op}" for n in walk_all(model.graph, opsets(model)))
    b = Backward(load(model))
    try:
        loss = squares(b)
        found = differentiate(b, loss, chosen(b.model, None))
    except UserError as e:
        out[f"none: {e}"[:90]] += 1
        return out
    out.update(f"blocked: {why.partition(' (')[0]}{why.partition(')')[2]}" for why in found.blocked.values())
    if not found.of:
        out["no weights"] += 1
        return out
    ends = dict(zip(found.of, named(b, found.of, "gradient"), strict=True))
    whole = to_proto(b.finished([loss, *ends.values()]))
    # those of Constant nodes cannot be replaced, and stay
    weights = {t.name: numpy_helper.to_array(t) for t in whole.graph.initializer if t.name in ends}
    names = [loss, *(ends[name] for name in weights)]
    listed = {i.name for i in whole.graph.input}
    whole.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in whole.graph.initializer
        if t.name in weights and t.name not in listed
    )  # which may be replaced then
    slope(whole, names, weights, out)
    return out


def slope(model: ModelProto, names: list[str], weights: dict[str, Any], out: Counter[str]) -> None:
    """Compare the gradient with differences along a direction."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as e:
        if "TransposeDQWeightsForMatMulNBits" not in str(e):
            raise
        out["onnxruntime's fusion of 4-bit weights does not find those of an outer graph"] += 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for i in session.get_inputs():
        shape = [d if isinstance(d, int) else 2 for d in i.shape]
        integers = i.type == "tensor(int64)"
        feeds[i.name] = rng.integers(0, 7, shape) if integers else rng.standard_normal(shape).astype(np.float32)
    v = {n: rng.standard_normal(w.shape) * max(float(np.sqrt(np.mean(np.square(w)))), 1e-3) for n, w in weights.items()}
    values = session.run(names, feeds)
    at = float(np.asarray(values[0]).ravel()[0])

    def run(step: float, names: list[str]) -> list[Any]:
        moved = {n: np.asarray(w + step * v[n], w.dtype) for n, w in weights.items()}
        return list(session.run(names, {**feeds, **moved}))

    def loss(step: float) -> float:
        return float(np.asarray(run(step, names[:1])[0]).ravel()[0])

    def along(gradients: list[Any]) -> float:
        return sum(float(np.vdot(np.asarray(g, np.float64), v[n])) for n, g in zip(weights, gradients, strict=True))

    expected = along(values[1:])
    ahead, behind = (np.array([(loss(s * h) - at) / (s * h) for h in STEPS]) for s in (1, -1))
    slopes = (ahead + behind) / 2
    rounding = np.array([ROUNDING * abs(at) / h for h in STEPS])
    if not np.isfinite(slopes).all() or not np.isfinite(expected):
        out["no slope"] += 1
        return
    near = np.abs(slopes - expected) <= TOLERANCE * np.abs(slopes) + rounding
    if near.any():
        return
    bent = np.abs(ahead - behind)[-1] > TOLERANCE * np.abs(slopes[-1]) + rounding[-1]
    # a sine of many turns has differences that agree, and a gradient that the smallest of them changes altogether
    ends = [along(run(s * STEPS[-1], names[1:])) for s in (1, -1)]
    bent |= not all(abs(e - expected) <= TOLERANCE * max(abs(expected), abs(slopes[-1])) for e in ends)
    if bent or np.ptp(slopes) > TOLERANCE * np.abs(slopes).max() + rounding.max():
        out["no slope"] += 1
        return
    raise Wrong(
        f"the gradient along a direction is {expected:.6g}, differences are {', '.join(f'{s:.6g}' for s in slopes)}"
    )


def failure(numbers: Numbers) -> str:
    """Signature of the failure that these numbers lead to; empty for none, and where they make no graph."""
    try:
        model = replayed(numbers)
    except Exception:
        return ""
    try:
        check(model)
    except Exception as e:
        return signature(e)
    return ""


def fails_as(kind: str, numbers: Numbers) -> bool:
    return failure(numbers) == kind


def main() -> int:
    """Exit code 1 where a gradient is wrong, or an exception is raised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long")
    parser.add_argument("--folder", type=Path, default=Path("gradient-failures"), help="where failures go")
    parser.add_argument("--replay", type=Path, help="a .json of that folder: raise its failure again")
    args = parser.parse_args()
    if args.replay:
        model = replayed(json.loads(args.replay.read_text())["numbers"])
        for node in model.graph.node:
            print(f"{node.op_type}({', '.join(node.input)}) -> {', '.join(node.output)}")
        check(model)
        return 0
    total: Counter[str] = Counter()
    failures: dict[str, list[int]] = {}
    start = told = time.perf_counter()
    done = 0
    for seed in range(args.seed, args.seed + args.graphs):
        if time.perf_counter() - start > 60 * args.minutes:
            break
        done += 1
        if time.perf_counter() - told > SAID:
            told = time.perf_counter()
            print(f"{done} of {args.graphs} graphs, {told - start:.0f} s", file=sys.stderr, flush=True)
        model, numbers = recorded(seed)
        try:
            found = check(model)
            total.update({what: min(count, 1) for what, count in found.items()})
        except Exception as e:
            kind = signature(e)
            print(f"{seed} {kind}: {e}", file=sys.stderr, flush=True)
            failures.setdefault(kind, []).append(seed)
            if len(failures[kind]) == 1:  # one small example of each kind is enough
                numbers = minimise(numbers, partial(fails_as, kind))
            args.folder.mkdir(parents=True, exist_ok=True)
            onnx.save(replayed(numbers), args.folder / f"{seed}.onnx")
            (args.folder / f"{seed}.json").write_text(json.dumps({"seed": seed, "kind": kind, "numbers": numbers}))
    ops = {what: n for what, n in total.items() if what.startswith("op ")}
    seconds, failed = time.perf_counter() - start, sum(map(len, failures.values()))
    print(f"{done} graphs in {seconds:.0f} s, {len(ops)} operators, {failed} failures")
    for what, n in total.most_common():
        if not what.startswith("op "):
            print(f"  {n} {what}")
    for kind, seeds in failures.items():
        print(f"{len(seeds)} {kind}: seeds {seeds[:8]}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
