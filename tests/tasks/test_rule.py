"""Sequences whose class follows from keywords: that the rule holds, and that nothing else tells."""

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.tasks.registry import make_task
from research.tasks.synthetic.rule import FIRST
from tests import small
from tests.compiled import compiled

K = 2


def made(kind, **deltas):
    return make_task(small.rule(task__kind=kind, task__batch_size=512, **deltas).task)


@pytest.fixture(scope="module", params=["keyword", "pair"])
def drawn(request):
    task = made(request.param)
    return task, compiled(task.batch)(task.data, jax.random.key(0), 3)


def test_relevant_tokens_decide(drawn):
    task, batch = drawn
    number = {"keyword": 1, "pair": 2}[task.kind]
    for row, length, label, relevant in zip(
        batch["inputs"], batch["length"], batch["label"], batch["relevant"], strict=True
    ):
        assert (row[length:] == 0).all() and not relevant[length:].any()
        is_keyword = (row >= FIRST) & (row < FIRST + 2 * K)
        np.testing.assert_array_equal(relevant, is_keyword)
        classes = (row[relevant] - FIRST) // K
        assert len(classes) == number
        assert label == (classes[0] if number == 1 else classes[0] == classes[1])
        noise = row[:length][~relevant[:length]]
        assert (noise >= FIRST + 2 * K).all() and (noise < task.vocab_size).all()


def test_classes_lengths_places_and_words_are_even(drawn):
    task, batch = drawn
    assert batch["label"].mean() == pytest.approx(0.5, abs=0.07)
    lengths, counts = np.unique(batch["length"], return_counts=True)
    assert lengths.tolist() == list(range(2, 9)) and counts.min() > 512 / 7 * 0.6
    words = batch["inputs"][batch["relevant"]]
    assert set(words) == set(range(FIRST, FIRST + 2 * K))
    longest = batch["relevant"][batch["length"] == 8]
    assert (longest.mean(0) > 0).all()


def test_one_keyword_of_a_pair_says_nothing():
    task = made("pair")
    batch = compiled(task.batch)((), jax.random.key(1))
    first = batch["relevant"].argmax(-1)
    word = np.take_along_axis(batch["inputs"], first[:, None], 1)[:, 0]
    for w in range(FIRST, FIRST + 2 * K):
        assert batch["label"][word == w].mean() == pytest.approx(0.5, abs=0.15)


def test_a_batch_depends_on_seed_and_step_alone_and_splits_are_apart():
    task = made("keyword")
    draw, evaluation = compiled(task.batch), compiled(task.evaluation, 1, 3)
    draws = [draw((), jax.random.key(s), i) for s, i in ((0, 0), (0, 1), (1, 0), (0, 0))]
    draws += [evaluation((), split, 0, 1) for split in ("validation", "test")]
    rows = [d["inputs"].tobytes() for d in draws]
    assert rows[0] == rows[3] and len(set(rows)) == 5
    assert task.tokens == 512 * 5
    assert task.length_bins[0] == (2, 3) and task.length_bins[-1][1] == 8


@pytest.mark.parametrize(
    ("deltas", "parts"),
    [
        ({"task__kind": "copy"}, ["task.kind='copy'", "keyword, pair"]),
        ({"task__num_keywords": 0}, ["task.num_keywords=0"]),
        ({"task__vocab_size": 6}, ["task.vocab_size=6", "at least 7"]),
        ({"task__min_length": 1, "task__kind": "pair"}, ["task.min_length=1", "from 2"]),
        ({"task__min_length": 9}, ["task.min_length=9", "task.length=8"]),
    ],
)
def test_what_does_not_fit_is_refused(deltas, parts):
    with pytest.raises(UserError) as error:
        make_task(small.rule(**deltas).task)
    for part in parts:
        assert part in str(error.value)
