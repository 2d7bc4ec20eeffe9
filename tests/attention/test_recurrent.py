"""GRU and LSTM: the cells are torch's, and the mixers run them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.errors import Unsupported
from research.attention.mixers.rnn import (
    CELLS,
    Recurrent,
    lstm_parameters,
    project,
    run,
)
from research.attention.parts.masks import causal
from tests.parity import compare, of

B, T, M, N = 3, 9, 5, 7
cells = pytest.mark.parametrize("cell", CELLS)


def close(actual, expected, tolerance):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max(initial=0.1))


def problem(cell: str):
    """Parameters, a state that is not zero, and inputs, in float64."""
    rng = np.random.default_rng(0)
    described = CELLS[cell].parameters(M, N, 0.0)
    params = {name: 0.5 * rng.normal(size=p.shape) for name, p in described.items()}
    state = {name: rng.normal(size=(B, N)) for name in CELLS[cell].init_state(B, N, "float32")}
    return params, state, rng.normal(size=(B, T, M))


def torch_network(torch, cell: str, params):
    """torch's network with copies of our weights; its gates are rows, in our order."""
    network = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](M, N, batch_first=True).double()

    def rows(name):
        return torch.tensor(params[name].reshape(len(params[name]), -1).T)

    recurrent_bias = np.zeros_like(params["bias"])
    if cell == "gru":
        recurrent_bias[2] = params["candidate_bias"]
    copies = {
        "weight_ih_l0": rows("input"),
        "weight_hh_l0": rows("recurrent"),
        "bias_ih_l0": torch.tensor(params["bias"].ravel()),
        "bias_hh_l0": torch.tensor(recurrent_bias.ravel()),
    }
    network.load_state_dict(copies)
    return network


@cells
def test_torch(cell):
    """Outputs, final states, and gradients of inputs, initial states and every parameter."""
    torch = pytest.importorskip("torch")
    params, state, x = problem(cell)
    network = torch_network(torch, cell, params)
    tx = torch.tensor(x, requires_grad=True)
    before = [torch.tensor(s[None], requires_grad=True) for s in state.values()]
    ty, after = network(tx, before[0] if cell == "gru" else tuple(before))
    after = [after] if cell == "gru" else list(after)
    weight = np.cos(np.arange(B * T * N)).reshape(B, T, N)
    (ty * torch.tensor(weight)).sum().add(sum((s * s).sum() for s in after)).backward()

    @jax.jit
    def ours(params, state, x):
        def loss(params, state, x):
            new, y = run(cell, params, state, x)
            return (y * weight).sum() + sum((s * s).sum() for s in new.values()), (new, y)

        return jax.grad(loss, (0, 1, 2), has_aux=True)(params, state, x)

    with jax.enable_x64(True):
        (dparams, dstate, dx), (new, y) = jax.tree.map(np.asarray, ours(params, state, x))
    close([new[name] for name in state], [s[0].detach() for s in after], 1e-12)
    theirs = {name: p.grad for name, p in network.named_parameters()}
    gradients = {
        "x": (dx, tx.grad),
        "input": (dparams["input"].reshape(M, -1), theirs["weight_ih_l0"].T),
        "recurrent": (dparams["recurrent"].reshape(N, -1), theirs["weight_hh_l0"].T),
        "bias": (dparams["bias"].ravel(), theirs["bias_ih_l0"]),
    }
    for name, s in zip(state, before, strict=True):
        gradients[f"state {name}"] = dstate[name], s.grad[0]
    if cell == "gru":
        gradients["candidate"] = dparams["candidate_bias"], theirs["bias_hh_l0"][2 * N :]
    row = f"mixer={cell}", of(torch, f"{type(network).__name__}")
    compare(*row, outputs=(y, ty), gradients=gradients, tolerance=1e-12)


def packed(torch, network, tx, before, lengths):
    """torch's outputs, zeros at padding, and last states, of sequences of these lengths."""
    rnn = torch.nn.utils.rnn
    sequence = rnn.pack_padded_sequence(tx, lengths, batch_first=True, enforce_sorted=False)
    ty, after = network(sequence, before[0] if len(before) == 1 else tuple(before))
    ty = rnn.pad_packed_sequence(ty, batch_first=True, total_length=T)[0]
    return ty, [after] if len(before) == 1 else list(after)


@pytest.mark.parametrize("reverse", [False, True])
@cells
def test_padding_is_torchs(cell, reverse):
    """Outputs, last states and the gradient of the inputs, which is zero at padding.

    torch's backward direction is told apart by a network whose forward weights do not matter.
    """
    torch = pytest.importorskip("torch")
    params, state, x = problem(cell)
    lengths, kind = np.array([T, 1, 4]), {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    network = kind(M, N, batch_first=True, bidirectional=True).double()
    ours_as_torchs = torch_network(torch, cell, params).state_dict()
    suffix = "_reverse" if reverse else ""
    network.load_state_dict({f"{k}{suffix}": a for k, a in ours_as_torchs.items()}, strict=False)
    direction = slice(N, None) if reverse else slice(N)
    tx = torch.tensor(x, requires_grad=True)
    before = [torch.tensor(np.stack([s, s])) for s in state.values()]
    ty, after = packed(torch, network, tx, before, torch.tensor(lengths))
    ty, after = ty[..., direction], [s[int(reverse)] for s in after]
    weight = np.cos(np.arange(B * T * N)).reshape(B, T, N)
    (ty * torch.tensor(weight)).sum().add(sum((s * s).sum() for s in after)).backward()

    @jax.jit
    def ours(x, params, state):
        def loss(x):
            new, y = run(cell, params, state, x, lengths=jnp.asarray(lengths), reverse=reverse)
            return (y * weight).sum() + sum((s * s).sum() for s in new.values()), (new, y)

        return jax.grad(loss, has_aux=True)(x)

    with jax.enable_x64(True):
        dx, (new, y) = jax.tree.map(np.asarray, ours(x, params, state))
        there = np.arange(T) < lengths[:, None]
        noisy = ours(np.where(there[..., None], x, 7.0), params, state)[1]
    close(y, ty.detach(), 1e-12)
    close([new[name] for name in state], [s.detach() for s in after], 1e-12)
    close(dx, tx.grad, 1e-11)
    assert not y[~there].any() and not dx[~there].any()
    assert jax.tree.all(jax.tree.map(np.array_equal, (new, y), noisy))


@cells
def test_cell_by_cell_equals_the_sequence(cell):
    params, state, x = problem(cell)
    params, state, x = jax.tree.map(jnp.float32, (params, state, x))
    expected_state, expected = jax.jit(lambda *a: run(cell, *a))(params, state, x)
    step = jax.jit(lambda params, state, x: CELLS[cell].step(params, state, project(params, x)))
    for t in range(T):
        state, y = step(params, state, x[:, t])
        close(y, expected[:, t], 1e-5)
    close(state, expected_state, 1e-5)


def layer(cell: str, **options):
    mixer, rng = Recurrent(width=M, cell=cell, **options), np.random.default_rng(0)
    params = {n: jnp.float32(0.7 * rng.normal(size=p.shape)) for n, p in mixer.parameters().items()}
    return mixer, params, jnp.float32(rng.normal(size=(B, T, M)))


@cells
@pytest.mark.parametrize("use_bias", [False, True])
def test_layer_is_the_network_and_a_projection(cell, use_bias):
    mixer, params, x = layer(cell, use_bias=use_bias)
    _, h = run(cell, params, mixer.init_state(B, T, x.dtype), x)
    expected = np.asarray(h) @ np.asarray(params["out"])
    expected = expected + np.asarray(params["out_bias"]) if use_bias else expected
    close(jax.jit(mixer)(params, x), expected, 1e-5)
    assert ("out_bias" in params) == use_bias


@cells
def test_decoding_equals_the_whole(cell):
    mixer, params, x = layer(cell)
    expected, extend = jax.jit(mixer)(params, x), jax.jit(mixer.extend)
    state, done = mixer.init_state(B, T, x.dtype), 0
    structure = jax.eval_shape(lambda: state)
    for size in (4, 1, 4):
        state, y = extend(params, state, x[:, done : done + size])
        close(y, expected[:, done : done + size], 1e-5)
        assert jax.eval_shape(lambda s=state: s) == structure
        done += size
    assert done == T


@cells
def test_low_precision_keeps_a_wide_state(cell):
    mixer, params, x = layer(cell)
    state = mixer.init_state(B, T, jnp.bfloat16)
    new, y = jax.jit(mixer.extend)(params, state, x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and {a.dtype.name for a in new.values()} == {"float32"}
    exact = np.asarray(jax.jit(mixer)(params, x))
    assert np.sqrt(np.mean((np.asarray(y, np.float32) - exact) ** 2)) < 0.05 * exact.std()


@cells
def test_populations_and_descriptions(cell):
    mixer, params, x = layer(cell, use_bias=True)
    half = {name: 0.5 * p for name, p in params.items()}
    stacked = {name: jnp.stack([p, half[name]]) for name, p in params.items()}
    both, alone = jax.jit(jax.vmap(mixer, (0, None)))(stacked, x), jax.jit(mixer)
    close(both, np.stack([alone(params, x), alone(half, x)]), 1e-5)
    again = Recurrent(**vars(mixer))
    assert mixer == again and hash(mixer) == hash(again)
    assert mixer.parameters() == again.parameters()
    for parameter in mixer.parameters().values():
        assert len(parameter.axes.names) == len(parameter.shape)
    with pytest.raises(Unsupported, match=f"'{cell}' cannot take a mask .* 'softmax' can"):
        mixer(params, x, mask=causal())


def test_initial_values():
    """Recurrent matrices keep the length of a state, on average; LSTMs start remembering."""
    described = lstm_parameters(M, 64)
    drawn = {
        name: p.init(jax.random.key(i), p.shape, "float32")
        for i, (name, p) in enumerate(described.items())
    }
    h = np.random.default_rng(0).normal(size=(100, 64))
    for gate in range(4):
        kept = np.linalg.norm(h @ drawn["recurrent"][:, gate], axis=1) / np.linalg.norm(h, axis=1)
        assert kept.mean() == pytest.approx(1, rel=0.05)
    assert np.array_equal(drawn["bias"], np.repeat([[0], [1], [0], [0]], 64, axis=1))
