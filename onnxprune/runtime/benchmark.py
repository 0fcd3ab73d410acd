"""Several model files side by side: latency, throughput, size, memory, outputs, and time per operator.

In go paths and inputs that all models take; out comes a `Benchmark`. Sessions of all models live at once and run one
each in turn, in an order that rotates, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxprune import kernels
from onnxprune.errors import ModelFileError, OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.energy import Energy
from onnxprune.graph.io import Model, load
from onnxprune.graph.messages import fault
from onnxprune.graph.ort import ORT_ERRORS
from onnxprune.graph.shapes import graph_inputs
from onnxprune.runtime.differences import Difference, differences
from onnxprune.runtime.inputs import align, batch_of, given_feeds, random_candidates, source, type_name
from onnxprune.runtime.memory import peak_memory
from onnxprune.runtime.profile import Profile, events_of, read_profile
from onnxprune.runtime.rapl import POWERCAP, Rapl
from onnxprune.runtime.session import Feeds, ModelFile, file_session, model_file
from onnxprune.runtime.timing import LEAST_ROUNDS, MIN_ROUNDS, cores, cpu, ratio_interval, timed

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
class ModelBench:
    """One file. bytes: with external data, which lies in the files `data`; peak_memory: bytes that loading and one run
    took at most, in a process of its own, None where not measured; difference: None where outputs do not compare;
    joules: of one run by the processor's counters, None where there are none; energy: of one run by a model, None where
    not counted."""

    label: str
    path: str
    bytes: int
    data: tuple[str, ...] = ()
    peak_memory: int | None = None
    difference: Difference | None = None
    joules: float | None = None
    energy: Energy | None = None
    timings: tuple[Timing, ...] = ()
    profiles: tuple[Profile, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """Everything that one comparison says; `to_dict` is what `--json` writes.

    inputs: name -> type and shape; source: where their values come from; batch: first axis of the first input of rank
    2 or more; cores: that this process may use; energy_table: whose figures the model of energy takes.
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
    energy_table: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a difference that is infinite is null, and a note says so."""
        out = asdict(self) | {"units": {"time": "seconds", "memory": "bytes", "energy": "joules"}}
        out["inputs"] = {name: {"type": t, "shape": list(shape)} for name, (t, shape) in self.inputs.items()}
        for m, row in zip(self.models, out["models"], strict=True):
            row["energy"] = None if m.energy is None else m.energy.to_dict()
            if m.difference is not None:
                row["difference"] = {k: v if math.isfinite(v) else None for k, v in asdict(m.difference).items()}
            for p, profile in zip(m.profiles, row["profiles"], strict=True):
                profile["operators"] = {op: {"seconds": s, "calls": c} for op, (s, c) in p.operators.items()}
        return out


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
    powercap: Path | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Benchmark:
    """Run the models of several files on the same inputs, one run each in turn; the first is the base of comparison.

    threads: intra-op threads to measure on, 0 for all cores; seconds: budget of the timing, all models and thread
    counts together, though every model runs five times; input_shape: concrete shapes of dynamic inputs; inputs: values,
    or the npz file that holds them, by input name, instead of random ones from `seed`; profile: also time every
    operator; memory: also measure peak memory, each model in a process of its own; powercap: folder of the kernel with
    the processor's counters of energy, which are read on the first thread count where they can be.
    Raises ModelFileError where a file is no model or does not load, OptionError where the models' inputs differ.
    """
    counts = thread_counts(threads)
    if not (math.isfinite(seconds) and seconds > 0):
        raise OptionError(f"--seconds {seconds}: expected a number above 0")
    progress("reading the models")
    them = contenders(paths, input_shape)
    files, rows, first = them.files, list(them.rows), them.first
    notes: list[str] = []
    candidates: Iterable[Feeds]
    if inputs is None:
        candidates = random_candidates(first, input_shape, seed)
    else:
        given, unused = given_feeds(inputs, first)
        candidates, notes = (given,), [*notes, *unused]
    if any(f.sparse for f in files) and (why := kernels.available()):
        notes += [f"{m.label} runs through its functions: {why}" for m, f in zip(rows, files, strict=True) if f.sparse]
    notes += [f"{n} threads are more than the {cores()} cores here" for n in counts if n > cores()]

    rapl = Rapl.found(powercap or POWERCAP)
    feeds: Feeds | None = None
    for n in counts:
        progress(f"measuring, {plural(n, 'thread')}")
        sessions = [file_session(f, n) for f in files]
        if feeds is None:
            candidates = list(candidates)
            kind, outputs = chosen(files, sessions, candidates)
            feeds = candidates[kind]
            names = [[o.name for o in s.get_outputs()] for s in sessions]
            apart, unsure = differences([m.label for m in rows], names, outputs)
            rows = [replace(m, difference=d) for m, d in zip(rows, apart, strict=True)]
            notes += unsure
            del outputs
        times = timed(sessions, [feeds] * len(sessions), seconds / len(counts))
        if rapl is not None and n == counts[0]:
            progress("reading the energy counters")
            joules = rapl.per_run([partial(s.run, None, feeds) for s in sessions], seconds / len(counts) / 4)
            rows = [replace(m, joules=j) for m, j in zip(rows, joules, strict=True)]
        del sessions
        timings = [_timing(t, times[:, 0], n, batch_of(feeds), base=k == 0) for k, t in enumerate(times.T)]
        rows = [replace(m, timings=(*m.timings, t)) for m, t in zip(rows, timings, strict=True)]
        if profile:
            progress(f"profiling, {plural(n, 'thread')}")
            profiles = _profile(files, feeds, n, seconds / len(counts) / 4)
            rows = [replace(m, profiles=(*m.profiles, *p)) for m, p in zip(rows, profiles, strict=True)]
    assert feeds is not None
    for k, (m, f) in enumerate(zip(rows, files, strict=True)) if memory else ():
        progress("measuring peak memory")
        peak, note = peak_memory(f, feeds, counts[0])
        rows[k] = replace(m, peak_memory=peak)
        notes += [f"{m.label}: {note}"] * bool(note)
    types = {i.name: type_name(i) for i in graph_inputs(first)}
    return Benchmark(
        models=tuple(rows),
        inputs={name: (types[name], np.shape(v)) for name, v in feeds.items()},
        source=source(inputs, seed),
        batch=batch_of(feeds),
        threads=counts,
        cpu=cpu(),
        cores=cores(),
        onnxruntime=ort.__version__,
        notes=tuple(dict.fromkeys(notes)),
    )


@dataclass(frozen=True, eq=False)
class Contenders:
    """Files that are compared, a row for each, and the first model, its inputs narrowed to what all take."""

    files: Sequence[ModelFile]
    rows: Sequence[ModelBench]
    first: Model


def contenders(
    paths: Sequence[str | os.PathLike[str]], input_shape: Mapping[str, tuple[int, ...]] | None
) -> Contenders:
    """Read the files. Raises ModelFileError where one is no model, OptionError where the models' inputs differ."""
    if not paths:
        raise OptionError("no model is given; name one or more ONNX files")
    models = [load(p) for p in paths]
    files = [model_file(os.fspath(p), m) for p, m in zip(paths, models, strict=True)]
    rows = [_row(label, m, f) for label, m, f in zip(_labels(files), models, files, strict=True)]
    return Contenders(files, rows, align([f.path for f in files], models, input_shape or {}))


def thread_counts(threads: Sequence[int]) -> tuple[int, ...]:
    """Each count once, 0 as the cores that there are; raises OptionError for one that makes no sense."""
    for n in threads:
        if not 0 <= n <= MAX_THREADS:
            raise OptionError(f"--threads {n}: expected 1 to {MAX_THREADS}, or 0 for all {cores()} cores")
    if not threads:
        raise OptionError("no thread count is given; --threads 1,2 measures on one and on two")
    return tuple(dict.fromkeys(n or cores() for n in threads))


def _row(label: str, model: Model, file: ModelFile) -> ModelBench:
    data_files = {str(w.filename) for w in model.weights.values() if isinstance(w, np.memmap) and w.filename}
    return ModelBench(
        label, file.path, sum(os.path.getsize(p) for p in (file.path, *data_files)), tuple(sorted(data_files))
    )


def _labels(files: Sequence[ModelFile]) -> list[str]:
    """File names, whole paths where names repeat, counted where paths do."""
    names = [Path(f.path).name for f in files]
    if len(set(names)) < len({f.path for f in files}):
        names = [f.path for f in files]
    return [n if n not in names[:k] else f"{n} ({names[:k].count(n) + 1})" for k, n in enumerate(names)]


def chosen(
    files: Sequence[ModelFile], sessions: Sequence[ort.InferenceSession], candidates: Iterable[Feeds]
) -> tuple[int, list[list[Any]]]:
    """Which are the first inputs on which every model runs, and the outputs of all; raises ModelFileError for none."""
    problem: ModelFileError | None = None
    for k, feeds in enumerate(candidates):
        outputs = []
        for f, s in zip(files, sessions, strict=True):
            try:
                outputs.append(s.run(None, feeds))
            except ORT_ERRORS as e:
                shown = ", ".join(f"{n} {'x'.join(map(str, np.shape(x)))}" for n, x in feeds.items())
                way = "give --input-shape, or real inputs with --inputs"
                problem = problem or fault(f.path, f"a model that runs on the inputs {shown}", e, way)
                break
        else:
            return k, outputs
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


# time per operator


def _profile(files: Sequence[ModelFile], feeds: Feeds, threads: int, seconds: float) -> list[list[Profile]]:
    """A profile per model, or none where onnxruntime wrote none; runs in turn."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        sessions = [file_session(f, threads, profile=os.path.join(folder, str(k))) for k, f in enumerate(files)]
        most = max(MIN_ROUNDS, PROFILED_EVENTS // max(1, *(f.nodes for f in files)))
        rounds = len(timed(sessions, [feeds] * len(sessions), seconds, most=most, warm_up=0.0))
        events = [events_of(s) for s in sessions]
    profiles = (read_profile(e, runs=rounds, threads=threads) for e in events)
    return [[] if p is None else [p] for p in profiles]


def plural(n: int, what: str) -> str:
    """1 thread, 2 threads."""
    return f"{n} {what}{'s' * (n != 1)}"
