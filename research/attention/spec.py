"""Reads a mixer from the flat keys and values of a config."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax

from research.attention.errors import Unsupported
from research.attention.mixers.attention_options import AttentionOptions
from research.attention.mixers.mixer import Mixer, init_params
from research.attention.mixers.mixer_options import AUTO, Context, MixerOptions
from research.attention.parts.masks import Mask
from research.attention.parts.part_options import MechanismPart
from research.attention.parts.segments import segments
from research.attention.parts.tables import TABLES
from research.attention.registry import MIXERS
from research.options import (
    Declared,
    Option,
    OptionError,
    Part,
    chosen,
    common_default,
    declarations,
    defaults_read,
    every_option,
    name_of,
    read,
    readers,
    unknown,
    values_read,
)

MIXER = "mixer"
MIXER_KEY = Declared(MIXER, str, "softmax", Option("what moves information between positions"))
MECHANISM_TOLERATED = ("num_heads",)
"""Keys that are accepted even by mixers that do not read them, because the arms of an ablation over
mixers share them."""


@dataclasses.dataclass(frozen=True)
class MixerSpec:
    """A mixer's options together with the context that the model provides.

    Attributes:
      options: options of the mixer and its parts.
      context: the model's width, longest sequence...
    """

    options: MixerOptions
    context: Context

    @property
    def name(self) -> str:
        """The mixer's name in `MIXERS`."""
        return name_of(self.options, MIXERS)

    @property
    def values(self) -> dict[str, Any]:
        """{key: value} for all options that the mixer and its parts read, "mixer" first."""
        return {MIXER: self.name} | values_read(self.options)

    @property
    def defaults(self) -> dict[str, Any]:
        """{key: declared default} for the keys in `values`."""
        return {MIXER: "softmax"} | defaults_read(self.options)

    @property
    def position(self) -> str:
        """The name of the position encoding; "none" for mixers without that option."""
        return self.values.get("position", "none")

    @property
    def mask(self) -> Mask | None:
        """The mixer's mask; None for mixers without that option."""
        options = self.options
        return options.build_mask(self.context) if isinstance(options, AttentionOptions) else None

    @property
    def bidirectional(self) -> bool:
        """Whether a token can see later tokens."""
        # prefix_length == 1 is causal too: the first token sees itself.
        ahead = self.mask is not None and self.mask.prefix_length not in (0, 1)
        return ahead or not self.options.causal

    @property
    def implementation(self) -> str:
        """The name of the implementation that runs, with "auto" resolved."""
        return self.options.resolved_implementation(self.context)

    def make(self) -> Mixer:
        """Returns the mixer.

        Raises:
          OptionError: an option is invalid; one line names it, its value and the fix.
        """
        return self.options.make(self.context)

    def refusal_of_segments(self) -> str:
        """Returns one line on why the mixer cannot keep segments apart; empty if it can."""
        mixer, token = self.make(), (1, 1, self.context.width)

        def mix(key: Any, x: Any, ids: Any) -> Any:
            return mixer(init_params(mixer, key), x, mask=segments(ids, ids))

        key = jax.eval_shape(lambda: jax.random.key(0))
        shapes = (token, self.context.dtype), (token[:2], "int32")
        try:
            jax.eval_shape(mix, key, *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
        except Unsupported as error:
            return str(error)
        return ""

    def computed_by(self, implementation: str) -> "MixerSpec":
        """Returns the same mixer computed by this implementation."""
        options = dataclasses.replace(self.options, implementation=implementation)
        return dataclasses.replace(self, options=options)

    def parts(self) -> dict[str, MechanismPart]:
        """Returns the chosen parts by description, such as "mask 'window'"."""
        found = chosen(self.options).items()
        return {name: part for name, part in found if isinstance(part, MechanismPart)}

    def chosen(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields (description, where it can be used) for all chosen parts and enabled options."""
        yield f"mixer {self.name!r}", self.options.where
        for name, part in chosen(self.options).items():
            yield name, getattr(part, "where", ())
        for name, declared in declarations(type(self.options)).items():
            if declared.option.where and getattr(self.options, name) != declared.default:
                yield name, declared.option.where


def mixer_spec(**values: Any) -> MixerSpec:
    """Returns the mixer described by these keys and values.

    Args:
      **values: fields of `Context`, "mixer", and options of the mixer and its parts.

    Raises:
      OptionError: a value is invalid, or nothing reads it.
    """
    return read_spec(values, values.keys())


def make_mixer(**values: Any) -> Mixer:
    """Builds the mixer; arguments as in `mixer_spec`."""
    return mixer_spec(**values).make()


def read_spec(values: Mapping[str, Any], own: Collection[str] = ()) -> MixerSpec:
    """Returns the mixer described by the values that it reads.

    Args:
      values: keys and values; keys that this mixer does not read are ignored.
      own: keys that must be read, unless they are left at their defaults.

    Raises:
      OptionError: a value is invalid, or a key in `own` is not read.
    """
    context = read(Context, values)
    name = values.get(MIXER) or "softmax"
    if name not in MIXERS:
        raise unknown(MIXER, name, MIXERS)
    spec = MixerSpec(read(MIXERS[name], values), context)
    for key in own:
        check_read(spec, key, values[key])
    _check(spec)
    return spec


def check_read(spec: MixerSpec, key: str, value: Any) -> None:
    """Raises OptionError if the mixer does not read this key, unless it has its default."""
    tolerated = (*declarations(Context), *MECHANISM_TOLERATED)
    if value is None or key in spec.values or key in tolerated:
        return
    known = mechanism_options().get(key)
    if known is None:
        raise unknown(key, value, mechanism_options())
    default = common_default(known)
    if value != default:
        leave = "leave it out" if default is None else f"leave it {default!r}"
        raise OptionError(key, value, f"nothing here reads it ({readers_text(key)} would); {leave}")


def mechanism_options() -> dict[str, list[Declared]]:
    """Returns {key: its declarations} over all mixers and parts, "mixer" first."""
    return {MIXER: [MIXER_KEY]} | every_option([MIXERS])


def readers_text(key: str) -> str:
    """Returns the mixers and parts that read a key, as text."""
    tables: Mapping[str, Mapping[str, type[Part]]] = {**TABLES, MIXER: MIXERS}
    return readers(key, tables) or "a layer that attends"


def _check(spec: MixerSpec) -> None:
    """Raises OptionError for inconsistent options, found by building the mixer."""
    options, name = spec.options, spec.options.implementation
    if name != AUTO and name not in options.implementations:
        allowed = (AUTO, *options.implementations)
        if not any(name in other.implementations for other in MIXERS.values()):
            raise unknown("implementation", name, allowed)
        message = f"mixer {spec.name!r} has no such implementation; it is one of "
        raise OptionError("implementation", name, message + ", ".join(allowed))
    if spec.context.use_bias and not options.has_biases:
        raise OptionError("use_bias", True, f"mixer {spec.name!r} has no biases; leave it False")
    try:
        spec.make()
    except OptionError:
        raise
    except ValueError as error:
        raise OptionError(MIXER, spec.name, str(error)) from None
