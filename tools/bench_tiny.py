"""The models of MLPerf Tiny, dense, pruned and sparse, by MLPerf's LoadGen: single-stream and offline.

pruned: --target-macs; sparse: --sparsity with --format auto. With samples where the assets have some (CIFAR-10,
keywords), made-up images for the person detector, none for the autoencoder. Top-1 is of samples that no cut saw.
Energy is the model of docs/energy.md. All files of a task run in turn, several times; medians.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import common
import onnxprune
from onnxprune.graph.energy import HOROWITZ
from onnxprune.graph.io import load
from onnxprune.pipeline.footprint import energy_of
from onnxprune.runtime.loadgen import load_test

CALIBRATED = 256  # samples


@dataclass(frozen=True)
class Task:
    """A model of the assets; data: which samples there are; made_up: whether images may be made up."""

    model: str
    data: str = ""
    made_up: bool = False


TASKS = {
    "image classification": Task("mlptiny_resnet8_cifar10", "cifar10"),
    "keyword spotting": Task("mlptiny_kws_dscnn", "kws"),
    "visual wake words": Task("mlptiny_vww96", made_up=True),
    "anomaly detection": Task("mlptiny_ad01_autoencoder"),
}


def samples(root: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs to calibrate on, those to score on and their labels, as the models take them."""
    if name == "cifar10":
        with np.load(root / "data" / "cifar10_jpeg.npz") as d:
            step = len(d["x_train"]) // CALIBRATED
            return d["x_train"][::step].astype(np.float32), d["x_test"].astype(np.float32), d["y_test"]
    with np.load(root / "data" / "kws01_mfcc_int8.npz") as d:
        x = ((d["x"].astype(np.float32) - 83) * 0.5847029).reshape(-1, 49, 10, 1)
        return x[::2], x[1::2], d["y"][1::2]


def made(path: Path, task: Task, root: Path, folder: Path, macs: str, sparsity: float) -> dict[str, tuple[Path, Any]]:
    """Way -> file, and the report of what made it; None of the original."""
    options: dict[str, Any] = {"measure": False}
    if task.data:
        known, held_out, labels = samples(root, task.data)
        source = onnxprune.load(path).proto.graph.input[0].name
        for file, arrays in (("calibration", {source: known}), ("evaluation", {source: held_out, "labels": labels})):
            np.savez(folder / f"{file}.npz", allow_pickle=False, **arrays)
        options |= {"calibration": folder / "calibration.npz", "evaluate": folder / "evaluation.npz"}
    elif task.made_up:
        options["calibration"] = "synthetic"
    out: dict[str, tuple[Path, Any]] = {"dense": (path, None)}
    asked: dict[str, dict[str, Any]] = {
        "pruned": {"target_macs": macs}, "sparse": {"sparsity": sparsity, "format": "auto"},
    }  # fmt: skip
    for way, more in asked.items():
        result = onnxprune.prune(path, **options, **more)
        target = folder / f"{path.stem}.{way}.onnx"
        out[way] = (target, result.save(target))
    return out


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument("--duration", type=float, default=3.0, metavar="S", help="least seconds of each run (default 3)")
    p.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each, files in turn (default 3)")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="default 1")
    p.add_argument("--target-macs", default="70%", metavar="T", help="default 70%%")
    p.add_argument("--sparsity", type=float, default=0.8, metavar="R", help="default 0.8")
    args = p.parse_args()
    root, rows = common.assets(args.assets), list[dict[str, Any]]()
    for name, task in TASKS.items():
        path = root / "models" / f"{task.model}.onnx"
        if not path.is_file():
            common.say(f"{name}: {path.name} is not there")
            continue
        common.say(name)
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            files = made(path, task, root, Path(folder), args.target_macs, args.sparsity)
            tests = {
                scenario: [
                    load_test([f for f, _ in files.values()], scenario, duration=args.duration, threads=(args.threads,))
                    for _ in range(args.repeat)
                ]
                for scenario in ("single-stream", "offline")
            }
            scores = [report.evaluation for _, report in files.values() if report is not None]
            for k, (way, (file, report)) in enumerate(files.items()):
                single, offline = ([t.models[k].runs[0] for t in tests[s]] for s in ("single-stream", "offline"))
                verdict = scores[0] if report is None and scores else getattr(report, "evaluation", None)
                model = load(file)
                rows.append({
                    "task": name, "way": way, "bytes": file.stat().st_size, "nodes": len(model.proto.graph.node),
                    "macs": None if report is None else report.after.macs / report.before.macs,
                    "formats": [] if report is None or report.sparsity is None else [
                        x.format for x in report.sparsity.layers
                    ],
                    "joules": energy_of(model, HOROWITZ).joules,
                    "p90": float(np.median([r.latency["90"] for r in single])),
                    "samples_per_second": float(np.median([r.samples_per_second or 0.0 for r in offline])),
                    "valid": all(r.valid for r in (*single, *offline)),
                    "score": None if verdict is None else verdict.before if report is None else verdict.after,
                })  # fmt: skip
    how = f"median of {args.repeat} runs of {args.duration:g} s, {args.threads} thread(s)"
    title = f"MLPerf Tiny's models by LoadGen, {how}"
    table = common.columns(
        title, "-task -model file,_kB MACs sparse_layers energy,_uJ 90th_percentile,_ms samples/s valid top-1"
    )
    for row in rows:
        sparse = sum(f != "dense" for f in row["formats"])
        table.add_row(
            row["task"], row["way"], f"{row['bytes'] / 1e3:.1f}", "-" if row["macs"] is None else f"{row['macs']:.0%}",
            f"{sparse} of {len(row['formats'])}" if row["formats"] else "-", f"{row['joules'] / 1e-6:.4g}",
            f"{1e3 * row['p90']:.4g}", f"{row['samples_per_second']:.4g}", "yes" if row["valid"] else "no",
            "-" if row["score"] is None else f"{row['score']:.1%}",
        )  # fmt: skip
    common.emit(args, [table], rows)


if __name__ == "__main__":
    main()
