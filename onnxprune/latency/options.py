"""What the user says of how times are measured."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.options import CHECK, integer, option

MOST = 100  # repetitions


@dataclass(frozen=True)
class Speed:
    """How times are measured that a search goes by."""

    repeat: int = option(
        1, integer(f"a whole number from 1 to {MOST}", 1, MOST), panel=CHECK, metavar="N", needs=("a time to hold",),
        effect="exempt: how long times are measured",
        help="Measure the times that a search goes by N times as long, on a machine that is noisy.",
    )  # fmt: skip
