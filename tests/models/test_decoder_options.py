"""Options of a decoder that published models have, each against the model without it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.block import Block
from research.models.primitives import sinusoids
from tests.models.test_decoder import VOCAB, decoder, logits_of, parameters, some_tokens


def equal(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def differ(found, expected):
    assert jnp.abs(found - expected).max() > 0.01


def test_an_embedding_scale_is_of_lookups_alone():
    scaled, untied = decoder(embedding_scale=3.0), decoder(tie_embeddings=False)
    params, tokens = parameters(scaled), some_tokens()
    table = params["embedding"]
    same = params | {"embedding": 3 * table, "head": table.T}
    equal(logits_of(scaled, params, tokens), logits_of(untied, same, tokens))
    differ(logits_of(scaled, params, tokens), logits_of(decoder(), params, tokens))


def test_an_embedding_scale_has_the_dtype_of_activations():
    """As in Gemma, whose factor is rounded before it multiplies."""
    model = decoder(embedding_scale=3.3, dtype="bfloat16", num_layers=1)
    params, tokens = parameters(model), some_tokens()
    rounded = decoder(embedding_scale=float(jnp.bfloat16(3.3)), dtype="bfloat16", num_layers=1)
    np.testing.assert_array_equal(
        logits_of(model, params, tokens), logits_of(rounded, params, tokens)
    )


def test_sines_are_those_of_the_paper_with_its_embedding_scale():
    equal(sinusoids(5, 16, 0.02, 4.0), 4 * sinusoids(5, 16, 0.02))
    equal(np.square(sinusoids(5, 16, 0.02, 4.0)).sum(-1), np.full(5, 8.0))


@pytest.mark.parametrize(
    ("centered", "plain"),
    [
        ({"norm": "zero_centered_rmsnorm"}, {}),
        ({"norm": "zero_centered_rmsnorm", "use_bias": True}, {"use_bias": True}),
        ({"qk_norm": "zero_centered_rms"}, {"qk_norm": "rms"}),
    ],
)
def test_a_zero_centered_gain_is_one_more_than_its_parameter(centered, plain):
    first, second = decoder(**centered), decoder(**plain)
    tokens = some_tokens()
    start = first.init(jax.random.key(0), tokens)["params"]
    names = ("query_scale", "key_scale") if "qk_norm" in plain else ("scale",)

    def moved(params, by):
        return jax.tree_util.tree_map_with_path(
            lambda path, p: p + by if path[-1].key in names else p, params
        )

    assert jax.tree.map(jnp.shape, start) == jax.tree.map(
        jnp.shape, second.init(jax.random.key(0), tokens)["params"]
    )
    equal(logits_of(first, start, tokens), logits_of(second, moved(start, 1), tokens))
    params = parameters(first)
    equal(logits_of(first, moved(params, -1), tokens), logits_of(second, params, tokens))


def test_a_score_scale_replaces_the_root_of_the_width():
    scaled, plain = decoder(score_scale=0.9), decoder(score="dot")
    params, tokens = parameters(plain), some_tokens()
    factor = jnp.float32(0.9)
    same = jax.tree_util.tree_map_with_path(
        lambda path, p: p * factor if path[-1].key == "query" else p, params
    )
    equal(logits_of(scaled, params, tokens), logits_of(plain, same, tokens))
    differ(logits_of(scaled, params, tokens), logits_of(decoder(), params, tokens))
    with pytest.raises(UserError, match=r"score_scale.*muP .* scales the scores; leave it 0"):
        decoder(score_scale=0.9, base_width=8)


@pytest.mark.parametrize("place", ["pre", "sandwich", "output"])
def test_parallel_sublayers_read_the_same_input(place):
    """A layer adds what its mixer alone and its feed-forward layer alone add to the same input."""
    options = {"num_layers": 1, "norm_placement": place, "use_bias": True, "canon": "acd"}
    model = decoder(parallel_residual=True, **options)
    params, x = parameters(model), jnp.sin(jnp.arange(48.0)).reshape(1, 6, 8)
    layer = jax.tree.map(lambda a: a[0], params["layers"]["0"])

    def added(changed, parallel):
        c = dataclasses.replace(model.config, parallel_residual=parallel)
        return Block(c, c.mixers[0], True).apply({"params": layer | changed}, x, None)[0] - x

    silent = {"norm1": "mixer", "norm2": "feedforward"}

    def without(norm):
        """The layer's parameters with a sublayer that adds nothing."""
        if place == "pre":
            own = layer[silent[norm]]
            zeros = {n: 0 * a for n, a in own.items() if n.startswith("out")}
            return {silent[norm]: own | zeros}
        name = f"{norm}_out" if place == "sandwich" else norm
        return {name: jax.tree.map(jnp.zeros_like, layer[name])}

    mixed, fed = added(without("norm2"), False), added(without("norm1"), False)
    equal(added({}, True), mixed + fed)
    differ(added({}, True), added({}, False))


def test_what_parallel_sublayers_are_refused_with():
    with pytest.raises(UserError, match="feedforward=0 leaves nothing beside the mixer"):
        decoder(parallel_residual=True, feedforward=0)
    with pytest.raises(UserError, match="norm_placement='post' normalizes .* both are in one sum"):
        decoder(parallel_residual=True, norm_placement="post")


def test_normalized_embeddings_have_no_size():
    """With positions in them: a layer norm ignores size and mean of what it gets."""
    options = {"norm": "layernorm", "use_bias": True, "position": "learned"}
    options |= {"tie_embeddings": False}
    model = decoder(embedding_norm=True, **options)
    params, tokens = parameters(model), some_tokens()
    moved = params | {n: 30 * params[n] + 7 for n in ("embedding", "position")}
    found = logits_of(model, params, tokens)
    np.testing.assert_allclose(logits_of(model, moved, tokens), found, rtol=1e-3, atol=1e-3)
    twice = {n: 2 * a for n, a in params["embedding_norm"].items()}
    differ(logits_of(model, params | {"embedding_norm": twice}, tokens), found)
    plain = {n: a for n, a in params.items() if n != "embedding_norm"}
    differ(logits_of(decoder(**options), plain, tokens), found)


def test_logits_are_scaled_then_get_a_bias_and_are_then_bounded():
    options = {"output_scale": 0.3, "output_bias": True, "output_cap": 2.0}
    model = decoder(**options)
    params, tokens = parameters(model), some_tokens()
    plain = {n: a for n, a in params.items() if n != "head_bias"}
    raw = 0.3 * logits_of(decoder(), plain, tokens) + params["head_bias"]
    equal(logits_of(model, params, tokens), 2 * jnp.tanh(raw / 2))
    start = model.init(jax.random.key(0), tokens)["params"]["head_bias"]
    assert start.shape == (VOCAB,) and not start.any()
