"""Which command has which page: a function of the data of its `--json`.

A command gets one by a row here, and by `onnxprune.cli.command.emit`, where it has the option `html`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnxprune import __version__
from onnxprune.page import experiments, measured
from onnxprune.page.content import Page
from onnxprune.page.prune import prune
from onnxprune.page.render import document, fragment

PAGES: dict[str, Callable[[Mapping[str, Any]], Page]] = {
    "prune": prune,
    "sensitivity": measured.sensitivity,
    "bench": measured.bench,
    "evaluate": measured.evaluate,
    "explore": experiments.explore,
    "lottery": experiments.lottery,
    "connect": experiments.connect,
    "proxies": experiments.proxies,
    "agree": experiments.agree,
    "supermask": experiments.supermask,
}


def page_of(command: str, report: Mapping[str, Any], words: str) -> str:
    """A whole HTML file. command: of `PAGES`; report: what its --json writes; words: the command that repeats it."""
    return document(PAGES[command](report).with_command(words), __version__)


def notebook(command: str, report: Mapping[str, Any]) -> str:
    """The same as a part of a notebook."""
    return fragment(PAGES[command](report))


__all__ = ["PAGES", "notebook", "page_of"]
