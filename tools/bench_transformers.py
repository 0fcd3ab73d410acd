"""Accuracy or perplexity of trained transformers against what is removed: by weights, with data, and refitted.

    python tools/bench_transformers.py --folder transformers --json rows.json
    python tools/bench_transformers.py --models sst2_encoder --sections mixtures,latency

Models and data come from tools/train_transformers.py: NAME.onnx (models/) or NAME.torchscript.onnx, and
DATA_calibration.npz without labels and DATA_heldout.npz with them, in --folder or models/; what is missing is skipped
with a line. Sections:

ratios       every kind alone and heads with feed-forward width: `magnitude` and `path` are without data, `data` is what
             the calibration samples choose, `refitted` with least squares as well
knee         the cut of heads and feed-forward width at which magnitude loses 10 points (or 20% in perplexity), and
             what of that we lose; and 30% of both
mixtures     kinds alone and together under a target for the MACs
importances  half of the heads by several importances
latency      onnxruntime, in turn with the original; with one thread processor time

Next to accuracy or perplexity stands, in brackets, the divergence from the original's outputs (KL, nats).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import common

MODELS = {"sst2_encoder": "sst2", "shakespeare_decoder": "shakespeare", "cifar_vit": "cifar"}  # name -> its data
SECTIONS = ("ratios", "knee", "mixtures", "importances", "latency")
WAYS: dict[str, dict[str, Any]] = {
    "magnitude": {"importance": "l2", "recover": "none"},
    "path": {"importance": "path", "recover": "none"},
    "data": {"calibration": True, "recover": "none"},
    "refitted": {"calibration": True},
}
BOTH = ("heads", "channels")
CUTS: tuple[tuple[tuple[str, ...], tuple[float, ...]], ...] = (
    (("heads",), (0.25, 0.5, 0.75)),
    (("channels",), (0.1, 0.2, 0.3, 0.5)),
    (("hidden",), (0.1, 0.2, 0.3, 0.5)),
    (("layers",), (0.125, 0.25, 0.375)),
    (BOTH, (0.1, 0.2, 0.3, 0.5)),
)
MIXTURES = (
    ("heads",), ("channels",), ("hidden",), ("layers",), BOTH, (*BOTH, "layers"),
    ("heads", "head_dim", "channels", "hidden", "layers"),
)  # fmt: skip
TARGETS = ("70%", "50%")
IMPORTANCES: dict[str, dict[str, Any]] = {
    "path": {"importance": "path"},
    "wanda": {"importance": "wanda"},
    "obs": {"importance": "obs"},
    "head_loss": {"importance": "head_loss"},
    "head_loss, 2 steps": {"importance": "head_loss", "steps": 2},
}
POINTS, PERPLEXITY = 0.10, 0.20  # what magnitude loses at the cut that is looked for
PART = 0.2  # of that, what we may lose


@dataclass(frozen=True)
class Outcome:
    """A pruned model. left: of the MACs; value, kl: metric and divergence from the original's outputs on the held-out
    samples; file: where it was written."""

    left: float
    value: float
    kl: float
    seconds: float
    file: str
    problem: str = ""


class Bench:
    """One model and its data; what was made once is not made again."""

    def __init__(
        self, path: Path, calibration: Path, heldout: Path, samples: int, folder: Path, cuts: str = "*"
    ) -> None:
        import onnxprune
        from onnxprune.calibration.read import read
        from onnxprune.evaluation.metrics import METRICS, Evaluator, default_metric

        self.path, self.calibration, self.folder, self.cuts = path, calibration, folder, cuts
        self.name = path.name.partition(".")[0]
        folder.mkdir(exist_ok=True)
        model = onnxprune.load(path)
        found = read(heldout, model, samples=samples or None, option="held-out samples")
        if found.labels is None:  # one per token
            with np.load(heldout) as file:
                found = replace(found, labels=file["labels"][list(found.chosen)].astype(np.int64))
        self.metric = default_metric(model, found)
        self.perplexity = METRICS[self.metric].unit == "nats"
        self.evaluator = Evaluator(model, found, self.metric)
        self.before = self.score(model)[0]
        self.count, self.first = found.count, found.feeds([0])
        self.made: dict[str, Outcome] = {}

    def score(self, model: Any) -> tuple[float, float]:
        """The metric, and the mean divergence from the original's outputs."""
        from onnxprune.evaluation.damage import Damage

        e = self.evaluator
        parts, reference = e.outputs(model), dict(e.reference[0].outputs)
        return e.of(parts).value, Damage(reference, e.classes)(dict(parts[0].outputs))

    def cut(self, amounts: dict[str, Any], **options: Any) -> Outcome:
        """Prune and score. calibration=True stands for the model's own data."""
        import onnxprune

        key = json.dumps([amounts, options], sort_keys=True)
        if key in self.made:
            return self.made[key]
        if options.pop("calibration", False):
            options |= {"calibration": self.calibration, "cache": self.folder}
        start, file = time.perf_counter(), self.folder / f"{len(self.made)}.onnx"
        try:
            result = onnxprune.prune(self.path, **amounts, **options, verify=False, measure=False, seed=0)
            seconds = time.perf_counter() - start
            assert result.model is not None
            result.save(file)
            left = result.report.after.macs / result.report.before.macs
            out = Outcome(left, *self.score(result.model), seconds, str(file))
        except onnxprune.UserError as e:
            out = Outcome(math.nan, math.nan, math.nan, time.perf_counter() - start, "", str(e))
        self.made[key] = out
        what = " ".join(f"{k}={v}" for k, v in (amounts | options).items() if k not in ("calibration", "cache"))
        data = " with data" if "calibration" in options else ""
        common.say(f"{self.name} {what}{data}: {out.problem or f'{self.cell(out)}, {out.seconds:.0f} s'}")
        return out

    def show(self, value: float) -> str:
        """The metric: the perplexity of a loss."""
        return f"{math.exp(min(value, 50)):.3f}" if self.perplexity else f"{value:.4f}"

    def cell(self, out: Outcome) -> str:
        """Metric and divergence."""
        return "-" if out.problem else f"{self.show(out.value)} ({out.kl:.4f})"

    def lost(self, value: float) -> float:
        """Accuracy that is gone, as a fraction; of perplexity the rise over the original's."""
        return math.exp(value - self.before) - 1 if self.perplexity else self.before - value

    @property
    def limit(self) -> float:
        return PERPLEXITY if self.perplexity else POINTS

    def head(self, what: str) -> str:
        """Title of a table."""
        word = "perplexity" if self.perplexity else self.metric
        return f"{self.name}, {what}: original {word} {self.show(self.before)}, {self.count} held-out samples"


def both(r: float) -> dict[str, Any]:
    return dict.fromkeys(BOTH, r)


def row(bench: Bench, section: str, label: str, way: str, out: Outcome) -> dict[str, Any]:
    facts = {k: v for k, v in asdict(out).items() if k != "file"}
    return {
        "model": bench.name, "section": section, "cut": label, "way": way, "metric": bench.metric,
        "before": bench.before, "lost": bench.lost(out.value), **facts,
    }  # fmt: skip


def knee(bench: Bench) -> tuple[list[Any], list[dict[str, Any]]]:
    """The smallest cut of heads and feed-forward width at which magnitude loses much, and what we lose there."""
    r, steps = 0.0, [round(0.05 * k, 2) for k in range(1, 18)]
    for r in steps:
        plain = bench.cut(both(r), **WAYS["magnitude"])
        if plain.problem or bench.lost(plain.value) >= bench.limit:
            break
    table, rows = common.columns(bench.head("what magnitude loses"), "-cut MACs_left " + " ".join(WAYS)), []
    lines = []
    for cut in dict.fromkeys((r, 0.3)):
        made = {way: bench.cut(both(cut), **options) for way, options in WAYS.items()}
        rows += [row(bench, "knee", f"{cut:.0%}", way, out) for way, out in made.items()]
        lost = {way: bench.lost(out.value) for way, out in made.items()}
        left = f"{made['magnitude'].left:.1%}"
        table.add_row(f"heads and channels {cut:g}", left, *(bench.cell(out) for out in made.values()))
        table.add_row("lost", "", *(f"{loss:.2%}" for loss in lost.values()))
        if cut == r:
            text = f"at {r:g} magnitude loses {lost['magnitude']:.2%}"
            part = lost["refitted"] / lost["magnitude"] if lost["magnitude"] >= bench.limit else None
            verdict = "at most" if part is not None and part <= PART else "more than"
            never = f" only, no cut costs {bench.limit:.0%}"
            lines.append(text + (never if part is None else f" and refitted {part:.2f} of that, {verdict} a fifth"))
    return [table, *lines], rows


def ratios(bench: Bench) -> tuple[list[Any], list[dict[str, Any]]]:
    table, rows = common.columns(bench.head("ratios"), "-cut MACs_left " + " ".join(WAYS)), []
    problems = []
    for kinds, amounts in CUTS:
        for r in amounts:
            label = f"{' + '.join(kinds)} {r:.3g}"
            if not fnmatch.fnmatchcase(label, bench.cuts):
                continue
            made = {way: bench.cut(dict.fromkeys(kinds, r), **options) for way, options in WAYS.items()}
            rows += [row(bench, "ratios", label, way, out) for way, out in made.items()]
            table.add_row(label, f"{made['magnitude'].left:.1%}", *(bench.cell(out) for out in made.values()))
            problems += [f"{label}: {out.problem}" for out in made.values() if out.problem]
    return [table, *dict.fromkeys(problems)], rows


def mixed(bench: Bench, kinds: Sequence[str], target: str) -> Outcome:
    return bench.cut(dict.fromkeys(kinds, "auto"), target_macs=target, calibration=True)


def mixtures(bench: Bench) -> tuple[list[Any], list[dict[str, Any]]]:
    table, rows = common.columns(bench.head("mixtures"), "-target -kinds MACs_left metric lost seconds"), []
    lines = []
    for target in TARGETS:
        found = {" + ".join(kinds): mixed(bench, kinds, target) for kinds in MIXTURES}
        for label, out in found.items():
            rows.append(row(bench, "mixtures", label, target, out))
            cells = [f"{out.left:.1%}", bench.cell(out), f"{bench.lost(out.value):.2%}", f"{out.seconds:.0f}"]
            table.add_row(target, label, *(["-"] * 4 if out.problem else cells))
            if out.problem:
                lines.append(f"{target}, {label}: {out.problem}")
        good = {label: (bench.lost(out.value), out.kl) for label, out in found.items() if not out.problem}
        for what, some in (("kind alone", False), ("mixture", True)):
            chosen = {label: loss for label, loss in good.items() if ("+" in label) == some}
            if chosen:
                best = min(chosen, key=lambda label: chosen[label])
                lines.append(f"{target}, best {what}: {best}, {chosen[best][0]:.2%} lost, KL {chosen[best][1]:.4f}")
    return [table, *lines], rows


def importances(bench: Bench) -> tuple[list[Any], list[dict[str, Any]]]:
    table, rows = common.columns(bench.head("half of the heads"), "-importance not_refitted refitted seconds"), []
    lines = []
    for label, options in IMPORTANCES.items():
        made = [bench.cut({"heads": 0.5}, calibration=True, **options, **more) for more in ({"recover": "none"}, {})]
        rows += [row(bench, "importances", label, way, o) for way, o in zip(("none", "refitted"), made, strict=True)]
        table.add_row(label, *(bench.cell(o) for o in made), f"{made[1].seconds:.0f}")
        lines += [f"{label}: {o.problem}" for o in made if o.problem]
    return [table, *dict.fromkeys(lines)], rows


def latency(bench: Bench, seconds: float) -> tuple[list[Any], list[dict[str, Any]]]:
    cuts = {"heads + channels 0.3": bench.cut(both(0.3), calibration=True)}
    for kinds in (BOTH, MIXTURES[-1]):
        cuts[f"{' + '.join(kinds)}, {TARGETS[-1]}"] = mixed(bench, kinds, TARGETS[-1])
    files = {"original": str(bench.path)} | {label: out.file for label, out in cuts.items() if out.file}
    table, rows = common.columns(bench.head("latency"), "-cut MACs_left threads batch ms over_original"), []
    for batch in (1, 16):
        feeds = {name: np.repeat(x, batch, 0) for name, x in bench.first.items()}
        for threads in (1, 2):
            jobs = {label: (common.session(file, threads), feeds) for label, file in files.items()}
            times = common.interleaved(jobs, seconds=seconds, cpu=threads == 1)
            for label, median in times.items():
                left = cuts[label].left if label in cuts else 1.0
                ratio = median / times["original"]
                table.add_row(label, f"{left:.1%}", str(threads), str(batch), f"{1e3 * median:.3f}", f"{ratio:.2f}")
                rows.append({
                    "model": bench.name, "section": "latency", "cut": label, "threads": threads, "batch": batch,
                    "seconds": median, "ratio": ratio, "left": left,
                })  # fmt: skip
    return [table], rows


def find(names: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """The first file of one of the names."""
    return next((f / n for n in names for f in folders if (f / n).is_file()), None)


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir(), "transformers"), metavar="DIR", help="of the exports"
    )
    p.add_argument("--models", default=",".join(MODELS), metavar="A,B", help="default: all")
    p.add_argument("--sections", default=",".join(SECTIONS), metavar="A,B", help="default: all")
    p.add_argument("--cuts", default="*", metavar="GLOB", help="rows of ratios, as 'layers*' (default: all)")
    p.add_argument("--limit", type=int, default=1000, metavar="N", help="held-out samples at most (default 1000)")
    p.add_argument("--seconds", type=float, default=6.0, help="of timing per batch and thread count (default 6)")
    args = p.parse_args()
    asked: dict[str, list[str]] = {}
    for option, known in (("models", tuple(MODELS)), ("sections", SECTIONS)):
        asked[option] = getattr(args, option).split(",")
        for name in asked[option]:
            if name not in known:
                raise SystemExit(f"--{option} {name}: unknown; choose of {', '.join(known)}")
    run(args, asked["models"], asked["sections"])


def run(args: argparse.Namespace, models: Sequence[str], sections: Sequence[str]) -> None:
    rows: list[dict[str, Any]] = []
    tables: list[Any] = []
    folders = [common.REPO / "models", args.folder]
    work = {"ratios": ratios, "knee": knee, "mixtures": mixtures, "importances": importances}
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as temporary:
        for name in models:
            data = MODELS[name]
            path = find([f"{name}.onnx", f"{name}.torchscript.onnx"], folders)
            calibration, heldout = (find([f"{data}_{part}.npz"], folders) for part in ("calibration", "heldout"))
            if path is None or calibration is None or heldout is None:
                tables.append(f"{name}: skipped, its file or its data are in none of {', '.join(map(str, folders))}")
                continue
            bench = Bench(path, calibration, heldout, args.limit, Path(temporary) / name, args.cuts)
            for section in sections:
                if section == "latency":
                    more, found = latency(bench, args.seconds)
                else:
                    more, found = work[section](bench)
                tables += more
                rows += found
                if args.json:  # the rows so far, should something end the run
                    args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    common.emit(args, tables, rows)


if __name__ == "__main__":
    main()
