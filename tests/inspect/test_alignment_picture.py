"""Words of pieces, weights between words, and what a picture shows."""

import numpy as np
import pytest
from matplotlib.image import imread

from research.errors import UserError
from research.inspect.alignment_picture import (
    alignment_figure,
    group_into_words,
    select_head,
    word_weights,
    write_alignment,
)

SOURCE = [" Ein", " kl", "eines", " H", "aus", ".", "</s>"]
TARGET = [" A", " little", " house", ".", "</s>"]


def test_pieces_make_words():
    assert group_into_words(SOURCE) == [
        ("Ein", [0]),
        ("kleines", [1, 2]),
        ("Haus", [3, 4]),
        (".", [5]),
        ("</s>", [6]),
    ]
    # The first half of a character is an empty piece; it belongs to the word that it stands in.
    assert group_into_words([" gr", "", "ün", "</s>"]) == [("grün", [0, 1, 2]), ("</s>", [3])]
    assert [w for w, _ in group_into_words([" T", "-", "Shirt", " (", "2", ")"])] == [
        *("T", "-", "Shirt"),
        *("(", "2", ")"),
    ]
    assert group_into_words([]) == []


def test_weights_between_words_keep_what_a_token_reads():
    random = np.random.default_rng(0)
    weights = random.dirichlet(np.ones(len(SOURCE)), len(TARGET)).astype(np.float32)
    merged, source, target = word_weights(weights, SOURCE, TARGET)
    assert merged.shape == (len(target), len(source)) == (5, 5)
    np.testing.assert_allclose(merged.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(merged[2, 1], weights[2, 1] + weights[2, 2], rtol=1e-5)
    # A target word of two pieces reads what they read on average.
    merged, _, target = word_weights(weights, SOURCE, [" A", " lit", "tle", ".", "</s>"])
    assert target == ["A", "little", ".", "</s>"]
    np.testing.assert_allclose(merged[1, 0], (weights[1, 0] + weights[2, 0]) / 2, rtol=1e-5)


def test_heads_are_numbered_by_layer():
    weights = np.arange(6.0).reshape(6, 1, 1)
    assert select_head(weights, "1.2", 2).item() == 5
    assert select_head(weights, "0.1", 2).item() == 1
    assert select_head(weights, "mean", 2).item() == 2.5


@pytest.mark.parametrize("head", ["2.0", "0.3", "1", "a.b", "-1.0", ""])
def test_a_head_that_does_not_exist_is_one_line(head):
    with pytest.raises(UserError, match="--alignment_head"):
        select_head(np.zeros((6, 1, 1)), head, 2)


def test_a_model_without_attention_has_no_picture():
    with pytest.raises(UserError, match="no attention"):
        select_head(np.zeros((0, 3, 3)), "mean", 1)


def test_the_picture_shows_the_weights(tmp_path):
    weights = np.eye(4, 6)
    words = [f"word{i}" for i in range(6)]
    figure = alignment_figure(weights, words, words[:4])
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    assert [t.get_text() for t in axes.get_xticklabels()] == words
    assert [t.get_text() for t in axes.get_yticklabels()] == words[:4]
    # A "$" is no formula, and a character that the font lacks no warning.
    path = tmp_path / "new" / "picture.png"
    write_alignment(weights, ["$x$", "木", *words[:4]], words[:4], path)
    image = imread(path)
    assert image.shape[0] > 100 and len(np.unique(image[..., 0])) > 2
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]
