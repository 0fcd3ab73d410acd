"""What stands for a model: a plan and a table say by it whose they are."""

from __future__ import annotations

import hashlib

import numpy as np

from onnxprune.graph.io import Model, to_proto, unfolded
from onnxprune.graph.protos import graphs

PIECES, PIECE = 256, 4096  # of a large weight that a fingerprint reads: how many, and their bytes


def exact_digest(model: Model) -> str:
    """64 hexadecimal digits of all that a model is, every weight included, as it would be stored."""
    return hashlib.sha256(to_proto(model).SerializeToString(deterministic=True)).hexdigest()


def fingerprint(model: Model) -> str:
    """16 hexadecimal digits that stand for a graph and its weights, wherever these lie; of weights above a megabyte
    evenly spread pieces are read."""
    model = unfolded(model)
    digest = hashlib.sha256()
    for graph in graphs(model.proto.graph):
        digest.update(repr([v.name for v in (*graph.input, *graph.output)]).encode())
        for node in graph.node:
            words = [node.op_type, node.domain, *node.input, "->", *node.output]
            words += sorted(
                f"{a.name} {a.f} {a.i} {a.s!r} {list(a.ints)} {list(a.floats)} {list(a.strings)} {list(a.t.dims)} "
                f"{a.t.raw_data.hex()} {list(a.t.float_data)} {list(a.t.int32_data)} {list(a.t.int64_data)}"
                for a in node.attribute
            )
            digest.update("\0".join(words).encode() + b"\1")
    for name in sorted(model.weights):
        w = model.weights[name]
        digest.update(f"{name} {w.dtype} {w.shape}".encode())
        if w.dtype.kind == "O":
            digest.update(repr(w.tolist()).encode())
            continue
        flat = w.reshape(-1)
        if w.nbytes <= PIECES * PIECE:
            digest.update(np.ascontiguousarray(flat).tobytes())
            continue
        step = PIECE // w.itemsize
        for start in np.linspace(0, flat.size - step, PIECES).astype(np.int64):
            digest.update(np.ascontiguousarray(flat[start : start + step]).tobytes())
    return digest.hexdigest()[:16]
