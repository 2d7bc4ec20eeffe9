"""A mixer as a config describes it, from flat keys and values."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from research.attention.mixers.attention_options import AttentionOptions
from research.attention.mixers.choice import AUTO, Context, MixerOptions
from research.attention.mixers.mixer import Mixer
from research.attention.parts.masks import Mask
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
"""Keys that mixers may have which do not read them: arms of an ablation over mixers share them."""


@dataclasses.dataclass(frozen=True)
class MixerSpec:
    """What is chosen for a mixer, and what the model tells it.

    Attributes:
      options: of the mixer and its parts.
      context: width, longest sequence... of the model.
    """

    options: MixerOptions
    context: Context

    @property
    def name(self) -> str:
        """The mixer's name."""
        return name_of(self.options, MIXERS)

    @property
    def values(self) -> dict[str, Any]:
        """{key: value} of all that the mixer and its parts read, "mixer" first."""
        return {MIXER: self.name} | values_read(self.options)

    @property
    def defaults(self) -> dict[str, Any]:
        """{key: declared default} of the keys in `values`."""
        return {MIXER: "softmax"} | defaults_read(self.options)

    @property
    def position(self) -> str:
        """The name of the position encoding; "none" of mixers that have no choice."""
        return self.values.get("position", "none")

    @property
    def mask(self) -> Mask | None:
        """The mask of a mixer that chooses one."""
        options = self.options
        return options.build_mask(self.context) if isinstance(options, AttentionOptions) else None

    @property
    def looks_ahead(self) -> bool:
        """Whether a token sees later ones."""
        # A first token that sees all of the first token is causal.
        ahead = self.mask is not None and self.mask.together not in (0, 1)
        return ahead or not self.options.causal

    @property
    def implementation(self) -> str:
        """The implementation that runs."""
        return self.options.resolved(self.context)

    def make(self) -> Mixer:
        """Returns the mixer.

        Raises:
          OptionError: an option is wrong; one line names it, the value and what is right.
        """
        return self.options.make(self.context)

    def computed_by(self, implementation: str) -> "MixerSpec":
        """Returns the same mixer computed by this implementation."""
        options = dataclasses.replace(self.options, implementation=implementation)
        return dataclasses.replace(self, options=options)

    def chosen(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Returns what is chosen by name or switched on, and where each can be used."""
        yield f"mixer {self.name!r}", self.options.where
        for name, part in chosen(self.options).items():
            yield name, getattr(part, "where", ())
        for name, declared in declarations(type(self.options)).items():
            if declared.option.where and getattr(self.options, name) != declared.default:
                yield name, declared.option.where


def mixer_spec(**values: Any) -> MixerSpec:
    """Returns the mixer that these keys and values describe.

    Args:
      **values: of `Context`, "mixer", and of the options of the mixer and its parts.

    Raises:
      OptionError: a value is wrong, or nothing reads it.
    """
    return read_spec(values, values.keys())


def make_mixer(**values: Any) -> Mixer:
    """Returns the mixer that `mixer_spec` describes."""
    return mixer_spec(**values).make()


def read_spec(values: Mapping[str, Any], own: Collection[str] = ()) -> MixerSpec:
    """Returns the mixer that some of the values describe.

    Args:
      values: may have keys that this mixer does not read.
      own: keys that it has to read, if they are not left at their defaults.

    Raises:
      OptionError: a value is wrong, or one of `own` is not read.
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
    """Raises OptionError for a value of a key that a mixer does not read."""
    if key not in declarations(Context) and key not in (*spec.values, *MECHANISM_TOLERATED):
        refuse_unread(key, value)


def refuse_unread(key: str, value: Any) -> None:
    """Raises OptionError for a key that nothing reads, unless it is left at its default."""
    if value is None:
        return
    known = mechanism_options().get(key)
    if known is None:
        raise unknown(key, value, mechanism_options())
    default = common_default(known)
    if value != default:
        leave = "leave it out" if default is None else f"leave it {default!r}"
        raise OptionError(key, value, f"nothing here reads it ({readers_of(key)} would); {leave}")


def mechanism_options() -> dict[str, list[Declared]]:
    """Returns {key: its declarations} of all mixers and parts, "mixer" first."""
    return {MIXER: [MIXER_KEY]} | every_option([MIXERS])


def readers_of(key: str) -> str:
    """Returns who reads a key of a mechanism, in words."""
    tables: Mapping[str, Mapping[str, type[Part]]] = {**TABLES, MIXER: MIXERS}
    return readers(key, tables) or "a layer that attends"


def _check(spec: MixerSpec) -> None:
    """Raises OptionError for options that do not fit each other, as far as making it shows."""
    options, name = spec.options, spec.options.implementation
    if name != AUTO and name not in options.implementations:
        allowed = (AUTO, *options.implementations)
        if not any(name in other.implementations for other in MIXERS.values()):
            raise unknown("implementation", name, allowed)
        message = f"mixer {spec.name!r} is not implemented that way; it is one of "
        raise OptionError("implementation", name, message + ", ".join(allowed))
    if spec.context.use_bias and not options.has_biases:
        raise OptionError("use_bias", True, f"mixer {spec.name!r} has no biases; leave it False")
    try:
        spec.make()
    except OptionError:
        raise
    except ValueError as error:
        raise OptionError(MIXER, spec.name, str(error)) from None
