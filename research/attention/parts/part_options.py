"""The base class of mechanism parts that a config can name, and helpers to declare their options.

Every score, mask, normalizer and position that a config can name is a frozen dataclass that
inherits from `MechanismPart`; `research.options` turns its fields into config keys. The first
paragraph of its docstring says what it computes. To add a part, write such a class and add a line
to the table of its module.
"""

import dataclasses
from typing import Any, ClassVar

from research.options import Part, option

LARGEST = 2**20
"""Upper bound of options that are the size of an array or the length of a Python loop."""


def size_option(default: int, help: str, least: int = 0, most: int = LARGEST, **others: Any) -> Any:
    """Declares an option that is the size of an array or a count."""
    return option(default, help, least=least, most=most, **others)


def length_option(default: int, help: str, least: int = 0, **others: Any) -> Any:
    """Declares an option that counts positions along the sequence.

    It has no upper bound, because all values beyond the longest sequence mean the same.
    """
    return option(default, help, least=least, **others)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes that the parts of softmax attention are built for.

    Attributes:
      width: M, of the sequence.
      num_heads: H.
      num_kv_heads: K.
      head_width: D.
      max_length: the longest sequence.
      bidirectional: whether a query sees keys at later positions.
      base_head_width: width of a head at the base width of muP; 0: scores are not scaled for it.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    max_length: int
    bidirectional: bool = False
    base_head_width: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MechanismPart(Part):
    """A score, mask, normalizer or position encoding that a config can name.

    Attributes:
      where: the attentions it can be used in: "self", "cross", "decoder" (a recurrent decoder's).
      absolute: whether moving a sequence to later positions changes what a mixer computes with it.
    """

    where: ClassVar[tuple[str, ...]] = ("self", "cross", "decoder")
    absolute: ClassVar[bool] = False

    def build(self, sizes: Sizes) -> Any:
        """Builds the part of a mechanism that these options describe.

        Raises:
          OptionError: the options do not fit the sizes.
        """
        raise NotImplementedError


def summary(part: type[Part]) -> str:
    """Returns what a mixer or part computes, one line: the first paragraph of its docstring."""
    return " ".join((part.__doc__ or "").split("\n\n")[0].split()).removesuffix(".")
