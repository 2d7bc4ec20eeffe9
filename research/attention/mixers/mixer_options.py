"""The base classes of mixer options.

The options of a mixer that a config can name are a frozen dataclass that inherits from
`MixerOptions` (see `research.options`) and builds the mixer with all sizes resolved. The first
paragraph of its docstring says what the mixer computes. To add a mixer, write such a class and add
a line to the registry.
"""

import dataclasses
from typing import Any, ClassVar, TypeVar

from research.attention.mixers.mixer import Mixer
from research.attention.mixers.projections import NORM_EPSILON
from research.attention.parts.part_options import MechanismPart, Sizes, size_option
from research.attention.parts.positions import MODEL_POSITIONS
from research.options import OptionError, Part, choice, option

AUTO = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context(Part):
    """What a model tells all of its mixers."""

    width: int = size_option(0, "M, width of the sequence's vectors", least=1)
    max_length: int = size_option(0, "the longest sequence", least=1, most=2**30)
    num_layers: int = size_option(1, "L, number of layers of the model", least=1)
    use_bias: bool = option(False, "adds biases to projections")
    norm_epsilon: float = option(
        NORM_EPSILON, "added to the mean square in norms of queries and keys", above=0
    )
    init_stddev: float = option(
        0.02, "standard deviation of initial matrices; 0: 1 / sqrt(fan in)", least=0
    )
    base_width: int = option(
        0, "width from which options were carried over by muP; 0: scores are not scaled for it"
    )
    dtype: str = option(
        "float32", "dtype of the sequence; not every implementation supports every dtype"
    )

    @property
    def out_scale(self) -> float:
        """The scale of initial output projections, 1 / sqrt(2 L).

        Source: Radford et al. 2019 (GPT-2), section 2.3.
        """
        return (2 * self.num_layers) ** -0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerOptions(Part):
    """A mixer that a config can name.

    Attributes:
      implementations: the valid names for `implementation`.
      time: time complexity for a sequence, in T, S, D...
      state: size of the decoding state of one layer and sequence.
      causal: whether it can be decoded token by token.
      where: the attentions it can be used in: "self", "cross", "decoder" (a recurrent decoder's).
      has_biases: whether its projections can have biases.
    """

    implementations: ClassVar[tuple[str, ...]] = ()
    time: ClassVar[str] = ""
    state: ClassVar[str] = ""
    causal: ClassVar[bool] = True
    where: ClassVar[tuple[str, ...]] = ("self",)
    has_biases: ClassVar[bool] = True

    implementation: str = option(
        AUTO, "how the mixer is computed, without effect on its function; auto: automatic"
    )

    def default_implementation(self, context: Context) -> str:
        """Returns the best implementation for the length, the device and the dtype."""
        return self.implementations[0]

    def resolved_implementation(self, context: Context) -> str:
        """Returns the implementation that runs, with "auto" resolved."""
        return (
            self.default_implementation(context)
            if self.implementation == AUTO
            else self.implementation
        )

    def make(self, context: Context) -> Mixer:
        """Builds the mixer.

        Raises:
          OptionError: the options contradict each other or do not fit the context.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadOptions(MixerOptions):
    """Options of mixers that have heads."""

    num_heads: int = size_option(4, "H, number of query heads", least=1)
    head_width: int = size_option(0, "D, width of a head; 0: width / num_heads")

    def sizes(self, context: Context) -> Sizes:
        """Returns the sizes of the heads.

        Raises:
          OptionError: num_heads does not divide the width and head_width is not set.
        """
        if not self.head_width and context.width % self.num_heads:
            message = f"width = {context.width} is not divisible by it; choose a divisor or "
            raise OptionError("num_heads", self.num_heads, message + "head_width")
        width = self.head_width or context.width // self.num_heads
        heads = self.num_heads
        base = 0.0
        if context.base_width:
            # Heads of a given width become more with the width of the model, others become wider.
            base = width if self.head_width else width * context.base_width / context.width
        return Sizes(context.width, heads, heads, width, context.max_length, base_head_width=base)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputPositionOptions(MixerOptions):
    """Options of mixers that know the order of a sequence by themselves, if at all."""

    position: MechanismPart = choice(
        MODEL_POSITIONS,
        "none",
        "position encoding that the model adds to its input",
        others="mixers softmax, latent and differential apply the other position encodings",
    )


T = TypeVar("T")


def build_from(cls: type[T], *sources: Any, **values: Any) -> T:
    """Builds a dataclass from given values and from attributes of the same name.

    Args:
      cls: the dataclass.
      *sources: objects; each field is copied from the first one with an attribute of its name.
      **values: values that take precedence over the sources. A field found in neither keeps its
        default.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # ty: ignore[invalid-argument-type]
        if field.name in values:
            found[field.name] = values[field.name]
            continue
        for source in sources:
            if hasattr(source, field.name):
                found[field.name] = getattr(source, field.name)
                break
    unknown = values.keys() - found.keys()
    if unknown:
        raise TypeError(f"{cls.__name__} has no {', '.join(sorted(unknown))}")
    return cls(**found)
