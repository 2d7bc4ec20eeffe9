"""Layers of the delta rule, from their papers in PyTorch float64: outputs and gradients."""

import jax
import numpy as np
import pytest

from research.attention.mixers.linear.kimi_delta import KimiDelta

torch = pytest.importorskip("torch")

B, T, M, H, D = 2, 11, 6, 2, 4


def recurrence(q, k, v, beta, decay):
    """Outputs of S_t = (I - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T, from S_0 = 0.

    Every argument is (B, T, H, ...); `decay` is a_t, (B, T, H, D).
    """
    state, out = torch.zeros(B, H, D, D, dtype=torch.float64), []
    for t in range(q.shape[1]):
        key, rate = k[:, t, :, :, None], beta[:, t, :, None, None]
        erase = torch.eye(D, dtype=torch.float64) - rate * key @ key.mT
        state = erase @ (decay[:, t, :, :, None] * state) + rate * key @ v[:, t, :, None, :]
        out.append((q[:, t, :, None, :] @ state)[:, :, 0])
    return torch.stack(out, 1)


def convolved(p, name, x):
    """A projection with its causal convolution and SiLU; (B, T, channels)."""
    y = torch.einsum("btm,mc->btc", x, p[name].reshape(M, -1))
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
    q, k, v = (convolved(p, name, x).reshape(B, T, H, D) for name in ("query", "key", "value"))
    step = torch.einsum("btr,rhd->bthd", x @ p["step_in"], p["step_out"]) + p["step_bias"]
    decay = torch.exp(-torch.exp(p["log_rate"])[:, None] * torch.nn.functional.softplus(step))
    beta = torch.sigmoid(x @ p["beta"])
    y = recurrence(unit(q) / D**0.5, unit(k), v, beta, decay)
    gate = torch.sigmoid(torch.einsum("btr,rhd->bthd", x @ p["gate_in"], p["gate_out"]))
    return torch.einsum("bthd,hdm->btm", normalized(y) * gate, p["out"])


LAYERS = {"kimi_delta": (KimiDelta, {}, kimi_delta)}
FORMS = [{"implementation": form} for form in ("parallel", "recurrent")]
FORMS += [{"implementation": "chunkwise", "block_size": size} for size in (4, 0)]


@pytest.mark.parametrize("name", LAYERS)
def test_every_form_is_the_paper_in_torch(name):
    """In float32 against float64, outputs and gradients of every parameter and of the input."""
    cls, options, published = LAYERS[name]
    sizes = {"width": M, "num_heads": H, "head_width": D, "short_convolution": 3} | options
    rng = np.random.default_rng(0)
    described = sorted(cls(**sizes).parameters().items())
    arrays = {n: np.float32(0.7 * rng.normal(size=p.shape)) for n, p in described}
    arrays["x"] = np.float32(rng.normal(size=(B, T, M)))
    weights = np.float32(rng.normal(size=(B, T, M)))

    wide = {n: torch.tensor(np.float64(a), requires_grad=True) for n, a in arrays.items()}
    expected = published(wide, wide["x"])
    expected.backward(torch.tensor(np.float64(weights)))
    assert expected.detach().abs().max() > 0.1

    for form in FORMS:
        mixer = cls(**sizes, **form)

        @jax.jit
        def run(arrays, mixer=mixer):
            out, pull = jax.vjp(lambda a: mixer(a, a["x"]), arrays)
            return out, pull(weights)[0]

        out, grads = run(arrays)
        found = {"out of the layer": (out, expected.detach())}
        found |= {n: (g, wide[n].grad) for n, g in grads.items()}
        for which, (actual, exact) in found.items():
            assert actual.dtype == np.float32
            scale = float(exact.abs().max())
            np.testing.assert_allclose(
                actual, exact.numpy(), rtol=0, atol=1e-5 * scale, err_msg=f"{form}: {which}"
            )
