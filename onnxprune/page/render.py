"""A page as HTML: one file that needs nothing else, or a part of a notebook."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnxprune.page.content import Page

if TYPE_CHECKING:
    import jinja2


def document(page: Page, version: str) -> str:
    """A whole file: style and charts in it, no script, nothing from elsewhere."""
    return _environment().get_template("page.html").render(page=page, version=version, anchors=True)


def fragment(page: Page) -> str:
    """The same for a notebook: its style reaches no further than itself."""
    return _environment().get_template("fragment.html").render(page=page, anchors=False)


@cache
def _environment() -> jinja2.Environment:
    """Names of a model may be anything: whatever is no chart of ours is escaped."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.PackageLoader("onnxprune.page")
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["svg"] = Markup
    return made


__all__ = ["document", "fragment"]
