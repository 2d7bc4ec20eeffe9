"""Fills the HTML templates of pages with Jinja: what is not markup already is escaped."""

import base64
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def fill(path: Path, values: Mapping[str, Any]) -> str:
    """Returns the template with its values put in.

    Texts are escaped, `markupsafe.Markup` goes in as it stands, None leaves nothing. A template may
    include and import those beside it.

    Raises jinja2.UndefinedError for a name that the template uses and `values` does not have.
    """
    return _environment(path.parent).get_template(path.name).render(values)


@lru_cache
def _environment(folder: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: "" if value is None else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def source_hash(text: str) -> str:
    """Returns what a Content-Security-Policy calls a script or style: "sha256-..." of its text."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
