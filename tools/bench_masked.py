"""A step of training with weights that are fixed at zero: products by their entries against dense ones.

    python tools/bench_masked.py                    # two minutes of one core

Columns: processor time of a session (forward, loss, backward) and of a whole step of Adam on 64 samples, one thread,
the least of several in turn, dense and by entries, and the ratio; products that a kernel of ours computes. digits_vit
with every limit taken away shows why its narrow layers are left dense.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import common
import onnxprune
from networks import Network, lenet_300_100
from onnxprune.training import native

ROUNDS, STEPS, BATCH = 12, 2, 64
SHARES = (0.905, 0.95, 0.99)  # of zeros, at random places


def wide(width: int) -> Any:
    """784-width-width-10."""
    net = Network()
    x = net.node("Flatten", "x")
    for name, inputs in (("f1", 784), ("f2", width)):
        x = net.node("Relu", net.gemm(x, name, inputs, width))
    return net.model(["batch", 1, 28, 28], net.gemm(x, "f3", width, 10))


def cases() -> Iterator[tuple[str, Any, Any, float]]:
    """Name, model, samples, and the limit of `native.WIDE`."""
    rng = np.random.default_rng(0)
    pictures = {"x": rng.standard_normal((256, 1, 28, 28)).astype(np.float32), "labels": rng.integers(0, 10, 256)}
    yield "LeNet-300-100", lenet_300_100(), pictures, native.WIDE
    yield "784-1024-1024-10", wide(1024), pictures, native.WIDE
    yield "784-2048-2048-10", wide(2048), pictures, native.WIDE
    models = common.REPO / "models"
    yield "digits_vit", models / "digits_vit.onnx", dict(np.load(models / "digits_heldout.npz")), 0


def ready(model: Any, data: Any, share: float, limit: float) -> Any:
    """A training with masks, one step of which is done."""
    native.WIDE = limit
    t = onnxprune.Trainer(model, data, steps=1000, init=0, batch_size=BATCH, threads=1, learning_rate=1e-3)
    rng = np.random.default_rng(1)
    places = t.run.step.layout.places
    t.mask({n: rng.random(s) >= share for n, (_, s) in places.items() if len(s) == 2})
    t.step()
    return t


def timed(run: Any) -> float:
    """Milliseconds of processor time of one of several runs."""
    start = time.process_time()
    for _ in range(STEPS):
        run()
    return 1e3 * (time.process_time() - start) / STEPS


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument("--model", action="append", help="repeatable (default: all)")
    args: argparse.Namespace = p.parse_args()
    table = common.columns("steps with masks", "-network zeros products session_ms sparse ratio step_ms sparse ratio")
    rows = []
    for name, model, data, limit in cases():
        if args.model and name not in args.model:
            continue
        for share in SHARES:
            both = [ready(model, data, share, x) for x in (float("inf"), limit)]
            sessions = [t.run.step._train for t in both]
            least = np.full((2, 2), np.inf)
            for _ in range(ROUNDS):
                for k, (t, (session, bound)) in enumerate(zip(both, sessions, strict=True)):
                    found = timed(lambda s=session, b=bound: s.run_with_iobinding(b)), timed(t.step)
                    least[k] = np.minimum(least[k], found)
            (dense, dense_step), (sparse, sparse_step) = least
            products = both[1].run.step.products
            rows.append({"network": name, "zeros": share, "products": products, "ms": least.tolist()})
            table.add_row(
                name, f"{share:.1%}", str(products), f"{dense:.2f}", f"{sparse:.2f}", f"{dense / sparse:.2f}",
                f"{dense_step:.2f}", f"{sparse_step:.2f}", f"{dense_step / sparse_step:.2f}",
            )  # fmt: skip
            common.say(f"{name}, {share:.1%}: {dense_step / sparse_step:.2f}")
    common.emit(args, [table], rows)


if __name__ == "__main__":
    main()
