"""Which mechanism each layer has: one for all, a pattern that repeats, or a part's own."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from research.attention.checks import COMMON, chosen_parts
from research.attention.errors import MechanismError
from research.attention.implementations.attend import choose, refusal
from research.attention.mixers.mixer import Mixer
from research.attention.options import Options, make_mixer
from research.attention.parts.masks import padding
from research.attention.registry import (
    AUTO,
    MIXERS,
    MODEL_POSITIONS,
    SWITCHES,
    TABLES,
    mask_names,
)
from research.errors import UserError, check_name

FIELDS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Options)}
# What a layer of a pattern cannot have its own of.
SHARED = ("width", "max_length", "num_layers", "dtype", "init_stddev", "use_bias")


def layer_options(model: ConfigDict, length: int) -> tuple[Options, ...]:
    """Returns the options of each layer of the pattern of `config.model`; of one if there is none.

    Layer i has those at i modulo the length of the pattern. Raises UserError.
    """
    base = {k: v for k, v in model.to_dict().items() if k in FIELDS}
    if not model.pattern:
        return (make_options(base, length, "model."),)
    if model.num_layers % len(model.pattern):
        raise UserError(
            f"model.num_layers={model.num_layers} must be a multiple of the {len(model.pattern)} "
            "layers of model.pattern."
        )
    found = []
    for i, text in enumerate(model.pattern):
        where = f"model.pattern[{i}]={text!r}"
        deltas = parse_layer(text, where)
        position = deltas.get("position", model.position)
        if position in MODEL_POSITIONS and position not in ("none", model.position):
            raise UserError(
                f"{where}: position {position!r} is added to the input of the model, so it is the "
                f"same for all layers; set model.position={position!r}."
            )
        found.append(make_options(base | deltas, length, f"{where}: "))
    return tuple(found)


def make_options(values: dict[str, Any], length: int, where: str) -> Options:
    """Returns checked options. Raises UserError that starts with `where`."""
    try:
        return Options(**values, max_length=length)
    except MechanismError as error:
        raise UserError(f"{where}{error}") from None


def parse_layer(text: str, where: str) -> dict[str, Any]:
    """Returns {"mask": "window", "window": 8} for "mask=window, window=8". Raises UserError."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UserError(f"{where}: {part!r} must be key=value, for example mask=window.")
        check_name(f"{where}: key", key, [name for name in FIELDS if name not in SHARED])
        try:
            found[key] = PARSERS[FIELDS[key]](value)
        except (ValueError, KeyError):
            kind = getattr(FIELDS[key], "__name__", FIELDS[key])
            raise UserError(f"{where}: {key}={value!r} must be of type {kind}.") from None
    return found


PARSERS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    bool: lambda text: {"true": True, "false": False}[text.lower()],
}


def part_options(
    model: ConfigDict, length: int, key: str, start: Mapping[str, Any], role: str
) -> Options:
    """Returns the options of a part of a model, whose delta text is `config.model[key]`.

    The part has the mechanism keys of `config.model`, changed by `start` and then by the delta.
    Those that its mixer does not read are left out, unless it is the delta that sets them, and so
    is the implementation of `config.model` if it lacks something that the part needs.

    Args:
      model: `config.model`.
      length: the longest sequence.
      key: of the delta.
      start: where the part differs from `config.model` before the delta.
      role: "self" or "cross", which all that is chosen has to be able to serve as.

    Raises UserError that names the delta.
    """
    where = f"model.{key}={model[key]!r}"
    delta = parse_layer(model[key], where)
    base = {k: v for k, v in model.to_dict().items() if k in FIELDS} | dict(start)
    values = base | delta
    read = {k for k, v in delta.items() if v != base.get(k)} | _read(values)
    if "implementation" not in delta:
        values["implementation"] = AUTO
    options = make_options({k: v for k, v in values.items() if k in read}, length, f"{where}: ")
    for name, (part, table) in _chosen(options).items():
        if role not in part.where:
            able = ", ".join(n for n, other in table.items() if role in other.where)
            raise UserError(f"{where}: {name} cannot be used in {role}-attention; {able} can.")
    inherited = model.implementation if "implementation" not in delta else AUTO
    return _implemented(options, inherited, role == "cross" or looks_ahead(options), where)


def part_keys(model: ConfigDict, key: str, start: Mapping[str, Any]) -> set[str]:
    """Returns the mechanism keys of `config.model` that a part reads, see `part_options`.

    Those that its delta sets are not among them: the part has its own.
    """
    delta = parse_layer(model[key], f"model.{key}={model[key]!r}")
    values = model.to_dict() | dict(start) | delta
    return _read({k: v for k, v in values.items() if k in FIELDS}) - delta.keys()


def _read(values: dict[str, Any]) -> set[str]:
    """Returns the keys that the mixer of these values and its parts read; all if one is unknown."""
    entry = MIXERS.get(values["mixer"])
    parts, names = (entry.parts if entry else frozenset()), []
    for field, table in TABLES.items():
        for name in _names(field, values[field]):
            if entry is None or name not in table:
                return set(values)
            if field in parts:
                names.append(table[name])
    found = {*COMMON, *parts} | {key for part in names for key in (*part.needs, *part.takes)}
    if entry and not entry.causal:
        found.add("mask")
    if values["position"] in MODEL_POSITIONS:
        found.add("position")
    return found


def _names(field: str, value: str) -> list[str]:
    return [n for every in mask_names(value) for n in every] if field == "mask" else [value]


def _chosen(options: Options) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Returns all that the options choose by name, with the table that it is chosen from."""
    found: dict[str, tuple[Any, Mapping[str, Any]]] = {
        f"mixer {options.mixer!r}": (MIXERS[options.mixer], MIXERS),
    }
    for name, part in chosen_parts(options).items():
        found[name] = (part, TABLES[name.split()[0]])
    for name, part in SWITCHES.items():
        if getattr(options, name):
            found[name] = (part, SWITCHES)
    return found


def looks_ahead(options: Options) -> bool:
    """Returns whether a token sees later ones."""
    entry = MIXERS[options.mixer]
    # A first token that sees all of the first token is causal.
    return not entry.causal or (
        "mask" in entry.parts and options.build_mask().together not in (0, 1)
    )


def _implemented(options: Options, inherited: str, padded: bool, where: str) -> Options:
    """Returns the options with an implementation that has all it needs, a padding mask if `padded`.

    It is the options' own, else the inherited one if it can, else one that can at any length,
    because batches are padded to several. Raises UserError if the options' own cannot.
    """
    entry = MIXERS[options.mixer]
    named = options.implementation
    if named == AUTO and inherited in entry.implementations:
        named = inherited
    if "mask" not in entry.parts:
        return dataclasses.replace(options, implementation=named)
    valid = padding(jnp.ones((1, 1), bool)) if padded else None
    mechanism = options.mechanism.under(valid)
    why = "" if named == AUTO else refusal(named, mechanism)
    if why and options.implementation != AUTO:
        raise UserError(f"{where}: {why}.")
    if why or (named == AUTO and padded):
        named = choose(options.max_length, mechanism)
    return dataclasses.replace(options, implementation=named)


def layer_mixers(options: tuple[Options, ...]) -> tuple[Mixer, ...]:
    """Returns the mixers of a pattern."""
    return tuple(make_mixer(o) for o in options)


def implementation_of(options: tuple[Options, ...]) -> str:
    """Returns the names of the implementations that run, in the order of the layers."""
    return ", ".join(dict.fromkeys(o.resolved_implementation for o in options))
