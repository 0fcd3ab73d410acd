"""Which weights to make zero, and what the others become: solvers of ours next to those of onnxsim.

    python tools/bench_solvers.py --models resnet20,mobilenetv2 --settings 0.5,0.8,2:4 --solvers magnitude --rivals
    python tools/bench_solvers.py --models 'digits_*' --solvers '' --rivals --json cells.json
    python tools/bench_solvers.py --models 'digits_*' --solvers sparsegpt,admm --rivals --json cells.json --resume

Settings are fractions of zeros, the same in every layer, or N:M. A solver is a name for `onnxprune.prune(solver=...)`,
with options as NAME/KEY=VALUE, as admm/permute=false; all but magnitude get the calibration data. Rivals (--onnxsim
names a python that has it) are onnxsim's apply_sparsegpt_pruning and apply_wanda_pruning with their defaults.

All tools start from the same file, in which BatchNormalization is folded into the convolution before it, and get the
same calibration samples. Of the 500 pictures of the ImageNet sample those with even index calibrate and those with odd
index are scored (--both-halves: also the other way round, predictions pooled). CIFAR-10: pictures of the training part,
evenly spread, calibrate and the test part is scored. Models of models/ and of --folder (what train_transformers.py
wrote): NAME.npz or DATA_heldout.npz is scored and DATA_calibration.npz calibrates; where that does not fit, every third
held-out sample calibrates, without its label, and the others are scored.

Columns:
  zeros, layers      of the layers that onnxprune can make sparse: zero weights over all, and how many are sparse
  error              ||X (W - W')||^2 / ||X W||^2 of a layer, median and worst: X are the layer's inputs in the dense
                     model on the calibration samples (at most --rows of their rows, picked with a fixed seed), W' all
                     that the tool wrote; over the layers that every tool shown made sparse
  centred            median of the same with the mean of X taken off: what a corrected bias leaves
  held-out           median of the same with X of the scored samples
  top1 ...           on the scored samples; pixels: share of pixels rightly put into foreground or background
  over best rival    difference from the best rival with its paired standard error, in points (perplexity: in nats of
                     loss), above zero where it is better
  CPU s, peak MB     processor time of the call, which others on the machine lengthen less than seconds (the JSON has
                     both); anonymous memory of the whole process
  notes              N:M along channels: in how many of the sparse layers the pattern runs where sparse kernels want it,
                     along the inputs of a matrix and the input channels of a convolution; permuted: errors are those
                     next to the dense model with its channels in the same order; biases: how many vectors changed
`NAME, our layers` is the rival's result with the weights of all layers put back that we leave dense (depthwise
convolutions and those of one channel): its layers do not depend on each other, so this is what it would have made of
ours alone. Every cell runs in processes of its own on --threads processors. With --json every finished cell is written
at once, and --resume takes over those of the file that went well; the tables show what was asked for.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import common
from bench_accuracy import cifar_calibration
from bench_transformers import find

Array = np.ndarray[Any, np.dtype[Any]]
Cell = dict[str, Any]

REAL = {
    "mobilenetv2": "mobilenetv2_100_224_imagenet",
    "mobilenetv1": "mobilenetv1_075_192_imagenet",
    "squeezenet": "squeezenet10_imagenet_fp32",
    "resnet20": "resnet20_cifar10",
    "resnet56": "resnet56_cifar10",
}
TRAINED = ("cifar_vit", "shakespeare_decoder")  # in --folder
SETTINGS = ("0.5", "0.7", "0.8", "0.9", "2:4")
RIVALS = {"onnxsim-sparsegpt": "sparsegpt", "onnxsim-wanda": "wanda"}
OURS_ONLY = ", our layers"  # behind a rival's name, see above
DENSE = "dense"
ALONG = "N:M along channels"
BATCH = 25
GRAMS = 4e8  # bytes of activations of one batch while Gram matrices are made


# ---------------------------------------------------------------------------------------------------------------------
# Models and data
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Task:
    """A dense model, prepared, with arrays by input name for calibration, and `labels` as well for scoring.

    metric: top1, loss or pixels; first: the label of class 0; batch: samples of one run.
    """

    name: str
    fold: int
    model: Path
    calibration: Path
    heldout: Path
    metric: str
    first: int
    batch: int


def known(folder: Path) -> list[str]:
    """Names of all models."""
    own = sorted(p.stem for p in (common.REPO / "models").glob("*.onnx") if ".pruned" not in p.name)
    return [*REAL, *own, *(name for name in TRAINED if find(files(name), [folder]))]


def files(name: str) -> list[str]:
    return [f"{name}.onnx", f"{name}.torchscript.onnx"]


def tasks(name: str, args: argparse.Namespace, folder: Path) -> Iterator[Task]:
    """The model's tasks: one, or two where each half of the pictures calibrates once; files are written to `folder`."""
    if name in REAL:
        root = common.assets(args.assets)
        path = root / "models" / f"{REAL[name]}.onnx"
        pairs = list(pictures(REAL[name], root, args.both_halves))
    else:
        found = find(files(name), [common.REPO / "models", args.folder])
        assert found
        path, pairs = found, [own_data(name, [common.REPO / "models", args.folder])]
    model = folder / f"{name}.onnx"
    answer = common.call("bench_solvers:prepared", path, model)
    if answer.problem:
        raise SystemExit(f"{name}: {answer.problem}")
    inputs, fixed = answer.value
    for fold, (calibration, x, labels) in enumerate(pairs):
        names = list(calibration) if len(inputs) > 1 else inputs
        stem = folder / f"{name}.{fold}"
        count = len(next(iter(calibration.values())))
        chosen = np.unique(np.linspace(0, count - 1, min(args.samples, count)).round().astype(int))
        np.savez(f"{stem}.calibration.npz", **{n: v[chosen] for n, v in zip(names, calibration.values(), strict=True)})
        np.savez(f"{stem}.heldout.npz", labels=labels, **dict(zip(names, x.values(), strict=True)))
        metric = "top1" if labels.ndim == 1 else "loss" if labels.ndim == 2 else "pixels"
        first = 1 if "mobilenet" in name and name in REAL else 0  # TF-slim's have a background class
        chosen_of, held = (Path(f"{stem}.{part}.npz") for part in ("calibration", "heldout"))
        yield Task(name, fold, model, chosen_of, held, metric, first, fixed or BATCH)


Data = tuple[dict[str, Array], dict[str, Array], Array]  # calibration, what is scored, labels


def pictures(name: str, root: Path, both: bool) -> Iterator[Data]:
    """Data of a model of the assets, preprocessed as their score.py does."""
    real = common.module(root / "score.py")
    x, y = real.data(str(root), name)
    if x.shape[1] != 3:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    x = x.astype(np.float32)
    if "cifar" in name:
        yield {"x": cifar_calibration(root, real)[0]}, {"x": x}, y
        return
    for side in (0, 1) if both else (0,):
        yield {"x": x[side::2]}, {"x": x[1 - side :: 2]}, y[1 - side :: 2]


def own_data(name: str, folders: Sequence[Path]) -> Data:
    """Data of a model that was trained here."""
    family = name.split("_")[0]
    heldout, calibration = find([f"{name}.npz", f"{family}_heldout.npz"], folders), None
    if heldout is None:
        raise SystemExit(f"{name}: its held-out data are in none of {', '.join(map(str, folders))}")
    with np.load(heldout) as file:
        x = {n: file[n] for n in file.files if n != "labels"}
        labels = file["labels"]
    spare = find([f"{family}_calibration.npz"], folders)
    if spare:
        with np.load(spare) as file:
            calibration = {n: file[n] for n in x} if set(x) <= set(file.files) else None
    if calibration is None:
        some = np.arange(len(labels)) % 3 == 0
        calibration, x, labels = {n: v[some] for n, v in x.items()}, {n: v[~some] for n, v in x.items()}, labels[~some]
    return calibration, x, labels


def batches(path: str | Path, size: int, most: int | None = None) -> tuple[list[dict[str, Array]], Array | None]:
    """Inputs of every run, of at most `most` samples evenly spread, and all labels."""
    with np.load(path) as file:
        x = {n: file[n] for n in file.files}
    labels = x.pop("labels", None)
    count = len(next(iter(x.values())))
    if most and most < count:
        chosen = np.linspace(0, count - 1, most).round().astype(int)
        x, count = {n: v[chosen] for n, v in x.items()}, most
    return [{n: v[k : k + size] for n, v in x.items()} for k in range(0, count, size)], labels


# ---------------------------------------------------------------------------------------------------------------------
# What runs in processes of its own; arguments and values are JSON
# ---------------------------------------------------------------------------------------------------------------------


def prepared(source: str, out: str) -> tuple[list[str], int]:
    """Write the model that all start from; its inputs, and its batch size where that is fixed, else 0."""
    import onnxprune
    from onnxprune.graph.shapes import graph_inputs
    from onnxprune.sparsity.prepare import prepare

    model, _ = prepare(onnxprune.load(source), functions=False)
    onnxprune.save(model, out)
    inputs = graph_inputs(model)
    return [i.name for i in inputs], max(i.type.tensor_type.shape.dim[0].dim_value for i in inputs)


def solve(
    source: str, out: str, order: str, solver: str, setting: str, calibration: str, threads: int
) -> dict[str, float]:
    """Ours; seconds of the call and of its processor time, and how many channel groups were permuted.

    order: where the permuted dense model is written, if there is one.
    """
    import time

    import onnxprune

    name, *rest = solver.split("/")
    options: dict[str, Any] = {}
    for pair in rest:
        key, _, text = pair.partition("=")
        try:
            options[key] = json.loads(text)
        except json.JSONDecodeError:
            options[key] = text
    given = {"pattern": setting} if ":" in setting else {"sparsity": float(setting), "sparsity_allocate": "uniform"}
    options = given | options
    if name != "magnitude":
        with np.load(calibration) as file:
            options |= {"calibration": calibration, "samples": len(file[file.files[0]])}
    with reordered() as models:
        start, cpu = time.perf_counter(), time.process_time()
        result = onnxprune.prune(
            source, solver=name, format="dense", verify=False, measure=False, seed=0, threads=threads, **options
        )
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    result.save(out)
    permuted = len(result.report.sparsity.permuted) if result.report.sparsity else 0
    if permuted:
        onnxprune.save(models[-1], order)
    return spent | {"permuted": permuted}


@contextmanager
def reordered() -> Iterator[list[Any]]:
    """Dense models with channels in the order that N:M wants, as they come out of `permute`: layers are compared with
    theirs, as nothing in the result says which channel went where."""
    from onnxprune.sparsity import permute as module

    real, models = module.permute, []

    def permute(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        models.append(found[0])
        return found

    module.permute = permute
    try:
        yield models
    finally:
        module.permute = real


def grams(model: str, calibration: str, heldout: str, out: str, rows: int, batch: int, threads: int) -> int:
    """Write `rows' rows / n` and the mean of rows of every layer's inputs; how many layers.

    Arrays of the file: `PART/NODE/gram` `(groups, in, in)` and `PART/NODE/mean` `(groups, in)`, PART c or h.
    """
    import onnxprune
    from onnxprune.layers import rows as linear
    from onnxprune.layers.values import Values
    from onnxprune.runtime.stream import Stream

    dense = onnxprune.load(model)
    values = Values(dense)
    chosen = regressions(dense)
    kernels = {node: linear.kernel_shape(layer, values) for node, layer in chosen.items()}
    sources = [layer.source for layer in chosen.values()]
    found: dict[str, Any] = {}
    for part, path in (("c", calibration), ("h", heldout)):
        count = sum(len(next(iter(b.values()))) for b in batches(calibration, batch)[0])
        feeds, _ = batches(path, batch, count)
        total: dict[str, list[Any]] = {node: [0.0, 0.0, 0] for node in chosen}
        for run, tensors in enumerate(Stream(dense, feeds, threads=threads, limit=GRAMS).compute(sources)):
            for k, (node, layer) in enumerate(chosen.items()):
                x = tensors[layer.source]
                there, wanted = linear.positions(layer, x, kernels[node]), math.ceil(rows / len(feeds))
                rng = np.random.default_rng([k, run, part == "h"])
                picked = np.sort(rng.choice(there, wanted, replace=False)) if there > wanted else None
                r = linear.rows(layer, x, kernels[node], picked).astype(np.float64)
                total[node][0] += r.transpose(0, 2, 1) @ r
                total[node][1] += r.sum(1)
                total[node][2] += r.shape[1]
        for node, (square, sums, n) in total.items():
            found |= {f"{part}/{node}/gram": square / n, f"{part}/{node}/mean": sums / n}
    np.savez(out, **found)
    return len(chosen)


def regressions(model: Any) -> dict[str, Any]:
    """The `Layer` of everything that onnxprune can make sparse, by its node's key."""
    from onnxprune.layers.layer import linear_layers, node_names, sparse_layers

    names = node_names(model.proto)
    found = {names[x.index]: x for x in linear_layers(model)}
    return {layer.name: found[layer.name] for layer in sparse_layers(model)[0] if layer.name in found}


def relative(gram: Array, mean: Array, whole: Array, left: Array) -> tuple[float, float]:
    """`||X (W - W')||^2 / ||X W||^2` and the same with centred X; W `(groups, in, out)`."""
    out = []
    for g in (gram, gram - mean[:, :, None] * mean[:, None, :]):
        lost, all_of_it = (float(np.sum(d * (g @ d))) for d in (whole - left, whole))
        out.append(max(lost, 0.0) / all_of_it if all_of_it > 0 else 0.0)
    return out[0], out[1]


def measure(dense: str, sparse: str, setting: str, grams: str) -> dict[str, Any]:
    """The layers of a sparse file: zeros, errors, whether N:M holds along channels; and how many vectors changed."""
    import onnxprune
    from onnxprune.layers.layer import sparse_layers
    from onnxprune.layers.rows import matrix
    from onnxprune.layers.values import Values
    from onnxprune.sparsity.prepare import prepare

    before, after = onnxprune.load(dense), prepare(onnxprune.load(sparse), functions=False)[0]
    first, second = regressions(before), paired(before, after)
    layers = {x.name: x for x in sparse_layers(after)[0]}
    values, new = Values(before), Values(after)
    rows: dict[str, dict[str, Any]] = {}
    with np.load(grams) as file:
        for node, layer in first.items():
            if node not in second:
                continue
            w, v = matrix(layer, values), matrix(second[node][1], new)
            rows[node] = {"size": w.size, "zeros": int((v == 0).sum())}
            for part, name in (("c", "error"), ("h", "heldout")):
                error, centred = relative(file[f"{part}/{node}/gram"], file[f"{part}/{node}/mean"], w, v)
                rows[node] |= {name: error, f"{name}_centred": centred}
            if ":" in setting:
                x = layers[second[node][0]]
                rows[node]["along"] = follows(x.blocks(after.weights[x.weight]), setting)
    weights = {x.weight for x in sparse_layers(before)[0]}
    changed = {
        name: v for name, v in after.weights.items()
        if name not in weights and v.dtype.kind == "f" and not same(before.weights.get(name), v)
    }  # fmt: skip
    return {
        "layers": rows, "unmatched": len(first) - len(rows),
        "changed_vectors": sum(v.ndim < 2 or max(v.shape) == v.size for v in changed.values()),
        "changed_others": sum(not (v.ndim < 2 or max(v.shape) == v.size) for v in changed.values()),
    }  # fmt: skip


def follows(blocks: Array, pattern: str) -> bool:
    """Whether at most N of every M weights along the last axis of `[S, L]` are left."""
    n, m = (int(x) for x in pattern.split(":"))
    padded = np.pad(blocks != 0, ((0, 0), (0, -blocks.shape[1] % m)))
    return int(padded.reshape(len(blocks), -1, m).sum(2).max(initial=0)) <= n


def same(a: Array | None, b: Array) -> bool:
    return a is not None and a.shape == b.shape and bool(np.array_equal(a, b))


def paired(before: Any, after: Any) -> dict[str, tuple[str, Any]]:
    """Layers of a sparse model by the node's key in the dense one: by name, or where names changed by their order."""
    from onnxprune.layers.rows import matrix
    from onnxprune.layers.values import Values

    first, second = regressions(before), regressions(after)
    if set(first) <= set(second):
        return {node: (node, second[node]) for node in first}
    shapes = [[matrix(x, values).shape for x in found.values()]
              for found, values in ((first, Values(before)), (second, Values(after)))]  # fmt: skip
    if shapes[0] == shapes[1]:
        return dict(zip(first, second.items(), strict=True))
    return {node: (node, second[node]) for node in first if node in second}


def put_back(dense: str, sparse: str, out: str) -> int:
    """Write the sparse model with all weights of the dense one but those of our layers; how many it had changed."""
    import onnxprune
    from onnxprune.layers.layer import sparse_layers

    before, after = onnxprune.load(dense), onnxprune.load(sparse)
    ours = {x.weight for x in sparse_layers(before)[0]}
    old = {n: w for n, w in before.weights.items() if n not in ours and n in after.weights}
    changed = [n for n, w in old.items() if not same(w, after.weights[n])]
    for name in changed:
        after.weights[name] = old[name]
    onnxprune.save(after, out)
    return len(changed)


def score(model: str, heldout: str, metric: str, first: int, batch: int, threads: int) -> Array:
    """The metric of every sample: a hit, the mean loss of its tokens, or its share of right pixels."""
    from onnxprune.evaluation.metrics import METRICS

    feeds, labels = batches(heldout, batch)
    assert labels is not None
    session = common.session(model, threads)
    y = np.concatenate([np.asarray(session.run(None, f)[0]) for f in feeds])
    if metric == "pixels":
        return np.asarray(((y > 0) == (labels > 0)).reshape(len(y), -1).mean(1))
    y = y if labels.ndim > 1 else y.reshape(len(y), -1)
    return METRICS[metric].per_sample({"y": y}, labels.astype(np.int64) + first, {}, "y")


def judge(dense: str, sparse: str, setting: str, grams: str, alone: str | None, scoring: Sequence[Any]) -> list[Cell]:
    """Layers (where there are Gram matrices) and scores of a sparse file.

    alone: where the same with our layers alone is written; what that is worth comes second, if it differs.
    scoring: what `score` takes after the model.
    """
    again = [alone] if alone and put_back(dense, sparse, alone) else []
    cells = []
    for path in (sparse, *again):
        each = score(path, *scoring)
        facts = {"value": float(np.mean(each)), "each": " ".join(f"{v:.6g}" for v in each)}
        cells.append(facts | (measure(dense, path, setting, grams) if grams else {}))
    return cells


# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------


class Cells:
    """What was measured, by model, fold, setting and tool; kept in a file."""

    def __init__(self, path: Path | None, *, resume: bool) -> None:
        self.path, self.found = path, {}
        if path and path.is_file():
            if not resume:
                raise SystemExit(f"{path} is there already; go on with it by --resume, or name another file")
            self.found = {self.key(**row): row for row in json.loads(path.read_text(encoding="utf-8"))}

    @staticmethod
    def key(model: str, fold: int, setting: str, tool: str, **_: Any) -> tuple[str, int, str, str]:
        return model, fold, setting, tool

    def done(self, model: str, fold: int, setting: str, tool: str) -> bool:
        """Whether it is there and went well."""
        row = self.found.get((model, fold, setting, tool))
        return row is not None and not row.get("problem")

    def add(self, row: Cell) -> None:
        self.found[self.key(**row)] = row
        if self.path:
            part = self.path.with_name(self.path.name + ".part")
            part.write_text(json.dumps(list(self.found.values()), indent=1) + "\n", encoding="utf-8")
            part.replace(self.path)

    def of(self, model: str, setting: str, tool: str) -> list[Cell]:
        """All folds."""
        return [row for (m, _, s, t), row in self.found.items() if (m, s, t) == (model, setting, tool)]


class Bench:
    """Makes the cells of one task."""

    def __init__(self, task: Task, cells: Cells, args: argparse.Namespace, folder: Path) -> None:
        self.task, self.cells, self.args, self.folder = task, cells, args, folder
        self.limits: dict[str, Any] = {"seconds": args.timeout, "gigabytes": 40}

    def missing(self, setting: str, tool: str) -> bool:
        return not self.cells.done(self.task.name, self.task.fold, setting, tool)

    def add(self, setting: str, tool: str, facts: Cell) -> None:
        task = self.task
        head = {"model": task.name, "fold": task.fold, "setting": setting, "tool": tool, "metric": task.metric}
        self.cells.add(head | facts)
        errors = [r["error"] for r in facts.get("layers", {}).values()]
        said = facts.get("problem") or (
            f"{shown(task.metric, facts['value'])}" + (f", error {np.median(errors):.3g}" if errors else "")
        )
        common.say(f"{task.name} {setting} {tool}: {said}, {facts.get('cpu_seconds') or 0:.1f} s")

    @cached_property
    def grams(self) -> Path:
        """The file of Gram matrices of the dense model, made when first needed."""
        return self.grams_of(self.task.model)

    def grams_of(self, model: Path) -> Path:
        """The file of Gram matrices of a dense model. Raises SystemExit: nothing can be measured then."""
        t, a, out = self.task, self.args, model.with_suffix(f".{self.task.fold}.grams.npz")
        data = (t.calibration, t.heldout)
        answer = common.call("bench_solvers:grams", model, *data, out, a.rows, t.batch, a.threads, **self.limits)
        if answer.problem:
            raise SystemExit(f"{t.name}: no Gram matrices: {answer.problem}")
        return out

    def judged(self, path: Path, setting: str, *, order: Path | None = None, alone: Path | None = None) -> list[Cell]:
        """Layers and scores of a sparse file; with `alone`, see `judge`, perhaps those of that file as well.

        order: the dense model in the order of channels that the sparse one has, where that is another one.
        """
        t = self.task
        scoring = (t.heldout, t.metric, t.first, t.batch, self.args.threads)
        grams = "" if path == t.model else self.grams_of(order) if order else self.grams
        arguments = (order or t.model, path, setting, grams, alone, scoring)
        answer = common.call("bench_solvers:judge", *arguments, **self.limits)
        if answer.problem:
            return [{"problem": f"cannot be measured: {answer.problem}"}]
        cells: list[Cell] = answer.value
        return cells

    def dense(self) -> None:
        if self.missing("-", DENSE):
            self.add("-", DENSE, self.judged(self.task.model, "-")[0])

    def solver(self, setting: str, solver: str) -> None:
        """A cell of ours."""
        if not self.missing(setting, solver):
            return
        t, out, order = self.task, self.folder / "ours.onnx", self.folder / "order.onnx"
        arguments = (t.model, out, order, solver, setting, t.calibration, self.args.threads)
        answer = common.call("bench_solvers:solve", *arguments, **self.limits)
        spent = {"process_seconds": answer.run.seconds, "peak": answer.run.peak}
        if answer.problem:
            self.add(setting, solver, {"problem": answer.problem, **spent})
            return
        cell = self.judged(out, setting, order=order if answer.value["permuted"] else None)[0]
        self.add(setting, solver, cell | answer.value | spent)

    def rival(self, setting: str, rival: str, python: Path) -> None:
        """A cell of a rival, and a second one of what it makes of our layers, where that differs."""
        if not self.missing(setting, rival):
            return
        t, out, alone = self.task, self.folder / "rival.onnx", self.folder / "alone.onnx"
        worker: list[str | Path] = [python, common.TOOLS / "onnxsim_sparse_worker.py"]
        command: list[str | Path] = [*worker, t.model, out, RIVALS[rival], setting, t.calibration, str(t.batch)]
        run = common.run(command, **self.limits)
        spent = {"process_seconds": run.seconds, "peak": run.peak}
        if run.problem:
            self.add(setting, rival, {"problem": run.problem, **spent})
            return
        spent |= json.loads(run.out.strip().splitlines()[-1])
        first, *second = self.judged(out, setting, alone=alone)
        for cell in second:
            self.add(setting, rival + OURS_ONLY, cell | spent)
        self.add(setting, rival, first | spent)


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def shown(metric: str, value: float) -> str:
    """A metric's value: the perplexity of a loss."""
    return f"{math.exp(min(value, 50)):.3f}" if metric == "loss" else f"{value:.4f}"


@dataclass(frozen=True, eq=False)
class Result:
    """A tool's cells of one model and setting, all folds together; each: figures of the samples."""

    tool: str
    cells: list[Cell]

    @property
    def problem(self) -> str:
        return next((c["problem"] for c in self.cells if c.get("problem")), "")

    @cached_property
    def layers(self) -> dict[tuple[int, str], dict[str, Any]]:
        return {(c["fold"], node): row for c in self.cells for node, row in c.get("layers", {}).items()}

    @cached_property
    def each(self) -> Array:
        return np.array([float(v) for c in sorted(self.cells, key=lambda c: c["fold"]) for v in c["each"].split()])

    def sparse(self, setting: str) -> set[tuple[int, str]]:
        """Layers with at least nine tenths of the zeros asked for."""
        n, _, m = setting.partition(":")
        wanted = 1 - int(n) / int(m) if m else float(setting)
        return {k for k, r in self.layers.items() if r["zeros"] >= 0.9 * wanted * r["size"]}


def best_rival(results: Sequence[Result], metric: str) -> Result | None:
    """The rival whose metric is best."""
    rivals = [r for r in results if not r.problem and r.tool.removesuffix(OURS_ONLY) in RIVALS]
    return max(rivals, key=lambda r: -r.each.mean() if metric == "loss" else r.each.mean(), default=None)


def compared(result: Result, rival: Result | None, metric: str) -> tuple[float, float] | None:
    """By how much it is better than the rival, and the paired standard error."""
    if rival is None or result.tool == rival.tool or len(result.each) != len(rival.each):
        return None
    better = (result.each - rival.each) * (-1 if metric == "loss" else 1)
    return float(better.mean()), float(better.std(ddof=1) / math.sqrt(len(better)))


def rows_of(model: str, setting: str, tools: Sequence[str], cells: Cells) -> list[Cell]:
    """What the table says of one model and setting, as data."""
    dense = Result(DENSE, cells.of(model, "-", DENSE))
    results = [Result(t, cells.of(model, setting, t)) for t in tools if cells.of(model, setting, t)]
    good = [r for r in results if not r.problem]
    if not results or dense.problem or not dense.cells:
        return []
    metric = results[0].cells[0]["metric"]
    rival = best_rival(results, metric)
    common_layers = set.intersection(*(r.sparse(setting) for r in good)) if good else set()
    rows = []
    for r in results:
        row: Cell = {"model": model, "setting": setting, "tool": r.tool, "metric": metric}
        if r.problem:
            rows.append(row | {"problem": r.problem})
            continue
        sparse, both = r.sparse(setting), [r.layers[k] for k in sorted(common_layers)]
        errors = {name: [x[name] for x in both] for name in ("error", "error_centred", "heldout", "heldout_centred")}
        difference = compared(r, rival, metric)
        row |= {
            "dense": float(dense.each.mean()), "value": float(r.each.mean()), "samples": len(r.each),
            "over_best_rival": difference, "best_rival": rival.tool if rival else "",
            "zeros": sum(x["zeros"] for x in r.layers.values()) / sum(x["size"] for x in r.layers.values()),
            "common_zeros": sum(x["zeros"] for x in both) / max(sum(x["size"] for x in both), 1),
            "layers": len(r.layers), "sparse_layers": len(sparse), "common_layers": len(both),
            "along_channels": sum(bool(r.layers[k].get("along")) for k in sparse) if ":" in setting else None,
            "permuted": max(c.get("permuted", 0) for c in r.cells),
            "changed_vectors": max(c["changed_vectors"] for c in r.cells),
            "changed_others": max(c["changed_others"] for c in r.cells),
            "cpu_seconds": float(np.mean([c["cpu_seconds"] for c in r.cells])), "peak": max(c["peak"] for c in r.cells),
        }  # fmt: skip
        for name, values in errors.items():
            row |= {f"{name}_median": float(np.median(values)), f"{name}_worst": max(values)} if values else {}
        rows.append(row)
    return rows


def table(model: str, rows: Sequence[Cell]) -> list[Any]:
    """The table of a model, and what else is to be said."""
    good = next((r for r in rows if "value" in r), None)
    head = model
    if good:
        word = "perplexity" if good["metric"] == "loss" else good["metric"]
        head += f": dense {word} {shown(good['metric'], good['dense'])}, {good['samples']} samples"
    word = "perplexity" if good and good["metric"] == "loss" else good["metric"] if good else "value"
    out = common.columns(
        head, f"-setting -tool zeros layers error worst centred held-out {word} over_best_rival CPU_s peak_MB"
    )
    lines = []
    for r in rows:
        if r.get("problem"):
            out.add_row(r["setting"], r["tool"], *["-"] * 10)
            lines.append(f"{r['setting']}, {r['tool']}: {r['problem']}")
            continue
        scale = 1 if r["metric"] == "loss" else 100
        over = r["over_best_rival"]
        errors = [r.get(n) for n in ("error_median", "error_worst", "error_centred_median", "heldout_median")]
        out.add_row(
            r["setting"], r["tool"], f"{r['zeros']:.1%}", f"{r['sparse_layers']}/{r['layers']}",
            *("-" if e is None else f"{e:.4f}" for e in errors), shown(r["metric"], r["value"]),
            f"{scale * over[0]:+.2f} ± {scale * over[1]:.2f}" if over else "-", f"{r['cpu_seconds']:.1f}",
            f"{r['peak'] / 1e6:.0f}",
        )  # fmt: skip
        notes = []
        if r["along_channels"] is not None and r["along_channels"] < r["sparse_layers"]:
            notes.append(f"{ALONG} in {r['along_channels']} of {r['sparse_layers']} layers")
        if r["permuted"]:
            notes.append(f"channels of {r['permuted']} groups permuted")
        if r["changed_vectors"]:
            notes.append(f"{r['changed_vectors']} biases changed")
        if r["changed_others"]:
            notes.append(f"{r['changed_others']} weights of other layers changed")
        if r["common_layers"] < r["layers"]:
            notes.append(f"errors over {r['common_layers']} layers, {r['common_zeros']:.1%} zeros there")
        lines += [f"{r['setting']}, {r['tool']}: {'; '.join(notes)}"] if notes else []
    return [out, *dict.fromkeys(lines)]


def chosen(option: str, names: str, all_of_them: Sequence[str]) -> list[str]:
    """Names or globs, separated by commas."""
    out = []
    for glob in filter(None, names.split(",")):
        some = [n for n in all_of_them if fnmatchcase(n, glob)]
        if not some:
            raise SystemExit(f"{option} {glob}: unknown; choose of {', '.join(all_of_them)}")
        out += some
    return list(dict.fromkeys(out))


def one_core_each(threads: int) -> None:
    """Keep this process and those it starts on so many processors: the rivals' runtime asks for all that it sees."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def main() -> None:
    p = common.parser(__doc__, rival=True)
    p.add_argument("--models", default="*", metavar="A,B", help="names or globs (default: all)")
    p.add_argument("--settings", default=",".join(SETTINGS), metavar="S,T", help=f"default {','.join(SETTINGS)}")
    p.add_argument("--solvers", default="magnitude", metavar="A,B", help="of ours, see above (default magnitude)")
    p.add_argument("--rivals", nargs="?", const="*", default="", metavar="A,B", help=f"of {', '.join(RIVALS)}")
    p.add_argument("--resume", action="store_true", help="take over what the file of --json has")
    p.add_argument("--both-halves", action="store_true", help="both halves of the ImageNet pictures calibrate in turn")
    p.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir(), "transformers"),
        metavar="DIR",
        help="of the transformers",
    )
    p.add_argument("--samples", type=int, default=500, metavar="N", help="of calibration, at most (default 500)")
    p.add_argument("--rows", type=int, default=8192, metavar="N", help="of a layer's inputs, about (default 8192)")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="and processors (default 1)")
    p.add_argument("--timeout", type=float, default=3600, metavar="S", help="of one process (default 3600)")
    args = p.parse_args()
    models = chosen("--models", args.models, known(args.folder))
    rivals = chosen("--rivals", args.rivals, list(RIVALS))
    solvers, settings = ([x for x in option.split(",") if x] for option in (args.solvers, args.settings))
    cells = Cells(args.json, resume=args.resume)
    python = common.rival_python(args.onnxsim) if rivals else Path(sys.executable)
    one_core_each(args.threads)
    for name in models:
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            for task in tasks(name, args, Path(folder)):
                bench = Bench(task, cells, args, Path(folder))
                bench.dense()
                for setting in settings:
                    for rival in rivals:
                        bench.rival(setting, rival, python)
                    for solver in solvers:
                        bench.solver(setting, solver)
    tools = [t for r in rivals for t in (r, r + OURS_ONLY)] + solvers
    rows = {name: [r for s in settings for r in rows_of(name, s, tools, cells)] for name in models}
    args.json = None  # it holds the cells
    common.emit(args, [item for name in models for item in table(name, rows[name])], None)


if __name__ == "__main__":
    main()
