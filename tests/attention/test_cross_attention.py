"""Cross-attention against torch, and reading token by token against reading at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.implementations.attend import IMPLEMENTATIONS
from research.attention.mixers.cross_attention import CrossAttention
from research.attention.parameters import Constant, Parameter, vector_axes
from research.attention.parts.additive_scores import AdditiveScore
from research.attention.parts.biases import alibi
from research.attention.parts.location_scores import LocationScore
from research.attention.parts.masks import padding
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.normalizers import SinkSoftmax
from research.attention.parts.part_options import Sizes
from research.attention.parts.positions import Rotary
from research.attention.parts.predicted_window import predicted_window
from research.attention.parts.sparse_masks import local
from tests.parity import compare, of

B, T, S, M, N, H, D = 2, 5, 7, 8, 6, 4, 2
PLAIN = CrossAttention(M, N, H, H, D)
GROUPED = dataclasses.replace(PLAIN, num_kv_heads=2)
ADDITIVE = AdditiveScore(score_width=3).build(Sizes(M, H, 2, D, S))
LOCATION = LocationScore().build(Sizes(M, H, H, D, S))
SINK = SinkSoftmax(sink=Parameter((H,), Constant(0.0), vector_axes("heads")))

LAYERS = {
    "plain": PLAIN,
    "grouped, biased, gated": dataclasses.replace(GROUPED, use_bias=True, output_gate=True),
    "normalized and rotary": dataclasses.replace(
        GROUPED, qk_norm="rms", rotary=Rotary(100.0), qkv_bias=True
    ),
    "rotary and local-m": dataclasses.replace(
        PLAIN, rotary=Rotary(100.0), mechanism=Mechanism(mask=local(2))
    ),
    "additive, alibi, sink": dataclasses.replace(
        GROUPED,
        mechanism=Mechanism(ADDITIVE, biases=(alibi(H),), normalizer=SINK),
    ),
    "local-p": dataclasses.replace(PLAIN, mechanism=Mechanism(focus=predicted_window(H, D, 2))),
    "location": dataclasses.replace(PLAIN, mechanism=Mechanism(LOCATION)),
}
layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
VALID = np.arange(S) < np.array([[S], [4]])


def problem(layer):
    rng = np.random.default_rng(0)
    described = layer.parameters()
    params = {n: jnp.asarray(rng.normal(size=p.shape), jnp.float32) for n, p in described.items()}
    x, memory = rng.normal(size=(B, T, M)), rng.normal(size=(B, S, N))
    return params, jnp.asarray(x, jnp.float32), jnp.asarray(memory, jnp.float32)


call = jax.jit(
    lambda layer, params, x, memory, mask=None: layer(params, x, memory, mask=mask),
    static_argnums=0,
)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_torch(use_bias, padded):
    torch = pytest.importorskip("torch")
    layer = dataclasses.replace(PLAIN, use_bias=use_bias)
    params, x, memory = problem(layer)
    reference = torch.nn.MultiheadAttention(
        M, H, bias=use_bias, kdim=N, vdim=N, batch_first=True, dtype=torch.float64
    )

    def matrix(name, width):
        return torch.tensor(np.array(params[name], np.float64)).reshape(width, M).T

    with torch.no_grad():
        reference.q_proj_weight.copy_(matrix("query", M))
        reference.k_proj_weight.copy_(matrix("key", N))
        reference.v_proj_weight.copy_(matrix("value", N))
        out = torch.tensor(np.array(params["out"], np.float64)).reshape(M, M).T
        reference.out_proj.weight.copy_(out)
        if use_bias:
            names = ("query_bias", "key_bias", "value_bias")
            found = np.concatenate([np.ravel(params[n]) for n in names])
            reference.in_proj_bias.copy_(torch.tensor(found))
            reference.out_proj.bias.copy_(torch.tensor(np.array(params["out_bias"])))
    theirs = [torch.tensor(np.float64(a), requires_grad=True) for a in (x, memory)]
    ignore = torch.tensor(~VALID) if padded else None
    expected, expected_weights = reference(
        theirs[0], theirs[1], theirs[1], key_padding_mask=ignore, average_attn_weights=False
    )
    ramp = np.cos(np.arange(expected.numel())).reshape(expected.shape)
    (expected * torch.tensor(ramp)).sum().backward()

    mask = padding(jnp.asarray(VALID)) if padded else None

    def loss(params, x, memory):
        out = layer(params, x, memory, mask=mask)
        return (out * ramp).sum(), out

    run = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    (by_params, by_x, by_memory), found = run(params, x, memory)
    gradients = {"x": (by_x, theirs[0].grad), "memory": (by_memory, theirs[1].grad)}
    for name, grad in (("query", reference.q_proj_weight), ("key", reference.k_proj_weight)):
        gradients[name] = by_params[name].reshape(-1, M), grad.grad.T
    row = "mixer=softmax, in cross-attention", of(torch, "MultiheadAttention in float64")
    compare(*row, outputs=(found, expected), tolerance=5e-7)
    compare(*row, gradients=gradients, tolerance=2e-6)
    weights = layer.attention_trace(
        params, x, layer.project_memory(params, memory), mask=mask
    ).weights
    np.testing.assert_allclose(weights, expected_weights.detach(), rtol=1e-4, atol=1e-5)


@layers
def test_padding_has_no_influence(layer):
    params, x, memory = problem(layer)
    mask = padding(jnp.asarray(VALID))

    @jax.jit
    def run(params, x, memory):
        out, back = jax.vjp(lambda m: layer(params, x, m, mask=mask), memory)
        ramp = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        others = layer(params, x, memory), layer(params, x, memory[:, :4])
        return jnp.abs(back(ramp)[0]).max(-1), out, *others

    found, padded, whole, short = jax.device_get(run(params, x, memory))
    assert not found[~VALID].any()
    assert np.isfinite(found).all()
    if layer.mechanism.focus is None:
        assert (found[VALID] > 1e-6).all()
    # It is as if the padded part were not there.
    np.testing.assert_allclose(padded[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(padded[1], short[1], atol=1e-5)


@layers
def test_reading_token_by_token_equals_reading_at_once(layer):
    params, x, memory = problem(layer)
    mask = padding(jnp.asarray(VALID))

    @jax.jit
    def run(params, x, memory):
        kept = layer.project_memory(params, memory)
        assert ("k" in kept) == ("key" in layer.mechanism.required_projections)

        def read(at):
            return layer.attend(params, x[:, at], kept, mask=mask, q_index=at)

        one_by_one = jax.lax.map(lambda t: read(t[None])[:, 0], jnp.arange(T))
        last_two = read(jnp.array([3, 4]))
        return layer(params, x, memory, mask=mask), jnp.moveaxis(one_by_one, 0, 1), last_two

    expected, one_by_one, last_two = jax.device_get(run(params, x, memory))
    np.testing.assert_allclose(one_by_one, expected, atol=1e-5)
    np.testing.assert_allclose(last_two, expected[:, 3:], atol=1e-5)


@pytest.mark.parametrize("implementation", [n for n in IMPLEMENTATIONS if n != "dense"])
def test_implementations_agree(implementation):
    layer = dataclasses.replace(GROUPED, implementation=implementation, block_size=3)
    mask = padding(jnp.asarray(VALID))
    if IMPLEMENTATIONS[implementation].unsupported_part(layer.mechanism.restricted_to(mask)):
        pytest.skip(f"{implementation} cannot compute this here")
    params, x, memory = problem(layer)
    expected = call(GROUPED, params, x, memory, mask)
    np.testing.assert_allclose(call(layer, params, x, memory, mask), expected, atol=2e-5)


def test_shared_heads_equal_repeated_ones():
    params, x, memory = problem(GROUPED)
    repeated = {n: jnp.repeat(params[n], 2, axis=1) for n in ("key", "value")}
    np.testing.assert_allclose(
        call(GROUPED, params, x, memory), call(PLAIN, params | repeated, x, memory), atol=1e-5
    )


def test_gate_multiplies_what_the_heads_read():
    layer = dataclasses.replace(PLAIN, output_gate=True)
    params, x, memory = problem(layer)
    # With the output projection of one head and channel at a time.
    for h, d in ((0, 0), (3, 1)):
        only = {**params, "out": jnp.zeros((H, D, M)).at[h, d].set(1)}
        gate = 1 / (1 + np.exp(-np.asarray(x) @ np.asarray(params["gate"])[:, h, d]))
        plain = call(PLAIN, {n: p for n, p in only.items() if n != "gate"}, x, memory)
        np.testing.assert_allclose(
            call(layer, only, x, memory), gate[..., None] * plain, rtol=1e-4, atol=1e-5
        )


def test_rotary_sees_distances_only():
    layer = dataclasses.replace(PLAIN, rotary=Rotary(100.0))
    params, x, memory = problem(layer)
    plain, turned = call(PLAIN, params, x, memory), call(layer, params, x, memory)
    assert np.abs(np.asarray(plain) - np.asarray(turned)).max() > 0.1
    # The same query later and the same memory later: attention to zeros in front left out.
    moved = np.pad(memory, ((0, 0), (2, 0), (0, 0)))
    behind = padding(jnp.asarray(np.broadcast_to(np.arange(S + 2) >= 2, (B, S + 2))))

    @jax.jit
    def run(params, x, memory):
        kept = layer.project_memory(params, memory)
        return layer.attend(params, x, kept, mask=behind, q_index=np.arange(2, T + 2))

    found = run(params, x, moved)
    np.testing.assert_allclose(found, turned, atol=1e-5)


def test_a_query_that_may_see_nothing_reads_zeros():
    params, x, memory = problem(PLAIN)
    nothing = padding(jnp.zeros((B, S), bool))
    grad = jax.jit(jax.grad(lambda m: PLAIN(params, x, m, mask=nothing).sum()))(memory)
    assert not np.asarray(call(PLAIN, params, x, memory, nothing)).any()
    assert not np.asarray(grad).any()


def test_bfloat16_and_populations():
    params, x, memory = problem(GROUPED)
    params = jax.tree.map(lambda p: 0.4 * p, params)
    exact = np.asarray(call(GROUPED, params, x, memory))
    low = call(GROUPED, params, x.astype(jnp.bfloat16), memory.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    error = np.sqrt(np.mean((np.asarray(low, np.float32) - exact) ** 2))
    assert error < 0.05 * exact.std()
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    both = jax.jit(jax.vmap(GROUPED, (0, None, None)))(stacked, x, memory)
    np.testing.assert_allclose(both[0], exact, atol=1e-5)
    assert not np.allclose(both[1], exact, atol=1e-2)


@layers
def test_parameters_are_described(layer):
    described = layer.parameters()
    for p in described.values():
        assert len(p.axes.names) == len(p.shape)
        drawn = jax.eval_shape(lambda p=p: p.init(jax.random.key(0), p.shape))
        assert drawn.shape == p.shape and drawn.dtype == jnp.float32
    assert described["value"].shape == (N, layer.num_kv_heads, D)
    assert described["query"].shape == (M, H, D) and described["out"].shape == (H, D, M)
    assert hash(layer) == hash(dataclasses.replace(layer))
    # Fan in is the memory's width where it is the memory that is read.
    layer = dataclasses.replace(layer, init_stddev=0.0)
    assert layer.parameters()["value"].init.stddev == N**-0.5
    assert layer.parameters()["query"].init.stddev == M**-0.5
