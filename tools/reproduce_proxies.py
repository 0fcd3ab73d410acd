"""Zero-cost proxies as they were published, beside ours.

    python tools/reproduce_proxies.py --folder DIR     # about half an hour of a core; a run that was stopped goes on

48 small networks (depth, width, kernel, skip connections, normalisations or none: `networks.small_networks`) are
trained on 4,000 digits of MNIST, 14 by 14 pixels, 300 steps of 64 each, and scored on 5,000 others. Abdelfattah et al.
2021 report Spearman correlations with trained accuracy of .5 to .8 (NAS-Bench-201), synflow the steadiest over search
spaces; that few proxies beat the number of parameters is what White et al. 2022 (A Deeper Look at Zero-Cost Proxies)
found.

Columns: Spearman and Kendall of each proxy with the mean accuracy of the seeds, proxies asked at the weights of the
first seed, with 95% intervals by bootstrap; the standard deviation of Spearman over the weights of all seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import onnx

import common
import experiments
import onnxprune
from networks import small_networks
from onnxprune.calibration.samples import spread
from onnxprune.experiments.proxies import PROXIES
from onnxprune.pipeline.proxies import correlations

COUNT, STEPS, TAUGHT, TESTED, RATE = 48, "300steps", 4000, 5000, 0.01


def digits(root: Path, folder: Path) -> tuple[Path, Path]:
    """MNIST at half the size: `TAUGHT` training pictures, and the test pictures, `(n, 1, 14, 14)`."""
    out = []
    for path, count in zip(experiments.mnist(root, folder), (TAUGHT, TESTED), strict=True):
        data, small = np.load(path), path.with_name(f"{path.stem}_14.npz")
        some = spread(len(data["x"]), count)  # they lie in the order of their classes
        x = data["x"][some].reshape(-1, 1, 14, 2, 14, 2).mean((3, 5))
        np.savez(small, x=x.astype(np.float32), labels=data["labels"][some])
        out.append(small)
    return out[0], out[1]


def main() -> None:
    p = experiments.parser(__doc__, [])
    p.add_argument("--limit", type=int, default=COUNT, metavar="N", help=f"of the networks (default {COUNT})")
    args = p.parse_args()
    seeds = args.seeds or 3
    train, test = digits(common.assets(args.assets), args.folder)
    models = dict(list(small_networks(COUNT).items())[: args.limit])
    files = {name: args.folder / f"{name}.onnx" for name in models}
    book = args.folder / "proxies.json"
    rows: dict[str, Any] = json.loads(book.read_text(encoding="utf-8")) if book.exists() else {}

    for name, path in files.items():
        onnx.save(models[name], path)
        for seed in range(seeds):
            if f"{name}, {seed}" not in rows:
                report = onnxprune.train(
                    path, train, args.folder / "trained.onnx", evaluate=test, init=seed, seed=seed, tune=STEPS,
                    learning_rate=RATE, threads=args.threads,
                ).report  # fmt: skip
                found = onnxprune.proxies([path], calibration=train, init=seed, seed=seed, threads=args.threads)
                rows[f"{name}, {seed}"] = {
                    "accuracy": report["evaluation"][0]["after"], "seconds": report["seconds"]["tune"],
                    **found["models"][0],
                }  # fmt: skip
                book.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                common.say(f"{name}, {seed}: {rows[f'{name}, {seed}']['accuracy']:.4f}")
    scores = [fmean(rows[f"{name}, {seed}"]["accuracy"] for seed in range(seeds)) for name in files]
    asked = []
    for seed in range(seeds):
        said = [rows[f"{name}, {seed}"]["proxies"] for name in files]
        asked.append({r["proxy"]: r for r in correlations(list(PROXIES), said, scores, 0, [])})
    title = f"{len(files)} networks, MNIST 14x14, accuracy {min(scores):.1%} to {max(scores):.1%}, {seeds} seeds"
    table = common.columns(title, "-proxy networks Spearman -interval Kendall -interval over_weights")
    for proxy, row in asked[0].items():
        each = [r[proxy]["spearman"]["value"] for r in asked if r[proxy]["spearman"]]
        cells = []
        for of in (row["spearman"], row["kendall"]):
            cells += [f"{of['value']:.2f}", f"{of['low']:.2f} to {of['high']:.2f}"] if of else ["-", "-"]
        table.add_row(proxy, str(row["models"]), *cells, f"± {stdev(each):.2f}" if len(each) > 1 else "-")
    common.emit(args, [table], {"rows": rows, "correlations": asked})


if __name__ == "__main__":
    main()
