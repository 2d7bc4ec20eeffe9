"""Fills the files of templates/: whatever is put into bash or YAML is quoted for it."""

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def yaml_scalar(value: object) -> str:
    """Returns a value as YAML: several lines as a block where YAML allows, else as in JSON."""
    text = str(value)
    if "\n" not in text or not all(c.isprintable() or c == "\n" for c in text):
        return json.dumps(value)
    return "|\n" + "\n".join(f"  {line}" if line else "" for line in text.rstrip("\n").split("\n"))


def bash_word(value: object) -> str:
    """Returns a value as one word of bash."""
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
    """Returns a template's text with the values in it, each quoted for bash or, in .yaml, YAML."""
    return _template(template).render(values)


def fill_block(template: str, block: str, /, **values: Any) -> str:
    """Returns one block of a template; "" where it has none of that name."""
    found = _template(template)
    part = found.blocks.get(block)
    return "" if part is None else "".join(part(found.new_context(values)))


def legal_name(text: str, limit: int) -> str:
    """Returns `text` as lower-case letters, digits and single hyphens, the first a letter.

    That is what Google Cloud, Kubernetes and SkyPilot all take (RFC 1035 labels). A name that is
    longer than `limit` characters, or of which nothing is left, ends in 6 hexadecimal digits of the
    hash of `text`, so that two long names stay two names.
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
    """Returns the legal names of the shards: NAME-1, NAME-2, ..., or NAME alone for one."""
    if shards == 1:
        return [legal_name(text, limit)]
    base = legal_name(text, limit - len(f"-{shards}"))
    return [f"{base}-{i}" for i in range(1, shards + 1)]
