"""Perplexity by windows, against a loop that predicts each token from what it may see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.decoding.perplexity import text_loss, windows
from research.errors import UserError
from research.models.registry import make_model
from tests import small

LENGTH = 8


@pytest.fixture(scope="module")
def decoder():
    model = make_model(small.recall().model, 11, LENGTH)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return model, jax.tree.map(lambda a: 3 * a, params)


def one_by_one(model, params, tokens, length, stride):
    """Returns the loss of each predicted token, as the documentation of transformers counts."""
    found, reached = {}, 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + length, len(tokens))
        logits = model.apply({"params": params}, jnp.asarray(tokens[begin:end])[None])[0][0]
        log_p = np.asarray(jax.nn.log_softmax(logits))
        for place in range(max(reached, begin + 1), end):
            found[place] = -log_p[place - begin - 1, tokens[place]]
        reached = end
        if end == len(tokens):
            break
    return found


@pytest.mark.parametrize(("number", "length", "stride"), [(21, 8, 3), (21, 8, 8), (5, 8, 1)])
def test_equals_a_loop(decoder, number, length, stride):
    model, params = decoder
    tokens = np.random.default_rng(number).integers(0, 11, number).astype(np.int32)
    expected = one_by_one(model, params, tokens, length, stride)
    found = text_loss(model, params, tokens, length, stride)
    assert found.tokens == len(expected)
    np.testing.assert_allclose(found.nats, np.mean(list(expected.values())), rtol=1e-5)
    np.testing.assert_allclose(found.perplexity, np.exp(found.nats))


def test_every_token_is_predicted_once():
    for stride in range(1, LENGTH):
        counted = [
            place
            for one in windows(29, LENGTH, stride)
            for place in range(one.stop - one.counted, one.stop)
        ]
        assert counted == list(range(1, 29))


def test_windows_of_two_tokens_are_pairs(decoder):
    """A window of two tokens predicts from one; its losses are those of pairs."""
    model, params = decoder
    tokens = np.random.default_rng(0).integers(0, 11, 9).astype(np.int32)
    found = text_loss(model, params, tokens, 2, 1)
    logits = model.apply({"params": params}, jnp.asarray(tokens[:-1])[:, None])[0][:, 0]
    picked = jax.nn.log_softmax(logits)[np.arange(8), tokens[1:]]
    np.testing.assert_allclose(found.nats, -picked.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("number", "length", "stride", "says"),
    [(9, 10, 1, "--window=10"), (9, 8, 9, "--stride=9"), (1, 8, 4, "has 1 tokens")],
)
def test_mistakes(decoder, number, length, stride, says):
    with pytest.raises(UserError, match=says):
        text_loss(*decoder, np.zeros(number, np.int32), length, stride)
