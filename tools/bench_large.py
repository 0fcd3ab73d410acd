"""Seconds and memory of pruning a model of several gigabytes, next to a plain copy of its files, on a cold page cache.

The model is `llama.py`'s, built first. Copy and pruning take turns; before each, what the kernel caches of the model is
dropped, and mincore says how much stayed. The pruning is the command line in a process of its own, whose RssAnon (what
is not a file mapping) and VmRSS are read from outside. A copy ends with fsync, as our save does. Only the guest's cache
is dropped: a virtual machine's host may still hold the files. Disks and neighbours change their speed from minute to
minute, so the ratio is taken within each round, and processor seconds stand beside the seconds.
Targets: within 3 times the copy, and RssAnon at most 1.5 GB, whatever the size of the model.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import common

OPTIONS = (
    "--heads", "0.25", "--channels", "0.3", "--recover", "none", "--no-latency", "--no-verify",
)  # fmt: skip
EVERY = 0.05  # seconds between two readings of the child's memory
TIMES, ANON = 3.0, 1.5e9  # targets
PAGE = mmap.PAGESIZE


def parts(model: Path) -> list[Path]:
    """The model file and the data files beside it."""
    return [model, *sorted(model.parent.glob(f"{model.name}*.data"))]


def chill(files: Sequence[Path]) -> float:
    """Drop what the page cache holds of the files; the fraction that stayed."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)  # pages that are not on disk yet are not dropped
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    held = sum(resident(file) for file in files)
    return held / sum(file.stat().st_size for file in files)


def resident(file: Path) -> int:
    """Bytes of a file that are in the page cache."""
    data = np.memmap(file, np.uint8, "r")
    pages = np.zeros(-(-data.size // PAGE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.mincore(
        ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.size), ctypes.c_void_p(pages.ctypes.data)
    )
    if failed:
        raise OSError(ctypes.get_errno(), "mincore", str(file))
    return int((pages & 1).sum()) * PAGE


def processor(who: int) -> tuple[float, float]:
    """User and system seconds so far, of this process or of its children that ended."""
    used = resource.getrusage(who)
    return used.ru_utime, used.ru_stime


def copy(model: Path, folder: Path) -> dict[str, Any]:
    """Copy the files of the model and put the copies on disk."""
    warm, before, start = chill(parts(model)), processor(resource.RUSAGE_SELF), time.perf_counter()
    for file in parts(model):
        shutil.copyfile(file, folder / file.name)
        with open(folder / file.name, "rb") as new:
            os.fsync(new.fileno())
    total, after = time.perf_counter() - start, processor(resource.RUSAGE_SELF)
    return {"total": total, "user": after[0] - before[0], "system": after[1] - before[1], "warm": warm}


@dataclass
class Peaks:
    """The largest readings of a process, in bytes."""

    anon: int = 0
    rss: int = 0

    def watch(self, pid: int, done: threading.Event) -> None:
        while not done.wait(EVERY):
            self.anon = max(self.anon, common.rss_anon(pid))
            with suppress(OSError, IndexError, ValueError):
                resident_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self.rss = max(self.rss, resident_pages * PAGE)


def prune(model: Path, folder: Path, options: Sequence[str], seconds: float) -> dict[str, Any]:
    """`onnxprune prune` in a process of its own."""
    out, report = folder / "pruned.onnx", folder / "report.json"
    command = [sys.executable, "-m", "onnxprune", "prune", model, *options, "--quiet", "--json", report, "-o", out]
    warm, peaks, done = chill(parts(model)), Peaks(), threading.Event()
    before, start = processor(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        [str(c) for c in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, errors="replace",
    )  # fmt: skip
    sampler = threading.Thread(target=peaks.watch, args=(process.pid, done), daemon=True)
    sampler.start()
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"problem": f"timeout after {seconds:.0f} s"}
    finally:
        total = time.perf_counter() - start
        done.set()
        sampler.join()
    if process.returncode:
        lines = errors.strip().splitlines() or ["no message"]
        return {"problem": f"exit {process.returncode}: {lines[-1]}"}
    found = json.loads(report.read_text(encoding="utf-8"))
    stages, after = dict(found["seconds"]), processor(resource.RUSAGE_CHILDREN)
    return {
        "total": total,
        "user": after[0] - before[0],
        "system": after[1] - before[1],
        "warm": warm,
        "anon": peaks.anon,
        "rss": peaks.rss,
        "stages": {**stages, "rest": total - sum(stages.values())},
        "bytes": sum(file.stat().st_size for file in parts(out)),
        "parameters": [found[k]["parameters"] for k in ("before", "after")],
    }


def emptied(folder: Path) -> Path:
    """The folder for what one job writes, without what the last one wrote."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()  # what others wrote must not be waited for in here
    return folder


def middle(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of what the runs of a job have in common."""
    out: dict[str, Any] = {k: median(r[k] for r in runs) for k in runs[0] if isinstance(runs[0][k], int | float)}
    out["range"] = [min(r["total"] for r in runs), max(r["total"] for r in runs)]
    if "stages" in runs[0]:
        out["stages"] = {k: median(r["stages"].get(k, 0.0) for r in runs) for k in runs[0]["stages"]}
        out["parameters"] = runs[0]["parameters"]
    return out


def report(
    size: int, copies: dict[str, Any], pruning: dict[str, Any], ratios: Sequence[float], options: Sequence[str]
) -> list[Any]:
    table = common.columns(
        f"{size / 1e9:.2f} GB of LLaMA-shaped decoder: {' '.join(options)}; medians",
        "- seconds (range) user system GB/s still_cached RssAnon_GB VmRSS_GB GB_before GB_after",
    )
    for name, row in (("copy + fsync", copies), ("onnxprune", pruning)):
        low, high = row["range"]
        table.add_row(
            name,
            f"{row['total']:.1f}",
            f"{low:.1f}-{high:.1f}",
            f"{row['user']:.1f}",
            f"{row['system']:.1f}",
            f"{size / row['total'] / 1e9:.2f}",
            f"{row['warm']:.1%}",
            f"{row['anon'] / 1e9:.2f}" if "anon" in row else "",
            f"{row['rss'] / 1e9:.2f}" if "rss" in row else "",
            f"{size / 1e9:.2f}",
            f"{row.get('bytes', size) / 1e9:.2f}",
        )
    stages = common.columns(
        "seconds per stage, medians (rest: what the report does not time, save and the start of Python)",
        " ".join(pruning["stages"]),
    )
    stages.add_row(*(f"{s:.2f}" for s in pruning["stages"].values()))
    before, after = pruning["parameters"]
    times, anon = median(ratios), pruning["anon"]
    lines = [
        f"parameters {before / 1e6:.0f} M -> {after / 1e6:.0f} M ({after / before:.1%})",
        f"time over copy {times:.2f}, rounds {', '.join(f'{r:.2f}' for r in ratios)} "
        f"(target {TIMES:g}: {'met' if times <= TIMES else 'missed'}); "
        f"RssAnon {anon / 1e9:.2f} GB (target {ANON / 1e9:g}: {'met' if anon <= ANON else 'missed'})",
    ]
    if max(copies["warm"], pruning["warm"]) > 0.01:
        lines.append("not cold: the page cache kept part of the model, see the column `still cached`")
    return [table, stages, *lines]


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument("--gigabytes", type=float, default=6.2, help="external data of the model (default 6.2)")
    p.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    p.add_argument("--rounds", type=int, default=3, help="copies and prunings, in turn (default 3)")
    p.add_argument(
        "--folder", type=Path, help="where to work, with room for twice the model (default: a temporary one)"
    )
    p.add_argument("--options", metavar="WORDS", default=" ".join(OPTIONS), help=f"default: {' '.join(OPTIONS)}")
    p.add_argument("--seconds", type=float, default=1800, help="limit of one pruning (default 1800)")
    args = p.parse_args()
    options = args.options.split()
    import llama

    with tempfile.TemporaryDirectory(prefix="onnxprune-", dir=args.folder) as name:
        folder = Path(name)
        model = folder / "model" / "llama.onnx"
        model.parent.mkdir()
        need, free = 2.1e9 * args.gigabytes, shutil.disk_usage(folder).free
        if free < need:
            raise SystemExit(f"{folder}: {need / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; name another --folder")
        start = time.perf_counter()
        llama.large(model, args.gigabytes, dtype=args.dtype)
        size = sum(file.stat().st_size for file in parts(model))
        common.say(f"built {size / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s")
        copies: list[dict[str, Any]] = []
        prunings: list[dict[str, Any]] = []
        for k in range(args.rounds):
            copies.append(copy(model, emptied(folder / "out")))
            common.say(f"round {k + 1} of {args.rounds}: copy {copies[-1]['total']:.1f} s")
            prunings.append(prune(model, emptied(folder / "out"), options, args.seconds))
            if "problem" in prunings[-1]:
                raise SystemExit(f"onnxprune {' '.join(options)}: {prunings[-1]['problem']}")
            common.say(f"round {k + 1} of {args.rounds}: onnxprune {prunings[-1]['total']:.1f} s")
    copied, pruned = middle(copies), middle(prunings)
    ratios = [p["total"] / c["total"] for c, p in zip(copies, prunings, strict=True)]
    rows = {
        "bytes": size, "options": options, "ratios": ratios, "copy": copied, "prune": pruned,
        "runs": [copies, prunings],
    }  # fmt: skip
    load = f"load average {os.getloadavg()[0]:.1f} at the end, {os.cpu_count()} cores"
    common.emit(args, [*report(size, copied, pruned, ratios, options), load], rows)


if __name__ == "__main__":
    main()
