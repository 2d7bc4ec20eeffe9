"""PaTH attention, from the paper's equations in PyTorch float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.implementations import householder
from research.attention.mixers.path import CAUSAL, Path
from research.attention.parts.forget_gate import forget_gate
from research.attention.parts.masks import causal
from research.attention.spec import mixer_spec
from research.options import OptionError
from tests.attention.in_torch import equals_torch

B, T, M, H, K, D, R = 2, 7, 6, 4, 2, 4, 3


def published(torch, p, x, gated):
    """The output of the layer with every matrix written out (equations 2 to 4)."""
    rows = []
    for row in x:
        matrices = [turns(torch, p, row, k) for k in range(K)]
        for t in range(len(row)):
            out = torch.zeros(M, dtype=torch.float64)
            for h in range(H):
                k, scores = h // (H // K), []
                turned, decay = row[t] @ p["query"][:, h], 0.0
                for s in range(t, -1, -1):
                    scores.insert(0, (row[s] @ p["key"][:, k]) @ turned / math.sqrt(D) + decay)
                    turned = matrices[k][s] @ turned
                    if gated:
                        gate = row[s] @ p["biases_0_weight"][:, h] + p["biases_0_bias"][h]
                        decay = decay + torch.nn.functional.logsigmoid(gate)
                weights = torch.softmax(torch.stack(scores), 0)
                values = [row[s] @ p["value"][:, k] for s in range(t + 1)]
                mixed = sum(w * v for w, v in zip(weights, values, strict=True))
                out = out + mixed @ p["out"][h]
            rows.append(out)
    return torch.stack(rows).reshape(x.shape)


def turns(torch, p, row, k):
    """The matrices of one key head, of all tokens of a sequence."""
    inputs = row @ p["turn_in"] @ p["turn_out"][:, k]
    taps, found = p["turn_taps"].reshape(-1, K, D)[:, k], []
    for s, x in enumerate(row):
        y = sum(tap * inputs[s - n] for n, tap in enumerate(taps) if n <= s)
        y = torch.nn.functional.silu(y)
        w = y / y.norm()
        beta = 2 * torch.sigmoid(x @ p["strength"][:, k] + p["strength_bias"][k])
        found.append(torch.eye(D, dtype=torch.float64) - beta * torch.outer(w, w))
    return found


@pytest.mark.parametrize("gated", [False, True])
def test_it_is_the_paper_in_torch(gated):
    """In float32 against float64, outputs and gradients of every parameter and of the input."""
    torch = pytest.importorskip("torch")
    mixer = Path(M, H, K, D, turn_rank=R)
    if gated:
        mechanism = dataclasses.replace(CAUSAL, biases=(forget_gate(M, H),))
        forms = {"": dataclasses.replace(mixer, mechanism=mechanism)}
    else:
        blocks = dataclasses.replace(mixer, implementation="blockwise", block_size=3)
        forms = {"": mixer, "blockwise": blocks}
    equals_torch(
        "path",
        forms,
        lambda p, x: published(torch, p, x, gated),
        (B, T, M),
        {"xla_backend_optimization_level": 0},
    )


def test_memory_of_blocks_grows_with_the_length():
    """That of the dense form with its square, in the backward pass too."""

    def temporaries(length, form):
        q, k, v, w = (jnp.zeros((1, length, 1, 8)) for _ in range(4))
        turns = householder.Turns(w, jnp.zeros((1, length, 1)))

        def loss(q, k, v, turns):
            if form == "dense":
                return jnp.square(householder.chunk(q, k, turns).scores).sum()
            return jnp.square(householder.blockwise(q, k, v, turns, causal(), 16)).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(q, k, v, turns).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(512, "blockwise") < 2.3 * temporaries(256, "blockwise")
    assert temporaries(512, "dense") > 3.5 * temporaries(256, "dense")


def test_strength_of_two_reflects_and_none_leaves_dot_products():
    rng = np.random.default_rng(0)
    q, k, w = (jnp.asarray(rng.normal(size=(1, 5, 1, 3)), jnp.float32) for _ in range(3))
    w = w / jnp.linalg.norm(w, axis=-1, keepdims=True)
    plain = householder.chunk(q, k, householder.Turns(w, jnp.zeros((1, 5, 1)))).scores
    np.testing.assert_allclose(plain[0, 0], q[0, :, 0] @ k[0, :, 0].T, atol=1e-6)
    turned = householder.chunk(q, k, householder.Turns(w, jnp.full((1, 5, 1), 2.0)))
    norms = [jnp.linalg.norm(a, axis=-1) for a in (turned.queries[0, 0], q[0, :, 0])]
    np.testing.assert_allclose(*norms, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "full"}, "it needs a causal mask"),
        ({"implementation": "blockwise", "forget_gate": True}, "do not have biases"),
        ({"implementation": "blockwise", "normalizer": "sparsemax"}, "other normalizers"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        mixer_spec(width=8, num_heads=2, max_length=8, mixer="path", **options).make()
