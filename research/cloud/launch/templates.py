"""Renders the files of templates/, quoting every value for bash or YAML."""

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def yaml_scalar(value: object) -> str:
    """Returns a value as a YAML scalar: a block if it has several lines, otherwise as in JSON."""
    text = str(value)
    if "\n" not in text or not all(c.isprintable() or c == "\n" for c in text):
        return json.dumps(value)
    return "|\n" + "\n".join(f"  {line}" if line else "" for line in text.rstrip("\n").split("\n"))


def bash_word(value: object) -> str:
    """Returns a value quoted as one bash word."""
    return shlex.quote(str(value))


@cache
def _environment(quote: Callable[[object], str]) -> Environment:
    return Environment(
        loader=PackageLoader("research.cloud.launch"),
        undefined=StrictUndefined,
        finalize=quote,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _template(name: str) -> Template:
    quote = yaml_scalar if name.endswith(".yaml") else bash_word
    return _environment(quote).get_template(name)


def fill(template: str, /, **values: Any) -> str:
    """Renders a template, with each value quoted for bash or, in .yaml files, for YAML."""
    return _template(template).render(values)


def fill_block(template: str, block: str, /, **values: Any) -> str:
    """Renders one block of a template; "" if the template has no block of that name."""
    found = _template(template)
    part = found.blocks.get(block)
    return "" if part is None else "".join(part(found.new_context(values)))


def legal_name(text: str, limit: int) -> str:
    """Converts `text` to a legal name: lower-case letters, digits and hyphens, a letter first.

    Google Cloud, Kubernetes and SkyPilot all accept such names (RFC 1035 labels). If the name is
    longer than `limit` characters or nothing is left of it, it ends in 6 hexadecimal digits of the
    hash of `text`, so that different long texts get different names.
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if name and not name[0].isalpha():
        name = f"run-{name}"
    if name and len(name) <= limit:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    kept = name[: limit - len(digest) - 1].rstrip("-") or "run"
    return f"{kept}-{digest}"


def shard_names(text: str, shards: int, limit: int) -> list[str]:
    """Returns legal names for the shards: NAME-1, NAME-2, ..., or just NAME for one shard."""
    if shards == 1:
        return [legal_name(text, limit)]
    base = legal_name(text, limit - len(f"-{shards}"))
    return [f"{base}-{i}" for i in range(1, shards + 1)]
