"""Tensor product attention, from the paper's equations in PyTorch float64."""

import math

import pytest

from research.attention.mixers.mixer import state_bytes
from research.attention.mixers.tensor_product import TensorProduct
from research.attention.parts.positions import Rotary
from research.attention.spec import mixer_spec
from tests.attention.in_torch import equals_torch

B, T, M, H, D = 2, 7, 6, 4, 6
RANKS = {"query": 5, "key": 3, "value": 2}


def published(torch, p, x, turns):
    """The output of the layer, token by token and head by head (section 3)."""

    def matrix(name, token, position):
        """sum_r a_r b_r^T / R of a token, rotated as whole rows."""
        total = torch.zeros(H, D, dtype=torch.float64)
        for r in range(RANKS[name]):
            a, b = token @ p[f"{name}_heads"][:, r], token @ p[f"{name}_channels"][:, r]
            total = total + torch.outer(a, b) / RANKS[name]
        if not turns or name == "value":
            return total
        angle = position * 10000.0 ** (-2 * torch.arange(D // 2, dtype=torch.float64) / D)
        a, b = total[:, : D // 2], total[:, D // 2 :]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], 1)

    rows = []
    for row in x:
        q, k, v = ([matrix(n, token, t) for t, token in enumerate(row)] for n in RANKS)
        for t in range(len(row)):
            out = torch.zeros(M, dtype=torch.float64)
            for h in range(H):
                scores = torch.stack([q[t][h] @ k[s][h] for s in range(t + 1)]) / math.sqrt(D)
                weights = torch.softmax(scores, 0)
                mixed = sum(w * v[s][h] for s, w in enumerate(weights))
                out = out + mixed @ p["out"][h]
            rows.append(out)
    return torch.stack(rows).reshape(x.shape)


@pytest.mark.parametrize("rotary", [None, Rotary()])
def test_it_is_the_paper_in_torch(rotary):
    """In float32 against float64, outputs and gradients of every parameter and of the input.

    Rotating the factors is rotating the matrices.
    """
    torch = pytest.importorskip("torch")
    ranks = {f"{name}_rank": rank for name, rank in RANKS.items()}
    mixer = TensorProduct(M, H, D, **ranks, rotary=rotary)
    equals_torch(
        "tensor_product",
        {"": mixer},
        lambda p, x: published(torch, p, x, rotary is not None),
        (B, T, M),
        {"xla_backend_optimization_level": 0},
    )


def test_state_is_the_factors():
    spec = mixer_spec(
        width=64, num_heads=8, max_length=100, mixer="tensor_product", key_rank=2, value_rank=1
    )
    # 3 (8 + 8) = 48 numbers a token, where 8 heads of keys and values of 8 would be 128.
    assert state_bytes(spec.make(), 1, 100, "float32") == 100 * 48 * 4 + 100 * 4 + 4
