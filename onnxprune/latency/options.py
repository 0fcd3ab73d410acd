"""What the user says of how times are measured, and of latency tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxprune.latency.zeros import METHODS, Method
from onnxprune.options import CHECK, OUTPUT, choice, each, integer, option, path, switch, text

MAKING = "How to measure"
MOST = 100  # repetitions


@dataclass(frozen=True)
class Speed:
    """Where the times come from that a search goes by."""

    repeat: int = option(
        1, integer(f"a whole number from 1 to {MOST}", 1, MOST), panel=CHECK, metavar="N", needs=("a time to hold",),
        effect="exempt: how long times are measured",
        help="Measure the times that a search goes by N times as long, on a machine that is noisy.",
    )  # fmt: skip
    latency_table: Path | None = option(
        None, path, panel=CHECK, metavar="FILE", otherwise="this machine is measured", needs=("a time to hold",),
        effect="exempt: of times, which differ",
        help="Times of this model's nodes, of `onnxprune latency-table`, instead of measuring.",
    )  # fmt: skip
    elsewhere: bool = option(
        False, switch, panel=CHECK, needs=("a latency table",), effect="exempt: of times, which differ",
        help="The table is of another device, which the model is for; what a run takes is predicted, not measured.",
    )  # fmt: skip


def _described(method: Method) -> str:
    stored = "" if method.values == "float32" else f", {method.values} values"
    stored = ", in dense weights, which TensorRT looks at" if method.dense else stored
    return f"zeros by {method.pattern or 'magnitude'}{stored}"


@dataclass(frozen=True)
class Making:
    """How a table is made."""

    threads: int = option(
        1, integer("a whole number from 1 to 256", 1, 256), panel=MAKING, metavar="N",
        help="Intra-op threads of onnxruntime.",
    )  # fmt: skip
    methods: tuple[str, ...] = option(
        (), each(choice({name: _described(row) for name, row in METHODS.items()})),
        panel=MAKING, metavar="M", help=f"Zeros that are measured too: {', '.join(METHODS)}. Repeatable.",
    )  # fmt: skip
    provider: str = option(
        "CPUExecutionProvider", text, panel=MAKING, metavar="NAME", help="Execution provider of onnxruntime.",
    )  # fmt: skip
    repeat: int = option(
        1, integer("a whole number from 1 to 100", 1, MOST), panel=MAKING, metavar="N",
        help="How often all is timed, of which the medians count; for machines that do other work.",
    )  # fmt: skip
    kit: Path | None = option(
        None, path, panel=OUTPUT, metavar="DIR",
        help="Write the variants and a script that measures them on another device, and measure nothing here.",
    )  # fmt: skip
    measured: Path | None = option(
        None, path, panel=OUTPUT, metavar="FILE", help="What that script has written, to make a table of.",
    )  # fmt: skip
