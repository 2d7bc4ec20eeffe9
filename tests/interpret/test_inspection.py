"""What is shown of a sequence: what fits together, what things are called, and the pictures."""

import unicodedata

import numpy as np
import pytest
from matplotlib.image import imread

from research.ablation.chart import styled
from research.errors import UserError
from research.interpret.inspect_picture import draw, picture
from research.interpret.inspection import (
    AttentionMap,
    Inspection,
    Tokens,
    in_order,
    names_of,
    visible,
)
from tests.inspections import self_attention, speech, translation


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


def test_no_character_stays_invisible():
    for code in [*range(0x3000), *range(0xD7F0, 0xE010), *range(0xFE00, 0x10000)]:
        shown = visible(chr(code))
        hidden = [c for c in shown if unicodedata.category(c)[0] in "CZ" and c != "\u200d"]
        assert not [c for c in hidden if unicodedata.category(c) != "Cn"]


def test_maps_are_ordered_by_kind_and_otherwise_stay():
    names = [one.name for one in in_order(translation().maps)]
    assert names == ["decoder 0 cross", "encoder 0", "decoder 0"]


def test_names_of_positions():
    heard = speech().tokens
    assert names_of("audio", 3, heard) == ["0.00 s", "0.04 s", "0.08 s"]
    assert names_of("output", 2, heard) == ["·one", "</s>"]
    assert names_of("query", 1, heard) == ["query"]
    assert names_of("query", 2, heard) == ["query 0", "query 1"]


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


def test_the_grid_has_a_panel_for_every_chosen_head():
    shown = self_attention(3, 4, list("abcdef"))
    with styled():
        figure = picture(shown, maps=(0, 2), heads=(1, 3))
    assert len(figure.axes) == 4
    assert [a.get_ylabel() for a in figure.axes[::2]] == ["layer 0", "layer 2"]
    assert [a.get_title() for a in figure.axes[:2]] == ["head 1", "head 3"]
    drawn = figure.axes[3].images[0]
    np.testing.assert_allclose(drawn.get_array(), np.sqrt(shown.maps[2].weights[3]), rtol=1e-6)
    assert drawn.get_clim() == (0, pytest.approx(np.sqrt(shown.maps[2].weights[3].max())))


def test_one_head_has_labels_and_negative_weights_their_sign():
    shown = translation()
    with styled():
        figure = picture(shown, maps=(0,), heads=(1,))
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "·dog", "·runs", ".", "</s>"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["ein", "·Hund", "·läuft", "</s>"]
    array = axes.images[0].get_array()
    given = shown.maps[2].weights[1]
    np.testing.assert_array_equal(array.mask, np.isnan(given))
    np.testing.assert_allclose(array * np.abs(array), given, rtol=1e-5)
    low, high = axes.images[0].get_clim()
    assert low == -high == pytest.approx(-np.sqrt(np.nanmax(np.abs(given))))


def test_labels_of_long_inputs_are_thinned():
    with styled():
        figure = picture(self_attention(1, 1, [str(i) for i in range(300)]))
    ticks = figure.axes[0].get_yticks()
    assert 10 < len(ticks) < 60 and len(set(np.diff(ticks))) == 1


def test_pictures_are_files(tmp_path):
    draw(speech(), tmp_path / "new" / "a.png")
    draw(self_attention(1, 2, ["<b>", "$x$", "木"]), tmp_path / "b.png", heads=(1,))
    for path in (tmp_path / "new" / "a.png", tmp_path / "b.png"):
        image = imread(path)
        assert image.shape[0] > 100 and len(np.unique(image[..., 0])) > 5


def test_heads_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="map 3 does not exist: the last one is 2"):
        picture(translation(), maps=(3,))
    with pytest.raises(UserError, match="head -1 does not exist: the last one is 1"):
        picture(translation(), heads=(-1,))
    with pytest.raises(UserError, match="no attention"):
        picture(Inspection("", {}, Tokens(), []))
