"""Optimizers over one flat buffer: a kernel each, which updates parameters and state in place.

Every kernel takes `w` (parameters), `g` (gradients) and `keep` (false: stays as it is), float32 and bool `(n,)`, and
float32 state of the same length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.kernels.compiled import njit

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
Number = np.float32


@njit(error_model="numpy")
def _sgd(w: Array, g: Array, keep: Array, m: Array, rate: Number, momentum: Number, decay: Number) -> None:
    for i in range(w.size):
        moment = momentum * m[i] + g[i] + decay * w[i]
        after = w[i] - rate * moment
        m[i] = moment if keep[i] else m[i]  # a choice, and no branch: vectors of the machine
        w[i] = after if keep[i] else w[i]


@njit(error_model="numpy")
def _adam(
    w: Array, g: Array, keep: Array, m: Array, v: Array, rate: Number, step: int, decay: Number, decoupled: bool
) -> None:  # fmt: skip
    a, b = np.float32(1 / (1 - BETA1**step)), np.float32(1 / (1 - BETA2**step))
    b1, b2, epsilon, one = np.float32(BETA1), np.float32(BETA2), np.float32(EPSILON), np.float32(1)
    pull, shrunk = (np.float32(0), one - rate * decay) if decoupled else (decay, one)
    for i in range(w.size):
        x = g[i] + pull * w[i]
        first, second = b1 * m[i] + (one - b1) * x, b2 * v[i] + (one - b2) * x * x
        after = shrunk * w[i] - rate * (a * first) / (np.sqrt(b * second) + epsilon)
        m[i] = first if keep[i] else m[i]
        v[i] = second if keep[i] else v[i]
        w[i] = after if keep[i] else w[i]


@njit()
def follow(average: Array, w: Array, share: float) -> None:
    """Move a running average, in place, by this share of the way to `w`."""
    s = np.float32(share)
    for i in range(w.size):
        average[i] += s * (w[i] - average[i])


class Optimizer:
    """A rule of `OPTIMIZERS` with its state. momentum: of sgd; decay: of the weights, per step and unit of the rate."""

    def __init__(self, name: str, size: int, *, momentum: float = 0.9, decay: float = 0.0) -> None:
        self.row = OPTIMIZERS[name]
        self.momentum, self.decay = np.float32(momentum), np.float32(decay)
        self.state = [np.zeros(size, np.float32) for _ in range(self.row.states)]
        self.step = 0

    def update(self, w: Array, g: Array, keep: Array, rate: float) -> None:
        """One step, in place."""
        self.step += 1
        self.row.update(self, w, g, keep, np.float32(rate))

    def reset(self) -> None:
        """Forget the steps so far."""
        self.step = 0
        for s in self.state:
            s.fill(0)


@dataclass(frozen=True)
class Row:
    """help: for the user; states: buffers that it keeps; update: one step."""

    help: str
    states: int
    update: Callable[[Optimizer, Array, Array, Array, np.float32], None]


def _row_sgd(o: Optimizer, w: Array, g: Array, keep: Array, rate: np.float32) -> None:
    _sgd(w, g, keep, o.state[0], rate, o.momentum, o.decay)


def _row_adam(o: Optimizer, w: Array, g: Array, keep: Array, rate: np.float32) -> None:
    _adam(w, g, keep, o.state[0], o.state[1], rate, o.step, o.decay, False)


def _row_adamw(o: Optimizer, w: Array, g: Array, keep: Array, rate: np.float32) -> None:
    _adam(w, g, keep, o.state[0], o.state[1], rate, o.step, o.decay, True)


OPTIMIZERS: dict[str, Row] = {
    "adam": Row("Adam (Kingma and Ba 2015), decay added to the gradient", 2, _row_adam),
    "adamw": Row("Adam with decoupled decay (Loshchilov and Hutter 2019)", 2, _row_adamw),
    "sgd": Row("gradient descent with momentum", 1, _row_sgd),
}
