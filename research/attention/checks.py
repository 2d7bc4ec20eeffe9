"""What makes options of a mechanism wrong, each in one line that says what would be right."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from research.attention import registry
from research.attention.entries import Part
from research.attention.errors import MechanismError
from research.attention.implementations.attend import IMPLEMENTATIONS, refusal
from research.attention.parts.masks import LONGEST
from research.attention.parts.positions import SCALINGS

if TYPE_CHECKING:
    from research.attention.options import Options

# Every mixer has these; they cannot be superfluous.
COMMON = (
    "width",
    "num_heads",
    "max_length",
    "mixer",
    "implementation",
    "init_stddev",
    "dtype",
    "num_layers",
)
AT_LEAST_ONE = ("width", "num_heads", "max_length", "num_layers")
# Counted along the sequence: what is longer than any sequence means the same at every value.
LENGTHS = (
    "window",
    "prefix_length",
    "dilation",
    "stride",
    "global_tokens",
    "block_length",
    "predicted_window",
    "rope_original_length",
    "chunk",
    "block_size",
)
# The others are sizes of arrays or counts of what is gone through one by one.
MOST = {
    "max_length": LONGEST,
    "num_buckets": 1024,
    "random_blocks": 1024,
    "mechanism_seed": 2**63 - 1,
}
MOST_ELSE = 2**20
POSITIVE = ("temperature", "sharpening", "rope_base", "rope_fraction", "rope_factor")


def check(options: "Options") -> None:
    """Raises MechanismError if the options are wrong."""
    _check_types(options)
    _check_ranges(options)
    _check_names(options)
    _check_positions(options)
    _check_superfluous(options)
    _check_needs(options)
    if "num_heads" in registry.MIXERS[options.mixer].parts:
        _check_heads(options)
    _check_causal(options)
    _check_implementation(options)
    _check_parts(options)


def chosen_parts(options: "Options") -> dict[str, Part]:
    """What the options name in the tables that this mixer reads; "mask window" -> its entry."""
    parts = registry.MIXERS[options.mixer].parts
    found = {}
    for field, table in registry.TABLES.items():
        names = [getattr(options, field)]
        if field == "mask":
            names = [name for every in registry.mask_names(options.mask) for name in every]
        if field in parts or (field == "position" and names[0] in registry.MODEL_POSITIONS):
            found |= {f"{field} {name!r}": table[name] for name in names}
    return found


def _check_types(options: "Options") -> None:
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        kind: Any = field.type
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            message = f"must be of type {kind.__name__}, not {type(value).__name__}"
            raise MechanismError(field.name, value, message)


def _check_ranges(options: "Options") -> None:
    for field in dataclasses.fields(options):
        name, value = field.name, getattr(options, field.name)
        if isinstance(value, str | bool):
            continue
        if name in AT_LEAST_ONE and value < 1:
            raise MechanismError(name, value, "must be at least 1")
        if name in POSITIVE and not 0 < value < float("inf"):
            raise MechanismError(name, value, "must be positive and finite")
        if not 0 <= value < float("inf"):
            raise MechanismError(name, value, "must be 0 or more, and finite")
        most = MOST.get(name, MOST_ELSE)
        if field.type is int and name not in LENGTHS and value > most:
            raise MechanismError(name, value, f"must be at most {most}")
    for name, least in (("max_distance", 1), ("num_buckets", 4), ("rope_factor", 1)):
        if getattr(options, name) < least:
            raise MechanismError(name, getattr(options, name), f"must be at least {least}")
    if options.rope_fraction > 1:
        raise MechanismError("rope_fraction", options.rope_fraction, "must be at most 1")


def _check_names(options: "Options") -> None:
    for field, known in (("mixer", registry.MIXERS), ("rope_scaling", SCALINGS)):
        if getattr(options, field) not in known:
            raise _unknown(field, getattr(options, field), known)
    for field, table in registry.TABLES.items():
        names = [getattr(options, field)]
        if field == "mask":
            names = [name for every in registry.mask_names(options.mask) for name in every]
        for name in names:
            if name not in table:
                raise _unknown(field, name, table)
        accepted = registry.MIXERS[options.mixer].accepts.get(field)
        if accepted is not None and names[0] not in (*accepted, _default(options, field)):
            message = f"mixer {options.mixer!r} takes {', '.join(accepted)}"
            raise MechanismError(field, names[0], message)


def _unknown(field: str, value: str, allowed: Iterable[str]) -> MechanismError:
    allowed = list(allowed)
    close = difflib.get_close_matches(value, allowed, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return MechanismError(field, value, f"unknown; {guess}it is one of {', '.join(allowed)}")


def _default(options: "Options", name: str) -> Any:
    return next(f.default for f in dataclasses.fields(options) if f.name == name)


def _check_positions(options: "Options") -> None:
    """A position encoding that the mixer would have to apply, and cannot."""
    entry, position = registry.MIXERS[options.mixer], options.position
    if position in registry.MODEL_POSITIONS or "position" in entry.parts:
        if position in registry.SCORE_POSITIONS:
            score = registry.SCORES[options.score].build(options)
            if not score.has_dot_form:
                message = f"it needs a score with a dot product, which {options.score!r} is not"
                raise MechanismError("position", position, message)
        return
    having = _mixers_with("position")
    message = f"mixer {options.mixer!r} does not apply positions, {having} does; "
    message += f"it can have {', '.join(registry.MODEL_POSITIONS)}"
    raise MechanismError("position", position, message)


def _check_superfluous(options: "Options") -> None:
    """Refuses options that nothing would read."""
    entry, chosen = registry.MIXERS[options.mixer], chosen_parts(options)
    read = {*COMMON, *entry.parts, "position"} | ({"mask"} if not entry.causal else set())
    for part in chosen.values():
        read |= {*part.needs, *part.takes}
    for field in dataclasses.fields(options):
        name, value = field.name, getattr(options, field.name)
        if name in read or value == field.default:
            continue
        message = f"nothing here reads it ({_readers(name)} would); leave it {field.default!r}"
        raise MechanismError(name, value, message)


def _readers(option: str) -> str:
    """Who reads an option, in words."""
    for field, table in registry.TABLES.items():
        names = [n for n, part in table.items() if option in (*part.needs, *part.takes)]
        if names:
            return f"{field} {', '.join(names)}"
    return f"mixer {_mixers_with(option)}"


def _mixers_with(option: str) -> str:
    return ", ".join(name for name, entry in registry.MIXERS.items() if option in entry.parts)


def _check_needs(options: "Options") -> None:
    for what, part in chosen_parts(options).items():
        for name in part.needs:
            if not getattr(options, name):
                raise MechanismError(name, 0, f"{what} needs it to be at least 1")


def _check_heads(options: "Options") -> None:
    heads, kv_heads = options.num_heads, options.kv_heads
    if not options.head_width and options.width % heads:
        message = f"width = {options.width} is not divisible by it; choose a divisor or head_width"
        raise MechanismError("num_heads", heads, message)
    if heads % kv_heads:
        raise MechanismError("num_kv_heads", kv_heads, f"must divide num_heads = {heads}")
    turned = options.head_size * options.rope_fraction
    if options.position in registry.ROTARY_POSITIONS and (turned % 2 or turned < 2):
        message = f"it turns channels in pairs, and {turned:g} of head width {options.head_size}"
        message += " is not even"
        raise MechanismError("position", options.position, message)


def _check_causal(options: "Options") -> None:
    entry = registry.MIXERS[options.mixer]
    if not entry.causal and "mask" not in entry.parts and options.mask != "full":
        causal = ", ".join(name for name, other in registry.MIXERS.items() if other.causal)
        message = (
            f"mixer {options.mixer!r} sees the whole sequence at once, so it needs mask 'full'; "
            f"causal ones are {causal}"
        )
        raise MechanismError("mask", options.mask, message)


def _check_implementation(options: "Options") -> None:
    name, entry = options.implementation, registry.MIXERS[options.mixer]
    if name == registry.AUTO:
        return
    if name not in entry.implementations:
        everywhere = {n for other in registry.MIXERS.values() for n in other.implementations}
        if name not in everywhere:
            raise _unknown("implementation", name, (registry.AUTO, *entry.implementations))
        allowed = ", ".join((registry.AUTO, *entry.implementations))
        message = f"mixer {options.mixer!r} is not implemented that way; it is one of {allowed}"
        raise MechanismError("implementation", name, message)
    if name in IMPLEMENTATIONS and (why := refusal(name, options.mechanism)):
        raise MechanismError("implementation", name, why)


def _check_parts(options: "Options") -> None:
    """What only the mixer or one of its parts knows to be wrong."""
    try:
        registry.MIXERS[options.mixer].make(options)
    except MechanismError:
        raise
    except ValueError as error:
        raise MechanismError("mixer", options.mixer, str(error)) from None
