"""Which mechanism each layer has: one for all, or a pattern that repeats."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from research.attention.errors import MechanismError
from research.attention.mixers.mixer import Mixer
from research.attention.options import Options, make_mixer
from research.attention.registry import MODEL_POSITIONS
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


def layer_mixers(options: tuple[Options, ...]) -> tuple[Mixer, ...]:
    """Returns the mixers of a pattern."""
    return tuple(make_mixer(o) for o in options)


def implementation_of(options: tuple[Options, ...]) -> str:
    """Returns the names of the implementations that run, in the order of the layers."""
    return ", ".join(dict.fromkeys(o.resolved_implementation for o in options))
