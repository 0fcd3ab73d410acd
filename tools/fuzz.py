"""Prune thousands of random graphs and check every law; failures are made small and kept.

    python tools/fuzz.py --graphs 5000 --seed 0
    python tools/fuzz.py --replay fuzz-failures/17.json

Graph number k is drawn from seed k. A failure is minimised by shortening and lowering the numbers that it was drawn
from, then saved as `k.onnx` with `k.json`, which holds the numbers, the cut and the error.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import onnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from models.random_graphs import Draws, build
from test_random_graphs import Cut, Outcome, check, draw_cut

Numbers = list[int]
MINIMISE = 60.0  # seconds for one failure


def recorded(seed: int) -> tuple[onnx.ModelProto, Cut, Numbers]:
    """Graph and cut of a seed, and the numbers that they were drawn from."""
    rng, numbers = random.Random(seed), Numbers()

    def integer(low: int, high: int) -> int:
        numbers.append(rng.randint(low, high))
        return numbers[-1]

    cut = draw_cut(Draws(integer))
    return build(Draws(integer)), cut, numbers


def replayed(numbers: Numbers) -> tuple[onnx.ModelProto, Cut]:
    """Graph and cut from recorded numbers; past their end, the smallest that is allowed."""
    left = iter(numbers)
    draw = Draws(lambda low, high: min(max(next(left, low), low), high))
    cut = draw_cut(draw)
    return build(draw), cut


def signature(e: BaseException) -> str:
    """Kind of a failure: where it was raised, and its text without names and numbers."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if "onnxprune" in f.filename or "tests" in f.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else ""
    text = re.sub(r"[\w.]*\d[\w.:+-]*", "#", str(e))
    return f"{type(e).__name__} {where} {text[:60]}"


def failure(numbers: Numbers) -> str:
    """Signature of the failure that these numbers lead to; empty for none, and where they make no graph."""
    try:
        model, cut = replayed(numbers)
    except Exception:
        return ""
    try:
        check(model, cut)
    except Exception as e:
        return signature(e)
    return ""


def minimise(numbers: Numbers, fails: Callable[[Numbers], bool], seconds: float = MINIMISE) -> Numbers:
    """Shorter and smaller numbers that still fail."""
    end = time.perf_counter() + seconds
    best = numbers
    improved = True
    while improved and time.perf_counter() < end:
        improved = False
        size = len(best) // 2
        while size:
            at = 0
            while at < len(best) and time.perf_counter() < end:
                shorter, zeroed = best[:at] + best[at + size :], best[:at] + [0] * size + best[at + size :]
                if fails(shorter):
                    best, improved = shorter, True
                    continue
                if any(best[at : at + size]) and fails(zeroed):
                    best, improved = zeroed, True
                at += size
            size //= 2
        for k, v in enumerate(best):
            for lower in (v // 2, v - 1):
                if 0 <= lower < v and time.perf_counter() < end and fails([*best[:k], lower, *best[k + 1 :]]):
                    best, improved = [*best[:k], lower, *best[k + 1 :]], True
                    break
    return best


def fails_as(kind: str, numbers: list[int]) -> bool:
    return failure(numbers) == kind


def fuzz(
    seeds: range, *, seconds: float, folder: Path, console: Console
) -> tuple[list[Outcome], dict[str, list[int]], float]:
    """Check the graphs of all seeds; returns outcomes, failures as signature -> seeds, and the seconds taken."""
    outcomes: list[Outcome] = []
    failures: dict[str, list[int]] = {}
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    start = time.perf_counter()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("graphs", total=len(seeds))
        for seed in seeds:
            model, cut, numbers = recorded(seed)
            try:
                outcomes.append(check(model, cut))
            except Exception as e:
                kind = signature(e)
                failures.setdefault(kind, []).append(seed)
                console.print(f"[red]{seed}[/red] {kind}", highlight=False)
                if len(failures[kind]) == 1:  # one small example of each kind is enough
                    numbers = minimise(numbers, partial(fails_as, kind))
                keep(folder, seed, numbers, kind)
            progress.update(task, advance=1, description=f"graphs, {sum(map(len, failures.values()))} failures")
            if time.perf_counter() - start > seconds:
                break
    return outcomes, failures, time.perf_counter() - start


def keep(folder: Path, seed: int, numbers: Numbers, kind: str) -> None:
    """Write what a failure can be replayed from."""
    folder.mkdir(parents=True, exist_ok=True)
    model, cut = replayed(numbers)
    onnx.save(model, folder / f"{seed}.onnx")
    text = json.dumps({"seed": seed, "kind": kind, "cut": asdict(cut), "numbers": numbers})
    (folder / f"{seed}.json").write_text(text + "\n")


def report(outcomes: list[Outcome], failures: dict[str, list[int]], seconds: float, console: Console) -> None:
    """The tables at the end."""
    ops: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for o in outcomes:
        ops.update(o.ops)
        cut.update(o.cut)
        kinds.update(o.groups)
    failed = sum(map(len, failures.values()))
    total = len(outcomes) + failed
    table = Table(title=f"{total} graphs in {seconds:.0f} s, {total / seconds:.1f} per second")
    table.add_column("what")
    table.add_column("count", justify="right")
    rows = [
        ("graphs with something removed", sum(o.removed > 0 for o in outcomes)),
        *((f"groups of kind {kind}", n) for kind, n in kinds.most_common()),
        ("units removed", sum(o.removed for o in outcomes)),
        ("largest error, of 1e-9", round(max((o.error for o in outcomes if not o.shaky), default=0) * 1e9)),
        ("outputs that are rounding noise", sum(o.shaky for o in outcomes)),
        ("failures", failed),
    ]
    for name, n in rows:
        table.add_row(name, f"{n:,}")
    console.print(table)
    operators = Table(title=f"{len(ops)} operators: in the graphs, and touching an axis that shrank")
    for _ in range(4):
        operators.add_column("operator")
        operators.add_column("all", justify="right")
        operators.add_column("cut", justify="right")
    cells = [(name.removeprefix("com.microsoft::"), str(n), str(cut[name])) for name, n in ops.most_common()]
    for k in range(0, len(cells), 4):
        operators.add_row(*[text for cell in cells[k : k + 4] for text in cell])
    console.print(operators)
    reasons = Table(title="why weights stay, other than inputs and outputs")
    reasons.add_column("reason")
    reasons.add_column("count", justify="right")
    for reason, n in sum((o.pinned for o in outcomes), Counter()).most_common(15):
        reasons.add_row(reason, f"{n:,}")
    console.print(reasons)
    for kind, seeds in failures.items():
        console.print(f"[red]{len(seeds)}[/red] {kind}: seeds {seeds[:8]}", highlight=False)


def main() -> int:
    """Exit code 1 where a law is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long")
    parser.add_argument("--folder", type=Path, default=Path("fuzz-failures"), help="where failures go")
    parser.add_argument("--replay", type=Path, help="a .json of that folder: raise its failure again")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    if args.replay:
        model, cut = replayed(json.loads(args.replay.read_text())["numbers"])
        for node in model.graph.node:
            console.print(f"{node.op_type}({', '.join(node.input)}) -> {', '.join(node.output)}", highlight=False)
        console.print(cut, check(model, cut))
        return 0
    seeds = range(args.seed, args.seed + args.graphs)
    outcomes, failures, seconds = fuzz(seeds, seconds=60 * args.minutes, folder=args.folder, console=console)
    report(outcomes, failures, seconds, console)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
