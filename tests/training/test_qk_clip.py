"""QK-clip: which heads' weights it scales and by what, against loops, and that it bounds scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.spec import make_mixer
from research.errors import UserError
from research.training.program import make_members, make_program
from research.training.qk_clip import clip_heads, largest_of_all
from research.training.validation import check_config
from tests import small
from tests.attention.cases import close, numbers

B, T, M, H, D = 2, 7, 8, 4, 4
ROPE = {"position": "rope"}
MIXERS = {
    "multi-head": {**ROPE, "use_bias": True},
    "window": {"mask": "window", "window": 3, "score": "dot"},
    "grouped": {**ROPE, "num_kv_heads": 2, "qkv_bias": True},
    "latent": {**ROPE, "mixer": "latent", "rope_width": 2, "query_latent_width": 5},
    "latent, not rotated": {"mixer": "latent"},
}


def mixer_of(**options):
    return make_mixer(width=M, num_heads=H, max_length=T, head_width=D, **options)


def scores_of(mixer, params, x):
    """Scores of visible pairs (B, H, T, S), zero elsewhere."""
    trace = mixer.attention_trace(params, x)
    return np.where(np.asarray(trace.weights) > 0, trace.scores, 0)


@pytest.mark.parametrize("case", MIXERS)
def test_scores_of_a_head_above_the_bound_are_scaled_to_it_and_no_others(case):
    mixer = mixer_of(**MIXERS[case])
    params = jax.tree.map(jnp.asarray, numbers(mixer))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, M)), jnp.float32)
    run = jax.jit(lambda p, x: mixer.attention_trace(p, x))
    trace = run(params, x)
    before = np.where(np.asarray(trace.weights) > 0, trace.scores, -np.inf)
    largest = np.array([max(before[:, h].ravel()) for h in range(H)])
    most = float(np.sort(largest)[1:3].mean())  # two heads are above it

    found = jax.jit(mixer.largest_scores)(params, x)
    clipped = clip_heads({"a": {"mixer": params}}, {"a": {"mixer": found}}, most)["a"]["mixer"]
    trace = run(clipped, x)
    after = np.where(np.asarray(trace.weights) > 0, trace.scores, 0)
    before = np.where(np.isfinite(before), before, 0)
    gamma = np.minimum(1, most / largest)
    assert (gamma < 1).sum() == 2
    close(after, before * gamma[:, None, None])
    assert after.max() <= most * 1.0001
    np.testing.assert_allclose(largest_of_all(found), largest.max(), rtol=1e-5)
    for name, p in params.items():
        if name not in found:
            assert clipped[name] is p


@pytest.mark.parametrize("case", ["multi-head", "grouped", "latent"])
def test_weights_are_scaled_as_in_the_paper(case):
    """Algorithm 1, head by head: what heads share is left alone."""
    mixer = mixer_of(**MIXERS[case])
    params = {n: np.array(p) for n, p in numbers(mixer).items()}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, M)), jnp.float32)
    found = mixer.largest_scores(jax.tree.map(jnp.asarray, params), x)
    largest, most = np.ravel(found["query"].largest), 0.5
    expected = {name: p.copy() for name, p in params.items()}
    for h in range(H):
        gamma = most / max(largest[h], most)
        if case == "multi-head":
            for name in ("query", "key"):
                expected[name][:, h] *= gamma**0.5
                expected[f"{name}_bias"][h] *= gamma**0.5
        elif case == "grouped":
            expected["query"][:, h] *= gamma
            expected["query_bias"][h] *= gamma
        else:
            expected["query"][:, h, :D] *= gamma**0.5
            expected["key"][:, h] *= gamma**0.5
            expected["query"][:, h, D:] *= gamma
    assert (largest > most).any()
    close(clip_heads(jax.tree.map(jnp.asarray, params), found, most), expected, 1e-6)


SGD = {
    "optimizer__name": "sgd",
    "optimizer__schedule": "constant",
    "optimizer__warmup_steps": 0,
    "optimizer__clip_norm": 0.0,
    "optimizer__weight_decay": 0.0,
    "model__init_scale": 8.0,
    "task__num_pairs": (3,),
}


@functools.cache
def after_a_step(**deltas):
    config = small.recall(**SGD | deltas)
    program, members = make_program(config), make_members([config])
    first = program.init(members)
    before = jax.tree.map(np.asarray, first.params)
    state, sums = program.train(first, members, program.data, np.int32(0), np.int32(1))
    return program, before, jax.tree.map(np.asarray, state.params), sums


@pytest.mark.parametrize("deltas", [{}, {"optimizer__accumulate": 2, "model__remat": True}])
def test_a_step_of_training_scales_after_its_update(deltas):
    """By the scores of the batch at the weights before the update, of each layer by itself."""
    program, before, plain, sums = after_a_step()
    assert "largest_score" not in sums
    most = 0.05
    *_, clipped, found = after_a_step(optimizer__qk_clip=most, **deltas)
    batch = program.task.batch((), jax.random.fold_in(jax.random.key(0), 1), 0)
    mixer = program.model.config.mixers[0]
    x = before["embedding"][0][batch["inputs"]]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    of_first = {n: jnp.asarray(p[0, 0]) for n, p in before["layers"]["0"]["mixer"].items()}
    largest = scores_of(mixer, of_first, jnp.asarray(x)).max((0, 2, 3))
    assert (largest > most).any()
    factor = (most / np.maximum(largest, most)) ** 0.5
    own, theirs = (p["layers"]["0"]["mixer"] for p in (clipped, plain))
    for name in ("query", "key"):
        close(own[name][0, 0], theirs[name][0, 0] * factor[:, None], 1e-5)
    for name in ("value", "out"):
        close(own[name], theirs[name], 1e-6)
    assert found["largest_score"].total >= largest.max() * 0.9999


def test_scores_that_would_explode_stay_near_the_bound():
    """At a learning rate that makes them grow; a bound that is never reached shows them."""
    largest = {}
    for most in (1e6, 2.0):
        config = small.recall(
            **SGD
            | {
                "optimizer__name": "lion",
                "optimizer__learning_rate": 0.03,
                "model__init_scale": 1.0,
            },
            optimizer__qk_clip=most,
            train__steps=40,
        )
        program, members = make_program(config), make_members([config])
        state, seen = program.init(members), []
        for step in range(0, 40, 4):
            now = np.int32(step), np.int32(step + 4)
            state, sums = program.train(state, members, program.data, *now)
            seen.append(float(sums["largest_score"].total[0] / 4))
        largest[most] = seen
        assert (state.diverged_at < 0).all()
    assert max(largest[1e6]) > 20, largest
    assert max(largest[2.0]) < 5, largest


def test_what_it_cannot_bound_is_refused():
    check_config(small.recall(optimizer__qk_clip=100.0))
    hybrid = {"model__pattern": ("score=cosine", "")}
    check_config(small.recall(optimizer__qk_clip=100.0, **hybrid))
    for deltas in (
        {"model__mixer": "linear", "model__position": "none"},
        {"model__qk_norm": "rms"},
        {"model__score": "cosine"},
    ):
        with pytest.raises(UserError, match=r"optimizer.qk_clip=100.0: no layer .* Use 0."):
            check_config(small.recall(optimizer__qk_clip=100.0, **deltas))
    with pytest.raises(UserError, match="qk_clip.*'schedule_free' keeps other weights"):
        deltas = {"optimizer__name": "schedule_free", "optimizer__schedule": "constant"}
        check_config(small.recall(optimizer__qk_clip=100.0, **deltas))
    # Layers whose heads have two scores, or keys of another layer, are left alone.
    assert mixer_of(mixer="differential").largest_scores({}, jnp.zeros((1, 2, M))) == {}
    assert mixer_of(share_kv=True).largest_scores({}, jnp.zeros((1, 2, M))) == {}
