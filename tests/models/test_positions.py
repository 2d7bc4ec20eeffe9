"""Sines that are added to embeddings: as large as in their paper, and seen at every size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.parts.positions import sinusoidal
from research.models.positions import sinusoids
from research.models.registry import make_model
from tests import small

V, T = 16, 8
TOKENS = np.random.default_rng(0).permutation(V)[None, :T].astype(np.int32)
SWAPPED = TOKENS[:, [2, 1, 0, *range(3, T)]]


def rms(x):
    return np.sqrt(np.square(x).mean())


def test_sines_and_embeddings_have_the_proportion_of_their_paper():
    """Embeddings of 1 / sqrt(width) times sqrt(width), plus sines of unit size."""
    for width in (16, 64, 256):
        found = sinusoids(20, width, width**-0.5) * width**0.5
        np.testing.assert_allclose(found, sinusoidal(20, width), rtol=1e-6)


@pytest.mark.parametrize("stddev", [0.0, 0.005, 0.02, 0.2, 1.0, 5.0])
def test_sines_are_not_smaller_than_embeddings_or_what_these_grow_to(stddev):
    for width in (16, 64, 256):
        size = rms(sinusoids(200, width, stddev))
        assert size == pytest.approx(max(stddev, width**-0.5) / 2**0.5, rel=1e-5)


def decoder(**model):
    return small.recall(**model), lambda tokens: {"inputs": tokens}


def classifier(**model):
    config = small.rule(model__body="transformer", model__pooling="mean", **model)
    return config, lambda tokens: {"inputs": tokens, "length": jnp.array([T])}


def encoder_decoder(**model):
    """The source is swapped."""
    config = small.recall(model__name="encoder_decoder", **model)
    start = jnp.ones((1, 1), jnp.int32)
    return config, lambda tokens: {
        "source": tokens,
        "source_length": jnp.array([T]),
        "inputs": start,
    }


@pytest.mark.parametrize("build", [decoder, classifier, encoder_decoder])
@pytest.mark.parametrize("stddev", [0.0, 0.02, 1.0])
def test_order_is_read_off_sines_whatever_embeddings_start_from(build, stddev):
    """Two tokens change places: the answer after all of them does, too, but without positions."""
    changes = {}
    for position in ("none", "sinusoidal"):
        config, batch = build(
            model__position=position,
            model__num_layers=1,
            model__width=32,
            model__num_heads=2,
            model__feedforward=32,
            model__init_stddev=0.0,
            model__embedding_stddev=stddev,
        )
        model = make_model(config.model, V, T, classes=2 * (build is classifier))
        of_batch = jax.jit(lambda p, b, m=model: m.apply({"params": p}, b, method="of_batch"))
        params = model.init(jax.random.key(0), batch(TOKENS), method="of_batch")["params"]

        def trained(path, leaf, stddev=stddev):
            table = "embedding" in path[-1].key
            return leaf / rms(leaf) * max(stddev, 32**-0.5) if table else leaf

        params = jax.tree_util.tree_map_with_path(trained, params)
        found = [of_batch(params, batch(tokens)) for tokens in (TOKENS, SWAPPED)]
        before, after = (logits if build is classifier else logits[:, -1] for logits in found)
        changes[position] = rms(after - before) / rms(before)
    assert changes["none"] < 1e-5
    assert changes["sinusoidal"] > 0.02
