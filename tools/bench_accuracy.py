"""Accuracy after structural pruning at a fixed cut in MACs, without training, next to rivals.

    python tools/bench_accuracy.py                                  # all models, cuts and methods
    python tools/bench_accuracy.py --free                           # without data
    python tools/bench_accuracy.py --rivals-only --only 'resnet*'   # a part
    python tools/bench_accuracy.py --only resnet56_cifar10 --cut 0.3 --method ours --method 'importance=l1,recover=none'
    python tools/bench_accuracy.py --importances all --seeds 1      # second table: every importance at the same cut

Data: of the 500 pictures of the ImageNet sample those with even index calibrate and those with odd index are scored,
then the other way round, and the predictions are pooled. Of CIFAR-10 1000 pictures of the training part calibrate,
evenly spread, as the file is sorted by class, and the whole test part is scored. Every method gets the same split.

Methods, chosen by --method (globs; repeatable):
  ours                    onnxprune.prune(target_macs=1 - cut) with calibration data and its defaults
  KEY=VALUE,...           the same with options: importance, allocate, recover, ...
  onnxsim                 its structured pruning; the sparsity is bisected to the first cut at or above the one asked
  torch-pruning           group L1 magnitude of Torch-Pruning, the same ratio everywhere; CIFAR ResNets only
  torch-pruning-global    the same with global_pruning=True
  NAME+stats              a rival with statistics re-estimated on the calibration data, layer after layer: mean and
                          variance of every BatchNormalization, or, where they are folded away, every convolution's
                          outputs scaled and shifted to the mean and deviation that they have in the dense model
With --free: `ours` has made-up images, `ours-weights` nothing but the weights, rivals come as they are.

Columns: MACs and parameters cut, as counted by onnxprune in the saved files; top-1; drop from the dense model in points
with its paired standard error over the pictures; standard deviation over seeds in points; agreement with the dense
model's top-1; seconds of one whole process (imports included, searches for a rival's sparsity left out) and its peak of
anonymous memory. The rivals need pythons of their own: --onnxsim, --torch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

import common
from onnxprune.importance.score import CRITERIA

Array = np.ndarray[Any, np.dtype[Any]]

CUTS = {
    "resnet56_cifar10": (0.3, 0.5),
    "resnet20_cifar10": (0.3,),
    "mobilenetv2_100_224_imagenet": (0.1, 0.2, 0.3),
    "mobilenetv1_075_192_imagenet": (0.1, 0.2, 0.3),
}
FREE_CUTS = {"resnet56_cifar10": (0.1, 0.3), "mobilenetv2_100_224_imagenet": (0.1,)}
CALIBRATION = 1000  # pictures of CIFAR-10
PICTURES = 200  # for statistics of the rivals, at most
BATCH = 25
LIVE = 200e6  # bytes of activations that are kept while statistics are estimated
BISECTIONS = 10


# ---------------------------------------------------------------------------------------------------------------------
# Models, data, predictions
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fold:
    """calibration: file of samples, None without data; labels: file of their labels, for importances that go by them;
    rows: which pictures are scored."""

    calibration: Path | None
    labels: Path | None
    rows: Array


@dataclass(frozen=True, eq=False)
class Task:
    """A dense model with its pictures `(n, 3, h, w)`, labels and predictions `(n,)`."""

    path: Path
    cuts: tuple[float, ...]
    x: Array
    y: Array
    folds: tuple[Fold, ...]
    dense: Array
    parameters: int
    macs: int


def predictions(path: Path, x: Array) -> Array:
    """Top-1 class of every picture."""
    s = common.session(path)
    name = s.get_inputs()[0].name
    out = np.concatenate([np.asarray(s.run(None, {name: x[k : k + BATCH]})[0]) for k in range(0, len(x), BATCH)])
    out = out.reshape(len(x), -1)
    return (out[:, 1:] if out.shape[1] == 1001 else out).argmax(1)


def tasks(root: Path, args: argparse.Namespace, folder: Path) -> Iterator[Task]:
    """The models asked for, one at a time."""
    real = common.module(root / "score.py")
    for name, cuts in (FREE_CUTS if args.free else CUTS).items():
        if not fnmatch(name, args.only):
            continue
        path = root / "models" / f"{name}.onnx"
        x, y = real.data(str(root), name)
        if x.shape[1] != 3:
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        x = x.astype(np.float32)
        rows = np.arange(len(x))
        folds: list[tuple[Array | None, Array | None, Array]]
        if args.free:
            folds = [(None, None, rows)]
        elif "cifar" in name:
            folds = [(*cifar_calibration(root, real), rows)]
        else:
            folds = [(x[rows % 2 == side], y[rows % 2 == side], rows[rows % 2 != side]) for side in (0, 1)]
        made = []
        for k, (samples, labels, chosen) in enumerate(folds):
            file = None if samples is None else folder / f"{name}.{k}.npy"
            of_file = None if labels is None else folder / f"{name}.{k}.labels.npy"
            for into, array in ((file, samples), (of_file, labels)):
                if into is not None and array is not None:
                    np.save(into, array)
            made.append(Fold(file, of_file, chosen[:: max(1, len(x) // args.limit)] if args.limit else chosen))
        parameters, macs = common.counts(str(path))
        yield Task(path, tuple(args.cut or cuts), x, y, tuple(made), predictions(path, x), parameters, macs)


def cifar_calibration(root: Path, real: Any) -> tuple[Array, Array]:
    """Pictures of the training part, evenly spread, as the model wants them: `(n, 3, 32, 32)`; and their classes."""
    data = np.load(root / "data" / "cifar10_jpeg.npz")
    x, y = (v[:: len(v) // CALIBRATION][:CALIBRATION] for v in (data["x_train"], data["y_train"]))
    x = (x.astype(np.float32) / 255 - np.float32(real.CIFAR["mean"])) / np.float32(real.CIFAR["std"])
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), y.astype(np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# Statistics of a pruned file, re-estimated
# ---------------------------------------------------------------------------------------------------------------------


class Forward:
    """Runs a graph in order, so that what was computed before weights changed further on is not computed again.

    at: how many nodes need not run again; live: what they left for the others, `(n, ...)` by tensor name.
    """

    def __init__(self, model: onnx.ModelProto, x: Array) -> None:
        source = model.graph.input[0].name
        self.model, self.at, self.live = model, 0, {source: x}
        self.batch = int(np.clip(1e6 // x[0].size, 1, 50))
        moving = {source}
        self.fixed: list[onnx.NodeProto] = []
        self.nodes: list[onnx.NodeProto] = []
        for n in model.graph.node:
            hit = not moving.isdisjoint(n.input)
            (self.nodes if hit else self.fixed).append(n)
            moving |= set(n.output) if hit else set()
        every = [o for n in self.nodes for o in n.output if o]
        one = self.session(every, len(self.nodes)).run(None, {source: x[:1]})
        self.bytes = {t: len(x) * v.nbytes for t, v in zip(every, one, strict=True)}

    def session(self, tensors: list[str], end: int) -> ort.InferenceSession:
        """What computes tensors of the first `end` nodes from what is live."""
        types = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.int64): onnx.TensorProto.INT64}
        inputs = [onnx.helper.make_tensor_value_info(t, types[v.dtype], [None] * v.ndim) for t, v in self.live.items()]
        nodes = [*self.fixed, *self.nodes[self.at : end]]
        read = {x for n in nodes for x in n.input}
        graph = onnx.helper.make_graph(
            nodes, "part", inputs, [onnx.ValueInfoProto(name=t) for t in tensors],
            [i for i in self.model.graph.initializer if i.name in read],
        )  # fmt: skip
        part = onnx.helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        return common.session(part.SerializeToString())

    def batches(self, tensors: list[str], end: int) -> Iterator[list[Array]]:
        s = self.session(tensors, end)
        names = [i.name for i in s.get_inputs()]
        for k in range(0, len(next(iter(self.live.values()))), self.batch):
            yield s.run(tensors, {t: self.live[t][k : k + self.batch] for t in names})

    def moments(self, tensors: list[str]) -> dict[str, tuple[Array, Array]]:
        """Mean and variance of every channel `(c,)` of some tensors."""
        end = 1 + max(k for k, n in enumerate(self.nodes) if not set(tensors).isdisjoint(n.output))
        total, square = ({t: np.zeros(1) for t in tensors} for _ in range(2))
        count = dict.fromkeys(tensors, 0)
        for values in self.batches(tensors, end):
            for t, v in zip(tensors, values, strict=True):
                flat = v.reshape(*v.shape[:2], -1)
                total[t] = total[t] + flat.sum((0, 2), dtype=np.float64)
                square[t] = square[t] + np.square(flat, dtype=np.float64).sum((0, 2))
                count[t] += flat.shape[0] * flat.shape[2]
        mean = {t: total[t] / count[t] for t in tensors}
        return {t: (mean[t], np.maximum(square[t] / count[t] - mean[t] ** 2, 0.0)) for t in tensors}

    def advance(self, node: onnx.NodeProto) -> None:
        """Weights up to this node are final: keep what comes out, if that is little."""
        end = 1 + next(k for k, n in enumerate(self.nodes) if n.output[0] == node.output[0])
        later = {x for n in self.nodes[end:] for x in n.input} | {o.name for o in self.model.graph.output}
        wanted = [o for n in self.nodes[self.at : end] for o in n.output if o in later]
        stay = {t: v for t, v in self.live.items() if t in later}
        if sum(self.bytes[t] for t in wanted) + sum(v.nbytes for v in stay.values()) > LIVE:
            return
        parts = list(self.batches(wanted, end))
        self.live = stay | {t: np.concatenate([p[k] for p in parts]) for k, t in enumerate(wanted)}
        self.at = end


class Weights:
    """Initializers of a graph, to read and to write."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.found = {i.name: i for i in model.graph.initializer}
        self.reads = [x for n in model.graph.node for x in n.input]

    def own(self, name: str) -> bool:
        """An initializer that one node alone reads."""
        return name in self.found and self.reads.count(name) == 1

    def __getitem__(self, name: str) -> Array:
        return numpy_helper.to_array(self.found[name])

    def __setitem__(self, name: str, value: Array) -> None:
        self.found[name].CopyFrom(numpy_helper.from_array(value.astype(self[name].dtype), name))


def kept(weight: Array, bias: Array, whole: Array, biases: Array) -> Array | None:
    """Which rows of a dense convolution are left; None where that cannot be told.

    A row left has its bias unchanged, and of its weights a part; order stays.
    """
    if len(weight) == len(whole):
        return np.arange(len(whole))
    out: list[int] = []
    for w, b in zip(weight, bias, strict=True):
        after = out[-1] + 1 if out else 0
        same = [k for k in range(after, len(whole)) if biases[k] == b and np.isin(w, whole[k]).all()]
        if not same:
            return None
        out.append(same[0])
    return np.array(out)


def statistics(path: str, dense: str | None, calibration: str, out: str) -> str:
    """Re-estimate a file's statistics, see the top; dense: the same graph unpruned, for one without normalisation."""
    model = onnx.load(path)
    samples = np.load(calibration, mmap_mode="r")
    x = np.ascontiguousarray(samples[np.linspace(0, len(samples) - 1, min(len(samples), PICTURES)).round().astype(int)])
    norms = [n for n in model.graph.node if n.op_type == "BatchNormalization"]
    if not norms and dense is None:
        raise SystemExit("no BatchNormalization, and no dense model of the same layers")
    said = _matched(model, onnx.load(dense), x) if dense and not norms else _normalisation(model, norms, x)
    onnx.save(model, out)
    return said


def _normalisation(model: onnx.ModelProto, norms: list[onnx.NodeProto], x: Array) -> str:
    weights, forward = Weights(model), Forward(model, x)
    for n in norms:
        mean, variance = forward.moments([n.input[0]])[n.input[0]]
        weights[n.input[3]], weights[n.input[4]] = mean, variance
        forward.advance(n)
    return f"{len(norms)} BatchNormalization"


def _matched(model: onnx.ModelProto, dense: onnx.ModelProto, x: Array) -> str:
    weights, whole, forward = Weights(model), Weights(dense), Forward(model, x)
    before = {n.output[0]: n for n in dense.graph.node if n.op_type == "Conv" and len(n.input) == 3}
    convs = [n for n in model.graph.node if n.op_type == "Conv"]
    target = Forward(dense, x).moments(list(before))
    done = 0
    for n in convs:
        old = before.get(n.output[0])
        if old is None or len(n.input) < 3 or not (weights.own(n.input[1]) and weights.own(n.input[2])):
            continue
        w, b = weights[n.input[1]], weights[n.input[2]]
        rows = kept(w, b, whole[old.input[1]], whole[old.input[2]])
        if rows is None:
            continue
        mean, variance = forward.moments([n.output[0]])[n.output[0]]
        aim, spread = (v[rows] for v in target[n.output[0]])
        scale = np.where(variance > 1e-6 * spread, np.sqrt(spread / np.maximum(variance, 1e-30)), 1.0)
        weights[n.input[1]] = w * scale.reshape(-1, *[1] * (w.ndim - 1))
        weights[n.input[2]] = (b - mean) * scale + aim
        forward.advance(n)
        done += 1
    return f"{done} of {len(convs)} convolutions"


# ---------------------------------------------------------------------------------------------------------------------
# Methods
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """tool: ours, onnxsim or torch-pruning; stats: with statistics re-estimated; seeded: every seed is run."""

    name: str
    tool: str
    options: dict[str, Any] = field(default_factory=dict)
    stats: bool = False
    seeded: bool = False


RIVALS = tuple(
    Method(name + plus, tool, options, bool(plus))
    for name, tool, options in (
        ("onnxsim", "onnxsim", {}),
        ("torch-pruning", "torch-pruning", {"mode": "uniform"}),
        ("torch-pruning-global", "torch-pruning", {"mode": "global"}),
    )
    for plus in ("", "+stats")
)


def methods(args: argparse.Namespace) -> list[Method]:
    """Those asked for."""
    known = [Method("ours", "ours", seeded=True)]
    if args.free:
        alone = {"importance": "path", "allocate": "uniform", "recover": "bias"}
        known += [Method("ours-weights", "ours", alone), *(m for m in RIVALS if not m.stats)]
    else:
        known += RIVALS
    if args.rivals_only:
        known = [m for m in known if m.tool != "ours"]
    if not args.method:
        return known
    out = []
    for text in args.method:
        if "=" in text:
            options = dict(pair.split("=", 1) for pair in text.split(","))
            out.append(Method(text, "ours", options, seeded=True))
        else:
            out += [m for m in known if fnmatch(m.name, text) and m not in out]
    return out


def importances(args: argparse.Namespace) -> list[Method]:
    """Every importance asked for, the same fraction everywhere, without and with recovery."""
    if not args.importances:
        return []
    every = ["lp:0.5" if name == "lp:P" else name for name in CRITERIA]
    names = every if args.importances == "all" else args.importances.split(",")
    return [
        Method(f"{name}, {recover}", "ours", {"importance": name, "allocate": "uniform", "recover": recover},
               seeded=name == "random")
        for name in names for recover in ("none", "least-squares")
    ]  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A pruned file, or a problem."""

    path: Path
    seconds: float = 0.0
    peak: int = 0
    problem: str = ""
    note: str = ""


def prune(path: str, out: str, cut: float, options: dict[str, Any]) -> str:
    """Ours; the value names the recipe."""
    import onnxprune

    result = onnxprune.prune(path, target_macs=1 - cut, measure=False, round_to=1, **options)
    result.save(out)
    done = result.report.recipe
    return f"importance {done.importance}, allocate {done.allocate}, recover {done.recover}" if done else ""


class Bench:
    """Makes pruned files in a folder; what does not depend on data is made once."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.limits: dict[str, Any] = {"seconds": args.timeout, "gigabytes": 40}
        self.cached: dict[tuple[Any, ...], Made] = {}
        self.count = 0

    def file(self) -> Path:
        self.count += 1
        return self.folder / f"{self.count}.onnx"

    def once(self, key: tuple[Any, ...], make: Callable[[], Made]) -> Made:
        if key not in self.cached:
            self.cached[key] = make()
        return self.cached[key]

    def make(self, method: Method, task: Task, fold: Fold, cut: float, seed: int) -> Made:
        if method.tool == "ours":
            return self.ours(method, task, fold, cut, seed)
        mode = method.options.get("mode", "")
        tool = self.onnxsim if method.tool == "onnxsim" else self.torch
        base = self.once((method.tool, mode, task.path, cut), lambda: tool(task, cut, mode))
        if base.problem or not method.stats:
            return base
        dense = None
        if method.tool == "onnxsim":
            dense = self.once(("dense", task.path), lambda: self.simplified(task, 0.0)).path
        out = self.file()
        answer = common.call("bench_accuracy:statistics", base.path, dense, fold.calibration, out, **self.limits)
        if answer.problem:
            return Made(out, problem=answer.problem)
        run = answer.run
        note = f"statistics of {answer.value}"
        return Made(out, base.seconds + run.seconds, max(base.peak, run.peak), note=f"{base.note}; {note}".strip("; "))

    def ours(self, method: Method, task: Task, fold: Fold, cut: float, seed: int) -> Made:
        out = self.file()
        options = {**method.options, "seed": seed}
        if fold.calibration:
            samples = self.args.samples or len(np.load(fold.calibration, mmap_mode="r"))
            options |= {"calibration": str(fold.calibration), "samples": samples}
            criterion = CRITERIA.get(str(method.options.get("importance")))
            if criterion is not None and criterion.labels:
                options |= {"train": str(fold.calibration), "train_labels": str(fold.labels)}
        elif method.options.get("recover") not in ("none", "bias"):
            options["calibration"] = "synthetic"
        answer = common.call("bench_accuracy:prune", task.path, out, cut, options, **self.limits)
        return Made(out, answer.run.seconds, answer.run.peak, answer.problem, answer.value or "")

    def simplified(self, task: Task, sparsity: float) -> Made:
        out = self.file()
        answer = common.onnxsim(common.rival_python(self.args.onnxsim), task.path, out, sparsity)
        return Made(out, answer.run.seconds, answer.run.peak, answer.problem, f"sparsity {sparsity:.4g}")

    def onnxsim(self, task: Task, cut: float, mode: str) -> Made:
        """The smallest sparsity that cuts at least so much."""
        low, high, best = 0.0, 0.95, None
        for k in range(BISECTIONS):
            middle = high if k == 0 else (low + high) / 2
            made = self.simplified(task, middle)
            if made.problem:
                return made
            if common.counts(str(made.path))[1] <= (1 - cut) * task.macs:
                best, high = made, middle
            elif best is None:
                return Made(made.path, problem=f"no sparsity cuts {cut:.0%}")
            else:
                low = middle
        assert best
        return best

    def torch(self, task: Task, cut: float, mode: str) -> Made:
        python, out = torch_python(self.args.torch), self.file()
        if python is None:
            return Made(out, problem="not installed")
        done = common.run(
            [python, common.TOOLS / "tp_worker.py", task.path, out, str(cut), mode], seconds=900, gigabytes=40
        )
        if done.problem:
            return Made(out, problem=done.problem)
        value = json.loads(done.out.strip().splitlines()[-1])
        note = f"ratio {value['ratio']:.4g}, {value['left']} left alone"
        return Made(out, done.seconds - value["search"], done.peak, note=note)


def torch_python(option: Path | None) -> Path | None:
    """A python with torch-pruning: the option, this one, or that of ../trainenv; None without."""
    for python in [option] if option else [Path(sys.executable), common.REPO.parent / "trainenv" / "bin" / "python"]:
        if python.is_file():
            tried = subprocess.run([python, "-c", "import torch_pruning"], capture_output=True, check=False)
            if not tried.returncode:
                return python
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Rows and tables
# ---------------------------------------------------------------------------------------------------------------------


def measure(bench: Bench, method: Method, task: Task, cut: float) -> dict[str, Any]:
    """One row."""
    row: dict[str, Any] = {"model": task.path.stem, "method": method.name, "cut": cut}
    rows = np.concatenate([f.rows for f in task.folds])
    seeds = range(bench.args.seeds if method.seeded else 1)
    found = np.zeros((len(seeds), len(task.y)), np.int64)
    made, counts = [], []
    for seed in seeds:
        for fold in task.folds:
            m = bench.make(method, task, fold, cut, seed)
            if m.problem:
                return row | {"problem": m.problem}
            made.append(m)
            counts.append(common.counts(str(m.path)))
            found[seed, fold.rows] = predictions(m.path, task.x[fold.rows])
    y, dense, found = task.y[rows], task.dense[rows], found[:, rows]
    right = found == y
    lost = (dense == y) - right.mean(0)
    parameters, macs = np.mean(counts, 0)
    return row | {
        "n": len(rows), "seeds": len(seeds),
        "macs_cut": 1 - macs / task.macs, "params_cut": 1 - parameters / task.parameters,
        "dense": float((dense == y).mean()), "top1": float(right.mean()), "drop": float(100 * lost.mean()),
        "error": float(100 * lost.std(ddof=1) / np.sqrt(len(rows))),
        "seeds_deviation": float(100 * right.mean(1).std(ddof=1)) if len(seeds) > 1 else None,
        "agreement": float((found == dense).mean()), "seconds": float(np.mean([m.seconds for m in made])),
        "peak": max(m.peak for m in made), "notes": list(dict.fromkeys(m.note for m in made if m.note)),
    }  # fmt: skip


def table(title: str, rows: list[dict[str, Any]]) -> list[Any]:
    """The table, and what else is to be said."""
    names = "cut -method MACs_cut params_cut top-1 drop ± seeds_± agreement seconds peak_MB"
    out = common.columns(title, names)
    lines = []
    for r in rows:
        if "problem" in r:
            out.add_row(f"{r['cut']:.0%}", r["method"], *["-"] * 8, "-")
            lines.append(f"{r['cut']:.0%}, {r['method']}: {r['problem']}")
            continue
        lines += [f"{r['cut']:.0%}, {r['method']}: {note}" for note in r["notes"]]
        spread = r["seeds_deviation"]
        out.add_row(
            f"{r['cut']:.0%}", r["method"], f"{r['macs_cut']:.1%}", f"{r['params_cut']:.1%}", f"{r['top1']:.4f}",
            f"{r['drop']:.2f}", f"{r['error']:.2f}", "-" if spread is None else f"{spread:.2f}",
            f"{r['agreement']:.4f}", f"{r['seconds']:.1f}", f"{r['peak'] / 1e6:.0f}",
        )  # fmt: skip
    return [out, "\n".join(lines)] if lines else [out]


def main() -> None:
    p = common.parser(__doc__, rival=True)
    p.add_argument("--torch", type=Path, metavar="PYTHON", help="a python with torch, torch-pruning and onnx")
    p.add_argument("--only", default="*", metavar="GLOB", help="only models whose name matches")
    p.add_argument("--cut", type=float, action="append", metavar="C", help="of MACs, repeatable (default: by model)")
    p.add_argument("--method", action="append", metavar="NAME", help="repeatable (default: all), see above")
    p.add_argument("--rivals-only", action="store_true", help="leave ours out")
    p.add_argument("--free", action="store_true", help="without data")
    p.add_argument("--importances", metavar="A,B|all", help="a second table, of these importances of ours")
    p.add_argument("--seeds", type=int, default=3, metavar="N", help="of ours (default 3)")
    p.add_argument("--samples", type=int, metavar="N", help="of calibration, for ours (default: all)")
    p.add_argument("--limit", type=int, metavar="N", help="score about N pictures, evenly spread")
    p.add_argument("--timeout", type=float, default=3600, metavar="S", help="of one run (default 3600)")
    args = p.parse_args()
    first, second = methods(args), importances(args)
    rows: list[dict[str, Any]] = []
    tables: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        for task in tasks(common.assets(args.assets), args, Path(folder)):
            bench = Bench(args, Path(folder))
            scored = np.concatenate([f.rows for f in task.folds])
            dense = (task.dense == task.y)[scored].mean()
            head = f"{task.path.stem}: dense top-1 {dense:.4f}, {len(scored)} pictures, {task.macs / 1e6:.0f} M MACs"
            head += ", without data" if args.free else ""
            for extra, chosen in (("", first), (", every importance, uniform", second)):
                found = []
                for cut in task.cuts:
                    for method in chosen:
                        if method.tool == "torch-pruning" and not task.path.stem.startswith("resnet"):
                            continue
                        row = measure(bench, method, task, cut)
                        found.append(row)
                        if args.json:  # the rows so far, should something end the run
                            args.json.write_text(json.dumps(rows + found, indent=1) + "\n", encoding="utf-8")
                        what = (
                            row.get("problem")
                            or f"top-1 {row['top1']:.4f}, drop {row['drop']:.2f} ± {row['error']:.2f}"
                        )
                        common.say(f"{task.path.stem} {cut:.0%} {method.name}: {what}")
                if found:
                    tables += table(head + extra, found)
                rows += found
    common.emit(args, tables, rows)


if __name__ == "__main__":
    main()
