"""Real time of pruned over original in onnxruntime, for models of the assets and ResNet-50.

The original and its pruned variants take turns, run by run, in one process; medians.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import common

MODELS = (
    "mobilenetv2_100_224_imagenet", "mobilenetv1_075_192_imagenet", "mobilenetv1_075_192_imagenet_qdq",
    "squeezenet10_imagenet_fp32", "resnet56_cifar10", "resnet56_cifar10_qdq_int8", "yolox_nano", "nanodet_m_320",
    "ultraface_rfb_320", "kwt1_speechcommands", "ppocr_det_v2", "ppocr_rec_en_crnn", "xfeat_256", "espcn_nn_resize",
)  # fmt: skip


def bench(
    path: str, folder: str, channels: float, round_tos: list[int], threads: list[int], seconds: float, cpu: bool
) -> dict[str, Any]:
    """Median seconds per thread count and variant; MACs per variant."""
    from onnxprune import prune

    files, macs = {"original": path}, {}
    for n in round_tos:
        result = prune(path, channels=channels, round_to=n, verify=False, measure=False)
        files[str(n)] = f"{folder}/{n}.onnx"
        result.save(files[str(n)])
        macs["original"], macs[str(n)] = result.report.before.macs, result.report.after.macs
    feeds = common.feeds(path)
    times = {}
    for t in threads:
        jobs = {name: (common.session(file, t), feeds) for name, file in files.items()}
        times[str(t)] = common.interleaved(jobs, seconds=seconds, cpu=cpu and t == 1)
    return {"macs": macs, "seconds": times}


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument("models", nargs="*", metavar="MODEL", help="names in the assets, or files (default: a selection)")
    p.add_argument("--channels", type=float, default=0.3, metavar="R", help="fraction removed (default 0.3)")
    p.add_argument("--round-to", type=int, action="append", metavar="N", help="repeatable (default 8)")
    p.add_argument("--threads", type=int, action="append", metavar="N", help="repeatable (default 1 and 2)")
    p.add_argument("--seconds", type=float, default=4.0, help="of timing per model and thread count (default 4)")
    p.add_argument("--cpu-time", action="store_true", help="with 1 thread processor time, for a busy machine")
    args = p.parse_args()
    round_tos, threads = args.round_to or [8], args.threads or [1, 2]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        folder = Path(name)
        models = common.assets(args.assets) / "models"
        files = [Path(m) if Path(m).is_file() else models / f"{m}.onnx" for m in args.models or MODELS]
        if not args.models:
            files.append(common.resnet50_file(folder))
        for path in files:
            common.say(path.stem)
            options = (args.channels, round_tos, threads, args.seconds, args.cpu_time)
            answer = common.call("bench_latency:bench", path, folder, *options)
            rows.append({"model": path.stem, "problem": answer.problem, **(answer.value or {})})
    heads = "".join(f" MACs_@{n}" + "".join(f" time,_{t}t" for t in threads) for n in round_tos)
    ms = "".join(f" ms,_{t}t" for t in threads)
    table = common.columns(f"pruned over original, --channels {args.channels:g}, --round-to N", f"-model{ms}{heads}")
    for r in rows:
        if r["problem"]:
            table.add_row(r["model"], *("failed" for _ in threads))
            continue
        base = [r["seconds"][str(t)]["original"] for t in threads]
        line = [f"{b * 1e3:.2f}" for b in base]
        for n in round_tos:
            line.append(f"{r['macs'][str(n)] / max(r['macs']['original'], 1):.2f}")
            line += [f"{r['seconds'][str(t)][str(n)] / b:.2f}" for t, b in zip(threads, base, strict=True)]
        table.add_row(r["model"], *line)
    common.emit(args, [table, *(f"{r['model']}: {r['problem']}" for r in rows if r["problem"])], rows)


if __name__ == "__main__":
    main()
