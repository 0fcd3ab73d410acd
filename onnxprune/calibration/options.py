"""What the user says of the samples that a model is calibrated on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.calibration import augment
from onnxprune.errors import OptionError
from onnxprune.options import DATA, anything, integer, option, path, size
from onnxprune.runtime.jobs import Where, needs_cache, where

MEMORY = 2.5e8  # bytes for activations


@dataclass(frozen=True)
class Data:
    """Calibration samples and what work on them may take."""

    calibration: Any = option(
        None, anything, panel=DATA, metavar="SRC", main=True, otherwise="images are made up where one goes in",
        help="Unlabelled samples, a few hundred: .npz or .npy (first axis: samples), a folder or zip of .npy or of "
        "images, or the word synthetic. In Python also arrays by input name, or an iterable of feeds.",
    )  # fmt: skip
    samples: int | None = option(
        None, integer("a whole number, 1 or more", 1), panel=DATA, metavar="N", needs=("data",),
        otherwise="256 to 1024, by the model's MACs; of made-up ones 16 to 256, by its layers and the time",
        help="At most so many of them, evenly spread.",
    )  # fmt: skip
    augment: bool | str | tuple[str, ...] = option(
        False, augment.parse, panel=DATA, metavar="[NAMES]", needs=("data or training samples",), alone="usual",
        help="Alone: random crops and flips of calibration images, or, with --train, of the pictures that are trained "
        "on. With names, separated by commas, what is done to the pictures of --tune. "
        + "; ".join(f"{name}: {row.help}" for name, row in augment.AUGMENTATIONS.items()) + ".",
    )  # fmt: skip
    memory: float | str = option(
        MEMORY, size("an amount of memory above 0, as 2 (GB) or 500MB", 1e9), panel=DATA, metavar="SIZE", unit="bytes",
        otherwise="250MB", effect="limits memory",
        help="For activations, in GB or with a unit; less means more passes, and smaller parts of a step of --tune.",
    )  # fmt: skip
    cache: Path | str | os.PathLike[str] | None = option(
        None, path, panel=DATA, metavar="DIR", needs=("levels, zeros by data or tuning",),
        help="Keep the level database, finished sparse layers and the state of --tune here; other targets for the same "
        "model, data and options then take seconds, and a run that was stopped goes on, to the same result.",
    )  # fmt: skip
    jobs: Where | int | str | None = option(
        None, where, panel=DATA, metavar="N|dask:ADDRESS|ray", effect="time only", otherwise="all cores",
        help="Solves in parallel; or parts of the level database on the workers of a Dask or Ray cluster of yours, "
        "which must see the samples and --cache by the same names.",
    )  # fmt: skip

    @property
    def at(self) -> Where | None:
        """Where work is done."""
        return None if self.jobs is None else where(self.jobs)

    def check(self, threads: int, *, levels: bool) -> None:
        """Raises `OptionError` for more jobs than there are cores, or for a cluster without work or results; levels:
        whether a level database is made."""
        at = self.at
        if at is None:
            return
        if at.cluster and not levels:
            raise OptionError(
                f"--jobs {at} has no effect here: on a cluster level databases are made (a target with "
                "--allocate kl and --calibration SRC)"
            )
        if at.cluster and self.cache is None:
            raise OptionError(needs_cache(at))
        if at.processes * max(threads, 1) > (os.cpu_count() or 1):
            raise OptionError(f"--jobs {at}: jobs times --threads must be 1 to {os.cpu_count()}, the number of cores")
