"""Error of the latency model: random plans that it never saw, predicted and measured.

The model is made as the package makes it. Then every plan (each group a ratio of its own; multiples of 16, 8, 4, 2
or 1) is cut, and its time over that of the uncut model, which runs in turns with it, is compared with the predicted
ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import common

MODELS = ("resnet56_cifar10", "mobilenetv2_100_224_imagenet", "digits_vit", "shakespeare_llama", "kwt1_speechcommands")
STEPS = (1, 2, 4, 8, 16)
UNCUT = 20  # plans after which the uncut model is measured like a plan
SEED = 1000  # of the plans: far from those of the model's own variants


def bench(path: str, plans: int, threads: int, seconds: float, seed: int) -> dict[str, Any]:
    """Predicted and measured ratios to the uncut model, and the time that making the model took."""
    import time

    from onnxprune.graph.io import load
    from onnxprune.latency import measure
    from onnxprune.latency.making import CPU, opened_on
    from onnxprune.latency.model import latency_model
    from onnxprune.latency.table import Device
    from onnxprune.latency.variants import Picker, random_cuts
    from onnxprune.runtime.feeds import likely_feeds
    from onnxprune.structure.groups import analyze

    analysis = analyze(load(path))
    feeds = likely_feeds(analysis.model, analysis.coupling.shapes, None)[0]
    start = time.perf_counter()
    model = latency_model(analysis, feeds, threads=threads, cache=None, seed=seed)
    took = time.perf_counter() - start
    picker, device = Picker.of(analysis), Device.here(threads)
    clock = measure.clock_of(threads, CPU)
    base = opened_on(device, analysis.model), feeds

    def ratio(kept: Mapping[str, int]) -> float:
        cut = picker.model(kept)
        pairs = measure.beside(base, lambda k: (opened_on(device, cut), feeds), 0, clock, seconds)
        return float(np.median([b / a for a, b in pairs]))

    predicted = model.seconds(picker.keep({}))
    uncut = [ratio({})]
    steps = np.random.default_rng(SEED + seed).choice(STEPS, plans).tolist()
    rows: list[dict[str, Any]] = []
    for step, kept in zip(steps, random_cuts(analysis, steps, SEED + seed), strict=True):
        uncut += [ratio({})] if len(rows) % UNCUT == 0 else []
        rows.append({"step": step, "predicted": model.seconds(picker.keep(kept)) / predicted, "measured": ratio(kept)})
    for row in rows:  # two sessions of one file may differ, and so may the one that all are compared with
        row["measured"] /= float(np.median(uncut))
    return {"rows": rows, "cross_validated": model.error, "seconds": took, "uncut": model.table.uncut}


def errors(rows: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Relative: median and 95th percentile of the absolute ones, and the mean."""
    e = np.array([r["predicted"] / r["measured"] - 1 for r in rows])
    return float(np.median(np.abs(e))), float(np.quantile(np.abs(e), 0.95)), float(e.mean())


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument("models", nargs="*", metavar="MODEL", help="names in the assets or in models/, or files")
    p.add_argument("--plans", type=int, default=200, metavar="N", help="random plans (default 200)")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="intra-op threads (default 1)")
    p.add_argument("--seconds", type=float, default=0.5, help="of timing per plan (default 0.5)")
    p.add_argument("--seed", type=int, default=0, help="of the model's variants and of the plans (default 0)")
    args = p.parse_args()
    table: list[dict[str, Any]] = []
    for name in args.models or MODELS:
        places = (Path(name), common.REPO / "models" / f"{name}.onnx")
        path = next((x for x in places if x.is_file()), None) or common.assets(args.assets) / "models" / f"{name}.onnx"
        common.say(path.stem)
        found = bench(str(path), args.plans, args.threads, args.seconds, args.seed)
        even = [r for r in found["rows"] if r["step"] >= 8]
        median, high, bias = errors(found["rows"])
        table.append(
            {"model": path.stem, "plans": len(found["rows"]), "median": median, "p95": high, "bias": bias}
            | {"even": errors(even) if even else None, **found}
        )
        common.say(f"  median {median:.1%}, 95th percentile {high:.1%}, mean {bias:+.1%}")
    grid = common.columns(
        f"error of the latency model on random plans, {args.threads} thread(s)",
        "-model uncut,_ms plans median 95th_percentile mean multiples_of_8 left_out:_median 95th made_in,_s",
    )
    for r in table:
        multiples = f"{r['even'][0]:.1%}" if r["even"] else ""
        left_out = [f"{x:.1%}" for x in r["cross_validated"]]
        shares = [f"{r['median']:.1%}", f"{r['p95']:.1%}", f"{r['bias']:+.1%}", multiples, *left_out]
        grid.add_row(r["model"], f"{1e3 * r['uncut']:.3g}", str(r["plans"]), *shares, f"{r['seconds']:.0f}")
    common.emit(args, [grid], table)


if __name__ == "__main__":
    main()
