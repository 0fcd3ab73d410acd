"""Outputs of classifiers: which output it is, and its rows as probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import graph_inputs
from onnxprune.runtime.session import Feeds

IGNORED = -100  # label of a token that does not count


def class_rows(y: Array) -> Array:
    """Scores of classes, `(n, classes)`: a row per sample or, of `(samples, positions, classes)`, per position."""
    widest = max(y.shape[1:], default=1)
    return y.reshape(-1, widest if y.size == len(y) * widest else y.shape[-1])


def are_probabilities(rows: Array) -> bool:
    """Whether rows of classes hold probabilities, not scores."""
    return bool((rows >= 0).all() and np.allclose(rows.sum(1, dtype=np.float64), 1, atol=1e-3))


def probabilities(y: Array) -> Array:
    """Rows of scores or of probabilities as probabilities, float64 `(n, classes)`."""
    y = class_rows(y).astype(np.float64)
    if are_probabilities(y):
        return y
    top = y.max(1, keepdims=True)
    e = np.exp(y - np.where(np.isfinite(top), top, np.nan))  # of what is no number, no number
    return np.asarray(e / e.sum(1, keepdims=True))


def classifier_output(model: Model, outputs: dict[str, Array], samples: int, tokens: int = 0) -> str:
    """The one float output that holds a row of classes per sample or per token; "" where the model is no classifier.

    tokens: labels that each of the samples has: then an output `(samples, tokens, classes)` holds them. Without, those
    of a table of words do, as others may be hidden states.
    """
    floats = [n for n, y in outputs.items() if y.dtype.kind == "f"]
    tables = {w.shape[0] for w in model.weights.values() if w.ndim == 2 and w.dtype.kind in "fV"}
    ids = any(i.type.tensor_type.elem_type in (6, 7) for i in graph_inputs(model))
    spoken = [n for n in floats if outputs[n].ndim == 3 and min(outputs[n].shape[1:]) > 1]
    words = [n for n in spoken if ids and outputs[n].shape[2] in tables and len(outputs[n]) == samples]
    if len(words) == 1 and outputs[words[0]].shape[2] not in _widths(model):
        return words[0]
    labelled = [n for n in floats if outputs[n].ndim == 3 and outputs[n].shape[:2] == (samples, tokens)]
    if tokens and len(labelled) == 1:
        return labelled[0]
    if len(floats) != 1:
        return ""
    y = outputs[floats[0]]
    flat = y.shape[0] == samples and y.ndim >= 2 and y.size == samples * max(y.shape[1:]) and y.size > samples
    inputs = {tuple(d.dim_value for d in i.type.tensor_type.shape.dim)[1:] for i in graph_inputs(model)}
    return floats[0] if flat and y.shape[1:] not in inputs else ""  # shaped as an input: a reconstruction


def _widths(model: Model) -> set[int]:
    """Lengths of the vectors that normalisations scale by: widths of hidden states."""
    norms = {i for n in model.proto.graph.node if n.op_type.endswith("Normalization") for i in n.input[1:3]}
    return {w.shape[-1] for name, w in model.weights.items() if name in norms and w.ndim == 1}


def joined(batches: Iterable[Feeds], names: Sequence[str]) -> dict[str, Array]:
    """Outputs of all batches, joined along axis 0."""
    parts: dict[str, list[Array]] = {n: [] for n in names}
    for batch in batches:
        for n in names:
            parts[n].append(np.array(batch[n], ndmin=1))  # a copy: see Stream.advance
    return {n: _join(each) for n, each in parts.items()}


def joined_alike(
    batches: Iterable[Feeds], names: Sequence[str], alike: Sequence[Sequence[int]] = ()
) -> list[tuple[list[int], dict[str, Array]]]:
    """Outputs of all batches, those of one shape but for axis 0 joined along it; and which batches these are.

    alike: batches that are joined, of outputs that others are compared with.
    """
    of = {k: at for at, which in enumerate(alike) for k in which}
    kinds: dict[object, tuple[list[int], list[Feeds]]] = {at: ([], []) for at in range(len(alike))}
    for k, batch in enumerate(batches):
        held = {n: np.array(batch[n], ndmin=1) for n in names}
        kind = of[k] if alike else tuple(held[n].shape[1:] for n in names)
        which, parts = kinds.setdefault(kind, ([], []))
        which.append(k)
        parts.append(held)
    return [(which, {n: _join([p.pop(n) for p in parts]) for n in names}) for which, parts in kinds.values()]


def _join(parts: list[Array]) -> Array:
    """The parts one after the other, each given up as soon as it is copied; flat where samples differ in size."""
    if len({p.shape[1:] for p in parts}) > 1:
        parts[:] = [p.ravel() for p in parts]
    out = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), np.result_type(*parts))
    at = 0
    while parts:
        part = parts.pop(0)
        out[at : at + len(part)] = part
        at += len(part)
    return out
