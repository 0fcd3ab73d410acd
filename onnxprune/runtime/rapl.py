"""Joules that the processor's own counters show: RAPL, as the kernel's powercap folder has it.

Each package counts microjoules, and starts again at its range. What is read is all that a package took, cores, caches
and whatever else ran, from one reading to the next.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
SLICE = 0.05  # seconds at least between readings: the counters move about every millisecond


@dataclass(frozen=True)
class Rapl:
    """Counters of packages: folder -> range in microjoules."""

    ranges: Mapping[Path, int]

    @classmethod
    def found(cls, folder: Path = POWERCAP) -> Rapl | None:
        """The counters that can be read, of whole packages; None where there are none."""
        packages = sorted(p for p in folder.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl:\d+", p.name))
        try:
            ranges = {p: int((p / "max_energy_range_uj").read_text()) for p in packages}
            rapl = cls(ranges)
            rapl.read()
        except (OSError, ValueError):  # root alone may read them on most systems
            return None
        return rapl if ranges else None

    def read(self) -> dict[Path, int]:
        """Microjoules of every package by now."""
        return {p: int((p / "energy_uj").read_text()) for p in self.ranges}

    def joules(self, before: Mapping[Path, int], after: Mapping[Path, int]) -> float:
        """Joules between two readings, of all packages, each past the end of its range once at most."""
        return 1e-6 * sum((after[p] - before[p]) % (most + 1) for p, most in self.ranges.items())

    def per_run(self, runs: Sequence[Callable[[], object]], seconds: float) -> list[float]:
        """Joules of one call of each, in turn, a slice of time each, for so many seconds altogether."""
        total, count = [0.0] * len(runs), [0] * len(runs)
        end = time.perf_counter() + seconds
        while not all(count) or time.perf_counter() < end:
            for k, run in enumerate(runs):
                before, start = self.read(), time.perf_counter()
                while time.perf_counter() - start < SLICE:
                    run()
                    count[k] += 1
                total[k] += self.joules(before, self.read())
        return [joules / n for joules, n in zip(total, count, strict=True)]
