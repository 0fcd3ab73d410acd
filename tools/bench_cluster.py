"""Accuracy and size of models with clustered weights, alone and after pruning, without training.

    python tools/bench_cluster.py                                   # models/ and, where present, the shared assets
    python tools/bench_cluster.py --only 'digits_*' --k 16 --k 64
    python tools/bench_cluster.py --only resnet20 --limit 500 --per tensor

Every weight that `cluster` finds, embeddings included, gets a codebook of k values: one for the weight, or one for each
output channel. Pruned rows: that part of the weights set to zero by magnitude, without data, then clustered per tensor.

Columns: score of models/score.py or of the assets' score.py (top-1, of tokens for the language model, of pixels for the
mask); bits in the file per clustered weight, codebooks included; largest relative squared error of a weight; size of
the file, and after deflate (zip), as parts of the dense file.

mobilenetv2 was quantised to 8 bits when it was trained: k = 256 loses nothing of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import common
import onnxprune
from onnxprune.formats.codebook import PER, cluster, zipped_bytes
from onnxprune.graph.io import Model, load, save

MODELS = common.REPO / "models"
REAL = ("resnet20_cifar10", "mobilenetv2_100_224_imagenet")
KS = (16, 32, 256)
SPARSITIES = (0.5, 0.7, 0.8)
PRUNED_KS = (16, 32)
Score = Callable[[Path], float]


def _own(scorer: Any, name: str, variant: Path) -> float:
    return float(scorer.score(variant, name))


def _real(scorer: Any, x: Any, y: Any, name: str, variant: Path) -> float:
    return float(scorer.top1(str(variant), x, y, name))


def tasks(only: str, folder: Path | None, limit: int) -> Iterator[tuple[Path, Score]]:
    """Models and what scores a variant of each."""
    own = common.module(MODELS / "score.py")
    for path in sorted(MODELS.glob("*.onnx")):
        if fnmatch(path.stem, only) and ".pruned" not in path.name:
            yield path, partial(_own, own, path.stem)
    try:
        root = common.assets(folder)
    except SystemExit:
        return
    real = common.module(root / "score.py")
    for name in REAL:
        path = root / "models" / f"{name}.onnx"
        if fnmatch(name, only) and path.is_file():
            x, y = real.data(str(root), name)
            rows = np.arange(0, len(x), max(1, len(x) // limit))
            yield path, partial(_real, real, x[rows], y[rows], name)


def variants(path: Path, args: Any) -> Iterator[tuple[float, int, str, Model, float, float]]:
    """Sparsity, k (0: not clustered), per, model, bits per weight, largest error."""
    dense = load(path)
    yield 0.0, 0, "", dense, 32.0, 0.0
    for k in args.k or KS:
        for per in args.per or PER:
            yield 0.0, k, per, *clustered(dense, k, per)
    for sparsity in args.sparsity or SPARSITIES:
        pruned = onnxprune.prune(path, sparsity=sparsity, format="dense", measure=False).model
        assert pruned is not None
        yield sparsity, 0, "", pruned, 32.0, 0.0
        for k in args.k or PRUNED_KS:
            yield sparsity, k, "tensor", *clustered(pruned, k, "tensor")


def clustered(model: Model, k: int, per: Any) -> tuple[Model, float, float]:
    try:
        model, rows, _ = cluster(model, k=k, per=per)
    except onnxprune.errors.NothingToPrune:
        return model, 32.0, 0.0
    bits = 8 * sum(r.after_bytes for r in rows) / sum(r.size for r in rows)
    return model, bits, max(r.error for r in rows)


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument("--only", default="*", metavar="GLOB", help="models by name")
    p.add_argument("--k", type=int, action="append", help=f"values per codebook (default: {KS}, pruned {PRUNED_KS})")
    p.add_argument("--per", choices=PER, action="append", help="default: both")
    p.add_argument("--sparsity", type=float, action="append", help=f"default: {SPARSITIES}")
    p.add_argument("--limit", type=int, default=1000, help="pictures of an asset's data (default: %(default)s)")
    args = p.parse_args()
    names = "-model pruned k -per score bits/weight error MB of_dense zip_MB zip_of_dense"
    table, out = common.columns("Clustered weights", names), []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "variant.onnx"
        for path, score in tasks(args.only, args.assets, args.limit):
            whole = path.stat().st_size
            for sparsity, k, per, model, bits, error in variants(path, args):
                save(model, file)
                size, zipped, value = file.stat().st_size, zipped_bytes(file), score(file)
                row = (path.stem, f"{sparsity:.0%}", str(k or "-"), per or "-", f"{value:.4f}", f"{bits:.2f}",
                       f"{error:.1e}", f"{size / 1e6:.3f}", common.percent(size, whole), f"{zipped / 1e6:.3f}",
                       common.percent(zipped, whole))  # fmt: skip
                table.add_row(*row)
                out.append(dict(zip(names.replace("-m", "m").replace("-p", "p").split(), row, strict=True)))
                common.say(" ".join(row))
    common.emit(args, [table], out)


if __name__ == "__main__":
    main()
