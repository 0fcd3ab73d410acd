"""Jobs that do not depend on each other: in this process, in processes of this machine, or on the workers of a cluster.

joblib carries them; there is no scheduler of ours. What a job gives is plain data, and an entry of a folder that all
workers see, by a key of all that it depends on: a worker that is lost costs its job only, and a run that was stopped
skips what is there.

>>> str(where("2")), str(where("dask:tcp://127.0.0.1:8786")), where("ray").cluster
('2', 'dask:tcp://127.0.0.1:8786', 'ray')
"""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, chdir, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from threading import Event, Lock, Thread
from typing import Any

from onnxprune import cache
from onnxprune.errors import OnnxPruneError, OptionError, blamed
from onnxprune.solvers.threads import cores

ALONE = Lock()  # a job has a process for itself: BLAS, and what is remembered, are of the process
ATTEMPTS = 3  # at jobs whose worker was lost
REACHED = 10  # seconds in which a cluster must answer
DESERTED = 60  # seconds for which a cluster that lost all of its workers is waited for
LOOKS = 2  # seconds between looks at whether it has some
Done = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True)
class Where:
    """processes: of this machine, 1 for this one; cluster: "dask", "ray" or "" for none; address: of its scheduler."""

    processes: int = 1
    cluster: str = ""
    address: str = ""

    @property
    def serial(self) -> bool:
        """Whether one job is done after the other, in this process."""
        return not self.cluster and self.processes == 1

    def __str__(self) -> str:
        return ":".join(filter(None, (self.cluster, self.address))) or str(self.processes)


def where(value: Any) -> Where:
    """What --jobs means. Raises `ValueError`."""
    if isinstance(value, Where):
        return value
    text = str(value).strip()
    name, _, address = text.partition(":")
    if text == "ray" or (name == "dask" and address):
        return Where(cluster=name, address=address)
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ValueError("expected a number of processes, 1 or more, dask:ADDRESS of a scheduler, or ray")
    return Where(int(text))


def threads_of(at: Where, threads: int) -> int:
    """Threads of onnxruntime in a job; threads: as asked for, 0 where nobody says. Processes of this machine share its
    cores then."""
    return threads if threads or at.serial or at.cluster else max(1, cores() // at.processes)


def needs_cache(at: Where) -> str:
    """The line for a cluster without a folder for results."""
    return f"--jobs {at} needs --cache DIR, a folder that all workers see by the same name"


@contextmanager
def results(at: Where, cache: Path | str | None) -> Iterator[Path]:
    """The folder for results: that of --cache, or else one that is gone afterwards. Raises `OptionError` where workers
    elsewhere would not see it."""
    if cache is not None:
        yield Path(cache)
        return
    if at.cluster:
        raise OptionError(needs_cache(at))
    with TemporaryDirectory(prefix="onnxprune-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Job:
    """function: gives plain data, that JSON has, of the arguments; key: of all that these depend on."""

    key: str
    function: Callable[..., Mapping[str, Any]]
    arguments: tuple[Any, ...]


def elsewhere(make: Callable[..., Callable[..., Mapping[str, Any]]], *shared: Any) -> Callable[..., Mapping[str, Any]]:
    """What jobs call in workers: make(*shared), which a worker makes once for all jobs of one experiment."""
    return partial(_made_and_called, _packed(make, *shared))


def _made_and_called(bundle: bytes, *arguments: Any) -> Mapping[str, Any]:
    return _made(bundle)(*arguments)


@lru_cache(1)
def _made(bundle: bytes) -> Callable[..., Mapping[str, Any]]:
    make, *shared = _unpacked(bundle)
    made: Callable[..., Mapping[str, Any]] = make(*shared)
    return made


def _packed(*arguments: Any) -> bytes:
    import cloudpickle  # the user's own functions are among them

    return bytes(cloudpickle.dumps(arguments))


def _unpacked(bundle: bytes) -> Any:
    import cloudpickle

    return cloudpickle.loads(bundle)


def collected(jobs: Iterable[Job], at: Where, folder: Path | str | None, told: Done) -> list[dict[str, Any]]:
    """The results of all jobs, in their order; arguments are those of `run`, and `results`."""
    made = dict[int, dict[str, Any]]()

    def done(k: int, result: dict[str, Any]) -> None:
        made[k] = result
        told(k, result)

    with results(at, folder) as kept:
        run(jobs, at, kept, done)
    return [made[k] for k in range(len(made))]


def run(jobs: Iterable[Job], at: Where, folder: Path, done: Done, *, option: str = "--cache") -> None:
    """Do all jobs that the folder has no result of, in any order; serially in theirs, each taken when it is its turn.

    folder: keeps results, and must be seen by all workers; option: that names it, in messages; done: gets the place of
    a job in `jobs` and its result, as soon as it is there. Raises what a job raises, and `OptionError` where workers
    cannot be reached, do not fit, or die again and again.
    """
    left = dict[int, Job]()
    with _errors(option, folder):
        folder.mkdir(parents=True, exist_ok=True)
    for k, job in enumerate(jobs):
        with _errors(option, folder):
            result = cache.read_json(_entry(folder, job), job.key)
        if result is None and at.serial:
            result = _kept(job, folder, option)
        if result is None:
            left[k] = job
        else:
            done(k, result)
    for _ in range(ATTEMPTS):
        if not left:
            return
        try:
            for k, result in _carried(left, at, folder, option):
                del left[k]
                done(k, result)
        except BrokenExecutor:  # what was begun is begun again
            continue
    if left:
        raise OptionError(f"--jobs {at}: workers died {ATTEMPTS} times, of too little memory it may be; give fewer")


def _carried(
    left: Mapping[int, Job], at: Where, folder: Path, option: str
) -> Iterator[tuple[int, dict[str, Any]]]:  # fmt: skip
    """Results as they come."""
    from joblib import Parallel, delayed  # here: the command line reads this module for what --jobs may be

    with ExitStack() as stack:
        with _errors(option, folder):
            witness = Path(stack.enter_context(NamedTemporaryFile(dir=folder, prefix="workers-")).name)
        client = stack.enter_context(_workers(at))
        calls = [
            delayed(_call)(k, cache.version(), _packed(job), witness, option, Path.cwd()) for k, job in left.items()
        ]  # fmt: skip
        count = at.processes if not at.cluster else -1
        how = "list" if at.cluster == "ray" else "generator_unordered"  # ray's backend gives all at the end
        parallel = Parallel(n_jobs=count, batch_size=1, return_as=how)
        stack.enter_context(_watched(parallel, client))
        try:
            yield from parallel(calls)
        except (OnnxPruneError, BrokenExecutor, KeyboardInterrupt):
            raise
        except Exception as e:
            raise _told(e, at) from e


def _call(k: int, version: str, job: bytes, witness: Path, option: str, home: Path) -> tuple[int, dict[str, Any]]:
    """A job in a worker, after it was seen to fit; home: what relative names are of. Raises `OptionError` where it does
    not fit."""
    own = cache.version()
    if own != version:
        raise OptionError(
            f"--jobs: the worker on {socket.gethostname()} has onnxprune {own}, and this is {version}; install the same"
        )
    if not witness.exists():
        raise OptionError(
            f"{option} {witness.parent}: the worker on {socket.gethostname()} does not see this folder; name one that "
            "all workers share"
        )
    with ALONE, chdir(home) if home.is_dir() else nullcontext():
        (work,) = _unpacked(job)
        return k, _kept(work, witness.parent, option)


def _kept(job: Job, folder: Path, option: str) -> dict[str, Any]:
    """The result of a job, which the folder has from then on."""
    result = dict(job.function(*job.arguments))
    with _errors(option, folder):
        cache.write_json(_entry(folder, job), job.key, result)
    return result


def _entry(folder: Path, job: Job) -> Path:
    return folder / f"job-{job.key[:24]}.json"


@contextmanager
def _workers(at: Where) -> Iterator[Any]:
    """What joblib gives jobs to; of Dask, the client. Raises `OptionError` where it cannot be had."""
    from joblib import parallel_config

    client = None
    with ExitStack() as stack:
        try:
            if at.cluster == "dask":
                from distributed import Client

                client = stack.enter_context(Client(at.address, timeout=REACHED, set_as_default=True))
                _never_here(stack.enter_context(parallel_config("dask", wait_for_workers_timeout=REACHED)))
            elif at.cluster == "ray":
                import ray
                from ray.util.joblib import register_ray

                ray.init(address="auto", logging_level="ERROR")
                stack.callback(ray.shutdown)
                register_ray()
                _never_here(stack.enter_context(parallel_config("ray")))
            else:
                stack.enter_context(parallel_config("loky"))
        except ImportError as e:
            raise OptionError(f"--jobs {at}: {_line(e)}; pip install 'onnxprune[{at.cluster}]'") from None
        except (OSError, TimeoutError, ValueError) as e:
            raise OptionError(f"--jobs {at}: the cluster cannot be reached ({_line(e)})") from e
        yield client


@contextmanager
def _watched(parallel: Any, client: Any) -> Iterator[None]:
    """joblib waits for ever for a Dask cluster that lost all of its workers: after a while its jobs are timed out."""
    over = Event()

    def watch() -> None:
        seen = time.monotonic()
        while client is not None and not over.wait(LOOKS) and time.monotonic() - seen < DESERTED:
            with suppress(OSError, TimeoutError):
                seen = time.monotonic() if client.ncores() else seen
        if client is not None and not over.is_set():
            parallel.timeout = 0.0

    looking = Thread(target=watch, daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()


def _never_here(config: Mapping[str, Any]) -> None:
    """joblib does the work of a single worker in this process, without asking it: it is told of two at least."""
    backend = config["backend"]
    count = backend.effective_n_jobs
    backend.effective_n_jobs = lambda n_jobs: max(2, count(n_jobs))


def _told(e: Exception, at: Where) -> Exception:
    """What went wrong outside of a job, in the user's words; else as it is."""
    if isinstance(e, ImportError | AttributeError | TypeError) and ("onnxprune" in str(e) or "_call()" in str(e)):
        return OptionError(f"--jobs {at}: a worker has no onnxprune of this version ({_line(e)}); install the same")
    if isinstance(e, TimeoutError | multiprocessing.TimeoutError):
        return OptionError(
            f"--jobs {at}: the cluster has no workers, or lost all of them, as it does where they have no onnxprune; "
            f"start some that have {cache.version()}"
        )
    if type(e).__module__.startswith(("distributed", "ray")):
        return OptionError(f"--jobs {at}: the cluster was lost, or its workers again and again ({_line(e)})")
    return e


def _line(e: Exception) -> str:
    return (str(e) or type(e).__name__).splitlines()[0]


def _errors(option: str, folder: Path) -> Any:
    return blamed(f"{option} {folder}", "cannot be used", "; name another folder", refusals=(OSError,))
