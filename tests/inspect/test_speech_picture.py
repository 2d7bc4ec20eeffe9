"""What the pictures of heard recordings show, and when."""

import numpy as np
import pytest
from matplotlib.image import imread

from research.drawing.chart import styled
from research.errors import UserError
from research.inspect.speech_picture import (
    frames_per_position,
    labels_figure,
    speech_figure,
    write_speech_alignment,
    write_speech_labels,
)

MELS = 8


def features(number):
    return np.random.default_rng(0).normal(size=(number, MELS)).astype(np.float32)


def test_frames_of_a_position_are_those_of_halvings():
    for halvings in range(4):
        for frames in range(20, 70):
            positions = frames
            for _ in range(halvings):
                positions = (positions + 1) // 2
            assert frames_per_position(frames, positions) == 2**halvings


def test_both_panels_have_one_axis_of_time():
    # 250 frames are 2.5 s; the last of 63 positions reaches beyond them.
    weights = np.random.default_rng(1).dirichlet(np.ones(63), (2, 3))
    with styled():
        figure = speech_figure(features(250), weights, [" on", "e", "</s>"])
        figure.canvas.draw()
    above, below = figure.axes
    assert above.get_xlim() == below.get_xlim() == (0.0, 2.5)
    assert above.images[0].get_extent()[:2] == [0.0, 2.5]
    np.testing.assert_allclose(below.images[0].get_extent()[:2], [0.0, 63 * 0.04])
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert boxes[0].x0 == boxes[1].x0 and boxes[0].x1 == boxes[1].x1
    assert boxes[0].y0 > boxes[1].y1
    # The first piece is on top and time goes right, as extent and orientation say.
    np.testing.assert_allclose(below.images[0].get_array(), weights.mean(0))
    assert below.images[0].origin == "upper" and below.get_ylim() == (2.5, -0.5)
    assert [t.get_text() for t in below.get_yticklabels()] == ["on", "e", "</s>"]
    np.testing.assert_array_equal(above.images[0].get_array(), features(250).T)
    assert above.images[0].origin == "lower"


def test_names_of_many_rows_are_thinned_and_none_is_invisible():
    pieces = [" ", *"abcdefghij" * 20, "x" * 40]
    weights = np.full((1, len(pieces), 10), 0.1)
    with styled():
        figure = speech_figure(features(40), weights, pieces)
    below = figure.axes[1]
    ticks = below.get_yticks().astype(int)
    steps = set(np.diff(ticks))
    assert len(ticks) < 60 and len(steps) == 1 and steps.pop() > 1
    names = [t.get_text() for t in below.get_yticklabels()]
    assert names[0] == "␣" and names[1] == pieces[ticks[1]]
    assert all(1 <= len(name) <= 16 for name in names)


def test_labels_stand_where_they_begin():
    # Frames of 10 ms, two to a position: blank, 4, 4, blank, 4, 3, 3, blank.
    path = [0, 4, 4, 0, 4, 3, 3, 0]
    posteriors = np.full((8, 6), 0.02)
    posteriors[np.arange(8), path] = 0.9
    with styled():
        figure = labels_figure(features(16), posteriors, ["-", "-", "-", " a", " b", " c"])
    below = figure.axes[1]
    assert [t.get_text() for t in below.get_yticklabels()] == ["blank", "b", "a"]
    np.testing.assert_array_equal(below.images[0].get_array(), posteriors[:, [0, 4, 3]].T)
    (top,) = below.child_axes
    assert [t.get_text() for t in top.get_xticklabels()] == ["b", "b", "a"]
    np.testing.assert_allclose(top.get_xticks(), [0.03, 0.09, 0.11])


def test_the_files_are_pictures(tmp_path):
    paths = tmp_path / "new" / "a.png", tmp_path / "b.png"
    write_speech_alignment(features(30), np.eye(4, 8)[None], ["$x$", "木", " a", "</s>"], paths[0])
    write_speech_labels(features(1), np.array([[1.0, 0.0, 0.0, 0.0]]), list("-<>a"), paths[1])
    for path in paths:
        image = imread(path)
        assert image.shape[0] > 100 and len(np.unique(image[..., 0])) > 2
    assert [p.name for p in paths[0].parent.iterdir()] == ["a.png"]


def test_a_model_without_attention_has_no_picture():
    with pytest.raises(UserError, match="no attention"):
        speech_figure(features(10), np.zeros((0, 3, 5)), ["a", "b", "c"])
