"""Threads: of BLAS, and of our own.

Products and factorisations of a few hundred rows are quicker on one thread of BLAS than on several, by far where other
threads run beside them (onnxruntime's, other programs'): BLAS waits for its threads by spinning. So BLAS gets one, and
what can be done at once is done in threads of ours; matrices that are wide enough get all.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from types import TracebackType

import numpy as np
import scipy.linalg  # noqa: F401 (the controller sees the libraries that are loaded)
from threadpoolctl import ThreadpoolController

WIDE = 1024  # columns from which on BLAS may use all cores
AHEAD, ROOM = 8, 32e6  # calls that may wait, and bytes of arrays that they hold, if more than one does


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def blas_threads(threads: int) -> Iterator[None]:
    """BLAS with so many threads, in all threads of the process, until it is left."""
    with _controller().limit(limits=threads, user_api="blas"):
        yield


@contextmanager
def blas_for(columns: int) -> Iterator[None]:
    """BLAS with all cores for matrices that are wide enough, else as it is."""
    if columns < WIDE:
        yield
        return
    with blas_threads(cores()):
        yield


class Beside:
    """Calls that run one after the other in a thread, in their order, while the caller goes on; on leaving, all are
    done, and the first exception is raised."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.calls, self.bytes, self.done = 0, 0, Condition()
        self.failed: BaseException | None = None

    def __enter__(self) -> Beside:
        return self

    def __call__(self, function: Callable[..., object], *arguments: object, **options: object) -> None:
        """Call it later; waits while too many calls do, or too large ones."""
        size = sum(a.nbytes for a in arguments if isinstance(a, np.ndarray))
        with self.done:
            self.done.wait_for(lambda: not self.calls or (self.calls < AHEAD and self.bytes + size <= ROOM))
            self.calls, self.bytes = self.calls + 1, self.bytes + size
        self.pool.submit(self._run, size, function, arguments, options)

    def _run(
        self, size: int, function: Callable[..., object], arguments: tuple[object, ...], options: dict[str, object]
    ) -> None:
        try:
            if self.failed is None:
                function(*arguments, **options)
        except BaseException as e:
            self.failed = e
        finally:
            with self.done:
                self.calls, self.bytes = self.calls - 1, self.bytes - size
                self.done.notify()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None and self.failed is not None:
            raise self.failed
