"""Seconds and memory of whole commands on every model of the assets.

    python tools/bench_time.py --json time.json                       # everything; --resume goes on with the file
    python tools/bench_time.py --command plain --only 'style*'        # a part

Commands (--command, repeatable):
  plain        --channels 0.3, what one types first
  target       --target-macs 70%, without data as well
  calibrated   --channels 0.3 with pictures of the assets, or with made-up inputs where no picture goes in
  sparse       --sparsity 0.5 by magnitude
  solved       --sparsity 0.5 on the same data as `calibrated`

Each is a process of its own, imports and saving included, without --latency. Columns: seconds by the wall and of the
processor; what the command itself expected, `-` where it works on no data; peak of resident memory, and what one run
of the model at batch 1 in onnxruntime takes, also in a process of its own. The bounds: 45 s (60 of LARGE, whose
pictures are), and 500 MB above twice the run. Figures mean something on a quiet machine alone; its load is shown.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import common

COMMANDS = {
    "plain": ("--channels", "0.3"),
    "target": ("--target-macs", "70%"),
    "calibrated": ("--channels", "0.3", "--calibration", "DATA"),
    "sparse": ("--sparsity", "0.5"),
    "solved": ("--sparsity", "0.5", "--calibration", "DATA"),
}
LARGE = ("style_mosaic_op7", "deeplabv3_mnv2_dm05_voc")
BOUND, BOUND_LARGE = 45.0, 60.0  # seconds
FIRST = 36  # models whose seconds are added up, in the order of their names
EXTRA = 500e6  # bytes above twice a run
LIMIT, GIGABYTES = 1800, 40  # of one command: seconds, address space


def one_run(path: str, feeds: str) -> None:
    """Run a model once, with inputs from a file, and nothing loaded that onnxruntime does not need."""
    import numpy as np

    with np.load(feeds) as file:
        common.session(path).run(None, {name: file[name] for name in file.files})


def run_memory(model: Path, folder: Path) -> int:
    """Peak of resident memory of one run at batch 1, bytes; 0 where it does not run."""
    made = common.call("bench_time:save_feeds", model, folder / "feeds.npz")
    if made.problem:
        return 0
    done = common.call("bench_time:one_run", model, folder / "feeds.npz")
    return 0 if done.problem else done.run.resident


def save_feeds(model: str, out: str) -> None:
    """Inputs with which a model runs, in a file."""
    import numpy as np

    np.savez(out, **common.feeds(model))


def data_of(model: Path, root: Path) -> str:
    """What to calibrate on: pictures, or made-up inputs where none go in."""
    from onnxprune import load
    from onnxprune.calibration.calibration import takes_images

    pictures = root / "data" / "imagenet1k_256_even.zip"
    return str(pictures) if takes_images(load(model)) and pictures.is_file() else "synthetic"


def timed(model: Path, command: str, root: Path, folder: Path) -> dict[str, Any]:
    """One command on one model."""
    words = [data_of(model, root) if word == "DATA" else word for word in COMMANDS[command]]
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    load = os.getloadavg()[0]
    line: list[str | Path] = [
        sys.executable,
        "-m",
        "onnxprune",
        model,
        *words,
        "--no-latency",
        "-o",
        folder / "out.onnx",
    ]
    done = common.run([*line, "--json", report], seconds=LIMIT, gigabytes=GIGABYTES)
    row: dict[str, Any] = {
        "model": model.stem, "command": command, "seconds": done.seconds, "cpu": done.cpu, "resident": done.resident,
        "problem": done.problem, "load": load,
    }  # fmt: skip
    if report.is_file():
        found = json.loads(report.read_text(encoding="utf-8"))
        stages = found["seconds"]
        row |= {"expected": stages.pop("expected", None), "stages": stages}
    return row


def bound(model: str) -> float:
    return BOUND_LARGE if model in LARGE else BOUND


def tables(rows: Sequence[dict[str, Any]], assets: Sequence[str]) -> list[Any]:
    """assets: names of the shared models, in order."""
    out: list[Any] = []
    for command in COMMANDS:
        chosen = [r for r in rows if r["command"] == command]
        if not chosen:
            continue
        table = common.columns(
            f"{command}: onnxprune MODEL {' '.join(COMMANDS[command])} --no-latency",
            "-model wall_s CPU_s expected_s peak_MB run_MB load -over -problem",
        )
        for r in chosen:
            over = [f"{bound(r['model']):g} s"] if r["seconds"] > bound(r["model"]) else []
            over += ["memory"] if r["run"] and r["resident"] > EXTRA + 2 * r["run"] else []
            expected = r.get("expected")
            table.add_row(
                r["model"], f"{r['seconds']:.1f}", f"{r['cpu']:.1f}", "-" if expected is None else f"{expected:.0f}",
                f"{r['resident'] / 1e6:.0f}", f"{r['run'] / 1e6:.0f}", f"{r['load']:.1f}", ", ".join(over),
                r["problem"][:60],
            )  # fmt: skip
        first = [r for r in chosen if r["model"] in assets[:FIRST]]
        total = sum(r["seconds"] for r in first)
        off = [r for r in chosen if r.get("expected") and not 0.5 <= r["seconds"] / r["expected"] <= 2]
        missed = f"; expected by a factor of two or more otherwise: {len(off)}" if command != "sparse" else ""
        out += [table, f"the first {len(first)} models together: {total:.0f} s{missed}"]
    return out


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument("--only", default="*", metavar="GLOB", help="models by name")
    p.add_argument("--model", type=Path, action="append", default=[], help="another model, beside the assets")
    p.add_argument("--command", action="append", choices=list(COMMANDS), help="default: all")
    p.add_argument("--resume", action="store_true", help="take over what the file of --json has")
    args = p.parse_args()
    root = common.assets(args.assets)
    rows: list[dict[str, Any]] = []
    if args.resume and args.json and args.json.is_file():
        rows = json.loads(args.json.read_text(encoding="utf-8"))
    known = {(r["model"], r["command"]): r for r in rows}
    models = [m for m in [*sorted((root / "models").glob("*.onnx")), *args.model] if fnmatch(m.stem, args.only)]
    runs = {r["model"]: r["run"] for r in rows}
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        folder = Path(name)
        for command in args.command or COMMANDS:
            for model in models:
                if (model.stem, command) in known:
                    continue
                if model.stem not in runs:
                    runs[model.stem] = run_memory(model, folder)
                row = timed(model, command, root, folder) | {"run": runs[model.stem]}
                rows.append(row)
                common.say(f"{time.strftime('%H:%M')} {command} {model.stem}: {row['seconds']:.1f} s {row['problem']}")
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    shown = [r for r in rows if fnmatch(r["model"], args.only) and r["command"] in (args.command or COMMANDS)]
    common.emit(args, tables(shown, sorted(m.stem for m in (root / "models").glob("*.onnx"))), rows)


if __name__ == "__main__":
    main()
