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

from onnxprune.graph.io import Model
from onnxprune.runtime.session import Feeds, session


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


def read_profile(events: Sequence[Mapping[str, Any]], *, runs: int, threads: int) -> Profile | None:
    """Self time of every node over the last `runs` runs of an onnxruntime profile (Chrome's trace events, in us).

    A node's event encloses those of its bodies: the time of an If of 10 us around a Conv of 8 us is 2 us.
    """
    whole = sorted((e["ts"], e["dur"]) for e in events if e["name"] == "model_run")[-runs:]
    if not whole:
        return None
    begin, end = whole[0][0], sum(whole[-1])
    kernels = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    nodes = [e for e in reversed(kernels) if begin <= e["ts"] <= end]  # an outer node is written after its bodies'
    own: dict[tuple[str, str], float] = defaultdict(float)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    stack: list[tuple[float, tuple[str, str]]] = []  # (end, node) of the events that are open
    for e in sorted(nodes, key=lambda e: (e["tid"], e["ts"], -e["dur"])):
        node = e["name"].removesuffix("_kernel_time"), e["args"]["op_name"]
        while stack and e["ts"] >= stack[-1][0]:
            stack.pop()
        if stack:
            own[stack[-1][1]] -= e["dur"]
        own[node] += e["dur"]
        calls[node] += 1
        stack.append((e["ts"] + e["dur"], node))
    scale = 1e-6 / len(whole)
    found = [NodeTime(*node, max(0.0, us) * scale, calls[node] / len(whole)) for node, us in own.items()]
    found.sort(key=lambda n: -n.seconds)
    return Profile(threads, len(whole), sum(dur for _, dur in whole) * scale, tuple(found))


PROFILED = 5  # runs


def node_times(model: Model, feeds: Feeds, threads: int) -> dict[str, float]:
    """Seconds of every node, summed over runs, by the name that it has in the model (fused ones: their last part)."""
    with (
        tempfile.TemporaryDirectory(prefix="onnxprune-") as folder,
        session(model, threads=threads, profile=str(Path(folder) / "profile")) as s,
    ):
        for _ in range(PROFILED + 2):
            s.run(None, feeds)
        events = json.loads(Path(s.end_profiling()).read_text(encoding="utf-8", errors="replace"))
    durations: dict[str, list[float]] = defaultdict(list)
    suffixes = ("_kernel_time", "_nchwc", "/MatMulAddFusion", "_MatMul_With_Add", "_token")
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            for suffix in suffixes:
                name = name.removesuffix(suffix)
            durations[name].append(event["dur"])
    return {name: float(np.median(times)) for name, times in durations.items()}
