"""Registries: what a row says of itself holds, and the help of an option lists exactly the rows.

A new row is covered without a word here; where it needs a value, by one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import onnxprune
from conftest import ROOT
from models.nets import build, normal
from onnxprune import OptionError
from onnxprune.cli.command import DECLARED
from onnxprune.recovery.recover import RECOVERIES, Recovering


def net() -> ModelProto:
    """Vectors of 6, through two layers of 8 units with a normalisation between them, to five classes."""
    nodes = """a = Gemm(x, w0, b0) n = BatchNormalization(a, s, t, m, v) r = Relu(n)
               h = Gemm(r, w1, b1) q = Relu(h) y = Gemm(q, w2, b2)"""
    shapes = {"w0": (6, 8), "b0": (8,), "w1": (8, 8), "b1": (8,), "w2": (8, 5), "b2": (5,), "m": (8,)}
    weights: dict[str, Any] = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    norm = {"s": 1 + normal(8) * 0.1, "t": normal(8) * 0.1, "v": np.full(8, 1.5)}
    return build(nodes, "float[n,6]", "float[n,5]", **weights, **norm)  # type: ignore[no-any-return]


X = normal(80, 6, seed=9).astype(np.float32)


def prune(**options: Any) -> onnxprune.Result:
    return onnxprune.prune(net(), **{"measure": False, "threads": 1, **options})


def arrays(result: onnxprune.Result) -> list[bytes]:
    return sorted(t.SerializeToString(deterministic=True) for t in onnxprune.to_proto(result.model).graph.initializer)


def assert_listed(option: str, rows: Iterable[str], page: bool = True) -> None:
    """The option takes exactly these names, and docs/options.md has a table of them with a line each."""
    rows, o = list(rows), DECLARED[option]
    assert list(o.choices) == rows
    assert all(o.choices.values())
    text = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    table = text.partition(f"\n## {o.flag}\n")[2].partition("\n## ")[0]
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == rows


# Recoveries


def test_recoveries_are_listed() -> None:
    assert_listed("recover", RECOVERIES)
    assert {name: row.help for name, row in RECOVERIES.items()} == DECLARED["recover"].choices


@pytest.mark.parametrize("name", RECOVERIES)
def test_recovery(name: str) -> None:
    row = RECOVERIES[name]
    plain = arrays(prune(channels=0.5, importance="l2", recover="none"))
    if row.needs_data:
        with pytest.raises(OptionError, match=f"^recover='{name}' needs data: calibration=FOLDER"):
            prune(channels=0.5, importance="l2", recover=name)
        found = prune(channels=0.5, importance="l2", allocate="uniform", recover=name, calibration=X)
    else:
        found = prune(channels=0.5, importance="l2", recover=name)
    assert found.plan.recover == name
    assert (arrays(found) != plain) == row.cuts
    assert row.instant == (not row.cuts and not row.zeros)


@pytest.mark.parametrize("name", RECOVERIES)
def test_recovery_of_zeros(name: str) -> None:
    row = RECOVERIES[name]
    if row.cuts and not row.zeros:
        with pytest.raises(OptionError, match=r"makes up for units that went; for zeros choose least-squares or none$"):
            prune(sparsity=0.5, recover=name, calibration=X)
        return
    plain = arrays(prune(sparsity=0.5, solver="magnitude", recover="none", calibration=X, format="dense"))
    found = arrays(prune(sparsity=0.5, solver="magnitude", recover=name, calibration=X, format="dense"))
    assert (found != plain) == row.zeros == Recovering(name).zeros
