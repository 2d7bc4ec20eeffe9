"""Ids of the tokens that are no text: those of our tasks, or of a pretrained model."""

from collections.abc import Sequence
from typing import NamedTuple

from research.tasks.task import BOS, EOS, PAD, UNKNOWN


class SpecialTokens(NamedTuple):
    """Ids of the tokens that are no text. Those of our tasks are the defaults.

    A pretrained model has other ones, and some are one token: T5 starts with padding, and BART with
    the end. They are recorded and read where they are used, rather than moved to our ids: moving
    them would permute tables and tokenizer.json, whose kinds keep ids in different places, and copy
    the rows of tokens that are two of ours, which takes part of the probability.

    Attributes:
      pad: padding, which is never written.
      start: what a decoder reads before its first token; never written, unless it is `end`.
      end: end of a sequence.
      unknown: an unknown word, which stands for words that are taken out.
      first: what every target begins with; -1: nothing.
      before, after: what a text that is read has around it.
    """

    pad: int = PAD
    start: int = BOS
    end: int = EOS
    unknown: int = UNKNOWN
    first: int = -1
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def room(self, length: int) -> int:
        """Returns how many tokens of a text fit into `length` tokens."""
        return length - len(self.before) - len(self.after)

    def around(self, tokens: Sequence[int], length: int) -> list[int]:
        """Returns the tokens of a text, cut so that with those around it they are `length`."""
        return [*self.before, *tokens[: self.room(length)], *self.after]
