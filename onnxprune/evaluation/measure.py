"""What is measured on the model that is written: size, zeros, latency. Never on a model before its last step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from onnxprune.errors import UserError
from onnxprune.graph.energy import TABLES
from onnxprune.graph.io import Model, stored_bytes, weight_bytes
from onnxprune.graph.messages import one_line
from onnxprune.options import CHECK, HOW, OUTPUT, choice, dims, each, integer, option, pair, path, switch
from onnxprune.runtime.memory import too_large
from onnxprune.runtime.profile import node_times
from onnxprune.runtime.session import UNRUNNABLE, Feeds
from onnxprune.runtime.timing import MIN_ROUNDS, Latency, latency

Measured = TypeVar("Measured")
SECONDS = 2.0  # of timing, both models together
PROFILED = 0.15  # seconds of a run, above which nodes are not timed by themselves
# what may stop a measurement without a mistake of ours: onnxruntime, the system, data, the user's function
FAILING: tuple[type[Exception], ...] = (UserError, OSError, *UNRUNNABLE)
_SHAPE = "NAME:1,3,224,224, sizes above 0"


def table(value: Any) -> Any:
    """A name of `TABLES`, or the path of a .json file."""
    return path(value) if Path(str(value)).suffix == ".json" else _named(value)


_named = choice({name: str(row) for name, row in TABLES.items()})
table.choices = _named.choices  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Check:
    """What is checked and measured, and with what."""

    input_shape: Mapping[str, tuple[int, ...]] | tuple[tuple[str, tuple[int, ...]], ...] = option(
        (), each(pair(_SHAPE, dims(_SHAPE), mark=":")), panel=CHECK, metavar="NAME:1,3,224,224",
        help="Concrete shape of a dynamic input, for the analysis, MACs and the check. Repeatable.",
    )  # fmt: skip
    verify: bool = option(
        True, switch, panel=CHECK,
        help="Check file, shapes, inputs and outputs, and that pruned equals masked, before anything is written.",
    )  # fmt: skip
    measure: bool = option(
        True, switch, panel=CHECK, flag="--latency", off="--no-latency", help="Time both models in onnxruntime."
    )
    energy: bool = option(
        False, switch, panel=CHECK, needs=("no energy target",),
        help="Report the energy of a run, by a model of arithmetic and memory; docs/energy.md has it.",
    )  # fmt: skip
    energy_table: str | Path = option(
        "horowitz", table, panel=CHECK, metavar="NAME|FILE.json", needs=("energy",),
        help="Whose picojoules that model takes; a file has others. list shows them.",
    )  # fmt: skip
    threads: int = option(
        0, integer("a whole number, 0 (all cores) or more", 0), panel=CHECK, metavar="N", otherwise="all cores",
        effect="exempt: speed of onnxruntime", help="onnxruntime's intra-op threads.",
    )  # fmt: skip
    seed: int = option(
        0, integer("a whole number, 0 or more", 0), panel=HOW, metavar="N", effect="exempt: random numbers",
        help="Of random inputs and scores.",
    )  # fmt: skip
    dry_run: bool = option(
        False, switch, panel=OUTPUT, effect="exempt: writes nothing", help="Plan and report; write no model."
    )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Input name -> concrete shape."""
        return dict(self.input_shape)


def told(missing: str, measure: Callable[[], Measured], notes: list[str]) -> Measured | None:
    """What is measured or compared; where that fails, whatever the reason, None, and a line more in the notes.

    missing: what the line says is not there. What only measures keeps no file from being written; a mistake of ours is
    called one, so that it is reported.
    """
    try:
        return measure()
    except FAILING as e:
        notes.append(f"{missing} ({one_line(e, 200) or type(e).__name__})")
    except Exception as e:
        fault = f"internal error: {type(e).__name__}: {one_line(e, 200)}".rstrip(": ")
        notes.append(f"{missing} ({fault}); please report it with the model")
    return None


def file_bytes(model: Model, path: Path | None) -> int:
    """Size on disk with external data, in bytes; of what would be written where there is no file."""
    if path is None or not path.is_file():
        return stored_bytes(model)
    return path.stat().st_size + (weight_bytes(model) if model.external else 0)


def latencies(
    original: Model,
    written: Model,
    guesses: Sequence[tuple[Feeds, Feeds]],
    threads: int,
    *,
    seconds: float = SECONDS,
    least: int = MIN_ROUNDS,
) -> tuple[dict[str, Latency], list[str]]:
    """Times of both models in turn, by before and after, on the first inputs that run; and why there are none."""
    problem = too_large([original, written])
    if problem:
        return {}, [f"latency not measured: {problem}"]
    for before, after in guesses:
        try:
            models, feeds = {"before": original, "after": written}, {"before": before, "after": after}
            return latency(models, feeds, threads=threads, seconds=seconds, least=least), []
        except UNRUNNABLE as e:
            problem = problem or one_line(e, 120)
    return {}, [f"latency not measured: onnxruntime cannot run the model ({problem})"]


def times_of_nodes(
    original: Model, written: Model, guesses: Sequence[tuple[Feeds, Feeds]], times: Mapping[str, Latency]
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Median seconds of a call of every node of both models by its name, on the first inputs that run; none where a run
    takes longer than `PROFILED`. times: as `latencies` gives them. Raises `UNRUNNABLE` where no inputs do."""
    if not times or times["before"].median > PROFILED:
        return {}, {}
    threads = times["before"].threads
    for k, feeds in enumerate(guesses):
        with suppress(*UNRUNNABLE if k + 1 < len(guesses) else ()):
            pairs = zip((original, written), feeds, strict=True)
            before, after = ({n: us * 1e-6 for n, us in node_times(m, f, threads).items()} for m, f in pairs)
            return before, after
    return {}, {}
