"""Layers of several types: as a list there, as a pattern of deltas here."""

from collections.abc import Callable, Mapping
from typing import Any

from research.errors import UserError
from research.models.layers import parse_layer

Options = dict[str, Any]


def repeating(layers: list[Any]) -> tuple[Any, ...]:
    """Returns the shortest pattern of layers that gives these when it is repeated."""
    for period in range(1, len(layers) + 1):
        if len(layers) % period == 0 and layers == layers[:period] * (len(layers) // period):
            return tuple(layers[:period])
    raise AssertionError("a list repeats itself once")


def delta(options: Mapping[str, Any]) -> str:
    """Returns the text of options of a layer, "mask=window, window=8"."""
    text = {True: "true", False: "false"}
    return ", ".join(
        f"{key}={text[value] if isinstance(value, bool) else value}"
        for key, value in options.items()
    )


def layers_of(model: Mapping[str, Any]) -> list[Options]:
    """Returns the options of each layer: those of the model, with those of the pattern in it."""
    shared = {key: value for key, value in model.items() if key != "pattern"}
    deltas = [parse_layer(text, "model.pattern") for text in model.get("pattern") or ("",)]
    return [shared | one for one in deltas] * (model["num_layers"] // len(deltas))


def kinds_of(
    model: Mapping[str, Any], kind: Callable[[Options], str]
) -> tuple[list[str], dict[str, Options]]:
    """Returns the type of each layer, and the options of the layers of each type.

    Args:
      model: our options.
      kind: function from the options of a layer to its type.

    Raises UserError if layers of one type differ.
    """
    layers = layers_of(model)
    kinds, found = [kind(one) for one in layers], dict[str, Options]()
    for name, one in zip(kinds, layers, strict=True):
        if found.setdefault(name, one) != one:
            differ = sorted(key for key in one if one[key] != found[name].get(key))
            raise UserError(
                f"model.pattern={model['pattern']}: layers that are all {name} differ in "
                f"{', '.join(differ)}."
            )
    return kinds, found
