"""How often the bound of --max-drop holds: models pruned until they lose at most so much, scored on unseen samples.

    python tools/bench_max_drop.py --seeds 100 --json drop.json         # --resume goes on with the file
    python tools/bench_max_drop.py --model sst2_encoder --model shakespeare_llama --minimize latency --seeds 20

Each seed draws other labelled samples for --evaluate (1,000 pictures of the test part, of models/ half of what was held
out from training) and other ones for --calibration; the drop that counts is that on the labelled samples that were not
drawn. The search promises the bound with a confidence of 95% for what it draws from, so that it should hold in 95 of
100 runs or more. A run in which no cut holds the bound for sure writes nothing, and is counted apart.

Columns: runs in which the bound holds, of those that wrote a file; runs that wrote nothing; points lost on the unseen
samples (of the loss hundredths of a nat), in the median and at worst, and the standard error of one such figure; what
is left of the parameters and, with --minimize latency, of the time by the command's own measurement (median, and the
5th and 95th percentile over the runs); seconds of a run, median and longest.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

import common

Samples = dict[str, Any]
PICTURES, CALIBRATION = 1000, 256  # for --evaluate, for --calibration


def pictures(
    file: str, name: str, ready: Callable[[Any, Path], Any]
) -> Callable[[Path, np.random.Generator], tuple[Samples, Samples, Samples]]:
    """Labelled pictures to evaluate with, labelled ones that are not seen, pictures to calibrate with; name: of the
    model's input; ready: pictures as stored, the assets -> what the model takes."""

    def drawn(assets: Path, rng: np.random.Generator) -> tuple[Samples, Samples, Samples]:
        with np.load(assets / "data" / file) as stored:
            data = {k: stored[k] for k in stored.files}
        x, y = ready(data["x_test"], assets), data["y_test"]
        seen, unseen = ({name: x[at], "labels": y[at]} for at in np.split(rng.permutation(len(y)), [PICTURES]))
        few = rng.choice(len(data["x_train"]), CALIBRATION, replace=False)
        return seen, unseen, {name: ready(data["x_train"][few], assets)}

    return drawn


def ours(heldout: str) -> Callable[[Path, np.random.Generator], tuple[Samples, Samples, Samples]]:
    """The same of a model of models/: what was held out is halved, of what calibrates four fifths are drawn."""

    def drawn(assets: Path, rng: np.random.Generator) -> tuple[Samples, Samples, Samples]:
        folder = common.REPO / "models"
        with np.load(folder / f"{heldout}_heldout.npz") as file, np.load(folder / f"{heldout}_calibration.npz") as few:
            data, inputs = {k: file[k] for k in file.files}, {k: few[k] for k in few.files}
        order = rng.permutation(len(data["labels"]))
        seen, unseen = ({k: a[at] for k, a in data.items()} for at in np.array_split(order, 2))
        count = len(next(iter(inputs.values())))
        at = rng.choice(count, 4 * count // 5, replace=False)
        return seen, unseen, {k: a[at] for k, a in inputs.items()}

    return drawn


MODELS = {
    "mnist_cnn_cntk": pictures("mnist.npz", "Input3", lambda x, assets: x.astype(np.float32)[:, None]),
    "sst2_encoder": ours("sst2"), "shakespeare_llama": ours("shakespeare"),
}  # fmt: skip


def scores(model: bytes, samples: Samples) -> np.ndarray:
    """1 of every sample that is recognised, else 0; where every token has a label, less the loss in nats. One run for
    each."""
    session, labels = common.session(model, 1), samples["labels"]
    inputs = [{k: a[i : i + 1] for k, a in samples.items() if k != "labels"} for i in range(len(labels))]
    outputs = [np.asarray(session.run(None, x)[0])[0] for x in inputs]
    if labels.ndim == 1:
        return np.array([float(out.argmax() == y) for out, y in zip(outputs, labels, strict=True)])
    tokens = [np.take_along_axis(log_softmax(out, -1), y[:, None], -1) for out, y in zip(outputs, labels, strict=True)]
    return np.array([x.mean() for x in tokens])


def one(name: str, seed: int, args: Any, assets: Path) -> dict[str, Any]:
    """A run of the search with its own samples."""
    import onnxprune

    path = common.REPO / "models" / f"{name}.onnx"
    path = path if path.exists() else assets / "models" / path.name
    seen, unseen, few = MODELS[name](assets, np.random.default_rng(seed))
    extra = {"minimize": args.minimize} if args.minimize else {"measure": False, "round_to": 1}
    with tempfile.TemporaryDirectory() as folder:
        scored, calibration = Path(folder, "scored.npz"), Path(folder, "calibration.npz")
        np.savez(scored, **seen)
        np.savez(calibration, **few)
        begin = time.perf_counter()
        try:
            result = onnxprune.prune(
                path, max_drop=args.max_drop, evaluate=scored, calibration=calibration, seed=seed, threads=1,
                cache=args.cache, **extra,
            )  # fmt: skip
        except onnxprune.OptionError as e:
            return {"model": name, "seed": seed, "refused": str(e), "seconds": time.perf_counter() - begin}
        took = time.perf_counter() - begin
    pruned = onnxprune.to_proto(result.model).SerializeToString()
    before, after = (scores(m, unseen) for m in (path.read_bytes(), pruned))
    report = result.report.to_dict()
    return {
        "model": name, "seed": seed, "drop": float(before.mean() - after.mean()), "seconds": took,
        "deviation": float((before - after).std() / len(before) ** 0.5),
        "parameters": report["after"]["parameters"] / report["before"]["parameters"],
        "time": report["after"]["latency_ratio"],
    }  # fmt: skip


def spread(values: list[float]) -> str:
    """Median (5th to 95th percentile), in percent."""
    low, mid, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"{mid:.1%} ({low:.1%} to {high:.1%})"


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument("--model", action="append", choices=list(MODELS), help="repeatable (default mnist_cnn_cntk)")
    p.add_argument("--seeds", type=int, default=100, metavar="N")
    p.add_argument(
        "--max-drop", type=float, default=0.01, metavar="D", help="of accuracy, or of the loss in nats (default 0.01)"
    )
    p.add_argument("--minimize", help="as of onnxprune; without, as many channels as possible are removed")
    p.add_argument(
        "--cache", type=Path, metavar="DIR", help="as of onnxprune: times are measured by the first run alone"
    )
    p.add_argument("--resume", action="store_true", help="take over the runs in the file of --json")
    args = p.parse_args()
    assets = common.assets(args.assets)
    rows = json.loads(args.json.read_text()) if args.resume and args.json and args.json.exists() else []
    table = common.columns(
        f"--max-drop {args.max_drop:g}" + (f" --minimize {args.minimize}" if args.minimize else ""),
        "-model holds nothing lost worst error parameters time seconds longest",
    )
    for name in args.model or ["mnist_cnn_cntk"]:
        for seed in range(args.seeds):
            if any((r["model"], r["seed"]) == (name, seed) for r in rows):
                continue
            rows.append(one(name, seed, args, assets))
            common.say(f"{name}, seed {seed}: {rows[-1].get('refused') or rows[-1]}")
            if args.json:
                args.json.write_text(json.dumps(rows))
        runs = [r for r in rows if r["model"] == name]
        made, took = [r for r in runs if "drop" in r], [r["seconds"] for r in runs]
        drops, times = 100 * np.array([r["drop"] for r in made]), [r["time"] for r in made if r["time"]]
        if not made:
            table.add_row(name, "0 of 0", str(len(runs)), *["-"] * 5, f"{np.median(took):.0f}", f"{max(took):.0f}")
            continue
        table.add_row(
            name, f"{(drops <= 100 * args.max_drop).sum()} of {len(made)}", str(len(runs) - len(made)),
            f"{np.median(drops):.2f}", f"{drops.max():.2f}", f"{100 * np.mean([r['deviation'] for r in made]):.2f}",
            spread([r["parameters"] for r in made]), spread(times) if times else "-",
            f"{np.median(took):.0f}", f"{max(took):.0f}",
        )  # fmt: skip
    common.emit(args, [table], rows)


if __name__ == "__main__":
    main()
