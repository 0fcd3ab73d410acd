"""How often the bound of --max-drop holds: models pruned until they lose at most so much, scored on unseen pictures.

    python tools/bench_max_drop.py --seeds 100 --json drop.json         # --resume goes on with the file

Each seed draws other labelled pictures of MNIST's test part for --evaluate and other training pictures for
--calibration; the drop that counts is that on the pictures of the test part that were not drawn. The search promises
the bound with a confidence of 95% for what it draws from, so that it should hold in 95 of 100 runs or more. A run in
which no cut holds the bound for sure writes nothing, and is counted apart.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import common

MODEL = "mnist_cnn_cntk"
CALIBRATION = 256  # pictures


def right(model: bytes, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which pictures are recognised, bool; one run for each."""
    session = common.session(model, 1)
    name = session.get_inputs()[0].name
    return np.array([int(session.run(None, {name: x[k : k + 1]})[0].argmax()) == y[k] for k in range(len(x))])


def one(seed: int, drop: float, evaluated: int, assets: Path) -> dict[str, Any]:
    """A run of the search with its own pictures."""
    import onnxprune

    path = assets / "models" / f"{MODEL}.onnx"
    with np.load(assets / "data" / "mnist.npz") as file:
        data = {k: file[k] for k in file.files}
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data["x_test"]))
    seen, unseen = order[:evaluated], order[evaluated:]
    x = data["x_test"].astype(np.float32)[:, None]
    pictures = rng.choice(len(data["x_train"]), CALIBRATION, replace=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "scored.npz", Input3=x[seen], labels=data["y_test"][seen])
        np.savez(folder / "calibration.npz", Input3=data["x_train"][pictures].astype(np.float32)[:, None])
        try:
            result = onnxprune.prune(
                path, max_drop=drop, evaluate=folder / "scored.npz", calibration=folder / "calibration.npz", seed=seed,
                measure=False, round_to=1,
            )  # fmt: skip
        except onnxprune.OptionError as e:
            return {"seed": seed, "refused": str(e)}
    pruned = onnxprune.to_proto(result.model).SerializeToString()
    before, after = (right(m, x[unseen], data["y_test"][unseen]) for m in (path.read_bytes(), pruned))
    report = result.report.to_dict()
    return {
        "seed": seed, "drop": float(before.mean() - after.mean()),
        "deviation": float((before.astype(int) - after).std() / len(unseen) ** 0.5),
        "parameters": report["after"]["parameters"] / report["before"]["parameters"],
    }  # fmt: skip


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=100, metavar="N")
    parser.add_argument("--max-drop", type=float, default=0.01, metavar="D", help="of accuracy (default 0.01)")
    parser.add_argument("--pictures", type=int, default=1000, metavar="N", help="for --evaluate (default 1000)")
    parser.add_argument("--resume", action="store_true", help="take over the runs in the file of --json")
    args = parser.parse_args()
    assets = common.assets(args.assets)
    rows = json.loads(args.json.read_text()) if args.resume and args.json and args.json.exists() else []
    for seed in range(args.seeds):
        if any(r["seed"] == seed for r in rows):
            continue
        rows.append(one(seed, args.max_drop, args.pictures, assets))
        print(f"seed {seed}: {rows[-1].get('refused') or rows[-1]['drop']}", file=sys.stderr)
        if args.json:
            args.json.write_text(json.dumps(rows))
    made = [r for r in rows if "drop" in r]
    drops = np.array([r["drop"] for r in made])
    lines = [
        f"{MODEL}, --max-drop {args.max_drop:g}, {args.pictures} pictures evaluated: the bound holds in "
        f"{int((drops <= args.max_drop).sum())} of {len(made)} runs; {len(rows) - len(made)} wrote nothing",
        f"lost on the unseen pictures: median {100 * np.median(drops):.2f} points, worst {100 * drops.max():.2f}; "
        f"standard error of one {100 * np.mean([r['deviation'] for r in made]):.2f}",
        f"parameters left: median {np.median([r['parameters'] for r in made]):.1%}",
    ]
    common.emit(args, ["\n".join(lines)], rows)


if __name__ == "__main__":
    main()
