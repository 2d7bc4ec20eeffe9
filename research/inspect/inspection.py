"""Data of an inspection: one sequence in a trained model, as plain data for pages and pictures."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

KINDS = ("cross", "pooling", "self")
"""Kinds of attention, in display order."""
AXES = ("input", "output", "audio", "query")
"""Kinds of rows and columns: tokens of a text, states over a recording, learned queries."""

JOINER = "\u200d"
"""Zero-width joiner, which joins the parts of an emoji: the only invisible character to keep."""
NAMED = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs"}
"""Unicode categories of invisible characters, including those that change text direction."""


class Audio(NamedTuple):
    """A recording.

    Attributes:
      features: log-mel spectrogram, F frames of M bands, the lowest first.
      seconds_per_frame: time between frames of the spectrogram.
      seconds_per_state: time between states, the rows and columns of "audio" axes.
    """

    features: Float[np.ndarray, "F M"]
    seconds_per_frame: float
    seconds_per_state: float


@dataclass(frozen=True, eq=False)
class Tokens:
    """Input and output tokens of a model, with values per token. Texts are untrusted.

    Attributes:
      input: text of each input token; empty for audio.
      output: text of each output token; empty if there are none, as for a classifier.
      input_numbers: {name: one signed value per input token}, NaN if a token has none.
      output_numbers: the same for the output, for example {"log-probability": ...}.
      audio: the recording, if the input is not made of tokens.

    Raises ValueError if values and tokens differ in length.
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
      rows: axis of the queries, one of AXES.
      columns: axis of the keys, one of AXES.
      weights: weights of H heads; may be negative, and NaN in fully masked rows.
      measures: {name: one value per head}, NaN if a head has none.
      note: one line of text, for example about the implementation.
      heads: indices of the H heads if only some are shown; empty: 0 to H - 1.

    Raises ValueError for an unknown kind or axis, and unless measures and `heads` have one entry
    per head.
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
        """Index of each head."""
        return list(self.heads) or list(range(len(self.weights)))


@dataclass(frozen=True, eq=False)
class Inspection:
    """All data to show for one sequence.

    Attributes:
      title: the heading.
      facts: facts about the run: config, checkpoint, seed, git commit, device, ...
      tokens: input and output of the model.
      maps: attention maps of all layers, from the first to the last.
      predictions: (label, probability), the most probable first.
      lines: further lines of text.

    Raises ValueError if the shapes of weights do not match the tokens.
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


def sorted_by_kind(maps: Sequence[AttentionMap]) -> list[AttentionMap]:
    """Returns the maps sorted by kind, in the order of KINDS; the sort is stable."""
    return sorted(maps, key=lambda one: KINDS.index(one.kind))


def position_labels(axis: str, length: int, tokens: Tokens) -> list[str]:
    """Returns the labels of the positions of an axis, with token texts made `visible`.

    Args:
      axis: one of AXES.
      length: number of positions of the axis.
      tokens: tokens of the sequence.
    """
    if axis == "audio" and tokens.audio is not None:
        return [f"{i * tokens.audio.seconds_per_state:.2f} s" for i in range(length)]
    if axis == "query":
        return ["query"] if length == 1 else [f"query {i}" for i in range(length)]
    return [visible(text) for text in (tokens.input if axis == "input" else tokens.output)]


def visible(text: str) -> str:
    """Returns the text with invisible characters replaced by visible symbols; never empty.

    Spaces become "·", line breaks "↵". Control characters, characters that change text direction
    and unpaired surrogates are replaced by their code point, such as "⟨U+202E⟩".
    """
    return "".join(map(_visible, text)) or "∅"


def legible(text: str) -> str:
    """Returns a line of prose made `visible`, but with its spaces kept."""
    return " ".join(visible(word) for word in text.split(" ") if word)


def _visible(character: str) -> str:
    if character in NAMED:
        return NAMED[character]
    if unicodedata.category(character) in HIDDEN and character != JOINER:
        return f"⟨U+{ord(character):04X}⟩"
    return character
