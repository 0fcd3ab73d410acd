"""The one timer: models in turn, medians, and how sure a ratio is."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.runtime.session import Feeds, session

MIN_ROUNDS, MAX_ROUNDS = 5, 10_000
RESAMPLES = 500  # of the bootstrap
SESSIONS = 0.01  # by which sessions of one file may differ
LEAST_ROUNDS = 10  # below which no interval is given


@dataclass(frozen=True)
class Latency:
    """median and fastest run, in seconds; runs: how many were timed; threads: intra-op threads; ratio: this median over
    the first model's; interval: 90% interval of the ratio, None for the first model and below LEAST_ROUNDS runs."""

    median: float
    fastest: float
    runs: int
    threads: int
    ratio: float = 1.0
    interval: tuple[float, float] | None = None

    @property
    def faster(self) -> bool | None:
        """Than the first model: whether the whole interval says so, beyond what two sessions of one file may differ by;
        None where it does not tell."""
        if self.interval is None:
            return None
        low, high = self.interval
        return True if high < 1 - SESSIONS else False if low > 1 + SESSIONS else None


def timed(
    sessions: Sequence[ort.InferenceSession],
    feeds: Sequence[Feeds],
    seconds: float,
    *,
    least: int = MIN_ROUNDS,
    most: int = MAX_ROUNDS,
    warm_up: float = 0.1,
) -> Array:
    """Seconds of every run, `(rounds, models)`: each round runs every model once, the next begins one model later, so
    that whatever else the machine does hits all alike.

    feeds: of each session; seconds: time budget, all sessions together; least, most: rounds; warm_up: part of the
    budget that goes to rounds before, at least two.
    Raises ORT_ERRORS where a model does not run.
    """
    start = time.perf_counter()
    warm = 0
    while warm < 2 or (time.perf_counter() - start < warm_up * seconds and warm < most):
        for s, f in zip(sessions, feeds, strict=True):
            s.run(None, f)
        warm += 1
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < least or (time.perf_counter() < end and len(rounds) < most):
        row = [0.0] * len(sessions)
        for k in range(len(sessions)):
            m = (k + len(rounds)) % len(sessions)
            before = time.perf_counter()
            sessions[m].run(None, feeds[m])
            row[m] = time.perf_counter() - before
        rounds.append(row)
    return np.array(rounds)


def ratio_interval(a: Array, b: Array, *, level: float = 0.9, seed: int = 0) -> tuple[float, float]:
    """Where median(a) / median(b) lies, for a and b of shape `(rounds,)` that were timed side by side.

    level: how sure, between 0 and 1; seed: of the bootstrap. It draws rounds, both of a pair together, in circular
    blocks of sqrt(rounds), for noise lasts longer than one round (Politis and Romano, A circular block-resampling
    procedure for stationary data, 1992).
    """
    rng = np.random.default_rng(seed)
    n = len(a)
    block = max(1, math.isqrt(n))
    ratios = []
    for _ in range(RESAMPLES):
        starts = rng.integers(0, n, -(-n // block))
        rows = ((starts[:, None] + np.arange(block)) % n).ravel()[:n]
        ratios.append(float(np.median(a[rows]) / np.median(b[rows])))
    low, high = np.quantile(ratios, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def latency(
    models: Mapping[str, Model],
    feeds: Mapping[str, Feeds],
    *,
    threads: int = 0,
    seconds: float = 2.0,
    least: int = MIN_ROUNDS,
    most: int = MAX_ROUNDS,
) -> dict[str, Latency]:
    """Time the models one run each in turn; the first is what the others are compared with.

    threads: intra-op threads, 0 for all cores; seconds: time budget for all of them together; least, most: runs each,
    after two or more to warm up. Raises ORT_ERRORS where a model does not load or run.
    """
    used = threads or cores()
    with ExitStack() as stack:
        sessions = [stack.enter_context(session(model, threads=threads)) for model in models.values()]
        times = timed(sessions, [feeds[name] for name in models], seconds, least=least, most=most)
    first = times[:, 0]
    out = {}
    for k, name in enumerate(models):
        t = times[:, k]
        median = float(np.median(t))
        interval = ratio_interval(t, first) if k and len(t) >= LEAST_ROUNDS else None
        out[name] = Latency(median, float(t.min()), len(t), used, median / float(np.median(first)), interval)
    return out


def cpu() -> str:
    """The CPU's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "unknown CPU"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
