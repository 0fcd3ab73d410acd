"""Several model files side by side: latency, throughput, size, memory, outputs, and time per operator.

In go paths and inputs that all models take; out comes a `Benchmark`. Sessions of all models live at once and run one
each in turn, in an order that rotates, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from onnxprune.errors import ModelFileError, OptionError
from onnxprune.graph.io import Model, graphs, load
from onnxprune.graph.messages import fault
from onnxprune.graph.shapes import Array, concrete_inputs, fixed, graph_inputs, infer
from onnxprune.runtime.feeds import random_feeds
from onnxprune.runtime.profile import Profile, read_profile
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.timing import LEAST_ROUNDS, MIN_ROUNDS, ratio_interval, timed

DOMAIN = "onnxprune"
PROFILED_EVENTS = 20_000  # nodes times runs; onnxruntime writes about 1 kB per event
MAX_THREADS = 256


@dataclass(frozen=True)
class Timing:
    """One model on `threads` intra-op threads; median, p10, p90 and p99 (None below 100 runs) in seconds.

    runs_per_second: runs over the time spent in them. speedup: median of the first model over this median;
    interval: 90% of a bootstrap over rounds, None for the first model and below 10 runs.
    """

    threads: int
    runs: int
    median: float
    p10: float
    p90: float
    p99: float | None
    runs_per_second: float
    samples_per_second: float
    speedup: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """Largest difference to the first model's outputs; relative: to the largest magnitude in that output.

    absolute and relative are each the worst of all outputs; infinite where NaN or infinity meets another value.
    """

    absolute: float
    relative: float


@dataclass(frozen=True)
class ModelBench:
    """One file. bytes: with external data, which lies in the files `data`; peak_memory: bytes that loading and one run
    took at most, in a process of its own, None where not measured; difference: None where outputs do not compare."""

    label: str
    path: str
    bytes: int
    data: tuple[str, ...] = ()
    peak_memory: int | None = None
    difference: Difference | None = None
    timings: tuple[Timing, ...] = ()
    profiles: tuple[Profile, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """Everything that one comparison says; `to_dict` is what `--json` writes.

    inputs: name -> type and shape; source: where their values come from; batch: first axis of the first input of rank
    2 or more; cores: that this process may use.
    """

    models: tuple[ModelBench, ...]
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    source: str
    batch: int
    threads: tuple[int, ...]
    cpu: str
    cores: int
    onnxruntime: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a difference that is infinite is null, and a note says so."""
        out = asdict(self) | {"units": {"time": "seconds", "memory": "bytes"}}
        out["inputs"] = {name: {"type": t, "shape": list(shape)} for name, (t, shape) in self.inputs.items()}
        for m, row in zip(self.models, out["models"], strict=True):
            if m.difference is not None:
                row["difference"] = {k: v if math.isfinite(v) else None for k, v in asdict(m.difference).items()}
            for p, profile in zip(m.profiles, row["profiles"], strict=True):
                profile["operators"] = {op: {"seconds": s, "calls": c} for op, (s, c) in p.operators.items()}
        return out


@dataclass(frozen=True)
class _File:
    """What a session needs to know of a model file; sparse: it holds operators of the domain `onnxprune`."""

    path: str
    sparse: bool
    nodes: int


def benchmark(
    paths: Sequence[str | os.PathLike[str]],
    *,
    threads: Sequence[int] = (1,),
    seconds: float = 10.0,
    input_shape: Mapping[str, tuple[int, ...]] | None = None,
    inputs: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    seed: int = 0,
    profile: bool = False,
    memory: bool = True,
    progress: Callable[[str], None] = lambda stage: None,
) -> Benchmark:
    """Run the models of several files on the same inputs, one run each in turn; the first is the base of comparison.

    threads: intra-op threads to measure on, 0 for all cores; seconds: budget of the timing, all models and thread
    counts together, though every model runs five times; input_shape: concrete shapes of dynamic inputs; inputs: values,
    or the npz file that holds them, by input name, instead of random ones from `seed`; profile: also time every
    operator; memory: also measure peak memory, each model in a process of its own.
    Raises ModelFileError where a file is no model or does not load, OptionError where the models' inputs differ.
    """
    counts = _thread_counts(threads)
    if not (math.isfinite(seconds) and seconds > 0):
        raise OptionError(f"--seconds {seconds}: expected a number above 0")
    if not paths:
        raise OptionError("no model is given; name one or more ONNX files")
    progress("reading the models")
    notes: list[str] = []
    models = [load(p) for p in paths]
    files = [_file(os.fspath(p), m) for p, m in zip(paths, models, strict=True)]
    rows = [_row(label, m, f) for label, m, f in zip(_labels(files), models, files, strict=True)]
    first = _align(files, models, input_shape or {})
    given = None if inputs is None else _given(inputs, first, notes)
    del models
    candidates: Iterable[Feeds] = (given,) if given is not None else _random(first, input_shape, seed)
    if any(f.sparse for f in files) and (why := _library()):
        notes += [f"{m.label} runs through its functions: {why}" for m, f in zip(rows, files, strict=True) if f.sparse]
    notes += [f"{n} threads are more than the {_cores()} cores here" for n in counts if n > _cores()]

    feeds: Feeds | None = None
    for n in counts:
        progress(f"measuring, {plural(n, 'thread')}")
        sessions = [_session(f, n) for f in files]
        if feeds is None:
            feeds, outputs = _choose(files, sessions, candidates)
            differences = _differences(rows, sessions, outputs, notes)
            rows = [replace(m, difference=d) for m, d in zip(rows, differences, strict=True)]
            del outputs
        times = timed(sessions, [feeds] * len(sessions), seconds / len(counts))
        del sessions
        timings = [_timing(t, times[:, 0], n, _batch(feeds), base=k == 0) for k, t in enumerate(times.T)]
        rows = [replace(m, timings=(*m.timings, t)) for m, t in zip(rows, timings, strict=True)]
        if profile:
            progress(f"profiling, {plural(n, 'thread')}")
            profiles = _profile(files, feeds, n, seconds / len(counts) / 4)
            rows = [replace(m, profiles=(*m.profiles, *p)) for m, p in zip(rows, profiles, strict=True)]
    assert feeds is not None
    for k, (m, f) in enumerate(zip(rows, files, strict=True)) if memory else ():
        progress("measuring peak memory")
        rows[k] = replace(m, peak_memory=_peak_memory(m.label, f, feeds, counts[0], notes))
    types = {i.name: _type(i) for i in graph_inputs(first)}
    return Benchmark(
        models=tuple(rows),
        inputs={name: (types[name], np.shape(v)) for name, v in feeds.items()},
        source=_source(inputs, seed),
        batch=_batch(feeds),
        threads=counts,
        cpu=_cpu(),
        cores=_cores(),
        onnxruntime=ort.__version__,
        notes=tuple(dict.fromkeys(notes)),
    )


def _thread_counts(threads: Sequence[int]) -> tuple[int, ...]:
    for n in threads:
        if not 0 <= n <= MAX_THREADS:
            raise OptionError(f"--threads {n}: expected 1 to {MAX_THREADS}, or 0 for all {_cores()} cores")
    if not threads:
        raise OptionError("no thread count is given; --threads 1,2 measures on one and on two")
    return tuple(dict.fromkeys(n or _cores() for n in threads))


def _file(path: str, model: Model) -> _File:
    nodes = [node for graph in graphs(model.proto.graph) for node in graph.node]
    return _File(path, any(node.domain == DOMAIN for node in nodes), len(nodes))


def _row(label: str, model: Model, file: _File) -> ModelBench:
    held = {str(w.filename) for w in model.weights.values() if isinstance(w, np.memmap) and w.filename}
    return ModelBench(label, file.path, sum(os.path.getsize(p) for p in (file.path, *held)), tuple(sorted(held)))


def _labels(files: Sequence[_File]) -> list[str]:
    """File names, whole paths where names repeat, counted where paths do."""
    names = [Path(f.path).name for f in files]
    if len(set(names)) < len({f.path for f in files}):
        names = [f.path for f in files]
    return [n if n not in names[:k] else f"{n} ({names[:k].count(n) + 1})" for k, n in enumerate(names)]


# inputs


def _align(files: Sequence[_File], models: Sequence[Model], input_shape: Mapping[str, tuple[int, ...]]) -> Model:
    """The first model, its inputs narrowed to what every model takes; OptionError where nothing fits all."""
    first = models[0]
    ours = {i.name: i for i in graph_inputs(first)}
    for f, model in zip(files, models, strict=True):
        theirs = {i.name: i for i in graph_inputs(model)}
        if lone := sorted(theirs.keys() ^ ours.keys()):
            has, lacks = (f, files[0]) if lone[0] in theirs else (files[0], f)
            raise OptionError(
                f"{lacks.path} has no input {lone[0]!r} as {has.path} has; compare models of equal inputs"
            )
        for name, info in theirs.items():
            if info.type.WhichOneof("value") != "tensor_type":
                raise OptionError(f"{f.path}: input {name!r} is no tensor; models with tensor inputs can be measured")
        try:
            next(concrete_inputs(model, input_shape))
        except OptionError as e:
            raise OptionError(f"{f.path}: {e}") from e
    for f, model in zip(files, models, strict=True):
        for info in graph_inputs(model):
            if not _narrow(ours[info.name], info):
                mine, other = _signature(ours[info.name]), _signature(info)
                found = f"input {info.name!r} is {other}, where the files before it take {mine}"
                raise OptionError(f"{f.path}: {found}; compare models of equal inputs")
    for name, shape in input_shape.items():
        given = helper.make_tensor_value_info(name, ours[name].type.tensor_type.elem_type, shape)
        _narrow(ours[name], given)
    return first


def _narrow(info: onnx.ValueInfoProto, other: onnx.ValueInfoProto) -> bool:
    """Fix axes of `info` that `other` fixes; false where the two contradict."""
    a, b = info.type.tensor_type, other.type.tensor_type
    if a.elem_type != b.elem_type:
        return False
    if not a.HasField("shape"):
        a.CopyFrom(b)
    elif b.HasField("shape"):
        pairs = list(zip(a.shape.dim, b.shape.dim, strict=False))
        same_rank = len(a.shape.dim) == len(b.shape.dim)
        if not same_rank or any(fixed(x) and fixed(y) and x.dim_value != y.dim_value for x, y in pairs):
            return False
        for x, y in pairs:
            if fixed(y):
                x.dim_value = y.dim_value
    return True


def _type(info: onnx.ValueInfoProto) -> str:
    return str(TensorProto.DataType.Name(info.type.tensor_type.elem_type)).lower()


def _signature(info: onnx.ValueInfoProto) -> str:
    t = info.type.tensor_type
    dims = ",".join(str(d.dim_value) if fixed(d) else d.dim_param or "?" for d in t.shape.dim)
    return f"{_type(info)} {dims}" if t.HasField("shape") else _type(info)


def _random(first: Model, input_shape: Mapping[str, tuple[int, ...]] | None, seed: int) -> Iterator[Feeds]:
    """Random inputs at the sizes with which the graph is consistent, then at all others that come to mind."""
    shapes = infer(first, input_shape)
    names = [i.name for i in graph_inputs(first)]
    best = {n: tuple(d or 1 for d in shapes.shapes[n]) for n in names if n in shapes.shapes}
    yield random_feeds(first, shapes, best, seed=seed)
    for concrete in concrete_inputs(first, input_shape):
        if concrete != best:
            yield random_feeds(first, shapes, concrete, seed=seed)


def _given(inputs: str | os.PathLike[str] | Mapping[str, Array], first: Model, notes: list[str]) -> Feeds:
    """The values that the user gives, checked; of more rows than the models take, the first."""
    where = "inputs"
    if not isinstance(inputs, Mapping):
        where = f"--inputs {os.fspath(inputs)}"
        inputs = _read_npz(where, inputs)
    infos = {i.name: i for i in graph_inputs(first)}
    if missing := [n for n in infos if n not in inputs]:
        raise OptionError(f"{where}: no array {missing[0]!r}; the file holds {', '.join(map(repr, inputs)) or 'none'}")
    if extra := [n for n in inputs if n not in infos]:
        notes.append(f"{where}: {', '.join(map(repr, extra))} not used, no input has this name")
    feeds: Feeds = {}
    for name, info in infos.items():
        x, t = np.asarray(inputs[name]), info.type.tensor_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(t.elem_type))
        dims = t.shape.dim
        if dims and x.ndim == len(dims) and fixed(dims[0]) and x.shape[0] > dims[0].dim_value:
            notes.append(f"{where}: the first {dims[0].dim_value} of {x.shape[0]} rows of {name!r}")
            x = x[: dims[0].dim_value]
        fits = not t.HasField("shape") or (
            x.ndim == len(dims) and all(not fixed(d) or d.dim_value == k for d, k in zip(dims, x.shape, strict=True))
        )
        text = dtype.kind == "O" and x.dtype.kind in "OSU"
        if not fits or not (x.dtype == dtype or text):
            found = f"{x.dtype} {','.join(map(str, x.shape))}"
            raise OptionError(f"{where}: {name!r} is {found}, the models take {_signature(info)}")
        feeds[name] = x.astype(object) if text else np.ascontiguousarray(x)
    return feeds


def _read_npz(where: str, path: str | os.PathLike[str]) -> dict[str, Array]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with file:
            return {name: file[name] for name in file.files}
    except Exception as e:  # zipfile, zlib and numpy each raise their own
        why = getattr(e, "strerror", None) or str(e) or type(e).__name__
        raise OptionError(f"{where}: expected a file of numpy.savez, found {why}") from e


def _source(inputs: object, seed: int) -> str:
    if inputs is None:
        return f"random, seed {seed}"
    return os.fspath(inputs) if isinstance(inputs, str | os.PathLike) else "given"


def _batch(feeds: Feeds) -> int:
    return next((int(np.shape(x)[0]) for x in feeds.values() if np.ndim(x) > 1), 1)


# sessions


def _library() -> str:
    """Why the library of the sparse operators cannot be used here; empty where it can."""
    try:
        return str(importlib.import_module("onnxprune.kernels").available())
    except ImportError as e:
        return f"the operator library is missing ({e})"


def _options(threads: int, profile_prefix: str = "", *, sparse: bool = False) -> ort.SessionOptions:
    """Options as users have them by default, for sessions that rest while others run.

    sparse: register the library of the sparse operators, where it can be used.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # threads of a session that rests must not spin on the cores of the one that runs
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    if sparse and not _library():
        importlib.import_module("onnxprune.kernels").register(options)
    return options


def _session(file: _File, threads: int, profile_prefix: str = "") -> ort.InferenceSession:
    options = _options(threads, profile_prefix, sparse=file.sparse)
    try:
        return ort.InferenceSession(file.path, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's exceptions share no base class
        why = _library() if file.sparse else ""
        way = f"its operators need our library, and {why}" if why else "see whether it loads in onnxruntime alone"
        raise fault(file.path, "a model that onnxruntime loads", e, way) from e


def _choose(
    files: Sequence[_File], sessions: Sequence[ort.InferenceSession], candidates: Iterable[Feeds]
) -> tuple[Feeds, list[list[Any]]]:
    """The first inputs on which every model runs, and the outputs of all."""
    problem: ModelFileError | None = None
    for feeds in candidates:
        outputs = []
        for f, s in zip(files, sessions, strict=True):
            try:
                outputs.append(s.run(None, feeds))
            except Exception as e:  # onnxruntime's exceptions share no base class
                shown = ", ".join(f"{n} {'x'.join(map(str, np.shape(x)))}" for n, x in feeds.items())
                way = "give --input-shape, or real inputs with --inputs"
                problem = problem or fault(f.path, f"a model that runs on the inputs {shown}", e, way)
                break
        else:
            return feeds, outputs
    assert problem is not None
    raise problem


# latency


def _timing(t: Array, first: Array, threads: int, batch: int, *, base: bool) -> Timing:
    """t, first: seconds of every run of this model and of the first, `(rounds,)`."""
    p10, median, p90, p99 = (float(p) for p in np.percentile(t, (10, 50, 90, 99)))
    rate = len(t) / float(t.sum())
    return Timing(
        threads=threads,
        runs=len(t),
        median=median,
        p10=p10,
        p90=p90,
        p99=p99 if len(t) >= 100 else None,
        runs_per_second=rate,
        samples_per_second=rate * batch,
        speedup=float(np.median(first)) / median,
        interval=None if base or len(t) < LEAST_ROUNDS else ratio_interval(first, t),
    )


# outputs


def _differences(
    rows: Sequence[ModelBench], sessions: Sequence[ort.InferenceSession], outputs: Sequence[list[Any]], notes: list[str]
) -> list[Difference | None]:
    """Of every model to the first; outputs are paired by name, or by position where the names differ."""
    out: list[Difference | None] = []
    names = [[o.name for o in s.get_outputs()] for s in sessions]
    for m, theirs, values in zip(rows, names, outputs, strict=True):
        paired = dict(zip(theirs, values, strict=True))
        if set(theirs) == set(names[0]):
            values = [paired[n] for n in names[0]]
        difference, problem = None, "it has other outputs"
        if len(values) == len(names[0]):
            difference, problem = _difference(dict(zip(names[0], outputs[0], strict=True)), values)
        if problem:
            notes.append(f"{m.label}: outputs not compared, {problem}")
        elif difference and not math.isfinite(difference.absolute):
            notes.append(f"{m.label}: outputs hold NaN or infinity where {rows[0].label} has other values, or it does")
        out.append(difference)
    return out


def _difference(first: Mapping[str, Any], values: Sequence[Any]) -> tuple[Difference | None, str]:
    """The largest difference, or what forbids one."""
    worst = Difference(0.0, 0.0)
    for (name, a), b in zip(first.items(), values, strict=True):
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
            return None, f"{name!r} is no tensor"
        if a.shape != b.shape:
            return None, f"{name!r} has shape {b.shape} and not {a.shape}"
        try:
            x, y = a.astype(np.float64), b.astype(np.float64)
        except (TypeError, ValueError):
            return None, f"{name!r} holds no numbers"
        if not x.size:
            continue
        with np.errstate(invalid="ignore"):
            gap = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
        absolute = float(np.nan_to_num(gap, nan=math.inf, posinf=math.inf).max())
        largest = float(np.abs(x[np.isfinite(x)]).max(initial=0.0))
        relative = 0.0 if not absolute else absolute / largest if largest else math.inf
        worst = Difference(max(worst.absolute, absolute), max(worst.relative, relative))
    return worst, ""


# time per operator


def _profile(files: Sequence[_File], feeds: Feeds, threads: int, seconds: float) -> list[list[Profile]]:
    """A profile per model, or none where onnxruntime wrote none; runs in turn, as in `_time`."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        sessions = [_session(f, threads, os.path.join(folder, f"{k}")) for k, f in enumerate(files)]
        most = max(MIN_ROUNDS, PROFILED_EVENTS // max(1, *(f.nodes for f in files)))
        for s in sessions:
            s.run(None, feeds)
            s.run(None, feeds)
        end = time.perf_counter() + seconds
        rounds = 0
        while rounds < MIN_ROUNDS or (time.perf_counter() < end and rounds < most):
            for k in range(len(sessions)):
                sessions[(k + rounds) % len(sessions)].run(None, feeds)
            rounds += 1
        texts = [Path(s.end_profiling()).read_text(encoding="utf-8", errors="replace") for s in sessions]
    profiles = (read_profile(json.loads(text), runs=rounds, threads=threads) for text in texts)
    return [[] if p is None else [p] for p in profiles]


# memory


def _peak_memory(label: str, file: _File, feeds: Feeds, threads: int, notes: list[str]) -> int | None:
    """Bytes that loading and one run take at most; None off Linux, or with a note where the process fails."""
    if not os.path.exists("/proc/self/status"):
        return None
    command = [sys.executable, "-P", "-c", "from onnxprune.runtime.benchmark import _memory_process; _memory_process()"]
    done = subprocess.run(command, input=pickle.dumps((file, feeds, threads)), capture_output=True, check=False)
    try:
        peak, library = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, TypeError, IndexError):
        why = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        notes.append(f"{label}: peak memory not measured ({why[:200]})")
        return None
    if library:
        notes.append(f"{label}: peak memory is without the operator library, which takes {library / 1e6:.0f} MB once")
    return int(peak)


def _memory_process() -> None:
    """Reads what to run from standard input, prints its peak memory and that of the operator library, in bytes."""
    file, feeds, threads = pickle.load(sys.stdin.buffer)
    start = _resident("VmRSS")
    options = _options(threads, sparse=file.sparse)
    base = _resident("VmRSS")
    library = base - start if file.sparse and not _library() else 0
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    except OSError:
        base = _resident("VmHWM")
    ort.InferenceSession(file.path, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    print(json.dumps([max(0, _resident("VmHWM") - base), library]), flush=True)


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes; unlike getrusage's, these do not begin with the parent's."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024


# the machine


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine() or "unknown CPU"


def plural(n: int, what: str) -> str:
    """1 thread, 2 threads."""
    return f"{n} {what}{'s' * (n != 1)}"
