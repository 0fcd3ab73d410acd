"""MLPerf's LoadGen on model files: its scenarios, its terms, its own logs read back.

single-stream sends one query after the other, and the result is the 90th percentile of the latency; offline sends all
samples at once, and the result is samples per second. LoadGen asks for samples by their index, chosen at random; a
sample is one set of inputs of the model.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import fixed, graph_inputs
from onnxprune.runtime.benchmark import chosen, contenders, thread_counts
from onnxprune.runtime.inputs import given_feeds, random_candidates, read_npz, source
from onnxprune.runtime.session import Feeds, file_session
from onnxprune.runtime.timing import cores, cpu

SCENARIOS = {
    "single-stream": "one query after the other: 90th percentile of the latency",
    "offline": "all samples at once: samples per second",
}
SUBMISSION = 600  # seconds that MLPerf Inference asks of a run, of either scenario
RANDOM = 16  # samples that are made up
MOST = 1024  # samples of a file
TRIAL = 0.2  # seconds of runs from which their rate is expected
HEADROOM = 1.2  # expected over seen, so that the samples last for the duration


@dataclass(frozen=True)
class Load:
    """One run of LoadGen.

    valid, min_duration_met, min_queries_met, early_stopping_met: its verdicts; samples: that it asked for; latency:
    percentile -> seconds of a query, of single-stream, and early_stopping: its 90th percentile as of a longer run, None
    below 64 queries; samples_per_second: of offline; warnings, errors: of its log.
    """

    threads: int
    valid: bool
    min_duration_met: bool
    min_queries_met: bool
    early_stopping_met: bool
    queries: int
    samples: int
    latency: Mapping[str, float]
    early_stopping: float | None
    samples_per_second: float | None
    warnings: tuple[str, ...]
    errors: tuple[str, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A file, with external data in the files `data`, and its runs, one per thread count."""

    label: str
    path: str
    data: tuple[str, ...]
    runs: tuple[Load, ...]


@dataclass(frozen=True)
class LoadTest:
    """What LoadGen says of several files; `to_dict` is what `--json` writes.

    duration: the least, in seconds; samples: that LoadGen chooses from, whose values come from `source`.
    """

    scenario: str
    duration: float
    models: tuple[LoadedModel, ...]
    samples: int
    source: str
    inputs: Mapping[str, tuple[int, ...]]
    loadgen: str
    cpu: str
    cores: int
    onnxruntime: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"units": {"time": "seconds"}}


def load_test(
    paths: Sequence[str | os.PathLike[str]],
    scenario: str,
    *,
    duration: float,
    threads: Sequence[int] = (1,),
    input_shape: Mapping[str, tuple[int, ...]] | None = None,
    inputs: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> LoadTest:
    """Run LoadGen on every file and thread count, one after the other.

    scenario: of `SCENARIOS`; duration: the least, in seconds; inputs: npz file, each of whose rows is a sample; seed:
    of random samples, and of the order in which samples are asked for. The rest is as of `benchmark`.
    Raises `OptionError` where LoadGen is not installed, and what `benchmark` raises.
    """
    lg, counts = loadgen(scenario), thread_counts(threads)
    progress("reading the models")
    them = contenders(paths, input_shape)
    samples, notes = samples_of(them.first, inputs, input_shape, seed)
    runs: list[list[Load]] = [[] for _ in them.files]
    version = ""
    for n in counts:
        sessions = [file_session(f, n) for f in them.files]
        kind, _ = chosen(them.files, sessions, samples[0])
        fitting = [candidates[kind] for candidates in samples]
        for m, s, done in zip(them.rows, sessions, runs, strict=True):
            progress(f"{scenario}: {m.label}, {n} thread{'s' * (n > 1)}")
            log, asked = run(lg, s, fitting, scenario, duration, seed)
            version = str(log.get("loadgen_version", [""])[0])
            done.append(read(log, n, scenario, asked))
    if duration < SUBMISSION:
        notes.append(f"a run of {duration:g} s is no valid submission to MLPerf, which asks for {SUBMISSION} s")
    return LoadTest(
        scenario, duration,
        tuple(LoadedModel(m.label, m.path, m.data, tuple(r)) for m, r in zip(them.rows, runs, strict=True)),
        len(samples), source(inputs, seed), {name: np.shape(x) for name, x in fitting[0].items()}, version, cpu(),
        cores(), ort.__version__, tuple(notes),
    )  # fmt: skip


def loadgen(scenario: str) -> ModuleType:
    """LoadGen's module; raises `OptionError` where it is not installed."""
    try:
        return importlib.import_module("mlperf_loadgen")
    except ImportError as e:
        raise OptionError(f"--scenario {scenario} needs LoadGen ({e}): pip install 'onnxprune[loadgen]'") from None


def samples_of(
    first: Model,
    inputs: str | os.PathLike[str] | None,
    input_shape: Mapping[str, tuple[int, ...]] | None,
    seed: int,
) -> tuple[list[list[Feeds]], list[str]]:
    """Samples, each as the values to try for it in the same order, and what is not used of the file."""
    if inputs is None:
        return [list(random_candidates(first, input_shape, seed + i)) for i in range(RANDOM)], []
    arrays, rows = read_npz(f"--inputs {os.fspath(inputs)}", inputs), batch_of_model(first)
    lengths = {len(x) for name, x in arrays.items() if np.ndim(x) and name in rows}
    count = min(lengths) // max(rows.values()) if lengths and len(lengths) == 1 else 1
    notes: list[str] = []

    def part(i: int) -> dict[str, Array]:
        return {n: x[i * rows[n] : (i + 1) * rows[n]] if n in rows and count > 1 else x for n, x in arrays.items()}

    samples = []
    for i in range(min(count, MOST)):
        feeds, unused = given_feeds(part(i), first)
        samples.append([feeds])
        notes = unused
    return samples, notes


def batch_of_model(first: Model) -> dict[str, int]:
    """Input -> how many rows of it a sample has: its first axis, 1 where that is dynamic."""
    dims = {i.name: i.type.tensor_type.shape.dim for i in graph_inputs(first)}
    return {name: d[0].dim_value if fixed(d[0]) else 1 for name, d in dims.items() if len(d)}


def run(
    lg: ModuleType, session: ort.InferenceSession, samples: Sequence[Feeds], scenario: str, duration: float, seed: int
) -> tuple[dict[str, list[Any]], int]:
    """One run: the values of LoadGen's log by key, and how many samples it asked for."""
    rate, asked = expected(session, samples), 0

    def issue(queries: Sequence[Any]) -> None:
        nonlocal asked
        asked += len(queries)
        for query in queries:
            session.run(None, samples[query.index])
            lg.QuerySamplesComplete([lg.QuerySampleResponse(query.id, 0, 0)])

    settings = lg.TestSettings()
    settings.scenario = {"single-stream": lg.TestScenario.SingleStream, "offline": lg.TestScenario.Offline}[scenario]
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = round(1000 * duration), 1
    settings.single_stream_expected_latency_ns = round(1e9 / rate)
    settings.offline_expected_qps = HEADROOM * rate
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = seed
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        log = lg.LogSettings()
        log.enable_trace = False
        log.log_output.outdir, log.log_output.copy_summary_to_stdout = folder, False
        sut = lg.ConstructSUT(issue, lambda: None)
        library = lg.ConstructQSL(len(samples), len(samples), lambda indices: None, lambda indices: None)
        try:
            lg.StartTestWithLogSettings(sut, library, settings, log, "")
        finally:
            lg.DestroyQSL(library)
            lg.DestroySUT(sut)
        return entries(Path(folder) / "mlperf_log_detail.txt"), asked


def expected(session: ort.InferenceSession, samples: Sequence[Feeds]) -> float:
    """Runs per second, after each sample was run once; raises ORT_ERRORS where one does not run."""
    for feeds in samples:
        session.run(None, feeds)
    count, start = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - start < TRIAL:
        session.run(None, samples[count % len(samples)])
        count += 1
    return count / (time.perf_counter() - start)


def entries(path: Path) -> dict[str, list[Any]]:
    """Key -> values, of the lines of a log."""
    found: dict[str, list[Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line.partition(":::MLLOG ")[2])
        meta = entry["metadata"]
        for key in [entry["key"], *["warning"] * meta["is_warning"], *["error"] * meta["is_error"]]:
            found.setdefault(key, []).append(entry["value"])
    return found


def read(log: Mapping[str, Sequence[Any]], threads: int, scenario: str, samples: int) -> Load:
    """What a log says."""
    single = scenario == "single-stream"
    percentiles = {p: log[f"result_{p}.00_percentile_latency_ns"][0] for p in ("50", "90", "99")} if single else {}
    estimate = log.get("early_stopping_latency_ss", [0])[0] if single else 0
    return Load(
        threads, log["result_validity"][0] == "VALID", bool(log["result_min_duration_met"][0]),
        bool(log["result_min_queries_met"][0]), bool(log["early_stopping_met"][0]), int(log["result_query_count"][0]),
        samples, {p: 1e-9 * ns for p, ns in percentiles.items()}, 1e-9 * estimate if estimate > 0 else None,
        None if single else float(log["result_samples_per_second"][0]),
        tuple(str(x) for x in log.get("warning", ())), tuple(str(x) for x in log.get("error", ())),
    )  # fmt: skip
