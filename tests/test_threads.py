"""Calls that run beside their caller."""

from __future__ import annotations

from threading import Event, Thread

import numpy as np

from onnxprune.solvers.threads import ROOM, Beside


def test_large_arrays_wait_for_room() -> None:
    go, queued = Event(), Event()
    large = np.empty(int(ROOM), np.uint8)
    seen: list[int] = []

    def queue() -> None:
        with Beside() as beside:
            beside(go.wait)
            beside(seen.append, 1)  # small ones do not wait
            beside(lambda a: seen.append(len(a)), large)
            beside(lambda a: seen.append(len(a)), large[:2])
            queued.set()

    thread = Thread(target=queue)
    thread.start()
    assert not queued.wait(0.2)
    go.set()
    thread.join()
    assert seen == [1, len(large), 2]
