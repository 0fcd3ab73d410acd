"""Transformers pruned with few words, and what results say, for the tests of every kind of group."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune
from models.forms import TRANSFORMERS, feeds
from models.forms.form import VOCAB
from models.nets import Array
from onnxprune import Analysis, Result
from onnxprune.graph.io import load
from onnxprune.structure.groups import analyze

VIT = Path(__file__).parent.parent / "models" / "digits_vit.onnx"
FORMS = [pytest.param(f, id=name) for name, f in TRANSFORMERS.items()]
KINDS = ("channels", "layers", "experts", "heads", "head_dim", "hidden")
Keeps = dict[str, np.ndarray[Any, np.dtype[np.bool_]]]


@cache
def proto(name: str) -> ModelProto:
    return TRANSFORMERS[name].build()


@cache
def analysis_of(name: str, whole_layers: bool = False) -> Analysis:
    """Of a form, shared by all tests: it is never changed."""
    return analyze(load(proto(name)), allow_io_change=TRANSFORMERS[name].io, whole_layers=whole_layers)


def prune(source: Any, **options: Any) -> Result:
    source = proto(source) if isinstance(source, str) and source in TRANSFORMERS else source
    recover = {} if "plan" in options else {"recover": "none"}
    chosen: dict[str, Any] = {"measure": False, **recover} | options
    return onnxprune.prune(source, **chosen)


def error(result: Result) -> float:
    assert result.report.verification is not None
    return result.report.verification.error


def kept(result: Result) -> dict[str, int]:
    """Units that are left, of the groups that were cut."""
    return {name: int(keep.sum()) for name, keep in result.plan.keep.items()}


def cut_kinds(result: Result) -> set[str]:
    return {result.analysis.group(name).kind for name in result.plan.keep}


def weights_of(source: ModelProto) -> dict[str, Array]:
    """Initializers and constants by name."""
    found = {t.name: numpy_helper.to_array(t) for t in source.graph.initializer}
    constants = {n.output[0]: n.attribute[0].t for n in source.graph.node if n.op_type == "Constant"}
    return found | {name: numpy_helper.to_array(t) for name, t in constants.items()}


def replaced(source: ModelProto, arrays: dict[str, Array]) -> ModelProto:
    """A copy with other numbers in some initializers."""
    copy = ModelProto()
    copy.CopyFrom(source)
    for t in copy.graph.initializer:
        if t.name in arrays:
            t.CopyFrom(numpy_helper.from_array(np.asarray(arrays[t.name], np.float32), t.name))
    return copy


def samples(name: str, n: int = 64) -> dict[str, Array]:
    """Random inputs, `n` samples; masks are one."""
    rng, out = np.random.default_rng(0), {}
    for key, x in feeds(proto(name)).items():
        shape = (n, *x.shape[1:])
        if x.dtype.kind == "f":
            out[key] = rng.standard_normal(shape).astype(x.dtype)
        elif "mask" in key:
            out[key] = np.ones(shape, x.dtype)
        else:
            out[key] = rng.integers(0, 2 if "type" in key else 6 if "position" in key else VOCAB, shape, x.dtype)
    return out


def gone(analysis: Analysis, *names: str) -> Keeps:
    return {name: np.zeros(analysis.group(name).size, bool) for name in names}


def random_keeps(analysis: Analysis, seed: int) -> Keeps:
    """Of every group some units stay, by chance, as its constraints allow; a third of the groups stays whole."""
    rng, out = np.random.default_rng(seed), {}
    for g in analysis.groups:
        if g.blocks or rng.random() < 1 / 3:
            continue
        if g.kind == "layers":
            out[g.name] = rng.random(1) < 0.6
            continue
        count = int(rng.integers(g.least, g.size + 1))
        out[g.name] = np.isin(np.arange(g.size), rng.choice(g.size, count, replace=False))
    return out


def counts(groups: Any, keeps: Keeps) -> Array:
    return np.array([keeps[g.name].sum() if g.name in keeps else g.size for g in groups], float)


def parameters(model: ModelProto) -> int:
    """All floats of the file."""
    return sum(w.size for w in weights_of(model).values() if w.dtype.kind == "f")


def kl(a: Array, b: Array) -> float:
    """KL divergence of the classes, mean over all rows."""
    p, q = (np.exp(y - y.max(-1, keepdims=True)) for y in (a.astype(np.float64), b.astype(np.float64)))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return float((p * np.log(p / q)).sum(-1).mean())
