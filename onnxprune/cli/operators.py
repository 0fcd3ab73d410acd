"""`onnxprune ops`: which operators can be pruned, or differentiated, and what their rules say."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from onnxprune.cli.command import CommandValues, shared
from onnxprune.cli.screen import emit_json, show_on
from onnxprune.options import OUTPUT, declared, option, switch
from onnxprune.structure.rules import BARRIERS, RULES


@dataclass(frozen=True)
class Listing:
    """Which table is listed."""

    gradients: bool = option(
        False, switch, panel=OUTPUT,
        help="List the operators that have a gradient, and those through which nothing flows back.",
    )  # fmt: skip


OPERATORS = (*declared(Listing), *shared("json", "quiet"))


def ops(values: CommandValues) -> None:
    """List the operators with a rule, and those that deliberately pin what they touch."""
    if values["gradients"]:
        from onnxprune.gradient.rules import GRADIENTS, NO_GRADIENTS, NOT_YET  # no other command reads the rules

        entries = {op: ("gradient", row.summary) for op, row in GRADIENTS.items()}
        entries |= {op: ("none", reason) for op, reason in NO_GRADIENTS.items()}
        entries |= {op: ("not yet", reason) for op, reason in NOT_YET.items()}
        count = f"{len(GRADIENTS)} gradients, {len(NO_GRADIENTS)} operators through which nothing flows back"
    else:
        entries = {op: ("rule", row.summary) for op, row in RULES.items()}
        entries |= {op: ("barrier", reason) for op, reason in BARRIERS.items()}
        count = f"{len(RULES)} rules, {len(BARRIERS)} barriers; any other operator pins what it touches"
    table = Table(box=None, pad_edge=False)
    for column in ("operator", "", "what the rule says"):
        table.add_column(column, overflow="fold")
    for op, (what, text) in sorted(entries.items(), key=lambda e: ("::" in e[0], e[0])):
        table.add_row(op, what, Text(text))
    emit_json({op: {"kind": what, "text": text} for op, (what, text) in sorted(entries.items())}, values["json"])
    if not values["quiet"]:
        show_on(values["json"], table)
        show_on(values["json"], Text(count))
