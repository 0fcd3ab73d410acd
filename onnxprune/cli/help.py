"""Screens of help, drawn from the declared options: the main options on one screen, or everything.

Names stand whole: what is too long for the left column has a line of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand

from onnxprune.options import PANELS, Option, shown

LEFT = 27  # columns of names
SUMMARY = "Make ONNX models smaller and faster: cut channels or heads, make weights sparse."
EXAMPLE = "onnxprune model.onnx --channels 0.3      writes model.pruned.onnx"
SUBCOMMANDS = {
    "prune MODEL": "the explicit form of onnxprune MODEL",
    "inspect MODEL": "what can be pruned, what is pinned and why",
    "evaluate MODEL SRC": "how good a model is on data",
    "train MODEL": "training on labels, from scratch with --init",
    "explore MODEL": "what less time or size costs, a file per point",
    "lottery MODEL": "lottery tickets: train, prune, rewind, again",
    "connect A.onnx [B.onnx]": "the line between two models, the barrier",
    "proxies A.onnx ...": "what networks may be worth, before training",
    "agree MODEL": "how stable importances are",
    "supermask A.onnx [B.onnx]": "networks of masks and weights never trained",
    "sensitivity MODEL": "what each group costs at each ratio",
    "bench A.onnx [B.onnx ...]": "latency, size, memory and outputs of models",
    "latency-table MODEL": "measured times of its nodes, for a search",
    "densify MODEL": "sparse operators back to plain ONNX",
    "export-library": "sparse operators for C, C++, phones",
    "ops": "operators with a rule, and deliberate barriers",
    "help [SUBCOMMAND]": "this, or the options of a subcommand",
}
EXIT_CODES = {
    0: "written, or shown", 1: "our mistake, nothing written", 2: "the user's mistake, nothing written",
    130: "interrupted, nothing written unless it says so",
}  # fmt: skip
ABOUT = {
    "--help, -h": "The main options.",
    "--help-all": "All options.",
    "--version": "The version.",
    "--install-completion": "Complete options, subcommands and choices in this shell.",
    "--show-completion": "The script that does so.",
}
EXIT_LINE = "Exit codes: " + "; ".join(f"{code} {what}" for code, what in EXIT_CODES.items()) + "."


class HelpCommand(TyperCommand):
    """A command whose help is drawn from the options that it was declared with."""

    declared: ClassVar[tuple[Option, ...]] = ()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """What --help prints; without a subcommand, the main options of prune."""
        formatter.write(main_screen(self.declared) if self.name == "prune" else self.all_options())

    def all_options(self) -> str:
        """Usage, what the command does, and all its options."""
        known = {str(p.metavar): str(getattr(p, "help", "")) for p in self.params if p.param_type_name == "argument"}
        usage = " ".join(("Usage: onnxprune", str(self.name), *known, "[OPTIONS]"))
        about = (paragraph for block in _paragraphs(self.help or "") for paragraph in ("", *_filled(block)))
        lines = [usage, *about, ""]
        for name, help in known.items():
            lines += _row(name, help)
        return "\n".join([*lines, *([""] if known else []), *_panels(self.declared), "", *_filled(EXIT_LINE)]) + "\n"


def main_screen(options: Sequence[Option]) -> str:
    """One screen: subcommands, main options by goal, and how to see the rest."""
    lines = [*_usage(), "", *_subcommands(), ""]
    for panel, rows in by_panel([o for o in options if o.main]):
        lines.append(_styled(panel, "bold"))
        for o in rows:
            lines += _row(flags_of(o, metavar=True), brief(o.help, 2 * (_width() - LEFT - 2)))
    lines += ["", *_filled("All options: --help-all; those of a subcommand: onnxprune help SUBCOMMAND"),
              *_filled(EXIT_LINE)]  # fmt: skip
    return "\n".join(lines) + "\n"


def all_options(options: Sequence[Option]) -> str:
    """Every subcommand and every option of prune by panel, as --help-all shows them."""
    lines = [*_usage(), "", *_subcommands(), "", *_panels(options), "", _styled("Help", "bold")]
    for name, what in ABOUT.items():
        lines += _row(name, what)
    return "\n".join([*lines, "", *_filled(EXIT_LINE)]) + "\n"


def flags_of(o: Option, *, metavar: bool) -> str:
    """`-c, --channels R|auto`, `--verify, --no-verify`."""
    words = ", ".join(word for word in (o.short, o.flag, o.off) if word)
    return f"{words} {o.metavar}" if metavar and o.metavar else words


def brief(help: str, room: int) -> str:
    """As much of a help text as two lines hold: sentences, else clauses."""
    whole = " ".join(help.split())
    bare = re.sub(r" \([^()]*\)", "", whole)
    for text, end in ((whole, "[.]"), (bare, "[.]"), (whole, "[.;]"), (bare, "[.;:,]")):
        fitting = [m.start() for m in re.finditer(f"{end}(?= |$)", text) if m.start() < room - 8]  # words are not cut
        if fitting:
            return text[: fitting[-1]] + "."
    return textwrap.shorten(bare, room - 8, placeholder=" ...")


def _styled(text: str, style: str) -> str:
    """For a terminal; `typer.echo` takes styles away elsewhere."""
    if os.environ.get("NO_COLOR"):
        return text
    return typer.style(text, bold=True) if style == "bold" else typer.style(text, fg=style)


def _width() -> int:
    return max(60, min(shutil.get_terminal_size().columns, 100))


def _usage() -> list[str]:
    return ["Usage: onnxprune MODEL [OPTIONS], or onnxprune SUBCOMMAND ...", *_filled(SUMMARY), f"  {EXAMPLE}"]


def _subcommands() -> list[str]:
    lines = [_styled("Subcommands", "bold") + " (any other first word is the MODEL to prune)"]
    for name, what in SUBCOMMANDS.items():
        lines += _row(name, what)
    return lines


def by_panel(options: Sequence[Option]) -> Iterator[tuple[str, list[Option]]]:
    """Options of the command line under their headings."""
    panels = dict.fromkeys((*PANELS, *(o.panel for o in options)))
    for panel in panels:
        rows = [o for o in options if o.panel == panel and o.flag]
        if rows:
            yield panel, rows


def _panels(options: Sequence[Option]) -> list[str]:
    lines: list[str] = []
    for panel, rows in by_panel(options):
        lines += [*([""] if lines else []), _styled(panel, "bold")]
        for o in rows:
            lines += _row(flags_of(o, metavar=True), o.help + describe_choices(o) + describe_default(o))
    return lines


def describe_choices(o: Option) -> str:
    """What an option may be, where its help does not name that."""
    named = not o.choices or any(name in o.help for name in o.choices) or all(name in o.metavar for name in o.choices)
    return "" if named else f" One of {', '.join(o.choices)}."


def describe_default(o: Option) -> str:
    """` [default: 8]`, or what stands for a default."""
    value = o.otherwise or ("" if o.default in (None, ()) or o.switch else shown(o.default))
    return f" [default: {value}]" if value else ""


def _row(name: str, text: str) -> list[str]:
    """A name and what it means; a name that is too long for its column stands alone."""
    lines = _wrapped(text, _width() - LEFT - 2)
    indent = " " * (LEFT + 2)
    shown = _styled(name, "cyan")
    if len(name) > LEFT - 1:
        return [f"  {shown}", *(indent + line for line in lines)]
    return [f"  {shown}{' ' * (LEFT - len(name))}{lines[0]}", *(indent + line for line in lines[1:])]


def _filled(text: str) -> list[str]:
    return _wrapped(text, _width())


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _paragraphs(doc: str) -> list[str]:
    return [" ".join(block.split()) for block in doc.strip().split("\n\n")]
