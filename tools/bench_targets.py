"""Targets: does a fresh measurement hold them, and what does each method lose for the same?

    python tools/bench_targets.py --folder DIR                    # hours; what was stopped goes on
    python tools/bench_targets.py --folder DIR --budget bytes
    python tools/bench_targets.py --folder DIR --equal            # how much time the others need to suffer no more

Every model is pruned for a part of its time, or its bytes: by all methods together (the search chooses), by each alone,
and by the same ratio everywhere. The file is then measured again; time beside the original, by sessions of their own.
With --equal, the others may use more, in steps of a tenth of the target, until their outputs suffer no more than those
of all methods together; between two steps their time is interpolated over the logarithm of what is suffered. A pruning
of onnxsim is bisected to the most that suffers no more.

Columns: what is left, as the search measured it and as it was measured again, with 90% intervals of the ratio; whether
the upper end of the second holds the target; what the outputs suffer (divergence in nats, or of other models squared
error over variance) on samples that fitted nothing where there are some; top-1 lost in points; seconds of the search.
"""

from __future__ import annotations

import io
import json
import time
import wave
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.table import Table

import common
import experiments
import onnxprune
from bert import bert
from onnxprune.calibration.calibration import calibration_of
from onnxprune.calibration.presets import Preprocess
from onnxprune.errors import UserError
from onnxprune.evaluation.fidelity import fidelity
from onnxprune.runtime.feeds import likely_feeds
from onnxprune.runtime.timing import latency
from onnxprune.structure.groups import analyze

UNITS, ZEROS = "channels,heads,layers", ("unstructured", "nm", "block", "column")
SINGLE = ("channels", "heads", "layers", *ZEROS)
SHARED: dict[str, dict[str, Any]] = {
    "units": {"methods": UNITS}, "uniform": {"methods": "channels", "allocate": "uniform"},
}  # fmt: skip
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "latency": {"all": {}, "plain": {"plain": True}, **SHARED, **{name: {"methods": name} for name in SINGLE}},
    "bytes": {
        "all": {"methods": f"{UNITS},unstructured,nm,block,values,cluster"},
        **SHARED, **{name: {"methods": f"{name},values"} for name in ZEROS[:3]}, "cluster": {"methods": "cluster"},
    },
}  # fmt: skip
SECONDS = 6.0  # of the second measurement
LOOSEST, BISECTIONS = 0.95, 6  # with --equal: of the targets, of onnxsim
RATE, CLIP = 16000, 16000  # of kwt1: samples per second, of a clip


@dataclass(frozen=True)
class Case:
    """model, options of its data: (folder of assets, working folder) -> path, keywords; latency, bytes: the part that
    is to be left."""

    model: Callable[[Path, Path], Path]
    data: Callable[[Path, Path], dict[str, Any]]
    latency: float = 0.7
    bytes: float = 0.2


def ours(name: str) -> Callable[[Path, Path], Path]:
    """A model of models/."""
    return lambda root, folder: common.REPO / "models" / f"{name}.onnx"


def asset(name: str) -> Callable[[Path, Path], Path]:
    """A model of the assets."""
    return lambda root, folder: root / "models" / f"{name}.onnx"


def digits(root: Path, folder: Path) -> dict[str, Any]:
    """What was held out from the training of the networks on digits; half of it scores."""
    here = common.REPO / "models"
    return {"calibration": here / "digits_calibration.npz", "evaluate": here / "digits_heldout.npz"}


def shakespeare(root: Path, folder: Path) -> dict[str, Any]:
    """Pieces of text."""
    here = common.REPO / "models"
    return {"calibration": here / "shakespeare_calibration.npz", "evaluate": here / "shakespeare_heldout.npz"}


def cifar(root: Path, folder: Path) -> dict[str, Any]:
    """500 pictures of CIFAR-10; 1,000 others score."""
    train, test = experiments.cifar(root, folder)
    few = folder / "cifar_scored.npz"
    data = np.load(test)
    np.savez(few, x=data["x"][:1000], labels=data["labels"][:1000])
    return {"calibration": train, "samples": 500, "evaluate": few}


def pictures(root: Path, folder: Path) -> dict[str, Any]:
    """Pictures of ImageNet's classes, as MobileNet takes them."""
    return {"calibration": next((root / "data").glob("imagenet1k_256_*.zip")), "preset": "tf", "samples": 120}


def detected(root: Path, folder: Path) -> dict[str, Any]:
    """The same, as YOLOX takes them."""
    return {"calibration": next((root / "data").glob("imagenet1k_256_*.zip")), "preset": "raw", "samples": 100}


def spoken(root: Path, folder: Path) -> dict[str, Any]:
    """Spoken digits, at 16 kHz, a second each."""
    out = []
    with zipfile.ZipFile(root / "data" / "fsdd.zip") as z:
        for name in sorted(n for n in z.namelist() if n.endswith(".wav")):
            with wave.open(io.BytesIO(z.read(name))) as w:
                x = np.frombuffer(w.readframes(w.getnframes()), np.int16).astype(np.float32) / 32768
                x = np.interp(np.arange(0, len(x), w.getframerate() / RATE), np.arange(len(x)), x)
            out.append(np.pad(x[:CLIP], (0, max(0, CLIP - len(x)))).astype(np.float32))
    path = folder / "spoken.npz"
    np.savez(path, x=np.stack(out))
    return {"calibration": path, "samples": 300}


def bert_file(root: Path, folder: Path) -> Path:
    """BERT-base with random weights."""
    path = folder / "bert.onnx"
    if not path.exists():
        onnx.save(bert(), path)
    return path


def states(root: Path, folder: Path) -> dict[str, Any]:
    """Random states of 128 tokens."""
    path = folder / "states.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((24, 128, 768), np.float32))
    return {"calibration": path}


CASES = {
    "digits_vit": Case(ours("digits_vit"), digits, 0.6),
    "digits_resnet_bn": Case(ours("digits_resnet_bn"), digits, 0.6),
    "resnet56": Case(asset("resnet56_cifar10"), cifar),
    "kwt1": Case(asset("kwt1_speechcommands"), spoken),
    "shakespeare_llama": Case(ours("shakespeare_llama"), shakespeare),
    "mobilenetv2": Case(asset("mobilenetv2_100_224_imagenet"), pictures),
    "yolox_nano": Case(asset("yolox_nano"), detected, 0.8),
    "resnet50": Case(lambda root, folder: common.resnet50_file(folder), pictures),
    "bert": Case(bert_file, states),
}


def measured(model: Path, file: Path, threads: int) -> tuple[float, Any]:
    """Time of a file over that of the model it was made of, with the 90% interval, by sessions of their own."""
    whole, cut = onnxprune.load(model), onnxprune.load(file)
    feeds = likely_feeds(whole, analyze(whole).coupling.shapes, None)[0]
    times = latency({"a": whole, "b": cut}, {"a": feeds, "b": feeds}, threads=threads, seconds=SECONDS)
    return times["b"].ratio, times["b"].interval


def row(name: str, way: str, target: float, args: Any, root: Path) -> dict[str, Any]:
    """One search, and its file measured again; why there is none where the target cannot be reached."""
    case, begin, budget, threads = CASES[name], time.perf_counter(), args.budget, args.threads or 1
    model, file = case.model(root, args.folder), args.folder / f"{name}-{budget}-{way}-{threads}-{target:g}.onnx"
    options = {**case.data(root, args.folder), **WAYS[budget][way], "threads": threads, "cache": args.folder / "cache"}
    options |= {f"target_{budget}": target, "measure": budget == "latency"}
    try:
        result = onnxprune.prune(model, progress=experiments.told, **options)
    except UserError as e:
        return {"target": target, "why": str(e)}
    took = time.perf_counter() - begin
    report = result.save(file).to_dict()
    again, interval = file.stat().st_size / model.stat().st_size, None
    if budget == "latency":
        again, interval = measured(model, file, threads)
    score, close = report["evaluation"], report["fidelity"]
    return {
        "target": target, "ratio": next(g["got"] for g in report["got"] if "target" in g["option"]),
        "interval": report["after"]["latency_ratio_interval"], "again": again, "interval_again": interval,
        "kl": close["kl"] if close else None, "drop": score["drop"] if score else None, "seconds": took,
        "search": report["search"], "stages": report["seconds"],
    }  # fmt: skip


def onnxsim(name: str, damage: float, args: Any, root: Path) -> dict[str, Any]:
    """The most that onnxsim prunes without that outputs suffer more than `damage`, and the time of that file."""
    case, model = CASES[name], CASES[name].model(root, args.folder)
    options, analysis = case.data(root, args.folder), analyze(onnxprune.load(model))
    data = calibration_of(
        options["calibration"], analysis.model, 0, samples=options.get("samples"), augment=False, seed=0, jobs=None,
        preprocess=Preprocess(preset=options["preset"]) if "preset" in options else None, memory=1e9, threads=0,
    )  # fmt: skip
    file, few, many, best = args.folder / f"{name}-onnxsim.onnx", 0.0, 1.0, None
    for _ in range(BISECTIONS):
        sparsity = (few + many) / 2
        answer = common.onnxsim(common.rival_python(args.onnxsim), model, file, sparsity)
        if answer.problem:
            return {"why": answer.problem}
        kl = fidelity(analysis, analysis.keep_ids({}), onnxprune.load(file), data).kl
        common.say(f"onnxsim, {name}: {sparsity:.3f} suffers {kl:.4f} of {damage:.4f}")
        if kl <= damage:
            few, best = sparsity, (kl, *measured(model, file, args.threads or 1))
        else:
            many = sparsity
    if best is None:
        return {"why": f"no pruning of {few:.1%} or more suffers so little"}
    return {"sparsity": few, "kl": best[0], "again": best[1], "interval_again": best[2]}


def ladder(name: str, way: str, damage: float, args: Any, root: Path, rows: Rows) -> Iterator[dict[str, Any]]:
    """The rows of a way, from the target of the case upwards, until one suffers no more than `damage`."""
    target = first = getattr(CASES[name], args.budget)
    while target < LOOSEST:
        r = rows(key(name, way, target, args), row, name, way, target, args, root)
        yield r
        if "why" not in r and r["kl"] is not None and r["kl"] <= damage:
            return
        target = round(target + first / 10, 4)


def equal(made: list[dict[str, Any]], damage: float) -> tuple[float | None, str]:
    """The time at which a way suffers `damage`, by its rows from the fastest on, and what it stands for."""
    done = [r for r in made if "why" not in r]
    if not done:
        return None, made[-1]["why"][:60]
    if done[-1]["kl"] > damage:
        return None, f"at {done[-1]['again']:.1%} still {done[-1]['kl']:.4f}"
    fits = done[-1]
    worse = next((r for r in reversed(done[:-1]) if r["again"] < fits["again"]), None)
    if worse is None or fits["kl"] <= 0 or damage <= 0:
        return fits["again"], "the fastest that was made"
    part = np.log(damage / fits["kl"]) / np.log(worse["kl"] / fits["kl"])
    return float(fits["again"] + part * (worse["again"] - fits["again"])), "interpolated"


def key(name: str, way: str, target: float, args: Any) -> str:
    """Of a row in the book."""
    own = target == getattr(CASES[name], args.budget)
    return f"{name}, {args.budget}, {way}, {args.threads or 1}" + ("" if own else f", {target:g}")


class Rows:
    """What was measured, by key, in a file that is written after each."""

    def __init__(self, book: Path) -> None:
        self.book = book
        self.rows: dict[str, dict[str, Any]] = json.loads(book.read_text(encoding="utf-8")) if book.exists() else {}

    def __call__(self, key: str, make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        if key not in self.rows:
            self.rows[key] = make(*arguments)
            self.book.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
            common.say(f"{key}: {self.rows[key]}")
        return self.rows[key]


def shown(ratio: float, interval: Any) -> str:
    """A ratio in percent with its interval."""
    return f"{100 * ratio:.1f}" + (f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else "")


def at_the_same_damage(names: list[str], ways: list[str], args: Any, root: Path, rows: Rows) -> Table:
    """Time that every way needs to suffer no more than all methods together do."""
    table = common.columns(f"time at the same damage, {args.threads or 1} threads", "-model -way left over_all -note")
    for name in names:
        target = getattr(CASES[name], args.budget)
        whole = rows(key(name, "all", target, args), row, name, "all", target, args, root)
        if "why" in whole or whole["kl"] is None:
            table.add_row(name, "all", "-", "-", whole.get("why", "no data that it could suffer on")[:60])
            continue
        damage = whole["kl"]
        table.add_row(name, "all", f"{whole['again']:.1%}", "", f"{damage:.4f}")
        for way in (w for w in ways if w != "all"):
            if way == "onnxsim":
                r = rows(f"{name}, onnxsim, {damage:g}", onnxsim, name, damage, args, root)
                left, note = r.get("again"), r.get("why", f"sparsity {r.get('sparsity')}")
            else:
                left, note = equal(list(ladder(name, way, damage, args, root, rows)), damage)
            shares = ("-", "-") if left is None else (f"{left:.1%}", f"{left / whole['again']:.2f}")
            table.add_row(name, way, *shares, note)
    return table


def main() -> None:
    p = experiments.parser(__doc__, list(CASES), rival=True)
    p.add_argument("--budget", choices=list(WAYS), default="latency", help="what is made less of (default: latency)")
    p.add_argument("--way", action="append", help="repeatable (default: all of the budget)")
    p.add_argument("--equal", action="store_true", help="time at the same damage, instead of damage at the same time")
    args = p.parse_args()
    ways = [*WAYS[args.budget], *(["onnxsim"] if args.equal else [])]
    if unknown := set(args.way or ()) - set(ways):
        p.error(f"--way {unknown.pop()}: --budget {args.budget} knows {', '.join(ways)}")
    root, threads = common.assets(args.assets), args.threads or 1
    args.folder.mkdir(parents=True, exist_ok=True)
    rows, names = Rows(args.folder / "targets.json"), args.part or list(CASES)
    if args.equal:
        common.emit(args, [at_the_same_damage(names, args.way or ways, args, root, rows)], rows.rows)
        return
    table = common.columns(
        f"{args.budget}, {threads} threads", "-model -way target left again holds suffered top-1 seconds -chosen"
    )
    for name in names:
        for way in args.way or ways:
            target = getattr(CASES[name], args.budget)
            r = rows(key(name, way, target, args), row, name, way, target, args, root)
            if "why" in r:
                table.add_row(name, way, f"{target:.0%}", "-", "-", "-", "-", "-", "-", r["why"][:60])
                continue
            holds = (r["interval_again"] or (0, r["again"]))[1] <= r["target"]
            table.add_row(
                name, way, f"{r['target']:.0%}", shown(r["ratio"], r["interval"]),
                shown(r["again"], r["interval_again"]), "yes" if holds else "no",
                "-" if r["kl"] is None else f"{r['kl']:.4f}", "-" if r["drop"] is None else f"{100 * r['drop']:+.2f}",
                f"{r['seconds']:.0f}", next((t["way"] for t in r["search"] or () if t["chosen"]), "-"),
            )  # fmt: skip
    common.emit(args, [table], rows.rows)


if __name__ == "__main__":
    main()
