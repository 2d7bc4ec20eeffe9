"""Scores of continuations against a forward pass for each, without padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from research.decoding.continuation_scores import padded_length, score_continuations
from research.decoding.streaming import streaming
from research.errors import UserError
from research.models.registry import make_model
from tests import small
from tests.compiled import compiled

LENGTH, V = 12, 11


@pytest.fixture(scope="module")
def decoder():
    model = make_model(small.recall().model, V, LENGTH)
    params = compiled(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return model, jax.tree.map(lambda a: 3 * a, params)


@functools.cache
def applied(model):
    return compiled(model.apply)


def log_p_after(model, params, text, longest):
    """Returns log p of the token after each of a text, (T, V); one program for all texts."""
    padded = jnp.asarray([*text, *[0] * (longest - len(text))])[None]
    logits = applied(model)({"params": params}, padded)[0]
    return log_softmax(np.asarray(logits[0], np.float64), axis=-1)[: len(text)]


def one_by_one(model, params, pairs, longest):
    """Returns log-probability and greedy flag of each continuation, one after the other."""
    for context, continuation in pairs:
        text = [*context, *continuation][-(longest + 1) :]
        log_p = log_p_after(model, params, text[:-1], longest)[-len(continuation) :]
        yield (
            log_p[np.arange(len(continuation)), list(continuation)].sum(),
            log_p.argmax(-1).tolist() == list(continuation),
        )


def greedy_of(model, params, context, number):
    """Returns what greedy decoding writes after a context."""
    text = list(context)
    for _ in range(number):
        text.append(int(log_p_after(model, params, text, LENGTH)[-1].argmax()))
    return text[len(context) :]


@pytest.fixture(scope="module")
def pairs(decoder):
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.integers(0, V, n).tolist()

    random = [(draw(n), draw(m)) for n, m in ((1, 1), (3, 4), (9, 3), (10, 3), (30, 2), (4, 12))]
    # Of what greedy decoding writes itself, and of that with another token in it.
    own = greedy_of(*decoder, [3, 1, 4], 3)
    return [*random, ([3, 1, 4], own), ([3, 1, 4], [own[0], (own[1] + 1) % V, own[2]])]


def test_equal_a_pass_for_each(decoder, pairs):
    told = []
    found = score_continuations(*decoder, pairs, progress=told.append)
    expected = list(one_by_one(*decoder, pairs, LENGTH))
    np.testing.assert_allclose(found.log_prob, [p for p, _ in expected], rtol=1e-5)
    assert found.greedy.tolist() == [greedy for _, greedy in expected]
    assert found.greedy[-2] and not found.greedy[-1]
    assert told == sorted(told) and told[-1] == len(pairs)


def test_a_rolling_cache_reads_all_of_it(decoder, pairs):
    """With a window that leaves nothing out, as if the model had room for it."""
    model, params = decoder
    wide = make_model(small.recall().model, V, 40)
    found = score_continuations(streaming(model, 40, 0), params, pairs, streams=True)
    expected = list(one_by_one(wide, params, pairs, 40))
    np.testing.assert_allclose(found.log_prob, [p for p, _ in expected], rtol=1e-4)
    assert found.greedy.tolist() == [greedy for _, greedy in expected]


def test_few_lengths_with_little_padding():
    for number in range(1, 3000):
        padded = padded_length(number)
        assert number <= padded <= max(8, 1.25 * number + 8)
        assert padded_length(number, 100) <= 100
    assert len({padded_length(number) for number in range(1, 3000)}) < 40


@pytest.mark.parametrize(
    ("pair", "says"),
    [(([], [1]), "a context of at least one"), (([1], [1] * 13), "13 tokens; the model reads 12")],
)
def test_mistakes(decoder, pair, says):
    with pytest.raises(UserError, match=says):
        score_continuations(*decoder, [pair])
