"""Files that are made from the declarations of options: the keywords of `prune`, and the reference page.

python tools/generate.py            write onnxprune/pipeline/keywords.py and docs/options.md
python tools/generate.py --check    exit code 1 where one of them is not what the declarations say
"""

from __future__ import annotations

import ast
import builtins
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onnxprune.cli import (  # noqa: E402
    agree,
    bench,
    connect,
    evaluate,
    explore,
    latency_table,
    lottery,
    operators,
    proxies,
    sensitivity,
    supermask,
    train,
)
from onnxprune.cli import help as screens  # noqa: E402
from onnxprune.cli.command import Output  # noqa: E402
from onnxprune.cli.help import describe_choices  # noqa: E402
from onnxprune.options import Option, declared, in_python, shown  # noqa: E402
from onnxprune.pipeline.options import OPTIONS, PARTS  # noqa: E402

MADE = "Made from the declarations of options by tools/generate.py; do not edit."
KEYWORDS = "onnxprune/pipeline/keywords.py"
WIDTH = 110  # of a docstring's line


# onnxprune/pipeline/keywords.py


def keywords() -> str:
    """A `TypedDict` with a field per option: what `prune(model, **options)` takes."""
    imports: dict[str, set[str]] = {"onnxprune.calibration.presets": {"Preprocess"}}
    fields = []
    for part in PARTS.values():
        for o in declared(part):
            for module, name in _imports(o.type, inspect.getmodule(part)):
                imports.setdefault(module, set()).add(name)
            fields.append(_field(o.name, o.type, _said(o)))
    fields.append(_field("preprocess", "Preprocess | None", "The options of images in one value."))
    body = "\n".join(fields)
    source = f'"""The keywords of `prune`, for editors and type checkers.\n\n{MADE}\n"""\n\n'
    source += "from __future__ import annotations\n\nfrom typing import TYPE_CHECKING, TypedDict\n\n"
    source += f"if TYPE_CHECKING:\n{textwrap.indent(_import_lines(imports), '    ')}\n\n"
    source += f'class Keywords(TypedDict, total=False):\n    """What `prune(model, **options)` takes."""\n\n{body}'
    return _formatted(source)


def _field(name: str, kind: str, text: str) -> str:
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    closing = '"""' if len(lines) == 1 else '\n"""'
    return textwrap.indent(f'{name}: {kind}\n"""' + "\n".join(lines) + f"{closing}\n", "    ")


def _said(o: Option) -> str:
    """What a keyword means, as a line."""
    unit = f" Unit: {o.unit}." if o.unit else ""
    default = f" Default: {_default(o)}." if _default(o) else ""
    return in_python(f"{o.help}{describe_choices(o)}{unit}{default}", OPTIONS)


def _default(o: Option) -> str:
    """In words, else as Python writes it; "" where nothing happens without the option."""
    return o.otherwise or ("" if o.default in (None, ()) else repr(o.default))


def shown_default(o: Option) -> str:
    """In words, else as on the command line."""
    return o.otherwise or ("" if o.default in (None, ()) else shown(o.default))


def _imports(annotation: str, module: ModuleType | None) -> list[tuple[str, str]]:
    """(module, name) of what an annotation of a module names; the name is "" where the module itself is imported."""
    assert module is not None
    names = {n.id for n in ast.walk(ast.parse(annotation, mode="eval")) if isinstance(n, ast.Name)}
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: (str(node.module), a.name) for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.asname or a.name: (a.name, "") for a in node.names}
    wanted = (n for n in names if not hasattr(builtins, n))
    return sorted(found.get(n, (module.__name__, n)) for n in wanted)


def _import_lines(imports: dict[str, set[str]]) -> str:
    lines = [f"import {m}" for m, names in imports.items() if "" in names]
    lines += [f"from {m} import {', '.join(sorted(n - {''}))}" for m, n in imports.items() if n - {""}]
    return "\n".join(sorted(lines)) + "\n"


# docs/options.md


def page() -> str:
    """The reference: subcommands, options by panel, exit codes."""
    lines = [f"<!-- {MADE} -->", "", "# Options", "", ABOUT, ""]
    lines += [
        "## Subcommands",
        "",
        *_table(["command", "what it does"], ([f"`{n}`", t] for n, t in screens.SUBCOMMANDS.items())),
    ]
    everything = (*OPTIONS, *declared(Output))
    for panel, options in screens.by_panel(everything):
        lines += [f"## {panel}", "", *_table(COLUMNS, map(_row, options))]
    for o in everything:
        if any(o.choices.values()):
            rows = ([f"`{name}`", what] for name, what in o.choices.items())
            lines += [f"## {o.flag}", "", *_table(["value", "what it is"], rows)]
    for name, declarations in (
        ("bench", bench.OPTIONS),
        ("evaluate", evaluate.EVALUATE),
        ("train", train.TRAIN),
        ("explore", explore.EXPLORE),
        ("lottery", lottery.LOTTERY),
        ("connect", connect.CONNECT),
        ("proxies", proxies.PROXIES),
        ("agree", agree.AGREE),
        ("latency-table", latency_table.LATENCY_TABLE),
        ("supermask", supermask.SUPERMASK),
        ("sensitivity", sensitivity.SENSITIVITY),
        ("ops", operators.OPERATORS),
    ):
        as_above = {(o.name, o.metavar, o.many) for o in everything}
        own = [o for o in declarations if (o.name, o.metavar, o.many) not in as_above]
        also = ", ".join(f"`{o.flag}`" for o in declarations if o not in own)
        lines += [f"## onnxprune {name}", "", *_table(COLUMNS, map(_row, own)), f"And {also}, as above.", ""]
    codes = ([str(code), what] for code, what in screens.EXIT_CODES.items())
    return "\n".join([*lines, "## Exit codes", "", *_table(["code", "what it means"], codes)]).rstrip() + "\n"


ABOUT = """\
Every option is declared once; the command line, the keywords of `onnxprune.prune` and this page come from there. A
fraction may be written as 0.3 or 30%, a number as 300M, an amount of data as 5MB. An option that would have no effect
is refused, with what it needs. `list` as a value shows what there is to choose from."""
COLUMNS = ["flag", "Python", "value", "unit", "default", "needs", "meaning"]


def _row(o: Option) -> list[str]:
    flag = ", ".join(f"`{word}`" for word in (o.short, o.flag, o.off) if word)
    keyword = f"`{o.name}`" if o in OPTIONS else ""
    value = "" if o.switch else f"`{o.metavar}`"
    default = o.otherwise or ("on" if o.default is True else "" if o.switch else shown_default(o))
    return [flag, keyword, value, o.unit, default, ", ".join(o.needs), o.help + describe_choices(o)]


def _table(columns: list[str], rows: Iterable[list[str]]) -> list[str]:
    cells = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells] + [""]


def _formatted(source: str) -> str:
    """As ruff wants it."""
    for words in (["check", "--fix", "--quiet", "--select", "I"], ["format", "--quiet"]):
        run = [sys.executable, "-m", "ruff", *words, "--stdin-filename", str(ROOT / KEYWORDS), "-"]
        source = subprocess.run(run, input=source, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return source


FILES: dict[str, Callable[[], str]] = {KEYWORDS: keywords, "docs/options.md": page}


def stale() -> list[str]:
    """The files that differ from what the declarations say."""
    return [name for name, make in FILES.items() if _read(name) != make()]


def _read(name: str) -> str:
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def main(arguments: list[str]) -> Any:
    if arguments == ["--check"]:
        return "".join(f"{name} is stale; run python tools/generate.py\n" for name in stale()) or 0
    if arguments:
        return __doc__
    for name, make in FILES.items():
        (ROOT / name).write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
