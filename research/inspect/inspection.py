"""What there is to see of one sequence in a trained model: plain data for the page and pictures."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

KINDS = ("cross", "pooling", "self")
"""Kinds of attention, in the order in which they are shown."""
AXES = ("input", "output", "audio", "query")
"""What rows or columns can be: tokens of a text, states over a recording, learned queries."""

JOINER = "\u200d"
"""What holds the parts of one emoji together: the only invisible character that stays."""
NAMED = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs"}
"""Unicode categories without a picture of their own, and those that reorder what is around."""


class Audio(NamedTuple):
    """A recording.

    Attributes:
      features: log-mel spectrogram, F frames of M bands, the lowest first.
      seconds_per_frame: between frames of the spectrogram.
      seconds_per_state: between states, which are the rows and columns that are "audio".
    """

    features: Float[np.ndarray, "F M"]
    seconds_per_frame: float
    seconds_per_state: float


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a model read and wrote. Texts may be anything: they are untrusted.

    Attributes:
      input: texts of the input's tokens; empty for audio.
      output: texts of the output's tokens; empty where there are none, as for a classifier.
      input_numbers: {name: one signed number for each token of the input}, NaN for none.
      output_numbers: the same for the output, for example {"log-probability": ...}.
      audio: the recording, in place of an input of tokens.

    Raises ValueError where numbers and tokens differ in length.
    """

    input: Sequence[str] = ()
    output: Sequence[str] = ()
    input_numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    output_numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    audio: Audio | None = None

    def __post_init__(self) -> None:
        sides = {
            "input": (self.input, self.input_numbers),
            "output": (self.output, self.output_numbers),
        }
        for side, (texts, numbers) in sides.items():
            for name, values in numbers.items():
                if np.shape(values) != (len(texts),):
                    raise ValueError(
                        f"{name!r} has shape {np.shape(values)}, but the {side} has {len(texts)} "
                        "tokens."
                    )


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """The weights of all heads of one layer.

    Attributes:
      name: "layer 3", "decoder 2 cross", ...
      kind: one of KINDS.
      rows: what reads, one of AXES.
      columns: what is read, one of AXES.
      weights: of H heads; may be negative, and NaN in rows that read nothing.
      measures: {name: one number for each head}, NaN where there is none.
      note: one line, the mechanism and the implementation for example.
      heads: numbers of the H heads, where not all are shown; empty: from 0 on.

    Raises ValueError for an unknown kind or axis, and for measures or numbers that are not one per
    head.
    """

    name: str
    kind: str
    rows: str
    columns: str
    weights: Float[np.ndarray, "H T S"]
    measures: Mapping[str, np.ndarray] = field(default_factory=dict)
    note: str = ""
    heads: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.rows not in AXES or self.columns not in AXES:
            found = f"kind={self.kind!r}, rows={self.rows!r}, columns={self.columns!r}"
            raise ValueError(f"{found}: kinds are {KINDS}, rows and columns {AXES}.")
        if self.weights.ndim != 3 or not self.weights.size:
            shape = self.weights.shape
            raise ValueError(f"weights of {self.name!r} are (H, T, S), not {shape}.")
        for name, values in self.measures.items():
            if np.shape(values) != self.weights.shape[:1]:
                raise ValueError(f"{name!r} of {self.name!r} must be one number for each head.")
        if self.heads and len(self.heads) != len(self.weights):
            raise ValueError(f"heads={self.heads} of {self.name!r} must number all heads.")

    @property
    def numbers(self) -> list[int]:
        """The numbers of the heads."""
        return list(self.heads) or list(range(len(self.weights)))


@dataclass(frozen=True, eq=False)
class Inspection:
    """Everything that is shown of one sequence.

    Attributes:
      title: the heading.
      facts: of the run: config, checkpoint, seed, git commit, device, ...
      tokens: what was read and written.
      maps: of all layers, the first layer first.
      predictions: (label, probability), the most probable first.
      lines: further lines of text.

    Raises ValueError where weights do not fit the tokens.
    """

    title: str
    facts: Mapping[str, str]
    tokens: Tokens
    maps: Sequence[AttentionMap]
    predictions: Sequence[tuple[str, float]] = ()
    lines: Sequence[str] = ()

    def __post_init__(self) -> None:
        lengths = {"input": len(self.tokens.input), "output": len(self.tokens.output)}
        for one in self.maps:
            for axis, length in zip((one.rows, one.columns), one.weights.shape[1:], strict=True):
                if lengths.get(axis, length) != length:
                    raise ValueError(
                        f"{one.name!r} is over {length} {axis} tokens, of which there are "
                        f"{lengths[axis]}."
                    )
                if axis == "audio" and self.tokens.audio is None:
                    raise ValueError(f"{one.name!r} is over audio, of which there is none.")


def in_order(maps: Sequence[AttentionMap]) -> list[AttentionMap]:
    """Returns the maps by kind, in the order of KINDS, and otherwise as they were."""
    return sorted(maps, key=lambda one: KINDS.index(one.kind))


def names_of(axis: str, length: int, tokens: Tokens) -> list[str]:
    """Returns what the positions of an axis are called, all of it `visible`.

    Args:
      axis: one of AXES.
      length: positions of the axis.
      tokens: of the sequence.
    """
    if axis == "audio" and tokens.audio is not None:
        return [f"{i * tokens.audio.seconds_per_state:.2f} s" for i in range(length)]
    if axis == "query":
        return ["query"] if length == 1 else [f"query {i}" for i in range(length)]
    return [visible(text) for text in (tokens.input if axis == "input" else tokens.output)]


def visible(text: str) -> str:
    """Returns a text with everything invisible replaced by a sign for it; never an empty text.

    Spaces become "·", line breaks "↵". Control characters, those that change the direction of what
    follows and halves of surrogate pairs become their number, as "⟨U+202E⟩".
    """
    return "".join(map(_visible, text)) or "∅"


def legible(text: str) -> str:
    """Returns `visible` of a line of prose, whose spaces stay spaces."""
    return " ".join(visible(word) for word in text.split(" ") if word)


def _visible(character: str) -> str:
    if character in NAMED:
        return NAMED[character]
    if unicodedata.category(character) in HIDDEN and character != JOINER:
        return f"⟨U+{ord(character):04X}⟩"
    return character
