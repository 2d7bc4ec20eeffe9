"""The encoder-decoder: causal, blind to padding, the same token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.parts.masks import full, padding
from research.attention.parts.normalizers import NORMALIZERS
from research.attention.parts.tables import SCORES
from research.errors import UserError
from research.models.layers import part_spec
from research.models.registry import make_model, read_model
from tests import small

VOCAB, LENGTH, S, T = 12, 10, 7, 6
LENGTHS = np.array([S, 4])


def config_of(**model):
    deltas = {"name": "encoder_decoder", "num_layers": 1, "dropout": 0.0} | model
    return small.recall(**{f"model__{k}": v for k, v in deltas.items()}).model


def model_of(**model):
    return make_model(config_of(**model), VOCAB, LENGTH)


def some_batch(source=S, target=T):
    """Two rows; the second source has four tokens, whatever it is padded to."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, VOCAB, (2, 2 * LENGTH))
    lengths = np.minimum(LENGTHS, source)
    read = np.where(np.arange(source) < lengths[:, None], tokens[:, :source], 0)
    inputs = tokens[:, LENGTH : LENGTH + target].copy()
    inputs[:, 0] = 1
    arrays = {"source": read, "source_length": lengths, "inputs": inputs}
    return {name: jnp.asarray(a, jnp.int32) for name, a in arrays.items()}


def shapes_of(model):
    init = lambda k: model.init(k, some_batch(), method="forward")["params"]  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))


def parameters(model, scale=0.2):
    """Parameters so large that every part of the model shows in the logits, biases included."""
    leaves, tree = jax.tree.flatten(shapes_of(model))
    rng = np.random.default_rng(1)
    drawn = [np.float32(rng.normal(size=leaf.shape) * scale) for leaf in leaves]
    # Norm scales are around one.
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: p + 1 if path[-1].key == "scale" else p, jax.tree.unflatten(tree, drawn)
    )
    return jax.device_put(params)


def apply(model, params, *args, method="forward", **options):
    return model.apply({"params": params}, *args, method=method, **options)


def whole(model, params, batch):
    """Logits and weights of a whole batch."""

    def both(params, batch):
        return apply(model, params, batch), apply(model, params, batch, method="weights")

    return jax.jit(both)(params, batch)


def token_by_token(model, params, batch):
    """The same by steps."""

    def run(params, batch):
        memory = apply(model, params, batch["source"], batch["source_length"], method="encode")
        state = apply(model, params, memory, batch["inputs"].shape[1], method="init_state")

        def step(state, token):
            logits, state, weights = apply(model, params, memory, state, token, method="step")
            return state, (logits, weights)

        return jax.lax.scan(step, state, batch["inputs"].T)[1]

    logits, weights = jax.jit(run)(params, batch)
    return np.swapaxes(logits, 0, 1), np.moveaxis(np.asarray(weights), 0, 2)


# The same function token by token.

VARIANTS = {
    "rope, window, multi-query": {
        "mask": "window",
        "window": 3,
        "num_kv_heads": 1,
        "output_gate": True,
    },
    "sinusoidal, biases, remat, rotary cross": {
        "position": "sinusoidal",
        "use_bias": True,
        "remat": True,
        "cross": "position=rope, implementation=blockwise",
    },
    "learned": {"position": "learned", "tie_embeddings": False, "encoder_layers": 2},
    "pattern": {
        "num_layers": 2,
        "pattern": ("mixer=gated_delta, position=none", "position=alibi"),
        "encoder": "mask=local, window=1, position=t5",
    },
    "location-aware": {"mixer": "location_aware", "position": "sinusoidal"},
    "linformer encoder": {"encoder": "mixer=linformer", "num_layers": 2},
}
# What is part of a variant above, by itself, and more layers.
APART = {
    "rope": {"num_layers": 2},
    "gated_delta": {"mixer": "gated_delta", "position": "none"},
    "window": {"mask": "window", "window": 3},
    "multi-query": {"num_kv_heads": 1, "output_gate": True},
    "long pattern": VARIANTS["pattern"] | {"num_layers": 4},
}


@pytest.mark.parametrize(
    "name", [*VARIANTS, *(pytest.param(n, marks=pytest.mark.slow) for n in APART)]
)
def test_steps_equal_the_whole_whatever_it_is_padded_to(name):
    deltas = (VARIANTS | APART)[name]
    model, config = model_of(**deltas), config_of(**deltas)
    params, batch = parameters(model), some_batch()
    logits, weights = token_by_token(model, params, batch)
    assert weights.shape == (2, config.num_layers * config.num_heads, T, S)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    assert not np.asarray(weights[1, ..., LENGTHS[1] :]).any()
    assert (np.asarray(weights[0]) > 0).all()

    # Other tokens in the padding, and more of it on both sides.
    filled = np.array(batch["source"])
    filled[1, LENGTHS[1] :] = 5
    longer = {
        "source": np.pad(filled, ((0, 0), (0, LENGTH - S)), constant_values=4),
        "source_length": batch["source_length"],
        "inputs": np.pad(batch["inputs"], ((0, 0), (0, 3)), constant_values=4),
    }
    found, found_weights = whole(model, params, jax.tree.map(jnp.asarray, longer))
    np.testing.assert_allclose(found[:, :T], logits, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(found_weights[:, :, :T, :S], weights, rtol=2e-4, atol=2e-5)
    assert not np.asarray(found_weights[..., S:]).any()


@pytest.mark.parametrize("name", ["learned", "pattern", "linformer encoder"])
def test_targets_are_causal_and_read_all_of_the_source(name):
    """By the gradient of every logit with respect to every embedded token."""
    model = model_of(**VARIANTS[name] | {"tie_embeddings": False})
    params = parameters(model)
    # One row of the tables per position, so that positions can be told apart.
    batch = {
        "source": jnp.arange(S)[None],
        "source_length": jnp.array([S - 2]),
        "inputs": jnp.arange(T)[None],
    }

    def logits(tables):
        return apply(model, params | tables, batch)[0].sum(-1)

    tables = {name: params[name] for name in ("embedding", "source_embedding")}
    found = jax.jit(jax.jacrev(logits))(tables)
    by_input, by_source = (np.abs(found[n]).sum(-1) for n in tables)
    assert (np.triu(by_input[:, :T], 1) == 0).all() and (by_input[:, T:] == 0).all()
    assert (np.diag(by_input) > 0).all()
    assert (by_source[:, : S - 2] > 0).all() and (by_source[:, S - 2 :] == 0).all()


@pytest.mark.parametrize(
    "delta",
    [f"score={n}" for n, part in SCORES.items() if "cross" in part.where]
    + [f"normalizer={n}" for n, part in NORMALIZERS.items() if "cross" in part.where]
    + [
        "talking_heads=true",
        "softcap=3.0",
        "predicted_window=2",
        "position=rope",
        "num_kv_heads=1",
    ],
)
def test_every_way_to_read_the_source_runs_and_steps(delta):
    cross, rng = model_of(cross=delta).config.cross, np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = {name: draw(*p.shape) for name, p in cross.parameters().items()}

    @jax.jit
    def run(params, source, x):
        """All at once, and the last one alone: what is read, and with which weights."""
        kept = cross.project_memory(params, source)
        mask = padding(jnp.arange(S) < jnp.asarray(LENGTHS)[:, None])
        last = {"mask": mask, "q_index": jnp.array([T - 1])}
        return [
            (
                cross.attend(params, x, kept, **at),
                cross.attention_trace(params, x, kept, **at).weights,
            )
            for x, at in ((x, {"mask": mask}), (x[:, -1:], last))
        ]

    found = run(params, draw(2, S, 8), draw(2, T, 8))
    (out, weights), (read, stepped) = jax.tree.map(np.asarray, found)
    np.testing.assert_allclose(read, out[:, -1:], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stepped, weights[:, :, -1:], rtol=1e-4, atol=1e-5)
    assert out.any() and np.isfinite(out).all()
    assert not weights[1, ..., LENGTHS[1] :].any()


def test_a_source_of_nothing_but_padding_is_read_as_zeros():
    model = model_of()
    params = parameters(model)
    batch = some_batch() | {"source_length": jnp.array([S, 0])}
    logits, weights = whole(model, params, batch)
    assert np.isfinite(logits).all() and not np.asarray(weights[1]).any()


# The protocol.


def test_parameters_are_described():
    for name in ("learned", "pattern"):
        model = model_of(**VARIANTS[name])
        shapes = shapes_of(model)
        axes = model.parameter_axes(shapes)
        jax.tree.map(lambda a, leaf: (len(a.names) == len(leaf.shape)) or 1 / 0, axes, shapes)
    assert axes["cross"]["layers"]["key"].names == ("layers", "width", "kv_heads", "head_width")
    assert axes["decoder"]["layers"]["1"]["norm_cross"]["scale"].names == ("layers", "width")
    assert axes["encoder"]["layers"]["0"]["mixer"]["out"].names[0] == "layers"
    tied, untied = shapes_of(model_of()), shapes_of(model_of(tie_embeddings=False))
    assert untied.keys() - tied.keys() == {"source_embedding", "head"}
    learned = shapes_of(model_of(position="learned"))
    assert learned.keys() - tied.keys() == {"position", "source_position"}


def test_state_size_is_that_of_the_state():
    model = model_of(num_layers=3, encoder_layers=1, num_kv_heads=1, dtype="bfloat16")
    # k and v of one head of 4 numbers of 2 bytes; int32 positions and step of the cache.
    cache, source = 2 * 10 * 4 * 2 + 10 * 4 + 4, 2 * 10 * 4 * 2
    assert model.state_bytes(10) == 3 * (cache + source)
    assert model.implementation == "dense"


def test_initial_values():
    model = model_of(width=64, num_layers=8, encoder_layers=2, feedforward=256, num_heads=4)
    init = lambda k: model.init(k, some_batch(), method="forward")["params"]  # noqa: E731
    params = jax.jit(init)(jax.random.key(0))
    found = {
        "encoder": params["encoder"]["layers"]["0"]["feedforward"]["out"],
        "decoder": params["decoder"]["layers"]["0"]["feedforward"]["out"],
        "cross": params["cross"]["layers"]["out"],
        "key": params["cross"]["layers"]["key"],
    }
    # What is added starts smaller by the root of twice the layers of the stack.
    wanted = {"encoder": 0.02 / 2, "decoder": 0.02 / 4, "cross": 0.02 / 4, "key": 0.02}
    for name, array in found.items():
        np.testing.assert_allclose(array.std(), wanted[name], rtol=0.1, err_msg=name)
    key = found["key"]
    assert (key[0] != key[1]).all() and (key != params["cross"]["layers"]["query"]).all()


def test_dropout():
    model, batch = model_of(dropout=0.4), some_batch()
    params = parameters(model)

    @jax.jit
    def dropped(key):
        return apply(model, params, batch, deterministic=False, rngs={"dropout": key})

    off, plain = (jax.jit(lambda p, m=m: apply(m, p, batch))(params) for m in (model, model_of()))
    np.testing.assert_array_equal(off, plain)
    one, two = dropped(jax.random.key(0)), dropped(jax.random.key(1))
    np.testing.assert_array_equal(one, dropped(jax.random.key(0)))
    assert (one != two).mean() > 0.9 and (one != off).mean() > 0.9


def test_bfloat16_is_close_to_float32():
    params, batch = parameters(model_of(), scale=0.1), some_batch()
    exact = whole(model_of(), params, batch)[0]
    rough, weights = whole(model_of(dtype="bfloat16"), params, batch)
    assert rough.dtype == weights.dtype == jnp.float32
    error = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.03, error


# Options.


def test_parts_take_of_the_config_what_they_read():
    c = config_of(mixer="gated_delta", position="none", short_convolution=4)
    encoder = part_spec(read_model(c), LENGTH, "encoder", {"mask": "full"}, "self")
    assert encoder.name == "gated_delta" and encoder.values["short_convolution"] == 4
    c = config_of(
        mask="window", window=3, softcap=2.0, normalizer="sigmoid", implementation="splash"
    )
    encoder = part_spec(read_model(c), LENGTH, "encoder", {"mask": "full"}, "self")
    assert encoder.mask == full() and "window" not in encoder.values
    # The implementation is no part of the mechanism: splash has no sigmoid.
    assert (encoder.values["softcap"], encoder.values["normalizer"]) == (2.0, "sigmoid")
    assert encoder.implementation == "dense"
    model = model_of(mixer="gated_delta", position="none", short_convolution=4)
    assert model.implementation == "chunkwise, dense" and not model.config.encoder_bidirectional
    model = model_of(encoder="position=sinusoidal")
    assert model.config.encoder.position == "sinusoidal"
    assert model.config.decoder.mixers[0].rotary is not None
    assert model.config.encoder.mixers[0].rotary is None and model.config.cross.rotary is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"mask": "full"}, "model.mask='full' of mixer 'softmax' looks ahead"),
        ({"pattern": ("mask=local, window=2",)}, "model.mask='local' of mixer 'softmax' looks"),
        ({"encoder_layers": -1}, "model.encoder_layers=-1 must be at least 0"),
        ({"cross": "mixer=gru"}, "model.cross='mixer=gru': mixer 'gru' cannot be used in cross"),
        ({"cross": "position=alibi"}, "model.cross='position=alibi': position 'alibi' cannot be"),
        ({"cross": "position=learned"}, "set model.position='learned'"),
        ({"cross": "score=synthesizer_random"}, "score 'synthesizer_random' cannot be used in cr"),
        ({"cross": "window=3"}, "model.cross='window=3': window = 3: nothing here reads it"),
        ({"cross": "score=addditive"}, "model.cross='score=addditive': score = 'addditive': unkn"),
        ({"cross": "width=3"}, "model.cross='width=3': key='width' is unknown"),
        ({"cross": "implementation=jax_cudnn"}, "implementation 'jax_cudnn' lacks mask Padding"),
        ({"encoder": "mixer=gru, mask=window"}, "model.encoder='mixer=gru, mask=window': "),
        ({"encoder": "mask=widow"}, "did you mean 'window'?"),
        ({"norm": "layrnorm"}, "Did you mean 'layernorm'?"),
    ],
)
def test_what_does_not_fit_is_named(model, message):
    with pytest.raises(UserError) as error:
        model_of(**model)
    assert message in str(error.value) and "\n" not in str(error.value)
