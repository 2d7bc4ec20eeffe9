"""HTML that cannot be forgotten to be escaped: every text is, unless it is `Html` already."""

import html
from collections.abc import Iterable
from typing import Any


class Html(str):
    """A string that is markup and goes into the page as it stands."""


VOID = {"br", "hr", "meta", "col", "input", "line", "circle", "rect"}


def el(name: str, *children: Any, **attributes: Any) -> Html:
    """Returns an element.

    Children are texts (escaped), Html, iterables of them, or None (nothing). Attributes with value
    None or False are left out and True ones stand alone; a trailing underscore of a name is dropped
    (`class_`), other underscores become hyphens.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Any) -> Html:
    """Returns the children one after the other, texts escaped."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, Iterable) and not isinstance(children, str):
        return Html("".join(join(child) for child in children))
    return Html(html.escape(str(children)))


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
