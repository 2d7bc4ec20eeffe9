"""What a line of the registry says about a mechanism."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from research.attention.mixers.mixer import Mixer
    from research.attention.options import Options


class Part(NamedTuple):
    """A registered score, mask, normalizer or position encoding.

    Attributes:
        build: makes it from validated options.
        source: the paper, with section or equation.
        computes: what it computes, one line in plain text.
        needs: options that it reads and that have to be set (integers of at least 1).
        takes: options that it reads and that have a usable default.
        where: where it can be used: of "self", "cross", "decoder" (an RNN's).
    """

    build: Callable[["Options"], Any]
    source: str
    computes: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    where: tuple[str, ...] = ("self", "cross", "decoder")


class MixerEntry(NamedTuple):
    """A registered mixer.

    Attributes:
        make: builds it from validated options.
        parts: the options it reads, of ``registry.PARTS``; all others have to be left at their
            defaults.
        implementations: the names it accepts.
        auto: which of them "auto" stands for.
        source: the paper, with section or equation.
        computes: what it computes, one line in plain text.
        time: work for a sequence, in T, S, D...
        state: size of the decoding state of one layer and sequence.
        accepts: for options whose table has entries that this mixer cannot take ("score",
            "position"...): the names that it can, by option.
        causal: whether it can be decoded token by token.
        where: where it can be used: of "self", "cross", "decoder" (an RNN's).
    """

    make: Callable[["Options"], "Mixer"]
    parts: frozenset[str]
    implementations: tuple[str, ...]
    auto: Callable[["Options"], str]
    source: str
    computes: str
    time: str
    state: str
    accepts: dict[str, tuple[str, ...]] = {}
    causal: bool = True
    where: tuple[str, ...] = ("self",)
