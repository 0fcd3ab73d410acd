"""Work that is shared out: processes of this machine, and a Dask cluster on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from conftest import ROOT, Cli
from onnxprune.errors import OptionError
from onnxprune.runtime import jobs
from onnxprune.runtime.jobs import Job, Where, run, where

MODELS = ROOT / "models"
MLP, DIGITS = MODELS / "digits_mlp.onnx", MODELS / "digits_mlp.npz"
ASKED: dict[str, Any] = {"rounds": 1, "init": 0, "tune": "8steps", "batch_size": 16, "threads": 1, "seeds": 2}


def results(made: Callable[..., Mapping[str, Any]], keys: str, at: Where, folder: Path) -> dict[int, Any]:
    """What jobs give, one for each key, which is its argument."""
    got: dict[int, Any] = {}
    run([Job(k, made, (k,)) for k in keys], at, folder, lambda n, content: got.update({n: content}))
    return got


def test_where_jobs_go() -> None:
    assert where(3) == Where(3) and where(1).serial and not where("3").serial
    for wrong in ("0", "-1", "dask", "dask:", "ray:x", "many", 1.5):
        with pytest.raises(ValueError, match="expected a number of processes"):
            where(wrong)


def test_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    done: list[str] = []

    def made(key: str) -> Mapping[str, Any]:
        done.append(key)
        if key == "c":
            raise OptionError("no c")
        return {"of": key, "pi": 0.1 + 0.2}

    with pytest.raises(OptionError, match="no c"):
        results(made, "abc", Where(), tmp_path)
    assert done == ["a", "b", "c"]
    assert results(made, "ab", Where(), tmp_path)[1] == {"of": "b", "pi": 0.1 + 0.2} and done == ["a", "b", "c"]
    with pytest.raises(OptionError, match=r"--cache .*: cannot be used"):
        results(made, "d", Where(), DIGITS)


def test_a_process_that_is_lost_costs_its_job(tmp_path: Path) -> None:
    flag = tmp_path / "flag"

    def made(key: str) -> Mapping[str, Any]:
        if key == "b" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"of": key, "process": os.getpid()}

    got = results(made, "abc", Where(2), tmp_path)
    assert [got[n]["of"] for n in range(3)] == ["a", "b", "c"] and os.getpid() not in {
        g["process"] for g in got.values()
    }

    def killed(key: str) -> Mapping[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with pytest.raises(OptionError, match="--jobs 2: workers died 3 times"):
        results(killed, "d", Where(2), tmp_path)


def test_workers_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(key: str) -> Mapping[str, Any]:
        return {}

    job = jobs._packed(Job("a", made, ("a",)))
    with pytest.raises(OptionError, match="does not see this folder"):
        jobs._call(0, onnxprune.__version__, job, tmp_path / "elsewhere" / "witness", "--cache", tmp_path)
    monkeypatch.setattr("onnxprune.cache.version", lambda: "9.9")
    with pytest.raises(OptionError, match=rf"has onnxprune {onnxprune.__version__}, and this is 9.9"):
        results(made, "a", Where(2), tmp_path)


@dataclass(frozen=True)
class Cluster:
    """A scheduler on this machine, and its workers."""

    address: str
    workers: list[subprocess.Popen[bytes]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two workers, of one thread each."""
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    base, alike = [sys.executable, "-W", "ignore", "-m"], ["--host", "127.0.0.1", "--no-dashboard"]
    alike += ["--scheduler-file", str(file)]
    worker = [*base, "distributed.cli.dask_worker", *alike, "--nthreads", "1", "--no-nanny"]
    worker += ["--local-directory", str(tmp_path / "space")]
    started = [
        subprocess.Popen(words, stderr=subprocess.DEVNULL)
        for words in ([*base, "distributed.cli.dask_scheduler", *alike, "--port", "0"], worker, worker)
    ]
    try:
        for _ in range(600):
            if file.exists() and file.read_text().endswith("}"):
                break
            time.sleep(0.05)
        yield Cluster(json.loads(file.read_text())["address"], started[1:])
    finally:
        for process in started:
            process.kill()
            process.wait()


def untimed(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**row, "seconds": 0, "notes": list(row["notes"])} for row in report["rows"]]


def test_a_table_made_on_a_cluster_that_loses_a_worker(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(MODELS)  # relative names are of this folder, wherever workers were started
    serial = onnxprune.lottery(MLP, DIGITS, DIGITS, tmp_path / "serial", **ASKED)
    told: list[str] = []

    def progress(stage: str, done: int = 0, total: int = 0, *, note: str = "") -> None:
        told.extend([note] if ": seed" in note else [])
        if len(told) == 2:
            cluster.workers[0].kill()

    at = f"dask:{cluster.address}"
    folder = tmp_path / "cluster"
    whole = onnxprune.lottery(MLP.name, DIGITS.name, DIGITS.name, folder, jobs=at, progress=progress, **ASKED)
    assert len(told) == 8 and cluster.workers[0].wait() == -signal.SIGKILL
    assert untimed(whole) == untimed(serial) and whole["means"][1]["score"] == serial["means"][1]["score"]
    more = onnxprune.lottery(MLP, DIGITS, DIGITS, folder, progress=progress, **{**ASKED, "rounds": 2})
    assert untimed(whole) == [r for r in untimed(more) if r["round"] < 2], "a serial run goes on with it"

    asked: dict[str, Any] = {
        "calibration": np.load(DIGITS)["pixels"],
        "target_macs": 0.6,
        "threads": 1,
        "measure": False,
    }
    here = onnxprune.prune(MLP, **asked)
    there = onnxprune.prune(MLP, jobs=at, cache=tmp_path / "cache", **asked)
    assert {k: v.tolist() for k, v in here.plan.keep.items()} == {k: v.tolist() for k, v in there.plan.keep.items()}
    assert list((tmp_path / "cache").glob("job-*.json")), "levels came from workers"
    left = results(lambda key: {"process": os.getpid()}, "ab", where(at), tmp_path)
    assert {of["process"] for of in left.values()} == {cluster.workers[1].pid}, "a single one is asked, too"

    def killed(key: str) -> Mapping[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    monkeypatch.setattr(jobs, "LOOKS", 0.1)
    monkeypatch.setattr(jobs, "DESERTED", 0.3)
    with pytest.raises(OptionError, match="has no workers, or lost all of them"):
        results(killed, "c", where(at), tmp_path)


def test_pairs_on_processes_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {
        "train": DIGITS, "spawn": "0,4", "tune": "8steps", "init": 1, "points": 3, "threads": 1, "batch_size": 16,
    }  # fmt: skip
    serial = onnxprune.connect(MLP, **asked)
    cached = {**asked, "cache": tmp_path}
    both = onnxprune.connect(MLP, jobs=2, **cached)
    assert both["runs"] == json.loads(json.dumps(serial["runs"])) and both["means"] == serial["means"]
    monkeypatch.setattr("onnxprune.pipeline.connect.children", None)  # nothing is trained again
    assert onnxprune.connect(MLP, **cached)["runs"] == both["runs"]


@dataclass(frozen=True)
class Table:
    """A command whose parts are jobs. asked: of it; part: what makes one; rows: of its report; parts: how many."""

    asked: Callable[..., dict[str, Any]]
    part: str
    rows: str
    parts: int


TABLES = {
    "supermask": Table(
        partial(onnxprune.supermask, MLP, init=0, evaluate=DIGITS, criterion="large_final,random", action="reinit"),
        "supermask.network", "rows", 2,
    ),
    "proxies": Table(
        partial(onnxprune.proxies, [MLP, MODELS / "digits_resnet_bn.onnx"], proxy=["synflow", "parameters"]),
        "proxies.network", "models", 2,
    ),
    "agree": Table(
        partial(onnxprune.agree, MLP, calibration=[DIGITS], samples=32, importance=["activation", "fisher"]),
        "agree.scores_alone", "comparisons", 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_on_processes_and_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = TABLES[name]
    serial = of.asked(threads=1)
    both = of.asked(jobs=2, threads=1, cache=tmp_path)
    assert both[of.rows] == serial[of.rows] and both["notes"] == serial["notes"]
    assert len(list(tmp_path.glob("job-*.json"))) == of.parts
    monkeypatch.setattr(f"onnxprune.pipeline.{of.part}", None)  # nothing is made again
    assert of.asked(threads=1, cache=tmp_path)[of.rows] == serial[of.rows]
    next(tmp_path.glob("job-*.json")).unlink()
    with pytest.raises(TypeError, match="not callable"):
        of.asked(threads=1, cache=tmp_path)


LOTTERY = f"lottery {MLP} --train {DIGITS} --evaluate {DIGITS} --init 0"
BAD = {
    "no cluster": (f"{LOTTERY} --jobs dask:tcp://127.0.0.1:9", "the cluster cannot be reached"),
    "no such place": (f"{LOTTERY} --jobs some", "--jobs some: expected"),
    "no folder": (f"connect {MLP} --train {DIGITS} --spawn 0 --jobs dask:tcp://127.0.0.1:9", "needs --cache DIR"),
    "nothing to share out": (f"{MLP} --channels 0.3 --jobs dask:tcp://127.0.0.1:9", "has no effect here"),
    "no results": (f"{MLP} --target-macs 60% --calibration {DIGITS} --jobs dask:x", "needs --cache DIR"),
    "no networks": (f"supermask {MLP} --init 0 --picture x.svg --jobs 2", "--jobs 2 needs --evaluate"),
    "one model's line": (f"connect {MLP} {MLP} --evaluate {DIGITS} --jobs 2", "--jobs 2 needs --spawn"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, tmp_path: Path, call: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "REACHED", 0.5)
    words, line = BAD[name]
    done = call(f"{words} {'-o ' + str(tmp_path / 'out') if 'connect' not in words else ''}")
    assert done.code == 2 and line in done.err and len(done.err.strip().splitlines()) == 1
