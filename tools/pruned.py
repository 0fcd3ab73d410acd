"""What is removed from every model of the assets and every light model of the onnx package, next to onnxsim.

The light models come without weights (ConstantOfShape makes them); they get seeded random ones first, unless
--as-shipped. Every model runs in a process of its own, with limits on time and memory.

broken: an error that is not the user's, a result that fails verification, or one that onnxruntime does not load though
it loads the original. `onnxsim`: parameters left after simplify and structured pruning with the same fraction (for
quantized models its functions for those as well), counted as ours; `simplify`: left by its simplification alone.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import common

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SECONDS, GIGABYTES = 240, 16


def with_weights(source: str, target: str, seed: int = 0) -> None:
    """Replace ConstantOfShape nodes over initializers with seeded weights: He for matrices, about 1 for vectors."""
    model, rng = onnx.load(source), np.random.default_rng(seed)
    given = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    made = [n for n in model.graph.node if n.op_type == "ConstantOfShape" and n.input[0] in given]
    for node in made:
        shape = tuple(int(d) for d in given[node.input[0]])
        if len(shape) > 1:
            w = rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / math.prod(shape[1:])))
        else:
            w = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(w, node.output[0]))
        model.graph.node.remove(node)
    shapes = {n.input[0] for n in made} - {i for n in model.graph.node for i in n.input}
    for kind in (model.graph.initializer, model.graph.input):
        kept = [v for v in kind if v.name not in shapes]
        del kind[:]
        kind.extend(kept)
    model.ir_version = max(model.ir_version, 4)  # before, an initializer had to be an input as well
    onnx.save(model, target)


def prune(path: str, out: str, channels: float, round_to: int, recover: str | None) -> dict[str, Any]:
    """Prune, by default as the command does; plain data."""
    from onnxprune import NothingToPrune
    from onnxprune import prune as prune_model

    try:
        result = prune_model(path, channels=channels, round_to=round_to, recover=recover, measure=False)
    except NothingToPrune as e:
        return {"status": "nothing", "message": str(e)}
    result.save(out)
    r, v = result.report, result.report.verification
    reasons = Counter(f"{p.reason} ({p.op})" for p in r.pinned)
    broken = "" if common.runs(path) else common.runs(out)
    shrunk = "shrunk" if r.after.parameters < r.before.parameters else "unchanged"
    return {
        "status": "broken" if broken else shrunk,
        "message": broken,
        "parameters": [r.before.parameters, r.after.parameters],
        "macs": [r.before.macs, r.after.macs],
        "error": v.error if v else None,
        "pinned": len(r.pinned),
        "groups": len(r.groups),
        "reason": reasons.most_common(1)[0][0] if reasons else "",
        "notes": [*r.notes, *(v.notes if v else ())],
    }


def ours(path: Path, out: Path, channels: float, round_to: int, recover: str | None) -> dict[str, Any]:
    answer = common.call("pruned:prune", path, out, channels, round_to, recover, seconds=SECONDS, gigabytes=GIGABYTES)
    row = answer.value or {"status": "broken", "message": answer.problem}
    return {**row, "seconds": answer.run.seconds}


def rival(python: Path, path: Path, folder: Path, channels: float) -> dict[str, Any]:
    """Parameters left by onnxsim: after simplification alone (a fraction of 0), and after pruning."""
    left: dict[str, Any] = {}
    for key, sparsity in (("simplified", 0.0), ("pruned", channels)):
        out = folder / f"onnxsim-{key}.onnx"
        answer = common.onnxsim(python, path, out, sparsity, seconds=SECONDS, gigabytes=GIGABYTES)
        if answer.problem:
            return {"message": answer.problem, **left}
        counted = common.call("common:counts", out, seconds=SECONDS, gigabytes=GIGABYTES)
        if counted.problem:
            return {"message": f"its output cannot be counted: {counted.problem}", **left}
        left[key] = counted.value[0]
        left["passes"] = answer.value["passes"]
        if key == "pruned":
            left["invalid"] = (
                common.call("common:runs", out).value if common.call("common:runs", path).value == "" else ""
            )
    return left


def cells(row: dict[str, Any], round_tos: list[int]) -> list[str]:
    """A line of the table."""
    first = row["ours"][str(round_tos[0])]
    cell = [row["name"]]
    before = next((o["parameters"][0] for o in row["ours"].values() if "parameters" in o), None)
    cell.append("-" if before is None else f"{before / 1e6:.3f}")
    for n in round_tos:
        o = row["ours"][str(n)]
        p, m = o.get("parameters", (None, None)), o.get("macs", (None, None))
        cell += [o["status"] if p[1] is None else common.percent(p[1], p[0]), common.percent(m[1], m[0])]
    errors = [o["error"] for o in row["ours"].values() if o.get("error") is not None]
    cell.append(f"{max(errors):.0e}" if errors else "-")
    cell.append(str(first.get("pinned", "-")))
    r = row["onnxsim"]
    cell += [
        common.percent(r.get("simplified"), before),
        common.percent(r.get("pruned"), before) if not r.get("invalid") else "invalid",
    ]
    cell += ["yes" if row["more"] else "no"]
    cell.append(first["message"][:70] if first["message"] else first.get("reason", ""))
    return cell


def more(row: dict[str, Any], n: int) -> bool:
    """At least as much removed as by onnxsim: as a share of what each started to prune from, or in absolute numbers."""
    p, r = row["ours"][str(n)].get("parameters"), row["onnxsim"]
    if not p:
        return "pruned" not in r or r["pruned"] >= r["simplified"]
    if "pruned" not in r or r.get("invalid"):
        return True
    return bool(p[1] / p[0] <= r["pruned"] / r["simplified"] + 5e-4)


def main() -> None:
    p = common.parser(__doc__, rival=True)
    p.add_argument("--channels", type=float, default=0.3, metavar="R", help="fraction removed (default 0.3)")
    p.add_argument("--round-to", type=int, action="append", metavar="N", help="repeatable (default 8 and 1)")
    p.add_argument("--recover", metavar="METHOD", help="as the command's; none takes minutes instead of an hour")
    p.add_argument("--only", default="*", metavar="GLOB", help="only models whose name matches")
    p.add_argument("--as-shipped", action="store_true", help="the light models without weights, as they are")
    p.add_argument("--no-onnxsim", action="store_true", help="leave the rival out")
    args = p.parse_args()
    round_tos: list[int] = args.round_to or [8, 1]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        folder = Path(name)
        files = [*sorted((common.assets(args.assets) / "models").glob("*.onnx")), *sorted(LIGHT.glob("*.onnx"))]
        for path in (f for f in files if fnmatch(f.stem, args.only)):
            common.say(path.stem)
            source = path
            if path.parent == LIGHT and not args.as_shipped:
                source = folder / path.name
                with_weights(str(path), str(source))
            row: dict[str, Any] = {"name": path.stem, "ours": {}, "onnxsim": {"message": "not run"}}
            for n in round_tos:
                row["ours"][str(n)] = ours(source, folder / "pruned.onnx", args.channels, n, args.recover)
            if not args.no_onnxsim:
                row["onnxsim"] = rival(common.rival_python(args.onnxsim), source, folder, args.channels)
            row["more"] = more(row, min(round_tos))
            rows.append(row)
            if source != path:
                source.unlink()
    head = "".join(f" left_@{n} MACs_@{n}" for n in round_tos)
    table = common.columns(
        f"--channels {args.channels:g}; parameters and MACs left at --round-to N",
        f"-model M{head} error pinned simplify onnxsim more -top_reason",
    )
    for row in rows:
        table.add_row(*cells(row, round_tos))
    emit_summary(args, table, rows, round_tos)


def emit_summary(args: Any, table: Any, rows: list[dict[str, Any]], round_tos: list[int]) -> None:
    lines = []
    for n in round_tos:
        states = Counter(r["ours"][str(n)]["status"] for r in rows)
        least = sum(more(r, n) for r in rows)
        lines.append(
            f"--round-to {n}: shrunk {states['shrunk']} of {len(rows)}, broken {states['broken']}, unchanged "
            f"{states['nothing'] + states['unchanged']}, at least as many removed as onnxsim on {least}"
        )
    failed = [f"{r['name']}: onnxsim: {r['onnxsim']['message']}" for r in rows if r["onnxsim"].get("message")]
    invalid = [
        f"{r['name']}: onnxsim's result does not load: {r['onnxsim']['invalid']}"
        for r in rows
        if r["onnxsim"].get("invalid")
    ]
    broken = [
        f"{r['name']} @{n}: {o['message']}" for r in rows for n, o in r["ours"].items() if o["status"] != "shrunk"
    ]
    common.emit(args, [table, *lines, *broken, *failed, *invalid], {"rows": rows, "summary": lines})


if __name__ == "__main__":
    main()
