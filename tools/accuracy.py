"""Accuracy after pruning without training: the models of models/ and real ones of the assets, next to onnxsim.

Each model is scored with the preprocessing of models/score.py or of the assets' score.py, and onnxsim's result with the
same. Widths are exact (--round-to 1) unless told otherwise, so that a fraction means the same for all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
from onnxprune.importance.weights import DEFAULT

REAL = (
    "mobilenetv2_100_224_imagenet", "mobilenetv1_075_192_imagenet", "squeezenet10_imagenet_fp32", "resnet20_cifar10",
    "resnet56_cifar10",
)  # fmt: skip
Score = Callable[[Path], float]


def scorers(root: Path, limit: int | None, only: str) -> dict[Path, tuple[str, Score]]:
    """Model file -> name of its metric, and the function that scores a variant of it."""
    from fnmatch import fnmatch

    own = common.module(common.REPO / "models" / "score.py")
    real = common.module(root / "score.py")
    out: dict[Path, tuple[str, Score]] = {}

    def digits(name: str) -> Score:
        return lambda path: float(own.score_named(path, name)[1])

    def pictures(name: str) -> Score:
        data: list[Any] = []

        def score(path: Path) -> float:
            if not data:
                x, y = real.data(str(root), name)
                step = max(1, len(x) // limit) if limit else 1  # the files are sorted by class
                data.extend((x[::step], y[::step]))
            return float(real.top1(str(path), *data, name))

        return score

    for path in sorted((common.REPO / "models").glob("*.onnx")):
        if ".pruned" not in path.name and fnmatch(path.stem, only):
            out[path] = (own.score_named(path)[0], digits(path.stem))
    for name in REAL:
        if fnmatch(name, only):
            out[root / "models" / f"{name}.onnx"] = ("top1", pictures(name))
    return out


def prune(path: str, out: str, channels: float, options: dict[str, Any]) -> list[float]:
    """Parameters before and after."""
    from onnxprune import prune as prune_model

    result = prune_model(path, channels=channels, measure=False, **options)
    result.save(out)
    return [result.report.before.parameters, result.report.after.parameters]


def main() -> None:
    p = common.parser(__doc__, rival=True)
    p.add_argument("--channels", type=float, action="append", metavar="R", help="repeatable (default 0.1 and 0.3)")
    p.add_argument("--importance", action="append", metavar="NAME", help="criteria, repeatable (default: path)")
    p.add_argument("--recover", action="append", metavar="NAME", help="repeatable (default none and bias)")
    p.add_argument("--allocate", default="uniform", metavar="NAME", help="default uniform")
    p.add_argument("--round-to", type=int, default=1, metavar="N", help="default 1")
    p.add_argument("--limit", type=int, metavar="N", help="about N images, evenly spread over the classes")
    p.add_argument("--only", default="*", metavar="GLOB", help="only models whose name matches")
    p.add_argument("--no-onnxsim", action="store_true", help="leave the rival out")
    args = p.parse_args()
    criteria = args.importance or [DEFAULT]
    variants = [(i, r) for i in criteria for r in args.recover or ["none", "bias"]]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        out = Path(folder) / "out.onnx"
        for path, (metric, score) in scorers(common.assets(args.assets), args.limit, args.only).items():
            common.say(path.stem)
            original, before = score(path), common.counts(str(path))[0]
            for channels in args.channels or [0.1, 0.3]:
                row: dict[str, Any] = {"model": path.stem, "metric": metric, "channels": channels, "original": original}
                row |= {"parameters": before, "ours": {}, "onnxsim": {}}
                if not args.no_onnxsim:
                    answer = common.onnxsim(common.rival_python(args.onnxsim), path, out, channels)
                    row["onnxsim"] = {"problem": answer.problem}
                    if not answer.problem:
                        row["onnxsim"] |= {"parameters": common.counts(str(out))[0], "score": score(out)}
                for importance, recover in variants:
                    options = {"importance": importance, "recover": recover, "round_to": args.round_to}
                    answer = common.call("accuracy:prune", path, out, channels, options | {"allocate": args.allocate})
                    found: dict[str, Any] = {"problem": answer.problem}
                    if not answer.problem:
                        found |= {"parameters": answer.value[1], "score": score(out)}
                    row["ours"][f"{importance}, {recover}"] = found
                rows.append(row)
    names = " ".join(f"{i}_{r}" for i, r in variants)
    title = f"accuracy without training, --round-to {args.round_to}, --allocate {args.allocate}"
    table = common.columns(title, f"-model -metric removed original onnxsim left left {names}")
    for row in rows:
        sim, ours = row["onnxsim"], list(row["ours"].values())
        left = next((o["parameters"] for o in ours if "parameters" in o), None)
        table.add_row(
            row["model"], row["metric"], f"{row['channels']:g}", f"{row['original']:.3f}",
            f"{sim['score']:.3f}" if "score" in sim else "-", common.percent(sim.get("parameters"), row["parameters"]),
            common.percent(left, row["parameters"]), *(f"{o['score']:.3f}" if "score" in o else "failed" for o in ours),
        )  # fmt: skip
    problems = dict.fromkeys(
        f"{r['model']}, {r['channels']:g}, {k}: {o['problem']}"
        for r in rows
        for k, o in (("onnxsim", r["onnxsim"]), *r["ours"].items())
        if o.get("problem")
    )
    common.emit(args, [table, *problems], rows)


if __name__ == "__main__":
    main()
