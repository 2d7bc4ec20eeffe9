"""Writes docs/config.md, the page of every key that a config can have.

    python -m research.config_keys --page=docs/config.md

Everything on it is read off the declarations: the fields of tasks, models, optimizers and sections.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from research.command_line import run
from research.drawing.markdown import table
from research.options import Declared, Option, Part, declarations, kind_name
from research.training.schema import DECODING, SECTIONS, named_parts

flags.DEFINE_string("page", "docs/config.md", "The file to write.")

HEAD = """# Config keys

Every key of a config, what it means, what it may be and who reads it. This page is written by
`python -m research.config_keys` from the declarations; a test keeps it true.

A key is set in a config file, by an arm or an axis of an experiment, or on the command line as
`--config.KEY=VALUE`. A run is what it reads: the parts that it chose (`task.name`, `model.name`,
`optimizer.name`, ...) and their options. A key that is changed and read by nothing is refused.
`--config=FILE --help` lists the keys that one config reads, with their values.
"""

NOTES = {
    "decoding": f"Read by tasks that decode: {', '.join(DECODING)}.",
    "parallel": "No part of the identity of a run.",
    "model": "[The list of mechanisms](mechanism-list.md) says what mixers, scores, masks, "
    "normalizers and positions compute.",
}


def page() -> str:
    """Returns the page as Markdown."""
    return "\n".join([HEAD, *(section(name) for name in SECTIONS)])


def section(name: str) -> str:
    """Returns the part of the page about one config section."""
    root = SECTIONS[name].root
    title = f"`{name}`" if name else "Keys that stand alone"
    about = [f"\n## {title}\n"]
    notes = [_summary(root) if root else "", NOTES.get(name, "")]
    about += [" ".join(note for note in notes if note) + "\n"] if any(notes) else []
    about += [_choices(name, key) for key in SECTIONS[name].tables]
    header = ("key", "default", "values", "read by", "meaning")
    return "\n".join([*about, table(header, list(_rows(name)))])


def _choices(name: str, key: str) -> str:
    """Returns the Markdown table of the parts that one key can name."""
    parts = SECTIONS[name].tables[key].items()
    rows = [(f"`{one}`", _summary(part), part.source or "-") for one, part in parts]
    return table((f"{name}.{key}", "what it is", "source"), rows)


def _rows(name: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields a row for each key of a section, or several if parts declare the key differently."""
    found: dict[str, list[tuple[Declared, list[str]]]] = {
        key: [(SECTIONS[name].every()[key][0], ["all"])]
        for key in SECTIONS[name].tables
        if SECTIONS[name].root is None
    }
    for label, part in named_parts():
        where, _, chosen = label.partition(" ")
        if where.split(".")[0] != name:
            continue
        for key, declared in declarations(part).items():
            mine = found.setdefault(key, [])
            readers = next((who for one, who in mine if one == declared), None)
            if readers is None:
                readers = []
                mine.append((declared, readers))
            readers.append(f"{where.partition('.')[2]}={chosen}" if chosen else "all")
    for key, several in found.items():
        for declared, readers in several:
            yield (
                f"`{name}.{key}`" if name else f"`{key}`",
                f"`{declared.default!r}`",
                values_of(declared),
                _readers(readers) + _condition(declared.option),
                declared.option.help,
            )


def _readers(labels: list[str]) -> str:
    """Returns "name: recall, rule" for ["name=recall", "name=rule"]."""
    by_key: dict[str, list[str]] = {}
    for label in labels:
        key, _, chosen = label.partition("=")
        by_key.setdefault(key, []).append(chosen)
    return "; ".join(f"{k}: {', '.join(names)}" if names[0] else k for k, names in by_key.items())


def _condition(option: Option) -> str:
    wanted = [f"{key}={_either(values)}" for key, values in option.when.items()]
    unwanted = [f"{key}={_either(values)}" for key, values in option.unless.items()]
    text = f", where {' and '.join(wanted)}" if wanted else ""
    return text + (f", unless {' or '.join(unwanted)}" if unwanted else "")


def _either(values: Any) -> str:
    return " or ".join(str(value) for value in values)


def values_of(declared: Declared) -> str:
    """Returns the allowed values of an option in words: "int, at least 1"."""
    limits = declared.option
    if limits.table is not None:
        return "a name above" + (', or several joined by "&" and "|"' if limits.joined else "")
    if limits.allowed:
        return f"{kind_name(declared.kind)}: {', '.join(limits.allowed)}"
    bounds = {
        "at least": limits.least,
        "more than": limits.above,
        "at most": limits.most,
        "less than": limits.below,
    }
    texts = [f"{words} {bound:.15g}" for words, bound in bounds.items() if bound is not None]
    return ", ".join([kind_name(declared.kind), *texts])


def _summary(part: type[Part]) -> str:
    return " ".join(str(inspect.getdoc(part)).split("\n\n")[0].split())


def main() -> None:
    """Writes the page."""
    path = Path(flags.FLAGS.page)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page())
    print(f"wrote {path}")


if __name__ == "__main__":
    run(main)
