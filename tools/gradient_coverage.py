"""Which weights of which models get a gradient, and what cuts the others off.

    python tools/gradient_coverage.py [MODEL.onnx | FOLDER ...]     default: models/ of the repository

For every model: operators that have no rule, how many weights of a floating-point type get a gradient of the sum of the
squares of all outputs, and why the others have none: an operator on their way that has no rule (or none for its form),
or none through which anything flows back.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import onnxprune
from onnxprune.errors import OnnxPruneError, UserError
from onnxprune.gradient.backward import Backward
from onnxprune.gradient.differentiate import chosen
from onnxprune.gradient.rules import GRADIENTS, NO_GRADIENTS
from onnxprune.gradient.walk import differentiate
from onnxprune.graph.node import opsets, walk_all


def squares(b: Backward) -> str:
    """The sum of the squares of all outputs that are numbers."""
    names = [o.name for o in b.edit.graph.output if b.is_float(o.name)]
    if not names:
        raise UserError("no output is a number")
    return b.add([b.sum(b.op("Mul", y, y), range(b.rank(y))) for y in names])


def report(path: Path) -> None:
    """Print what a model has."""
    model = onnxprune.load(path)
    b = Backward(model)
    ops = {n.op for n in walk_all(b.model.proto.graph, opsets(b.model.proto))}
    lacking = sorted(ops - set(GRADIENTS) - set(NO_GRADIENTS))
    weights = chosen(b.model, None)
    found = differentiate(b, squares(b), weights)
    print(f"{path.name}: {len(found.of)} of {len(weights)} weights, {len(found.unread)} not read by any way")
    if lacking:
        print("   no rule:", " ".join(lacking))
    for why, count in Counter(found.blocked.values()).most_common():
        print(f"   {count} cut off by {why}")
    if found.unread:
        print("   not read:", " ".join(found.unread[:8]))


def main() -> None:
    """Every model that is named, or lies in a folder that is."""
    named = [Path(a) for a in sys.argv[1:]] or [Path(__file__).parents[1] / "models"]
    for path in [p for n in named for p in (sorted(n.glob("*.onnx")) if n.is_dir() else [n])]:
        try:
            report(path)
        except OnnxPruneError as e:
            print(f"{path.name}: {e}")


if __name__ == "__main__":
    main()
