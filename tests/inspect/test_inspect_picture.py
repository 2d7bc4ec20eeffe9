"""Pictures of attention for papers: which heads, in which colours, with which labels."""

import numpy as np
import pytest
from matplotlib.image import imread

from research.drawing.chart import styled
from research.errors import UserError
from research.inspect.inspection import Inspection, Tokens
from research.inspect.picture import picture, write_picture
from tests.inspections import self_attention, speech, translation


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
    write_picture(speech(), tmp_path / "new" / "a.png")
    write_picture(self_attention(1, 2, ["<b>", "$x$", "木"]), tmp_path / "b.png", heads=(1,))
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
