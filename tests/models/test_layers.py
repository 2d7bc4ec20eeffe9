"""Patterns of layers: each layer has the mechanism that its place in the pattern says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.layers import implementation_names
from research.models.registry import make_model, read_model
from research.models.transformer import init_state
from tests import small

PATTERN = ("mask=window, window=3", "mask=window, window=3", "mask=window, window=3", "")


def model_of(**model):
    deltas = {f"model__{k}": v for k, v in model.items()}
    return make_model(small.recall(**deltas).model, 16, 12)


def test_every_fourth_layer_sees_everything():
    model = model_of(num_layers=8, pattern=PATTERN)
    masks = [model.config.mixers[i % 4].mechanism.mask.reach for i in range(8)]
    assert masks == [3, 3, 3, None, 3, 3, 3, None]
    # 2 of the 8 layers keep all 12 tokens, the others 3; k and v of 8 channels, positions, step.
    sizes = [2 * slots * 8 * 4 + slots * 4 + 4 for slots in (3, 3, 3, 12)]
    assert model.state_bytes(12) == 2 * sum(sizes)


def test_a_pattern_of_equal_layers_computes_what_a_plain_model_does():
    plain, repeated = model_of(num_layers=4), model_of(num_layers=4, pattern=("", "position=rope"))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 16, (2, 12)))
    params = jax.jit(plain.init)(jax.random.key(0), tokens)["params"]
    layers = params["layers"]["0"]
    # Layers 0, 2 and layers 1, 3.
    split = {str(i): jax.tree.map(lambda a, i=i: a[i::2], layers) for i in (0, 1)}
    wanted = jax.jit(lambda p: plain.apply({"params": p}, tokens)[0])(params)
    found = jax.jit(lambda p: repeated.apply({"params": p}, tokens)[0])(params | {"layers": split})
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_positions_can_differ_by_layer():
    pattern = ("position=none", "position=alibi", "position=t5", "")
    config = model_of(num_layers=4, pattern=pattern).config
    none, alibi, t5, rope = config.mixers
    assert none.rotary is None and not none.mechanism.biases
    biases = [m.mechanism.biases for m in (alibi, t5)]
    assert [len(found) for found in biases] == [1, 1] and biases[0] != biases[1]
    assert rope.rotary is not None


def test_a_hybrid_names_all_its_implementations():
    model = small.recall(model__pattern=("mixer=linear, position=none", "")).model
    assert implementation_names(read_model(model).specs(12)) == "chunkwise, dense"


def test_states_of_a_hybrid_are_those_of_its_mixers():
    model = model_of(num_layers=2, pattern=("mixer=gru, position=none", ""))
    state = init_state(model.config, 2, 12)
    assert len(state["layers"]) == 2
    gru, softmax = (jax.tree.map(lambda a: a.shape, layer) for layer in state["layers"])
    assert "k" in softmax and "k" not in gru


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"pattern": ("", "", "")}, "model.num_layers=2 must be a multiple of the 3 layers"),
        ({"pattern": ("widow=3", "")}, "model.pattern[0]='widow=3': key='widow' is unknown. Did"),
        ({"pattern": ("", "window")}, "model.pattern[1]='window': 'window' must be key=value"),
        ({"pattern": ("window=a",)}, "model.pattern[0]='window=a': window='a' must be of type int"),
        (
            {"pattern": ("mask=window",)},
            "model.pattern[0]='mask=window': window = 0: must be at ",
        ),
        ({"pattern": ("width=3",)}, "key='width' is unknown"),
        ({"pattern": ("position=learned",)}, "it is the same for all layers; set model.position"),
    ],
)
def test_what_does_not_fit_is_named(model, message):
    with pytest.raises(UserError) as error:
        model_of(**model)
    assert message in str(error.value)
