"""Targets: does a fresh measurement hold them, and what does each method lose for the same?

    python tools/bench_targets.py --folder DIR                    # hours; what was stopped goes on
    python tools/bench_targets.py --folder DIR --budget bytes

Every model is pruned for a part of its time, or its bytes: by all methods together (the search chooses), by each alone,
and by the same ratio everywhere. The file is then measured again; time beside the original, by sessions of their own.

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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import common
import experiments
import onnxprune
from onnxprune.errors import UserError
from onnxprune.runtime.feeds import likely_feeds
from onnxprune.runtime.timing import latency
from onnxprune.structure.groups import analyze

UNITS, ZEROS = "channels,heads,layers", ("unstructured", "nm", "block", "column")
SHARED: dict[str, dict[str, Any]] = {
    "units": {"methods": UNITS}, "uniform": {"methods": "channels", "allocate": "uniform"},
}  # fmt: skip
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "latency": {"all": {}, "plain": {"plain": True}, **SHARED, **{name: {"methods": name} for name in ZEROS}},
    "bytes": {
        "all": {"methods": f"{UNITS},unstructured,nm,block,values,cluster"},
        **SHARED, **{name: {"methods": f"{name},values"} for name in ZEROS[:3]}, "cluster": {"methods": "cluster"},
    },
}  # fmt: skip
SECONDS = 6.0  # of the second measurement
RATE, CLIP = 16000, 16000  # of kwt1: samples per second, of a clip


@dataclass(frozen=True)
class Case:
    """model, options of its data: (folder of assets, folder) -> path, keywords; latency, bytes: the part that is to be
    left."""

    model: Callable[[Path], Path]
    data: Callable[[Path, Path], dict[str, Any]]
    latency: float = 0.7
    bytes: float = 0.2


def ours(name: str) -> Callable[[Path], Path]:
    """A model of models/."""
    return lambda root: common.REPO / "models" / f"{name}.onnx"


def asset(name: str) -> Callable[[Path], Path]:
    """A model of the assets."""
    return lambda root: root / "models" / f"{name}.onnx"


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


CASES = {
    "digits_vit": Case(ours("digits_vit"), digits, 0.6),
    "digits_resnet_bn": Case(ours("digits_resnet_bn"), digits, 0.6),
    "resnet56": Case(asset("resnet56_cifar10"), cifar),
    "kwt1": Case(asset("kwt1_speechcommands"), spoken),
    "shakespeare_llama": Case(ours("shakespeare_llama"), shakespeare),
    "mobilenetv2": Case(asset("mobilenetv2_100_224_imagenet"), pictures),
    "yolox_nano": Case(asset("yolox_nano"), detected, 0.8),
}


def row(name: str, way: str, threads: int, args: Any, root: Path) -> dict[str, Any]:
    """One search, and its file measured again; why there is none where the target cannot be reached."""
    case, begin, budget = CASES[name], time.perf_counter(), args.budget
    model, file = case.model(root), args.folder / f"{name}-{budget}-{way}-{threads}.onnx"
    options = {**case.data(root, args.folder), **WAYS[budget][way], "threads": threads, "cache": args.folder / "cache"}
    options |= {f"target_{budget}": getattr(case, budget), "measure": budget == "latency"}
    try:
        result = onnxprune.prune(model, progress=experiments.told, **options)
    except UserError as e:
        return {"why": str(e)}
    took = time.perf_counter() - begin
    report = result.save(file).to_dict()
    again, interval = file.stat().st_size / model.stat().st_size, None
    if budget == "latency":
        whole, cut = onnxprune.load(model), onnxprune.load(file)
        feeds = likely_feeds(whole, analyze(whole).coupling.shapes, None)[0]
        times = latency({"a": whole, "b": cut}, {"a": feeds, "b": feeds}, threads=threads, seconds=SECONDS)
        again, interval = times["b"].ratio, times["b"].interval
    score, close = report["evaluation"], report["fidelity"]
    return {
        "target": getattr(case, budget), "ratio": next(g["got"] for g in report["got"] if "target" in g["option"]),
        "interval": report["after"]["latency_ratio_interval"], "again": again, "interval_again": interval,
        "kl": close["kl"] if close else None, "drop": score["drop"] if score else None, "seconds": took,
        "search": report["search"], "stages": report["seconds"],
    }  # fmt: skip


def shown(ratio: float, interval: Any) -> str:
    """A ratio in percent with its interval."""
    return f"{100 * ratio:.1f}" + (f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else "")


def main() -> None:
    p = experiments.parser(__doc__, list(CASES))
    p.add_argument("--budget", choices=list(WAYS), default="latency", help="what is made less of (default: latency)")
    p.add_argument("--way", action="append", help="repeatable (default: all of the budget)")
    args = p.parse_args()
    ways = WAYS[args.budget]
    if unknown := set(args.way or ()) - set(ways):
        p.error(f"--way {unknown.pop()}: --budget {args.budget} knows {', '.join(ways)}")
    root, threads = common.assets(args.assets), args.threads or 1
    args.folder.mkdir(parents=True, exist_ok=True)
    book = args.folder / "targets.json"
    rows: dict[str, dict[str, Any]] = json.loads(book.read_text(encoding="utf-8")) if book.exists() else {}
    table = common.columns(
        f"{args.budget}, {threads} threads", "-model -way target left again holds suffered top-1 seconds -chosen"
    )
    for name in args.part or CASES:
        for way in args.way or ways:
            key = f"{name}, {args.budget}, {way}, {threads}"
            if key not in rows:
                rows[key] = row(name, way, threads, args, root)
                book.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            r = rows[key]
            if "why" in r:
                target = getattr(CASES[name], args.budget)
                table.add_row(name, way, f"{target:.0%}", "-", "-", "-", "-", "-", "-", r["why"][:60])
                continue
            holds = (r["interval_again"] or (0, r["again"]))[1] <= r["target"]
            table.add_row(
                name, way, f"{r['target']:.0%}", shown(r["ratio"], r["interval"]),
                shown(r["again"], r["interval_again"]), "yes" if holds else "no",
                "-" if r["kl"] is None else f"{r['kl']:.4f}", "-" if r["drop"] is None else f"{100 * r['drop']:+.2f}",
                f"{r['seconds']:.0f}", next((t["way"] for t in r["search"] or () if t["chosen"]), "-"),
            )  # fmt: skip
            common.say(f"{key}: {r}")
    common.emit(args, [table], rows)


if __name__ == "__main__":
    main()
