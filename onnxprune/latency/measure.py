#!/usr/bin/env python3
"""Time and profile the variants of a model that `onnxprune latency-table MODEL --kit FOLDER` wrote, on any device.

Needs Python 3.9, numpy and onnxruntime (any build), and nothing of onnxprune. Copy the folder to the device, then:

    python3 measure.py --threads 1                                    # writes measured.json in the folder
    python3 measure.py --provider OpenVINOExecutionProvider --repeat 3

and, where onnxprune is, `onnxprune latency-table MODEL --measured measured.json -o device.json`.

Every variant runs in turns with the uncut model, so that whatever else the device does hits both alike; what is kept is
the ratio of quantiles: the fastest fifth of the runs ends there, so that others may be interrupted by other programs.
One thread of the CPU is timed by what it computed itself, which nobody interrupts. onnxruntime's profiler then says how
that time spreads over the nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

Opened = tuple[ort.InferenceSession, dict[str, Any]]  # a session, and its inputs by name
Node = tuple[str, str, float]  # name, operator, seconds of a run

QUANTILE = 0.2  # of the runs, whose time counts
SECONDS = 0.5
SESSIONS = 3  # of each variant: two of one file may differ by some percent
ROUNDS = 6, 400  # runs of each, at least and at most
PROFILED = 8, 40  # profiled runs
KERNEL = "_kernel_time"  # how the name of a node's event ends
OPTIONS = {"TensorrtExecutionProvider": {"trt_sparsity_enable": "1"}}  # 2 of every 4 weights, where they are zero


def main(words: Sequence[str] | None = None) -> None:
    """Read the words of the command line and write measured.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = os.path.dirname(os.path.abspath(__file__))
    parser.add_argument("--folder", default=here, help="where kit.json and the variants lie (default: here)")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="execution provider of onnxruntime")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads (default: 1)")
    parser.add_argument("--repeat", type=int, default=1, help="how often all is timed; more where the device is noisy")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for every variant (default: %(default)s)")
    parser.add_argument("--output", "-o", default=None, help="default: measured.json in the folder")
    given = parser.parse_args(words)
    if given.provider not in ort.get_available_providers():
        sys.exit(f"--provider {given.provider}: this onnxruntime has {', '.join(ort.get_available_providers())}")
    if given.threads < 1 or given.repeat < 1:
        sys.exit("--threads and --repeat: expected 1 or more")
    with open(os.path.join(given.folder, "kit.json"), encoding="utf-8") as f:
        kit = json.load(f)
    with np.load(os.path.join(given.folder, kit["inputs"])) as z:
        feeds = {name: z[name] for name in z.files}

    def opened(k: int, profile: str = "") -> Opened:
        path = os.path.join(given.folder, kit["variants"][k]["file"])
        return open_session(path, given.threads, given.provider, profile), feeds

    def tell(done: int, total: int) -> None:
        print(f"\r{done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)

    clock = clock_of(given.threads, given.provider)
    runs = measure(opened, len(kit["variants"]), clock, given.repeat, given.seconds, tell)
    written = {
        "fingerprint": kit["fingerprint"],
        "device": device(given.threads, given.provider),
        "variants": [v["kept"] for v in kit["variants"]],
        "zeros": [v.get("zeros") for v in kit["variants"]],
        "runs": runs,
    }
    target = given.output or os.path.join(given.folder, "measured.json")
    with open(target, "w", encoding="utf-8") as f:
        json.dump(written, f)
    print(target)


def open_session(source: str | bytes, threads: int, provider: str, profile: str = "") -> ort.InferenceSession:
    """A session of a file, or of a serialized model. profile: how the file starts that `end_profiling` writes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(source, options, providers=[(provider, OPTIONS.get(provider, {}))])


def device(threads: int, provider: str) -> dict[str, Any]:
    """What was measured on."""
    return {"cpu": cpu(), "threads": threads, "onnxruntime": ort.__version__, "provider": provider}


def cpu() -> str:
    """The CPU's name, as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine() or "unknown CPU"


def clock_of(threads: int, provider: str) -> Callable[[], float]:
    """What tells the time: of one thread on the CPU, where all is computed in the caller's, the time that it computed.

    Windows counts that in ticks of 16 ms."""
    alone = threads == 1 and provider == "CPUExecutionProvider" and sys.platform != "win32"
    return time.thread_time if alone else time.perf_counter


def measure(
    opened: Callable[..., Opened],
    count: int,
    clock: Callable[[], float],
    repeat: int,
    seconds: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """What every variant takes; the first is the uncut model.

    opened: number of a variant, and optionally where its profile goes -> a session and its inputs by name; clock: of
    `clock_of`; seconds: that a variant and the uncut model are timed for together, for every repetition, and profiled.
    Gives a dict per variant: `base`, `seconds` (quantiles of the uncut model and of the variant, a pair for every
    session) and `nodes` (name, operator, seconds of a call, in the order of execution; none where the execution
    provider hides them).
    """
    base = opened(0)
    out: list[dict[str, Any]] = [{"base": [], "seconds": [], "nodes": []} for _ in range(count)]
    for r in range(repeat):
        for k in range(count):
            for a, b in beside(base, opened, k, clock, seconds):
                out[k]["base"].append(a)
                out[k]["seconds"].append(b)
            out[k]["nodes"] = out[k]["nodes"] or node_seconds(opened, k, seconds)
            progress(r * count + k + 1, repeat * count)
    return out


def beside(
    base: Opened, opened: Callable[..., Opened], k: int, clock: Callable[[], float], seconds: float
) -> list[tuple[float, float]]:
    """Seconds of a run of the uncut model and of a variant, for several sessions of it."""
    return [turns(base, opened(k), clock, seconds / SESSIONS) for _ in range(SESSIONS)]


def turns(base: Opened, other: Opened, clock: Callable[[], float], seconds: float) -> tuple[float, float]:
    """Seconds of a run of either session, given with its inputs, the quantile of many; they alternate, and so does
    which begins."""
    least, most = ROUNDS
    times: tuple[list[float], list[float]] = ([], [])
    for session, feeds in (base, other, base, other):
        session.run(None, feeds)
    end = time.perf_counter() + seconds
    while len(times[0]) < least or (time.perf_counter() < end and len(times[0]) < most):
        first = len(times[0]) % 2
        for which in (first, 1 - first):
            session, feeds = (base, other)[which]
            before = clock()
            session.run(None, feeds)
            times[which].append(clock() - before)
    a, b = np.quantile(times, QUANTILE, axis=1)
    return float(a), float(b)


def node_seconds(opened: Callable[..., Opened], k: int, seconds: float) -> list[Node]:
    """(name, operator, seconds of a run) of every node of a variant, in the order of execution."""
    with tempfile.TemporaryDirectory() as folder:
        session, feeds = opened(k, os.path.join(folder, "profile"))
        least, most = PROFILED
        session.run(None, feeds)
        session.run(None, feeds)
        runs, begin = 0, time.perf_counter()
        while runs < least or (runs < most and time.perf_counter() - begin < seconds):
            session.run(None, feeds)
            runs += 1
        with open(session.end_profiling(), encoding="utf-8", errors="replace") as f:
            events = json.load(f)
    return read_events(events, runs)


def read_events(events: list[dict[str, Any]], runs: int) -> list[Node]:
    """The nodes of the last `runs` runs of a profile; the bodies of control flow count as the node that holds them.

    A node's time is the mean of the faster half of its runs but for the fastest tenth: the profiler counts whole
    microseconds, so that a quantile says little."""
    whole = sorted((e["ts"], e["dur"]) for e in events if e["name"] == "model_run")[-runs:]
    if not whole:
        return []
    begin = whole[0][0]
    calls: dict[tuple[str, str, Any], list[tuple[float, float]]] = {}
    for e in events:
        if e.get("cat") == "Node" and e["name"].endswith(KERNEL) and e["ts"] >= begin:
            key = (e["name"][: -len(KERNEL)], e["args"]["op_name"], e["args"].get("node_index", ""))
            calls.setdefault(key, []).append((e["ts"], e["dur"]))
    outer: list[Node] = []
    end = -1.0
    for (name, op, _), each in sorted(calls.items(), key=lambda item: min(item[1])):
        first, length = min(each)
        if first + length <= end:  # inside the event of a node that holds it
            continue
        end = first + length
        lengths = sorted(length for _, length in each)
        some = lengths[len(lengths) // 10 : (len(lengths) + 1) // 2 + 1]
        outer.append((name, op, 1e-6 * sum(some) / len(some) * len(each) / len(whole)))
    return outer


if __name__ == "__main__":
    main()
