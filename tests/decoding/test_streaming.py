"""Streams against dense attention over the visible tokens, step by step, layer by layer."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from research.attention.errors import Unsupported
from research.attention.mixers.streaming import Streaming, make_streaming
from research.attention.spec import make_mixer
from research.decoding.streaming import score_tokens, stream_scores, streaming
from research.errors import UserError
from research.models.decoder import Decoder
from research.models.primitives import ACTIVATIONS
from research.models.registry import make_model
from tests import small
from tests.decoding.test_continuation import forward
from tests.decoding.toy import drawn

VOCAB, LENGTH, TOKENS = 16, 12, 30
CASES = {
    "rope": {"position": "rope"},
    "alibi": {"position": "alibi"},
    "t5": {"position": "t5", "num_buckets": 4, "max_distance": 8},
    "none": {"position": "none"},
    "grouped": {"position": "rope", "num_kv_heads": 1},
    "sink": {"position": "rope", "normalizer": "softmax_sink"},
    "window": {"position": "alibi", "mask": "window", "window": 4},
    "differential": {"position": "rope", "mixer": "differential"},
    "cosine": {"position": "none", "score": "cosine"},
}
SIZES = [(6, 0), (6, 2), (6, 5), (1, 0), (40, 3)]


def visible(t, size, sinks):
    """Returns the positions that the cache holds at step t, in the order of their places."""
    first = list(range(min(sinks, t + 1)))
    latest = range(max(sinks, t + 1 - (size - sinks)), t + 1)
    return first + list(latest)


def mixer_of(case):
    return make_mixer(width=8, num_heads=2, max_length=LENGTH, **CASES[case])


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def params_of(mixer):
    """Large enough for weights that differ."""
    names = mixer.parameters().items()
    return {name: 0.7 * random(i, *p.shape) for i, (name, p) in enumerate(names)}


@functools.partial(jax.jit, static_argnums=0)
def called(mixer, params, x):
    return mixer(params, x)


def last_of(mixer, params, texts, size):
    """The output at the last token of each text (B, n, M), n <= size, computed at one shape.

    They are filled up behind, where causal attention sees nothing.
    """
    filled = [np.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0))) for x in texts]
    found = np.asarray(called(mixer, params, np.concatenate(filled)))
    rows = np.split(found, len(texts))
    return [row[:, x.shape[1] - 1] for row, x in zip(rows, texts, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_dense_attention_over_what_the_cache_holds(case):
    """Whatever the positions do, they do it to places: the visible tokens are a short sequence."""
    mixer = mixer_of(case)
    params = params_of(mixer)
    x = random(1, 2, TOKENS, 8)
    for size, sinks in SIZES if case == "rope" else SIZES[1:2]:
        found = np.asarray(called(Streaming(mixer, size, sinks), params, x))
        steps = [t for t in (sinks, size - 1, size, TOKENS - 1) if t < TOKENS]
        steps += [steps[-1]] * (4 - len(steps))
        seen = [x[:, visible(t, size, sinks)] for t in steps]
        most = TOKENS if case == "rope" else size
        for t, whole in zip(steps, last_of(mixer, params, seen, most), strict=True):
            np.testing.assert_allclose(found[:, t], whole, atol=2e-5, err_msg=f"{t}")


@pytest.mark.parametrize("case", ["rope", "alibi", "differential"])
def test_chunks_of_any_size_agree(case):
    mixer = Streaming(mixer_of(case), 6, 2)
    params, x = params_of(mixer), random(2, 2, 17, 8)

    @jax.jit
    def both(params, x):
        state, parts = mixer.init_state(2, 99, "float32"), []
        assert state["positions"].shape == (6,)
        for start, stop in ((0, 5), (5, 6), (6, 14), (14, 17)):
            state, y = mixer.extend(params, state, x[:, start:stop])
            parts.append(y)
        return parts, mixer(params, x)

    parts, whole = jax.device_get(both(params, x))
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-6)


def model_of(**deltas):
    config = small.recall(model__num_layers=3, **deltas)
    return make_model(config.model, VOCAB, LENGTH)


def decoder(**deltas):
    model = model_of(**deltas)
    return model, drawn(model, 0.3)


def by_hand(model, params, tokens, size, sinks):
    """Logits (T, V) of one text with a list of what each layer was given as its cache.

    Each layer's mixer sees, as a short sequence, the inputs that this layer had for the visible
    tokens; they were computed when these tokens were the latest and are not computed again.
    """
    config, mixer = model.config, model.config.mixers[0]

    def normed(x, scale):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * scale

    seen = [[] for _ in range(config.num_layers)]
    logits = []
    for t, token in enumerate(tokens):
        x = params["embedding"][token]
        for i in range(config.num_layers):
            layer = jax.tree.map(lambda a, i=i: a[i], params["layers"]["0"])
            seen[i].append(normed(x, layer["norm1"]["scale"]))
            short = np.stack([seen[i][p] for p in visible(t, size, sinks)])
            x = x + last_of(mixer, layer["mixer"], [short[None]], size)[0][0]
            y = normed(x, layer["norm2"]["scale"]) @ layer["feedforward"]["in"]
            x = x + np.asarray(ACTIVATIONS["gelu"](y)) @ layer["feedforward"]["out"]
        logits.append(normed(x, params["norm"]["scale"]) @ params["embedding"].T)
    return np.stack(logits)


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_several_layers_against_caches_by_hand(position):
    model, params = decoder(model__position=position, model__tie_embeddings=True)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, TOKENS))
    size, sinks = 7, 2
    found = jax.device_get(stream_scores(streaming(model, size, sinks), params, tokens))
    assert found.log_prob.shape == (2, TOKENS - 1)
    for row in range(2):
        logits = by_hand(model, params, tokens[row], size, sinks)[:-1]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        own = log_p[np.arange(TOKENS - 1), tokens[row, 1:]]
        np.testing.assert_allclose(found.log_prob[row], own, atol=1e-4)
        np.testing.assert_allclose(found.entropy[row], -(np.exp(log_p) * log_p).sum(-1), atol=1e-4)
        np.testing.assert_array_equal(found.rank[row], (log_p > own[:, None] + 1e-7).sum(-1))


def test_a_text_that_fits_is_the_ordinary_forward_pass():
    model, params = decoder(model__position="rope")
    tokens = np.random.default_rng(1).integers(0, VOCAB, (2, LENGTH))
    logits = np.asarray(forward(model, params, tokens))
    wanted = jax.jit(score_tokens)(logits[:, :-1], tokens[:, 1:])
    found = stream_scores(streaming(model, LENGTH, 3), params, tokens)
    np.testing.assert_allclose(found.log_prob, wanted.log_prob, atol=1e-5)


def test_what_left_the_cache_changes_nothing_in_one_layer():
    """But the sinks do, however far away."""
    mixer = Streaming(mixer_of("rope"), 6, 2)
    params, x = params_of(mixer), random(3, 1, 20, 8)

    def last(x):
        return mixer(params, x)[0, -1].sum()

    moved = np.abs(np.asarray(jax.jit(jax.grad(last))(x))[0]).sum(-1) > 0
    assert moved.tolist() == [t in visible(19, 6, 2) for t in range(20)]


def test_recurrent_mixers_stream_as_they_are():
    linear = make_mixer(width=8, num_heads=2, max_length=LENGTH, mixer="linear", position="none")
    assert make_streaming(linear, 6, 2) is linear
    latent = make_mixer(width=8, num_heads=2, max_length=LENGTH, mixer="latent")
    with pytest.raises(Unsupported, match="LatentAttention keeps a cache of every token"):
        make_streaming(latent, 6, 2)


@pytest.mark.parametrize(
    ("window", "sinks", "deltas", "message"),
    [
        (0, 0, {}, "--window=0 must be at least 1"),
        (4, 4, {}, "--sinks=4 must be at least 0 and less than --window=4"),
        (4, -1, {}, "--sinks=-1"),
        (4, 1, {"model__position": "learned"}, "model.position='learned' is added to the input"),
        (4, 1, {"model__mask": "full"}, "is not causal"),
    ],
)
def test_what_cannot_stream_is_named(window, sinks, deltas, message):
    model = model_of(**deltas)
    with pytest.raises(UserError) as error:
        streaming(model, window, sinks)
    assert message in str(error.value)


def test_the_parameters_are_the_same():
    model = model_of(model__position="rope")
    other = streaming(model, 4, 1)
    assert isinstance(other, Decoder) and other.config != model.config
    assert dataclasses.replace(other.config, mixers=model.config.mixers) == model.config
    for a, b in zip(model.config.mixers, other.config.mixers, strict=True):
        assert a.parameters() == b.parameters()
