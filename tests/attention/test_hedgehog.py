"""Linear attention with a learned feature map and a window, from the equations in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.mixers.linear.hedgehog import Hedgehog
from research.attention.mixers.mixer import init_params
from research.attention.parts.positions import Rotary
from tests.attention.in_torch import B, T, equals_torch, in_every_form
from tests.attention.test_linear_time import turned

M, H, D, F, W = 6, 2, 4, 3, 3


def published(torch, p, x, window):
    """The output of the layer, query by query and key by key."""
    rows = []
    for t in range(x.shape[1]):
        out = p["out_bias"]
        for h in range(H):

            def project(name, s, h=h):
                y = x[:, s] @ p[name][:, h] + p[f"{name}_bias"][h]
                return y if name == "value" else turned(y, s)

            def phi(y, name, h=h):
                y = y @ p[f"{name}_map"][h]
                return torch.cat([torch.softmax(y, -1), torch.softmax(-y, -1)], -1)

            q, own = project("query", t), range(max(0, t - window + 1), t + 1)
            keys = [project("key", s) for s in range(t + 1)]
            scores = {s: (q * keys[s]).sum(-1) / D**0.5 for s in own}
            largest = torch.stack(list(scores.values())).amax(0) if scores else None
            gamma = torch.sigmoid(p["window_gain"][h]) if window else None
            weights = [
                gamma * torch.exp(scores[s] - largest)
                if s in scores
                else (phi(q, "query") * phi(key, "key")).sum(-1)
                for s, key in enumerate(keys)
            ]
            mixed = sum(w[:, None] * project("value", s) for s, w in enumerate(weights))
            out = out + (mixed / sum(weights)[:, None]) @ p["out"][h]
        rows.append(out)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("window", [0, W])
def test_it_is_the_paper_in_torch(window):
    """In every form, outputs and gradients of every parameter and of the input."""
    torch = pytest.importorskip("torch")
    sizes = {"width": M, "num_heads": H, "head_width": D, "feature_width": F, "use_bias": True}
    forms = in_every_form(Hedgehog, sizes | {"window": window, "rotary": Rotary()})
    equals_torch("hedgehog", forms, lambda p, x: published(torch, p, x, window), (B, T, M))


def test_a_window_over_everything_is_softmax_attention():
    """Whatever gamma is, since there is nothing else."""
    mixer = Hedgehog(width=M, num_heads=H, head_width=D, window=T, block_size=4)
    params = init_params(mixer, jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, M)), jnp.float32)
    q, k, v = (jnp.einsum("btm,mhd->bthd", x, params[n]) for n in ("query", "key", "value"))
    attended = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    expected = jnp.einsum("bthd,hdm->btm", attended, params["out"])
    np.testing.assert_allclose(mixer(params, x), expected, atol=1e-6)
