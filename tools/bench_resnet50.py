"""What is left of ResNet-50 when a fraction of every group goes and the classifier keeps its 1000 outputs.

Reference: the exact cut of 30 % of every width leaves 12.94 M to 13.01 M parameters, depending on how it is rounded.
Targets at 0.3: at most 13.05 M parameters and 2.05 GMACs, at 1x3x224x224.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import common
from onnxprune import analyze
from onnxprune import prune as prune_model

PARAMETERS, MACS = 13.05e6, 2.05e9
EXACT = (12.94e6, 13.01e6)


def prune(path: str, channels: float, round_to: int, ignore: list[str]) -> dict[str, Any]:
    shape = {"input": (1, 3, 224, 224)}
    r = prune_model(
        path, channels=channels, round_to=round_to, ignore=ignore, measure=False, input_shape=shape
    ).report  # fmt: skip
    error = r.verification.error if r.verification else None
    return {"parameters": r.after.parameters, "macs": r.after.macs, "error": error, "bytes": r.after.bytes}


def readers(weight: str, path: Path) -> list[str]:
    """Names of the groups that shrink `weight`."""
    return [g.name for g in analyze(path).groups if any(s.tensor == weight for s in g.slices)]


def main() -> None:
    p = common.parser(__doc__, rival=True)
    p.add_argument("--channels", type=float, default=0.3, metavar="R", help="fraction removed (default 0.3)")
    args = p.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        path, out = common.resnet50_file(Path(name)), Path(name) / "onnxsim.onnx"
        parameters, macs = common.counts(str(path))
        rows.append({"name": "original", "parameters": parameters, "macs": macs})
        for n in (2, 4, 8, 16, 1):
            answer = common.call("bench_resnet50:prune", path, args.channels, n, [])
            rows.append({"name": f"onnxprune --round-to {n}", "problem": answer.problem, **(answer.value or {})})
        answer = common.call("bench_resnet50:prune", path, args.channels, 1, readers("fc.weight", path))
        rows.append(
            {"name": "the same, what the classifier reads kept", "problem": answer.problem, **(answer.value or {})}
        )
        answer = common.onnxsim(common.rival_python(args.onnxsim), path, out, args.channels)
        row: dict[str, Any] = {"name": "onnxsim", "problem": answer.problem}
        if not answer.problem:
            row["parameters"], row["macs"] = common.counts(str(out))
        rows.append(row)
    table = common.columns(
        f"ResNet-50, {args.channels:g} of every group removed", "- parameters_M left GMACs left error -target"
    )
    for r in rows:
        if "parameters" not in r:
            table.add_row(r["name"], "failed")
            continue
        met = r["parameters"] <= PARAMETERS and r["macs"] <= MACS
        table.add_row(
            r["name"],
            f"{r['parameters'] / 1e6:.3f}",
            common.percent(r["parameters"], parameters),
            f"{r['macs'] / 1e9:.3f}",
            common.percent(r["macs"], macs),
            f"{r['error']:.0e}" if r.get("error") is not None else "-",
            "met" if met else "",
        )
    failed = [f"{r['name']}: {r['problem']}" for r in rows if r.get("problem")]
    exact = " to ".join(f"{x / 1e6:g}" for x in EXACT)
    common.emit(
        args,
        [table, f"reference: the exact cut at 0.3 leaves {exact} M; targets <= 13.05 M, <= 2.05 GMACs", *failed],
        rows,
    )


if __name__ == "__main__":
    main()
