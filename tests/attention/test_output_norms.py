"""Gains and groups of linear-time mixers, each against the mixer without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.spec import make_mixer
from research.options import OptionError

B, T, M, H, D = 2, 9, 12, 4, 6
SIZES = {"width": M, "num_heads": H, "head_width": D, "max_length": T, "short_convolution": 3}


def made(name, **options):
    return make_mixer(mixer=name, **SIZES, **options)


def numbers(mixer, seed=0):
    rng = np.random.default_rng(seed)
    return {
        n: jnp.asarray(rng.normal(size=p.shape), "float32") for n, p in mixer.parameters().items()
    }


def outputs(mixer, params):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, M)), "float32")
    return jax.jit(mixer)(params, x)


def equal(found, expected):
    assert jnp.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["delta", "gated_delta", "kimi_delta", "delta_product"])
def test_a_gain_is_one_that_the_output_projection_can_have(name):
    gained, plain = made(name, output_norm_gain=True), made(name)
    params = numbers(gained)
    folded = {n: a for n, a in params.items() if n != "norm_scale"}
    assert params["norm_scale"].shape == (D,) and folded.keys() == plain.parameters().keys()
    folded["out"] = params["out"] * params["norm_scale"][:, None]
    equal(outputs(gained, params), outputs(plain, folded))


def test_gains_of_a_state_space_are_of_every_channel():
    gained, plain = made("state_space", output_norm_gain=True), made("state_space")
    params = numbers(gained)
    folded = {n: a for n, a in params.items() if n != "norm_scale"}
    folded["out"] = params["out"] * params["norm_scale"][..., None]
    equal(outputs(gained, params), outputs(plain, folded))


@pytest.mark.parametrize("name", ["gated_delta", "state_space"])
def test_the_epsilon_is_that_of_the_norm(name):
    """One so large that it takes the place of the mean square: the norm is a constant factor."""
    far, further = (made(name, output_norm_epsilon=e) for e in (1e14, 4e14))
    params = numbers(far)
    params["out"] = params["out"] * 1e7
    equal(outputs(far, params), 2 * outputs(further, params))


def test_shared_heads_of_keys_are_copies():
    shared, apart = made("gated_delta", num_key_heads=2), made("gated_delta")
    params = numbers(shared)
    assert params["query"].shape == params["key"].shape == (M, 2, D)
    copied = dict(params)
    for name in ("query", "key"):
        copied[name] = jnp.repeat(params[name], 2, axis=1)
        taps = params[f"{name}_taps"].reshape(3, 2, D)
        copied[f"{name}_taps"] = jnp.repeat(taps, 2, axis=1).reshape(3, H * D)
    equal(outputs(shared, params), outputs(apart, copied))


def test_groups_of_a_state_space_are_state_spaces_side_by_side():
    """Each with half of the heads, and a norm of its own; their outputs are added."""
    both = made("state_space", state_groups=2, feature_width=5)
    half = make_mixer(
        mixer="state_space", **SIZES | {"num_heads": 2}, state_groups=1, feature_width=5
    )
    params, found = numbers(both), 0

    def part(name, a, group):
        if name in ("query", "key"):
            return a[:, group : group + 1]
        if name.endswith("_taps"):
            return jnp.split(a, 2, axis=1)[group]
        axis = 0 if name in ("out", "step_bias", "log_rate", "skip") else 1
        return jnp.split(a, 2, axis=axis)[group]

    for group in range(2):
        one = {n: part(n, a, group) for n, a in params.items()}
        assert {n: a.shape for n, a in one.items()} == {
            n: p.shape for n, p in half.parameters().items()
        }
        found += outputs(half, one)
    equal(outputs(both, params), found)


@pytest.mark.parametrize(
    ("name", "key"), [("gated_delta", "num_key_heads"), ("state_space", "state_groups")]
)
def test_groups_divide_the_heads(name, key):
    with pytest.raises(OptionError, match=f"{key} = 3: must divide num_heads = 4"):
        made(name, **{key: 3})
