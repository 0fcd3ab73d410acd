"""What onnxruntime's own profile says of single nodes."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxprune.graph.io import Model
from onnxprune.runtime.session import Feeds, session

KERNEL = "_kernel_time"  # how the name of a node's event ends
FUSED = ("_nchwc", "/MatMulAddFusion", "_MatMul_With_Add", "_token")  # what fusions add to a node's name
PROFILED = 5  # runs


@dataclass(frozen=True)
class NodeTime:
    """seconds per run spent in one node itself, its bodies' nodes excepted; calls per run."""

    name: str
    op: str
    seconds: float
    calls: float


@dataclass(frozen=True)
class Profile:
    """Mean over `runs` profiled runs on `threads` threads; seconds: of a whole run, with what is outside the nodes."""

    threads: int
    runs: int
    seconds: float
    nodes: tuple[NodeTime, ...]

    @property
    def operators(self) -> dict[str, tuple[float, float]]:
        """Operator type -> seconds and calls per run."""
        out: dict[str, tuple[float, float]] = {}
        for n in self.nodes:
            seconds, calls = out.get(n.op, (0.0, 0.0))
            out[n.op] = seconds + n.seconds, calls + n.calls
        return out


@dataclass(frozen=True)
class _Event:
    """One call of a node's kernel. begin, length: in microseconds; thread: that it began on."""

    name: str
    op: str
    thread: int
    begin: float
    length: float


Events = Sequence[Mapping[str, Any]]  # Chrome's trace events, as onnxruntime writes them, in microseconds


def events_of(session: ort.InferenceSession) -> Events:
    """What a session made with `profile` has written; its profiling ends."""
    events: Events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8", errors="replace"))
    return events


def _parsed(events: Events) -> tuple[list[tuple[float, float]], list[_Event]]:
    """Begin and length of every run, in microseconds, in the order of time, and the nodes' events as they came."""
    runs = sorted((e["ts"], e["dur"]) for e in events if e["name"] == "model_run")
    nodes = [
        _Event(e["name"].removesuffix(KERNEL), e["args"]["op_name"], e["tid"], e["ts"], e["dur"])
        for e in events
        if e.get("cat") == "Node" and e["name"].endswith(KERNEL)
    ]
    return runs, nodes


def read_profile(events: Events, *, runs: int, threads: int) -> Profile | None:
    """Self time of every node over the last `runs` runs of an onnxruntime profile; None where no run is in it.

    A node's event encloses those of its bodies: the time of an If of 10 us around a Conv of 8 us is 2 us.
    threads: intra-op threads that the session had.
    """
    whole, nodes = _parsed(events)
    whole = whole[-runs:]
    if not whole:
        return None
    begin, end = whole[0][0], sum(whole[-1])
    self_times: dict[tuple[str, str], float] = defaultdict(float)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    stack: list[tuple[float, tuple[str, str]]] = []  # (end, node) of the events that are open
    counted = [e for e in reversed(nodes) if begin <= e.begin <= end]  # an outer node is written after its bodies'
    for e in sorted(counted, key=lambda e: (e.thread, e.begin, -e.length)):
        node = e.name, e.op
        while stack and e.begin >= stack[-1][0]:
            stack.pop()
        if stack:
            self_times[stack[-1][1]] -= e.length
        self_times[node] += e.length
        calls[node] += 1
        stack.append((e.begin + e.length, node))
    scale = 1e-6 / len(whole)
    times = [NodeTime(*node, max(0.0, us) * scale, calls[node] / len(whole)) for node, us in self_times.items()]
    times.sort(key=lambda n: -n.seconds)
    return Profile(threads, len(whole), sum(dur for _, dur in whole) * scale, tuple(times))


def node_times(model: Model, feeds: Feeds, threads: int) -> dict[str, float]:
    """Median microseconds of a call of every node, bodies included, by the name that it has in the model (fused ones:
    their last part). threads: intra-op threads, 0 for all cores. Raises ORT_ERRORS where the model does not run."""
    with (
        tempfile.TemporaryDirectory(prefix="onnxprune-") as folder,
        session(model, threads=threads, profile=str(Path(folder) / "profile")) as s,
    ):
        for _ in range(PROFILED + 2):
            s.run(None, feeds)
        _, nodes = _parsed(events_of(s))
    durations: dict[str, list[float]] = defaultdict(list)
    for event in nodes:
        name = event.name
        for suffix in FUSED:
            name = name.removesuffix(suffix)
        durations[name].append(event.length)
    return {name: float(np.median(times)) for name, times in durations.items()}
