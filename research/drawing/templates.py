"""Renders HTML templates with Jinja, which escapes all text that is not marked as `Markup`."""

import base64
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def fill(path: Path, values: Mapping[str, Any]) -> str:
    """Renders a template with the given values.

    Strings are escaped, `markupsafe.Markup` is inserted verbatim, None renders as "". A template
    may include and import other templates in its folder.

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
    """Returns the Content-Security-Policy source of a script or style: "sha256-..." of its text."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
