"""`onnxprune export-library`: the sparse operators for programs without Python."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.text import Text

from onnxprune.cli.command import CommandValues, shared
from onnxprune.cli.screen import check_outputs, emit_json, hushed, progress_bar, show_on
from onnxprune.errors import OptionError, blamed
from onnxprune.formats.operators import OPERATORS, is_sparse
from onnxprune.graph.io import load
from onnxprune.graph.protos import graphs
from onnxprune.kernels.ahead import EVERY, LEVELS, TARGETS, Made, Operator, host, library
from onnxprune.options import OUTPUT, STORE, choice, declared, each, option, path


def _target(value: Any) -> str:
    """A name of `TARGETS`."""
    name = str(value).strip().lower()
    if name not in TARGETS:
        raise ValueError(f"expected one of {', '.join(TARGETS)}")
    return name


@dataclass(frozen=True)
class Export:
    """What is made."""

    target: tuple[str, ...] = option(
        (), each(_target), panel=OUTPUT, metavar="SYSTEM", otherwise="this system",
        help=f"For what system: {', '.join(TARGETS)}. Repeatable; each gets a folder of its own then.",
    )  # fmt: skip
    level: tuple[str, ...] = option(
        (), each(choice({name: row.needs for name, row in LEVELS.items()})), panel=OUTPUT, metavar="LEVEL",
        otherwise="all of the system",
        help="Kernels for this level of CPU alone: v2, v3, v4, vnni of x86-64, neon. Repeatable; the best of them that "
        "a CPU has runs.",
    )  # fmt: skip
    ops_from: Path | None = option(
        None, path, panel=STORE, metavar="MODEL", otherwise="all operators",
        help="A small library: the operators of this model alone.",
    )  # fmt: skip


FOLDER = replace(shared("output", output="The folder that gets the library.")[0], otherwise="this one", metavar="DIR")
EXPORT = (*declared(Export), FOLDER, *shared("json", "quiet"))


def export_library(values: CommandValues) -> None:
    """Make libonnxprune_ops, with which sparse models run fast in C, C++, C#, Java, Rust or on a phone.

    onnxprune export-library -o lib/ writes one shared library that exports RegisterCustomOps and needs no Python. Where
    nothing here links for a system, it gets the objects, and the command that does.
    """
    folder = values["output"] or Path()
    names = values["target"] or (host(),)
    if not names[0]:
        raise OptionError(f"there are no kernels for this system; name another with --target: {', '.join(TARGETS)}")
    for name in names:
        for level in set(values["level"]) - set(TARGETS[name].levels):
            raise OptionError(f"--level {level}: {name} has {', '.join(TARGETS[name].levels)}")
    operators = EVERY if values["ops_from"] is None else operators_of(values["ops_from"])
    json_file = None if values["json"] in (None, "-") else Path(values["json"])
    check_outputs(values["ops_from"], None, {"--json": json_file})
    made, texts = list[Made](), dict[str, str]()
    with hushed(), progress_bar(values["quiet"]) as progress:

        def tell(line: str) -> None:
            progress("export", note=line)

        for name in names:
            place = folder / name if len(names) > 1 else folder
            with blamed(f"-o {place}"):
                place.mkdir(parents=True, exist_ok=True)
                made.append(library(name, place, operators, values["level"], tell=tell, texts=texts))
    emit_json(report_of(made, operators), values["json"])
    if not values["quiet"]:
        show_on(values["json"], Text("\n".join(line for each in made for line in told(each))))


def operators_of(model: Path) -> tuple[Operator, ...]:
    """The operators of a model, by how weights lie and what product it is."""
    nodes = [node for graph in graphs(load(model).proto.graph) for node in graph.node if is_sparse(node)]
    rows = [OPERATORS[node.op_type] for node in nodes if node.op_type in OPERATORS]
    if not rows:
        raise OptionError(f"--ops-from {model}: there is no sparse operator in it; leave it out for a library with all")
    return tuple(dict.fromkeys((row.storage.name, row.product) for row in rows))


def told(made: Made) -> list[str]:
    """What was written, in lines."""
    if made.library is not None:
        return [f"written: {made.library} ({made.library.stat().st_size / 1000:.0f} kB, {made.target})"]
    files = ", ".join(o.name for o in made.objects)
    return [
        f"{made.target}: no compiler here links for it; written to {made.objects[0].parent}: {files} and the C sources",
        f"in that folder run: {made.command}",
    ]


def report_of(made: list[Made], operators: tuple[Operator, ...]) -> dict[str, Any]:
    """Plain data."""
    return {
        "operators": [f"{storage}{product}" for storage, product in operators],
        "libraries": [
            {
                "target": m.target, "library": None if m.library is None else str(m.library),
                "bytes": None if m.library is None else m.library.stat().st_size,
                "objects": [str(o) for o in m.objects], "command": m.command,
            }
            for m in made
        ],
    }  # fmt: skip


__all__ = ["EXPORT", "export_library"]
