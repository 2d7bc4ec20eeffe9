"""Declares the options of a config as dataclass fields.

A part (a mask, a mixer, a model, a task, an optimizer...) is a frozen dataclass that inherits from
`Part`. A field made by `option` is one of its options: the field's name is the config key, and the
field alone declares type, default, range, choices and help. A field made by `choice` holds another
part, whose options are read too. The config keys, their checks, the record of which part reads
which key, --help and the option lists of the documentation are all generated from these fields.

This module defines no concrete part and imports only the standard library.
"""

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar


class OptionError(ValueError):
    """Raised for an invalid option value.

    Attributes:
      field: the key.
      value: the invalid value.
      message: the error or the fix, without key and value.
      known: the valid names, if the value is an unknown name.
    """

    def __init__(self, field: str, value: object, message: str, known: Sequence[str] = ()):
        super().__init__(f"{field} = {value!r}: {message}")
        self.field = field
        self.value = value
        self.message = message
        self.known = known


@dataclasses.dataclass(frozen=True)
class Option:
    """The declaration of an option, apart from its name, type and default.

    Attributes:
      help: one line of help.
      least, most: inclusive bounds.
      above, below: exclusive bounds.
      allowed: the valid strings, also for each item of a tuple; empty allows any.
      when: {other option: values}: this option is read only if the other has one of the values.
      unless: {other option: values}: this option is not read if the other has one of the values.
      table: {name: part} for an option that names a part.
      joined: whether several names may be joined by "&" and "|".
      others: the reason why this table lacks names that tables of the same key elsewhere have.
      source: the paper, for an option that is a mechanism in its own right.
      where: the places where it can be used, if not everywhere.
    """

    help: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    allowed: Sequence[str] = ()
    when: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    unless: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    table: Mapping[str, "type[Part]"] | None = None
    joined: bool = False
    others: str = ""
    source: str = ""
    where: tuple[str, ...] = ()


def option(default: Any, help: str, **limits: Any) -> Any:
    """Returns a dataclass field that declares an option; `limits` are attributes of `Option`.

    A default outside its own limits marks the option as required.
    """
    declared = Option(help, **limits)
    return dataclasses.field(default=default, metadata={"option": declared}, kw_only=True)


def choice(table: "Mapping[str, type[Part]]", default: str, help: str, **others: Any) -> Any:
    """Returns a dataclass field that holds the part named in the config.

    Args:
      table: {name: part} to choose from.
      default: a name in `table`.
      help: one line of help.
      **others: attributes of `Option`; with `joined`, "&" binds closer than "|".
    """
    declared = Option(help, table=table, **others)
    return dataclasses.field(
        default_factory=functools.partial(_named, declared, default, {}),
        metadata={"option": declared, "default": default},
        kw_only=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The base of everything that a config can name; options are validated on construction.

    Attributes:
      source: the paper, with section or equation.
      revision: raise it by one when a default or the computation changes, so that earlier runs
        keep a different run id.

    The first line of a subclass's docstring says what the part computes.
    """

    source: ClassVar[str] = ""
    revision: ClassVar[int] = 0

    def __post_init__(self):
        for name, declared in declarations(type(self)).items():
            check_value(name, getattr(self, name), declared)

    def reads(self, declared: "Declared") -> bool:
        """Returns whether an option is read, given the values of the other options."""

        def value(other: str) -> Any:
            table = declarations(type(self))[other].option.table
            found = getattr(self, other)
            return found if table is None else name_of(found, table)

        wanted, unwanted = declared.option.when.items(), declared.option.unless.items()
        return all(value(other) in values for other, values in wanted) and not any(
            value(other) in values for other, values in unwanted
        )


P = TypeVar("P", bound=Part)


@dataclasses.dataclass(frozen=True)
class Joined:
    """The parts named by one option with `joined`, such as "causal & window | prefix".

    Attributes:
      text: the text in the config.
      parts: alternatives ("|"), each a conjunction ("&") of parts.
    """

    text: str
    parts: tuple[tuple[Any, ...], ...]

    def every(self) -> Iterator[Any]:
        """Returns an iterator over all parts, in the order of the text."""
        return (part for alternative in self.parts for part in alternative)


@dataclasses.dataclass(frozen=True)
class Declared:
    """An option as declared in a class: name, type, default and `Option`."""

    name: str
    kind: Any
    default: Any
    option: Option


@functools.cache
def declarations(part: type[Part]) -> Mapping[str, Declared]:
    """Returns the options of a class by name, in the order in which they are declared."""
    kinds = typing.get_type_hints(part)
    found = {}
    for field in dataclasses.fields(part):
        declared = field.metadata.get("option")
        if declared is not None:
            default = field.metadata.get("default", field.default)
            kind = str if declared.table is not None else kinds[field.name]
            found[field.name] = Declared(field.name, kind, default, declared)
    return MappingProxyType(found)


def kind_name(kind: Any) -> str:
    """Returns the name of a type for messages: "int", "tuple of int"."""
    items = typing.get_args(kind)
    return f"tuple of {items[0].__name__}" if items else kind.__name__


def check_value(name: str, value: Any, declared: Declared) -> None:
    """Raises OptionError for a value of the wrong type or outside the declared limits."""
    if declared.option.table is not None:
        return
    items = typing.get_args(declared.kind)
    values = tuple(value) if items and isinstance(value, tuple | list) else (value,)
    if items and not isinstance(value, tuple | list):
        raise OptionError(name, value, f"must be a {kind_name(declared.kind)}")
    for one in values:
        _check_one(name, value, one, items[0] if items else declared.kind, declared.option)


def _check_one(name: str, value: Any, one: Any, kind: Any, limits: Option) -> None:
    wanted = (int, float) if kind is float else kind
    if not isinstance(one, wanted) or (isinstance(one, bool) and kind is not bool):
        raise OptionError(name, value, f"must be of type {kind.__name__}, not {type(one).__name__}")
    if limits.allowed and one not in limits.allowed:
        raise unknown(name, one, limits.allowed)
    if isinstance(one, str | bool):
        return
    if not math.isfinite(one):
        raise OptionError(name, value, "must be finite")
    low, high = limits.least, limits.most
    if low is not None and limits.below is not None and not low <= one < limits.below:
        raise OptionError(name, value, f"must be in [{low:g}, {limits.below:g})")
    if low is not None and high is not None and high < 100 and not low <= one <= high:
        raise OptionError(name, value, f"must be from {low:g} to {high:g}")
    if low is not None and one < low:
        raise OptionError(name, value, f"must be at least {low:g}")
    if high is not None and one > high:
        raise OptionError(name, value, f"must be at most {high:.15g}")
    if limits.above is not None and one <= limits.above:
        more = "positive" if limits.above == 0 else f"more than {limits.above:g}"
        raise OptionError(name, value, f"must be {more}")
    if limits.below is not None and one >= limits.below:
        raise OptionError(name, value, f"must be less than {limits.below:g}")


def unknown(name: str, value: str, known: Iterable[str], others: str = "") -> OptionError:
    """Returns the error for an unknown name; it suggests the closest match and lists all names.

    Args:
      name: the key.
      value: the unknown name.
      known: the valid names.
      others: the reason why there are no others; replaces the suggestion.
    """
    known = tuple(known)
    if others:
        return OptionError(name, value, f"{others}; it can be {', '.join(known)}", known)
    near = difflib.get_close_matches(value, known, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return OptionError(name, value, f"unknown; {guess}it is one of {', '.join(known)}", known)


def read(part: type[P], values: Mapping[str, Any]) -> P:
    """Builds a part, and the parts it chooses, from config values.

    Keys that none of these parts read are ignored (`values_read` lists the keys that are read).
    None means that a value is not set.

    Raises OptionError for an invalid value.
    """
    given = {}
    for name, declared in declarations(part).items():
        value = values.get(name)
        if declared.option.table is not None:
            given[name] = _named(declared.option, value or declared.default, values, name)
        elif value is not None:
            check_value(name, value, declared)
            given[name] = _as(declared.kind, value)
    return part(**given)


def _as(kind: Any, value: Any) -> Any:
    """Converts a list to a tuple, and an int to a float if the option is a float."""
    if isinstance(value, list):
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _named(declared: Option, text: str, values: Mapping[str, Any], name: str = "") -> Any:
    if not isinstance(text, str):
        raise OptionError(name, text, f"must be of type str, not {type(text).__name__}")
    if not declared.joined:
        return _inner(name, text, declared, values)
    parts = tuple(
        tuple(_inner(name, one.strip(), declared, values) for one in every.split("&"))
        for every in text.split("|")
    )
    return Joined(text, parts)


def _inner(name: str, one: str, option: Option, values: Mapping[str, Any]) -> Any:
    """Builds the part with this name in the option's table.

    Raises OptionError; for a missing required option the message names the part that needs it.
    """
    table = option.table or {}
    if one not in table:
        raise unknown(name, one, table, option.others)
    try:
        return read(table[one], values)
    except OptionError as error:
        declared = declarations(table[one]).get(error.field)
        if declared is None or not has_to_be_set(declared) or error.value != declared.default:
            raise
        message = f"{error.message}, for {name} {one!r}"
        raise OptionError(error.field, error.value, message) from None


def chosen(part: Part) -> dict[str, Part]:
    """Returns the parts chosen by a part's options, nested ones too: {"mask 'window'": part}."""
    found: dict[str, Part] = {}
    for name, declared in declarations(type(part)).items():
        if declared.option.table is None:
            continue
        value = getattr(part, name)
        for inner in value.every() if isinstance(value, Joined) else (value,):
            found[f"{name} {name_of(inner, declared.option.table)!r}"] = inner
            found |= chosen(inner)
    return found


def name_of(part: Part, table: Mapping[str, type[Part]]) -> str:
    """Returns a part's name in a table."""
    return next(name for name, cls in table.items() if cls is type(part))


def values_read(part: Part) -> dict[str, Any]:
    """Returns {key: value} for all options read by a part and the parts it chooses.

    Options that `when` or `unless` switch off are left out.
    """
    found: dict[str, Any] = {}
    for name, declared in declarations(type(part)).items():
        if not part.reads(declared):
            continue
        value, table = getattr(part, name), declared.option.table
        if table is None:
            found[name] = value
            continue
        found[name] = value.text if isinstance(value, Joined) else name_of(value, table)
        for inner in value.every() if isinstance(value, Joined) else (value,):
            found |= values_read(inner)
    return found


def defaults_read(part: Part) -> dict[str, Any]:
    """Returns {key: declared default} for the keys of `values_read`."""
    found: dict[str, Any] = {}
    for one in (*chosen(part).values(), part):
        for name, declared in declarations(type(one)).items():
            if one.reads(declared):
                found[name] = declared.default
    return found


def revisions(part: Part) -> dict[str, int]:
    """Returns the nonzero revisions of a part's chosen parts, with the keys of `chosen`."""
    return {name: one.revision for name, one in chosen(part).items() if one.revision}


def every_option(tables: Iterable[Mapping[str, type[Part]]]) -> dict[str, list[Declared]]:
    """Returns {key: its declarations} over all parts that the tables can reach.

    A key has several declarations where parts give it different defaults or limits.
    """
    found: dict[str, list[Declared]] = {}
    for part in every_part(tables):
        for name, declared in declarations(part).items():
            if declared not in found.setdefault(name, []):
                found[name].append(declared)
    return found


def every_part(tables: Iterable[Mapping[str, type[Part]]]) -> list[type[Part]]:
    """Returns the parts of the tables and all parts that their options can name, each once."""
    found: dict[type[Part], None] = {}
    waiting = [part for table in tables for part in table.values()]
    while waiting:
        part = waiting.pop(0)
        if part in found:
            continue
        found[part] = None
        for declared in declarations(part).values():
            waiting += (declared.option.table or {}).values()
    return list(found)


def has_to_be_set(declared: Declared) -> bool:
    """Returns whether an option is required, meaning that its default violates its own limits."""
    try:
        check_value(declared.name, declared.default, declared)
    except OptionError:
        return True
    return False


def common_default(declared: Iterable[Declared]) -> Any:
    """Returns the default that all declarations of a key agree on, else None."""
    defaults = {repr(one.default): one.default for one in declared}
    return next(iter(defaults.values())) if len(defaults) == 1 else None


def readers(key: str, tables: Mapping[str, Mapping[str, type[Part]]]) -> str:
    """Returns the parts that read a key, as text: "mask window, dilated".

    Args:
      key: the key.
      tables: {option: the table that it chooses from}.
    """
    found = {
        option: [name for name, part in table.items() if key in declarations(part)]
        for option, table in tables.items()
    }
    return "; ".join(f"{option} {', '.join(names)}" for option, names in found.items() if names)
