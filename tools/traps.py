"""Every file of the assets' traps through the command line, with limits of time and address space.

A failure: a crash, a hang, a traceback, exit code 1 (ours), an error of more than one line, a result that the checker
or onnxruntime refuses though they accept the original.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import common


def accepted(path: str) -> list[str]:
    """What accepts the file: onnx's checker, onnxruntime."""
    import onnx

    out = []
    try:
        onnx.checker.check_model(path)
        out.append("checker")
    except Exception:  # the checker raises whatever it stumbles over
        pass
    if not common.runs(path):
        out.append("onnxruntime")
    return out


def judge(done: common.Run, before: list[str], after: list[str] | None) -> str:
    """Why it is a failure, "" if it is none."""
    lines = done.err.strip().splitlines()
    if done.code is None or done.code < 0:
        return done.problem
    if "Traceback" in done.err:
        return "traceback"
    if done.code != 0:
        if done.code != 2:
            return f"exit {done.code}"
        return f"error of {len(lines)} lines" if len(lines) != 1 else ""
    if after is None:
        return "no result"
    lost = [a for a in before if a not in after]
    return f"refused by {', '.join(lost)}" if lost else ""


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument("--seconds", type=float, default=60, help="time limit (default 60)")
    p.add_argument("--gigabytes", type=float, default=4, help="address-space limit (default 4)")
    p.add_argument(
        "options", nargs="*", metavar="OPTION", help="options of onnxprune, after -- (default --channels 0.3)"
    )
    args = p.parse_args()
    options = args.options or ["--channels", "0.3"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        for path in sorted((common.assets(args.assets) / "traps").iterdir()):
            common.say(path.name)
            out = Path(folder) / "out.onnx"
            out.unlink(missing_ok=True)
            command = [sys.executable, "-m", "onnxprune", path, *options, "-o", out]
            done = common.run(command, seconds=args.seconds, gigabytes=args.gigabytes)
            before = common.call("traps:accepted", path).value or []
            after = (common.call("traps:accepted", out).value or []) if out.is_file() else None
            rows.append(
                {
                    "file": path.name,
                    "code": done.code,
                    "seconds": done.seconds,
                    "stderr": done.err,
                    "original": before,
                    "result": after,
                    "failure": judge(done, before, after),
                }
            )
    table = common.columns("traps", "-file exit seconds -valid -first_line_of_standard_error -failure")
    folder_of = common.assets(args.assets) / "traps"
    for r in rows:
        valid = "-" if r["result"] is None else "yes" if "checker" in r["result"] else "no"
        if valid == "no" and "checker" not in r["original"]:
            valid = "no, nor is the original"
        first = (r["stderr"].strip().splitlines() or [""])[0].replace(f"{folder_of / r['file']}: ", "")
        table.add_row(
            r["file"],
            str(r["code"]),
            f"{r['seconds']:.1f}",
            valid,
            first.removeprefix("onnxprune: ")[:160],
            r["failure"],
        )
    failures = sum(bool(r["failure"]) for r in rows)
    common.emit(args, [table, f"{len(rows)} traps, {failures} failures"], rows)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
