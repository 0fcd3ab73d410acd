"""The process around a command: Ctrl-C, and what libraries print. Imports nothing that takes time.

Ctrl-C (SIGINT, SIGTERM) ends with one line and exit code 130, whenever it comes. Before the work starts the process
ends at once. Later the stages unwind, so that no half written file stays behind; where native code or threads do not
let go in `GRACE` seconds, the process ends all the same. What the line says was written is looked up on the disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from onnxprune.progress import Stop

INTERRUPTED = 130  # exit code
GRACE = 5.0  # seconds in which work must come to its end
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Identity = tuple[int, int, int, int] | None  # of a file: device, inode, time, size


class Interrupted(Exception):
    """The stages have unwound after a signal."""


class Interruption:
    """What is known when a signal comes. stopped: one came; working: the stages run, so they must unwind."""

    def __init__(self) -> None:
        self.stopped = self.working = False
        self.outputs: dict[str, Identity] = {}
        self.stderr = 2

    def will_write(self, *paths: object) -> None:
        """Files that the work is about to write."""
        self.outputs |= {str(p): _identity(str(p)) for p in paths}

    def line(self) -> str:
        """The line for the user: interrupted, and which files were written by then."""
        return f"interrupted{self.written()}"

    def written(self) -> str:
        """Which files were written by now, to be appended to what happened."""
        written = [path for path, before in self.outputs.items() if _identity(path) != before]
        return f"; written: {', '.join(written)}" if written else ", nothing was written"

    def leave(self) -> None:
        """End the process at once."""
        with contextlib.suppress(OSError):
            cursor = "\r\x1b[K\x1b[?25h" if self.working and os.isatty(self.stderr) else ""  # a bar may have hidden it
            os.write(self.stderr, f"{cursor}onnxprune: {self.line()}\n".encode(errors="backslashreplace"))
        os._exit(INTERRUPTED)


interruption = Interruption()


def _identity(path: str) -> Identity:
    try:
        s = os.stat(path)
    except (OSError, ValueError):
        return None
    return s.st_dev, s.st_ino, s.st_mtime_ns, s.st_size


def guarded(work: Callable[[], int]) -> int:
    """The exit code of the work, which tells of an interruption by a `KeyboardInterrupt` or a code of its own."""
    _listen()
    try:
        try:
            code = work()
        finally:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_IGN)  # it comes too late
    except KeyboardInterrupt:
        interruption.leave()
    if interruption.stopped and code != INTERRUPTED:  # someone swallowed it
        interruption.leave()
    return code


def _listen() -> None:
    caught = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]  # as nohup wants it
    for each in caught:
        signal.signal(each, _stop)
    if caught and sys.platform != "win32":
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def _stop(*_: Any) -> None:
    if interruption.stopped:
        return
    if interruption.working and Stop.inside:  # it ends early, with what it has
        raise KeyboardInterrupt
    interruption.stopped = True
    if not interruption.working:
        interruption.leave()
    sys.unraisablehook = lambda _: None  # where the exception comes up in a finalizer
    raise KeyboardInterrupt


def _watch(reader: int) -> None:
    """Python's handler waits for native code to come back; this thread does not."""
    while True:
        os.read(reader, 1)
        time.sleep(GRACE)
        if interruption.stopped or not (Stop.inside or Stop.taken):
            interruption.leave()


@contextlib.contextmanager
def working() -> Iterator[None]:
    """The stages run: an interruption unwinds them."""
    interruption.working = True
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        interruption.working = False


def mute_libraries() -> None:
    """Warnings of libraries, native ones too, go nowhere; `sys.stderr` stays ours."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
        stderr = os.dup(2)
        null = os.open(os.devnull, os.O_WRONLY)
    except OSError:  # it is closed
        return
    os.dup2(null, 2)
    os.close(null)
    sys.stderr = open(stderr, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")  # noqa: SIM115
    interruption.stderr = stderr
