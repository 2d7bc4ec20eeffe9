"""Layers of the delta rule, from their papers in PyTorch float64: outputs and gradients."""

import jax
import numpy as np
import pytest

from research.attention.mixers.linear.delta import DeltaNet, GatedDeltaNet
from research.attention.mixers.linear.delta_product import DeltaProduct
from research.attention.mixers.linear.kimi_delta import KimiDelta
from research.attention.mixers.linear.rwkv7 import Rwkv7
from tests.attention.in_torch import B, T, equals_torch, in_every_form

torch = pytest.importorskip("torch")

M, H, D = 6, 2, 4


def recurrence(q, k, v, beta, decay):
    """Outputs of S_t = (I - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T, from S_0 = 0.

    Every argument is (B, T, H, ...); `decay` is a_t, (B, T, H, D).
    """
    state, out = torch.zeros(B, H, D, v.shape[-1], dtype=torch.float64), []
    for t in range(q.shape[1]):
        key, rate = k[:, t, :, :, None], beta[:, t, :, None, None]
        erase = torch.eye(D, dtype=torch.float64) - rate * key @ key.mT
        state = erase @ (decay[:, t, :, :, None] * state) + rate * key @ v[:, t, :, None, :]
        out.append((q[:, t, :, None, :] @ state)[:, :, 0])
    return torch.stack(out, 1)


def convolved(p, name, x):
    """A projection with its causal convolution and SiLU; (B, T, channels)."""
    y = torch.einsum("btm,mc->btc", x, p[name].reshape(x.shape[-1], -1))
    taps = p[f"{name}_taps"]
    past = torch.cat([torch.zeros_like(y[:, : len(taps) - 1]), y], 1)
    terms = [tap * past[:, len(taps) - 1 - n :][:, :T] for n, tap in enumerate(taps)]
    return torch.nn.functional.silu(sum(terms))


def unit(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def normalized(y):
    return y / torch.sqrt((y * y).mean(-1, keepdim=True) + 1e-6)


def kimi_delta(p, x):
    """Kimi Linear, section 3: per-channel decays and a gate, each by a pair of low-rank maps."""
    q, k, v = (convolved(p, name, x).reshape(B, T, H, -1) for name in ("query", "key", "value"))
    step = torch.einsum("btr,rhd->bthd", x @ p["step_in"], p["step_out"]) + p["step_bias"]
    decay = torch.exp(-torch.exp(p["log_rate"])[:, None] * torch.nn.functional.softplus(step))
    beta = torch.sigmoid(x @ p["beta"])
    y = recurrence(unit(q) / D**0.5, unit(k), v, beta, decay)
    gate = torch.sigmoid(torch.einsum("btr,rhd->bthd", x @ p["gate_in"], p["gate_out"]))
    return torch.einsum("bthd,hdm->btm", normalized(y) * gate, p["out"])


def delta_product(p, x, n, gated, most):
    """DeltaProduct, section 3: S_t is S_{t-1} after n delta steps, decayed before the first.

    `most` is the upper bound of beta.
    """
    q = convolved(p, "query", x).reshape(B, T, H, D)
    k, v = (convolved(p, name, x).reshape(B, T, H, n, -1) for name in ("key", "value"))
    q, k = unit(q) / D**0.5, unit(k)
    beta = most * torch.sigmoid(x @ p["beta"]).reshape(B, T, H, n)
    decay = torch.ones(B, T, H, dtype=torch.float64)
    if gated:
        step = torch.nn.functional.softplus(x @ p["step"] + p["step_bias"])
        decay = torch.exp(-torch.exp(p["log_rate"]) * step)
    state, out = torch.zeros(B, H, D, v.shape[-1], dtype=torch.float64), []
    for t in range(T):
        state = decay[:, t, :, None, None] * state
        for j in range(n):
            key, rate = k[:, t, :, j, :, None], beta[:, t, :, j, None, None]
            erase = torch.eye(D, dtype=torch.float64) - rate * key @ key.mT
            state = erase @ state + rate * key @ v[:, t, :, j, None, :]
        out.append((q[:, t, :, None, :] @ state)[:, :, 0])
    y = normalized(torch.stack(out, 1))
    if gated:
        y = y * torch.nn.functional.silu(torch.einsum("btm,mhd->bthd", x, p["gate"]))
    return torch.einsum("bthd,hdm->btm", y, p["out"])


def product(n, gated, negative, **others):
    """A case of DeltaProduct: the class, its options and the same in torch."""
    options = {"householder_steps": n, "gated": gated, "negative_eigenvalues": negative, **others}
    most = 2 if negative else 1
    return DeltaProduct, options, lambda p, x: delta_product(p, x, n, gated, most)


def rwkv7(p, x):
    """RWKV-7, section 4.1, in the first layer, with the paper's S, (values, keys)."""
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    names = ("query", "key", "value", "decay", "rate", "gate")
    seen = {n: x + (before - x) * p[f"shift_{n}"] for n in names}

    def heads(name, x):
        return torch.einsum("btm,mhd->bthd", x, p[name])

    r, k, v = (heads(n, seen[n]) for n in ("query", "key", "value"))
    d = heads("decay_out", torch.tanh(seen["decay"] @ p["decay_in"])) + p["decay_bias"]
    w = torch.exp(-np.exp(-0.5) * torch.sigmoid(d))
    a = torch.sigmoid(heads("rate_out", seen["rate"] @ p["rate_in"]) + p["rate_bias"])
    g = heads("gate_out", torch.sigmoid(seen["gate"] @ p["gate_in"]))
    removal = unit(k * p["removal"])
    k = k * torch.lerp(torch.ones_like(a), a, p["key_rate"])
    state, out = torch.zeros(B, H, D, D, dtype=torch.float64), []
    for t in range(T):
        row = removal[:, t, :, None, :]
        change = torch.diag_embed(w[:, t]) - row.mT @ (a[:, t, :, None, :] * row)
        state = state @ change + v[:, t, :, :, None] @ k[:, t, :, None, :]
        out.append((state @ r[:, t, :, :, None])[..., 0])
    y = torch.stack(out, 1)
    y = torch.nn.functional.layer_norm(y, (D,), eps=1e-5 * D) * p["norm_scale"] + p["norm_shift"]
    y = y + (r * p["bonus"] * k).sum(-1, keepdim=True) * v
    return torch.einsum("bthd,hdm->btm", y * g, p["out"])


LAYERS = {
    "delta": (DeltaNet, {}, lambda p, x: delta_product(p, x, 1, False, 1)),
    "kimi_delta": (KimiDelta, {}, kimi_delta),
    "kimi_delta, value_width=6": (KimiDelta, {"value_width": 6}, kimi_delta),
    "delta_product": product(2, False, True),
    "delta_product, gated=true": product(3, True, False, value_width=5),
    "rwkv7": (Rwkv7, {"short_convolution": 0}, rwkv7),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_form_is_the_paper_in_torch(name):
    cls, options, published = LAYERS[name]
    sizes = {"width": M, "num_heads": H, "head_width": D, "short_convolution": 3} | options
    equals_torch(name, in_every_form(cls, sizes), published, (B, T, M))


@pytest.mark.parametrize(("cls", "gated"), [(DeltaNet, False), (GatedDeltaNet, True)])
def test_a_product_of_one_step_is_the_delta_rule(cls, gated):
    sizes = {"width": M, "num_heads": H, "head_width": D, "short_convolution": 3}
    alone = cls(**sizes)
    options = {"householder_steps": 1, "negative_eigenvalues": False, "gated": gated}
    product = DeltaProduct(**sizes, **options)
    assert product.parameters() == alone.parameters()
    rng = np.random.default_rng(0)
    params = {n: np.float32(rng.normal(size=p.shape)) for n, p in alone.parameters().items()}
    x = np.float32(rng.normal(size=(B, T, M)))
    found, expected = jax.jit(lambda p, x: (product(p, x), alone(p, x)))(params, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_implied_weights_of_a_step_are_derivatives_by_its_values():
    mixer = DeltaProduct(width=M, num_heads=H, head_width=D, householder_steps=3, gated=True)
    rng = np.random.default_rng(0)
    params = {n: np.float32(rng.normal(size=p.shape)) for n, p in mixer.parameters().items()}
    x = np.float32(rng.normal(size=(B, T, M)))

    @jax.jit
    def run(params, x):
        state = mixer.init_state(B, T, x.dtype)
        read, v, _ = mixer.prepare(params, state, x, None)

        def of_head(v):
            return mixer.recur(params, read, v, state["memory"], "recurrent")[1][0, :, 1, 0]

        # Head 1 and its steps are 3 to 5.
        slopes = jax.jacobian(of_head)(v)[:, 0, :, 3:6, 0]
        return mixer.attention_trace(params, x).weights[0, 3:6], slopes.transpose(2, 0, 1)

    weights, slopes = run(params, x)
    np.testing.assert_allclose(weights, slopes, rtol=0, atol=1e-5)
