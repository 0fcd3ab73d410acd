"""How a command of the command line is made from declared options: its signature, its values, its shell completion.

In goes a function that takes `CommandValues`; typer sees a function with a parameter per option, each of them text that
`Option.read` understands, so that a value means the same in every command and in Python.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer
from rich.table import Table
from rich.text import Text

from onnxprune.cli import process
from onnxprune.cli.help import HelpCommand
from onnxprune.cli.screen import emit_json, show_on, staged_file
from onnxprune.errors import OptionError
from onnxprune.options import OUTPUT, Option, declared, option, path, switch, text
from onnxprune.options import shared as of_others
from onnxprune.page.pages import page_of
from onnxprune.pipeline.options import OPTIONS

T = TypeVar("T")


def page_file(value: Any) -> Path:
    """A path that a page can be written to; raises `ValueError` for standard output."""
    if str(value) == "-":
        raise ValueError("the page needs a file, as report.html")
    return path(value)


@dataclass(frozen=True)
class Output:
    """What a command writes and prints: options of the command line alone."""

    output: Path | None = option(
        None, path, panel=OUTPUT, short="-o", metavar="OUT", otherwise="MODEL.pruned.onnx", main=True,
        help="Where to write, - for standard output; an existing file is replaced, the input only with --force.",
    )  # fmt: skip
    force: bool = option(False, switch, panel=OUTPUT, help="Allow OUT to be the input.")
    save_plan: Path | None = option(
        None, path, panel=OUTPUT, metavar="FILE", help="Write what is kept, as JSON; --plan replays it."
    )
    json: str | None = option(
        None, text, panel=OUTPUT, metavar="FILE", help="Write the report as JSON; - for standard output.", main=True
    )
    html: Path | None = option(
        None, page_file, panel=OUTPUT, metavar="FILE",
        help="Write the report as a page: one HTML file that needs no network, for screen, phone and paper.",
    )  # fmt: skip
    verbose: bool = option(
        False, switch, panel=OUTPUT, short="-v", help="Name every group and everything pinned.", main=True
    )
    quiet: bool = option(False, switch, panel=OUTPUT, short="-q", help="Print nothing but errors.", main=True)

    @property
    def json_file(self) -> Path | None:
        """The file of --json, where that is no stream."""
        return None if self.json in (None, "-") else Path(str(self.json))

    @property
    def reports(self) -> dict[str, Path | None]:
        """The files that the report goes to, by option."""
        return {"--json": self.json_file, "--html": self.html}


DECLARED = {o.name: o for o in (*OPTIONS, *declared(Output))}


def shared(*names: str, **helps: str) -> tuple[Option, ...]:
    """Declared options for another command; helps: what they mean there, where that differs."""
    return of_others(DECLARED.values(), names, helps)


@dataclass(frozen=True)
class CommandValues:
    """What the words of a command mean. given: name -> value of what was given; the rest has its default; command: its
    name; typed: the words as a shell takes them."""

    options: Mapping[str, Option]
    given: Mapping[str, Any]
    command: str
    typed: str

    def __getitem__(self, name: str) -> Any:
        return self.given[name] if name in self.given else self.options[name].default

    def part(self, cls: type[T]) -> T:
        """The values of one options dataclass."""
        return cls(**{f.name: self[f.name] for f in fields(cls) if f.name in self.options})  # type: ignore[arg-type]


Body = Callable[[CommandValues], None]
MODEL = {"model": Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)]}


def command(
    app: typer.Typer, options: Sequence[Option], arguments: Mapping[str, Any] = MODEL, *, name: str | None = None
) -> Callable[[Body], Body]:
    """Make a function a command of the app; its docstring is the help. arguments: name -> annotation for typer."""
    known = {o.name: o for o in options}

    def register(body: Body) -> Body:
        def run(**words: Any) -> None:
            given = {n: words[n] for n in arguments} | read_words(known, words)
            values = CommandValues(known, given, called, as_typed(called, arguments, known, words))
            if values.given.get("quiet") and values.given.get("verbose"):
                raise OptionError("--quiet and --verbose: one says less, the other more; leave one of them out")
            with process.working():
                body(values)

        called = name or body.__name__
        parameters = [_parameter(n, annotation, _absent(annotation)) for n, annotation in arguments.items()]
        parameters += [_parameter(o.name, *_typed(o)) for o in options]
        run.__doc__ = body.__doc__
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        help_class = type(f"Help{called.title()}", (HelpCommand,), {"declared": tuple(options)})
        app.command(name=called, cls=help_class)(run)
        return body

    return register


def read_words(options: Mapping[str, Option], words: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the options that were given, by name; raises `OptionError` in one line."""
    values = {}
    for name, o in options.items():
        word = words.get(name)
        if word is None or word == [] or word is o.default:
            continue
        try:
            values[name] = sum((o.read(each) for each in word), ()) if o.many else o.read(word)
        except ValueError as e:
            raise OptionError(str(e)) from None
    return values


def as_typed(command: str, arguments: Iterable[str], options: Mapping[str, Option], words: Mapping[str, Any]) -> str:
    """The command line that these words came from, in the order of the declarations."""
    out = ["onnxprune", *([] if command == "prune" else [command])]
    for name in arguments:
        given = words[name]
        out += [str(each) for each in (given if isinstance(given, (list, tuple)) else [given]) if each is not None]
    for name, o in options.items():
        word = words.get(name)
        if o.switch:
            out += [] if word in (None, o.default) else [o.as_typed(word)]
        else:
            for each in [] if word is None else word if o.many else [word]:
                out += [o.flag, str(each)]
    return shlex.join(out)


def emit(values: CommandValues, report: Mapping[str, Any]) -> None:
    """Write the report of a command to where --json and --html say."""
    out = values.part(Output)
    page = "" if out.html is None else page_of(values.command, report, values.typed)
    with staged_file("--html", out.html, page):
        emit_json(report, out.json)


def _absent(annotation: Any) -> Any:
    """What an argument is where it is left out: None where it may be that, else it must be there."""
    return None if type(None) in get_args(get_args(annotation)[0]) else inspect.Parameter.empty


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _typed(o: Option) -> tuple[Any, Any]:
    """The annotation of an option for typer, and its default: text, or a switch."""
    flags = [f"{o.flag}/{o.off}" if o.off else o.flag, *([o.short] if o.short else [])]
    if o.switch:
        return Annotated[bool, typer.Option(*flags, help=o.help)], o.default
    kind: Any = list[str] if o.many else str
    declaration = typer.Option(
        *flags,
        metavar=o.metavar,
        help=o.help,
        autocompletion=_completion(o),
        callback=_lister(o),
        is_eager=bool(o.choices),
    )
    return Annotated[kind | None, declaration], None


def _completion(o: Option) -> Callable[[str], list[tuple[str, str]]] | None:
    if not o.choices:
        return None

    def complete(incomplete: str) -> list[tuple[str, str]]:
        names = {**o.choices, "list": "explain them"}
        return [(n, what) for n, what in names.items() if n.lower().startswith(incomplete.lower())]

    return complete


def _lister(o: Option) -> Callable[[Any], Any] | None:
    """`list` as the value shows what there is to choose from."""
    if not o.choices:
        return None

    def callback(value: Any) -> Any:
        words = [value] if isinstance(value, str) else value or []
        if any(isinstance(word, str) and word.strip().lower() == "list" for word in words):
            show_on(None, choice_table(o))
            raise typer.Exit
        return value

    return callback


def choice_table(o: Option) -> Table:
    """What an option may be, as a table."""
    table = Table(box=None, pad_edge=False)
    table.add_column(o.flag.removeprefix("--"), no_wrap=True)
    if any(o.choices.values()):
        table.add_column("what it is", overflow="fold")
    for name, what in o.choices.items():
        table.add_row(*(Text(cell) for cell in (name, what)[: len(table.columns)]))
    return table
