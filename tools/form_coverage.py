"""Transformers, one row per form in which they are exported: what is found and removed of each kind, next to onnxsim.

    python tools/form_coverage.py --forms                  the hand-written forms of tests/models/forms/
    python tools/form_coverage.py FOLDER                   *.onnx of tools/transformer_zoo.py, or any other

Columns heads to layers: groups found per kind, then for each kind the parameters left and the verification error
(pruned equals masked, over the largest output) of a cut of this kind alone: a quarter, or half where a quarter would
keep every unit of a group; heads together with 30% of the channels. `+`: inputs and outputs may change (key-value
caches); `*`: with the input shapes of the folder's index.json, as the guessed ones do not run. A row fails alone, with
limits on its time; what stopped it stands below the table, as does what stopped heads where none were found.

onnxsim: parameters left after simplification, `apply_attention_head_pruning` and `apply_structured_pruning` with the
same fractions, as a share of what simplification left: after heads alone, and after both. `untouched`: both functions
changed nothing. `broken`: its file is refused by onnxruntime, fails when it runs, or gives outputs of other shapes or
ones that are not finite, where the original does not; `invalid`: it runs, but fails onnx's full check, which the
original passes; `failed`: no file. difference: of the outputs to the original's, over the largest of these; it includes
the cut itself, which is no error.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import common

KINDS = ("heads", "head_dim", "hidden", "channels", "experts", "layers")
CUTS = ("heads", "hidden", "head_dim", "layers", "experts")
STATES = ("changed", "untouched", "invalid", "broken", "failed")  # of what onnxsim does
RATIO, HALF, CHANNELS = 0.25, 0.5, 0.3
GIGABYTES = 8
Row = dict[str, Any]
Shapes = dict[str, list[int]] | None


@dataclass(frozen=True)
class Source:
    """A model: shapes with which it runs where those guessed may not, and the arrays (.npz) to run it on, if known."""

    name: str
    path: Path
    shapes: Shapes = None
    feeds: Path | None = None


def found(path: str, shapes: Shapes) -> Row:
    """Groups per kind, the ratio for each, what stops heads. Inputs and outputs may change, and input shapes are given,
    where heads need it."""
    from onnxprune import analyze
    from onnxprune.allocation.choose import nothing_found

    analysis, io, given = analyze(path), False, False
    reason = ""
    if not analysis.of_kind("heads"):
        reason = nothing_found(analysis, ["heads"]).removeprefix(f"{path}: ")
        for io, given in ((True, False), (False, True), (True, True)):
            other = analyze(path, input_shape=tuples(shapes) if given else None, allow_io_change=io)
            if other.of_kind("heads"):
                analysis, reason = other, ""
                break
        else:
            io = given = False
    sizes = {kind: [g.size for g in analysis.of_kind(kind)] for kind in KINDS}
    ratios = {k: RATIO if all(round(n * (1 - RATIO)) < n for n in of) else HALF for k, of in sizes.items()}
    ratios["layers"] = RATIO if len(sizes["layers"]) * RATIO >= 1 else HALF
    return {"groups": sizes, "ratios": ratios, "io": io, "given": given, "reason": reason}


def tuples(shapes: Shapes) -> dict[str, tuple[int, ...]] | None:
    return {name: tuple(s) for name, s in shapes.items()} if shapes else None


def cut(path: str, amounts: dict[str, Any], io: bool, given: bool, shapes: Shapes) -> Row:
    """Prune without recovery and verify; plain data."""
    from onnxprune import OptionError, prune

    def done(given: dict[str, tuple[int, ...]] | None) -> Row:
        # blocks go by what they change in the stream, one by one
        chosen: dict[str, Any] = {} if set(amounts) == {"layers"} else {"importance": "l2", "round_to": 1}
        report = prune(
            path, **amounts, **chosen, recover="none", measure=False, allow_io_change=io,
            input_shape=given or {},
        ).report  # fmt: skip
        assert report.verification
        return {
            "parameters": [report.before.parameters, report.after.parameters],
            "error": report.verification.error,
            "notes": [*report.notes, *report.verification.notes],
            "shapes": given is not None,
        }

    try:
        try:
            return done(tuples(shapes) if given else None)
        except OptionError as e:
            if given or not shapes or "cannot run the original" not in str(e):
                raise
            return done(tuples(shapes))
    except Exception as e:  # one row of a table
        return {"problem": f"{type(e).__name__}: {' '.join(str(e).removeprefix(f'{path}: ').split())}"}


def ours(path: str, shapes: Shapes) -> Row:
    """What is found, and a cut of each kind that is; a line of JSON after each, so that a timeout loses the last."""
    row = found(path, shapes)
    row["cuts"] = {}
    for kind in CUTS:
        if row["groups"][kind]:
            amounts = {kind: row["ratios"][kind]}
            if kind == "heads" and row["groups"]["channels"]:
                amounts["channels"] = CHANNELS
            row["cuts"][kind] = cut(path, amounts, row["io"], row["given"], shapes)
        print(json.dumps(row), flush=True)
    return row


def compared(original: str, result: str, feeds: str | None, shapes: Shapes) -> Row:
    """Whether a result of onnxsim is valid where the original is, and how far its outputs are from the original's."""
    from onnxprune import analyze
    from onnxprune.runtime.feeds import random_feeds

    if feeds:
        given: dict[str, Any] = dict(np.load(feeds))
    elif sizes := tuples(shapes):
        analysis = analyze(original, input_shape=sizes)
        given = dict(random_feeds(analysis.model, analysis.coupling.shapes, sizes, seed=0))
    else:
        given = common.feeds(original)

    narrowed = False

    def outputs(path: str) -> dict[str, Any]:
        nonlocal narrowed
        s, fed = common.session(path), {}
        for i in s.get_inputs():  # a cache of fewer heads is declared as such
            fits = tuple(slice(d if isinstance(d, int) and d > 0 else None) for d in i.shape)
            fed[i.name] = given[i.name][fits]
            narrowed |= fed[i.name].shape != given[i.name].shape
        return {o.name: np.asarray(v) for o, v in zip(s.get_outputs(), s.run(None, fed), strict=True)}

    def finite(values: Mapping[str, Any]) -> bool:
        return all(np.isfinite(v).all() for v in values.values() if v.dtype.kind == "f")

    def invalid(path: str) -> str:
        try:
            onnx.checker.check_model(path, full_check=True)
        except Exception as e:  # the checker's and shape inference's
            return " ".join(str(e).split())[:120]
        return ""

    expected = outputs(original)
    try:
        values = outputs(result)
    except Exception as e:  # onnxruntime's exceptions share no base class
        return {"status": "broken", "message": " ".join(str(e).split())[:200]}
    other = [k for k, v in expected.items() if k not in values or values[k].shape != v.shape]
    if other and not narrowed:
        return {"status": "broken", "message": f"outputs of other shapes: {', '.join(other)[:80]}"}
    if finite(expected) and not finite(values):
        return {"status": "broken", "message": "outputs that are not finite"}
    if (problem := invalid(result)) and not invalid(original):
        return {"status": "invalid", "message": f"onnx's checker: {problem}"}
    far = [
        float(np.nanmax(np.abs(values[k] - v)) / max(float(np.nanmax(np.abs(v))), 1e-12))
        for k, v in expected.items()
        if v.dtype.kind == "f" and v.size and k not in other
    ]
    return {"status": "", "message": "", "difference": max(far, default=0.0)}


def last_line(run: common.Run) -> Any:
    """The last line of JSON that a process printed, None if it printed none."""
    for line in reversed(run.out.strip().splitlines()):
        with contextlib.suppress(ValueError):
            return json.loads(line)
    return None


def rival(python: Path, source: Source, folder: Path, heads: float, seconds: float) -> Row:
    """What onnxsim does to the file; `status` is one of STATES."""
    out = folder / "onnxsim.onnx"
    out.unlink(missing_ok=True)
    worker: list[str | Path] = [python, common.TOOLS / "onnxsim_worker.py", source.path, out, str(CHANNELS), str(heads)]
    run = common.run(worker, seconds=seconds, gigabytes=GIGABYTES)
    if run.problem:
        return {"status": "failed", "message": run.problem}
    left: list[int] = last_line(run)["parameters"]
    given = (source.path, out, source.feeds, source.shapes)
    answer = common.call("form_coverage:compared", *given, seconds=seconds, gigabytes=GIGABYTES)
    if answer.problem:
        return {"status": "failed", "parameters": left, "message": f"not compared: {answer.problem}"}
    status = answer.value["status"] or ("untouched" if left[0] == left[2] else "changed")
    return {**answer.value, "status": status, "parameters": left}


def row_of(source: Source, python: Path | None, folder: Path, seconds: float) -> Row:
    answer = common.call("form_coverage:ours", source.path, source.shapes, seconds=seconds, gigabytes=GIGABYTES)
    row: Row = answer.value or last_line(answer.run) or {"groups": {}, "cuts": {}, "io": False, "reason": ""}
    row |= {"name": source.name, "problem": answer.problem, "seconds": answer.run.seconds}
    if python:
        heads = row.get("ratios", {}).get("heads", RATIO)
        row["onnxsim"] = rival(python, source, folder, heads, seconds)
    return row


def in_folder(folder: Path) -> Iterator[Source]:
    """Every *.onnx; with an index.json those that run, with their inputs."""
    index: dict[str, Row] = {}
    if (folder / "index.json").is_file():
        index = {r["file"]: r for r in json.loads((folder / "index.json").read_text()) if r.get("file")}
    for path in sorted(folder.glob("*.onnx")):
        row = index.get(path.name, {})
        if "does not run" in row.get("problem", ""):
            common.say(f"{path.name}: left out, onnxruntime does not run it")
            continue
        feeds = folder / row["feeds"] if row.get("feeds") and (folder / row["feeds"]).is_file() else None
        shapes = {name: i["shape"] for name, i in row.get("inputs", {}).items()}
        yield Source(path.name.removesuffix(".onnx"), path, shapes or None, feeds)


def hand_written(folder: Path) -> Iterator[Source]:
    """The forms of tests/models/forms/."""
    sys.path.insert(0, str(common.REPO / "tests"))
    from models.forms import TRANSFORMERS, feeds

    for name, form in TRANSFORMERS.items():
        model, path, arrays = form.build(), folder / f"{name}.onnx", folder / f"{name}.npz"
        onnx.save(model, path)
        given: dict[str, Any] = feeds(model)
        np.savez(arrays, **given)
        yield Source(name, path, {k: list(v.shape) for k, v in given.items()}, arrays)
        path.unlink()


def problems(row: Row) -> list[str]:
    """What went wrong on our side, per line."""
    lines = [f"{kind}: {c['problem']}" for kind, c in row["cuts"].items() if "problem" in c]
    return [row["problem"], *lines] if row["problem"] else lines


def cells(row: Row) -> list[str]:
    shaped = any(c.get("shapes") for c in row["cuts"].values())
    cell = [row["name"] + "+" * row["io"] + "*" * shaped]
    cell += [str(len(row["groups"].get(kind, ()))) for kind in KINDS]
    for kind in CUTS:
        c = row["cuts"].get(kind)
        if c is None:
            cell.append("-")
        else:
            cell.append("failed" if "problem" in c else f"{common.percent(*c['parameters'][::-1])} {c['error']:.0e}")
    r = row.get("onnxsim")
    if r is None:
        return [*cell, "-", "-", "-"]
    left = r.get("parameters", [None, None, None])
    cell += [common.percent(left[1], left[0])]
    both = common.percent(left[2], left[0])
    cell += [{"changed": both, "invalid": f"{both} invalid"}.get(r["status"], r["status"])]
    return [*cell, "-" if r.get("difference") is None else f"{r['difference']:.0e}"]


def summary(rows: list[Row]) -> list[str]:
    cuts = [c for r in rows for c in r["cuts"].values()]
    errors = [c["error"] for c in cuts if "error" in c]
    verified = sum(bool(r["cuts"]) and not problems(r) for r in rows)
    lines = [
        f"{len(rows)} rows; heads found in {sum(bool(r['groups'].get('heads')) for r in rows)}; every cut verified in "
        f"{verified}; {len(errors)} of {len(cuts)} cuts verified, worst error {max(errors, default=0.0):.1e}"
    ]
    states = Counter(r["onnxsim"]["status"] for r in rows if "onnxsim" in r)
    if states:
        named = ", ".join(f"{states[s]} {s}" for s in STATES)
        of_heads = sum(p[1] < p[0] for r in rows if (p := r.get("onnxsim", {}).get("parameters")))
        lines.append(f"onnxsim: {named}; heads removed in {of_heads}")
    return lines


def main() -> None:
    p = common.parser(__doc__, rival=True)
    p.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="a folder of *.onnx")
    p.add_argument("--forms", action="store_true", help="the hand-written forms of tests/models/forms/")
    p.add_argument("--only", action="append", metavar="GLOB", help="only models whose name matches; repeatable")
    p.add_argument("--no-onnxsim", action="store_true", help="leave the rival out")
    p.add_argument("--seconds", type=float, default=60, metavar="S", help="limit for a model (default 60)")
    args = p.parse_args()
    if not args.forms and args.folder is None:
        p.error("give a FOLDER, or --forms")
    python = None if args.no_onnxsim else common.rival_python(args.onnxsim)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name, contextlib.suppress(KeyboardInterrupt):
        scratch = Path(name)
        forms = hand_written(scratch) if args.forms else ()
        for source in chain(forms, in_folder(args.folder) if args.folder else ()):
            if any(fnmatch(source.name, g) for g in args.only or ["*"]):
                rows.append(row_of(source, python, scratch, args.seconds))
                common.say(" ".join(cells(rows[-1])))
    table = common.columns(
        f"parameters left and error; onnxruntime {ort.__version__}",
        f"-form {' '.join(KINDS)} {' '.join(f'-{k}_cut' for k in CUTS)} sim_heads sim_both difference",
    )
    for row in rows:
        table.add_row(*cells(row))
    ends = summary(rows)
    ours_ = [f"{r['name']}: {line}" for r in rows for line in problems(r)]
    none = [f"{r['name']}: no heads: {r['reason']}" for r in rows if r["reason"]]
    theirs = [f"{r['name']}: onnxsim: {m}" for r in rows if (m := r.get("onnxsim", {}).get("message"))]
    common.emit(args, [table, *ours_, *none, *theirs, *ends], {"rows": rows, "summary": ends})


if __name__ == "__main__":
    main()
