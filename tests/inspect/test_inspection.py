"""What is shown of a sequence: what fits together, and what things are called."""

import unicodedata

import numpy as np
import pytest

from research.inspect.inspection import (
    AttentionMap,
    Inspection,
    Tokens,
    legible,
    position_labels,
    sorted_by_kind,
    visible,
)
from tests.inspections import speech, translation


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "·the"),
        ("", "∅"),
        ("a\tb\r\n", "a⇥b␍↵"),
        ("\u202eabc", "⟨U+202E⟩abc"),
        ("\x00\x1b", "⟨U+0000⟩⟨U+001B⟩"),
        ("\u2028\u00a0\u200b", "⟨U+2028⟩⟨U+00A0⟩⟨U+200B⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("👩\u200d🚀 é שלום 木", "👩\u200d🚀·é·שלום·木"),
        ("<b>&amp;", "<b>&amp;"),
    ],
)
def test_what_is_invisible_is_shown(text, shown):
    assert visible(text) == shown


def test_prose_keeps_its_spaces():
    assert legible("a  b\u202e\n c") == "a b⟨U+202E⟩↵ c"


def test_no_character_stays_invisible():
    for code in [*range(0x3000), *range(0xD7F0, 0xE010), *range(0xFE00, 0x10000)]:
        shown = visible(chr(code))
        hidden = [c for c in shown if unicodedata.category(c)[0] in "CZ" and c != "\u200d"]
        assert not [c for c in hidden if unicodedata.category(c) != "Cn"]


def test_maps_are_ordered_by_kind_and_otherwise_stay():
    names = [one.name for one in sorted_by_kind(translation().maps)]
    assert names == ["decoder 0 cross", "encoder 0", "decoder 0"]


def test_names_of_positions():
    heard = speech().tokens
    assert position_labels("audio", 3, heard) == ["0.00 s", "0.04 s", "0.08 s"]
    assert position_labels("output", 2, heard) == ["·one", "</s>"]
    assert position_labels("query", 1, heard) == ["query"]
    assert position_labels("query", 2, heard) == ["query 0", "query 1"]


def weights(*shape):
    return np.ones(shape, np.float32)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="'score' has shape .2,., but the input has 3 tokens"):
        Tokens(["a", "b", "c"], input_numbers={"score": np.zeros(2)})
    with pytest.raises(ValueError, match="kinds are"):
        AttentionMap("x", "both", "input", "input", weights(1, 2, 2))
    with pytest.raises(ValueError, match="are .H, T, S., not .2, 2."):
        AttentionMap("x", "self", "input", "input", weights(2, 2))
    with pytest.raises(ValueError, match="one number for each head"):
        AttentionMap("x", "self", "input", "input", weights(2, 3, 3), {"entropy": np.zeros(3)})
    long = AttentionMap("x", "self", "input", "input", weights(1, 3, 3))
    with pytest.raises(ValueError, match="'x' is over 3 input tokens, of which there are 2"):
        Inspection("", {}, Tokens(["a", "b"]), [long])
    heard = AttentionMap("x", "self", "audio", "audio", weights(1, 3, 3))
    with pytest.raises(ValueError, match="over audio, of which there is none"):
        Inspection("", {}, Tokens(), [heard])
