"""The logit lens of a small residual network, computed a second way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.interpret.logit_lens import decoder_lens, logit_lens
from tests.models.test_decoder import decoder, parameters, some_tokens

L, B, T, M, V = 3, 2, 4, 5, 7


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def norm(x):
    return x / ((x**2).mean(-1, keepdims=True) + 1e-6) ** 0.5


def test_each_layer_is_read_as_if_it_were_the_last():
    layers, unembedding = normal(0, L, M, M), normal(1, M, V)
    stream = [normal(2, B, T, M)]
    for layer in layers:
        stream.append(stream[-1] + np.tanh(stream[-1] @ layer))
    residuals = np.stack(stream)
    found = jax.jit(lambda x: logit_lens(x, norm, lambda x: x @ unembedding))(residuals)
    assert found.shape == (L + 1, B, T, V)
    for depth in range(L + 1):
        expected = np.einsum("btm,mv->btv", norm(stream[depth]), unembedding)
        np.testing.assert_allclose(found[depth], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found[-1] - found[0]).max() > 0.1


def test_logits_are_float32():
    residuals = jax.numpy.ones((2, 3, M), jax.numpy.bfloat16)
    found = logit_lens(residuals, lambda x: x, lambda x: x)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    "options",
    [
        {"output_cap": 2.0, "output_bias": True, "embedding_norm": True},
        {"norm_placement": "post", "tie_embeddings": False},
    ],
)
def test_the_last_entry_is_the_model_itself(options):
    model = decoder(embedding_stddev=1.0, **options)
    params, tokens = parameters(model), some_tokens()
    found = decoder_lens(model, params, {"inputs": tokens})
    wanted = model.apply({"params": params}, tokens)[0]
    assert jnp.abs(wanted).max() > 1
    np.testing.assert_allclose(found[-1], wanted, atol=1e-4)
