"""What a config can choose of a mechanism: parts that it names, and how their options are declared.

Every score, mask, normalizer and position that a config can name is a frozen dataclass that
inherits from `MechanismPart`; `research.options` says how its fields become config keys. The first
paragraph of its docstring says what it computes. Adding one is such a class and a line in the table
of its module.
"""

import dataclasses
from typing import Any, ClassVar

from research.options import Part, option

LARGEST = 2**20
"""The most of what is the size of an array or a count that is gone through one by one."""


def size(default: int, help: str, least: int = 0, most: int = LARGEST, **others: Any) -> Any:
    """Returns an option that is the size of an array or a count."""
    return option(default, help, least=least, most=most, **others)


def span(default: int, help: str, least: int = 0, **others: Any) -> Any:
    """Returns an option that is counted along the sequence.

    It has no largest value: what is longer than any sequence means the same at every value.
    """
    return option(default, help, least=least, **others)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the parts of softmax attention are made for.

    Attributes:
      width: M, of the sequence.
      num_heads: H.
      num_kv_heads: K.
      head_width: D.
      max_length: the longest sequence.
      bidirectional: whether a query sees keys behind it.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    max_length: int
    bidirectional: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MechanismPart(Part):
    """A score, mask, normalizer or position encoding that a config can name.

    Attributes:
      where: where it can be used: of "self", "cross", "decoder" (a recurrent network's).
    """

    where: ClassVar[tuple[str, ...]] = ("self", "cross", "decoder")

    def build(self, sizes: Sizes) -> Any:
        """Returns the part of a mechanism that this describes.

        Raises:
          OptionError: the options do not fit the sizes.
        """
        raise NotImplementedError


def computes(part: type[Part]) -> str:
    """Returns what a mixer or part computes, one line: the first paragraph of its docstring."""
    return " ".join((part.__doc__ or "").split("\n\n")[0].split()).removesuffix(".")
