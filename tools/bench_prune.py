"""Seconds and memory of pruning, of a plain load and save with onnx, and of onnxsim: ResNet-50 and a large MLP.

Each measurement is a process of its own; the jobs of a model take turns, and medians are shown. Memory is the peak of
RssAnon (what is not a file mapping), sampled from outside the process; `start` is RssAnon after the imports.
Targets: ResNet-50 analysis and surgery within 1 s; the large model within 3 times a plain load and save, and RssAnon
below 1.3 times its weights.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import common

CHANNELS = 0.3
STAGES = ("load", "analyze", "plan", "cut", "recover", "simplify", "prune", "save")


def ours(path: str, out: str, recover: str) -> dict[str, Any]:
    """Seconds per stage, without verification and latency."""
    from onnxprune import prune

    base, start = common.rss_anon(), time.perf_counter()
    result = prune(path, channels=CHANNELS, recover=recover, verify=False, measure=False)
    stages = dict(result.report.seconds)
    saving = time.perf_counter()
    result.save(out)
    end = time.perf_counter()
    core = sum(stages[k] for k in ("analyze", "plan", "cut"))
    return {"seconds": {**stages, "save": end - saving, "total": end - start, "core": core}, "base": base}


def plain(path: str, out: str, external: bool) -> dict[str, Any]:
    """onnx.load and onnx.save."""
    import onnx

    base, start = common.rss_anon(), time.perf_counter()
    model = onnx.load(path)
    saving = time.perf_counter()
    if external:
        onnx.save(model, out, save_as_external_data=True, location=f"{Path(out).name}.data")
    else:
        onnx.save(model, out)
    end = time.perf_counter()
    return {"seconds": {"load": saving - start, "save": end - saving, "total": end - start}, "base": base}


def sim(python: Path, path: Path, out: Path) -> dict[str, Any]:
    answer = common.onnxsim(python, path, out, CHANNELS, seconds=400, gigabytes=40)
    if answer.problem:
        return {"problem": answer.problem}
    seconds = answer.value["seconds"]
    return {"seconds": {**seconds, "total": sum(seconds.values())}, "base": 0, "peak": answer.run.peak}


def measure(job: str, python: Path | None, path: Path, folder: Path, external: bool) -> dict[str, Any]:
    """One run of one job, output removed again."""
    target = folder / "out"
    target.mkdir()
    out = target / "out.onnx"
    try:
        if job == "onnxsim":
            assert python
            return sim(python, path, out)
        if job == "onnx.load + onnx.save":
            answer = common.call("bench_prune:plain", path, out, external, gigabytes=40)
        else:
            answer = common.call("bench_prune:ours", path, out, job.rpartition(" ")[2], gigabytes=40)
        return {"problem": answer.problem} if answer.problem else {**answer.value, "peak": answer.run.peak}
    finally:
        for file in target.iterdir():
            file.unlink()
        target.rmdir()


PLAIN, NONE, BIAS, SIM = "onnx.load + onnx.save", "onnxprune --recover none", "onnxprune --recover bias", "onnxsim"


def summary(job: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the runs."""
    good = [r for r in runs if "seconds" in r]
    if not good:
        return {"job": job, "problem": runs[-1]["problem"] if runs else "not run"}
    seconds = {k: median(r["seconds"].get(k, 0.0) for r in good) for k in good[0]["seconds"]}
    spread = [min(r["seconds"]["total"] for r in good), max(r["seconds"]["total"] for r in good)]
    memory = {k: median(r[k] for r in good) for k in ("peak", "base")}
    fastest = min(r["seconds"].get("core", 0.0) for r in good)
    return {"job": job, "runs": len(good), "seconds": seconds, "fastest_core": fastest, "total_range": spread, **memory}


def report(name: str, rows: list[dict[str, Any]], weights: int) -> tuple[Any, list[str]]:
    table = common.columns(
        f"{name}: {weights / 1e6:.0f} MB of weights, {CHANNELS:g} removed; seconds, medians",
        f"- runs {' '.join(STAGES)} total (range) x_plain RssAnon_MB start x_weights",
    )
    by = {r["job"]: r for r in rows}
    base = by[PLAIN].get("seconds", {}).get("total")
    for r in rows:
        if "seconds" not in r:
            table.add_row(r["job"], "failed")
            continue
        s = r["seconds"]
        low, high = r["total_range"]
        table.add_row(
            r["job"],
            str(r["runs"]),
            *(f"{s[k]:.3f}" if k in s else "" for k in STAGES),
            f"{s['total']:.3f}",
            f"{low:.2f}-{high:.2f}",
            f"{s['total'] / base:.2f}" if base else "-",
            f"{r['peak'] / 1e6:.0f}",
            f"{r['base'] / 1e6:.0f}" if r["base"] else "",
            f"{r['peak'] / weights:.2f}",
        )
    lines = [f"{name}, {r['job']}: {r['problem']}" for r in rows if "problem" in r]
    mine = by[NONE]
    if "seconds" not in mine or not base:
        return table, lines
    s = mine["seconds"]
    lines += [
        f"{name}: analysis, plan and surgery {s['core']:.3f} s (fastest {mine['fastest_core']:.3f} s); "
        f"{s['total'] / base:.2f} x plain load and save; RssAnon {mine['peak'] / weights:.2f} x weights"
    ]
    return table, lines


def main() -> None:
    p = common.parser(__doc__, rival=True)
    p.add_argument("--repeats", type=int, default=7, help="runs of each job on ResNet-50 (default 7)")
    p.add_argument("--big-repeats", type=int, default=3, help="runs of each job on the large model (default 3)")
    p.add_argument("--gigabytes", type=float, default=1.0, help="weights of the large model (default 1)")
    p.add_argument("--no-onnxsim", action="store_true", help="leave the rival out")
    args = p.parse_args()
    from resnet50 import big_mlp

    python = None if args.no_onnxsim else common.rival_python(args.onnxsim)
    tables: list[Any] = []
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        folder = Path(name)
        big = folder / "big" / "mlp.onnx"
        big.parent.mkdir()
        small = common.resnet50_file(folder)
        jobs = [(small, "ResNet-50", args.repeats, False)]
        if args.big_repeats:
            big_mlp(big, args.gigabytes)
            jobs.append((big, f"MLP of {args.gigabytes:g} GB, external data", args.big_repeats, True))
        lines = []
        for path, label, repeats, external in jobs:
            weights = Path(f"{path}.data").stat().st_size if external else path.stat().st_size
            found: dict[str, list[dict[str, Any]]] = {j: [] for j in (PLAIN, NONE, BIAS, SIM) if python or j != SIM}
            for k in range(repeats):
                for job, done in found.items():
                    if done and "problem" in done[-1]:
                        continue
                    common.say(f"{label}, {job}, {k + 1} of {repeats}")
                    done.append(measure(job, python, path, folder, external))
            rows[label] = [summary(job, done) for job, done in found.items()]
            table, more = report(label, rows[label], weights)
            tables.append(table)
            lines += more
    common.emit(
        args,
        [*tables, *lines, "targets: ResNet-50 within 1 s; 1 GB within 3 x plain; RssAnon below 1.3 x weights"],
        rows,
    )


if __name__ == "__main__":
    main()
