"""Which widths onnxruntime likes: single operators at widths around a cut of 64, 128 and 256, then whole models.

Operators: three layers of the same width in a row, with ReLU between, so that what happens at the ends matters less.
`step N`: the mean time of a width over that of the next multiple of N, if at most N - 1 wider; above 1 the wider one,
which has more MACs, is the faster one.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import common

LAYERS = 3
RANGES = {64: (36, 49, 56), 128: (84, 97, 28), 256: (174, 185, 14)}  # width before: first, end, side of the image
STEPS = (2, 4, 8, 16)
WHOLE = ("resnet56_cifar10", "mobilenetv2_100_224_imagenet")


def chain(kind: str, width: int, side: int) -> bytes:
    """LAYERS times Conv 3x3, Conv 1x1, depthwise 3x3 on (1, width, side, side), or Gemm on (side, width)."""
    rng, nodes, weights, x = np.random.default_rng(0), [], [], "x"
    shapes = {
        "3x3": (width, width, 3, 3),
        "1x1": (width, width, 1, 1),
        "depthwise": (width, 1, 3, 3),
        "Gemm": (width, width),
    }
    shape = shapes[kind]
    for i in range(LAYERS):
        w = rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[1:])))
        weights += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(np.zeros(width, np.float32), f"b{i}")]
        if kind == "Gemm":
            node = helper.make_node("Gemm", [x, f"w{i}", f"b{i}"], [f"y{i}"], transB=1)
        else:
            group = width if kind == "depthwise" else 1
            node = helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [f"y{i}"], pads=[shape[2] // 2] * 4, group=group)
        x = f"z{i}"
        nodes += [node, helper.make_node("Relu", [f"y{i}"], [x])]
    dims = [side, width] if kind == "Gemm" else [1, width, side, side]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, dims) for n in ("x", x)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def kernels(kind: str, first: int, end: int, side: int, threads: int, seconds: float, cpu: bool) -> dict[str, float]:
    """Median seconds per width."""
    rng, jobs = np.random.default_rng(1), {}
    for width in range(first, end):
        shape = (side, width) if kind == "Gemm" else (1, width, side, side)
        s = common.session(chain(kind, width, side), threads)
        jobs[str(width)] = (s, {"x": rng.standard_normal(shape, np.float32)})
    return common.interleaved(jobs, seconds=seconds, cpu=cpu and threads == 1, most=2000)


def gain(times: dict[int, float], step: int) -> float | None:
    """Mean of time at w over time at the next multiple of `step`, over the widths that are none."""
    pairs = [(w, -(-w // step) * step) for w in times if w % step]
    ratios = [times[w] / times[up] for w, up in pairs if up in times]
    return float(np.mean(ratios)) if ratios else None


def operators(args: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for kind in ("3x3", "1x1", "depthwise", "Gemm"):
        for before, (first, end, side) in RANGES.items():
            common.say(f"{kind} around a cut of {before}")
            options = (first, end, side, args.threads, args.seconds, args.cpu_time)
            answer = common.call("bench_round:kernels", kind, *options)
            rows.append({"kind": kind, "before": before, "problem": answer.problem, "seconds": answer.value or {}})
    tables = []
    for before, (first, end, _) in RANGES.items():
        mine = [r for r in rows if r["before"] == before]
        names = " ".join(f"{r['kind']}_us" for r in mine)
        table = common.columns(f"{LAYERS} layers of width w, microseconds, {args.threads} thread(s)", f"w {names}")
        for w in range(first, end):
            mark = f"{w} *" if w % 16 == 0 else f"{w} +" if w % 8 == 0 else f"{w}  "
            table.add_row(mark, *(f"{r['seconds'].get(str(w), float('nan')) * 1e6:.0f}" for r in mine))
        tables.append(table)
    table = common.columns(
        "mean time of a width over that of the next multiple of N",
        f"-operator around {' '.join(f'step_{n}' for n in STEPS)}",
    )
    for r in rows:
        times = {int(w): t for w, t in r["seconds"].items()}
        gains = [gain(times, n) for n in STEPS]
        r["gain"] = dict(zip(STEPS, gains, strict=True))
        table.add_row(r["kind"], str(r["before"]), *("-" if g is None else f"{g:.2f}" for g in gains))
    return [*tables, table], rows


def whole(args: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        folder = Path(name)
        files = [common.assets(args.assets) / "models" / f"{m}.onnx" for m in WHOLE]
        for path in [*files, common.resnet50_file(folder)]:
            for threads in dict.fromkeys((args.threads, 2)):
                common.say(f"{path.stem}, {threads} thread(s)")
                options = (args.channels, args.round_to, [threads], 3 * args.seconds, args.cpu_time)
                answer = common.call("bench_latency:bench", path, folder, *options, seconds=600)
                rows.append({"model": path.stem, "threads": threads, "problem": answer.problem, **(answer.value or {})})
    title = f"whole models, --channels {args.channels:g}: time and MACs over the original, and time per MAC"
    table = common.columns(title, "-model threads N ms time MACs time_per_MAC")
    for r in rows:
        if r["problem"]:
            table.add_row(r["model"], str(r["threads"]), "failed")
            continue
        times, macs = r["seconds"][str(r["threads"])], r["macs"]
        for n in times:
            time, work = times[n] / times["original"], macs[n] / macs["original"]
            table.add_row(
                r["model"],
                str(r["threads"]),
                n,
                f"{times[n] * 1e3:.2f}",
                f"{time:.3f}",
                f"{work:.3f}",
                f"{time / work:.2f}",
            )
        table.add_section()
    return [table, *(f"{r['model']}: {r['problem']}" for r in rows if r["problem"])], rows


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument("--channels", type=float, default=0.3, metavar="R", help="fraction removed (default 0.3)")
    p.add_argument(
        "--round-to", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], metavar="N", help="default 1 2 4 8 16 32"
    )
    p.add_argument("--threads", type=int, default=1, help="intra-op threads (default 1; whole models also run with 2)")
    p.add_argument("--seconds", type=float, default=5.0, help="of timing per operator and range (default 5)")
    p.add_argument("--no-operators", action="store_true", help="whole models only")
    p.add_argument("--cpu-time", action="store_true", help="with 1 thread processor time, for a busy machine")
    args = p.parse_args()
    tables, ops = ([], []) if args.no_operators else operators(args)
    more, models = whole(args)
    common.emit(args, [*tables, *more], {"operators": ops, "models": models})


if __name__ == "__main__":
    main()
